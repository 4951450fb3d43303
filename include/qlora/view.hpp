// qlora/view.hpp — typed views of matrices: the column count and the memory space are part of the type.
// A view owns nothing. Two views of different width, or of host and device memory, are different types, so network code
// that mixes them up does not compile. A width that is known only at run time is `dynamic`, and the view carries it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "qlora/config.hpp"

namespace qlora {
inline namespace v0 {

enum class Space : std::uint8_t { host, device };

/// A number of columns: in the type, or as a member where the type says dynamic. A static one leaves no function
/// behind, not even without optimization.
template <int N>
struct Width {
  static constexpr int columns = N;
  constexpr Width() = default;
  /// `n` is N.
  [[gnu::always_inline]] constexpr explicit Width(int /*n*/) {}
  [[gnu::always_inline]] constexpr operator int() const { return N; }  // NOLINT: is a number
};
template <>
struct Width<dynamic> {
  static constexpr int columns = dynamic;
  int value = 0;
  constexpr Width() = default;
  constexpr explicit Width(int n) : value(n) {}
  constexpr operator int() const { return value; }  // NOLINT: is a number
};

/// Sums and products of column counts; dynamic when one of them is.
[[nodiscard]] constexpr int columns_sum(int a, int b) { return is_dynamic(a) || is_dynamic(b) ? int{dynamic} : a + b; }
[[nodiscard]] constexpr int columns_product(int a, int b) {
  return is_dynamic(a) || is_dynamic(b) ? int{dynamic} : a * b;
}

/// Row-major matrix of `rows` x Cols elements; rows begin `stride` elements apart, the width unless it is a part of a
/// wider one.
template <class T, int Cols, Space S = Space::host>
struct Mat {
  using Element = T;
  static constexpr Space space = S;

  T* data = nullptr;
  int rows = 0;
  [[no_unique_address]] Width<Cols> width{};
  int stride = width;

  constexpr Mat() = default;
  constexpr Mat(T* first, int row_count) requires(Cols != dynamic) : data(first), rows(row_count) {}
  constexpr Mat(T* first, int row_count, int row_stride) requires(Cols != dynamic)
      : data(first), rows(row_count), stride(row_stride) {}
  constexpr Mat(T* first, int row_count, Width<Cols> columns)
      : data(first), rows(row_count), width(columns), stride(columns) {}
  constexpr Mat(T* first, int row_count, Width<Cols> columns, int row_stride)
      : data(first), rows(row_count), width(columns), stride(row_stride) {}
  /// A view to read what another may write.
  template <class U>
  requires(std::is_same_v<const U, T>) constexpr Mat(const Mat<U, Cols, S>& other)
      : data(other.data), rows(other.rows), width(other.width), stride(other.stride) {}

  [[nodiscard]] constexpr int cols() const { return width; }
  /// The first columns.
  template <int Left>
  requires(Left <= Cols || is_dynamic(Cols)) [[nodiscard]] constexpr Mat<T, Left, S> left(Width<Left> columns) const {
    return {data, rows, columns, stride};
  }
};

/// A parameter type that is read only and takes no part in deduction: In<float, D> x binds to Mat<float, D>.
template <class T, int Cols, Space S = Space::host>
using In = std::type_identity_t<Mat<const T, Cols, S>>;

}  // namespace v0
}  // namespace qlora
