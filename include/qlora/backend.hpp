// qlora/backend.hpp — the contract between network code and a backend: the op table.
// Every op states what it writes: activations with = , gradients of parameters with += . Reductions have a fixed order:
// the same bits every run. A backend is a value that owns its threads or streams; there are no globals.
//
//   op                    shapes                                                        the plain twin
//   embed                 ids (T), table (V,D) -> x (T,D)                                cpu/loss.hpp
//   rmsnorm(_backward)    h delta (T,D), w (D) -> s y (T,D), inv_rms (T)                 cpu/norm.hpp
//   add                   h delta -> y (T,D)                                             cpu.hpp
//   linear(_backward)     a group of layers: X (T,K) -> Y (T,N), XA (T,parts R)          cpu/linear.hpp
//   rope                  qkv (T,(H+2K)E) in place, direction -1 in the backward pass    cpu/attention.hpp
//   attention(_backward)  qkv -> o (T,HE), lse (H,T), inside document segments           cpu/attention.hpp
//   store_kv              keys and values of new tokens into a cache                     cpu/attention.hpp
//   attention_cached      new tokens over cached keys and values                         cpu/attention.hpp
//   swiglu(_backward)     gate|up (T,2F) -> y (T,F)                                      cpu/swiglu.hpp
//   cross_entropy         x (T,D), head (V,D), targets (T) -> losses (T), gx (T,D)       cpu/loss.hpp
//   gradient_norm adamw   all trained parameters behind one another                      cpu/adamw.hpp
//   quantize              w (elements) -> NF4 codes and scales                           cpu/nf4.hpp
#pragma once

#include <concepts>
#include <cstdint>
#include <span>

#include "qlora/ops.hpp"
#include "qlora/view.hpp"

namespace qlora {
inline namespace v0 {

/// What adapters need. D, W and F stand for any width.
template <class B, class S = typename B::Scalar>
concept Backend = requires(B& b, Mat<S, 64> x, Mat<const S, 64> in, Mat<S, 128> wide, const S* w, S* v,
                           std::span<const LinearPart<S>> parts, std::span<const LinearGradient<S>> gradients,
                           const LinearGroup<S>& group, const AttentionShape& heads, std::span<const Segment> segments,
                           std::span<const CachedSequence<S>> cached, const std::int32_t* ids,
                           const LossScratch<S>& loss, const AdamW& rule, std::span<const float> host,
                           const Quant& quant, const Nf4Target& target, double* sums) {
  { b.workers() } -> std::same_as<int>;
  typename B::Arena;
  b.upload(host, true, v);
  b.download(w, std::span<float>{});
  b.zero(v, std::int64_t{});
  b.embed(ids, in, x);
  b.rmsnorm(1e-5F, in, in, w, x, x, v);
  b.rmsnorm_backward(in, in, w, w, true, x, v);
  b.linear(group, parts, in, v, wide);
  b.adapter_input(group, in, w, v);
  b.linear_backward(group, parts, gradients, Mat<const S, 128>{}, in, w, v, x);
  b.add(in, in, x);
  b.rope_table(1, 1, 1e4, v, v);
  b.rope(heads, w, w, ids, 1, wide);
  b.attention(heads, segments, Mat<const S, 128>{}, x, v, v, std::int64_t{});
  b.attention_backward(heads, segments, in, Mat<const S, 128>{}, in, w, wide, v, std::int64_t{});
  b.store_kv(heads, cached, Mat<const S, 128>{});
  b.attention_cached(heads, cached, Mat<const S, 128>{}, x, v, std::int64_t{});
  b.swiglu(Mat<const S, 128>{}, x);
  b.swiglu_backward(in, Mat<const S, 128>{}, wide);
  b.cross_entropy(in, w, 32, ids, S(1), loss, v, v, v);
  b.project(in, w, 32, v);
  { b.gradient_norm(std::int64_t{}, w, sums) } -> std::same_as<double>;
  b.adamw(std::int64_t{}, rule, w, v, v, v);
  b.quantize(host, quant, target);
  b.dequantize(Nf4View{}, std::int64_t{}, quant, v);
};

/// What training every weight needs on top.
template <class B, class S = typename B::Scalar>
concept FullBackend = Backend<B> && requires(B& b, const std::int32_t* ids, Mat<const S, 64> in, Mat<S, 64> x) {
  b.embed_backward(ids, in, x);
};

}  // namespace v0
}  // namespace qlora
