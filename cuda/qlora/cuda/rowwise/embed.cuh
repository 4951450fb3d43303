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

enum class Move : std::uint8_t { gather, scatter };

/// gather: to_i = from_{index_i}; scatter: to_{index_i} = from_i. Rows of `from` are packs * 8 apart.
template <Move Direction>
static __global__ void __launch_bounds__(row_threads)
    move_rows_kernel(int packs, const std::int32_t* __restrict__ index, const bf16* __restrict__ from,
                     bf16* __restrict__ to, int stride) {
  const device::RowTile tile = device::row_tile<copy_packs>(packs);
  const std::int64_t other = index[tile.row];
  const bf16* source = from + (Direction == Move::gather ? other : tile.row) * packs * 8;
  bf16* target = to + (Direction == Move::gather ? tile.row : other) * stride;
  device::Pack8 pack[copy_packs];
  device::for_packs<copy_packs>(tile.first, packs, [&](int i, int at) { pack[i] = device::load8(source + at * 8); });
  device::for_packs<copy_packs>(tile.first, packs, [&](int i, int at) { device::store8(target + at * 8, pack[i]); });
}

template <Move Direction>
void move_rows(Context& context, const char* op, int count, int dim, const std::int32_t* index, const bf16* from,
               Rows<bf16> to) {
  const unsigned blocks = row_blocks<copy_packs>(count, dim / 8);
  move_rows_kernel<Direction><<<blocks, row_threads, 0, context.stream>>>(dim / 8, index, from, to.data, to.stride);
  check_launch(op);
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void embed(Context& context, int tokens, int dim, const std::int32_t* ids, const bf16* table,
                               Rows<bf16> x) {
  const Phase phase(context, "elementwise");
  if (tokens <= 0) return;
  expect_packs("embed", "the table", Rows<const bf16>{table, dim}, dim);
  expect_packs("embed", "x", x, dim);
  detail::move_rows<detail::Move::gather>(context, "embed", tokens, dim, ids, table, x);
}

QLORA_CUDA_LAUNCHER void scatter_rows(Context& context, int count, int dim, const std::int32_t* index, const bf16* from,
                                      bf16* to) {
  if (count <= 0) return;
  detail::move_rows<detail::Move::scatter>(context, "scatter_rows", count, dim, index, from, {to, dim});
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
