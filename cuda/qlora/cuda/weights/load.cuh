// qlora/cuda/weights/load.cuh — loads weights from host memory (often a mapped file) to the network's device memory.
// Path       host -> pinned lanes -> device memory for the tensor in its stored type -> bf16, float or NF4, one tensor
//            at a time
// Shapes     a flat tensor of f32, f16 or bf16 elements; out bf16 or float (elements), or NF4 as in nf4.hpp
// Writes     out with =
// Memory     device memory for the largest tensor so far, and its scales while it is quantized; finish_loading frees
//            both
// Numbers    float16 and bf16 to float are exact; to bf16 rounded to nearest even. Every value is checked to be finite
// Cost       bound by the bus and the bandwidth of host memory
// Reference  Cpu::place and Cpu::quantize in cpu.hpp
#pragma once

#include "qlora/cuda/arch/primitives.cuh"
#include "qlora/nf4.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

inline constexpr int load_threads = 256;

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float as_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void put(float* to, float value) { *to = value; }
__device__ __forceinline__ void put(bf16* to, float value) { *device::native(to) = __float2bfloat16_rn(value); }

template <class From, class To>
static __global__ void __launch_bounds__(load_threads)
    convert_kernel(std::int64_t elements, const From* __restrict__ from, To* __restrict__ to, std::uint32_t* bad) {
  const std::int64_t step = std::int64_t{gridDim.x} * load_threads;
  bool finite = true;
  for (std::int64_t i = std::int64_t{blockIdx.x} * load_threads + threadIdx.x; i < elements; i += step) {
    const float value = as_float(from[i]);
    finite = finite && isfinite(value);
    put(to + i, value);
  }
  if (!finite) *bad = 1;  // all writers write the same value
}

/// Device memory for a tensor in its stored type.
inline std::byte* load_room(Context& context, std::int64_t bytes) {
  if (context.load_bytes < bytes) {
    if (context.load_memory != nullptr) release(context, context.load_memory, context.load_bytes);
    context.load_memory = nullptr;
    context.load_bytes = 0;
    context.load_memory = allocate(context, bytes);
    context.load_bytes = bytes;
  }
  return context.load_memory;
}

template <class To>
bool load_as(Context& context, const std::byte* from, DType dtype, std::int64_t elements, To* to) {
  const std::int64_t bytes = elements * static_cast<std::int64_t>(size_of(dtype));
  std::byte* stored = load_room(context, bytes);
  upload(context, from, bytes, stored);
  auto* bad = reinterpret_cast<std::uint32_t*>(context.workspace);
  check(cudaMemsetAsync(bad, 0, sizeof(std::uint32_t), context.stream), "load");
  const auto convert = [&]<class From>(const From* source) {
    const std::int64_t wanted = (elements + load_threads - 1) / load_threads;
    const auto blocks = static_cast<unsigned>(wanted < 4096 ? wanted : 4096);
    convert_kernel<<<blocks, load_threads, 0, context.stream>>>(elements, source, to, bad);
    check_launch("convert");
  };
  switch (dtype) {
    case DType::f32:
      convert(reinterpret_cast<const float*>(stored));
      break;
    case DType::f16:
      convert(reinterpret_cast<const __half*>(stored));
      break;
    case DType::bf16:
      convert(reinterpret_cast<const __nv_bfloat16*>(stored));
      break;
    default:
      QLORA_EXPECTS(false, "weights are f32, f16 or bf16 on the GPU, this tensor holds ", name_of(dtype));
  }
  std::uint32_t told = 0;
  download(context, bad, sizeof told, &told);
  return told == 0;
}

}  // namespace detail

QLORA_CUDA_LAUNCHER bool load(Context& context, const std::byte* from, DType dtype, std::int64_t elements, bf16* to) {
  return detail::load_as(context, from, dtype, elements, to);
}
QLORA_CUDA_LAUNCHER bool load(Context& context, const std::byte* from, DType dtype, std::int64_t elements, float* to) {
  return detail::load_as(context, from, dtype, elements, to);
}

QLORA_CUDA_LAUNCHER bool load_nf4(Context& context, const std::byte* from, DType dtype, std::int64_t elements,
                                  const Quant& quant, const Nf4Target& to) {
  const std::int64_t bytes = arena_bytes(elements * static_cast<std::int64_t>(size_of(dtype)));
  const bool nested = to.absmax8 != nullptr;
  const std::int64_t scales = nested ? 4 * Nf4Layout::of(elements, quant).blocks : 0;
  std::byte* stored = detail::load_room(context, bytes + scales);
  upload(context, from, elements * static_cast<std::int64_t>(size_of(dtype)), stored);
  Nf4Target target = to;
  if (nested) target.absmax = reinterpret_cast<float*>(stored + bytes);
  return quantize(context, stored, dtype, elements, quant, target);
}

QLORA_CUDA_LAUNCHER void finish_loading(Context& context) {
  if (context.load_memory != nullptr) release(context, context.load_memory, context.load_bytes);
  context.load_memory = nullptr;
  context.load_bytes = 0;
  synchronize(context);
  context.close_lanes();
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
