// qlora/view.hpp — typed views of matrices: the column count and the memory space are part of the type.
// A view owns nothing. Two views of different width, or of host and device memory, are different types, so network code
// that mixes them up does not compile.
#pragma once

#include <cstdint>
#include <type_traits>

namespace qlora {
inline namespace v0 {

enum class Space : std::uint8_t { host, device };

/// Row-major matrix of `rows` x Cols elements; rows begin `stride` elements apart, Cols unless it is a part of a wider one.
template <class T, int Cols, Space S = Space::host>
struct Mat {
  using Element = T;
  static constexpr int cols = Cols;
  static constexpr Space space = S;

  T* data = nullptr;
  int rows = 0;
  int stride = Cols;

  constexpr Mat() = default;
  constexpr Mat(T* first, int row_count, int row_stride = Cols) : data(first), rows(row_count), stride(row_stride) {}
  /// A view to read what another may write.
  template <class U>
  requires(std::is_same_v<const U, T>) constexpr Mat(const Mat<U, Cols, S>& other)
      : data(other.data), rows(other.rows), stride(other.stride) {}

  /// The first columns.
  template <int Left>
  requires(Left <= Cols) [[nodiscard]] constexpr Mat<T, Left, S> left() const { return {data, rows, stride}; }
};

/// A parameter type that is read only and takes no part in deduction: In<float, D> x binds to Mat<float, D>.
template <class T, int Cols, Space S = Space::host>
using In = std::type_identity_t<Mat<const T, Cols, S>>;

}  // namespace v0
}  // namespace qlora
