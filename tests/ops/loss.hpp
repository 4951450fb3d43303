// tests/ops/loss.hpp — cases of the head: its product, and the loss fused with it.
#pragma once

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
  add("project to 32000", [](Harness<B>& harness) { project<256>(harness, 3, 32000); });
  return cases;
}

}  // namespace ops
