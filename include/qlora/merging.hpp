// qlora/merging.hpp — how adapters are merged into weights, W + s B A, by either backend: the interface between the
// files of a model (io/merge.hpp) and what computes (cpu/merge.hpp, cuda/weights/merge.cuh). With DoRA each row is then
// brought to its magnitude: m (W + s B A) / |W + s B A|, on the CPU alone.
// Numbers: the sum over the rank in float, in order, from zero; then W + (s * sum) in float; then the type that is
// asked for, to nearest even.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "qlora/dtype.hpp"

namespace qlora {
inline namespace v0 {

/// The adapter of one matrix (N,K). Rank 0: there is none, and the matrix is only converted.
struct MergeAdapter {
  int cols = 0;                        ///< K
  int rank = 0;                        ///< R
  float scale = 0.0F;                  ///< s, what B A is multiplied by
  std::span<const float> a;            ///< (R,K)
  std::span<const float> b;            ///< (N,R)
  DType to = DType::f16;               ///< type of the merged matrix: f16, bf16 or f32
  std::span<const float> magnitude{};  ///< (N), lengths of the rows with DoRA; empty: they stay what they are
};

/// What one thread merges with: its own buffers, and its own queue on a device.
class MergeLane {
 public:
  MergeLane() = default;
  MergeLane(const MergeLane&) = delete;
  MergeLane& operator=(const MergeLane&) = delete;
  virtual ~MergeLane() = default;

  /// The adapter of the pieces that follow; its floats stay until the next begin().
  virtual void begin(const MergeAdapter& adapter) = 0;
  /// Rows [first, first + rows) of the merged matrix in its type, from those rows as they are stored. They are the
  /// lane's and good until its next call. Empty when a value is not finite in that type.
  [[nodiscard]] virtual std::span<const std::byte> merge(DType dtype, std::span<const std::byte> w, int first,
                                                         int rows) = 0;
};

/// Elements of a piece at most, in whole rows: some megabytes, so that copies are long and a lane is small.
inline constexpr std::int64_t merge_piece = std::int64_t{1} << 21;

}  // namespace v0
}  // namespace qlora
