// statistics_test.cpp — bootstrap intervals against closed forms: binomial quantiles, the cluster-robust standard
// error, the delta method; against a second implementation that copies items; and how often they cover what is true.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/eval/statistics.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

using namespace qlora;
using namespace qlora::eval;

namespace {

constexpr double normal_quantile = 1.959963984540054;  // of 0.975

/// P(X <= k) of a binomial X, term by term.
double binomial_cdf(int k, int n, double p) {
  double sum = 0;
  for (int i = 0; i <= k; ++i) {
    sum += std::exp(std::lgamma(n + 1.0) - std::lgamma(i + 1.0) - std::lgamma(n - i + 1.0) + i * std::log(p) +
                    (n - i) * std::log1p(-p));
  }
  return sum;
}

std::vector<int> singletons(std::size_t count) {
  std::vector<int> cluster(count);
  std::iota(cluster.begin(), cluster.end(), 0);
  return cluster;
}

/// Items in clusters of one to nine: a normal effect of the cluster and one of the item, and a weight.
struct Sample {
  std::vector<double> x;
  std::vector<double> weight;
  std::vector<int> cluster;
};

Sample sample(int clusters, double cluster_effect, double item_effect, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  Sample result;
  for (int c = 0; c < clusters; ++c) {
    const double shared = cluster_effect * normal(random);
    for (int i = 0, size = 1 + c % 9; i < size; ++i) {
      result.weight.push_back(static_cast<double>(1 + random() % 8));
      result.x.push_back(0.5 + shared + item_effect * normal(random));
      result.cluster.push_back(c);
    }
  }
  return result;
}

/// Standard error of sum(y) / sum(x) over clusters: the linearised residuals' sum of squares (Cochran, ch. 6).
double cluster_robust_error(const std::vector<double>& y, const std::vector<double>& x,
                            const std::vector<int>& cluster) {
  const double total = std::accumulate(x.begin(), x.end(), 0.0);
  const double value = std::accumulate(y.begin(), y.end(), 0.0) / total;
  std::vector<double> residual(static_cast<std::size_t>(*std::max_element(cluster.begin(), cluster.end())) + 1);
  for (std::size_t i = 0; i < y.size(); ++i) residual[static_cast<std::size_t>(cluster[i])] += y[i] - value * x[i];
  return std::sqrt(std::inner_product(residual.begin(), residual.end(), residual.begin(), 0.0)) / total;
}

double width(const Interval& interval) { return interval.upper - interval.lower; }

bool same(const Interval& a, const Interval& b) {
  return a.value == b.value && a.lower == b.lower && a.upper == b.upper && a.n == b.n && a.clusters == b.clusters;
}

}  // namespace

TEST_CASE("without clusters, resampled means of zeros and ones are binomial") {
  constexpr int n = 200;
  constexpr int resamples = 20000;
  for (const int right : {20, 60, 137}) {
    CAPTURE(right);
    std::vector<double> x(n, 0.0);
    std::fill_n(x.begin(), right, 1.0);
    const Interval interval = mean(x, singletons(n), {.resamples = resamples, .level = 0.95, .seed = 7});
    CHECK(interval.value == static_cast<double>(right) / n);
    CHECK(interval.n == n);
    CHECK(interval.clusters == n);
    // The end is the binomial quantile of a probability that is off by the Monte Carlo error of a quantile at most.
    const double error = 5 * std::sqrt(0.025 * 0.975 / resamples);
    const double p = static_cast<double>(right) / n;
    const int lower = static_cast<int>(std::lround(interval.lower * n));
    const int upper = static_cast<int>(std::lround(interval.upper * n));
    CHECK(std::abs(interval.lower * n - lower) < 1e-9);
    CHECK(binomial_cdf(lower - 1, n, p) < 0.025 + error);
    CHECK(binomial_cdf(lower, n, p) > 0.025 - error);
    CHECK(binomial_cdf(upper - 1, n, p) < 0.975 + error);
    CHECK(binomial_cdf(upper, n, p) > 0.975 - error);
  }
}

TEST_CASE("the width of clustered intervals is that of the cluster-robust standard error") {
  const Sample data = sample(300, 1.0, 0.5, 11);
  const std::vector<double> ones(data.x.size(), 1.0);
  const Interval interval = mean(data.x, data.cluster);
  const double expected = 2 * normal_quantile * cluster_robust_error(data.x, ones, data.cluster);
  CHECK(interval.clusters == 300);
  CHECK(width(interval) / expected == doctest::Approx(1.0).epsilon(0.1));
  // Taken for independent, the same items look twice as certain as they are.
  const Interval naive = mean(data.x, singletons(data.x.size()));
  const double expected_naive = 2 * normal_quantile * cluster_robust_error(data.x, ones, singletons(data.x.size()));
  CHECK(width(naive) / expected_naive == doctest::Approx(1.0).epsilon(0.1));
  CHECK(width(interval) > 2 * width(naive));
}

TEST_CASE("the width of a ratio's interval is that of the delta method") {
  Sample data = sample(300, 0.4, 0.5, 12);
  for (std::size_t i = 0; i < data.x.size(); ++i) data.x[i] *= data.weight[i];
  const Interval interval = ratio(data.x, data.weight, data.cluster);
  const double total = std::accumulate(data.weight.begin(), data.weight.end(), 0.0);
  CHECK(interval.value == doctest::Approx(std::accumulate(data.x.begin(), data.x.end(), 0.0) / total).epsilon(1e-12));
  const double expected = 2 * normal_quantile * cluster_robust_error(data.x, data.weight, data.cluster);
  CHECK(width(interval) / expected == doctest::Approx(1.0).epsilon(0.1));
}

TEST_CASE("a paired difference is as wide as the items that changed make it") {
  constexpr std::size_t n = 1000;
  constexpr double won = 0.08;
  constexpr double lost = 0.02;
  std::vector<double> base(n);
  for (std::size_t i = 0; i < n; ++i) base[i] = i % 2 == 0 ? 1.0 : 0.0;
  std::vector<double> tuned = base;
  for (std::size_t i = 0; i < 80; ++i) tuned[2 * i + 1] = 1.0;
  for (std::size_t i = 0; i < 20; ++i) tuned[2 * i] = 0.0;
  const Interval interval = difference(tuned, base, singletons(n));
  CHECK(interval.value == doctest::Approx(won - lost).epsilon(1e-12));
  const double error = std::sqrt((won + lost - (won - lost) * (won - lost)) / n);
  CHECK(width(interval) / (2 * normal_quantile * error) == doctest::Approx(1.0).epsilon(0.1));
}

TEST_CASE("a constant shift is found exactly, without width") {
  const Sample data = sample(40, 1.0, 1.0, 3);
  std::vector<double> base;
  std::vector<double> tuned;
  for (const double x : data.x) {
    base.push_back(std::round(x * 64) / 64);  // exact in binary, and so is the shift
    tuned.push_back(base.back() + 0.375);
  }
  const Interval interval = difference(tuned, base, data.cluster);
  CHECK(interval.value == 0.375);
  CHECK(interval.lower == 0.375);
  CHECK(interval.upper == 0.375);
}

TEST_CASE("resamples are those of a plain implementation that copies the items") {
  const std::vector<double> x{4, 1, 0, 9, 2, 7, 3};
  const std::vector<int> cluster{0, 1, 1, 2, 2, 3, 4};
  // Clusters by rising sum: {1, 0}, {3}, {4}, {7}, {9, 2}.
  const std::vector<std::vector<double>> ordered{{1, 0}, {3}, {4}, {7}, {9, 2}};
  constexpr std::uint64_t seed = 0x123456789ABCDEFULL;
  std::vector<double> means;
  for (std::uint32_t number = 0; number < 5; ++number) {
    std::vector<double> items;
    for (std::uint32_t draw = 0; draw < 5; ++draw) {
      const auto words = philox({draw / 4, number, 0, use_word(RandomUse::resampling)}, seed);
      const double unit = words[draw % 4] * 0x1p-32;
      const auto& drawn = ordered[static_cast<std::size_t>(unit * 5)];
      items.insert(items.end(), drawn.begin(), drawn.end());
    }
    means.push_back(std::accumulate(items.begin(), items.end(), 0.0) / static_cast<double>(items.size()));
  }
  std::sort(means.begin(), means.end());
  // Level 0.5 of five resamples: the quartiles are the second and the fourth of them.
  const Interval interval = mean(x, cluster, {.resamples = 5, .level = 0.5, .seed = seed});
  CHECK(interval.value == 26.0 / 7);
  CHECK(interval.lower == means[1]);
  CHECK(interval.upper == means[3]);
  CHECK(means[1] < means[3]);
}

TEST_CASE("quantiles are linear between order statistics") {
  const std::vector<double> four{1, 2, 3, 4};
  CHECK(eval::detail::quantile(four, 0.0) == 1);
  CHECK(eval::detail::quantile(four, 0.25) == 1.75);
  CHECK(eval::detail::quantile(four, 0.5) == 2.5);
  CHECK(eval::detail::quantile(four, 1.0) == 4);
  CHECK(eval::detail::quantile(std::vector<double>{10}, 0.3) == 10);
}

TEST_CASE("an interval is a function of the seed, of the scores and of who shares a cluster") {
  const Sample data = sample(50, 0.7, 0.9, 5);
  const Interval first = ratio(data.x, data.weight, data.cluster, {.seed = 9});
  CHECK(same(first, ratio(data.x, data.weight, data.cluster, {.seed = 9})));
  CHECK_FALSE(same(first, ratio(data.x, data.weight, data.cluster, {.seed = 10})));
  std::vector<std::size_t> order(data.x.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::mt19937_64 random(1);
  for (int round = 0; round < 5; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    Sample other;
    for (const std::size_t i : order) {
      other.x.push_back(data.x[i]);
      other.weight.push_back(data.weight[i]);
      other.cluster.push_back(round % 2 == 0 ? data.cluster[i] : 1000 - 7 * data.cluster[i]);  // numbers are only names
    }
    CHECK(same(first, ratio(other.x, other.weight, other.cluster, {.seed = 9})));
  }
}

TEST_CASE("95 % intervals cover the truth about that often, and not if clusters are ignored") {
  int covered = 0;
  int covered_naive = 0;
  constexpr int sets = 200;
  for (unsigned set = 0; set < sets; ++set) {
    const Sample data = sample(45, 1.0, 0.5, 100 + set);  // the mean of every item is 0.5
    const Interval interval = mean(data.x, data.cluster, {.resamples = 1000, .seed = set});
    covered += interval.lower <= 0.5 && 0.5 <= interval.upper ? 1 : 0;
    const Interval naive = mean(data.x, singletons(data.x.size()), {.resamples = 1000, .seed = set});
    covered_naive += naive.lower <= 0.5 && 0.5 <= naive.upper ? 1 : 0;
  }
  CHECK(covered >= 0.88 * sets);
  CHECK(covered <= 0.99 * sets);
  CHECK(covered_naive < 0.75 * sets);
}

TEST_CASE("few clusters cover the truth as rarely as docs/probes.md says") {
  // Clusters of eight zeros and ones of mean p; with probability 0.3 all eight are one draw, so their correlation is
  // 0.3.
  const auto coverage = [](double p, int clusters) {
    constexpr unsigned sets = 600;
    std::mt19937_64 random(17);
    std::uniform_real_distribution<double> unit;
    int covered = 0;
    for (unsigned set = 0; set < sets; ++set) {
      std::vector<double> x;
      std::vector<int> cluster;
      for (int c = 0; c < clusters; ++c) {
        const bool shared = unit(random) < 0.3;
        const double common = unit(random);
        for (int i = 0; i < 8; ++i) {
          x.push_back((shared ? common : unit(random)) < p ? 1.0 : 0.0);
          cluster.push_back(c);
        }
      }
      const Interval interval = mean(x, cluster, {.resamples = 500, .seed = set});
      covered += interval.lower <= p && p <= interval.upper ? 1 : 0;
    }
    return static_cast<double>(covered) / sets;
  };
  // Within three standard errors of a share of 600: 0.045, and less nearer to 1.
  CHECK(std::abs(coverage(0.5, 5) - 0.84) < 0.045);
  CHECK(std::abs(coverage(0.5, 25) - 0.94) < 0.03);
  CHECK(std::abs(coverage(0.9, 10) - 0.84) < 0.045);
}

TEST_CASE("nothing, one cluster, nothing to divide by") {
  const Interval none = mean({}, {});
  CHECK(none.n == 0);
  CHECK(none.clusters == 0);
  CHECK(none.value == 0);
  CHECK(std::isnan(none.lower));
  CHECK(std::isnan(none.upper));

  const Interval interval = mean(std::vector<double>{1, 0, 0, 1}, std::vector<int>{5, 5, 5, 5});
  CHECK(same(interval, {0.5, 0.5, 0.5, 4, 1}));

  const std::vector<int> two{0, 1};
  const Interval undefined = ratio(std::vector<double>{1, 2}, std::vector<double>{0, 0}, two);
  CHECK(undefined.n == 2);
  CHECK(std::isnan(undefined.value));
  CHECK(std::isnan(undefined.lower));

  // A quarter of the resamples draws the first cluster twice and is left out; the others all have the ratio of the
  // second.
  CHECK(same(ratio(std::vector<double>{0, 1}, std::vector<double>{0, 2}, two), {0.5, 0.5, 0.5, 2, 2}));
}

TEST_CASE("what cannot be meant is refused") {
  const std::vector<double> x{1, 2};
  const std::vector<int> two{0, 1};
  CHECK_THROWS_AS((void)mean(x, std::vector<int>{0}), Error);
  CHECK_THROWS_AS((void)difference(x, std::vector<double>{1}, two), Error);
  CHECK_THROWS_AS((void)ratio(x, std::vector<double>{1}, two), Error);
  CHECK_THROWS_AS((void)mean(x, two, {.resamples = 0}), Error);
  CHECK_THROWS_AS((void)mean(x, two, {.level = 1.0}), Error);
  CHECK_THROWS_AS((void)mean(std::vector<double>{1, std::numeric_limits<double>::quiet_NaN()}, two), Error);
}
