// Loss and KL divergence on texts whose rows are shared among threads, against plain sums.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/eval/text_sums.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "qlora/error.hpp"

using namespace qlora;
using namespace qlora::eval;

namespace {

constexpr std::size_t vocab = 20000;
constexpr std::size_t tokens = 70;

ItemResults nothing_yet() {
  ItemResults results;
  results.loss = results.kl = results.tokens = {0.0, 0.0};
  return results;
}
/// Probabilities in long double, the textbook's way.
std::vector<long double> softmax(const std::vector<float>& logits) {
  std::vector<long double> p;
  long double sum = 0.0L;
  for (const float z : logits) sum += p.emplace_back(std::exp(static_cast<long double>(z)));
  for (long double& value : p) value /= sum;
  return p;
}

}  // namespace

TEST_CASE("sums of two texts are those of plain loops, and do not depend on how rows come together") {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0F, 2.0F);
  const auto rows = [&] {
    std::vector<std::vector<float>> made(tokens, std::vector<float>(vocab));
    for (auto& row : made) {
      for (float& value : row) value = normal(random);
    }
    return made;
  };
  const auto reference = rows();
  const auto model = rows();
  const auto item_of = [](std::size_t row) { return row < 45 ? 0U : 1U; };
  const auto id_of = [](std::size_t row) { return static_cast<std::int32_t>(row * 281); };

  TextReference recorded;
  recorded.logits.resize(2);
  ItemResults of_reference = nothing_yet();
  eval::detail::TextSums record(of_reference, &recorded, nullptr);
  for (std::size_t row = 0; row < tokens; ++row) record.add(item_of(row), id_of(row), reference[row]);
  record.finish();
  REQUIRE(recorded.logits[0].size() == 45 * vocab);
  REQUIRE(recorded.logits[1].size() == (tokens - 45) * vocab);
  CHECK(recorded.logits[1][2 * vocab + 17] == reference[47][17]);

  ItemResults together = nothing_yet();
  eval::detail::TextSums sums(together, nullptr, &recorded);
  for (std::size_t row = 0; row < tokens; ++row) sums.add(item_of(row), id_of(row), model[row]);
  sums.finish();
  sums.finish();  // adds nothing
  ItemResults one_by_one = nothing_yet();
  eval::detail::TextSums slow(one_by_one, nullptr, &recorded, 1);
  for (std::size_t row = 0; row < tokens; ++row) {
    slow.add(item_of(row), id_of(row), model[row]);
    slow.finish();
  }

  std::vector<long double> loss(2), divergence(2);
  for (std::size_t row = 0; row < tokens; ++row) {
    const std::vector<long double> p = softmax(reference[row]);
    const std::vector<long double> q = softmax(model[row]);
    loss[item_of(row)] -= std::log(q[static_cast<std::size_t>(id_of(row))]);
    for (std::size_t v = 0; v < vocab; ++v) divergence[item_of(row)] += p[v] * std::log(p[v] / q[v]);
  }
  for (std::size_t item = 0; item < 2; ++item) {
    CAPTURE(item);
    CHECK(together.tokens[item] == (item == 0 ? 45.0 : static_cast<double>(tokens - 45)));
    CHECK(together.loss[item] == doctest::Approx(static_cast<double>(loss[item])).epsilon(1e-12));
    CHECK(together.kl[item] == doctest::Approx(static_cast<double>(divergence[item])).epsilon(1e-11));
    CHECK(together.loss[item] == one_by_one.loss[item]);
    CHECK(together.kl[item] == one_by_one.kl[item]);
  }
}

TEST_CASE("each index is worked on once, by any number of threads") {
  for (const std::size_t threads : {1U, 3U, 40U}) {
    std::vector<int> seen(29, 0);
    eval::detail::for_each_by(seen.size(), threads, [&](std::size_t i) { ++seen[i]; });
    CHECK(seen == std::vector<int>(29, 1));
  }
}

TEST_CASE("a reference of other texts is refused") {
  TextReference other;
  other.logits = {std::vector<float>(8), {}};
  ItemResults results = nothing_yet();
  eval::detail::TextSums sums(results, nullptr, &other);
  sums.add(0, 1, std::vector<float>(8));
  CHECK_THROWS_AS(sums.add(0, 1, std::vector<float>(8)), Error);
}
