// qlora/cuda/arch/hopper.cuh — Hopper instructions: barriers in shared memory, the tensor memory accelerator (TMA) and
// wgmma matrix products.
// Shapes     a panel is R rows of 64 bf16, 128 bytes apart; the 16-byte chunk c of row r is stored at chunk c ^ (r % 8)
//            of its row: the 128-byte swizzle of TMA and wgmma. Panels are aligned to 1024 bytes.
//            Accumulators D (64,N) of m64nNk16: with w = warp of the warpgroup, g = lane / 4, t = lane % 4,
//            d[n][0..1] is row 16 w + g, columns 8 n + 2 t ...; d[n][2..3] is eight rows below.
//            Operand A (64,16) in registers: {row g, columns 2t 2t+1} {row g+8, same} {row g, columns 2t+8 2t+9}
//            {row g+8, same}, so two neighbouring column groups of d, packed to bf16, form one A
// Needs      sm_90a
// Numbers    bf16 operands, fp32 accumulators
// Reference  PTX ISA: asynchronous warpgroup level matrix instructions, their shared memory layouts and descriptors
#pragma once

#include <cuda.h>

#include <type_traits>

#include "qlora/cuda/arch/primitives.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace device {

// --- barriers --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to TMA. The block must synchronise afterwards.
__device__ __forceinline__ void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives and adds `bytes` to the bytes that the phase waits for.
__device__ __forceinline__ void barrier_expect(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/// Waits until the phase with this parity is complete. With parity 1, the first wait returns at once.
__device__ __forceinline__ void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t over = 0;
  do {
    asm volatile(
        "{ .reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2; selp.u32 %0, 1, 0, over; }"
        : "=r"(over)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (over == 0);
}

/// Copies a box of the tensor of `map`, starting at column `x` and row `y`, to shared memory; elements outside the
/// tensor are zeros.
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap* map, int x, int y,
                                         std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

/// Sets the number of registers per thread of the executing warpgroup.
template <int Count>
__device__ __forceinline__ void registers_give() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void registers_take() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

// --- products --------------------------------------------------------------------------------------------------------

/// Orders earlier register writes before the following products.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until all but the latest `Pending` groups are complete. Pass their accumulators through `settled` before
/// reading them.
template <int Pending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
/// A compiler barrier for these registers: no access to them moves across it.
template <int Columns>
__device__ __forceinline__ void settled(float (&d)[Columns][4]) {
#pragma unroll
  for (int n = 0; n < Columns; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[n][e])::"memory");
  }
}
template <int Steps>
__device__ __forceinline__ void settled(std::uint32_t (&a)[Steps][4]) {
#pragma unroll
  for (int k = 0; k < Steps; ++k) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+r"(a[k][e])::"memory");
  }
}
/// Copies of values that products in flight still read: such registers must not change until the products are complete.
template <int Steps>
__device__ __forceinline__ void copy_registers(const std::uint32_t (&from)[Steps][4], std::uint32_t (&to)[Steps][4]) {
#pragma unroll
  for (int k = 0; k < Steps; ++k) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("mov.b32 %0, %1;" : "=r"(to[k][e]) : "r"(from[k][e]));
  }
}

/// Descriptor of an operand in panels: start address, leading and stride offsets, 128-byte swizzle.
__device__ __forceinline__ std::uint64_t operand(std::uint32_t address, std::uint32_t leading, std::uint32_t stride) {
  return std::uint64_t{(address & 0x3FFFFU) >> 4} | std::uint64_t{leading >> 4} << 16 |
         std::uint64_t{stride >> 4} << 32 | std::uint64_t{1} << 62;
}
/// Rows of a panel from `address` on, for products that sum along the rows. Eight rows are 1024 bytes; the leading
/// offset is unused.
__device__ __forceinline__ std::uint64_t operand_along(std::uint32_t address) { return operand(address, 16, 1024); }
/// Rows of neighbouring panels, for products that sum over the rows. The next 64 columns are one panel further.
__device__ __forceinline__ std::uint64_t operand_down(std::uint32_t address, std::uint32_t panel_bytes) {
  return operand(address, panel_bytes, 1024);
}
/// The descriptor, advanced by `bytes`.
__device__ __forceinline__ std::uint64_t operand_at(std::uint64_t from, int bytes) {
  return from + static_cast<std::uint64_t>(bytes >> 4);
}

// The instruction: register lists of 32 accumulators, as operands and as placeholders; `add` names the operand that
// tells whether D is read; `down` is what selects operands that are summed over their rows.
#define QLORA_FOUR_FLOATS(d, n) "+f"((d)[n][0]), "+f"((d)[n][1]), "+f"((d)[n][2]), "+f"((d)[n][3])
#define QLORA_ACCUMULATORS(d, n)                                                                                  \
  QLORA_FOUR_FLOATS(d, n), QLORA_FOUR_FLOATS(d, n + 1), QLORA_FOUR_FLOATS(d, n + 2), QLORA_FOUR_FLOATS(d, n + 3), \
      QLORA_FOUR_FLOATS(d, n + 4), QLORA_FOUR_FLOATS(d, n + 5), QLORA_FOUR_FLOATS(d, n + 6),                      \
      QLORA_FOUR_FLOATS(d, n + 7)
#define QLORA_REGISTERS_32                                                 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define QLORA_REGISTERS_64                                                             \
  QLORA_REGISTERS_32                                                                   \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define QLORA_WGMMA(columns, d, operands, add, down)                                                                 \
  "{ .reg .pred add; setp.ne.b32 add, " add ", 0; wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.bf16.bf16 {" d \
  "}, " operands ", add, 1, 1" down "; }"

/// D (64, 8 Columns) = A B, or += where `add`; A is 64 rows, B 16 of the sum's terms by 8 Columns (64 or 128). A is a
/// descriptor of rows to sum along, and B then too (B^T is rows); or A is in registers, and B is summed over its rows.
template <int Columns, class A>
__device__ __forceinline__ void multiply(float (&d)[Columns][4], const A& a, std::uint64_t b, int add) {
  static_assert(Columns == 8 || Columns == 16, "wgmma: 64 or 128 columns");
  if constexpr (std::is_array_v<A>) {
    static_assert(Columns == 16, "wgmma: 128 columns with A in registers");
    asm volatile(QLORA_WGMMA("128", QLORA_REGISTERS_64, "{%64, %65, %66, %67}, %68", "%69", ", 1")
                 : QLORA_ACCUMULATORS(d, 0), QLORA_ACCUMULATORS(d, 8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
  } else if constexpr (Columns == 16) {
    asm volatile(QLORA_WGMMA("128", QLORA_REGISTERS_64, "%64, %65", "%66", ", 0, 0")
                 : QLORA_ACCUMULATORS(d, 0), QLORA_ACCUMULATORS(d, 8)
                 : "l"(a), "l"(b), "r"(add));
  } else {
    asm volatile(QLORA_WGMMA("64", QLORA_REGISTERS_32, "%32, %33", "%34", ", 0, 0")
                 : QLORA_ACCUMULATORS(d, 0)
                 : "l"(a), "l"(b), "r"(add));
  }
}
#undef QLORA_FOUR_FLOATS
#undef QLORA_ACCUMULATORS
#undef QLORA_REGISTERS_32
#undef QLORA_REGISTERS_64
#undef QLORA_WGMMA

/// D (64, 8 Columns) = A B^T over 128 columns. A has 64 rows, B has 8 Columns (64 or 128) rows; both are two panels,
/// a_panel and b_panel bytes apart.
template <int Columns>
__device__ __forceinline__ void product_along(float (&d)[Columns][4], std::uint64_t a, int a_panel, std::uint64_t b,
                                              int b_panel) {
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    multiply(d, operand_at(a, k / 4 * a_panel + k % 4 * 32), operand_at(b, k / 4 * b_panel + k % 4 * 32), k > 0);
  }
}
/// D (64,128) += A B over the 16 Steps rows of B.
template <int Steps>
__device__ __forceinline__ void product_down(float (&d)[16][4], const std::uint32_t (&a)[Steps][4], std::uint64_t b) {
#pragma unroll
  for (int k = 0; k < Steps; ++k) multiply(d, a[k], operand_at(b, k * 16 * 128), 1);
}

}  // namespace device
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
