// qlora/cuda/arch/primitives.cuh — building blocks of all kernels: 16-byte accesses, reductions in a fixed order,
// Philox, fault reports.
#pragma once

#include "qlora/cuda/context/context.cuh"
#include "qlora/rng.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {

/// log2(e): e^x = 2^(x log2(e)), and the hardware computes 2^x.
inline constexpr float log2_e = 1.4426950408889634F;

namespace device {

/// Eight bf16 values, loaded and stored as one 16-byte access.
struct alignas(16) Pack8 {
  __nv_bfloat162 pair[4];
};
__device__ __forceinline__ void to_floats(const Pack8& pack, float (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 both = __bfloat1622float2(pack.pair[i]);
    out[2 * i] = both.x;
    out[2 * i + 1] = both.y;
  }
}
__device__ __forceinline__ Pack8 to_pack(const float (&values)[8]) {
  Pack8 pack;
#pragma unroll
  for (int i = 0; i < 4; ++i) pack.pair[i] = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
  return pack;
}
/// Converts the library's bf16 pointer to the CUDA type; the bits are the same.
__device__ __forceinline__ const __nv_bfloat16* native(const bf16* p) {
  return reinterpret_cast<const __nv_bfloat16*>(p);
}
__device__ __forceinline__ __nv_bfloat16* native(bf16* p) { return reinterpret_cast<__nv_bfloat16*>(p); }
__device__ __forceinline__ Pack8 load8(const bf16* p) { return *reinterpret_cast<const Pack8*>(p); }
__device__ __forceinline__ void store8(bf16* p, const Pack8& pack) { *reinterpret_cast<Pack8*>(p) = pack; }

/// Sum over the 32 lanes, returned in every lane, always in the same order.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffU, value, distance);
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffU, value, distance));
  }
  return value;
}
/// Sum over a block of Threads threads, returned in every thread. May be called again without a barrier.
template <int Threads, class T>
__device__ __forceinline__ T block_sum(T value) {
  static_assert(Threads % 32 == 0 && Threads <= 1024, "whole warps");
  __shared__ T part[Threads / 32];
  value = warp_sum(value);
  __syncthreads();  // reads of an earlier call are complete
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = part[0];
#pragma unroll
  for (int i = 1; i < Threads / 32; ++i) sum += part[i];
  return sum;
}
template <int Threads>
__device__ __forceinline__ float block_max(float value) {
  __shared__ float part[Threads / 32];
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = value;
  __syncthreads();
  float most = part[0];
#pragma unroll
  for (int i = 1; i < Threads / 32; ++i) most = fmaxf(most, part[i]);
  return most;
}

/// One round of Philox4x32 (philox in rng.hpp).
__device__ __forceinline__ uint4 philox_round(const uint4& c, std::uint32_t key0, std::uint32_t key1) {
  const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * c.x;
  const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * c.z;
  return {static_cast<std::uint32_t>(product1 >> 32) ^ c.y ^ key0, static_cast<std::uint32_t>(product1),
          static_cast<std::uint32_t>(product0 >> 32) ^ c.w ^ key1, static_cast<std::uint32_t>(product0)};
}
/// The four words that dropout_words in rng.hpp gives.
__device__ __forceinline__ uint4 mask_words(const DropoutSite& site, std::uint32_t token, std::uint32_t octet) {
  uint4 c{octet, site.first_token + token, site.step,
          (static_cast<std::uint32_t>(RandomUse::dropout) << 24) | (((site.layer << 2) | site.group) & 0x00FFFFFFU)};
  auto key0 = static_cast<std::uint32_t>(site.seed);
  auto key1 = static_cast<std::uint32_t>(site.seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    c = philox_round(c, key0, key1);
    key0 += 0x9E3779B9U;
    key1 += 0xBB67AE85U;
  }
  return c;
}
/// Multipliers of eight neighbouring columns: 0 or keep_scale.
__device__ __forceinline__ void dropout_factors(const DropoutSite& site, std::uint32_t token, std::uint32_t octet,
                                                float (&factor)[8]) {
  const uint4 words = mask_words(site, token, octet);
  const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    factor[2 * i] = (word[i] & 0xFFFFU) >= site.threshold ? site.keep_scale : 0.0F;
    factor[2 * i + 1] = (word[i] >> 16) >= site.threshold ? site.keep_scale : 0.0F;
  }
}

/// Programmatic dependent launch: the next kernel on the stream may start now, if it was launched so; it must not touch
/// what this one writes before its own wait_for_previous.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Waits until the previous kernel on the stream is complete and its writes are visible.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Called by one thread that found a non-finite value. Kernels run in order, so the first reported place is kept.
__device__ __forceinline__ void report(const Fault& fault) {
  if (fault.place != 0) atomicCAS(fault.word, 0U, fault.place);
}

}  // namespace device
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
