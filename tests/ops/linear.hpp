// tests/ops/linear.hpp — cases of linear groups: frozen weights in NF4 or resident, adapters on all parts, some, none
// or switched off, dropout, residuals, and a backward pass that adds to gradients.
#pragma once

#include "linear_setup.hpp"

namespace ops {

template <class B>
void linear(Harness<B>& harness, const LinearCase& c) {
  using Act = typename B::Act;
  using Param = typename B::Param;
  using View = typename B::template View<8>;  // backends go on with run-time sizes: a view of width 8 stands for all
  using ConstView = typename B::template ConstView<8>;
  LinearSetup<B> setup = draw_group(harness, c);
  const std::span<const qlora::LinearPart<Act, Param>> parts(setup.parts);
  const int wide = c.in + c.xa();
  const bool adapts = c.xa() > 0 && !c.off;
  const int end = adapts ? wide : c.in;

  std::vector<float> values(static_cast<std::size_t>(c.tokens) * static_cast<std::size_t>(wide), sentinel);
  Random random(61);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto column = static_cast<int>(i % static_cast<std::size_t>(wide));
    values[i] = column < c.in ? random.value(1.0F) : adapts ? poison : sentinel;
  }
  const auto x = harness.template filled<Act>("x", c.tokens, wide, wide, values);
  const auto y = harness.template poisoned<Act>("y", c.tokens, c.out(), c.out());
  const auto residual = harness.template drawn<Act>("residual", c.tokens, c.out(), c.out(), 1.0F, 62);
  harness.b.linear(setup.group, parts, View(x.data, c.tokens, wide),
                   c.residual ? ConstView(residual.data, c.tokens) : ConstView{}, View(y.data, c.tokens));
  harness.collect(y);
  harness.collect(x, "XA", c.in, end);
  harness.unchanged(residual);

  if (adapts) {  // XA again, from X alone
    const auto again = harness.template filled<Act>("x again", c.tokens, wide, wide, values);
    harness.b.adapter_input(setup.group, parts, View(again.data, c.tokens, wide));
    harness.collect(again, "XA again", c.in, wide);
    const std::vector<Output>& made = harness.outcome.outputs;
    harness.expect(made[made.size() - 1].values == made[made.size() - 2].values, "XA made again has other bits");
  }

  if (c.lengths == Lengths::held || c.decodes) return;
  const auto gy = harness.template drawn<Act>("gy", c.tokens, c.out(), c.out(), 1.0F, 63);
  const auto gx = adapts ? harness.template poisoned<Act>("gx", c.tokens, wide, wide)
                         : harness.template poisoned<Act>("gx", c.tokens, c.in, wide);
  harness.b.linear_backward(setup.group, parts, std::span<const qlora::LinearGradient<Param>>(setup.gradients),
                            ConstView(gy.data, c.tokens), ConstView(x.data, c.tokens, wide), c.needs_input,
                            View(gx.data, c.tokens, wide));
  harness.collect(gx, "[gx | gXA]", c.needs_input ? 0 : c.in, end);
  if (adapts) {  // gXA by itself too: it is small beside gx
    std::vector<float> now(gx.image.size());
    harness.b.download(gx.data - guard, now);
    Output gxa{.name = "gXA", .values = {}};
    for (int t = 0; t < c.tokens; ++t) {
      const auto row = now.begin() + guard + std::ptrdiff_t{t} * wide;
      gxa.values.insert(gxa.values.end(), row + c.in, row + wide);
    }
    harness.outcome.outputs.push_back(std::move(gxa));
  }
  harness.unchanged(gy);
  for (const auto* list : {&setup.a, &setup.b, &setup.factors, &setup.inverse_lengths}) {
    for (const Buffer<Param>& buffer : *list) harness.unchanged(buffer);
  }
  for (const auto* list : {&setup.ga, &setup.gb, &setup.gm}) {
    for (const Buffer<Param>& buffer : *list) harness.collect(buffer, false, product_slack);
  }
}

/// Rows with adapters of two sets and of two scales, and rows without any, in one pass.
template <class B>
void linear_mixed(Harness<B>& harness, const LinearCase& c) {
  using Act = typename B::Act;
  using Param = typename B::Param;
  using View = typename B::template View<8>;
  using ConstView = typename B::template ConstView<8>;
  LinearCase bare = c;
  bare.off = true;
  bare.lengths = Lengths::none;
  LinearSetup<B> setup = draw_group(harness, bare);  // A and B are drawn, and the parts have none
  LinearSetup<B> lengths;
  lengths.parts.resize(c.rows.size());
  lengths.gradients.resize(c.rows.size());
  if (c.lengths != Lengths::none) draw_lengths(harness, c, lengths);
  const auto second =
      harness.template drawn<Param>("second A", c.xa(), c.in, c.in, 1.0F / std::sqrt(static_cast<float>(c.in)), 91);
  std::vector<qlora::RowAdapters<Param>> ranges;
  const int step = std::max(c.tokens / 5, 1);
  for (int range = 0; range * step + step < c.tokens && range < 4; ++range) {
    if (range == 1) continue;  // rows without
    qlora::RowAdapters<Param> rows{.first = range * step, .count = step};
    for (std::size_t slot = 0; slot < c.adapted.size(); ++slot) {
      const std::int64_t at = static_cast<std::int64_t>(slot) * c.rank * c.in;
      rows.parts[static_cast<std::size_t>(c.adapted[slot])] = {.a = (range == 2 ? second : setup.a[0]).data + at,
                                                               .b = setup.b[slot].data,
                                                               .scale = Param(range == 3 ? -0.5F : 1.5F)};
      if (range == 3 || c.lengths == Lengths::none) continue;
      const auto& from = lengths.parts[static_cast<std::size_t>(c.adapted[slot])];
      auto& to = rows.parts[static_cast<std::size_t>(c.adapted[slot])];
      to.row_factors = from.row_factors;
      to.strength = from.strength;
      if (range == 2) to.inverse_lengths = from.inverse_lengths;
      if (range == 2) continue;
      to.strength = Param(0.5F);
    }
    ranges.push_back(rows);
  }
  const int wide = c.in + c.xa();
  std::vector<float> values(static_cast<std::size_t>(c.tokens) * static_cast<std::size_t>(wide), 0.0F);
  Random random(61);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (static_cast<int>(i % static_cast<std::size_t>(wide)) < c.in) values[i] = random.value(1.0F);
  }
  const auto x = harness.template filled<Act>("x", c.tokens, wide, wide, values);
  const auto y = harness.template poisoned<Act>("y", c.tokens, c.out(), c.out());
  const auto residual = harness.template drawn<Act>("residual", c.tokens, c.out(), c.out(), 1.0F, 62);
  harness.b.linear_mixed(setup.group, std::span<const qlora::LinearPart<Act, Param>>(setup.parts),
                         std::span<const qlora::RowAdapters<Param>>(ranges), View(x.data, c.tokens, wide),
                         c.residual ? ConstView(residual.data, c.tokens) : ConstView{}, View(y.data, c.tokens));
  harness.collect(y);
  harness.collect(x, "XA", c.in, wide);
  harness.unchanged(residual);
}

template <class B>
[[nodiscard]] Cases<B> cases_of(const std::vector<LinearCase>& list) {
  Cases<B> cases;
  for (const LinearCase& c : list) cases.push_back({c.name(), [c](Harness<B>& harness) { linear(harness, c); }});
  return cases;
}

template <class B>
[[nodiscard]] Cases<B> linear_cases() {
  std::vector<LinearCase> list;
  Cases<B> mixed;
  const std::vector<LinearCase> groups{
      {.rows = {128, 64, 64}, .adapted = {0, 1, 2}, .in = 128, .rank = 8},
      {.rows = {192, 64, 64}, .adapted = {0, 2}, .in = 192, .rank = 16},  // q and v
      {.rows = {256, 256, 256}, .adapted = {1}, .in = 256, .rank = 64},
      {.rows = {128, 64, 64}, .adapted = {}, .in = 128},
      {.rows = {256}, .adapted = {0}, .in = 256, .rank = 16},
      {.rows = {256}, .adapted = {0}, .in = 704, .rank = 64},
      {.rows = {64}, .adapted = {}, .in = 64},
      {.rows = {704, 704}, .adapted = {0, 1}, .in = 256, .rank = 8},
      {.rows = {704, 704}, .adapted = {1}, .in = 64, .rank = 64},
  };
  for (const LinearCase& group : groups) {
    for (const int tokens : {1, 7, 33, 130}) {
      for (const bool resident : {false, true}) {
        for (const float dropout : {0.0F, 0.1F}) {
          LinearCase c = group;
          c.tokens = tokens;
          c.resident = resident;
          c.dropout = dropout;
          c.residual = (tokens + (resident ? 1 : 0)) % 2 == 0;
          c.needs_input = !(tokens == 33 && resident);
          c.double_quant = tokens != 7;
          c.state = tokens == 130 ? qlora::DType::f16 : qlora::DType::bf16;
          list.push_back(c);
        }
      }
    }
    if (!group.adapted.empty()) {
      LinearCase c = group;
      c.off = true;
      list.push_back(c);
    }
  }
  // Widths that are multiples of 256 have kernels of their own on the GPU for up to 64 tokens, some at a time.
  for (const LinearCase& group : std::vector<LinearCase>{
           {.rows = {256, 128, 128}, .adapted = {0, 1, 2}, .in = 512, .rank = 16, .tokens = 3},
           {.rows = {256, 8, 16}, .adapted = {0, 2}, .in = 256, .rank = 64, .tokens = 4, .double_quant = false},
           {.rows = {3000, 3000}, .adapted = {0, 1}, .in = 768, .rank = 8, .tokens = 16},
           {.rows = {8}, .adapted = {0}, .in = 11008, .rank = 136, .tokens = 2},
           {.rows = {4096}, .adapted = {}, .in = 256, .tokens = 9, .double_quant = false},
           {.rows = {256, 48, 16}, .adapted = {0, 2}, .in = 1024, .rank = 24, .tokens = 13},
           {.rows = {2816, 2816}, .adapted = {0, 1}, .in = 1024, .rank = 64, .tokens = 64},
           {.rows = {1040}, .adapted = {0}, .in = 2816, .rank = 8, .tokens = 40, .double_quant = false},
           {.rows = {512, 64, 64}, .adapted = {1}, .in = 512, .rank = 16, .tokens = 21},
           {.rows = {16}, .adapted = {}, .in = 256, .tokens = 100},
       }) {
    for (const bool residual : {false, true}) {
      LinearCase c = group;
      c.residual = residual;
      list.push_back(c);
    }
  }
  for (const LinearCase& c : std::vector<LinearCase>{
           {.rows = {256, 128, 128}, .adapted = {0, 1, 2}, .in = 512, .rank = 16, .tokens = 5},
           {.rows = {704, 704}, .adapted = {1}, .in = 1280, .rank = 24, .tokens = 29, .residual = true},
           {.rows = {1024}, .adapted = {0}, .in = 512, .rank = 64, .tokens = 75, .double_quant = false},
           {.rows = {192, 64, 64}, .adapted = {0, 2}, .in = 192, .rank = 16, .tokens = 20},
           {.rows = {256, 256}, .adapted = {0, 1}, .in = 256, .rank = 8, .tokens = 200, .residual = true},
       }) {
    mixed.push_back({"mixed " + c.name(), [c](Harness<B>& harness) { linear_mixed(harness, c); }});
  }
  for (const int rank : {136, 200}) {  // two tiles of adapter columns, and wider than fused dropout serves
    list.push_back({.rows = {64, 64}, .adapted = {0, 1}, .in = 192, .rank = rank, .tokens = 33, .dropout = 0.1F});
  }
  Cases<B> cases = cases_of<B>(list);
  cases.insert(cases.end(), mixed.begin(), mixed.end());
  return cases;
}

/// Groups whose products with frozen weights are in fp8.
template <class B>
[[nodiscard]] Cases<B> fp8_linear_cases() {
  std::vector<LinearCase> list;
  for (const LinearCase& group : std::vector<LinearCase>{
           {.rows = {128, 64, 64}, .adapted = {0, 1, 2}, .in = 128, .rank = 8},
           {.rows = {192, 64, 48}, .adapted = {0, 2}, .in = 192, .rank = 16},
           {.rows = {272}, .adapted = {0}, .in = 704, .rank = 64, .residual = true},
           {.rows = {704, 704}, .adapted = {}, .in = 256},
           {.rows = {704, 704}, .adapted = {0, 1}, .in = 64, .rank = 200, .residual = true},
       }) {
    for (const int tokens : {1, 16, 37, 130}) {
      LinearCase c = group;
      c.tokens = tokens;
      c.fp8 = true;
      c.dropout = tokens == 16 ? 0.0F : 0.1F;
      c.needs_input = tokens != 37;
      c.double_quant = tokens != 16;
      c.off = tokens == 1;
      c.state = tokens == 130 ? qlora::DType::f16 : tokens == 16 ? qlora::DType::f32 : qlora::DType::bf16;
      list.push_back(c);
    }
  }
  return cases_of<B>(list);
}
/// One group of each of 7B, 13B and 70B.
template <class B>
[[nodiscard]] Cases<B> true_width_linear_cases() {
  return cases_of<B>({
      {.rows = {4096, 4096, 4096}, .adapted = {0, 1, 2}, .in = 4096, .rank = 64, .tokens = 130, .dropout = 0.1F},
      {.rows = {5120}, .adapted = {0}, .in = 13824, .rank = 64, .residual = true},
      {.rows = {8192, 1024, 1024}, .adapted = {0, 1, 2}, .in = 8192, .rank = 64},
      {.rows = {28672, 28672}, .adapted = {0, 1}, .in = 8192, .rank = 64, .dropout = 0.1F},
      {.rows = {4096, 4096, 4096}, .adapted = {0, 1, 2}, .in = 4096, .rank = 64, .tokens = 1},
      {.rows = {8192}, .adapted = {0}, .in = 28672, .rank = 64, .tokens = 3, .residual = true},
      {.rows = {8192}, .adapted = {0}, .in = 28672, .rank = 64, .tokens = 50, .residual = true},
      {.rows = {11008, 11008}, .adapted = {0, 1}, .in = 4096, .rank = 64, .tokens = 130, .dropout = 0.1F, .fp8 = true},
      {.rows = {8192}, .adapted = {0}, .in = 28672, .rank = 64, .tokens = 100, .residual = true, .fp8 = true},
  });
}

/// Where dropped values are zero, for every element of X' and of the gradient, against the definition of the mask.
/// With X = 1, A = 1 and no base weights: gA of one token is a row of X' up to a factor, and gX is the mask o gXA A.
template <class B>
void check_masks(B backend) {
  using Act = typename B::Act;
  using Param = typename B::Param;
  constexpr int in = 704;
  constexpr int rank = 8;
  constexpr int tokens = 5;
  constexpr int wide = in + rank;
  for (const std::uint32_t first : {0U, 4096U}) {
    for (int token = 0; token < tokens; ++token) {
      Harness<B> harness(backend);
      const LinearCase c{
          .rows = {8}, .adapted = {0}, .in = in, .rank = rank, .tokens = 1, .dropout = 0.1F, .resident = true};
      LinearSetup<B> setup = draw_group(harness, c);
      setup.group.dropout.first_token = first + static_cast<std::uint32_t>(token);
      const auto ones = [](int count) { return std::vector<float>(static_cast<std::size_t>(count), 1.0F); };
      const auto weight = harness.template filled<Act>("W", 8, in, wide, std::vector<float>(8 * in));
      const auto a = harness.template filled<Param>("A", rank, in, in, ones(rank * in));
      const auto b = harness.template filled<Param>("B", 8, rank, rank, ones(8 * rank));
      const auto ga = harness.template filled<Param>("gA", rank, in, in, std::vector<float>(rank * in));
      setup.parts[0] = {
          .weight = {.rows = 8, .dense = weight.data, .stride = wide}, .a = a.data, .b = b.data, .scale = Param(1.0F)};
      setup.gradients[0].a = ga.data;
      const auto x = harness.template filled<Act>("x", 1, wide, wide, ones(wide));
      const auto gy = harness.template filled<Act>("gy", 1, 8, 8, ones(8));
      const auto gx = harness.template poisoned<Act>("gx", 1, wide, wide);
      harness.b.linear_backward(
          setup.group, std::span<const qlora::LinearPart<Act, Param>>(setup.parts),
          std::span<const qlora::LinearGradient<Param>>(setup.gradients), typename B::template ConstView<8>(gy.data, 1),
          typename B::template ConstView<8>(x.data, 1, wide), true, typename B::template View<8>(gx.data, 1, wide));
      harness.collect(ga);
      harness.collect(gx, "gx", 0, wide);
      for (const std::string& what : harness.outcome.damage) FAIL_CHECK(what);
      const std::vector<float>& made = harness.outcome.outputs[0].values;
      const std::vector<float>& back = harness.outcome.outputs[1].values;
      int wrong = 0;
      int dropped = 0;
      for (int column = 0; column < in; ++column) {
        const bool keeps = qlora::dropout_keeps(setup.group.dropout, 0, static_cast<std::uint32_t>(column));
        dropped += keeps ? 0 : 1;
        for (int r = 0; r < rank; ++r) wrong += (made[static_cast<std::size_t>(r * in + column)] != 0.0F) != keeps;
        wrong += (back[static_cast<std::size_t>(column)] != 0.0F) != keeps;
      }
      CHECK(wrong == 0);
      CHECK(dropped > in / 20);
    }
  }
}

}  // namespace ops
