// qlora/cpu/merge.hpp — adapters into weights for a merged model, on the CPU: one lane of merging.hpp.
// Math       out = W + s (sum over r of B[n,r] A[r,k]), as float16, bfloat16 or float; with DoRA each row of that
//            times m[n] over its length
// Shapes     w (N,K) of any floating-point type, a piece of whole rows at a time; a (R,K), b (N,R) float; out (N,K)
// Numbers    as merging.hpp says: float, over r in order, each product and sum rounded by itself unless the compiler
//            fuses them
// Reference  tests/io/merge_test.cpp
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "qlora/dtype.hpp"
#include "qlora/merging.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// Sums of `rows` rows of B A over some columns; sums (rows, cols), columns of A from `first` on. Four rows share what
/// is loaded of A.
inline void merge_products(const MergeAdapter& adapter, const float* b, int rows, int first, int cols, float* sums) {
  std::fill_n(sums, static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols), 0.0F);
  for (int k = 0; k < adapter.rank; ++k) {
    const float* a = adapter.a.data() + static_cast<std::size_t>(k) * static_cast<std::size_t>(adapter.cols) + first;
    for (int r = 0; r < rows; ++r) {
      const float factor =
          b[static_cast<std::size_t>(r) * static_cast<std::size_t>(adapter.rank) + static_cast<std::size_t>(k)];
      float* sum = sums + static_cast<std::size_t>(r) * static_cast<std::size_t>(cols);
      for (int c = 0; c < cols; ++c) sum[c] += factor * a[c];
    }
  }
}

/// Rows [first, first + values.size() / K) of W, as floats, become those of W + s B A.
inline void add_adapter(const MergeAdapter& adapter, int first, std::span<float> values) {
  constexpr int tile_rows = 4;
  constexpr int tile_cols = 1024;  // the sums stay in the first-level cache, this part of A in the second
  if (adapter.rank == 0) return;
  std::array<float, tile_rows * tile_cols> sums;
  const auto width = static_cast<std::size_t>(adapter.cols);
  const int rows = static_cast<int>(values.size() / width);
  for (int col = 0; col < adapter.cols; col += tile_cols) {
    const int cols = std::min(tile_cols, adapter.cols - col);
    for (int row = 0; row < rows; row += tile_rows) {
      const int here = std::min(tile_rows, rows - row);
      const float* b =
          adapter.b.data() + static_cast<std::size_t>(first + row) * static_cast<std::size_t>(adapter.rank);
      merge_products(adapter, b, here, col, cols, sums.data());
      for (int r = 0; r < here; ++r) {
        float* w = values.data() + static_cast<std::size_t>(row + r) * width + static_cast<std::size_t>(col);
        const float* sum = sums.data() + static_cast<std::size_t>(r) * static_cast<std::size_t>(cols);
        for (int c = 0; c < cols; ++c) w[c] += adapter.scale * sum[c];
      }
    }
  }
}

/// What brings a row of that length to its magnitude; a row of zeros stays one.
[[nodiscard]] inline float dora_factor(float magnitude, std::span<const float> row) {
  double squares = 0.0;
  for (const float value : row) squares += static_cast<double>(value) * static_cast<double>(value);
  return squares > 0.0 ? static_cast<float>(static_cast<double>(magnitude) / std::sqrt(squares)) : 1.0F;
}

/// Rows of W + s B A as floats, with DoRA each in its length.
inline void merged_floats(const MergeAdapter& adapter, DType dtype, std::span<const std::byte> w, int first, int rows,
                          std::vector<float>& out) {
  out.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(adapter.cols));
  read_floats({dtype, {rows, adapter.cols}, w}, 0, out);
  add_adapter(adapter, first, out);
  if (adapter.magnitude.empty()) return;
  const auto width = static_cast<std::size_t>(adapter.cols);
  for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row) {
    const std::span<float> values(out.data() + row * width, width);
    const float factor = dora_factor(adapter.magnitude[static_cast<std::size_t>(first) + row], values);
    for (float& value : values) value *= factor;
  }
}

}  // namespace cpu

/// Merges on the CPU, in the calling thread.
class HostMergeLane final : public MergeLane {
 public:
  void begin(const MergeAdapter& adapter) override { adapter_ = adapter; }
  [[nodiscard]] std::span<const std::byte> merge(DType dtype, std::span<const std::byte> w, int first,
                                                 int rows) override {
    cpu::merged_floats(adapter_, dtype, w, first, rows, values_);
    if (adapter_.to == DType::f32) {
      const bool finite = std::all_of(values_.begin(), values_.end(), [](float value) { return std::isfinite(value); });
      return finite ? std::as_bytes(std::span(values_)) : std::span<const std::byte>();
    }
    return adapter_.to == DType::bf16 ? rounded(to_bf16, 0x7f80U) : rounded(to_f16, 0x7c00U);
  }

 private:
  /// `exponent`: the bits of the type that are all set in what is not finite.
  template <class Round>
  [[nodiscard]] std::span<const std::byte> rounded(const Round& round, unsigned exponent) {
    out_.resize(values_.size());
    bool finite = true;
    for (std::size_t i = 0; i < values_.size(); ++i) {
      out_[i] = round(values_[i]);
      finite = finite && (out_[i] & exponent) != exponent;
    }
    return finite ? std::as_bytes(std::span(out_)) : std::span<const std::byte>();
  }

  MergeAdapter adapter_;
  std::vector<float> values_;
  std::vector<std::uint16_t> out_;
};

}  // namespace v0
}  // namespace qlora
