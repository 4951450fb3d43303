// qlora/generate/decoder.hpp — runs new tokens of many sequences through the network over cached keys and values.
// Prefill and decoding are the same call: each sequence brings any number of new tokens and gets logits for its last, or
// for all of them where there is room for that.
// Memory: one arena for caches and activations, taken when the decoder is made.
#pragma once

#include "qlora/model/block.hpp"

namespace qlora {
inline namespace v0 {

template <Code K, class B>
class Decoder {
 public:
  using Act = typename B::Act;
  using Param = typename B::Param;
  using D = Dims<K>;
  static constexpr int norm_width = std::max(GroupDims<K, Group::qkv>::wide, GroupDims<K, Group::gate_up>::wide);
  template <int Cols>
  using View = typename B::template View<Cols>;
  template <int Cols>
  using ConstView = typename B::template ConstView<Cols>;

  /// New tokens for the sequence in `slot`.
  struct Addition {
    int slot = 0;
    std::span<const std::int32_t> ids;
  };

  Decoder(B& backend, const Weights<K, B>& weights, const DecodeRoom& room)
      : b_(backend), w_(weights), room_(room), arena_(backend.arena(bytes_needed(backend, weights, room))) {
    QLORA_EXPECTS(room.sequences > 0 && room.length > 0 && room.step_tokens >= room.sequences, "room for ",
                  room.sequences, " sequences of ", room.length, " tokens, ", room.step_tokens, " a step");
    const auto take = [&](std::int64_t count) { return arena_.template take<Act>(count); };
    const std::int64_t t = room.step_tokens;
    for (int layer = 0; layer < w_.layers(); ++layer) {
      caches_.push_back(take(std::int64_t{room.sequences} * room.length * D::kv_width));
    }
    x_ = take(t * D::dim);
    mid_ = take(t * D::dim);
    normed_ = take(t * norm_width);
    qkv_ = take(t * D::qkv_width);
    o_ = take(elements(K.shape, K.lora, t, Buffer::o));
    gate_up_ = take(t * 2 * D::ffn);
    act_ = take(elements(K.shape, K.lora, t, Buffer::act));
    last_ = take(std::int64_t{room.sequences} * D::dim);
    const WorkSizes sizes = work_sizes(K.shape, K.lora, B::widens, B::rounds, Weights<K, B>::quantized);
    scratch_.weight = take(sizes.weight);
    scratch_.adapter = take(sizes.adapter);
    attention_ = arena_.template take<std::byte>(attention_bytes());
    inv_ = arena_.template take<Param>(t);
    logits_ = arena_.template take<Param>(room.logit_rows() * D::vocab);
    cosine_ = arena_.template take<Param>(std::int64_t{room.length} * (K.shape.head_dim / 2));
    sine_ = arena_.template take<Param>(std::int64_t{room.length} * (K.shape.head_dim / 2));
    b_.rope_table(room.length, K.shape.head_dim, static_cast<double>(w_.values().rope_theta), cosine_, sine_);
    lengths_.resize(static_cast<std::size_t>(room.sequences), 0);
    host_logits_.resize(static_cast<std::size_t>(room.logit_rows() * D::vocab));
  }

  [[nodiscard]] const DecodeRoom& room() const { return room_; }
  [[nodiscard]] const typename B::Arena& arena() const { return arena_; }
  [[nodiscard]] int length(int slot) const { return lengths_[static_cast<std::size_t>(slot)]; }
  /// Forgets what a slot holds, or what it holds behind its first `length` tokens.
  void clear(int slot) { truncate(slot, 0); }
  void truncate(int slot, int length) {
    int& now = lengths_[static_cast<std::size_t>(slot)];
    QLORA_EXPECTS(length >= 0 && length <= now, "slot ", slot, " holds ", now, " tokens, not ", length);
    now = length;
  }

  /// Logits (additions, V) for the last new token of each addition, in host memory until the next call. The additions
  /// together have at most step_tokens tokens, and every slot at most one addition.
  std::span<const float> extend(std::span<const Addition> additions) {
    const View<D::dim> x = run_layers(additions);
    const View<D::dim> last(last_, static_cast<int>(additions.size()));
    // picks the last row of each sequence
    b_.template embed<D::dim>(b_.stage(std::span<const std::int32_t>(last_rows_)), {x_, x.rows}, last);
    return logits_of(last);
  }
  /// Logits (tokens, V) for every new token, those of the first addition first. Needs room.all_logits.
  std::span<const float> extend_all(std::span<const Addition> additions) {
    QLORA_EXPECTS(room_.all_logits, "the decoder has room for the logits of last tokens only");
    return logits_of(run_layers(additions));
  }

 private:
  /// The new tokens through all blocks; their rows of the stream.
  View<D::dim> run_layers(std::span<const Addition> additions) {
    place(additions);
    const int t = static_cast<int>(ids_.size());
    const View<D::dim> x(x_, t);
    const View<D::dim> mid(mid_, t);
    const View<D::qkv_width> qkv(qkv_, t);
    const View<2 * D::ffn> gate_up(gate_up_, t);
    const auto norm1 = input<Group::qkv>(normed_);
    const auto norm2 = input<Group::gate_up>(normed_);
    const auto o = input<Group::o>(o_);
    const auto act = input<Group::down>(act_);
    constexpr AttentionShape heads{K.shape.heads, K.shape.kv_heads, K.shape.head_dim};
    const float eps = w_.values().norm_eps;
    const std::int32_t* positions = b_.stage(std::span<const std::int32_t>(positions_));
    b_.template embed<D::dim>(b_.stage(std::span<const std::int32_t>(ids_)), {w_.embedding(), K.shape.vocab}, x);
    for (int layer = 0; layer < w_.layers(); ++layer) {
      point_at(layer);
      const std::span<const CachedSequence<Act>> sequences(sequences_);
      b_.rmsnorm(eps, x, w_.norm(layer, 0), norm1.template left<D::dim>(), inv_);
      run<Group::qkv>(layer, norm1, {}, qkv);
      b_.rope(heads, cosine_, sine_, positions, 1, qkv);
      b_.store_kv(heads, sequences, ConstView<D::qkv_width>(qkv));
      b_.attention_cached(heads, sequences, ConstView<D::qkv_width>(qkv), o.template left<D::heads_width>(), attention_,
                          attention_bytes());
      run<Group::o>(layer, o, x, mid);
      b_.rmsnorm(eps, mid, w_.norm(layer, 1), norm2.template left<D::dim>(), inv_);
      run<Group::gate_up>(layer, norm2, {}, gate_up);
      b_.template swiglu<D::ffn>(gate_up, act.template left<D::ffn>());
      run<Group::down>(layer, act, mid, x);
    }
    return x;
  }
  std::span<const float> logits_of(View<D::dim> x) {
    const View<D::dim> normed(normed_, x.rows);
    b_.rmsnorm(w_.values().norm_eps, x, w_.final_norm(), normed, inv_);
    b_.project(ConstView<D::dim>(normed), w_.head(), D::vocab, logits_);
    const auto count = static_cast<std::size_t>(x.rows) * static_cast<std::size_t>(D::vocab);
    b_.download(logits_, std::span(host_logits_).first(count));
    return std::span<const float>(host_logits_).first(count);
  }
  [[nodiscard]] static std::int64_t bytes_needed(const B& backend, const Weights<K, B>& weights,
                                                 const DecodeRoom& room) {
    Config config{.shape = K.shape, .lora = K.lora, .quant = K.quant, .trainable = K.trainable};
    config.shape.layers = weights.layers();
    return decode_bytes(config, room, storage_of<B>(backend.workers()));
  }
  [[nodiscard]] std::int64_t attention_bytes() const {
    return decode_attention_bytes(room_, storage_of<B>(b_.workers()));
  }

  void place(std::span<const Addition> additions) {
    ids_.clear();
    positions_.clear();
    last_rows_.clear();
    sequences_.clear();
    slots_.clear();
    for (const Addition& addition : additions) {
      QLORA_EXPECTS(addition.slot >= 0 && addition.slot < room_.sequences && !addition.ids.empty(), "slot ",
                    addition.slot, " of ", room_.sequences, ", ", addition.ids.size(), " ids");
      int& length = lengths_[static_cast<std::size_t>(addition.slot)];
      const int added = static_cast<int>(addition.ids.size());
      QLORA_EXPECTS(length + added <= room_.length, "a sequence of ", length + added, " tokens; there is room for ",
                    room_.length);
      sequences_.push_back(
          {.kv = nullptr, .length = length + added, .first = static_cast<int>(ids_.size()), .added = added});
      slots_.push_back(addition.slot);
      for (const std::int32_t id : addition.ids) {
        QLORA_EXPECTS(id >= 0 && id < K.shape.vocab, "token id ", id, " is outside 0 to ", K.shape.vocab - 1);
        ids_.push_back(id);
        positions_.push_back(length++);
      }
      last_rows_.push_back(static_cast<std::int32_t>(ids_.size()) - 1);
    }
    QLORA_EXPECTS(!ids_.empty() && static_cast<int>(ids_.size()) <= room_.step_tokens, ids_.size(),
                  " new tokens; there is room for ", room_.step_tokens);
  }
  void point_at(int layer) {
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      sequences_[i].kv =
          caches_[static_cast<std::size_t>(layer)] + std::int64_t{slots_[i]} * room_.length * D::kv_width;
    }
  }
  /// [X | XA] of a group.
  template <Group G>
  [[nodiscard]] View<GroupDims<K, G>::wide> input(Act* data) const {
    return {data, static_cast<int>(ids_.size())};
  }
  template <Group G>
  void run(int layer, View<GroupDims<K, G>::wide> x, ConstView<GroupDims<K, G>::out> residual,
           View<GroupDims<K, G>::out> y) {
    w_.template linear<G>(layer).forward(b_, scratch_, {}, x, residual, y);
  }

  B& b_;
  const Weights<K, B>& w_;
  DecodeRoom room_;
  typename B::Arena arena_;
  std::vector<Act*> caches_;  // by layer: (sequences, length, 2KE)
  Act *x_, *mid_, *normed_, *qkv_, *o_, *gate_up_, *act_, *last_;
  Param *inv_, *logits_, *cosine_, *sine_;
  std::byte* attention_;
  LinearScratch<Act> scratch_;
  std::vector<int> lengths_;
  std::vector<std::int32_t> ids_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> last_rows_;
  std::vector<CachedSequence<Act>> sequences_;
  std::vector<int> slots_;
  std::vector<float> host_logits_;
};

}  // namespace v0
}  // namespace qlora
