// qlora/generate/decoder.hpp — runs new tokens of many sequences through the network over cached keys and values.
// Prefill and decoding are the same call: each sequence brings any number of new tokens and gets logits for its last,
// or for all of them where there is room for that.
// Memory: one arena for caches and activations, taken when the decoder is made.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "qlora/model/block.hpp"
#include "qlora/model/context.hpp"

namespace qlora {
inline namespace v0 {

/// Key and value caches for several sequences, and the forward pass of their new tokens. Used by one thread at a time,
/// within a call of its context.
template <Code K, class B>
class Decoder {
 public:
  using Act = typename B::Act;                                 ///< what activations and caches are stored in
  using Param = typename B::Param;                             ///< what logits are in
  using C = Columns<K>;                                        ///< widths that view types have
  using Stream = typename B::template View<C::dim>;            ///< residual stream, (T,D)
  using ConstStream = typename B::template ConstView<C::dim>;  ///< residual stream to read

  /// New tokens for the sequence in `slot`.
  struct Addition {
    int slot = 0;                       ///< from 0 to limits().sequences - 1
    std::span<const std::int32_t> ids;  ///< at least one; each below vocab()
    /// null in all additions of a call: what the context applies; else what is applied to this sequence, and of
    /// sequences with adapters at most most_row_adapters runs of neighbours may differ
    const AppliedAdapters<B>* adapters = nullptr;
  };

  /// Takes all its memory. The context outlives the decoder. Throws Error (resource) where there is too little.
  Decoder(Context<K, B>& context, const DecodeLimits& limits)
      : context_(context),
        b_(context.backend()),
        w_(context.weights()),
        limits_(checked(limits)),
        arena_(b_.arena(bytes_needed(b_, w_, limits))) {
    const auto take = [&](std::int64_t count) { return arena_.template take<Act>(count); };
    const Shape& s = w_.dims().shape();
    const Lora& lora = w_.dims().lora();
    const std::int64_t t = limits.step_tokens;
    const std::int64_t kv = w_.dims().kv();
    for (int layer = 0; layer < w_.layers(); ++layer) {
      caches_.push_back(take(std::int64_t{limits.sequences} * limits.length * kv));
    }
    x_ = take(t * s.dim);
    normed_ = take(std::max(elements(s, lora, t, Buffer::norm1), elements(s, lora, t, Buffer::norm2)));
    set(Buffer::norm1, normed_);
    set(Buffer::norm2, normed_);
    set(Buffer::mid, take(t * s.dim));
    set(Buffer::qkv, take(t * group_out(s, Group::qkv)));
    set(Buffer::o, take(elements(s, lora, t, Buffer::o)));
    set(Buffer::gate_up, take(t * 2 * s.ffn));
    set(Buffer::act, take(elements(s, lora, t, Buffer::act)));
    last_ = take(std::int64_t{limits.sequences} * s.dim);
    const WorkspaceNeeds needs = workspace_needs(w_.dims().config(), limits_, b_.workers());
    pass_.workspace = B::carve(needs, arena_.template take<std::byte>(B::workspace_bytes(needs).total()));
    inv_ = arena_.template take<Param>(t);
    set(Buffer::inv1, inv_);
    set(Buffer::inv2, inv_);
    logits_ = arena_.template take<Param>(limits.logit_rows() * s.vocab);
    picked_ = arena_.template take<std::int32_t>(limits.sequences);
    Param* cosine = arena_.template take<Param>(std::int64_t{limits.length} * (s.head_dim / 2));
    Param* sine = arena_.template take<Param>(std::int64_t{limits.length} * (s.head_dim / 2));
    w_.values().rope_table(b_, limits.length, s.head_dim, cosine, sine);
    pass_.cosine = cosine;
    pass_.sine = sine;
    lengths_.resize(static_cast<std::size_t>(limits.sequences), 0);
    host_logits_.resize(static_cast<std::size_t>(limits.logit_rows() * s.vocab));
    host_picked_.resize(static_cast<std::size_t>(limits.sequences));
    // repeated steps read these arrays where they are
    ids_.reserve(static_cast<std::size_t>(t));
    positions_.reserve(static_cast<std::size_t>(t));
    draws_.reserve(static_cast<std::size_t>(limits.sequences));
    sequences_.resize(static_cast<std::size_t>(w_.layers()) * static_cast<std::size_t>(limits.sequences));
  }

  /// Bytes of the keys and values of one sequence of `length` tokens.
  [[nodiscard]] static std::int64_t cache_bytes(const Shape& shape, int length) {
    return std::int64_t{2} * shape.kv_heads * shape.head_dim * shape.layers * length *
           static_cast<std::int64_t>(sizeof(Act));
  }
  /// What there is room for.
  [[nodiscard]] const DecodeLimits& limits() const { return limits_; }
  /// V, columns of the logits.
  [[nodiscard]] int vocab() const { return w_.dims().shape().vocab; }
  /// The memory of caches, activations and workspaces.
  [[nodiscard]] const typename B::Arena& arena() const { return arena_; }
  /// Tokens that the slot holds.
  [[nodiscard]] int length(int slot) const { return lengths_[static_cast<std::size_t>(slot)]; }
  /// Forgets what a slot holds, or what it holds behind its first `length` tokens.
  void clear(int slot) { truncate(slot, 0); }
  /// Forgets what a slot holds behind its first `length` tokens, which must be there.
  void truncate(int slot, int length) {
    int& now = lengths_[static_cast<std::size_t>(slot)];
    QLORA_EXPECTS(length >= 0 && length <= now, "slot ", slot, " holds ", now, " tokens, not ", length);
    now = length;
  }

  /// Logits (additions, V) for the last new token of each addition, in host memory until the next call. The additions
  /// together have at most step_tokens tokens, and every slot at most one addition. With limits.one_order the bits of
  /// an addition do not depend on the others if all have one token or none has.
  std::span<const float> extend(std::span<const Addition> additions) {
    step(additions, 0);
    return read_logits(static_cast<int>(additions.size()));
  }
  /// The likeliest next id after each addition, the lowest among equals, of the first `among` ids: what is the largest
  /// in extend's logits. The backend picks them, so that the logits stay there. Valid until the next call.
  std::span<const std::int32_t> extend_greedy(std::span<const Addition> additions, int among) {
    QLORA_EXPECTS(among > 0 && among <= vocab(), among, " of ", vocab(), " ids");
    step(additions, among);
    const auto picked = std::span(host_picked_).first(additions.size());
    b_.download(picked_, picked);
    return picked;
  }
  /// The next id after each addition, drawn as how (additions) says. Valid until the next call.
  std::span<const std::int32_t> extend_drawn(std::span<const Addition> additions, std::span<const DrawRow> how) {
    QLORA_EXPECTS(how.size() == additions.size(), additions.size(), " additions, ", how.size(), " ids to draw");
    draws_.clear();
    for (const DrawRow& row : how) draws_.push_back(row);
    step(additions, draws);
    const auto picked = std::span(host_picked_).first(additions.size());
    b_.download(picked_, picked);
    return picked;
  }
  /// Logits (additions, V) behind what extend_greedy or extend_drawn has just picked, in host memory until the next
  /// call.
  std::span<const float> logits_of_picked() { return read_logits(static_cast<int>(placed_)); }
  /// Logits (tokens, V) for every new token, those of the first addition first. Needs limits.all_logits.
  std::span<const float> extend_all(std::span<const Addition> additions) {
    QLORA_EXPECTS(limits_.all_logits, "the decoder has room for the logits of last tokens only");
    place(additions);
    const Ordered ordered(b_, order_of(additions));
    const Stream x = run_layers();
    project(x);
    return read_logits(x.rows);
  }

 private:
  /// Before anything is sized from them.
  [[nodiscard]] static const DecodeLimits& checked(const DecodeLimits& limits) {
    if (limits.one_order && limits.step_tokens < 3) {
      throw Error(concat("steps of ", limits.step_tokens, " tokens; one order of sums needs 3 tokens or more"),
                  ErrorKind::usage);
    }
    if (limits.sequences > 0 && limits.length > 0 && limits.step_tokens >= limits.sequences) return limits;
    throw Error(concat("room for ", limits.sequences, " sequences of ", limits.length, " tokens, ", limits.step_tokens,
                       " tokens a step; both must be 1 or more, and a step has a token for each sequence"),
                ErrorKind::usage);
  }
  /// A template, as stage(), so that spans are made where a decoder is compiled and not wherever this is included:
  /// making a first span of a type takes g++ longer than a page of other code.
  template <class T>
  [[nodiscard]] static std::span<const T> view(const std::vector<T>& values) {
    return values;
  }
  /// What the backend reads in place of these values of the host.
  template <class T>
  [[nodiscard]] auto stage(const std::vector<T>& values) {
    return b_.stage(view(values));
  }
  void set(Buffer buffer, auto* data) {
    buffers_.data[static_cast<std::size_t>(buffer)] = reinterpret_cast<std::byte*>(data);
  }

  /// The order of the rows of a call; after it another decoder may use the backend.
  class Ordered {
   public:
    Ordered(B& backend, RowOrder order) : backend_(backend) { backend_.order(order); }
    Ordered(const Ordered&) = delete;
    Ordered& operator=(const Ordered&) = delete;
    ~Ordered() { backend_.order(RowOrder::any); }

   private:
    B& backend_;
  };
  [[nodiscard]] RowOrder order_of(std::span<const Addition> additions) const {
    if (!limits_.one_order) return RowOrder::any;
    return ids_.size() == additions.size() ? RowOrder::newest : RowOrder::prompt;
  }

  static constexpr int draws = -1;  ///< in the place of a number of ids
  /// Logits of the last new tokens, in backend memory; the likeliest of the first `among` ids too, unless it is 0, or
  /// ids as draws_ says.
  void step(std::span<const Addition> additions, int among) {
    place(additions);
    const Ordered ordered(b_, order_of(additions));
    const auto rows = static_cast<int>(additions.size());
    const auto finish = [&](Stream last) {
      project(last);
      if (among > 0) b_.pick(rows, vocab(), among, logits_, picked_);
      if (among == draws) b_.draw(rows, vocab(), logits_, stage(draws_), picked_);
    };
    if (ids_.size() == additions.size()) {
      return b_.repeat(recordings_, repetition(rows, among), pass_.workspace.staged, [&] { finish(run_layers()); });
    }
    const Stream x = run_layers();
    const Stream last(last_, rows, w_.dims().dim());
    // picks the last row of each sequence
    b_.template embed<C::dim>(stage(last_rows_), x, last);
    finish(last);
  }
  /// The placed tokens through all blocks; their rows of the stream.
  Stream run_layers() {
    const Stream x(x_, static_cast<int>(ids_.size()), w_.dims().dim());
    pass_.batch.tokens = x.rows;
    pass_.batch.positions = stage(positions_);
    pass_.adapters = mixes_ ? AppliedAdapters<B>{} : context_.applied();
    pass_.mixed = mixed_;
    b_.template embed<C::dim>(stage(ids_), {w_.embedding(), vocab(), x.width}, x);
    for (int layer = 0; layer < w_.layers(); ++layer) {
      pass_.cached = sequences_of(layer);
      Block<K, B, Reads::cache>(b_, w_, pass_, layer).forward(buffers_, x, x);
    }
    return x;
  }
  void project(Stream x) {
    const Stream normed(normed_, x.rows, x.width);
    b_.rmsnorm(w_.values().norm_eps, x, w_.final_norm(), normed, inv_);
    b_.project(ConstStream(normed), w_.head(), vocab(), logits_);
  }
  std::span<const float> read_logits(int rows) {
    const auto count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(vocab());
    b_.download(logits_, std::span(host_logits_).first(count));
    return std::span<const float>(host_logits_).first(count);
  }
  [[nodiscard]] static std::int64_t bytes_needed(const B& backend, const Weights<K, B>& weights,
                                                 const DecodeLimits& limits) {
    return decode_bytes(weights.dims().config(), limits, storage_of<B>(backend.workers()));
  }

  void place(std::span<const Addition> additions) {
    ids_.clear();
    positions_.clear();
    last_rows_.clear();
    placed_ = 0;
    longest_ = 0;
    mixed_.clear();
    mixes_ = additions.front().adapters != nullptr;
    for (const Addition& addition : additions) {
      QLORA_EXPECTS((addition.adapters != nullptr) == mixes_,
                    "adapters are stated for all additions of a call or none");
      place_adapters(addition);
      QLORA_EXPECTS(addition.slot >= 0 && addition.slot < limits_.sequences && !addition.ids.empty(), "slot ",
                    addition.slot, " of ", limits_.sequences, ", ", addition.ids.size(), " ids");
      int& length = lengths_[static_cast<std::size_t>(addition.slot)];
      const int added = static_cast<int>(addition.ids.size());
      QLORA_EXPECTS(length + added <= limits_.length, "a sequence of ", length + added, " tokens; there is room for ",
                    limits_.length);
      QLORA_EXPECTS(static_cast<std::int64_t>(ids_.size()) + added <= limits_.step_tokens,
                    ids_.size() + addition.ids.size(), " new tokens; there is room for ", limits_.step_tokens);
      const std::int64_t start = std::int64_t{addition.slot} * limits_.length * w_.dims().kv();
      for (int layer = 0; layer < w_.layers(); ++layer) {
        sequences_[at(layer) + placed_] = {.kv = caches_[static_cast<std::size_t>(layer)] + start,
                                           .length = length + added,
                                           .first = static_cast<int>(ids_.size()),
                                           .added = added};
      }
      ++placed_;
      longest_ = std::max(longest_, length + added);
      for (const std::int32_t id : addition.ids) {
        QLORA_EXPECTS(id >= 0 && id < vocab(), "token id ", id, " is outside 0 to ", vocab() - 1);
        ids_.push_back(id);
        positions_.push_back(length++);
      }
      last_rows_.push_back(static_cast<std::int32_t>(ids_.size()) - 1);
    }
    QLORA_EXPECTS(!ids_.empty(), "no new tokens");
  }
  /// The rows of an addition, which are next, into mixed_.
  void place_adapters(const Addition& addition) {
    if (!mixes_ || addition.adapters->set == nullptr) return;
    const AppliedAdapters<B>& adapters = *addition.adapters;
    const auto first = static_cast<int>(ids_.size());
    const auto count = static_cast<int>(addition.ids.size());
    if (!mixed_.empty()) {
      AdaptedRows<B>& before = mixed_.back();
      if (before.first + before.count == first && before.adapters.set == adapters.set &&
          before.adapters.scale == adapters.scale) {
        before.count += count;
        return;
      }
    }
    QLORA_EXPECTS(mixed_.size() < std::size_t{most_row_adapters}, "more than ", most_row_adapters,
                  " runs of sequences with adapters in a call");
    mixed_.push_back({first, count, adapters});
  }
  [[nodiscard]] Repetition repetition(int rows, int among) {
    Repetition what{.tokens = rows, .longest = longest_, .among = among};
    scales_.clear();
    ranges_.clear();
    const auto add_scales = [&](const AppliedAdapters<B>& adapters) {
      adapters.set->for_each(
          [&](int layer, Proj proj) { scales_.push_back(adapters.set->state(layer, proj).scale * adapters.scale); });
    };
    if (!mixes_) {
      const AppliedAdapters<B> adapters = context_.applied();
      if (adapters.set != nullptr) {
        add_scales(adapters);
        what.adapters = adapters.set->values();
      }
    }
    for (const AdaptedRows<B>& range : mixed_) {
      add_scales(range.adapters);
      ranges_.push_back({range.first, range.count, range.adapters.set->values()});
    }
    what.ranges = view(ranges_);
    what.scales = view(scales_);
    return what;
  }
  [[nodiscard]] std::size_t at(int layer) const {
    return static_cast<std::size_t>(layer) * static_cast<std::size_t>(limits_.sequences);
  }
  [[nodiscard]] std::span<const CachedSequence<Act>> sequences_of(int layer) const {
    return std::span(sequences_).subspan(at(layer), placed_);
  }

  Context<K, B>& context_;
  B& b_;
  const Weights<K, B>& w_;
  DecodeLimits limits_;
  typename B::Arena arena_;
  std::vector<Act*> caches_;  // by layer: (sequences, length, 2KE)
  Act *x_, *normed_, *last_;
  Param *inv_, *logits_;
  LayerBuffers<Act, Param> buffers_;
  Pass<B> pass_;
  std::vector<int> lengths_;
  std::vector<std::int32_t> ids_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> last_rows_;
  std::vector<DrawRow> draws_;
  std::vector<CachedSequence<Act>> sequences_;  // by layer: (sequences)
  std::size_t placed_ = 0;                      // sequences of this call
  int longest_ = 0;                             // of them
  bool mixes_ = false;                          // each sequence of this call has adapters of its own
  std::vector<AdaptedRows<B>> mixed_;           // those that have any
  std::vector<float> scales_;                   // of the adapters of this call
  std::vector<Repetition::Range> ranges_;       // of mixed_
  std::int32_t* picked_ = nullptr;              // (sequences)
  std::vector<float> host_logits_;
  std::vector<std::int32_t> host_picked_;
  typename B::Recordings recordings_;
};

/// The decoder of a generator or a scorer: with the room that its user states, taken at once, or with as much as its
/// calls need, made anew when one needs more. Used by one thread at a time, within a call of its context.
template <Code K, class B>
class DecoderRoom {
 public:
  /// With the stated room, taken now. The context outlives this.
  DecoderRoom(Context<K, B>& context, const DecodeLimits& stated) : context_(context), stated_(true) {
    decoder_.emplace(context, stated);
  }
  /// With as much as calls need.
  explicit DecoderRoom(Context<K, B>& context) : context_(context), stated_(false) {}

  /// A decoder for `count` sequences of up to `length` tokens, `tokens` of them new, at least `step` in one call.
  /// Without stated room as many run side by side as most_sequences and most_cached_tokens allow.
  [[nodiscard]] Decoder<K, B>& of(std::size_t count, std::int64_t length, std::int64_t tokens, std::int64_t step,
                                  bool all_logits) {
    if (stated_) return *decoder_;
    constexpr std::int64_t most = std::numeric_limits<int>::max();
    if (length > most || step > most) {
      throw Error(concat("a sequence of ", length, " tokens; a decoder holds at most ", most), ErrorKind::usage);
    }
    const std::int64_t side_by_side = std::clamp<std::int64_t>(
        std::min(static_cast<std::int64_t>(count), most_cached_tokens / std::max<std::int64_t>(length, 1)), 1,
        most_sequences);
    DecodeLimits need{
        .sequences = static_cast<int>(side_by_side),
        .length = static_cast<int>(std::max<std::int64_t>(length, 1)),
        .step_tokens = static_cast<int>(std::max({std::min(tokens, most_step_tokens), step, side_by_side})),
        .all_logits = all_logits};
    if (decoder_ && holds(decoder_->limits(), need)) return *decoder_;
    ++made_;
    decoder_.reset();  // first, so that both need not fit
    return decoder_.emplace(context_, need);
  }

  /// Bytes of backend memory that the decoder takes now.
  [[nodiscard]] std::int64_t bytes_used() const { return decoder_ ? decoder_->arena().used() : 0; }

  /// Decoders made so far: caches are lost when the number changes.
  [[nodiscard]] int made() const { return made_; }

  static constexpr std::int64_t most_sequences = 32;            ///< side by side
  static constexpr std::int64_t most_cached_tokens = 4 * 2048;  ///< 8 GB at 7B in float, more only for one sequence
  static constexpr std::int64_t most_step_tokens = 512;         ///< unless one candidate has more

 private:
  [[nodiscard]] static bool holds(const DecodeLimits& room, const DecodeLimits& need) {
    return room.sequences >= need.sequences && room.length >= need.length && room.step_tokens >= need.step_tokens;
  }

  Context<K, B>& context_;
  bool stated_;
  int made_ = 0;
  std::optional<Decoder<K, B>> decoder_;
};

}  // namespace v0
}  // namespace qlora
