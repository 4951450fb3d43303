// qlora/cuda/nf4/matrix.cuh — an NF4 matrix as kernels read it: its codes, and the scales of its blocks.
// Math       absmax_b = dynamic8[c8_b] nested_{b/256} + offset
// Shapes     codes (N K / 2) bytes, absmax or absmax8 (N K / 64), nested (N K / 64 / 256)
// Needs      block 64, nested block 256; no -ftz
// Numbers    bit-equal to cpu/nf4.hpp: product and sum are rounded separately
// Reference  cpu/nf4.hpp
#pragma once

#include "qlora/cuda/nf4/codes.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// `Unit` is what a lane loads at a time, 4 bytes or more: its codes lie in one block of 64.
template <class Unit>
struct Nf4Matrix {
  const Unit* codes = nullptr;
  const float* absmax = nullptr;  ///< or absmax8, nested and offset
  const std::uint8_t* absmax8 = nullptr;
  const float* nested = nullptr;
  float offset = 0.0F;
  DType state = DType::f32;  ///< the type that the weights were quantized from, to which values are rounded first
  std::uint32_t units = 0;   ///< the last may be incomplete
};

template <class Unit>
__device__ __forceinline__ float block_scale(const Nf4Matrix<Unit>& w, std::uint32_t block) {
  if (w.absmax8 == nullptr) return w.absmax[block];
  return __fadd_rn(__fmul_rn(dynamic8.value[w.absmax8[block]], w.nested[block / 256]), w.offset);
}

__device__ __forceinline__ float rounded_half(float value) { return __half2float(__float2half_rn(value)); }

/// A code's value times its block's scale, as the matrix's type holds it.
__device__ __forceinline__ float in_state(float value, DType state) {
  if (state == DType::f16) return rounded_half(value);
  if (state == DType::bf16) return __bfloat162float(__float2bfloat16_rn(value));
  return value;
}

/// PRMT with a selector whose nibbles are below 8 (__byte_perm would mask them first).
__device__ __forceinline__ std::uint32_t permute_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  std::uint32_t out;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(selector));
  return out;
}

[[nodiscard]] inline bool starts_on(const void* data, std::uintptr_t bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

/// Throws Error where the kernels do not know the form of `w`.
template <class Unit>
[[nodiscard]] Nf4Matrix<Unit> nf4_matrix(const Nf4View& w, std::int64_t elements, const Quant& quant) {
  constexpr std::int64_t in_unit = 2 * sizeof(Unit);
  QLORA_EXPECTS(quant.block == 64, "NF4 blocks hold ", quant.block, " elements; the CUDA kernels know 64");
  QLORA_EXPECTS(w.absmax8 == nullptr || (quant.nested_block == 256 && w.nested != nullptr), "nested blocks hold ",
                quant.nested_block, " scales; the CUDA kernels know 256");
  QLORA_EXPECTS(elements > 0 && elements <= (std::int64_t{1} << 31), "a matrix of ", elements, " elements");
  QLORA_EXPECTS(starts_on(w.codes, sizeof(Unit)), "NF4 codes must start on ", sizeof(Unit), " bytes");
  return {.codes = reinterpret_cast<const Unit*>(w.codes),
          .absmax = w.absmax,
          .absmax8 = w.absmax8,
          .nested = w.nested,
          .offset = w.offset,
          .state = w.state,
          .units = static_cast<std::uint32_t>((elements + in_unit - 1) / in_unit)};
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
