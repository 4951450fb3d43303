// qlora/eval/statistics.hpp — means, paired differences and ratios of item scores, with bootstrap intervals.
// Items about one entity are correlated, so whole clusters are resampled: C clusters are drawn from the C with
// replacement, each with all its items. The interval is the percentile one: its ends are the (1-level)/2 and
// (1+level)/2 quantiles of the resampled statistic, linear between order statistics (position (B-1)p from 0, definition
// 7 of Hyndman and Fan, 1996). Every statistic is sum / sum, so a resample only adds precomputed sums of clusters.
// What may not change: a draw is a function of (seed, resample, draw), and clusters are put in the order of their sums
// before any is drawn. So the result depends on the scores and on who shares a cluster, to the last bit, and neither on
// the order of the items nor on the numbers of the clusters. tests/eval/statistics_test.cpp checks closed forms.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/results.hpp"
#include "qlora/rng.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// How intervals are made.
struct Bootstrap {
  int resamples = 2000;    ///< at least 1
  double level = 0.95;     ///< share of resamples inside the interval, above 0 and below 1
  std::uint64_t seed = 1;  ///< the same seed gives the same draws
};

namespace detail {

struct Sums {
  double numerator = 0;
  double denominator = 0;
  auto operator<=>(const Sums&) const = default;
};

/// The sums of each cluster, in an order that depends on them alone.
[[nodiscard]] inline std::vector<Sums> cluster_sums(std::span<const double> numerator,
                                                    std::span<const double> denominator, std::span<const int> cluster) {
  struct Row {
    int cluster;
    Sums score;
  };
  std::vector<Row> rows(cluster.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    QLORA_EXPECTS(std::isfinite(numerator[i]) && std::isfinite(denominator[i]), "item ", i, " scores ", numerator[i],
                  " over ", denominator[i]);
    rows[i] = {cluster[i], {numerator[i], denominator[i]}};
  }
  std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {  // within a cluster too: sums round by order
    return a.cluster != b.cluster ? a.cluster < b.cluster : a.score < b.score;
  });
  std::vector<Sums> sums;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (i == 0 || rows[i].cluster != rows[i - 1].cluster) sums.emplace_back();
    sums.back().numerator += rows[i].score.numerator;
    sums.back().denominator += rows[i].score.denominator;
  }
  std::sort(sums.begin(), sums.end());
  return sums;
}

/// The statistic of one resample. 32 bits are scaled down to a cluster: bias below clusters / 2^32.
[[nodiscard]] inline Sums resample(const std::vector<Sums>& clusters, std::uint64_t seed, std::uint32_t number) {
  const std::uint64_t count = clusters.size();
  Sums total;
  for (std::uint32_t draw = 0; draw < count; draw += 4) {
    const PhiloxCounter words = philox({draw / 4, number, 0, use_word(RandomUse::resampling)}, seed);
    const std::size_t here = std::min<std::size_t>(4, count - draw);
    for (std::size_t k = 0; k < here; ++k) {
      const Sums& drawn = clusters[(words[k] * count) >> 32];
      total.numerator += drawn.numerator;
      total.denominator += drawn.denominator;
    }
  }
  return total;
}

/// The p quantile of sorted values, linear between order statistics.
[[nodiscard]] inline double quantile(std::span<const double> sorted, double p) {
  const double position = p * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace detail

/// Sum of numerators over sum of denominators: a share kept of what there was, or nats per token. If the denominators
/// sum to 0 all three numbers are NaN. Resamples whose denominators sum to 0 are left out of the quantiles: the
/// interval is then that of the ratio given that there is one.
[[nodiscard]] inline Interval ratio(std::span<const double> numerator, std::span<const double> denominator,
                                    std::span<const int> cluster, const Bootstrap& bootstrap = {}) {
  QLORA_EXPECTS(numerator.size() == denominator.size() && numerator.size() == cluster.size(), numerator.size(),
                " numerators, ", denominator.size(), " denominators, ", cluster.size(), " clusters");
  QLORA_EXPECTS(numerator.size() <= std::size_t{INT32_MAX}, numerator.size(), " items are too many");
  QLORA_EXPECTS(bootstrap.resamples >= 1, "resamples is ", bootstrap.resamples);
  QLORA_EXPECTS(bootstrap.level > 0 && bootstrap.level < 1, "level is ", bootstrap.level);
  Interval result;
  if (numerator.empty()) return result;
  const std::vector<detail::Sums> clusters = detail::cluster_sums(numerator, denominator, cluster);
  detail::Sums all;
  for (const detail::Sums& sums : clusters) {
    all.numerator += sums.numerator;
    all.denominator += sums.denominator;
  }
  result.n = static_cast<int>(numerator.size());
  result.clusters = static_cast<int>(clusters.size());
  result.value = std::numeric_limits<double>::quiet_NaN();
  if (all.denominator == 0) return result;
  result.value = all.numerator / all.denominator;
  std::vector<double> values;
  values.reserve(static_cast<std::size_t>(bootstrap.resamples));
  for (int i = 0; i < bootstrap.resamples; ++i) {
    const detail::Sums drawn = detail::resample(clusters, bootstrap.seed, static_cast<std::uint32_t>(i));
    if (drawn.denominator != 0) values.push_back(drawn.numerator / drawn.denominator);
  }
  if (values.empty()) return result;
  std::sort(values.begin(), values.end());
  result.lower = detail::quantile(values, (1 - bootstrap.level) / 2);
  result.upper = detail::quantile(values, (1 + bootstrap.level) / 2);
  return result;
}

/// The mean over the items: a large cluster counts by its size.
[[nodiscard]] inline Interval mean(std::span<const double> x, std::span<const int> cluster,
                                   const Bootstrap& bootstrap = {}) {
  return ratio(x, std::vector<double>(x.size(), 1.0), cluster, bootstrap);
}

/// The mean of tuned - base on the same items. Item difficulty cancels, so it is narrower than two separate intervals.
[[nodiscard]] inline Interval difference(std::span<const double> tuned, std::span<const double> base,
                                         std::span<const int> cluster, const Bootstrap& bootstrap = {}) {
  QLORA_EXPECTS(tuned.size() == base.size(), tuned.size(), " scores after, ", base.size(), " before");
  std::vector<double> change(tuned.size());
  for (std::size_t i = 0; i < change.size(); ++i) change[i] = tuned[i] - base[i];
  return mean(change, cluster, bootstrap);
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
