// The next token: which ids can be drawn at all, and how often each is.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/generate/sampler.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

using namespace qlora;

namespace {

// Probabilities 0.04 0.30 0.16 0.25 0.05 0.20: ids in order of likelihood are 1 3 5 2 4 0.
const std::vector<double> chances{0.04, 0.30, 0.16, 0.25, 0.05, 0.20};
std::vector<float> logits(double temperature = 1.0) {
  std::vector<float> values;
  for (const double p : chances) values.push_back(static_cast<float>(temperature * std::log(p) + 3.0));
  return values;
}
std::vector<int> draw(const std::vector<float>& from, const Sampling& how, std::uint32_t times) {
  std::vector<int> seen(from.size(), 0);
  for (std::uint32_t i = 0; i < times; ++i) ++seen[static_cast<std::size_t>(sample(from, how, i % 7, i / 7))];
  return seen;
}
std::set<int> reachable(const Sampling& how) {
  const std::vector<int> seen = draw(logits(), how, 2000);
  std::set<int> ids;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (seen[i] > 0) ids.insert(static_cast<int>(i));
  }
  return ids;
}
/// Each share within five standard deviations of its probability.
void check_shares(const std::vector<int>& seen, const std::vector<double>& expected) {
  double all = 0;
  for (const int times : seen) all += times;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    CAPTURE(i);
    const double bound = 5.0 * std::sqrt(all * expected[i] * (1.0 - expected[i]));
    CHECK(std::abs(seen[i] - all * expected[i]) <= bound);
  }
}

}  // namespace

TEST_CASE("greedy takes the largest, the lowest id among equals") {
  CHECK(sample(logits(), greedy, 0, 0) == 1);
  CHECK(argmax(std::vector<float>{1.0F, 5.0F, 5.0F, 2.0F}) == 1);
  CHECK(argmax(std::vector<float>{-1.0F, -std::numeric_limits<float>::infinity()}) == 0);
}

TEST_CASE("top_k keeps that many of the likeliest") {
  CHECK(reachable({.temperature = 1.0F, .top_p = 1.0F, .top_k = 1}) == std::set<int>{1});
  CHECK(reachable({.temperature = 1.0F, .top_p = 1.0F, .top_k = 3}) == std::set<int>{1, 3, 5});
  CHECK(reachable({.temperature = 1.0F, .top_p = 1.0F, .top_k = 100}).size() == 6);
  const std::vector<float> equal(5, 2.0F);  // among equals the lowest ids stay
  const std::vector<int> seen = draw(equal, {.temperature = 1.0F, .top_p = 1.0F, .top_k = 2}, 500);
  CHECK(seen[0] + seen[1] == 500);
}

TEST_CASE("top_p keeps the smallest set that reaches it") {
  CHECK(reachable({.temperature = 1.0F, .top_p = 0.29F}) == std::set<int>{1});
  CHECK(reachable({.temperature = 1.0F, .top_p = 0.54F}) == std::set<int>{1, 3});
  CHECK(reachable({.temperature = 1.0F, .top_p = 0.56F}) == std::set<int>{1, 3, 5});
  CHECK(reachable({.temperature = 1.0F, .top_p = 0.90F}) == std::set<int>{1, 3, 5, 2});
  CHECK(reachable({.temperature = 1.0F, .top_p = 1.0F}).size() == 6);
  // After top_k 2 the shares are 0.545 and 0.455: the first alone reaches one half.
  CHECK(reachable({.temperature = 1.0F, .top_p = 0.5F, .top_k = 2}) == std::set<int>{1});
}

TEST_CASE("ids are drawn as often as their probability says") {
  constexpr std::uint32_t times = 60000;
  check_shares(draw(logits(), {.temperature = 1.0F, .top_p = 1.0F, .seed = 3}, times), chances);
  check_shares(draw(logits(2.0), {.temperature = 2.0F, .top_p = 1.0F, .seed = 4}, times), chances);
  // top_p 0.56 leaves 0.30 + 0.25 + 0.20
  check_shares(draw(logits(), {.temperature = 1.0F, .top_p = 0.56F, .seed = 5}, times),
               {0.0, 0.4, 0.0, 0.25 / 0.75, 0.0, 0.20 / 0.75});
}

TEST_CASE("temperature sharpens before top_p cuts") {
  const Sampling article{};  // 0.01 and 0.9: as good as greedy
  const std::vector<int> seen = draw(logits(), article, 2000);
  CHECK(seen[1] == 2000);
}

TEST_CASE("the least temperatures and infinite logits draw the likeliest") {
  const float infinite = std::numeric_limits<float>::infinity();
  for (const Sampling& how : {Sampling{.top_p = 1.0F}, Sampling{.top_p = 0.9F}, Sampling{.top_p = 1.0F, .top_k = 3},
                              Sampling{.top_p = 1.0F, .min_p = 0.1F}}) {
    Sampling cold = how;
    for (const float temperature : {std::numeric_limits<float>::denorm_min(), 1e-40F, 2.9e-39F, 3e-39F, 1e-30F}) {
      cold.temperature = temperature;
      CHECK(draw(logits(), cold, 20)[1] == 20);
    }
    cold.temperature = 1.0F;
    CHECK(draw({1.0F, 2.0F, infinite, 3.0F}, cold, 20)[2] == 20);
    CHECK(draw({-infinite, -infinite, -infinite}, cold, 20)[0] == 20);
  }
}

TEST_CASE("a draw depends on seed, sequence and position, and on nothing else") {
  const Sampling how{.temperature = 1.0F, .top_p = 1.0F, .seed = 11};
  Sampling other = how;
  other.seed = 12;
  int seeds = 0;
  int sequences = 0;
  int positions = 0;
  for (std::uint32_t i = 0; i < 200; ++i) {
    const std::int32_t id = sample(logits(), how, i, 5);
    CHECK(id == sample(logits(), how, i, 5));
    seeds += id != sample(logits(), other, i, 5) ? 1 : 0;
    sequences += id != sample(logits(), how, i + 1000, 5) ? 1 : 0;
    positions += id != sample(logits(), how, i, 6) ? 1 : 0;
  }
  CHECK(seeds > 100);  // two independent draws differ with probability 0.78
  CHECK(sequences > 100);
  CHECK(positions > 100);
}

namespace {
/// The same draw, plainly: everything sorted.
std::int32_t plain_sample(const std::vector<float>& from, const Sampling& how, std::uint32_t position) {
  std::vector<std::int32_t> order(from.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](std::int32_t id) { return from[static_cast<std::size_t>(id)]; };
  std::sort(order.begin(), order.end(),
            [&](auto a, auto b) { return logit(a) == logit(b) ? a < b : logit(a) > logit(b); });
  if (how.top_k > 0) order.resize(std::min(order.size(), static_cast<std::size_t>(how.top_k)));
  std::vector<double> weight;
  double all = 0.0;
  for (const std::int32_t id : order) {
    weight.push_back(std::exp((static_cast<double>(logit(id)) - static_cast<double>(logit(order[0]))) /
                              static_cast<double>(how.temperature)));
    all += weight.back();
  }
  std::size_t size = 0;
  double kept = 0.0;
  for (; size < order.size() && (size == 0 || kept < static_cast<double>(how.top_p) * all); ++size) {
    if (weight[size] < static_cast<double>(how.min_p)) break;
    kept += weight[size];
  }
  const auto words = philox({position, 0, 0, use_word(RandomUse::sampling)}, how.seed);
  double left = (static_cast<double>(words[0]) + 0.5) * 0x1p-32 * kept;
  std::size_t at = 0;
  for (; at + 1 < size && (left -= weight[at]) >= 0.0; ++at) {
  }
  return order[at];
}
}  // namespace

TEST_CASE("ids are drawn as if everything were sorted") {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::set<std::int32_t> drawn;
  for (std::uint32_t i = 0; i < 3000; ++i) {
    std::vector<float> from(1 + random() % (i % 50 == 0 ? 20000 : 700));
    const float width = std::array{0.1F, 1.0F, 5.0F, 40.0F}[random() % 4];
    for (float& value : from) value = std::round(normal(random) * width * 4.0F) / 4.0F;  // many are equal
    const Sampling how{.temperature = std::array{0.01F, 0.7F, 1.0F, 3.0F}[random() % 4],
                       .top_p = std::array{1.0F, 0.95F, 0.5F, 0.01F}[random() % 4],
                       .top_k = std::array{0, 0, 1, 40}[random() % 4],
                       .min_p = std::array{0.0F, 0.0F, 0.05F, 1.0F}[random() % 4],
                       .seed = i};
    CAPTURE(i);
    const std::int32_t id = sample(from, how, 0, i);
    REQUIRE(id == plain_sample(from, how, i));
    drawn.insert(id);
  }
  CHECK(drawn.size() > 200);
}

TEST_CASE("sums of weights are those of the library's exponential") {
  double worst = 0.0;
  for (float x = 0.0F; x > -87.0F; x -= 0.0137F) {
    const double exact = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::abs(static_cast<double>(detail::exp_of_negative(x)) / exact - 1.0));
  }
  CHECK(worst < 3e-7);
  CHECK(detail::exp_of_negative(0.0F) == 1.0F);
  CHECK(detail::exp_of_negative(-1e30F) < 2e-38F);
  CHECK(detail::exp_of_negative(-std::numeric_limits<float>::infinity()) < 2e-38F);
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (const std::size_t count : {1U, 31U, 32U, 33U, 5000U}) {
    std::vector<float> values(count);
    for (float& value : values) value = 6.0F * normal(random);
    const float largest = detail::largest_of(values);
    CHECK(largest == *std::max_element(values.begin(), values.end()));
    double sum = 0.0;
    for (const float value : values) sum += std::exp((static_cast<double>(value) - static_cast<double>(largest)) / 0.8);
    CHECK(detail::sum_of_weights(values, largest, 1.25F) == doctest::Approx(sum).epsilon(1e-6));
  }
}

TEST_CASE("settings that cannot be meant") {
  const auto refuses = [](const Sampling& sampling, const std::string& name) {
    CAPTURE(name);
    try {
      sampling.check();
      FAIL_CHECK("not refused");
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::usage);
      CHECK(std::string(error.what()).starts_with(name + " is "));
    }
  };
  refuses({.temperature = -1.0F}, "temperature");
  refuses({.temperature = 101.0F}, "temperature");
  refuses({.min_p = -0.1F}, "min_p");
  refuses({.min_p = std::nanf("")}, "min_p");
  refuses({.temperature = std::nanf("")}, "temperature");
  refuses({.top_p = 0.0F}, "top_p");
  refuses({.top_p = 1.5F}, "top_p");
  refuses({.top_p = std::nanf("")}, "top_p");
  refuses({.top_k = -1}, "top_k");
  CHECK_NOTHROW(Sampling{}.check());
}
