// qlora/cuda/rowwise/norm.cuh — RMS normalisation, forward and backward.
// Math       r = 1 / sqrt(mean(x^2) + eps);  y = x r w
//            gx = [gx +] gy w r - x r^3 / D * sum_j(w_j gy_j x_j)
// Shapes     x y gy gx (T,D) bf16, any row stride · w (D) float · inv_rms (T) float
// Writes     all with = , gx with += when accumulate is set; y may be x, gx may be gy or x
// Split      one warp per row up to D = 1024, otherwise 256 threads per row
// Needs      D a multiple of 8; 16-byte alignment
// Numbers    float arithmetic, each result rounded once; a row's sum is taken per thread over its packs in order, then
//            by a fixed tree. A non-finite sum is reported
// Cost       bound by memory: every element is read once and written once up to D = 8192 (4 packs in registers of each
//            of 256 threads); wider rows read the rest again, from cache
// Reference  cpu/norm.hpp
#pragma once

#include "qlora/cuda/rowwise/rows.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

namespace detail {

/// Threads that share a row, and packs of it that each keeps in registers between the two uses.
template <int Threads, int Packs>
struct NormPolicy {
  static constexpr int threads = Threads;
  static constexpr int packs = Packs;
  static constexpr int rows = Threads == 32 ? 8 : 1;  ///< rows per block
};
/// Calls `use` with the policy for rows of `packs` packs; wider rows use the last one.
template <class Use>
void with_norm_policy(int packs, Use&& use) {
  if (packs <= 32) return use(NormPolicy<32, 1>{});
  if (packs <= 128) return use(NormPolicy<32, 4>{});
  if (packs <= 256) return use(NormPolicy<256, 1>{});
  if (packs <= 512) return use(NormPolicy<256, 2>{});
  if (packs <= 768) return use(NormPolicy<256, 3>{});
  return use(NormPolicy<256, 4>{});
}
/// Calls use(i, at) for the packs of a row that the thread keeps in registers: held[i] is pack `at`.
template <class Policy, class Use>
__device__ __forceinline__ void for_held(int packs, Use&& use) {
  device::for_packs<Policy::packs, Policy::threads>(static_cast<int>(threadIdx.x), packs, use);
}
template <int Threads>
__device__ __forceinline__ float row_sum(float value) {
  if constexpr (Threads == 32) {
    return device::warp_sum(value);
  } else {
    return device::block_sum<Threads>(value);
  }
}

__device__ __forceinline__ float sum_of_squares(const device::Pack8& pack, float sum) {
  float value[8];
  device::to_floats(pack, value);
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += value[i] * value[i];
  return sum;
}
__device__ __forceinline__ device::Pack8 normalized(const device::Pack8& pack, float inverse, const float* w) {
  float value[8];
  float weight[8];
  device::to_floats(pack, value);
  device::load8_constant(w, weight);
#pragma unroll
  for (int i = 0; i < 8; ++i) value[i] = value[i] * inverse * weight[i];
  return device::to_pack(value);
}

template <class Policy>
static __global__ void __launch_bounds__(Policy::threads* Policy::rows)
    rmsnorm_kernel(int tokens, int dim, float eps, Rows<const bf16> x, const float* __restrict__ w, Rows<bf16> y,
                   float* __restrict__ inv_rms, Fault fault) {
  static_assert(Policy::threads == 32 || Policy::rows == 1, "a block's sum is for one row");
  const std::int64_t t = std::int64_t{blockIdx.x} * Policy::rows + threadIdx.y;
  device::let_next_start();
  if (t >= tokens) return;  // whole warps: threadIdx.y is the same in all lanes
  device::wait_for_previous();
  const bf16* from = x.data + t * x.stride;
  bf16* to = y.data + t * y.stride;
  const int packs = dim / 8;
  const int lane = static_cast<int>(threadIdx.x);
  constexpr int held_packs = Policy::threads * Policy::packs;
  device::Pack8 held[Policy::packs];
  for_held<Policy>(packs, [&](int i, int at) { held[i] = device::load8(from + at * 8); });
  float sum = 0.0F;
  for_held<Policy>(packs, [&](int i, int /*at*/) { sum = sum_of_squares(held[i], sum); });
  for (int at = lane + held_packs; at < packs; at += Policy::threads) {
    sum = sum_of_squares(device::load8(from + at * 8), sum);
  }
  sum = row_sum<Policy::threads>(sum);
  const float inverse = 1.0F / sqrtf(sum / static_cast<float>(dim) + eps);
  if (lane == 0) {
    inv_rms[t] = inverse;
    if (!isfinite(sum)) device::report(fault);  // checks the sum, since an infinite x makes the inverse 0
  }
  for_held<Policy>(packs,
                   [&](int i, int at) { device::store8(to + at * 8, normalized(held[i], inverse, w + at * 8)); });
  for (int at = lane + held_packs; at < packs; at += Policy::threads) {
    device::store8(to + at * 8, normalized(device::load8(from + at * 8), inverse, w + at * 8));
  }
}

/// sum + sum_i w_i gy_i x_i of a pack.
__device__ __forceinline__ float pull_sum(const device::Pack8& gy, const device::Pack8& x, const float* w, float sum) {
  float g[8];
  float value[8];
  float weight[8];
  device::to_floats(gy, g);
  device::to_floats(x, value);
  device::load8_constant(w, weight);
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += weight[i] * g[i] * value[i];
  return sum;
}
/// `base` is what the gradient is added to.
__device__ __forceinline__ device::Pack8 norm_gradient(const device::Pack8& gy, const device::Pack8& x, const float* w,
                                                       float inverse, float pull, const float (&base)[8]) {
  float g[8];
  float value[8];
  float weight[8];
  device::to_floats(gy, g);
  device::to_floats(x, value);
  device::load8_constant(w, weight);
#pragma unroll
  for (int i = 0; i < 8; ++i) g[i] = base[i] + (g[i] * weight[i] * inverse - value[i] * pull);
  return device::to_pack(g);
}

/// Blocks of 256 threads that must fit a multiprocessor; without a bound the compiler unpacks rows early. Two with
/// twelve packs per thread, otherwise three: at least 70 KB of loads in flight on each.
template <class Policy, bool Accumulate>
inline constexpr int backward_blocks = Policy::packs == 4 && Accumulate ? 2 : 3;

template <class Policy, bool Accumulate>
static __global__ void __launch_bounds__(Policy::threads* Policy::rows, (backward_blocks<Policy, Accumulate>))
    rmsnorm_backward_kernel(int tokens, int dim, Rows<const bf16> gy, Rows<const bf16> x,
                            const float* __restrict__ inv_rms, const float* __restrict__ w, Rows<bf16> gx,
                            Fault fault) {
  static_assert(Policy::threads == 32 || Policy::rows == 1, "a block's sum is for one row");
  const std::int64_t t = std::int64_t{blockIdx.x} * Policy::rows + threadIdx.y;
  if (t >= tokens) return;
  const bf16* g_row = gy.data + t * gy.stride;
  const bf16* x_row = x.data + t * x.stride;
  bf16* out = gx.data + t * gx.stride;
  const float inverse = inv_rms[t];
  const int packs = dim / 8;
  const int lane = static_cast<int>(threadIdx.x);
  constexpr int held_packs = Policy::threads * Policy::packs;
  device::Pack8 g_held[Policy::packs];
  device::Pack8 x_held[Policy::packs];
  device::Pack8 base_held[Accumulate ? Policy::packs : 1];
  for_held<Policy>(packs, [&](int i, int at) {
    g_held[i] = device::load8(g_row + at * 8);
    x_held[i] = device::load8(x_row + at * 8);
    if constexpr (Accumulate) base_held[i] = device::load8(out + at * 8);
  });
  float sum = 0.0F;
  for_held<Policy>(packs, [&](int i, int at) { sum = pull_sum(g_held[i], x_held[i], w + at * 8, sum); });
  for (int at = lane + held_packs; at < packs; at += Policy::threads) {
    sum = pull_sum(device::load8(g_row + at * 8), device::load8(x_row + at * 8), w + at * 8, sum);
  }
  sum = row_sum<Policy::threads>(sum);
  if (lane == 0 && !isfinite(sum)) device::report(fault);
  const float pull = sum * inverse * inverse * inverse / static_cast<float>(dim);
  float base[8] = {};
#pragma unroll
  for (int i = 0; i < Policy::packs; ++i) {
    device::forget(g_held[i]);
    device::forget(x_held[i]);
  }
  w = device::forget(w);
  for_held<Policy>(packs, [&](int i, int at) {
    if constexpr (Accumulate) device::to_floats(base_held[i], base);
    device::store8(out + at * 8, norm_gradient(g_held[i], x_held[i], w + at * 8, inverse, pull, base));
  });
  for (int at = lane + held_packs; at < packs; at += Policy::threads) {
    if constexpr (Accumulate) device::to_floats(device::load8(out + at * 8), base);
    device::store8(out + at * 8, norm_gradient(device::load8(g_row + at * 8), device::load8(x_row + at * 8), w + at * 8,
                                               inverse, pull, base));
  }
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void rmsnorm(Context& context, int tokens, int dim, float eps, Rows<const bf16> x, const float* w,
                                 Rows<bf16> y, float* inv_rms) {
  const Phase phase(context, "elementwise");
  if (tokens <= 0) return;
  expect_packs("rmsnorm", "x", x, dim);
  expect_packs("rmsnorm", "y", y, dim);
  expect_packs("rmsnorm", "w", Rows<const float>{w, dim}, dim);
  detail::with_norm_policy(dim / 8, [&](auto policy) {
    using Policy = decltype(policy);
    const dim3 block(Policy::threads, Policy::rows);
    const auto blocks = static_cast<unsigned>((tokens + Policy::rows - 1) / Policy::rows);
    launch(context, tokens <= most_several_tokens, "rmsnorm", detail::rmsnorm_kernel<Policy>, dim3(blocks), block, 0,
           tokens, dim, eps, x, w, y, inv_rms, context.fault());
  });
}

QLORA_CUDA_LAUNCHER void rmsnorm_backward(Context& context, int tokens, int dim, Rows<const bf16> gy,
                                          Rows<const bf16> x, const float* inv_rms, const float* w, bool accumulate,
                                          Rows<bf16> gx) {
  const Phase phase(context, "elementwise");
  if (tokens <= 0) return;
  expect_packs("rmsnorm_backward", "gy", gy, dim);
  expect_packs("rmsnorm_backward", "x", x, dim);
  expect_packs("rmsnorm_backward", "gx", gx, dim);
  expect_packs("rmsnorm_backward", "w", Rows<const float>{w, dim}, dim);
  detail::with_norm_policy(dim / 8, [&](auto policy) {
    using Policy = decltype(policy);
    const dim3 block(Policy::threads, Policy::rows);
    const auto blocks = static_cast<unsigned>((tokens + Policy::rows - 1) / Policy::rows);
    if (accumulate) {
      detail::rmsnorm_backward_kernel<Policy, true>
          <<<blocks, block, 0, context.stream>>>(tokens, dim, gy, x, inv_rms, w, gx, context.fault());
    } else {
      detail::rmsnorm_backward_kernel<Policy, false>
          <<<blocks, block, 0, context.stream>>>(tokens, dim, gy, x, inv_rms, w, gx, context.fault());
    }
  });
  check_launch("rmsnorm_backward");
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
