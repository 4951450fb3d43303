// tests/ops/rows.hpp — cases of the ops that work row by row, and of the optimizer: embed, norms, swiglu, rope,
// sums of losses, gradient norm, AdamW.
#pragma once

#include <array>
#include <limits>

#include "harness.hpp"

namespace ops {

template <int D, class B>
void embed(Harness<B>& harness, int tokens) {
  using Act = typename B::Act;
  constexpr int vocab = 37;
  const auto table = harness.template drawn<Act>("table", vocab, D, D, 1.0F, 1);
  const auto x = harness.template poisoned<Act>("x", tokens, D, D + 24);
  Random random(2);
  std::vector<std::int32_t> ids;
  for (int t = 0; t < tokens; ++t) ids.push_back(t == 0 ? vocab - 1 : random.below(vocab));
  harness.b.template embed<D>(harness.b.stage(std::span<const std::int32_t>(ids)), {table.data, vocab},
                              {x.data, tokens, x.stride});
  harness.collect(x, true);
  harness.unchanged(table);
}

template <int D, class B>
void rmsnorm(Harness<B>& harness, int tokens) {
  using Act = typename B::Act;
  using Param = typename B::Param;
  const auto x = harness.template drawn<Act>("x", tokens, D, D, 2.0F, 3);
  const auto w = harness.template drawn<Param>("w", 1, D, D, 1.0F, 4);
  const auto y = harness.template poisoned<Act>("y", tokens, D, D + 64);
  const auto inv = harness.template poisoned<Param>("inv_rms", 1, tokens, tokens);
  harness.b.template rmsnorm<D>(1e-5F, {x.data, tokens}, w.data, {y.data, tokens, y.stride}, inv.data);
  harness.collect(y);
  harness.collect(inv);
  harness.unchanged(x, w);
}

template <int D, class B>
void rmsnorm_backward(Harness<B>& harness, int tokens, bool accumulate) {
  using Act = typename B::Act;
  using Param = typename B::Param;
  const auto x = harness.template drawn<Act>("x", tokens, D, D, 2.0F, 3);
  const auto w = harness.template drawn<Param>("w", 1, D, D, 1.0F, 4);
  const auto gy = harness.template drawn<Act>("gy", tokens, D, D + 24, 1.0F, 5);
  const auto inv = harness.template filled<Param>("inv_rms", 1, tokens, tokens, [&] {
    std::vector<float> all;
    for (int t = 0; t < tokens; ++t) {
      double sum = 0.0;
      for (int i = 0; i < D; ++i) {
        const auto v = static_cast<double>(x.image[static_cast<std::size_t>(guard + t * D + i)]);
        sum += v * v;
      }
      all.push_back(static_cast<float>(1.0 / std::sqrt(sum / D + 1e-5)));
    }
    return all;
  }());
  const auto gx = accumulate ? harness.template drawn<Act>("gx", tokens, D, D, 1.0F, 6)
                             : harness.template poisoned<Act>("gx", tokens, D, D);
  harness.b.template rmsnorm_backward<D>({gy.data, tokens, gy.stride}, {x.data, tokens}, inv.data, w.data, accumulate,
                                         {gx.data, tokens}, nullptr);
  harness.collect(gx);
  harness.unchanged(x, w, gy, inv);
}

template <int F, class B>
void swiglu(Harness<B>& harness, int tokens) {
  using Act = typename B::Act;
  const auto gate_up = harness.template drawn<Act>("gate_up", tokens, 2 * F, 2 * F, 3.0F, 7);
  const auto y = harness.template poisoned<Act>("y", tokens, F, F + 16);
  const typename B::template ConstView<2 * F> in(gate_up.data, tokens);
  harness.b.template swiglu<F>(in, {y.data, tokens, y.stride});
  harness.collect(y);
  const auto gy = harness.template drawn<Act>("gy", tokens, F, F + 16, 1.0F, 8);
  const auto gin = harness.template poisoned<Act>("ggate_up", tokens, 2 * F, 2 * F);
  harness.b.template swiglu_backward<F>({gy.data, tokens, gy.stride}, in, {gin.data, tokens});
  harness.collect(gin);
  harness.unchanged(gate_up, gy);
}

template <class B>
void bias(Harness<B>& harness, int tokens, int width) {
  using Act = typename B::Act;
  using Param = typename B::Param;
  const auto values = harness.template drawn<Param>("bias", 1, width, width, 1.0F, 31);
  const auto y = harness.template drawn<Act>("y", tokens, width, width, 1.0F, 32);
  harness.b.add_bias(values.data,
                     typename B::template View<qlora::dynamic>(y.data, tokens, qlora::Width<qlora::dynamic>(width)));
  harness.collect(y);
  harness.unchanged(values);
}

/// A sum, a copy, and the norm of numbers whose tiles are summed in two calls: the bits of one.
template <class B>
void sums(Harness<B>& harness, int count, int split) {
  using Param = typename B::Param;
  auto* scalars = harness.template raw<qlora::StepScalars>(1);
  auto* partial = harness.template raw<double>(qlora::norm_partials(count));
  const auto from = harness.template drawn<Param>("from", 1, count, count, 0.1F, 10);
  const auto sum = harness.template drawn<Param>("sum", 1, count, count, 2.0F, 11);
  const auto copied = harness.template poisoned<Param>("copy", 1, count, count);
  harness.b.add(count, from.data, sum.data);
  harness.b.copy(count, sum.data, copied.data);
  harness.unchanged(from);
  harness.collect(sum, true);
  harness.collect(copied, true);
  harness.b.zero(scalars);
  harness.b.gradient_norm(count, sum.data, partial, 1.0F, scalars);
  const double whole = harness.b.read(scalars).grad_norm;
  harness.b.zero(scalars);
  const int first = split * static_cast<int>(qlora::norm_tile);
  harness.b.norm_tiles(count - first, sum.data + first, partial + split);
  harness.b.norm_tiles(first, sum.data, partial);
  harness.b.norm_total(count, partial, 1.0F, scalars);
  harness.expect(harness.b.read(scalars).grad_norm == whole, "the norm in two parts is another");
}

template <class B>
void rope(Harness<B>& harness, int tokens, const qlora::AttentionShape& heads) {
  using Act = typename B::Act;
  using Param = typename B::Param;
  constexpr int positions = 300;
  const int half = heads.head_dim / 2;
  const auto cosine = harness.template poisoned<Param>("cosine", positions, half, half);
  const auto sine = harness.template poisoned<Param>("sine", positions, half, half);
  const std::vector<float> frequencies = qlora::rope_frequencies(1e4, {}, heads.head_dim);
  harness.b.rope_table(positions, std::span(frequencies), 1.25F, cosine.data, sine.data);
  harness.collect(cosine, true);
  harness.collect(sine, true);
  std::vector<std::int32_t> position;
  for (int t = 0; t < tokens; ++t) position.push_back(t == 0 ? positions - 1 : (t * 7) % positions);
  const std::int32_t* staged = harness.b.stage(std::span<const std::int32_t>(position));
  for (const int direction : {1, -1}) {
    const auto qkv = harness.template drawn<Act>("qkv", tokens, heads.width(), heads.width(), 1.0F, 9);
    // both backends go on with run-time sizes: a view of width 8 stands for all
    harness.b.rope(heads, cosine.data, sine.data, staged, direction, typename B::template View<8>(qkv.data, tokens));
    const int turned = (heads.heads + heads.kv_heads) * heads.head_dim;
    harness.collect(qkv, "rotated", 0, turned);  // and the values are untouched
  }
}

/// Sum of losses, the norm, the clip factor, three updates, and one that must not happen.
template <class B>
void optimizer(Harness<B>& harness, int count, float max_norm) {
  using Param = typename B::Param;
  auto* scalars = harness.template raw<qlora::StepScalars>(1);
  auto* partial = harness.template raw<double>(qlora::norm_partials(count));
  const auto p = harness.template drawn<Param>("p", 1, count, count, 0.01F, 10);
  const auto m =
      harness.template filled<Param>("m", 1, count, count, std::vector<float>(static_cast<std::size_t>(count)));
  const auto v =
      harness.template filled<Param>("v", 1, count, count, std::vector<float>(static_cast<std::size_t>(count)));
  for (int step = 1; step <= 3; ++step) {
    const auto g = harness.template drawn<Param>("g", 1, count, count, 0.1F, static_cast<std::uint64_t>(10 + step));
    const auto losses =
        harness.template drawn<Param>("losses", 1, 515, 515, 5.0F, static_cast<std::uint64_t>(20 + step));
    harness.b.zero(scalars);
    harness.b.add_losses(515, losses.data, scalars);
    harness.b.add_losses(7, losses.data, scalars);
    harness.b.gradient_norm(count, g.data, partial, max_norm, scalars);
    harness.b.adamw(count, {.lr = 1e-2F, .weight_decay = 0.1F, .step = step}, scalars, g.data, p.data, m.data, v.data);
    const qlora::StepScalars now = harness.b.read(scalars);
    harness.number("loss", now.loss);
    harness.number("norm", now.grad_norm);
    harness.number("clip", now.clip);
    harness.expect(now.fault == 0, "a fault was reported");
    harness.unchanged(g, losses);
  }
  harness.collect(p);
  harness.collect(m);
  harness.collect(v);
  std::vector<float> before(static_cast<std::size_t>(count));
  std::vector<float> after(before.size());
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> values(static_cast<std::size_t>(count), 0.5F);
    values[static_cast<std::size_t>(count) - 1] = bad;
    const auto g = harness.template filled<Param>("bad g", 1, count, count, values);
    harness.b.zero(scalars);
    harness.b.gradient_norm(count, g.data, partial, max_norm, scalars);
    for (const auto* buffer : {&p, &m, &v}) {
      harness.b.download(buffer->data, before);
      harness.b.adamw(count, {.lr = 1e-2F, .step = 4}, scalars, g.data, p.data, m.data, v.data);
      harness.b.download(buffer->data, after);
      harness.expect(before == after, buffer->name + " was changed by a gradient that is not finite");
    }
    harness.expect(!std::isfinite(harness.b.read(scalars).grad_norm), "the norm of what is not finite is finite");
  }
}

template <class B>
[[nodiscard]] Cases<B> row_cases() {
  Cases<B> cases;
  const auto add = [&](std::string name, auto run) { cases.push_back({std::move(name), run}); };
  const auto at_width = [&]<int D>(std::integral_constant<int, D>) {
    for (const int tokens : {1, 7, 33, 130}) {
      const std::string size = " " + std::to_string(tokens) + " x " + std::to_string(D);
      add("embed" + size, [=](Harness<B>& harness) { embed<D>(harness, tokens); });
      add("rmsnorm" + size, [=](Harness<B>& harness) { rmsnorm<D>(harness, tokens); });
      for (const bool accumulate : {false, true}) {
        add("rmsnorm backward" + size + (accumulate ? ", added" : ""),
            [=](Harness<B>& harness) { rmsnorm_backward<D>(harness, tokens, accumulate); });
      }
      add("swiglu" + size, [=](Harness<B>& harness) { swiglu<D>(harness, tokens); });
    }
  };
  at_width(std::integral_constant<int, 64>{});
  at_width(std::integral_constant<int, 200>{});  // a multiple of 8 and of nothing more
  at_width(std::integral_constant<int, 704>{});
  for (const int tokens : {1, 7, 130}) {
    for (const int width : {64, 768, 1544}) {
      add("bias " + std::to_string(tokens) + " x " + std::to_string(width),
          [=](Harness<B>& harness) { bias(harness, tokens, width); });
    }
  }
  for (const qlora::AttentionShape heads : {qlora::AttentionShape{4, 4, 32}, {8, 2, 64}, {8, 1, 128}}) {
    for (const int tokens : {1, 7, 130}) {
      add("rope " + std::to_string(tokens) + ", heads of " + std::to_string(heads.head_dim),
          [=](Harness<B>& harness) { rope(harness, tokens, heads); });
    }
  }
  for (const int count : {8, 16384, 16392, 100'000}) {
    for (const float limit : {0.0F, 1.0F}) {
      add("optimizer " + std::to_string(count) + " limit " + std::to_string(limit),
          [=](Harness<B>& harness) { optimizer(harness, count, limit); });
    }
  }
  for (const int count : {16385, 40'003, 100'000}) {
    add("sums " + std::to_string(count), [=](Harness<B>& harness) { sums(harness, count, 1); });
  }
  return cases;
}

/// Widths of 7B, 13B and 70B.
template <class B>
[[nodiscard]] Cases<B> true_width_row_cases() {
  Cases<B> cases;
  const auto norm = [&]<int D>(std::integral_constant<int, D>) {
    cases.push_back({"rmsnorm of " + std::to_string(D), [](Harness<B>& harness) { rmsnorm<D>(harness, 33); }});
    cases.push_back({"rmsnorm backward of " + std::to_string(D),
                     [](Harness<B>& harness) { rmsnorm_backward<D>(harness, 33, true); }});
  };
  norm(std::integral_constant<int, 4096>{});
  norm(std::integral_constant<int, 5120>{});
  norm(std::integral_constant<int, 8192>{});
  const auto gate = [&]<int F>(std::integral_constant<int, F>) {
    cases.push_back({"swiglu of " + std::to_string(F), [](Harness<B>& harness) { swiglu<F>(harness, 33); }});
  };
  gate(std::integral_constant<int, 11008>{});
  gate(std::integral_constant<int, 13824>{});
  gate(std::integral_constant<int, 28672>{});
  return cases;
}

}  // namespace ops
