// qlora/view.hpp — typed views of matrices: the column count and the memory space are part of the type.
// A view owns nothing. Two views of different width, or of host and device memory, are different types, so network code
// that mixes them up does not compile. A width that is known only at run time is `dynamic`, and the view carries it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "qlora/config.hpp"

namespace qlora {
inline namespace v0 {

/// Memory that a pointer points into: the processor's, or a GPU's.
enum class Space : std::uint8_t { host, device };

/// A number of columns: in the type, or as a member where the type says dynamic. A static one leaves no function
/// behind, not even without optimization.
template <int N>
struct Width {
  static constexpr int columns = N;  ///< the width, as a constant
  constexpr Width() = default;
  /// `n` is N.
  [[gnu::always_inline]] constexpr explicit Width(int /*n*/) {}
  /// The width.
  [[gnu::always_inline]] constexpr operator int() const { return N; }  // NOLINT: is a number
};
/// A width that is known when the program runs.
template <>
struct Width<dynamic> {
  static constexpr int columns = dynamic;  ///< the mark that the width is in `value`
  int value = 0;                           ///< the width
  constexpr Width() = default;
  /// `n` is the width, at least 0.
  constexpr explicit Width(int n) : value(n) {}
  /// The width.
  constexpr operator int() const { return value; }  // NOLINT: is a number
};

/// Sums and products of column counts; dynamic when one of them is.
[[nodiscard]] constexpr int columns_sum(int a, int b) { return is_dynamic(a) || is_dynamic(b) ? int{dynamic} : a + b; }
/// The product of two column counts; dynamic when one of them is.
[[nodiscard]] constexpr int columns_product(int a, int b) {
  return is_dynamic(a) || is_dynamic(b) ? int{dynamic} : a * b;
}

/// Row-major matrix of `rows` x Cols elements; rows begin `stride` elements apart, the width unless it is a part of a
/// wider one.
template <class T, int Cols, Space S = Space::host>
struct Mat {
  using Element = T;                 ///< const for a view that only reads
  static constexpr Space space = S;  ///< the memory that `data` points into

  T* data = nullptr;                          ///< row 0; null in an empty view
  int rows = 0;                               ///< number of rows
  [[no_unique_address]] Width<Cols> width{};  ///< number of columns
  int stride = width;                         ///< elements from one row's begin to the next one's, at least the width

  constexpr Mat() = default;
  /// Rows without gaps; the width is in the type.
  constexpr Mat(T* first, int row_count) requires(Cols != dynamic) : data(first), rows(row_count) {}
  /// Rows `row_stride` elements apart; the width is in the type.
  constexpr Mat(T* first, int row_count, int row_stride) requires(Cols != dynamic)
      : data(first), rows(row_count), stride(row_stride) {}
  /// Rows without gaps of a width known at run time.
  constexpr Mat(T* first, int row_count, Width<Cols> columns)
      : data(first), rows(row_count), width(columns), stride(columns) {}
  /// Rows `row_stride` elements apart, of a width known at run time.
  constexpr Mat(T* first, int row_count, Width<Cols> columns, int row_stride)
      : data(first), rows(row_count), width(columns), stride(row_stride) {}
  /// A view to read what another may write.
  template <class U>
  requires(std::is_same_v<const U, T>) constexpr Mat(const Mat<U, Cols, S>& other)
      : data(other.data), rows(other.rows), width(other.width), stride(other.stride) {}

  /// Number of columns.
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
