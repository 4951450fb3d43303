// AdamW against its formula evaluated in Python, and the norm of the gradient against a plain sum.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/cpu/adamw.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

using namespace qlora;
using Five = std::array<double, 5>;

TEST_CASE("AdamW: decay beside the moments, bias correction, eps outside the root, the clip factor on the gradient") {
  // torch.optim.AdamW's rule in double; all settings are exact in float.
  struct Row {
    AdamW rule;
    double clip;
    int steps;
    Five parameters, moment1, moment2;
  };
  const Row rows[] = {
      {{.lr = 0x1p-7F, .beta1 = 0.875F, .beta2 = 0.96875F, .eps = 0x1p-20F},
       1.0,
       1,
       {0.4921912235147883, -1.2578123509912302, 2.00781247516481, 0.0, 2.4835267870004785e-10},
       {0.00025, 0.00625, -0.037500000000000006, 0.0, 3.75},
       {1.25e-07, 7.812500000000002e-05, 0.0028125000000000008, 0.0, 28.125}},
      {{.lr = 0x1p-7F, .beta1 = 0.875F, .beta2 = 0.96875F, .eps = 0x1p-20F},
       1.0,
       9,
       {0.4762234977010653, -1.273348743752094, 2.013348966031258, 0.015434412595149452, -0.00135807913248563},
       {0.00038498176634311674, -0.004302277788519859, -0.05626476034522057, 0.1894223690032959, 4.672304019331932},
       {2.3373669033136366e-06, 0.00028201580673265034, 0.023005315245029866, 2.36660793122428, 261.7737384330468}},
      {{.lr = 0x1p-6F, .beta1 = 0.75F, .beta2 = 0.96875F, .eps = 0x1p-10F, .weight_decay = 0.125F},
       0.25,
       30,
       {0.45474388800034893, -1.2158101136042474, 1.9091068303071983, 0.02990675498625467, -0.006513191332752355},
       {-0.00013100469669136245, 4.440438801426455e-05, -0.010693026973221682, 0.1585821908595157, -0.5137787211897993},
       {3.8108785105965205e-07, 3.7069016150711255e-05, 0.003839965231587578, 0.39814271846220095, 38.106187329135025}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.steps);
    cpu::ThreadPool pool(2);
    Five p{0.5, -1.25, 2.0, 0.0, 0.0078125}, m{}, v{}, g{};
    AdamW rule = row.rule;
    for (rule.step = 1; rule.step <= row.steps; ++rule.step) {
      for (int i = 0; i < 5; ++i) {
        g[static_cast<std::size_t>(i)] = ((rule.step * 7 + i * 3) % 11 - 5) * std::pow(10.0, i - 3);
      }
      cpu::adamw(pool, 5, rule, row.clip, g.data(), p.data(), m.data(), v.data());
    }
    for (std::size_t i = 0; i < 5; ++i) {
      CHECK(p[i] == doctest::Approx(row.parameters[i]).epsilon(1e-12).scale(0.01));
      CHECK(m[i] == doctest::Approx(row.moment1[i]).epsilon(1e-12).scale(1e-3));
      CHECK(v[i] == doctest::Approx(row.moment2[i]).epsilon(1e-12).scale(1e-6));
    }
  }
}

TEST_CASE("AdamW takes each element by itself, in any number of tiles") {
  constexpr std::int64_t count = 40'001;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> g(count), p(count);
  for (float& value : g) value = normal(random);
  for (float& value : p) value = normal(random);
  std::vector<float> m(count, 0.1F), v(count, 0.2F);
  std::vector<float> p1 = p, m1 = m, v1 = v;
  cpu::ThreadPool three(3), single(1);
  const AdamW rule{.lr = 1e-2F, .weight_decay = 0.1F, .step = 5};
  cpu::adamw(three, count, rule, 0.5, g.data(), p.data(), m.data(), v.data());
  cpu::adamw(single, count, rule, 0.5, g.data(), p1.data(), m1.data(), v1.data());
  CHECK(p == p1);
  CHECK(m == m1);
  CHECK(v == v1);
  for (const std::size_t i : {std::size_t{0}, std::size_t{16383}, std::size_t{16384}, std::size_t{40'000}}) {
    const double gradient = 0.5 * static_cast<double>(g[i]);
    CHECK(static_cast<double>(m[i]) == doctest::Approx(0.09 + 0.1 * gradient).epsilon(1e-5));
    CHECK(static_cast<double>(v[i]) == doctest::Approx(0.1998 + 0.001 * gradient * gradient).epsilon(1e-5));
  }
}

TEST_CASE("gradient norm: all tiles, the same bits for any thread count, not finite if anything is not") {
  std::vector<float> g(50'000);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  long double sum = 0.0L;
  for (float& value : g) {
    value = normal(random);
    sum += static_cast<long double>(value) * static_cast<long double>(value);
  }
  const auto count = static_cast<std::int64_t>(g.size());
  std::vector<double> partial(static_cast<std::size_t>(norm_partials(count)));
  cpu::ThreadPool single(1), three(3);
  const double norm = cpu::gradient_norm(single, count, g.data(), partial.data());
  CHECK(norm == doctest::Approx(static_cast<double>(std::sqrt(sum))).epsilon(1e-13));
  CHECK(cpu::gradient_norm(three, count, g.data(), partial.data()) == norm);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    g[33'333] = bad;
    CHECK_FALSE(std::isfinite(cpu::gradient_norm(three, count, g.data(), partial.data())));
  }
  g.assign(g.size(), 1e30F);  // squares that float could not hold
  CHECK(cpu::gradient_norm(three, count, g.data(), partial.data()) ==
        doctest::Approx(1e30 * std::sqrt(5e4)).epsilon(1e-6));
}
