// 8-bit AdamW against AdamW in double: what a step may lose follows from the codes' spacing, which is measured here.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/cpu/adamw8bit.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

using namespace qlora;

namespace {

struct State8 {
  std::vector<std::uint8_t> m, v;
  std::vector<float> m_absmax, v_absmax;
  explicit State8(std::size_t count)
      : m(count), v(count), m_absmax((count + 255) / 256), v_absmax((count + 255) / 256) {}
  [[nodiscard]] Moments8bit first() { return {m.data(), m_absmax.data()}; }
  [[nodiscard]] Moments8bit second() { return {v.data(), v_absmax.data()}; }
  [[nodiscard]] double moment(std::size_t i) const {
    return static_cast<double>(nf4::dynamic8[m[i]]) * static_cast<double>(m_absmax[i / 256]);
  }
  [[nodiscard]] double square(std::size_t i) const {
    return static_cast<double>(nf4::dynamic8_unsigned[v[i]]) * static_cast<double>(v_absmax[i / 256]);
  }
};

/// One step of torch.optim.AdamW for one element.
struct Exact {
  double p = 0, m = 0, v = 0;
  void step(const AdamW& rule, double g) {
    const auto beta1 = static_cast<double>(rule.beta1), beta2 = static_cast<double>(rule.beta2);
    const auto lr = static_cast<double>(rule.lr);
    m = beta1 * m + (1 - beta1) * g;
    v = beta2 * v + (1 - beta2) * g * g;
    p *= 1 - lr * static_cast<double>(rule.weight_decay);
    p -= lr / (1 - std::pow(beta1, rule.step)) * m /
         (std::sqrt(v / (1 - std::pow(beta2, rule.step))) + static_cast<double>(rule.eps));
  }
};

}  // namespace

TEST_CASE("the unsigned map: sorted, 0 and 1 included, decade i holds 2^(i+1) evenly spaced means") {
  const auto& map = nf4::dynamic8_unsigned;
  CHECK(std::is_sorted(map.begin(), map.end()));
  CHECK(map.front() == 0.0F);
  CHECK(map.back() == 1.0F);
  CHECK(std::adjacent_find(map.begin(), map.end()) == map.end());
  std::size_t at = 1;
  for (int decade = 0; decade < 7; ++decade) {
    const int items = 2 << decade;
    for (int i = 0; i < items; ++i, ++at) {
      const double value = std::pow(10.0, decade - 6) * (0.1 + 0.9 * (i + 0.5) / items);
      CHECK(static_cast<double>(map[at]) == doctest::Approx(value).epsilon(1e-6));
    }
  }
  CHECK(at == 255);
}

TEST_CASE("every value of both maps is its own code, and what lies between takes the nearer one") {
  for (const auto* map : {&nf4::dynamic8, &nf4::dynamic8_unsigned}) {
    int wrong = 0;
    for (std::size_t i = 0; i < 256; ++i) wrong += nf4::nearest8(*map, (*map)[i]) != i ? 1 : 0;
    for (std::size_t i = 0; i + 1 < 256; ++i) {
      const float middle = ((*map)[i] + (*map)[i + 1]) * 0.5F;
      wrong += nf4::nearest8(*map, std::nextafter(middle, -2.0F)) != i ? 1 : 0;
      wrong += nf4::nearest8(*map, std::nextafter(middle, 2.0F)) != i + 1 ? 1 : 0;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("a first moment keeps its sign when it is negative") {
  CHECK(nf4::encode8_signed(-1e-30F) == nf4::dynamic8_zero - 1);
  CHECK(nf4::encode8_signed(0.0F) == nf4::dynamic8_zero);
  CHECK(nf4::encode8_signed(1e-30F) == nf4::dynamic8_zero);
  CHECK(nf4::encode8_signed(-1.0F) == 0);
  CHECK(nf4::encode8_signed(1.0F) == 255);
}

TEST_CASE("the first step is AdamW's, and leaves the moments within half a code") {
  constexpr std::size_t count = 700;  // two blocks and a piece
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> g(count), p(count);
  for (float& value : g) value = normal(random);
  for (float& value : p) value = normal(random);
  const std::vector<float> before = p;
  State8 state(count);
  cpu::ThreadPool pool(2);
  const AdamW rule{.lr = 1e-2F, .weight_decay = 0.1F};
  cpu::adamw8bit(pool, count, rule, 0.5, g.data(), p.data(), state.first(), state.second());
  // Widest gaps: between means of the top decade, 0.9 / 64 (signed) and 0.9 / 128 of the block's absmax.
  for (std::size_t i = 0; i < count; ++i) {
    Exact exact{.p = static_cast<double>(before[i])};
    exact.step(rule, 0.5 * static_cast<double>(g[i]));
    CHECK(static_cast<double>(p[i]) == doctest::Approx(exact.p).epsilon(1e-5));
    CHECK(std::abs(state.moment(i) - exact.m) <= 0.9 / 64 / 2 * 1.01 * static_cast<double>(state.m_absmax[i / 256]));
    CHECK(std::abs(state.square(i) - exact.v) <= 0.9 / 128 / 2 * 1.01 * static_cast<double>(state.v_absmax[i / 256]));
  }
}

TEST_CASE("fifty steps stay near AdamW in double") {
  constexpr std::size_t count = 1000;
  std::mt19937 random(4);
  std::normal_distribution<double> normal;
  std::vector<float> p(count, 0.0F), g(count);
  std::vector<Exact> exact(count);
  std::vector<double> drift(count);
  for (double& value : drift) value = normal(random);
  State8 state(count);
  cpu::ThreadPool pool(2);
  AdamW rule{.lr = 1e-3F};
  double moved = 0;
  for (rule.step = 1; rule.step <= 50; ++rule.step) {
    for (std::size_t i = 0; i < count; ++i) {
      g[i] = static_cast<float>(drift[i] + 0.5 * normal(random));
      exact[i].step(rule, static_cast<double>(g[i]));
    }
    cpu::adamw8bit(pool, count, rule, 1.0, g.data(), p.data(), state.first(), state.second());
  }
  double difference = 0;
  for (std::size_t i = 0; i < count; ++i) {
    difference += std::pow(static_cast<double>(p[i]) - exact[i].p, 2);
    moved += exact[i].p * exact[i].p;
  }
  CHECK(std::sqrt(moved / count) > 0.02);  // 50 steps of 1e-3 against a steady drift
  CHECK(std::sqrt(difference / moved) < 0.05);
}

TEST_CASE("the same bits for any thread count; zeros stay zeros") {
  constexpr std::size_t count = 3001;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> g(count), p(count, 1.0F);
  for (std::size_t i = 256; i < count; ++i) g[i] = normal(random);  // the first block has no gradient
  std::vector<float> p1 = p;
  State8 state(count), state1(count);
  cpu::ThreadPool single(1), three(3);
  for (int step = 1; step <= 3; ++step) {
    const AdamW rule{.lr = 1e-2F, .step = step};
    cpu::adamw8bit(three, count, rule, 1.0, g.data(), p.data(), state.first(), state.second());
    cpu::adamw8bit(single, count, rule, 1.0, g.data(), p1.data(), state1.first(), state1.second());
  }
  CHECK(p == p1);
  CHECK(state.m == state1.m);
  CHECK(state.v == state1.v);
  CHECK(state.m_absmax == state1.m_absmax);
  for (std::size_t i = 0; i < 256; ++i) {
    CHECK(p[i] == 1.0F);
    CHECK(state.moment(i) == 0.0);
    CHECK(state.square(i) == 0.0);
  }
}
