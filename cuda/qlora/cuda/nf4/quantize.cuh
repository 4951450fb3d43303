// qlora/cuda/nf4/quantize.cuh — quantizes weights to NF4, and their scales to 8 bits.
// Math       as cpu/nf4.hpp: absmax per 64, code = NF4(w (1 / absmax)); scales: offset = mean, 8 bits per scale with
//            one float per 256
// Shapes     w (elements) f32, f16 or bf16; codes, absmax, absmax8, nested as in Nf4Layout
// Writes     all outputs with =
// Split      8 elements per thread, 8 threads per block of 64; the mean in one block of threads (in the order of
//            cpu/nf4.hpp's mean_as_torch); then 256 threads per nested block
// Needs      block 64, nested block 256; w and absmax on 16 bytes; 64 bytes of workspace; no -ftz
// Numbers    bit-equal to cpu/nf4.hpp
// Cost       2.5 to 4.5 B per weight; runs once per matrix, after an upload that takes longer
// Reference  cpu/nf4.hpp
#pragma once

#include <cfloat>

#include "qlora/cuda/nf4/codes.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

struct QuantizePolicy {
  static constexpr int threads = 256;
  static constexpr int mean_threads = 512;  ///< the maximum that torch's mean uses
};

namespace detail {

static_assert(QuantizePolicy::threads == 256, "one thread per scale of a nested block");

/// Results that the kernels report to the host.
struct QuantizeStatus {
  std::uint32_t bad = 0;  ///< nonzero: a value was not finite
  float offset = 0.0F;
};

__device__ __forceinline__ float read_float(float value) { return value; }
__device__ __forceinline__ float read_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float read_float(__nv_bfloat16 value) { return __bfloat162float(value); }

/// Eight neighbouring values in 16-byte loads.
template <class T>
__device__ __forceinline__ void load_unit(const T* from, float (&values)[8]) {
  constexpr int per_load = 16 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int load = 0; load < 8 / per_load; ++load) {
    const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(from) + load);
    const T* part = reinterpret_cast<const T*>(&raw);
#pragma unroll
    for (int i = 0; i < per_load; ++i) values[load * per_load + i] = read_float(part[i]);
  }
}

template <class T>
static __global__ void __launch_bounds__(QuantizePolicy::threads)
    quantize_blocks(const T* __restrict__ w, const std::int64_t elements, std::uint8_t* __restrict__ codes,
                    float* __restrict__ absmax, QuantizeStatus* status) {
  const std::int64_t unit = std::int64_t{blockIdx.x} * QuantizePolicy::threads + threadIdx.x;
  const std::int64_t left = elements - unit * 8;
  float values[8];
  if (left >= 8) {
    load_unit(w + unit * 8, values);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = i < left ? read_float(w[unit * 8 + i]) : 0.0F;
  }
  float largest = 0.0F;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    largest = fmaxf(largest, fabsf(values[i]));
    finite = finite && fabsf(values[i]) <= FLT_MAX;
  }
  if (!finite) status->bad = 1;  // all writers write the same value
#pragma unroll
  for (int distance = 4; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFU, largest, distance));
  }
  if (threadIdx.x % 8 == 0 && left > 0) absmax[unit / 8] = largest;
  const float inverse = __fdiv_rn(1.0F, largest);
  std::uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t code = i < left ? encode4(__fmul_rn(values[i], inverse)) : 0U;
    word |= code << (8 * (i / 2) + (i % 2 == 0 ? 4 : 0));
  }
  if (left >= 8) {
    reinterpret_cast<std::uint32_t*>(codes)[unit] = word;
  } else {
    for (int k = 0; 2 * k < left; ++k) codes[unit * 4 + k] = static_cast<std::uint8_t>(word >> (8 * k));
  }
}

/// mean_as_torch; `width` is its number of threads, `inverse` 1 / n.
static __global__ void __launch_bounds__(QuantizePolicy::mean_threads)
    mean_of_scales(const float* __restrict__ values, const std::int64_t n, int width, const float inverse,
                   QuantizeStatus* status) {
  __shared__ float sum[QuantizePolicy::mean_threads];
  const int thread = static_cast<int>(threadIdx.x);
  float4 part{0.0F, 0.0F, 0.0F, 0.0F};
  if (thread < width && n > 128) {  // each thread reads four neighbouring values
    const auto* quads = reinterpret_cast<const float4*>(values);
#pragma unroll 8
    for (std::int64_t q = thread; q < n / 4; q += width) {
      const float4 four = quads[q];
      part.x += four.x;
      part.y += four.y;
      part.z += four.z;
      part.w += four.w;
    }
    if (thread < n % 4) part.x += values[n - n % 4 + thread];
  } else if (thread < width) {  // width <= n < 2 width: at most two each
    part.x = values[thread];
    if (thread + width < n) part.y = values[thread + width];
  }
  sum[thread] = part.x + part.y + part.z + part.w;
  __syncthreads();
  for (; width > 32; width /= 2) {
    if (thread < width / 2) sum[thread] += sum[thread + width / 2];
    __syncthreads();
  }
  for (int distance = 1; distance < width; distance *= 2) {
    if (thread % (2 * distance) == 0 && thread + distance < width) sum[thread] += sum[thread + distance];
    __syncthreads();
  }
  if (thread == 0) status->offset = __fmul_rn(sum[0], inverse);
}

static __global__ void __launch_bounds__(QuantizePolicy::threads)
    quantize_scales(const float* __restrict__ absmax, const std::int64_t blocks, const QuantizeStatus* status,
                    std::uint8_t* __restrict__ absmax8, float* __restrict__ nested) {
  const std::int64_t block = std::int64_t{blockIdx.x} * QuantizePolicy::threads + threadIdx.x;
  const float centred = block < blocks ? __fsub_rn(absmax[block], status->offset) : 0.0F;
  const float largest = device::block_max<QuantizePolicy::threads>(fabsf(centred));
  if (threadIdx.x == 0) nested[blockIdx.x] = largest;
  const float inverse = largest > 0.0F ? __fdiv_rn(1.0F, largest) : 0.0F;
  if (block < blocks) {
    absmax8[block] = static_cast<std::uint8_t>(nearest8(dynamic8.value, __fmul_rn(centred, inverse)));
  }
}

template <class T>
void launch_quantize(Context& context, const void* w, std::int64_t elements, const Nf4Target& to,
                     QuantizeStatus* status) {
  const auto grid =
      static_cast<std::uint32_t>((elements + 8 * QuantizePolicy::threads - 1) / (8 * QuantizePolicy::threads));
  quantize_blocks<T><<<grid, QuantizePolicy::threads, 0, context.stream>>>(static_cast<const T*>(w), elements, to.codes,
                                                                           to.absmax, status);
  check_launch("quantize_blocks");
}

inline void launch_double_quantize(Context& context, const Nf4Layout& layout, const Nf4Target& to,
                                   QuantizeStatus* status) {
  const std::int64_t n = layout.blocks;
  int width = 1;
  while (width < QuantizePolicy::mean_threads && 2 * width <= (n > 128 ? n / 4 : n)) width *= 2;
  mean_of_scales<<<1, QuantizePolicy::mean_threads, 0, context.stream>>>(to.absmax, n, width,
                                                                         1.0F / static_cast<float>(n), status);
  check_launch("mean_of_scales");
  quantize_scales<<<static_cast<std::uint32_t>(layout.nested), QuantizePolicy::threads, 0, context.stream>>>(
      to.absmax, n, status, to.absmax8, to.nested);
  check_launch("quantize_scales");
}

}  // namespace detail

QLORA_CUDA_LAUNCHER bool quantize(Context& context, const void* w, DType dtype, std::int64_t elements,
                                  const Quant& quant, const Nf4Target& to) {
  const auto aligned = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
  QLORA_EXPECTS(elements > 0, "nothing to quantize");
  QLORA_EXPECTS(quant.block == 64 && quant.nested_block == 256, "NF4 blocks of ", quant.block, " and ",
                quant.nested_block, "; the CUDA kernels know 64 and 256");
  QLORA_EXPECTS(aligned(w) && aligned(to.codes) && aligned(to.absmax), "weights, codes and scales start on 16 bytes");
  QLORA_EXPECTS(to.absmax8 == nullptr || (quant.double_quant && to.nested != nullptr && to.offset != nullptr),
                "8-bit scales come with their nested scales and offset");
  QLORA_EXPECTS(context.workspace_bytes >= 64, "the workspace has ", context.workspace_bytes, " bytes");
  auto* status = reinterpret_cast<detail::QuantizeStatus*>(context.workspace);
  check(cudaMemsetAsync(status, 0, sizeof(detail::QuantizeStatus), context.stream), "quantize");
  switch (dtype) {
    case DType::f32:
      detail::launch_quantize<float>(context, w, elements, to, status);
      break;
    case DType::f16:
      detail::launch_quantize<__half>(context, w, elements, to, status);
      break;
    case DType::bf16:
      detail::launch_quantize<__nv_bfloat16>(context, w, elements, to, status);
      break;
    default:
      QLORA_EXPECTS(false, "cannot quantize ", name_of(dtype));
  }
  if (to.absmax8 != nullptr) detail::launch_double_quantize(context, Nf4Layout::of(elements, quant), to, status);
  detail::QuantizeStatus told;
  check(cudaMemcpyAsync(&told, status, sizeof(told), cudaMemcpyDeviceToHost, context.stream), "quantize");
  check(cudaStreamSynchronize(context.stream), "quantize");
  if (to.absmax8 != nullptr) *to.offset = told.offset;
  return told.bad == 0;
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
