// qlora/cpu/instances.hpp — the float operators, for programs of several files: compiled once, linked by all. Every
// operator takes run-time sizes, so one instance serves all configs. A program that defines QLORA_PREBUILT_CPU (the
// CMake target qlora::cpu_float does, and brings the object code) gets declarations from here; the file that holds the
// code defines QLORA_INSTANCE as `template` before it includes this header. Without either, nothing here is needed.
#pragma once

#include "qlora/cpu/adamw.hpp"
#include "qlora/cpu/attention.hpp"
#include "qlora/cpu/decode.hpp"
#include "qlora/cpu/linear.hpp"
#include "qlora/cpu/loss.hpp"
#include "qlora/cpu/norm.hpp"
#include "qlora/cpu/rope.hpp"
#include "qlora/cpu/swiglu.hpp"

#ifndef QLORA_INSTANCE
#define QLORA_INSTANCE extern template
#endif

namespace qlora {
inline namespace v0 {
namespace cpu {

QLORA_INSTANCE void product_nt<float>(ThreadPool&, int, int, int, float, Block<const float>, Block<const float>, int,
                                      Block<float>);
QLORA_INSTANCE void product_nn<float>(ThreadPool&, int, int, int, float, Block<const float>, Block<const float>, int,
                                      Block<float>);
QLORA_INSTANCE void product_tn<float>(ThreadPool&, int, int, int, float, Block<const float>, Block<const float>, int,
                                      Block<float>);
QLORA_INSTANCE void dequantize_nf4<Numbers<float>>(ThreadPool&, const Nf4View&, std::int64_t, const Quant&, float*);
QLORA_INSTANCE void rmsnorm<Numbers<float>>(ThreadPool&, int, int, float, Block<const float>, const float*,
                                            Block<float>, float*);
QLORA_INSTANCE void rmsnorm_backward<Numbers<float>>(ThreadPool&, int, int, Block<const float>, Block<const float>,
                                                     const float*, const float*, bool, Block<float>, float*);
QLORA_INSTANCE void swiglu<Numbers<float>>(ThreadPool&, int, int, const float*, Block<float>);
QLORA_INSTANCE void swiglu_backward<Numbers<float>>(ThreadPool&, int, int, Block<const float>, const float*, float*);
QLORA_INSTANCE void rope<Numbers<float>>(ThreadPool&, int, const AttentionShape&, const float*, const float*,
                                         const std::int32_t*, int, float*);
QLORA_INSTANCE void attention<Numbers<float>>(ThreadPool&, int, const AttentionShape&, std::span<const Segment>,
                                              const float*, Block<float>, float*, float*, std::int64_t);
QLORA_INSTANCE void attention_backward<Numbers<float>>(ThreadPool&, int, const AttentionShape&,
                                                       std::span<const Segment>, Block<const float>, const float*,
                                                       Block<const float>, const float*, float*, float*, std::int64_t);
QLORA_INSTANCE void attention_cached<Numbers<float>>(ThreadPool&, const AttentionShape&,
                                                     std::span<const CachedSequence<float>>, const float*, Block<float>,
                                                     float*, std::int64_t);
QLORA_INSTANCE void cross_entropy<Numbers<float>>(ThreadPool&, int, int, const TokenBatch&, const float*, const float*,
                                                  float, const LossScratch<float>&, float*, float*, float*);
QLORA_INSTANCE void adapter_input<Numbers<float>>(ThreadPool&, const LinearGroup<float>&,
                                                  std::span<const LinearPart<float>>, int, Block<float>);
QLORA_INSTANCE void linear_forward<Numbers<float>>(ThreadPool&, const LinearGroup<float>&,
                                                   std::span<const LinearPart<float>>, int, Block<float>, const float*,
                                                   float*);
QLORA_INSTANCE void linear_backward<Numbers<float>>(ThreadPool&, const LinearGroup<float>&,
                                                    std::span<const LinearPart<float>>,
                                                    std::span<const LinearGradient<float>>, int, const float*,
                                                    Block<const float>, bool, Block<float>);
QLORA_INSTANCE void adamw<float>(ThreadPool&, std::int64_t, const AdamW&, double, const float*, float*, float*, float*);

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
