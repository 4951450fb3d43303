// qlora/generate/decoder.hpp — runs new tokens of many sequences through the network over cached keys and values.
// Prefill and decoding are the same call: each sequence brings any number of new tokens and gets logits for its last.
// Memory: one arena for caches and activations, taken when the decoder is made.
#pragma once

#include "qlora/model/block.hpp"

namespace qlora {
inline namespace v0 {

/// How much can be decoded at once.
struct DecodeRoom {
  int sequences = 1;      ///< that grow side by side
  int length = 2048;      ///< tokens in one sequence, prompt included
  int step_tokens = 512;  ///< new tokens of all sequences in one call; longer prompts go in pieces
};

template <Code K, class B>
class Decoder {
 public:
  using S = typename B::Scalar;
  using D = Dims<K>;

  /// New tokens for the sequence in `slot`.
  struct Addition {
    int slot = 0;
    std::span<const std::int32_t> ids;
  };

  Decoder(B& backend, const Weights<K, B>& weights, const DecodeRoom& room)
      : b_(backend), w_(weights), room_(room), arena_(bytes_needed(backend, weights, room)) {
    QLORA_EXPECTS(room.sequences > 0 && room.length > 0 && room.step_tokens >= room.sequences, "room for ",
                  room.sequences, " sequences of ", room.length, " tokens, ", room.step_tokens, " a step");
    const auto take = [&](std::int64_t count) { return arena_.template take<S>(count); };
    const std::int64_t t = room.step_tokens;
    for (int layer = 0; layer < w_.layers(); ++layer) {
      caches_.push_back(take(std::int64_t{room.sequences} * room.length * D::kv_width));
    }
    x_ = take(t * D::dim);
    mid_ = take(t * D::dim);
    normed_ = take(t * D::dim);
    delta_ = take(t * D::dim);
    qkv_ = take(t * D::qkv_width);
    o_ = take(t * D::heads_width);
    gate_up_ = take(t * 2 * D::ffn);
    act_ = take(t * D::ffn);
    inv_ = take(t);
    xa_ = take(t * widest_xa(K.lora));
    last_ = take(std::int64_t{room.sequences} * D::dim);
    logits_ = take(std::int64_t{room.sequences} * D::vocab);
    scratch_.weight = take(largest_matrix(K.shape));
    scratch_.adapter = take(B::rounds ? largest_adapter(K.shape, K.lora) : 0);
    attention_ = take(attention_per_worker() * b_.workers());
    cosine_ = take(std::int64_t{room.length} * (K.shape.head_dim / 2));
    sine_ = take(std::int64_t{room.length} * (K.shape.head_dim / 2));
    b_.rope_table(room.length, K.shape.head_dim, static_cast<double>(w_.values().rope_theta), cosine_, sine_);
    lengths_.resize(static_cast<std::size_t>(room.sequences), 0);
    host_logits_.resize(static_cast<std::size_t>(room.sequences) * static_cast<std::size_t>(D::vocab));
  }

  [[nodiscard]] const DecodeRoom& room() const { return room_; }
  [[nodiscard]] int length(int slot) const { return lengths_[static_cast<std::size_t>(slot)]; }
  /// Forgets what a slot holds.
  void clear(int slot) { lengths_[static_cast<std::size_t>(slot)] = 0; }

  /// Logits (additions, V) for the last new token of each addition, in host memory until the next call. The additions
  /// together have at most step_tokens tokens, and every slot at most one addition.
  std::span<const float> extend(std::span<const Addition> additions) {
    place(additions);
    const int t = static_cast<int>(ids_.size());
    const auto rows = [t]<int Cols>(std::integral_constant<int, Cols>, S* data) { return Mat<S, Cols>(data, t); };
    using Dim = std::integral_constant<int, D::dim>;
    const Mat<S, D::dim> x = rows(Dim{}, x_);
    const Mat<S, D::dim> mid = rows(Dim{}, mid_);
    const Mat<S, D::dim> normed = rows(Dim{}, normed_);
    const Mat<S, D::dim> delta = rows(Dim{}, delta_);
    const Mat<S, D::qkv_width> qkv(qkv_, t);
    const Mat<S, D::heads_width> o(o_, t);
    const Mat<S, 2 * D::ffn> gate_up(gate_up_, t);
    const Mat<S, D::ffn> act(act_, t);
    constexpr AttentionShape heads{K.shape.heads, K.shape.kv_heads, K.shape.head_dim};
    const float eps = w_.values().norm_eps;
    b_.template embed<D::dim>(ids_.data(), {w_.embedding(), K.shape.vocab}, x);
    for (int layer = 0; layer < w_.layers(); ++layer) {
      point_at(layer);
      const std::span<const CachedSequence<S>> sequences(sequences_);
      b_.rmsnorm(eps, x, {}, w_.norm(layer, 0), Mat<S, D::dim>{}, normed, inv_);
      run<Group::qkv>(layer, Mat<const S, D::dim>(normed), qkv);
      b_.rope(heads, cosine_, sine_, positions_.data(), 1, qkv);
      b_.store_kv(heads, sequences, Mat<const S, D::qkv_width>(qkv));
      b_.attention_cached(heads, sequences, Mat<const S, D::qkv_width>(qkv), o, attention_, attention_per_worker());
      run<Group::o>(layer, Mat<const S, D::heads_width>(o), delta);
      b_.rmsnorm(eps, x, delta, w_.norm(layer, 1), mid, normed, inv_);
      run<Group::gate_up>(layer, Mat<const S, D::dim>(normed), gate_up);
      b_.template swiglu<D::ffn>(gate_up, act);
      run<Group::down>(layer, Mat<const S, D::ffn>(act), delta);
      b_.add(Mat<const S, D::dim>(mid), delta, x);
    }
    const Mat<S, D::dim> last(last_, static_cast<int>(additions.size()));
    b_.template embed<D::dim>(last_rows_.data(), {x_, t}, last);  // picks the last row of each sequence
    b_.rmsnorm(eps, last, {}, w_.final_norm(), Mat<S, D::dim>{}, {normed_, last.rows}, inv_);
    b_.project(Mat<const S, D::dim>(normed_, last.rows), w_.head(), D::vocab, logits_);
    const auto count = additions.size() * static_cast<std::size_t>(D::vocab);
    b_.download(logits_, std::span(host_logits_).first(count));
    return std::span<const float>(host_logits_).first(count);
  }

 private:
  [[nodiscard]] std::int64_t attention_per_worker() const { return std::int64_t{attention_tile} * room_.length; }

  [[nodiscard]] static std::int64_t bytes_needed(const B& backend, const Weights<K, B>& weights,
                                                 const DecodeRoom& room) {
    const auto bytes = [](std::int64_t count) { return arena_bytes(count * static_cast<std::int64_t>(sizeof(S))); };
    const std::int64_t t = room.step_tokens;
    return weights.layers() * bytes(std::int64_t{room.sequences} * room.length * D::kv_width) + 4 * bytes(t * D::dim) +
           bytes(t * D::qkv_width) + bytes(t * D::heads_width) + bytes(t * 2 * D::ffn) + bytes(t * D::ffn) + bytes(t) +
           bytes(t * widest_xa(K.lora)) + bytes(std::int64_t{room.sequences} * D::dim) +
           bytes(std::int64_t{room.sequences} * D::vocab) + bytes(largest_matrix(K.shape)) +
           bytes(B::rounds ? largest_adapter(K.shape, K.lora) : 0) +
           bytes(std::int64_t{attention_tile} * room.length * backend.workers()) +
           2 * bytes(std::int64_t{room.length} * (K.shape.head_dim / 2));
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
  template <Group G, int In, int Out>
  void run(int layer, Mat<const S, In> x, Mat<S, Out> y) {
    w_.template linear<G>(layer).forward(b_, scratch_, {}, x, xa_, y);
  }

  B& b_;
  const Weights<K, B>& w_;
  DecodeRoom room_;
  typename B::Arena arena_;
  std::vector<S*> caches_;  // by layer: (sequences, length, 2KE)
  S *x_, *mid_, *normed_, *delta_, *qkv_, *o_, *gate_up_, *act_, *inv_, *xa_, *last_, *logits_, *attention_, *cosine_,
      *sine_;
  LinearScratch<S> scratch_;
  std::vector<int> lengths_;
  std::vector<std::int32_t> ids_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> last_rows_;
  std::vector<CachedSequence<S>> sequences_;
  std::vector<int> slots_;
  std::vector<float> host_logits_;
};

}  // namespace v0
}  // namespace qlora
