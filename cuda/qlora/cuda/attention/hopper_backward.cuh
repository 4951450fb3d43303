// qlora/cuda/attention/hopper_backward.cuh — causal attention inside document pieces, backward pass on Hopper: wgmma
// products of tiles that TMA loads.
// Math Shapes Writes Reference   as backward.cuh
// Split      two kernels, hopper_queries.cuh and hopper_keys.cuh
// Needs      compute capability 9.0 and kernels compiled for sm_90a (wgmma exists only there); E 128; a driver that can
//            encode tensor maps
// Numbers    as backward.cuh, but dS uses P before rounding for gQ and after rounding for gK. Every sum is computed by
//            one thread in a fixed order
// Cost       14 E FLOP per visible pair and head; delta is the only intermediate in global memory
#pragma once

#include "qlora/cuda/attention/hopper_keys.cuh"
#include "qlora/cuda/attention/hopper_queries.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Whether the card runs a version of these kernels with a body. Only those versions use shared memory.
[[nodiscard]] inline bool hopper_compiled() {
  static const bool compiled = [] {
    cudaFuncAttributes keys{};
    cudaFuncAttributes queries{};
    check(cudaFuncGetAttributes(&keys, attention_hopper_kernel<HopperKeySide>), "attention_hopper_keys");
    check(cudaFuncGetAttributes(&queries, attention_hopper_kernel<HopperQuerySide>), "attention_hopper_queries");
    return keys.sharedSizeBytes > 0 && queries.sharedSizeBytes > 0;
  }();
  return compiled;
}

[[nodiscard]] inline bool hopper_backward_serves(const Context& context, const AttentionShape& shape) {
  return context.capability == 90 && shape.head_dim == HopperSplit::head_dim && hopper_compiled();
}

/// All gradients; args.delta has been computed.
inline void launch_hopper_backward(Context& context, const TokenBatch& batch, const BackwardArgs& args) {
  const AttentionArgs& forward = args.forward;
  const CUtensorMap qkv = panel_map(forward.qkv, forward.width, forward.tokens, forward.width);
  const CUtensorMap go = panel_map(args.go.data, forward.heads * HopperSplit::head_dim, forward.tokens, args.go.stride);
  const auto tiles = static_cast<int>(tiles_of(batch.tokens, HopperSplit::rows));
  const auto launch = [&](const char* name, auto side, int heads, bool keys) {
    using Side = decltype(side);
    const int items = heads * tiles;
    launch_tiles(context, name, attention_hopper_kernel<Side>,
                 dim3(static_cast<unsigned>(std::min(items, context.sm_count))), HopperSplit::threads,
                 Side::Tiles::shared_bytes, qkv, go, args,
                 heavy_first(batch.tokens, HopperSplit::rows, keys, batch.segments), items);
  };
  launch("attention_hopper_keys", HopperKeySide{}, forward.kv_heads, true);
  launch("attention_hopper_queries", HopperQuerySide{}, forward.heads, false);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
