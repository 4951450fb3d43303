// qlora/cuda/rowwise/embed.cuh — gathers (embedding) and scatters rows of a matrix by index.
// Math       gather: to_i = from_{index_i}     scatter: to_{index_i} = from_i
// Shapes     table (V,D) bf16 · ids (T) · x (T,D) bf16, any row stride
// Writes     all with = ; scatter_rows leaves rows without an index unchanged
// Split      rows.cuh: copy_packs packs of one row per thread
// Needs      D a multiple of 8; 16-byte alignment; for scatter_rows distinct indices
// Cost       bound by memory: 4 bytes per element
// Reference  embed in cpu/embed.hpp
#pragma once

#include "qlora/cuda/rowwise/rows.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

namespace detail {

/// The thread's packs of one row, at most `packs` of them in the row.
__device__ __forceinline__ void copy_row_tile(const bf16* source, bf16* target, int first, int packs) {
  device::Pack8 pack[copy_packs];
#pragma unroll
  for (int i = 0; i < copy_packs; ++i) {
    const int at = first + i * row_threads;
    if (at < packs) pack[i] = device::load8(source + at * 8);
  }
#pragma unroll
  for (int i = 0; i < copy_packs; ++i) {
    const int at = first + i * row_threads;
    if (at < packs) device::store8(target + at * 8, pack[i]);
  }
}

/// to_i = from_{index_i}.
static __global__ void __launch_bounds__(row_threads)
    gather_kernel(int packs, const std::int32_t* __restrict__ index, const bf16* __restrict__ from, Rows<bf16> to) {
  const device::RowTile tile = device::row_tile<copy_packs>(packs);
  copy_row_tile(from + std::int64_t{index[tile.row]} * packs * 8, to.data + tile.row * to.stride, tile.first, packs);
}

/// to_{index_i} = from_i.
static __global__ void __launch_bounds__(row_threads)
    scatter_kernel(int packs, const std::int32_t* __restrict__ index, const bf16* __restrict__ from,
                   bf16* __restrict__ to) {
  const device::RowTile tile = device::row_tile<copy_packs>(packs);
  copy_row_tile(from + tile.row * packs * 8, to + std::int64_t{index[tile.row]} * packs * 8, tile.first, packs);
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void embed(Context& context, int tokens, int dim, const std::int32_t* ids, const bf16* table,
                               Rows<bf16> x) {
  const Phase phase(context, "elementwise");
  if (tokens <= 0) return;
  expect_packs("embed", "the table", Rows<const bf16>{table, dim}, dim);
  expect_packs("embed", "x", x, dim);
  const unsigned blocks = row_blocks<copy_packs>(tokens, dim / 8);
  detail::gather_kernel<<<blocks, row_threads, 0, context.stream>>>(dim / 8, ids, table, x);
  check_launch("embed");
}

QLORA_CUDA_LAUNCHER void scatter_rows(Context& context, int count, int dim, const std::int32_t* index, const bf16* from,
                                      bf16* to) {
  if (count <= 0) return;
  const unsigned blocks = row_blocks<copy_packs>(count, dim / 8);
  detail::scatter_kernel<<<blocks, row_threads, 0, context.stream>>>(dim / 8, index, from, to);
  check_launch("scatter_rows");
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
