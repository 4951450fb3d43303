// qlora/cuda/linear/dropout.cuh — dropout at the input of an adapter, forward and backward.
// Math       out = mask o x / keep;  gx += mask o p / keep;  mask: Philox of (seed, step, layer, group, token, column)
// Shapes     x gx (T,cols) bf16, any row stride · out p (T,cols) bf16
// Writes     out with = , gx with +=
// Split      rowwise/rows.cuh: a run of 512 packs of one row per block, two packs per thread; one Philox call per pack
// Needs      cols a multiple of 8; 16-byte alignment
// Numbers    the mask equals the CPU's bit for bit; each result is rounded to bf16 once
// Cost       bound by memory: 4 bytes an element for dropout, 6 for add_dropped
// Reference  dropped_input in cpu/linear.hpp; the words in rng.hpp
#pragma once

#include "qlora/cuda/rowwise/rows.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

namespace detail {

/// Packs of each operand that a thread has in flight.
inline constexpr int dropout_packs = 2;

static __global__ void __launch_bounds__(row_threads)
    dropout_kernel(int packs, DropoutSite site, Rows<const bf16> x, bf16* __restrict__ out) {
  const device::RowTile tile = device::row_tile<dropout_packs>(packs);
  const bf16* from = x.data + tile.row * x.stride;
  bf16* to = out + tile.row * packs * 8;
  device::Pack8 pack[dropout_packs];
  device::for_packs<dropout_packs>(tile.first, packs, [&](int i, int at) { pack[i] = device::load8(from + at * 8); });
  device::for_packs<dropout_packs>(tile.first, packs, [&](int i, int at) {
    float value[8];
    float factor[8];
    device::to_floats(pack[i], value);
    device::dropout_factors(site, static_cast<std::uint32_t>(tile.row), static_cast<std::uint32_t>(at), factor);
#pragma unroll
    for (int j = 0; j < 8; ++j) value[j] *= factor[j];
    device::store8(to + at * 8, device::to_pack(value));
  });
}

static __global__ void __launch_bounds__(row_threads)
    add_dropped_kernel(int packs, DropoutSite site, const bf16* __restrict__ p, Rows<bf16> gx) {
  const device::RowTile tile = device::row_tile<dropout_packs>(packs);
  const bf16* from = p + tile.row * packs * 8;
  bf16* to = gx.data + tile.row * gx.stride;
  device::Pack8 pack[dropout_packs];
  device::Pack8 base[dropout_packs];
  device::for_packs<dropout_packs>(tile.first, packs, [&](int i, int at) {
    pack[i] = device::load8(from + at * 8);
    base[i] = device::load8(to + at * 8);
  });
  device::for_packs<dropout_packs>(tile.first, packs, [&](int i, int at) {
    float value[8];
    float sum[8];
    float factor[8];
    device::to_floats(pack[i], value);
    device::to_floats(base[i], sum);
    device::dropout_factors(site, static_cast<std::uint32_t>(tile.row), static_cast<std::uint32_t>(at), factor);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j] += value[j] * factor[j];
    device::store8(to + at * 8, device::to_pack(sum));
  });
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void dropout(Context& context, int tokens, int cols, const DropoutSite& site, Rows<const bf16> x,
                                 bf16* out) {
  if (tokens <= 0) return;
  expect_packs("dropout", "x", x, cols);
  expect_packs("dropout", "out", Rows<bf16>{out, cols}, cols);
  const unsigned blocks = row_blocks<detail::dropout_packs>(tokens, cols / 8);
  detail::dropout_kernel<<<blocks, row_threads, 0, context.stream>>>(cols / 8, site, x, out);
  check_launch("dropout");
}

QLORA_CUDA_LAUNCHER void add_dropped(Context& context, int tokens, int cols, const DropoutSite& site, const bf16* p,
                                     Rows<bf16> gx) {
  if (tokens <= 0) return;
  expect_packs("add_dropped", "p", Rows<const bf16>{p, cols}, cols);
  expect_packs("add_dropped", "gx", gx, cols);
  const unsigned blocks = row_blocks<detail::dropout_packs>(tokens, cols / 8);
  detail::add_dropped_kernel<<<blocks, row_threads, 0, context.stream>>>(cols / 8, site, p, gx);
  check_launch("add_dropped");
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
