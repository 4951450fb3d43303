// tests/ops/attention.hpp — cases of attention inside documents, of its backward pass, and over cached keys and values.
#pragma once

#include <numeric>

#include "harness.hpp"

namespace ops {

/// Document pieces of these lengths, one behind the other, and the arrays that tell of them.
struct Pieces {
  explicit Pieces(const std::vector<int>& lengths) {
    for (const int length : lengths) {
      const int first = static_cast<int>(positions.size());
      segments.push_back({first, first + length});
      for (int i = 0; i < length; ++i) {
        positions.push_back(i);
        ends.push_back(first + length);
      }
      longest = std::max(longest, length);
    }
  }
  [[nodiscard]] qlora::TokenBatch batch() const {
    return {.tokens = static_cast<int>(positions.size()),
            .positions = positions.data(),
            .ends = ends.data(),
            .longest = longest,
            .segments = segments};
  }
  std::vector<std::int32_t> positions, ends;
  std::vector<qlora::Segment> segments;
  int longest = 0;
};

/// Bytes of scratch as the memory plan counts them.
template <class B>
[[nodiscard]] std::int64_t attention_bytes(const B& backend, const qlora::AttentionShape& heads, int tokens,
                                           int longest) {
  return B::workspace_bytes({.heads = heads.heads, .tokens = tokens, .longest = longest, .workers = backend.workers()})
      .attention;
}

/// gQ and gK come from differences that cancel (to nothing where a document has one token), each term of which is a sum
/// over the head dimension, rounded in an order of its own.
inline constexpr double difference_slack = 1e-4;

template <class B>
void attention(Harness<B>& harness, const qlora::AttentionShape& heads, const std::vector<int>& lengths) {
  using Act = typename B::Act;
  using Param = typename B::Param;
  using View = typename B::template View<8>;  // backends go on with run-time sizes: a view of width 8 stands for all
  using ConstView = typename B::template ConstView<8>;
  const Pieces pieces(lengths);
  const qlora::TokenBatch batch = harness.b.stage(pieces.batch());
  const int tokens = batch.tokens;
  const int width = heads.width();
  const int out = heads.heads * heads.head_dim;
  const std::int64_t bytes = attention_bytes(harness.b, heads, tokens, pieces.longest);
  auto* scratch = harness.template raw<std::byte>(bytes);

  const auto qkv = harness.template drawn<Act>("qkv", tokens, width, width, 1.5F, 81);
  const auto o = harness.template poisoned<Act>("o", tokens, out, out + 16);
  const auto lse = harness.template poisoned<Param>("lse", heads.heads, tokens, tokens);
  harness.b.attention(heads, batch, ConstView(qkv.data, tokens), View(o.data, tokens, o.stride), lse.data, scratch,
                      bytes);
  harness.collect(o);
  harness.collect(lse, false, product_slack);

  const auto go = harness.template drawn<Act>("go", tokens, out, out + 8, 1.0F, 82);
  const auto gqkv = harness.template poisoned<Act>("gqkv", tokens, width, width);
  harness.b.attention_backward(heads, batch, ConstView(go.data, tokens, go.stride), ConstView(qkv.data, tokens),
                               ConstView(o.data, tokens, o.stride), lse.data, View(gqkv.data, tokens), scratch, bytes);
  const int keys = out + heads.kv_heads * heads.head_dim;
  for (const auto& [name, first, last] :
       {std::tuple("gq", 0, out), std::tuple("gk", out, keys), std::tuple("gv", keys, width)}) {
    std::vector<float> now(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(width));
    harness.b.download(gqkv.data, now);
    Output part{name, {}, false, difference_slack};
    for (std::size_t i = 0; i < now.size(); ++i) {
      const auto column = static_cast<int>(i % static_cast<std::size_t>(width));
      if (column >= first && column < last) part.values.push_back(now[i]);
    }
    harness.outcome.outputs.push_back(std::move(part));
  }
  harness.collect(gqkv);
  harness.unchanged(qkv, go);
}

/// Sequences that grow by pieces, from one step of single tokens on also all by one: their outputs must be those of
/// attention over the whole, turned.
template <class B>
void attention_cached(Harness<B>& harness, const qlora::AttentionShape& heads) {
  using Act = typename B::Act;
  using Param = typename B::Param;
  using View = typename B::template View<8>;
  using ConstView = typename B::template ConstView<8>;
  const std::vector<int> lengths{70, 5, 200};
  const std::vector<std::vector<int>> added{{33, 4, 0}, {0, 0, 131}, {1, 0, 64}, {34, 0, 1},
                                            {1, 1, 1},  {1, 0, 0},   {0, 0, 3}};
  constexpr int capacity = 210;
  const int width = heads.width();
  const int out = heads.heads * heads.head_dim;
  const int kv_width = 2 * heads.kv_heads * heads.head_dim;
  const Pieces pieces(lengths);
  const int tokens = static_cast<int>(pieces.positions.size());
  const auto whole = harness.template drawn<Act>("qkv", tokens, width, width, 1.5F, 83);
  const std::int64_t bytes = attention_bytes(harness.b, heads, tokens, capacity);
  auto* scratch = harness.template raw<std::byte>(bytes);
  const int half = heads.head_dim / 2;
  const auto cosine = harness.template poisoned<Param>("cosine", capacity, half, half);
  const auto sine = harness.template poisoned<Param>("sine", capacity, half, half);
  const std::vector<float> frequencies = qlora::rope_frequencies(1e4, {}, heads.head_dim);
  harness.b.rope_table(capacity, std::span(frequencies), 1.0F, cosine.data, sine.data);

  std::vector<Buffer<Act>> caches;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    caches.push_back(harness.template filled<Act>(
        "cache", capacity, kv_width, kv_width,
        std::vector<float>(static_cast<std::size_t>(capacity) * static_cast<std::size_t>(kv_width), sentinel)));
  }
  std::vector<int> done(lengths.size());
  std::vector<float> outputs(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(out));
  for (const std::vector<int>& step : added) {
    std::vector<qlora::CachedSequence<Act>> sequences;
    std::vector<float> rows;
    std::vector<int> source;
    std::vector<std::int32_t> places;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      if (step[s] == 0) continue;
      const int first = static_cast<int>(source.size());
      for (int i = 0; i < step[s]; ++i) {
        source.push_back(pieces.segments[s].first + done[s] + i);
        places.push_back(done[s] + i);
      }
      done[s] += step[s];
      sequences.push_back({caches[s].data, done[s], first, step[s]});
    }
    for (const int row : source) {
      const auto from = whole.image.begin() + guard + std::ptrdiff_t{row} * width;
      rows.insert(rows.end(), from, from + width);
    }
    const int count = static_cast<int>(source.size());
    const auto qkv = harness.template filled<Act>("new qkv", count, width, width, rows);
    const auto o = harness.template poisoned<Act>("new o", count, out, out + 24);
    const std::span<const qlora::CachedSequence<Act>> all(sequences);
    const std::int32_t* positions = harness.b.stage(std::span<const std::int32_t>(places));
    harness.b.attention_cached(heads, cosine.data, sine.data, positions, all, View(qkv.data, count),
                               View(o.data, count, o.stride), scratch, bytes);
    harness.collect(o);
    const std::vector<float>& made = harness.outcome.outputs.back().values;
    for (std::size_t i = 0; i < source.size(); ++i) {
      std::copy_n(made.begin() + static_cast<std::ptrdiff_t>(i) * out, out,
                  outputs.begin() + std::ptrdiff_t{source[i]} * out);
    }
  }
  harness.expect(done == lengths, "the pieces do not make the whole");
  for (const Buffer<Act>& cache : caches) harness.collect(cache, "cache", 0, kv_width);

  const qlora::TokenBatch batch = harness.b.stage(pieces.batch());
  const auto o = harness.template poisoned<Act>("o of the whole", tokens, out, out);
  const auto lse = harness.template poisoned<Param>("lse", heads.heads, tokens, tokens);
  harness.b.rope(heads, cosine.data, sine.data, batch.positions, 1, View(whole.data, tokens));
  harness.b.attention(heads, batch, ConstView(whole.data, tokens), View(o.data, tokens, out), lse.data, scratch, bytes);
  harness.collect(o);
  // both round probabilities and outputs to bfloat16, in another order: 2^-8 of each value at most
  harness.expect(error_of(outputs, harness.outcome.outputs.back().values) < 8e-3,
                 "attention over the cache is not attention over the whole");
}

template <class B>
[[nodiscard]] Cases<B> attention_cases() {
  Cases<B> cases;
  const auto name = [](const qlora::AttentionShape& heads) {
    return std::to_string(heads.heads) + "/" + std::to_string(heads.kv_heads) + " heads of " +
           std::to_string(heads.head_dim);
  };
  const auto add = [&](const qlora::AttentionShape& heads, const std::vector<int>& lengths) {
    std::string text = "attention, " + name(heads) + ", pieces";
    for (const int length : lengths) text += " " + std::to_string(length);
    cases.push_back({text, [=](Harness<B>& harness) { attention(harness, heads, lengths); }});
  };
  for (const int head_dim : {32, 64, 128}) {
    for (const auto& [heads, kv_heads] : {std::pair(2, 2), std::pair(4, 2), std::pair(4, 1), std::pair(8, 1)}) {
      const qlora::AttentionShape shape{heads, kv_heads, head_dim};
      add(shape, {1, 37, 64, 1, 97});  // 200
      add(shape, {130});
      cases.push_back(
          {"cached attention, " + name(shape), [=](Harness<B>& harness) { attention_cached(harness, shape); }});
    }
    const qlora::AttentionShape shape{4, 2, head_dim};
    for (const int tokens : {1, 63, 64, 65, 515}) add(shape, {tokens});
    add(shape, {63, 1, 65, 1, 1, 127, 3, 254});  // 515
    add(shape, std::vector<int>(65, 1));
    add(shape, {64, 64});
  }
  return cases;
}

}  // namespace ops
