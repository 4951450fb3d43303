// qlora/view.hpp — typed views of matrices: the column count and the memory space are part of the type.
// A view owns nothing. Two views of different width, or of host and device memory, are different types, so network code
// that mixes them up does not compile.
#pragma once

#include <cstdint>
#include <type_traits>

namespace qlora {
inline namespace v0 {

enum class Space : std::uint8_t { host, device };

/// Row-major matrix of `rows` x Cols elements without gaps.
template <class T, int Cols, Space S = Space::host>
struct Mat {
  using Element = T;
  static constexpr int cols = Cols;
  static constexpr Space space = S;

  T* data = nullptr;
  int rows = 0;

  constexpr Mat() = default;
  constexpr Mat(T* first, int row_count) : data(first), rows(row_count) {}
  /// A view to read what another may write.
  template <class U>
  requires(std::is_same_v<const U, T>) constexpr Mat(const Mat<U, Cols, S>& other)
      : data(other.data), rows(other.rows) {}

  [[nodiscard]] constexpr T* row(std::int64_t index) const { return data + index * Cols; }
  [[nodiscard]] constexpr std::int64_t size() const { return std::int64_t{rows} * Cols; }
};

/// A parameter type that is read only and takes no part in deduction: In<float, D> x binds to Mat<float, D>.
template <class T, int Cols, Space S = Space::host>
using In = std::type_identity_t<Mat<const T, Cols, S>>;

}  // namespace v0
}  // namespace qlora
