// qlora/model/pass.hpp — the whole network over one micro-batch: forward, loss, backward. Owns the activations.
// Memory: one arena, sized by the memory plan when the pass is made; forward and backward allocate nothing.
#pragma once

#include <algorithm>
#include <cmath>

#include "qlora/model/block.hpp"

namespace qlora {
inline namespace v0 {

/// One micro-batch as the network sees it; all of equal length T. Host memory.
struct PackedTokens {
  std::span<const std::int32_t> ids;
  std::span<const std::int32_t> positions;  ///< inside the document piece
  std::span<const std::int32_t> targets;    ///< the id that row t predicts, -1 for none
  std::span<const Segment> segments;        ///< document pieces in order, without gaps
};

template <Code K, class B>
class Pass {
 public:
  using S = typename B::Scalar;
  using D = Dims<K>;
  using Stream = Mat<S, D::dim>;

  /// Room for micro-batches of up to run.batch windows of run.seq tokens.
  Pass(B& backend, Weights<K, B>& weights, const Run& run)
      : b_(backend),
        w_(weights),
        run_(run),
        capacity_(static_cast<std::int64_t>(run.batch) * run.seq),
        arena_(bytes_needed(backend, weights, run)) {
    carve();
  }

  [[nodiscard]] const typename B::Arena& arena() const { return arena_; }
  [[nodiscard]] const Run& run() const { return run_; }

  /// Final hidden states for the tokens, after the last norm. Without dropout unless a site is given.
  Mat<const S, D::dim> forward(const PackedTokens& tokens, const DropoutSite& dropout = {}) {
    tokens_ = tokens;
    context_.tokens = static_cast<int>(tokens.ids.size());
    QLORA_EXPECTS(context_.tokens > 0 && context_.tokens <= capacity_, "a micro-batch of ", context_.tokens,
                  " tokens; there is room for ", capacity_);
    for (const Segment& piece : tokens.segments) {  // rotary tables and scores have room for run.seq positions
      QLORA_EXPECTS(piece.last - piece.first <= run_.seq, "a document piece of ", piece.last - piece.first,
                    " tokens; there is room for ", run_.seq);
    }
    context_.segments = tokens.segments;
    context_.positions = tokens.positions.data();
    context_.dropout = dropout;
    const int layers = w_.layers();
    b_.template embed<D::dim>(tokens.ids.data(), {w_.embedding(), K.shape.vocab}, stream(0));
    for (int layer = 0; layer < layers; ++layer) {
      Block<K, B>(b_, w_, context_, layer).forward(buffers(layer), stream(layer), delta());
      // the stream that enters the next block (or the final norm)
      add_delta(layer);
    }
    b_.rmsnorm(w_.values().norm_eps, stream(layers), {}, w_.final_norm(), Stream{}, hidden(), inv_final_);
    return hidden();
  }

  /// Residual stream that enters block `layer` (layers(): the final norm) of the last forward pass, (T,D).
  [[nodiscard]] Mat<const S, D::dim> residual(int layer) { return stream(layer); }

  /// Loss of each row of the last forward pass (0 where nothing is predicted), in backend memory.
  const S* losses() {
    b_.cross_entropy(Mat<const S, D::dim>(hidden()), w_.head(), K.shape.vocab, tokens_.targets.data(), S(0), loss_,
                     row_loss_, static_cast<S*>(nullptr), static_cast<S*>(nullptr));
    return row_loss_;
  }

  /// Losses as above; adds d(scale * sum of losses) to `gradients`, the array of all trained parameters.
  const S* backward(S scale, S* gradients) {
    const int layers = w_.layers();
    constexpr bool full = K.trainable == Trainable::all;
    S* head_gradient = full ? gradients + w_.layout().head() : nullptr;
    b_.cross_entropy(Mat<const S, D::dim>(hidden()), w_.head(), K.shape.vocab, tokens_.targets.data(), scale, loss_,
                     row_loss_, backward_.norm, head_gradient);
    const Stream gs(stream_gradient_, context_.tokens);
    b_.rmsnorm_backward(Mat<const S, D::dim>(backward_.norm, context_.tokens), stream(layers), inv_final_,
                        w_.final_norm(), false, gs, full ? gradients + w_.layout().final_norm() : nullptr);
    for (int layer = layers - 1; layer >= 0; --layer) {
      const Block<K, B> block(b_, w_, context_, layer);
      block.recompute(buffers(layer), policy(layer), stream(layer), delta());
      block.backward(buffers(layer), backward_, stream(layer), gs, gradients, full || layer > 0);
    }
    if constexpr (full) {
      b_.template embed_backward<D::dim>(tokens_.ids.data(), gs, {gradients, K.shape.vocab});
    }
    return row_loss_;
  }

  /// Logits (T,V) of the last forward pass, into memory of the caller's.
  void logits(S* out) { b_.project(Mat<const S, D::dim>(hidden()), w_.head(), K.shape.vocab, out); }

  [[nodiscard]] static Storage storage(int workers) {
    return {.activation = sizeof(S),
            .statistic = sizeof(S),
            .frozen = sizeof(S),
            .trained = sizeof(S),
            .copy = 0,
            .moment = sizeof(S),
            .indices = 1,  // of labelled rows; the others stay in the caller's host memory
            .workers = workers,
            .rounding_copy = B::rounds};
  }
  /// The memory plan of this backend for a run; the arenas are allocated from it.
  [[nodiscard]] static MemoryPlan plan(int layers, const Run& run, int workers) {
    Config config{.shape = K.shape, .lora = K.lora, .quant = K.quant, .trainable = K.trainable};
    config.shape.layers = layers;
    return memory_plan(config, run, storage(workers));
  }

 private:
  [[nodiscard]] static std::int64_t bytes_needed(const B& backend, const Weights<K, B>& weights, const Run& run) {
    const MemoryPlan p = plan(weights.layers(), run, backend.workers());
    const TrainedLayout& layout = weights.layout();
    return p[Purpose::activations] + p[Purpose::layer_scratch] + p[Purpose::backward_scratch] +
           p[Purpose::weight_scratch] + p[Purpose::input_scratch] + p[Purpose::attention_scratch] +
           p[Purpose::loss_scratch] +
           2 * arena_bytes(std::int64_t{run.seq} * (layout.shape.head_dim / 2) * static_cast<std::int64_t>(sizeof(S))) +
           arena_bytes(capacity(run) * 4);
  }
  [[nodiscard]] static std::int64_t capacity(const Run& run) { return static_cast<std::int64_t>(run.batch) * run.seq; }

  [[nodiscard]] Recompute policy(int layer) const {
    const int again = run_.recompute_layers < 0 ? w_.layers() : run_.recompute_layers;
    return layer < again ? run_.recompute : Recompute::none;
  }
  [[nodiscard]] Stream stream(int layer) const { return {streams_[static_cast<std::size_t>(layer)], context_.tokens}; }
  [[nodiscard]] Stream delta() const { return {delta_, context_.tokens}; }
  [[nodiscard]] Stream hidden() const { return {hidden_, context_.tokens}; }
  [[nodiscard]] const LayerBuffers<S>& buffers(int layer) const { return layers_[static_cast<std::size_t>(layer)]; }

  void add_delta(int layer) {
    b_.add(Mat<const S, D::dim>(buffers(layer)[Buffer::mid], context_.tokens), delta(), stream(layer + 1));
  }

  void carve() {
    const TrainedLayout& layout = w_.layout();
    const Shape& s = layout.shape;
    const Lora lora = layout.lora;
    const std::int64_t t = capacity_;
    const auto take = [&](std::int64_t count) { return arena_.template take<S>(count); };
    for (int i = 0; i <= s.layers; ++i) streams_.push_back(take(t * s.dim));
    hidden_ = take(t * s.dim);
    inv_final_ = take(t);
    layers_.resize(static_cast<std::size_t>(s.layers));
    for (const Buffer buffer : all_buffers) {
      const std::int64_t count = elements(s, lora, t, buffer);
      S* shared = nullptr;
      for (int layer = 0; layer < s.layers; ++layer) {
        const bool kept = is_kept(buffer, policy(layer));
        if (!kept && shared == nullptr) shared = take(count);
        layers_[static_cast<std::size_t>(layer)][buffer] = kept ? take(count) : shared;
      }
    }
    stream_gradient_ = take(t * s.dim);
    backward_.norm = take(t * s.dim);
    delta_ = take(t * s.dim);
    backward_.qkv = take(t * group_out(s, Group::qkv));
    backward_.o = take(t * s.heads * s.head_dim);
    backward_.gate_up = take(t * 2 * s.ffn);
    backward_.act = take(t * s.ffn);
    backward_.xa = take(t * widest_xa(lora));
    if (Weights<K, B>::quantized && !run_.keep_dequantized) context_.linear.weight = take(largest_matrix(s));
    if (B::rounds && !Weights<K, B>::full) context_.linear.adapter = take(largest_adapter(s, lora));
    if (run_.dropout && !Weights<K, B>::full) context_.linear.input = take(t * widest_in(s));
    context_.attention_per_worker =
        arena_bytes(std::int64_t{2} * attention_tile * run_.seq * static_cast<std::int64_t>(sizeof(S))) /
        static_cast<std::int64_t>(sizeof(S));
    context_.attention = take(context_.attention_per_worker * b_.workers());
    loss_.chunk = run_.loss_chunk;
    loss_.rows = take(std::int64_t{run_.loss_chunk} * s.dim);
    loss_.grads = take(std::int64_t{run_.loss_chunk} * s.dim);
    loss_.logits = take(std::int64_t{run_.loss_chunk} * s.vocab);
    row_loss_ = take(t);
    loss_.index = arena_.template take<std::int32_t>(t);
    S* cosine = take(std::int64_t{run_.seq} * (s.head_dim / 2));
    S* sine = take(std::int64_t{run_.seq} * (s.head_dim / 2));
    b_.rope_table(run_.seq, s.head_dim, static_cast<double>(w_.values().rope_theta), cosine, sine);
    context_.cosine = cosine;
    context_.sine = sine;
  }

  B& b_;
  Weights<K, B>& w_;
  Run run_;
  std::int64_t capacity_;
  typename B::Arena arena_;
  PassContext<S> context_;
  PackedTokens tokens_;
  std::vector<S*> streams_;
  std::vector<LayerBuffers<S>> layers_;
  BackwardScratch<S> backward_;
  LossScratch<S> loss_;
  S* hidden_ = nullptr;
  S* inv_final_ = nullptr;
  S* stream_gradient_ = nullptr;
  S* delta_ = nullptr;
  S* row_loss_ = nullptr;
};

}  // namespace v0
}  // namespace qlora
