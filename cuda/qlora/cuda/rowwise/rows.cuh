// qlora/cuda/rowwise/rows.cuh — how memory-bound kernels traverse the rows of a matrix, and how they detect a NaN.
// Split      a matrix (rows, width) is split into runs of row_threads * Packs neighbouring packs of one row, one per
//            block; a thread takes every row_threads-th pack of the run, so a warp reads 512 neighbouring bytes at a
//            time and a thread has Packs independent loads in flight
// Needs      widths and strides that are multiples of 8 elements, rows aligned to 16 bytes
#pragma once

#include "qlora/cuda/arch/primitives.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

/// Threads of a block that processes part of one row.
inline constexpr int row_threads = 256;
/// Packs of a row per thread in copies.
inline constexpr int copy_packs = 4;

namespace device {

__device__ __forceinline__ void to_floats(const float4& low, const float4& high, float (&out)[8]) {
  out[0] = low.x;
  out[1] = low.y;
  out[2] = low.z;
  out[3] = low.w;
  out[4] = high.x;
  out[5] = high.y;
  out[6] = high.z;
  out[7] = high.w;
}
/// Eight floats as two 16-byte accesses.
__device__ __forceinline__ void load8(const float* p, float (&out)[8]) {
  to_floats(reinterpret_cast<const float4*>(p)[0], reinterpret_cast<const float4*>(p)[1], out);
}
__device__ __forceinline__ void store8(float* p, const float (&values)[8]) {
  reinterpret_cast<float4*>(p)[0] = float4{values[0], values[1], values[2], values[3]};
  reinterpret_cast<float4*>(p)[1] = float4{values[4], values[5], values[6], values[7]};
}
/// load8 for memory that no kernel in flight writes: such loads may move across stores.
__device__ __forceinline__ void load8_constant(const float* p, float (&out)[8]) {
  to_floats(__ldg(reinterpret_cast<const float4*>(p)), __ldg(reinterpret_cast<const float4*>(p) + 1), out);
}

/// The part of a matrix that a thread processes: packs first, first + row_threads, ... of a row.
struct RowTile {
  std::int64_t row;
  int first;
};
template <int Packs>
__device__ __forceinline__ RowTile row_tile(int packs) {
  constexpr unsigned run = row_threads * Packs;
  const unsigned runs = (static_cast<unsigned>(packs) + run - 1) / run;
  const unsigned row = blockIdx.x / runs;
  return {static_cast<std::int64_t>(row), static_cast<int>((blockIdx.x - row * runs) * run + threadIdx.x)};
}
/// Calls use(i, at) for the thread's packs of a row with `packs`: its i-th is pack `at`, at least `first` and Threads
/// apart. The loop is unrolled, so that a loop of loads has all of them in flight before the next loop uses them.
template <int Packs, int Threads = row_threads, class Use>
__device__ __forceinline__ void for_packs(int first, int packs, Use&& use) {
#pragma unroll
  for (int i = 0; i < Packs; ++i) {
    const int at = first + i * Threads;
    if (at < packs) use(i, at);
  }
}

/// A compiler barrier: it treats these values as new from here on, so that values derived from the old ones (a pack's
/// eight floats, a row of weights) do not occupy registers until the second use.
__device__ __forceinline__ void forget(Pack8& pack) {
  auto& word = reinterpret_cast<std::uint32_t(&)[4]>(pack);
  asm volatile("" : "+r"(word[0]), "+r"(word[1]), "+r"(word[2]), "+r"(word[3]));
}
__device__ __forceinline__ const float* forget(const float* p) {
  asm volatile("" : "+l"(p));
  return p;
}

/// Becomes NaN with the first non-finite value: 0 * x is NaN only for those. One FMA per value.
struct FiniteProbe {
  float probe = 0.0F;
  __device__ __forceinline__ void see(float value) { probe = fmaf(value, 0.0F, probe); }
  __device__ __forceinline__ void see(const float (&values)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) see(values[i]);
  }
  [[nodiscard]] __device__ __forceinline__ bool tripped() const { return probe != 0.0F; }  // NaN differs from all
};
/// Called by all 32 lanes together; one of them writes.
__device__ __forceinline__ void report_any(const Fault& fault, bool bad) {
  if (__any_sync(0xffffffffU, bad) && threadIdx.x % 32 == 0) report(fault);
}

}  // namespace device

/// Number of blocks for row_tile<Packs> over `rows` rows.
template <int Packs>
[[nodiscard]] unsigned row_blocks(int rows, int packs) {
  constexpr int run = row_threads * Packs;
  const std::int64_t blocks = std::int64_t{rows} * ((packs + run - 1) / run);
  QLORA_EXPECTS(blocks <= 0x7fffffff, rows, " rows of ", packs * 8, " columns need more blocks than a grid holds");
  return static_cast<unsigned>(blocks);
}

/// The requirement of 16-byte accesses to a matrix.
template <class T>
void expect_packs(const char* op, const char* name, const Rows<T>& rows, int width) {
  QLORA_EXPECTS(width > 0 && width % 8 == 0, op, ": ", name, " has ", width, " columns, not a multiple of 8");
  QLORA_EXPECTS(rows.stride >= width && rows.stride % 8 == 0, op, ": rows of ", name, " are ", rows.stride,
                " elements apart; they need a multiple of 8, at least ", width);
  QLORA_EXPECTS(rows.data != nullptr && reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0, op, ": ", name,
                " must begin at a multiple of 16 bytes");
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
