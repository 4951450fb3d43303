// qlora/cpu.hpp — the CPU backend: the op table of backend.hpp on Eigen, assembled from cpu/*.hpp.
// It is the reference that proves the GPU, and good enough to train small models. Typed views come in, run-time sizes
// go on, so that each operator is compiled once per scalar type and not once per model.
#pragma once

#include <complex>
#include <memory>

#include "qlora/backend.hpp"
#include "qlora/cpu/adamw.hpp"
#include "qlora/cpu/arena.hpp"
#include "qlora/cpu/attention.hpp"
#include "qlora/cpu/linear.hpp"
#include "qlora/cpu/loss.hpp"
#include "qlora/cpu/nf4.hpp"
#include "qlora/cpu/norm.hpp"
#include "qlora/cpu/swiglu.hpp"
#ifdef QLORA_PREBUILT_CPU
#include "qlora/cpu/instances.hpp"
#endif

namespace qlora {
inline namespace v0 {

/// Scalar is float, double, or std::complex<double> (to prove derivatives). Rounding::bf16 rounds to bfloat16 wherever
/// the GPU stores bfloat16.
template <class ScalarType = float, Rounding Round = Rounding::none>
class Cpu {
  using N = cpu::Numbers<ScalarType, Round>;

 public:
  using Scalar = ScalarType;
  using S = Scalar;
  using Arena = cpu::Arena;
  static constexpr Space space = Space::host;
  static constexpr bool rounds = N::rounds;

  /// `threads` 0: one per core.
  explicit Cpu(int threads = 0) : pool_(std::make_unique<cpu::ThreadPool>(threads)) {}

  [[nodiscard]] int workers() const { return pool_->size(); }
  [[nodiscard]] cpu::ThreadPool& pool() const { return *pool_; }

  /// Host floats into backend memory; `stored` rounds as activations and product operands are rounded.
  void upload(std::span<const float> from, bool stored, S* to) {
    for (std::size_t i = 0; i < from.size(); ++i) to[i] = S(from[i]);
    if (stored) N::store(to, static_cast<std::int64_t>(from.size()));
  }
  void download(const S* from, std::span<float> to) const {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = static_cast<float>(cpu::real_part(from[i]));
  }
  void zero(S* data, std::int64_t count) {
    cpu::for_ranges(*pool_, count, 1 << 16, [&](std::int64_t first, std::int64_t last, int) {
      cpu::row_array(data + first, last - first).setZero();
    });
  }

  template <int D>
  void embed(const std::int32_t* ids, In<S, D> table, Mat<S, D> x) {
    cpu::embed<N>(*pool_, x.rows, D, ids, table.data, x.data);
  }
  template <int D>
  void embed_backward(const std::int32_t* ids, In<S, D> gx, Mat<S, D> gtable) {
    cpu::embed_backward<N>(*pool_, gx.rows, D, ids, gx.data, gtable.data);
  }
  template <int D>
  void rmsnorm(float eps, In<S, D> h, In<S, D> delta, const S* w, Mat<S, D> s, Mat<S, D> y, S* inv_rms) {
    cpu::rmsnorm<N>(*pool_, y.rows, D, S(eps), h.data, delta.data, w, s.data, y.data, inv_rms);
  }
  template <int D>
  void rmsnorm_backward(In<S, D> gy, In<S, D> s, const S* inv_rms, const S* w, bool accumulate, Mat<S, D> gs, S* gw) {
    cpu::rmsnorm_backward<N>(*pool_, gs.rows, D, gy.data, s.data, inv_rms, w, accumulate, gs.data, gw);
  }
  template <int K, int Width>
  void linear(const LinearGroup<S>& group, std::span<const LinearPart<S>> parts, Mat<const S, K> x, S* xa,
              Mat<S, Width> y) {
    cpu::linear_forward<N>(*pool_, group, parts, x.rows, x.data, xa, y.data);
  }
  template <int K>
  void adapter_input(const LinearGroup<S>& group, Mat<const S, K> x, const S* a, S* xa) {
    cpu::adapter_input<N>(*pool_, group, x.rows, x.data, a, xa);
  }
  template <int Width, int K>
  void linear_backward(const LinearGroup<S>& group, std::span<const LinearPart<S>> parts,
                       std::span<const LinearGradient<S>> gradients, Mat<const S, Width> gy, Mat<const S, K> x,
                       const S* xa, S* gxa, std::type_identity_t<Mat<S, K>> gx) {
    cpu::linear_backward<N>(*pool_, group, parts, gradients, x.rows, gy.data, x.data, xa, gxa, gx.data);
  }
  /// y = h + delta
  template <int D>
  void add(Mat<const S, D> h, In<S, D> delta, Mat<S, D> y) {
    cpu::for_ranges(*pool_, std::int64_t{y.rows} * D, 1 << 14, [&](std::int64_t first, std::int64_t last, int) {
      cpu::row_array(y.data + first, last - first) =
          cpu::row_array(h.data + first, last - first) + cpu::row_array(delta.data + first, last - first);
      N::store(y.data + first, last - first);
    });
  }
  void rope_table(int positions, int head_dim, double theta, S* cosine, S* sine) {
    cpu::rope_table(positions, head_dim, theta, cosine, sine);
  }
  template <int Width>
  void rope(const AttentionShape& heads, const S* cosine, const S* sine, const std::int32_t* position, int direction,
            Mat<S, Width> qkv) {
    cpu::rope<N>(*pool_, qkv.rows, heads, cosine, sine, position, direction, qkv.data);
  }
  template <int Width, int Out>
  void attention(const AttentionShape& heads, std::span<const Segment> segments, Mat<const S, Width> qkv, Mat<S, Out> o,
                 S* lse, S* scratch, std::int64_t scratch_per_worker) {
    cpu::attention<N>(*pool_, qkv.rows, heads, segments, qkv.data, o.data, lse, scratch, scratch_per_worker);
  }
  template <int Out, int Width>
  void attention_backward(const AttentionShape& heads, std::span<const Segment> segments, Mat<const S, Out> go,
                          Mat<const S, Width> qkv, In<S, Out> o, const S* lse, Mat<S, Width> gqkv, S* scratch,
                          std::int64_t scratch_per_worker) {
    cpu::attention_backward<N>(*pool_, qkv.rows, heads, segments, go.data, qkv.data, o.data, lse, gqkv.data, scratch,
                               scratch_per_worker);
  }
  template <int Width>
  void store_kv(const AttentionShape& heads, std::span<const CachedSequence<S>> sequences, Mat<const S, Width> qkv) {
    cpu::store_kv<S>(heads, sequences, qkv.data);
  }
  template <int Width, int Out>
  void attention_cached(const AttentionShape& heads, std::span<const CachedSequence<S>> sequences,
                        Mat<const S, Width> qkv, Mat<S, Out> o, S* scratch, std::int64_t scratch_per_worker) {
    cpu::attention_cached<N>(*pool_, heads, sequences, qkv.data, o.data, scratch, scratch_per_worker);
  }
  template <int F>
  void swiglu(Mat<const S, 2 * F> gate_up, Mat<S, F> y) {
    cpu::swiglu<N>(*pool_, y.rows, F, gate_up.data, y.data);
  }
  template <int F>
  void swiglu_backward(Mat<const S, F> gy, Mat<const S, 2 * F> gate_up, Mat<S, 2 * F> ggate_up) {
    cpu::swiglu_backward<N>(*pool_, gy.rows, F, gy.data, gate_up.data, ggate_up.data);
  }
  template <int D>
  void cross_entropy(Mat<const S, D> x, const S* head, int vocab, const std::int32_t* targets, S scale,
                     const LossScratch<S>& scratch, S* losses, S* gx, S* ghead) {
    cpu::linear_cross_entropy<N>(*pool_, x.rows, D, vocab, x.data, head, targets, scale, scratch, losses, gx, ghead);
  }
  /// logits (T,V) = x (T,D) head (V,D)^T
  template <int D>
  void project(Mat<const S, D> x, const S* head, int vocab, S* logits) {
    using Operand = cpu::Block<const S>;
    cpu::product_nt<S>(*pool_, x.rows, vocab, D, S(1), Operand{x.data, D}, Operand{head, D}, 0, {logits, vocab});
  }
  [[nodiscard]] double gradient_norm(std::int64_t count, const S* g, double* partial) {
    return cpu::gradient_norm(*pool_, count, g, partial);
  }
  void adamw(std::int64_t count, const AdamW& rule, const S* g, S* p, S* m, S* v) {
    cpu::adamw(*pool_, count, rule, g, p, m, v);
  }
  void quantize(std::span<const float> w, const Quant& quant, const Nf4Target& target) {
    cpu::quantize_nf4(*pool_, w, quant, target);
  }
  void dequantize(const Nf4View& w, std::int64_t elements, const Quant& quant, S* out) {
    cpu::dequantize_nf4<N>(*pool_, w, elements, quant, out);
  }

 private:
  std::unique_ptr<cpu::ThreadPool> pool_;
};

static_assert(FullBackend<Cpu<float>> && FullBackend<Cpu<double>> && FullBackend<Cpu<std::complex<double>>>);

}  // namespace v0
}  // namespace qlora
