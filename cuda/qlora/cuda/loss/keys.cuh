// qlora/cuda/loss/keys.cuh — logits with their ids as numbers that can be compared: what pick.cuh and draw.cuh order
// by.
// Numbers    exact; -0 is 0, NaN is below all others
// Reference  pick_cases in tests/ops/loss.hpp
#pragma once

#include "qlora/cuda/arch/primitives.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Orders by value, equal values by falling id.
__device__ __forceinline__ std::uint64_t pick_key(float value, int id) {
  const std::uint32_t bits = __float_as_uint(value + 0.0F);  // -0 is 0
  const std::uint32_t ordered = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  return std::uint64_t{isnan(value) ? 0U : ordered} << 32 | (0xFFFFFFFFU - static_cast<std::uint32_t>(id));
}
__device__ __forceinline__ std::uint64_t warp_most(std::uint64_t key) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const std::uint64_t other = __shfl_xor_sync(0xffffffffU, key, distance);
    key = other > key ? other : key;
  }
  return key;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
