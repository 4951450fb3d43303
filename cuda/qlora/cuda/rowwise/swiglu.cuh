// qlora/cuda/rowwise/swiglu.cuh — the gated activation of the feed-forward block, forward and backward.
// Math       y = g sig(g) u,  sig(g) = 1 / (1 + e^-g);  gu = gy g sig(g);  gg = gy u sig(g) (1 + g (1 - sig(g)))
// Shapes     gate_up ggate_up (T,2F) bf16: gate in the first F columns, up in the last · y gy (T,F), any row stride
// Writes     all with = ; ggate_up may be gate_up: a thread overwrites only what it has read
// Split      rows.cuh: a run of 512 packs of one row per block, two packs per thread
// Needs      F a multiple of 8; 16-byte alignment
// Numbers    float arithmetic with the hardware's exponential and division (relative error near 2^-21, far below the
//            2^-9 of the one rounding to bf16). A non-finite result is reported
// Cost       bound by memory: 6 bytes per element forward, 10 backward
// Reference  cpu/swiglu.hpp
#pragma once

#include "qlora/cuda/rowwise/rows.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

namespace detail {

/// Packs of each operand that a thread has in flight.
inline constexpr int swiglu_packs = 2;

__device__ __forceinline__ float sigmoid(float g) { return __fdividef(1.0F, 1.0F + __expf(-g)); }

static __global__ void __launch_bounds__(row_threads)
    swiglu_kernel(int packs, const bf16* __restrict__ gate_up, Rows<bf16> y, Fault fault) {
  device::let_next_start();
  device::wait_for_previous();
  const device::RowTile tile = device::row_tile<swiglu_packs>(packs);
  const bf16* gates = gate_up + tile.row * packs * 16;
  const bf16* ups = gates + std::int64_t{packs} * 8;
  bf16* out = y.data + tile.row * y.stride;
  device::Pack8 gate[swiglu_packs];
  device::Pack8 up[swiglu_packs];
  device::for_packs<swiglu_packs>(tile.first, packs, [&](int i, int at) {
    gate[i] = device::load8(gates + at * 8);
    up[i] = device::load8(ups + at * 8);
  });
  device::FiniteProbe probe;
  device::for_packs<swiglu_packs>(tile.first, packs, [&](int i, int at) {
    float g[8];
    float u[8];
    device::to_floats(gate[i], g);
    device::to_floats(up[i], u);
#pragma unroll
    for (int j = 0; j < 8; ++j) u[j] *= g[j] * sigmoid(g[j]);
    probe.see(u);
    device::store8(out + at * 8, device::to_pack(u));
  });
  device::report_any(fault, probe.tripped());
}

/// gate and up are not __restrict__: the output may alias them.
static __global__ void __launch_bounds__(row_threads)
    swiglu_backward_kernel(int packs, Rows<const bf16> gy, const bf16* gate_up, bf16* ggate_up, Fault fault) {
  const device::RowTile tile = device::row_tile<swiglu_packs>(packs);
  const std::int64_t gate_row = tile.row * packs * 16;
  const std::int64_t up_row = gate_row + std::int64_t{packs} * 8;
  const bf16* gy_row = gy.data + tile.row * gy.stride;
  device::Pack8 gate[swiglu_packs];
  device::Pack8 up[swiglu_packs];
  device::Pack8 gradient[swiglu_packs];
  device::for_packs<swiglu_packs>(tile.first, packs, [&](int i, int at) {
    gate[i] = device::load8(gate_up + gate_row + at * 8);
    up[i] = device::load8(gate_up + up_row + at * 8);
    gradient[i] = device::load8(gy_row + at * 8);
  });
  device::FiniteProbe probe;
  device::for_packs<swiglu_packs>(tile.first, packs, [&](int i, int at) {
    float g[8];
    float u[8];
    float d[8];
    device::to_floats(gate[i], g);
    device::to_floats(up[i], u);
    device::to_floats(gradient[i], d);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float sig = sigmoid(g[j]);
      const float g_up = d[j] * g[j] * sig;
      g[j] = d[j] * u[j] * sig * (1.0F + g[j] * (1.0F - sig));
      u[j] = g_up;
    }
    probe.see(g);
    probe.see(u);
    device::store8(ggate_up + gate_row + at * 8, device::to_pack(g));
    device::store8(ggate_up + up_row + at * 8, device::to_pack(u));
  });
  device::report_any(fault, probe.tripped());
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void swiglu(Context& context, int tokens, int ffn, const bf16* gate_up, Rows<bf16> y) {
  const Phase phase(context, "elementwise");
  if (tokens <= 0) return;
  expect_packs("swiglu", "gate_up", Rows<const bf16>{gate_up, 2 * ffn}, 2 * ffn);
  expect_packs("swiglu", "y", y, ffn);
  const unsigned blocks = row_blocks<detail::swiglu_packs>(tokens, ffn / 8);
  launch(context, tokens <= most_several_tokens, "swiglu", detail::swiglu_kernel, dim3(blocks), dim3(row_threads), 0,
         ffn / 8, gate_up, y, context.fault());
}

QLORA_CUDA_LAUNCHER void swiglu_backward(Context& context, int tokens, int ffn, Rows<const bf16> gy,
                                         const bf16* gate_up, bf16* ggate_up) {
  const Phase phase(context, "elementwise");
  if (tokens <= 0) return;
  expect_packs("swiglu_backward", "gy", gy, ffn);
  expect_packs("swiglu_backward", "gate_up", Rows<const bf16>{gate_up, 2 * ffn}, 2 * ffn);
  expect_packs("swiglu_backward", "ggate_up", Rows<bf16>{ggate_up, 2 * ffn}, 2 * ffn);
  const unsigned blocks = row_blocks<detail::swiglu_packs>(tokens, ffn / 8);
  detail::swiglu_backward_kernel<<<blocks, row_threads, 0, context.stream>>>(ffn / 8, gy, gate_up, ggate_up,
                                                                             context.fault());
  check_launch("swiglu_backward");
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
