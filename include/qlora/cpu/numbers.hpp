// qlora/cpu/numbers.hpp — what the CPU backend computes with: the scalar type, and where results are rounded.
// Numbers<float>                 the reference for the GPU
// Numbers<double>                the reference for float
// Numbers<std::complex<double>>  complex step: f(x + ih) = f(x) + ih f'(x) proves every backward; so no operation here
//                                may conjugate, compare or take absolute values of a differentiated quantity
// Numbers<float, Rounding::bf16> float arithmetic, rounded to bfloat16 wherever the GPU stores bfloat16: the yardstick
//                                for the GPU's error
#pragma once

#ifndef EIGEN_DONT_PARALLELIZE
#define EIGEN_DONT_PARALLELIZE  ///< see cpu/threads.hpp
#endif
#ifndef EIGEN_STACK_ALLOCATION_LIMIT
#define EIGEN_STACK_ALLOCATION_LIMIT 2097152  ///< a product of one tile packs well below it: no heap inside a step
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push  // g++ 12 takes the undefined lanes of AVX-512 intrinsics for uninitialized variables
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <Eigen/Core>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#include <complex>
#include <cstdint>
#include <type_traits>

#include "qlora/dtype.hpp"

// Operators take run-time sizes, so one float instance of each serves all configs; it stands below the operator. A
// program that defines QLORA_PREBUILT_CPU (the CMake target qlora::cpu_float does, and brings the object code) gets
// declarations; the file with the code defines QLORA_INSTANCE as `template`. Without either every file compiles what it
// uses.
#if defined(QLORA_PREBUILT_CPU) && !defined(QLORA_INSTANCE)
#define QLORA_INSTANCE extern template
#endif

namespace qlora {
inline namespace v0 {

/// Where the CPU backend rounds what it stores.
enum class Rounding : std::uint8_t { none, bf16 };

namespace cpu {

/// A row-major matrix inside a larger one: element (i, j) is data[i * stride + j].
template <class S>
struct Block {
  S* data = nullptr;        ///< element (0, 0); not owned
  std::int64_t stride = 0;  ///< elements from one row's begin to the next one's
  /// The first element of a row.
  [[nodiscard]] S* row(std::int64_t index) const { return data + index * stride; }
};

/// What operators are compiled for; see the head of this file.
template <class Scalar, Rounding Round = Rounding::none>
struct Numbers {
  using S = Scalar;  ///< type of all numbers
  /// Sums over many tokens: one width up, where there is one.
  using Sum = std::conditional_t<std::is_same_v<Scalar, float>, double, Scalar>;
  static constexpr bool rounds = Round == Rounding::bf16;  ///< whether stored values are rounded to bfloat16
  static_assert(!rounds || std::is_same_v<Scalar, float>, "rounding to bfloat16 is defined for float");

  /// The value that a bfloat16 activation would hold.
  [[nodiscard]] static S stored(S value) {
    if constexpr (rounds) return from_bf16(to_bf16(value));
    return value;
  }
  /// Rounds `count` stored values in place; does nothing where nothing is rounded.
  static void store(S* values, std::int64_t count) {
    if constexpr (rounds) {
      for (std::int64_t i = 0; i < count; ++i) values[i] = stored(values[i]);
    }
  }
  /// The same for a matrix of `rows` x `cols`.
  static void store(Block<S> values, std::int64_t rows, std::int64_t cols) {
    for (std::int64_t i = 0; i < (rounds ? rows : 0); ++i) store(values.row(i), cols);
  }
};

/// What comparisons use of a number.
[[nodiscard]] inline float real_part(float value) { return value; }
/// What comparisons use of a number.
[[nodiscard]] inline double real_part(double value) { return value; }
/// What comparisons use of a number: the derivative stays out of them.
[[nodiscard]] inline double real_part(const std::complex<double>& value) { return value.real(); }

/// Numbers one after another, as Eigen computes with them.
template <class S>
using RowArray = Eigen::Map<Eigen::Array<S, 1, Eigen::Dynamic>>;
/// The same to read.
template <class S>
using ConstRowArray = Eigen::Map<const Eigen::Array<S, 1, Eigen::Dynamic>>;

/// `count` numbers as an Eigen array; not owned.
template <class S>
[[nodiscard]] RowArray<S> row_array(S* data, std::int64_t count) {
  return {data, count};
}
/// The same to read.
template <class S>
[[nodiscard]] ConstRowArray<S> row_array(const S* data, std::int64_t count) {
  return {data, count};
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
