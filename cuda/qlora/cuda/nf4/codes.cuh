// qlora/cuda/nf4/codes.cuh — the code tables of nf4.hpp in device memory, and searches in them.
// Numbers    the tables are those of nf4.hpp, evaluated by the host compiler; the searches break ties in the same way
// Reference  nf4.hpp
#pragma once

#include <array>

#include "qlora/cuda/arch/primitives.cuh"
#include "qlora/nf4.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// An array that device code can index: the members of std::array are host functions.
template <std::size_t Count>
struct alignas(16) Table {
  float value[Count];
};
template <std::size_t Count>
consteval Table<Count> to_table(const std::array<float, Count>& from) {
  Table<Count> table{};
  for (std::size_t i = 0; i < Count; ++i) table.value[i] = from[i];
  return table;
}

static __device__ const Table<16> codebook = to_table(nf4::codebook);
static __device__ const Table<256> dynamic8 = to_table(nf4::dynamic8);
static __device__ const Table<256> dynamic8_unsigned = to_table(nf4::dynamic8_unsigned);

/// nf4::nearest8 for a table anywhere in device memory.
__device__ __forceinline__ std::uint32_t nearest8(const float* map, float x) {
  int pivot = 127;
  int upper_pivot = 255;
  int lower_pivot = 0;
  float lower = map[0];
  float upper = map[255];
  float value = map[127];
#pragma unroll
  for (int step = 64; step > 0; step >>= 1) {
    const bool above = x > value;
    lower_pivot = above ? pivot : lower_pivot;
    lower = above ? value : lower;
    upper_pivot = above ? upper_pivot : pivot;
    upper = above ? upper : value;
    pivot += above ? step : -step;
    value = map[pivot];
  }
  int code = pivot;
  if (x > value) {
    if (x > __fmul_rn(__fadd_rn(upper, value), 0.5F)) code = upper_pivot;
  } else if (x < __fmul_rn(__fadd_rn(lower, value), 0.5F)) {
    code = lower_pivot;
  }
  return static_cast<std::uint32_t>(code);
}

/// nf4::encode: the code is the number of thresholds below the value.
__device__ __forceinline__ std::uint32_t encode4(float normalized) {
  constexpr Table<15> thresholds = to_table(nf4::thresholds);
  std::uint32_t code = 0;
#pragma unroll
  for (int i = 0; i < 15; ++i) code += normalized > thresholds.value[i] ? 1U : 0U;
  return normalized != normalized ? 7U : code;
}

/// Unsigned division by a number known at launch: two instructions and a shift, exact for dividends below 2^31.
/// Source: Granlund and Montgomery, "Division by invariant integers using multiplication" (1994), figure 4.1.
struct Divider {
  std::uint32_t multiplier = 1;
  std::uint32_t shift = 0;

  static Divider by(std::uint32_t divisor) {
    Divider made;
    while ((std::uint64_t{1} << made.shift) < divisor) ++made.shift;
    const std::uint64_t excess = (std::uint64_t{1} << made.shift) - divisor;
    made.multiplier = static_cast<std::uint32_t>((excess << 32) / divisor + 1);
    return made;
  }
  __device__ __forceinline__ std::uint32_t operator()(std::uint32_t dividend) const {
    return (__umulhi(dividend, multiplier) + dividend) >> shift;
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
