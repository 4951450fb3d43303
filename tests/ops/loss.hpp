// tests/ops/loss.hpp — cases of the head: its product, and the loss fused with it.
#pragma once

#include <numeric>
#include <tuple>

#include "harness.hpp"

namespace ops {

struct LossCase {
  int tokens = 33;
  int vocab = 37 * 8;
  int chunk = 16;
  int unlabelled = 4;  ///< one row in so many predicts nothing; 0: all predict
  bool gradient = true;
};

template <int D, class B>
void cross_entropy(Harness<B>& harness, const LossCase& c) {
  using Act = typename B::Act;
  using Param = typename B::Param;
  Random random(71);
  std::vector<std::int32_t> targets, labelled;
  for (int t = 0; t < c.tokens; ++t) {
    const bool predicts = c.unlabelled == 0 || random.below(c.unlabelled) != 0;
    targets.push_back(predicts ? (t == 1 ? c.vocab - 1 : random.below(c.vocab)) : -1);
    if (predicts) labelled.push_back(t);
  }
  const qlora::TokenBatch batch =
      harness.b.stage(qlora::TokenBatch{.tokens = c.tokens,
                                        .targets = targets.data(),
                                        .labelled = labelled.data(),
                                        .labelled_count = static_cast<int>(labelled.size())});
  const auto x = harness.template drawn<Act>("x", c.tokens, D, D, 1.0F, 72);
  const auto head = harness.template drawn<Act>("head", c.vocab, D, D, 2.0F / std::sqrt(static_cast<float>(D)), 73);
  qlora::LossScratch<Act, Param> scratch{.chunk = c.chunk};
  const auto rows = harness.template poisoned<Act>("rows", c.chunk, D, D);
  const auto grads = harness.template poisoned<Act>("grads", c.chunk, D, D);
  const auto logits = harness.template poisoned<Param>("logits", c.chunk, c.vocab, c.vocab);
  const auto logit_grads = harness.template poisoned<Act>("logit gradients", c.chunk, c.vocab, c.vocab);
  scratch.rows = rows.data;
  scratch.grads = grads.data;
  scratch.logits = logits.data;
  if constexpr (std::is_same_v<Act, Param>) {
    scratch.logit_grads = scratch.logits;
  } else {
    scratch.logit_grads = logit_grads.data;
  }
  const auto losses = harness.template poisoned<Param>("losses", 1, c.tokens, c.tokens);
  const auto gx = harness.template poisoned<Act>("gx", c.tokens, D, D);
  harness.b.cross_entropy(batch, typename B::template ConstView<D>(x.data, c.tokens), head.data, c.vocab,
                          c.gradient ? 1.0 / c.tokens : 0.0, scratch, losses.data,
                          c.gradient ? gx.data : static_cast<Act*>(nullptr), static_cast<Param*>(nullptr));
  harness.collect(losses, false, product_slack);
  if (c.gradient) {
    harness.collect(gx);
  } else {
    harness.unchanged(gx);
  }
  harness.unchanged(x, head);
}

template <int D, class B>
void project(Harness<B>& harness, int tokens, int vocab) {
  using Act = typename B::Act;
  using Param = typename B::Param;
  const auto x = harness.template drawn<Act>("x", tokens, D, D, 1.0F, 74);
  const auto head = harness.template drawn<Act>("head", vocab, D, D, 1.0F / std::sqrt(static_cast<float>(D)), 75);
  const auto logits = harness.template poisoned<Param>("logits", tokens, vocab, vocab);
  harness.b.project(typename B::template ConstView<D>(x.data, tokens), head.data, vocab, logits.data);
  harness.collect(logits, false, product_slack);
  harness.unchanged(x, head);
}

/// Ties, an infinite logit, one that is no number, and larger ones beyond `among`: the id is known.
template <class B>
void pick(Harness<B>& harness, int vocab, int among) {
  using Param = typename B::Param;
  constexpr int rows = 5;
  std::vector<float> values = Random(76).values(std::int64_t{rows} * vocab, 1.0F);
  const auto at = [&](int row, int id) -> float& {
    return values[static_cast<std::size_t>(row) * static_cast<std::size_t>(vocab) + static_cast<std::size_t>(id)];
  };
  for (int row = 0; row < rows; ++row) {
    for (int id = among; id < vocab; ++id) at(row, id) = 1e6F;
  }
  at(0, among / 2) = at(0, among - 1) = 100.0F;
  at(1, among - 1) = 100.0F;
  at(2, 0) = INFINITY;
  for (int id = 0; id < among; ++id) at(3, id) = id % 3 == 1 ? 0.0F : -0.0F;
  at(4, among / 3) = 50.0F;
  at(4, among / 2) = NAN;
  const std::vector<std::int32_t> expected{among / 2, among - 1, 0, 0, among / 3};
  auto* logits = harness.template raw<Param>(static_cast<std::int64_t>(values.size()));
  harness.b.upload(values, logits);
  auto* ids = harness.template raw<std::int32_t>(rows);
  harness.b.pick(rows, vocab, among, logits, ids);
  std::vector<std::int32_t> picked(rows);
  harness.b.download(ids, std::span<std::int32_t>(picked));
  harness.expect(picked == expected, "other ids than the likeliest");
  harness.number("first", picked[0]);
}

/// Against the definition in double: everything sorted, and added from the likeliest down. Cases in which the random
/// number, or a limit, is within rounding of a boundary are left out, and few. Random words beside a fixed seed.
template <class B>
void draw(Harness<B>& harness, int vocab, int among, float spread) {
  using Param = typename B::Param;
  Random random(77);
  std::vector<qlora::DrawRow> rows;
  for (const float temperature : {0.0F, 0.01F, 0.7F, 1.0F, 2.5F}) {
    for (const auto& [top_k, top_p, min_p] :
         {std::tuple(0, 1.0F, 0.0F), std::tuple(0, 0.9F, 0.0F), std::tuple(40, 1.0F, 0.0F), std::tuple(1, 0.5F, 0.0F),
          std::tuple(25, 0.8F, 0.05F), std::tuple(0, 1.0F, 0.2F), std::tuple(among + 5, 0.3F, 0.01F)}) {
      for (int i = 0; i < 3; ++i) {
        rows.push_back({.temperature = temperature,
                        .top_p = top_p,
                        .min_p = min_p,
                        .top_k = top_k,
                        .among = among,
                        .random = static_cast<std::uint32_t>(random.bits())});
      }
    }
  }
  const auto count = static_cast<int>(rows.size());
  std::vector<float> values = Random(78).values(std::int64_t{count} * vocab, spread);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i % static_cast<std::size_t>(vocab) >= static_cast<std::size_t>(among)) values[i] = 1e6F;
    if (i % 5 == 0) values[i] = std::round(values[i]);  // equal logits
  }
  auto* logits = harness.template raw<Param>(static_cast<std::int64_t>(values.size()));
  harness.b.upload(values, logits);
  auto* ids = harness.template raw<std::int32_t>(count);
  harness.b.draw(count, vocab, logits, harness.b.stage(std::span<const qlora::DrawRow>(rows)), ids);
  std::vector<std::int32_t> drawn(rows.size());
  harness.b.download(ids, std::span<std::int32_t>(drawn));

  int close = 0;
  for (std::size_t t = 0; t < rows.size(); ++t) {
    const qlora::DrawRow& how = rows[t];
    const float* z = values.data() + t * static_cast<std::size_t>(vocab);
    std::vector<std::int32_t> order(static_cast<std::size_t>(among));
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](std::int32_t a, std::int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); });
    if (how.temperature == 0.0F) {
      harness.expect(drawn[t] == order[0], "not the likeliest id, at temperature 0");
      continue;
    }
    if (how.top_k > 0 && how.top_k < among) order.resize(static_cast<std::size_t>(how.top_k));
    std::vector<double> weight;
    double all = 0.0;
    for (const std::int32_t id : order) {
      weight.push_back(std::exp((double{z[id]} - double{z[order[0]]}) / double{how.temperature}));
      all += weight.back();
    }
    constexpr double rounding = 1e-6;
    bool near = false;
    std::size_t kept = order.size();
    double sum = 0.0;
    if (how.top_p < 1.0F) {
      for (kept = 0; kept < order.size() && sum < double{how.top_p} * all;) {
        sum += weight[kept++];
        near = near || std::abs(sum / all - double{how.top_p}) < rounding;
      }
    }
    for (const double w : weight) near = near || std::abs(w - double{how.min_p}) < rounding * double{how.min_p};
    while (kept > 1 && weight[kept - 1] < double{how.min_p}) --kept;
    const double part = std::accumulate(weight.begin(), weight.begin() + static_cast<std::ptrdiff_t>(kept), 0.0);
    const double target = (static_cast<double>(how.random) + 0.5) * 0x1p-32;
    std::size_t at = 0;
    for (sum = weight[0]; sum / part < target && at + 1 < kept; sum += weight[++at]) {
      near = near || std::abs(sum / part - target) < rounding;
    }
    near = near || std::abs(sum / part - target) < rounding;
    if (near) {
      ++close;
      continue;
    }
    harness.expect(drawn[t] == order[at], "another id than the definition draws");
  }
  harness.expect(close * 5 < count, "too many cases are close to a boundary");
  harness.number("first", drawn[0]);
}

template <class B>
[[nodiscard]] Cases<B> loss_cases() {
  Cases<B> cases;
  const auto add = [&](std::string name, auto run) { cases.push_back({std::move(name), run}); };
  for (const LossCase c : {LossCase{}, LossCase{.tokens = 1, .unlabelled = 0}, LossCase{.tokens = 130, .chunk = 512},
                           LossCase{.tokens = 130, .unlabelled = 0}, LossCase{.tokens = 64, .unlabelled = 0},
                           LossCase{.tokens = 130, .chunk = 7}, LossCase{.gradient = false},
                           LossCase{.tokens = 33, .chunk = 32, .unlabelled = 1},  // nothing is predicted
                           LossCase{.tokens = 70, .vocab = 32000, .chunk = 32}}) {
    const std::string size =
        std::to_string(c.tokens) + " rows, " + std::to_string(c.vocab) + " ids, chunks of " + std::to_string(c.chunk);
    add("loss of " + size, [=](Harness<B>& harness) { cross_entropy<256>(harness, c); });
  }
  add("loss, 64 wide", [](Harness<B>& harness) { cross_entropy<64>(harness, {.tokens = 40}); });
  for (const int tokens : {1, 7, 130}) {
    add("project " + std::to_string(tokens), [=](Harness<B>& harness) { project<256>(harness, tokens, 37 * 8); });
  }
  for (const auto& [vocab, among] :
       {std::pair(16, 7), std::pair(32, 30), std::pair(32064, 32000), std::pair(9000, 9000)}) {
    add("pick from " + std::to_string(among), [v = vocab, n = among](Harness<B>& harness) { pick(harness, v, n); });
  }
  for (const auto& [vocab, among, spread] :
       {std::tuple(64, 57, 4.0F), std::tuple(32064, 32000, 12.0F), std::tuple(5000, 5000, 3.0F)}) {
    add("draw from " + std::to_string(among),
        [v = vocab, n = among, s = spread](Harness<B>& harness) { draw(harness, v, n, s); });
  }
  add("project to 32000", [](Harness<B>& harness) { project<256>(harness, 3, 32000); });
  return cases;
}

}  // namespace ops
