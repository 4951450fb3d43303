// qlora/cuda/optimizer/adamw.cuh — sums of gradients, their norm, and AdamW with the clip factor applied.
// Math       m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  p -= lr d p
//            p -= lr / (1-b1^t) m / (sqrt(v / (1-b2^t)) + eps), g already times the clip factor of the scalars
// Shapes     p g m v (count) float, all parameters in one array
// Writes     p and both moments in place; grad_norm, clip and fault of the scalars with = ; sums with +=
// Split      norm: a block of threads per norm_tile, then one block over the partial sums; adamw: 4 elements per
//            thread, all arrays as 16-byte accesses
// Needs      p g m v aligned to 16 bytes
// Numbers    scalars of the step are computed in double on the host; sums of squares in double, in a fixed order
// Cost       28 B per parameter, bandwidth-bound; the norm reads 4 B, a sum takes 12 B
// Reference  cpu/adamw.hpp
#pragma once

#include "qlora/cuda/optimizer/adamw_step.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

struct AdamWPolicy {
  static constexpr int threads = 256;
  static constexpr int norm_threads = 512;
};

namespace detail {

static_assert(norm_tile % (4 * AdamWPolicy::norm_threads) == 0, "a tile is whole rounds of 16-byte loads");

static __global__ void __launch_bounds__(AdamWPolicy::norm_threads)
    norm_tiles(const std::int64_t count, const float* __restrict__ g, double* __restrict__ partial) {
  const std::int64_t first = std::int64_t{blockIdx.x} * norm_tile;
  constexpr int rounds = static_cast<int>(norm_tile) / (4 * AdamWPolicy::norm_threads);
  float4 values[rounds];
#pragma unroll
  for (int round = 0; round < rounds; ++round) {
    const std::int64_t i = first + 4 * (round * AdamWPolicy::norm_threads + static_cast<int>(threadIdx.x));
    if (i + 4 <= count) {
      values[round] = *reinterpret_cast<const float4*>(g + i);
    } else {
      values[round] =
          float4{i < count ? g[i] : 0.0F, i + 1 < count ? g[i + 1] : 0.0F, i + 2 < count ? g[i + 2] : 0.0F, 0.0F};
    }
  }
  double sum = 0.0;
#pragma unroll
  for (int round = 0; round < rounds; ++round) {
    const float4 four = values[round];
    sum += static_cast<double>(four.x) * static_cast<double>(four.x);
    sum += static_cast<double>(four.y) * static_cast<double>(four.y);
    sum += static_cast<double>(four.z) * static_cast<double>(four.z);
    sum += static_cast<double>(four.w) * static_cast<double>(four.w);
  }
  sum = device::block_sum<AdamWPolicy::norm_threads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(AdamWPolicy::norm_threads)
    norm_total(const std::int64_t tiles, const double* __restrict__ partial, const double max_norm,
               StepScalars* scalars) {
  double sum = 0.0;
#pragma unroll 4
  for (std::int64_t i = threadIdx.x; i < tiles; i += AdamWPolicy::norm_threads) sum += partial[i];
  sum = device::block_sum<AdamWPolicy::norm_threads>(sum);
  if (threadIdx.x != 0) return;
  const double norm = sqrt(sum);
  scalars->grad_norm = norm;
  scalars->clip = max_norm > 0.0 ? fmin(1.0, max_norm / (norm + 1e-6)) : 1.0;  // as torch's clip_grad_norm_
}

static __global__ void __launch_bounds__(AdamWPolicy::threads)
    add(const std::int64_t count, const float* __restrict__ from, float* __restrict__ to) {
  const std::int64_t i = 4 * (std::int64_t{blockIdx.x} * AdamWPolicy::threads + threadIdx.x);
  if (i + 4 > count) {
    for (std::int64_t j = i; j < count; ++j) to[j] += from[j];
    return;
  }
  const float4 more = __ldcs(reinterpret_cast<const float4*>(from + i));
  float4 sum = *reinterpret_cast<const float4*>(to + i);
  sum.x += more.x;
  sum.y += more.y;
  sum.z += more.z;
  sum.w += more.w;
  *reinterpret_cast<float4*>(to + i) = sum;
}

static __global__ void take_fault(std::uint32_t* word, StepScalars* scalars) {
  scalars->fault = *word;
  *word = 0;
}

static __global__ void __launch_bounds__(AdamWPolicy::threads)
    adamw(const std::int64_t count, const AdamWStep step, const StepScalars* __restrict__ scalars,
          const float* __restrict__ g, float* __restrict__ p, float* __restrict__ m, float* __restrict__ v) {
  const std::int64_t i = 4 * (std::int64_t{blockIdx.x} * AdamWPolicy::threads + threadIdx.x);
  if (i >= count || !sound(*scalars)) return;
  const auto clip = static_cast<float>(scalars->clip);
  const float grad1 = clip * step.rest1;
  const float grad2 = clip * clip * step.rest2;
  if (i + 4 > count) {
    for (std::int64_t j = i; j < count; ++j) update(step, grad1, grad2, g[j], p[j], m[j], v[j]);
    return;
  }
  const float4 grad = __ldcs(reinterpret_cast<const float4*>(g + i));
  float4 param = __ldcs(reinterpret_cast<const float4*>(p + i));
  float4 moment = __ldcs(reinterpret_cast<const float4*>(m + i));
  float4 square = __ldcs(reinterpret_cast<const float4*>(v + i));
  update(step, grad1, grad2, grad.x, param.x, moment.x, square.x);
  update(step, grad1, grad2, grad.y, param.y, moment.y, square.y);
  update(step, grad1, grad2, grad.z, param.z, moment.z, square.z);
  update(step, grad1, grad2, grad.w, param.w, moment.w, square.w);
  *reinterpret_cast<float4*>(p + i) = param;
  __stcs(reinterpret_cast<float4*>(m + i), moment);  // not read before the next step
  __stcs(reinterpret_cast<float4*>(v + i), square);
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void norm_tiles(Context& context, std::int64_t count, const float* g, double* partial) {
  const Phase phase(context, "optimizer");
  QLORA_EXPECTS(count > 0, "no gradients");
  detail::expect_on_16(g, "the gradient");
  detail::
      norm_tiles<<<static_cast<std::uint32_t>(norm_partials(count)), AdamWPolicy::norm_threads, 0, context.stream>>>(
          count, g, partial);
  check_launch("norm_tiles");
}

QLORA_CUDA_LAUNCHER void norm_total(Context& context, std::int64_t count, const double* partial, float max_norm,
                                    StepScalars* scalars) {
  const Phase phase(context, "optimizer");
  QLORA_EXPECTS(count > 0, "no gradients");
  detail::norm_total<<<1, AdamWPolicy::norm_threads, 0, context.stream>>>(norm_partials(count), partial,
                                                                          static_cast<double>(max_norm), scalars);
  check_launch("norm_total");
}

QLORA_CUDA_LAUNCHER void add(Context& context, std::int64_t count, const float* from, float* to) {
  const Phase phase(context, "optimizer");
  QLORA_EXPECTS(count > 0, "nothing to add");
  detail::expect_on_16(from, "what is added");
  detail::expect_on_16(to, "the sum");
  constexpr int per_block = 4 * AdamWPolicy::threads;
  const auto blocks = static_cast<std::uint32_t>((count + per_block - 1) / per_block);
  detail::add<<<blocks, AdamWPolicy::threads, 0, context.stream>>>(count, from, to);
  check_launch("add");
}

QLORA_CUDA_LAUNCHER void adamw(Context& context, std::int64_t count, const AdamW& rule, const StepScalars* scalars,
                               const float* g, float* p, float* m, float* v) {
  const Phase phase(context, "optimizer");
  QLORA_EXPECTS(count > 0 && rule.step >= 1, count, " parameters at step ", rule.step);
  detail::expect_on_16(g, "the gradient");
  detail::expect_on_16(p, "parameters");
  detail::expect_on_16(m, "the first moment");
  detail::expect_on_16(v, "the second moment");
  constexpr int per_block = 4 * AdamWPolicy::threads;
  const auto blocks = static_cast<std::uint32_t>((count + per_block - 1) / per_block);
  detail::adamw<<<blocks, AdamWPolicy::threads, 0, context.stream>>>(count, detail::AdamWStep::of(rule), scalars, g, p,
                                                                     m, v);
  check_launch("adamw");
}

QLORA_CUDA_LAUNCHER void take_fault(Context& context, StepScalars* scalars) {
  detail::take_fault<<<1, 1, 0, context.stream>>>(context.fault_word, scalars);
  check_launch("take_fault");
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
