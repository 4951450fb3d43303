// qlora/cuda/attention/attention.cuh — attention as the network calls it: cuDNN's fused kernels where they were built
// in and support the shape, otherwise this library's kernels.
// Split      on Hopper this library's backward pass is faster than cuDNN's deterministic one and needs no workspace;
//            prefers_own_backward decides
// Numbers    both define lse as the natural logarithm of the sum of exp of scaled scores, so forward and backward may
//            use different implementations
#pragma once

#include "qlora/cuda/context/context.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

QLORA_CUDA_LAUNCHER void attention(Context& context, const AttentionShape& shape, const TokenBatch& batch,
                                   const bf16* qkv, Rows<bf16> o, float* lse, void* scratch,
                                   std::int64_t scratch_bytes) {
  const Phase phase(context, "attention");
#ifdef QLORA_WITH_CUDNN
  if (fused_attention(context, shape, batch, qkv, o, lse)) return;
#endif
  own_attention(context, shape, batch, qkv, o, lse, scratch, scratch_bytes);
}

QLORA_CUDA_LAUNCHER void attention_backward(Context& context, const AttentionShape& shape, const TokenBatch& batch,
                                            Rows<const bf16> go, const bf16* qkv, Rows<const bf16> o, const float* lse,
                                            bf16* gqkv, void* scratch, std::int64_t scratch_bytes) {
  const Phase phase(context, "attention");
#ifdef QLORA_WITH_CUDNN
  if (!prefers_own_backward(context, shape) && fused_attention_backward(context, shape, batch, go, qkv, o, lse, gqkv)) {
    return;
  }
#endif
  own_attention_backward(context, shape, batch, go, qkv, o, lse, gqkv, scratch, scratch_bytes);
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
