// qlora/model/network.hpp — the whole network over one micro-batch: forward, loss, backward. Owns the activations.
// Memory: one arena, sized by the memory plan when the network is made; forward and backward allocate nothing.
#pragma once

#include <algorithm>
#include <cmath>

#include "qlora/model/block.hpp"
#include "qlora/model/context.hpp"

namespace qlora {
inline namespace v0 {

/// The forward and backward pass of a whole model for training. For one thread at a time, in a call of its context.
template <Code K, class B>
class Network {
 public:
  using Act = typename B::Act;                                 ///< what activations are stored in
  using Param = typename B::Param;                             ///< what is trained
  using C = Columns<K>;                                        ///< widths that view types have
  using Stream = typename B::template View<C::dim>;            ///< residual stream, (T,D)
  using ConstStream = typename B::template ConstView<C::dim>;  ///< residual stream to read

  /// Room for micro-batches of up to run.batch windows of run.seq tokens. The context outlives the network.
  Network(Context<K, B>& context, const Run& run)
      : context_(context),
        b_(context.backend()),
        w_(context.weights()),
        run_(run),
        capacity_(static_cast<std::int64_t>(run.batch) * run.seq),
        arena_(b_.arena(bytes_needed(b_, w_, run))) {
    carve();
  }

  /// The memory of activations and workspaces.
  [[nodiscard]] const typename B::Arena& arena() const { return arena_; }
  /// The micro-batches and the recomputation that it has room for.
  [[nodiscard]] const Run& run() const { return run_; }
  /// Number of decoder blocks.
  [[nodiscard]] int layers() const { return w_.layers(); }
  /// Workspace of products, which is free between passes.
  [[nodiscard]] const LinearScratch<Act>& scratch() const { return pass_.workspace.linear; }

  /// Final hidden states for the tokens, after the last norm. The batch's arrays are host memory that lives until the
  /// backward pass is over. Without dropout unless a site is given.
  ConstStream forward(const TokenBatch& batch, const DropoutSite& dropout = {}) {
    QLORA_EXPECTS(batch.tokens > 0 && batch.tokens <= capacity_, "a micro-batch of ", batch.tokens,
                  " tokens; there is room for ", capacity_);
    QLORA_EXPECTS(batch.longest <= run_.seq, "a document piece of ", batch.longest, " tokens; there is room for ",
                  run_.seq);  // rotary tables and scores have room for run.seq positions
    pass_.batch = b_.stage(batch);
    pass_.dropout = dropout;
    pass_.adapters = context_.applied();
    const int layers = w_.layers();
    b_.template embed<C::dim>(pass_.batch.ids, {w_.embedding(), vocab(), w_.dims().dim()}, stream(0));
    for (int layer = 0; layer < layers; ++layer) {
      Block<K, B, Reads::batch>(b_, w_, pass_, layer).forward(buffers(layer), stream(layer), stream(layer + 1));
    }
    b_.at(-1, Site::final_norm);
    b_.rmsnorm(w_.values().norm_eps, stream(layers), w_.final_norm(), hidden(), inv_final_);
    return hidden();
  }

  /// Residual stream that enters block `layer` (layers(): the final norm) of the last forward pass, (T,D).
  [[nodiscard]] ConstStream residual(int layer) { return stream(layer); }

  /// Loss of each row of the last forward pass (0 where nothing is predicted), in backend memory.
  const Param* losses() {
    b_.at(-1, Site::loss);
    b_.cross_entropy(pass_.batch, ConstStream(hidden()), w_.head(), vocab(), 0.0, pass_.workspace.loss, row_loss_,
                     static_cast<Act*>(nullptr), static_cast<Param*>(nullptr));
    return row_loss_;
  }

  /// Losses as above; adds d(scale * sum of losses) to `sum`, the array of all trained parameters. With `apart`, of
  /// layout().addend_size() numbers, this gradient is made there, from zero, and then added: a sum of gradients of
  /// whole micro-batches, the same wherever each of them was made. Without, ops add their parts to `sum` one by one,
  /// which is the same where `sum` is zero.
  const Param* backward(double scale, Param* sum, Param* apart = nullptr) {
    const int layers = w_.layers();
    constexpr bool full = K.trainable == Trainable::all;
    const TrainedLayout& layout = w_.layout();
    Param* const gradients = full && apart != nullptr ? apart : sum;
    if (full && apart != nullptr) b_.zero(apart, layout.total());
    Param* head_gradient = full ? gradients + layout.head() : nullptr;
    b_.at(-1, Site::loss);
    b_.cross_entropy(pass_.batch, ConstStream(hidden()), w_.head(), vocab(), scale, pass_.workspace.loss, row_loss_,
                     gradients_.input, head_gradient);
    const Stream gs = view(gradients_.stream);
    b_.at(-1, Site::final_norm_gradient);
    b_.rmsnorm_backward(view(gradients_.input), stream(layers), inv_final_, w_.final_norm(), false, gs,
                        full ? gradients + layout.final_norm() : nullptr);
    for (int layer = layers - 1; layer >= 0; --layer) {
      const Block<K, B, Reads::batch> block(b_, w_, pass_, layer);
      block.recompute(buffers(layer), policy(layer), stream(layer));
      Param* const whole = gradients + layout.layer_offset(layer);
      const bool adds = !full && apart != nullptr;
      if (adds) b_.zero(apart, layout.layer_size());
      block.backward(buffers(layer), gradients_, stream(layer), adds ? apart : whole, full || layer > 0);
      if (adds) b_.add(layout.layer_size(), apart, whole);
    }
    if constexpr (full) {
      b_.template embed_backward<C::dim>(pass_.batch.ids, gs, {gradients, vocab(), w_.dims().dim()});
      if (apart != nullptr) b_.add(layout.total(), apart, sum);
    }
    return row_loss_;
  }

  /// Logits (T,V) of the last forward pass, into memory of the caller's.
  void logits(Param* out) { b_.project(ConstStream(hidden()), w_.head(), vocab(), out); }

  /// The memory plan of this backend for a run; the arenas are allocated from it.
  [[nodiscard]] static MemoryPlan plan(const Weights<K, B>& weights, const Run& run, int workers) {
    return memory_plan(weights.dims().config(), run, storage_of<B>(workers));
  }

 private:
  [[nodiscard]] static std::int64_t bytes_needed(const B& backend, const Weights<K, B>& weights, const Run& run) {
    const MemoryPlan p = plan(weights, run, backend.workers());
    return p[Purpose::activations] + p[Purpose::layer_scratch] + p[Purpose::backward_scratch] +
           p[Purpose::weight_scratch] + p[Purpose::input_scratch] + p[Purpose::attention_scratch] +
           p[Purpose::loss_scratch] + 2 * rope_bytes(weights.layout().shape, run);
  }
  [[nodiscard]] static std::int64_t rope_bytes(const Shape& s, const Run& run) {
    return arena_bytes(std::int64_t{run.seq} * (s.head_dim / 2) * static_cast<std::int64_t>(sizeof(Param)));
  }

  [[nodiscard]] Recompute policy(int layer) const {
    const int again = run_.recompute_layers < 0 ? w_.layers() : run_.recompute_layers;
    return layer < again ? run_.recompute : Recompute::none;
  }
  [[nodiscard]] int vocab() const { return w_.dims().shape().vocab; }
  [[nodiscard]] Stream view(Act* data) const { return {data, pass_.batch.tokens, w_.dims().dim()}; }
  [[nodiscard]] Stream stream(int layer) const { return view(streams_[static_cast<std::size_t>(layer)]); }
  [[nodiscard]] Stream hidden() const { return view(hidden_); }
  [[nodiscard]] const LayerBuffers<Act, Param>& buffers(int layer) const {
    return layers_[static_cast<std::size_t>(layer)];
  }

  [[gnu::cold]] void carve() {
    const TrainedLayout& layout = w_.layout();
    const Shape& s = layout.shape;
    const Lora lora = layout.lora;
    const std::int64_t t = capacity_;
    const auto take = [&](std::int64_t count) { return arena_.template take<Act>(count); };
    const auto take_statistic = [&](std::int64_t count) { return arena_.template take<Param>(count); };
    for (int i = 0; i <= s.layers; ++i) streams_.push_back(take(t * s.dim));
    inv_final_ = take_statistic(t);
    layers_.resize(static_cast<std::size_t>(s.layers));
    for (const Buffer buffer : all_buffers) {
      const auto fresh = [&] {
        const std::int64_t count = elements(s, lora, t, buffer);
        return is_statistic(buffer) ? reinterpret_cast<std::byte*>(take_statistic(count))
                                    : reinterpret_cast<std::byte*>(take(count));
      };
      std::byte* shared = nullptr;
      for (int layer = 0; layer < s.layers; ++layer) {
        const bool kept = is_kept(buffer, policy(layer));
        if (!kept && shared == nullptr) shared = fresh();
        layers_[static_cast<std::size_t>(layer)].data[static_cast<std::size_t>(buffer)] = kept ? fresh() : shared;
      }
    }
    gradients_.stream = take(t * s.dim);
    gradients_.input = take(t * input_gradient_row(s, lora));
    hidden_ = gradients_.input + t * s.dim;  // used up before anything but the loss's gradient is written there
    const WorkspaceNeeds needs = workspace_needs(w_.dims().config(), run_, b_.workers());
    pass_.workspace = B::carve(needs, arena_.template take<std::byte>(B::workspace_bytes(needs).total()));
    row_loss_ = take_statistic(t);
    Param* cosine = take_statistic(std::int64_t{run_.seq} * (s.head_dim / 2));
    Param* sine = take_statistic(std::int64_t{run_.seq} * (s.head_dim / 2));
    w_.values().rope_table(b_, run_.seq, s.head_dim, cosine, sine);
    pass_.cosine = cosine;
    pass_.sine = sine;
  }

  Context<K, B>& context_;
  B& b_;
  const Weights<K, B>& w_;
  Run run_;
  std::int64_t capacity_;
  typename B::Arena arena_;
  Pass<B> pass_;
  std::vector<Act*> streams_;
  std::vector<LayerBuffers<Act, Param>> layers_;
  GradientBuffers<Act> gradients_;
  Act* hidden_ = nullptr;
  Param* inv_final_ = nullptr;
  Param* row_loss_ = nullptr;
};

}  // namespace v0
}  // namespace qlora
