// qlora/cuda/rowwise/bias.cuh — adds a bias to every row.
// Math       y += b
// Shapes     y (T,N) bf16, rows without gaps · b (N) float
// Writes     y, in place
// Split      rows.cuh: a run of 512 packs of one row per block, two packs per thread
// Needs      N a multiple of 8; 16-byte alignment
// Numbers    summed in float and rounded once. A non-finite result is reported
// Cost       bound by memory: 4 bytes per element
// Reference  cpu/bias.hpp
#pragma once

#include "qlora/cuda/rowwise/rows.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

namespace detail {

/// Packs of each operand that a thread has in flight.
inline constexpr int bias_packs = 2;

static __global__ void __launch_bounds__(row_threads)
    bias_kernel(int packs, const float* __restrict__ bias, bf16* y, Fault fault) {
  device::let_next_start();
  device::wait_for_previous();
  const device::RowTile tile = device::row_tile<bias_packs>(packs);
  bf16* row = y + tile.row * packs * 8;
  device::Pack8 old[bias_packs];
  device::for_packs<bias_packs>(tile.first, packs, [&](int i, int at) { old[i] = device::load8(row + at * 8); });
  device::FiniteProbe probe;
  device::for_packs<bias_packs>(tile.first, packs, [&](int i, int at) {
    float sum[8];
    float b[8];
    device::to_floats(old[i], sum);
    device::load8_constant(bias + at * 8, b);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j] += b[j];
    probe.see(sum);
    device::store8(row + at * 8, device::to_pack(sum));
  });
  device::report_any(fault, probe.tripped());
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void add_bias(Context& context, int rows, int columns, const float* bias, bf16* y) {
  const Phase phase(context, "elementwise");
  if (rows <= 0) return;
  expect_packs("bias", "y", Rows<bf16>{y, columns}, columns);
  expect_packs("bias", "the bias", Rows<const float>{bias, columns}, columns);
  const unsigned blocks = row_blocks<detail::bias_packs>(rows, columns / 8);
  launch(context, rows <= most_several_tokens, "bias", detail::bias_kernel, dim3(blocks), dim3(row_threads), 0,
         columns / 8, bias, y, context.fault());
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
