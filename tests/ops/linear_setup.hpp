// tests/ops/linear_setup.hpp — a group of linear layers in backend memory, as a case describes it.
#pragma once

#include "harness.hpp"
#include "qlora/rng.hpp"

namespace ops {

/// Whether rows have lengths (DoRA): those of an adapter that is not trained, whose B has factors in it, or trained
/// ones.
enum class Lengths { none, held, trained };

struct LinearCase {
  std::vector<int> rows;     ///< N of each part
  std::vector<int> adapted;  ///< parts that have an adapter, in order
  int in = 64;
  int rank = 8;
  int tokens = 33;
  float dropout = 0.0F;
  bool residual = false;
  bool needs_input = true;
  bool resident = false;
  bool double_quant = true;
  bool off = false;  ///< adapters exist and are switched off
  bool fp8 = false;  ///< products with frozen weights are in fp8, except those of the reference
  qlora::DType state = qlora::DType::bf16;
  Lengths lengths = Lengths::none;
  bool decodes = false;  ///< with trained lengths: without the scratch of a training, and no backward pass

  [[nodiscard]] int out() const {
    int sum = 0;
    for (const int n : rows) sum += n;
    return sum;
  }
  [[nodiscard]] int xa() const { return static_cast<int>(adapted.size()) * rank; }
  [[nodiscard]] std::string name() const {
    std::string text = std::to_string(tokens) + " x " + std::to_string(in) + " ->";
    for (const int n : rows) text += " " + std::to_string(n);
    text += ", adapters on " + std::to_string(adapted.size()) + " of rank " + std::to_string(rank);
    if (off) text += " switched off";
    if (dropout > 0.0F) text += ", dropout";
    if (residual) text += ", residual";
    if (!needs_input) text += ", no gradient of the input";
    text += resident ? ", resident" : double_quant ? ", NF4 twice" : ", NF4";
    if (fp8) text += ", fp8 products";
    if (lengths != Lengths::none) text += lengths == Lengths::held ? ", lengths" : ", trained lengths";
    if (decodes) text += ", decoding";
    return text;
  }
};

/// A group in backend memory with everything it points at.
template <class B>
struct LinearSetup {
  using Act = typename B::Act;
  using Param = typename B::Param;
  qlora::LinearGroup<Act> group{};
  std::vector<qlora::LinearPart<Act, Param>> parts;
  std::vector<qlora::LinearGradient<Param>> gradients;
  std::vector<Buffer<Param>> a, b, ga, gb;                  ///< a and ga: none, or the stacked one
  std::vector<Buffer<Param>> factors, inverse_lengths, gm;  ///< of adapted parts, with DoRA
};

template <class B>
[[nodiscard]] qlora::Nf4View draw_nf4(Harness<B>& harness, const LinearCase& c, int rows, std::uint64_t seed) {
  const qlora::Nf4Layout layout = qlora::Nf4Layout::of(std::int64_t{rows} * c.in, {.double_quant = c.double_quant});
  Random random(seed);
  const auto draw = [&](std::int64_t count) {
    std::vector<std::uint8_t> all(static_cast<std::size_t>((count + 7) / 8 * 8));
    for (std::size_t i = 0; i < all.size(); i += 8) {
      const std::uint64_t word = random.bits();
      std::memcpy(&all[i], &word, 8);
    }
    return all;
  };
  const float scale = 2.0F / std::sqrt(static_cast<float>(c.in));
  qlora::Nf4View view{.codes = harness.bytes(draw(layout.code_bytes)), .state = c.state};
  const auto scales = [&](std::int64_t count) {
    std::vector<float> all(static_cast<std::size_t>(count));
    view.largest = scale;  // all are below
    for (float& value : all)
      value = scale * (0.5F + 0.5F * qlora::unit_float(static_cast<std::uint32_t>(random.bits())));
    float* there = harness.template raw<float>(count);
    harness.b.upload(all, there);
    return there;
  };
  if (c.double_quant) {
    view.absmax8 = harness.bytes(draw(layout.blocks));
    view.nested = scales(layout.nested);
    view.offset = 1.25F * scale;
    view.largest += view.offset;
  } else {
    view.absmax = scales(layout.blocks);
  }
  return view;
}

/// What the scratch for weights has room for, as the memory plan says.
template <class B>
[[nodiscard]] std::int64_t fp8_scratch(const LinearCase& c) {
  qlora::WorkspaceNeeds needs{.tokens = c.tokens, .dequantizes = true, .products = qlora::Products::fp8};
  needs.groups[0] = {
      .in = c.in, .out = c.out(), .tallest = *std::max_element(c.rows.begin(), c.rows.end()), .adapters = c.xa()};
  return B::workspace_bytes(needs).weight / static_cast<std::int64_t>(sizeof(typename B::Act));
}

/// Workspaces hold poison: what a product reads, it must have written. Memory behind XA of resident weights likewise.
template <class B>
void draw_weights(Harness<B>& harness, const LinearCase& c, LinearSetup<B>& setup) {
  using Act = typename B::Act;
  const int wide = c.in + c.xa();
  const int largest = *std::max_element(c.rows.begin(), c.rows.end());
  if (c.resident) {
    std::vector<float> all(static_cast<std::size_t>(c.out()) * static_cast<std::size_t>(wide), poison);
    Random random(31);
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (static_cast<int>(i % static_cast<std::size_t>(wide)) < c.in) {
        all[i] = random.value(1.0F / std::sqrt(static_cast<float>(c.in)));
      }
    }
    const auto dense = harness.template filled<Act>("resident weights", c.out(), wide, wide, all);
    const Act* at = dense.data;
    for (const int n : c.rows) {
      setup.parts.push_back({.weight = {.rows = n, .dense = at, .stride = wide}});
      at += std::int64_t{n} * wide;
    }
  } else {
    for (std::size_t p = 0; p < c.rows.size(); ++p) {
      setup.parts.push_back({.weight = {.rows = c.rows[p], .nf4 = draw_nf4(harness, c, c.rows[p], 40 + p)}});
    }
    const std::int64_t size = c.fp8            ? fp8_scratch<B>(c)
                              : B::wide_groups ? std::int64_t{c.out()} * wide
                                               : std::int64_t{largest} * std::max(c.in, c.rank);
    if (size > 1 << 24) {
      setup.group.weight_scratch = harness.template raw<Act>(size);
    } else {
      setup.group.weight_scratch =
          harness.template poisoned<Act>("weight scratch", 1, static_cast<int>(size), static_cast<int>(size)).data;
    }
  }
  if (c.xa() > 0) {
    const int size = std::max(c.xa() * c.in, largest * c.rank);
    setup.group.adapter_scratch = harness.template poisoned<Act>("adapter scratch", 1, size, size).data;
  }
  if (c.dropout > 0.0F) {
    setup.group.input_scratch = harness.template poisoned<Act>("input scratch", c.tokens, c.in, c.in).data;
  }
}

/// What the scratch of a training with DoRA has room for, as the memory plan says.
template <class B>
[[nodiscard]] int dora_scratch(const LinearCase& c) {
  qlora::WorkspaceNeeds needs{.rank = c.rank, .tokens = c.tokens, .dora = true};
  needs.groups[0] = {
      .in = c.in, .out = c.out(), .tallest = *std::max_element(c.rows.begin(), c.rows.end()), .adapters = c.xa()};
  return static_cast<int>(B::workspace_bytes(needs).output / static_cast<std::int64_t>(sizeof(typename B::Act)));
}
/// Factors around 1, and of some rows -1 and 0; inverse lengths likewise around 1.
template <class B>
void draw_lengths(Harness<B>& harness, const LinearCase& c, LinearSetup<B>& setup) {
  using Param = typename B::Param;
  for (std::size_t slot = 0; slot < c.adapted.size(); ++slot) {
    const auto p = static_cast<std::size_t>(c.adapted[slot]);
    const auto around = [&](float middle, std::uint64_t seed) {
      std::vector<float> values = Random(seed).values(c.rows[p], 0.3F);
      for (float& value : values) value += middle;
      return values;
    };
    std::vector<float> factors = around(1.0F, 71 + slot);
    factors[1] = -1.0F;
    factors[5] = 0.0F;
    const std::string number = std::to_string(p);
    setup.factors.push_back(harness.template filled<Param>("factors " + number, 1, c.rows[p], c.rows[p], factors));
    setup.parts[p].row_factors = setup.factors.back().data;
    setup.parts[p].strength = Param(0.5F);
    if (c.lengths == Lengths::held) continue;
    setup.inverse_lengths.push_back(
        harness.template filled<Param>("1 / L " + number, 1, c.rows[p], c.rows[p], around(1.5F, 75 + slot)));
    setup.gm.push_back(harness.template drawn<Param>("gm " + number, 1, c.rows[p], c.rows[p], 0.01F, 79 + slot));
    setup.parts[p].strength = Param(1.0F);
    setup.parts[p].inverse_lengths = setup.inverse_lengths.back().data;
    setup.gradients[p].magnitude = setup.gm.back().data;
  }
  if (c.lengths == Lengths::held || (c.decodes && B::wide_groups)) return;
  const int size = dora_scratch<B>(c);
  setup.group.output_scratch = harness.template poisoned<typename B::Act>("output scratch", 1, size, size).data;
}

template <class B>
[[nodiscard]] LinearSetup<B> draw_group(Harness<B>& harness, const LinearCase& c) {
  using Param = typename B::Param;
  LinearSetup<B> setup;
  draw_weights(harness, c, setup);
  setup.group.in = c.in;
  setup.group.rank = c.rank;
  setup.group.adapted = static_cast<int>(c.adapted.size());
  setup.group.quant.double_quant = c.double_quant;
  if (c.fp8 && !std::is_same_v<B, Reference>) setup.group.products = qlora::Products::fp8;
  if (c.dropout > 0.0F) {
    setup.group.dropout = qlora::dropout_rate(c.dropout);
    setup.group.dropout.seed = 0x123456789ABCDEFULL;
    setup.group.dropout.step = 5;
    setup.group.dropout.layer = 3;
    setup.group.dropout.group = 2;
    setup.group.dropout.first_token = 77;
  }
  setup.gradients.resize(c.rows.size());
  if (c.xa() == 0) return setup;
  const float scale = 1.0F / std::sqrt(static_cast<float>(c.in));
  setup.a.push_back(harness.template drawn<Param>("A", c.xa(), c.in, c.in, scale, 51));
  setup.ga.push_back(harness.template drawn<Param>("gA", c.xa(), c.in, c.in, 0.01F, 52));
  for (std::size_t slot = 0; slot < c.adapted.size(); ++slot) {
    const auto p = static_cast<std::size_t>(c.adapted[slot]);
    const std::string number = std::to_string(p);
    setup.b.push_back(harness.template drawn<Param>("B " + number, c.rows[p], c.rank, c.rank, 0.2F, 53 + slot));
    setup.gb.push_back(harness.template drawn<Param>("gB " + number, c.rows[p], c.rank, c.rank, 0.01F, 57 + slot));
    if (c.off) continue;
    const std::int64_t at = static_cast<std::int64_t>(slot) * c.rank * c.in;
    setup.parts[p].a = setup.a[0].data + at;
    setup.parts[p].b = setup.b[slot].data;
    setup.parts[p].scale = Param(slot == 1 ? 0.25F : 1.5F);
    setup.gradients[p] = {.a = setup.ga[0].data + at, .b = setup.gb[slot].data};
  }
  if (c.lengths != Lengths::none) draw_lengths(harness, c, setup);
  return setup;
}

}  // namespace ops
