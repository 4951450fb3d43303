// qlora/cuda/optimizer/adamw8bit.cuh — AdamW with both moments in 8 bits.
// Math       as adamw.cuh, with m = M c(m), v = V c(v) on entry, where c is the code's value and M, V are a block's
//            absmax; afterwards M = max |m|, V = max v over the block, codes of m / M and v / V
// Shapes     p g (count) float; codes (count); absmax (count / 256, rounded up)
// Writes     p and both moments in place
// Split      a warp per block of 256 elements, 4 + 4 a lane, so that every access of a warp is contiguous
// Needs      p g and codes aligned to 16 bytes
// Numbers    the step uses the moments before they are rounded; negative m stays negative; ties as in nf4.hpp
// Cost       16 B per parameter; 16 dependent lookups in shared memory per parameter cost about as much as the bytes
// Reference  cpu/adamw8bit.hpp; bitsandbytes' block-wise optimizer states
#pragma once

#include <algorithm>

#include "qlora/cuda/nf4/codes.cuh"
#include "qlora/cuda/optimizer/adamw_step.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

struct AdamW8bitPolicy {
  static constexpr int threads = 256;
  static constexpr int blocks_per_sm = 8;  ///< more than are resident, and few enough that tables are loaded rarely
};

namespace detail {

static_assert(AdamW8bitPolicy::threads == 256, "one thread per entry of a table");
static_assert(moment_block == 8 * 32, "a warp holds a block of moments, 8 a lane");

/// Four neighbours at i, zeros past the end.
__device__ __forceinline__ void load_four(const float* from, std::int64_t i, std::int64_t count, float (&out)[4]) {
  if (i + 4 <= count) {
    const float4 four = __ldcs(reinterpret_cast<const float4*>(from + i));
    out[0] = four.x, out[1] = four.y, out[2] = four.z, out[3] = four.w;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) out[j] = i + j < count ? from[i + j] : 0.0F;
  }
}
__device__ __forceinline__ std::uint32_t load_codes(const std::uint8_t* from, std::int64_t i, std::int64_t count) {
  if (i + 4 <= count) return __ldcs(reinterpret_cast<const std::uint32_t*>(from + i));
  std::uint32_t word = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) word |= i + j < count ? static_cast<std::uint32_t>(from[i + j]) << (8 * j) : 0U;
  return word;
}
__device__ __forceinline__ void store_four(float* to, std::int64_t i, std::int64_t count, const float (&values)[4]) {
  if (i + 4 <= count) {
    *reinterpret_cast<float4*>(to + i) = float4{values[0], values[1], values[2], values[3]};
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (i + j < count) to[i + j] = values[j];
    }
  }
}
__device__ __forceinline__ void store_codes(std::uint8_t* to, std::int64_t i, std::int64_t count, std::uint32_t word) {
  if (i + 4 <= count) {
    __stcs(reinterpret_cast<std::uint32_t*>(to + i), word);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (i + j < count) to[i + j] = static_cast<std::uint8_t>(word >> (8 * j));
    }
  }
}

/// The two code tables in shared memory.
struct MomentMaps {
  float first[256];
  float second[256];
};

/// Codes of four moments; value / absmax is below 0 for negative ones, whose code stays below that of 0.
__device__ __forceinline__ std::uint32_t encode_first(const MomentMaps& maps, const float (&values)[4], float absmax) {
  std::uint32_t word = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float x = absmax > 0.0F ? __fdiv_rn(values[j], absmax) : 0.0F;
    std::uint32_t code = nearest8(maps.first, x);
    if (x < 0.0F && code >= nf4::dynamic8_zero) code = nf4::dynamic8_zero - 1U;
    word |= code << (8 * j);
  }
  return word;
}
__device__ __forceinline__ std::uint32_t encode_second(const MomentMaps& maps, const float (&values)[4], float absmax) {
  std::uint32_t word = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float x = absmax > 0.0F ? __fdiv_rn(values[j], absmax) : 0.0F;
    word |= nearest8(maps.second, x) << (8 * j);
  }
  return word;
}

static __global__ void __launch_bounds__(AdamW8bitPolicy::threads)
    adamw8bit(const std::int64_t count, const AdamWStep step, const StepScalars* __restrict__ scalars,
              const float* __restrict__ g, float* __restrict__ p, const Moments8bit m, const Moments8bit v) {
  __shared__ MomentMaps maps;
  if (!sound(*scalars)) return;
  maps.first[threadIdx.x] = dynamic8.value[threadIdx.x];
  maps.second[threadIdx.x] = dynamic8_unsigned.value[threadIdx.x];
  __syncthreads();
  const auto clip = static_cast<float>(scalars->clip);
  const float grad1 = clip * step.rest1;
  const float grad2 = clip * clip * step.rest2;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t blocks = (count + moment_block - 1) / moment_block;
  const std::int64_t stride = std::int64_t{gridDim.x} * (AdamW8bitPolicy::threads / 32);
  std::int64_t block = std::int64_t{blockIdx.x} * (AdamW8bitPolicy::threads / 32) + threadIdx.x / 32;
  for (; block < blocks; block += stride) {
    const std::int64_t at[2] = {block * moment_block + 4 * lane, block * moment_block + 128 + 4 * lane};
    float grad[2][4], param[2][4], moment[2][4], square[2][4];
    std::uint32_t codes1[2], codes2[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      load_four(g, at[half], count, grad[half]);
      load_four(p, at[half], count, param[half]);
      codes1[half] = load_codes(m.codes, at[half], count);
      codes2[half] = load_codes(v.codes, at[half], count);
    }
    const float old1 = m.absmax[block];
    const float old2 = v.absmax[block];
    float largest1 = 0.0F;
    float largest2 = 0.0F;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool inside = at[half] + j < count;  // codes past the end differ from those of 0
        moment[half][j] = inside ? maps.first[codes1[half] >> (8 * j) & 255U] * old1 : 0.0F;
        square[half][j] = inside ? maps.second[codes2[half] >> (8 * j) & 255U] * old2 : 0.0F;
        update(step, grad1, grad2, grad[half][j], param[half][j], moment[half][j], square[half][j]);
        largest1 = fmaxf(largest1, fabsf(moment[half][j]));
        largest2 = fmaxf(largest2, square[half][j]);
      }
      store_four(p, at[half], count, param[half]);
    }
    largest1 = device::warp_max(largest1);
    largest2 = device::warp_max(largest2);  // the shuffles order every lane's reads of the old scales before the writes
    if (lane == 0) {
      m.absmax[block] = largest1;
      v.absmax[block] = largest2;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      store_codes(m.codes, at[half], count, encode_first(maps, moment[half], largest1));
      store_codes(v.codes, at[half], count, encode_second(maps, square[half], largest2));
    }
  }
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void adamw8bit(Context& context, std::int64_t count, const AdamW& rule, const StepScalars* scalars,
                                   const float* g, float* p, const Moments8bit& m, const Moments8bit& v) {
  const Phase phase(context, "optimizer");
  QLORA_EXPECTS(count > 0 && rule.step >= 1, count, " parameters at step ", rule.step);
  detail::expect_on_16(g, "the gradient");
  detail::expect_on_16(p, "parameters");
  detail::expect_on_16(m.codes, "the first moment");
  detail::expect_on_16(v.codes, "the second moment");
  constexpr std::int64_t per_block = std::int64_t{moment_block} * (AdamW8bitPolicy::threads / 32);
  const std::int64_t wanted = (count + per_block - 1) / per_block;
  const auto blocks = static_cast<std::uint32_t>(
      std::min<std::int64_t>(wanted, std::int64_t{context.sm_count} * AdamW8bitPolicy::blocks_per_sm));
  detail::adamw8bit<<<blocks, AdamW8bitPolicy::threads, 0, context.stream>>>(count, detail::AdamWStep::of(rule),
                                                                             scalars, g, p, m, v);
  check_launch("adamw8bit");
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
