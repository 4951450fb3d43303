// qlora/eval/sweep.hpp — one number of several training runs that differ in the seed, and the axis of a varied setting.
// Each run is measured on the same items and brings an interval over these. The mean over the seeds gets the means of the
// intervals' ends: the interval that it has when all seeds err on the same items, so rather too wide than too narrow. What
// another seed would give is not in it: that is what least and most over the seeds are for.
// Proven by tests/sweeps_test.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "qlora/eval/front.hpp"
#include "qlora/eval/statistics.hpp"
#include "qlora/eval/svg.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// What was measured with one seed after the other. Bounds are NaN unless every seed has them.
struct PooledSeeds {
  OverSeeds over;
  double lower = std::numeric_limits<double>::quiet_NaN();
  double upper = lower;
  int n = 0;  ///< items of a seed: the fewest
  std::vector<double> values;

  void add(const Interval& one) {
    const auto count = static_cast<double>(values.size());
    lower = values.empty() ? one.lower : (lower * count + one.lower) / (count + 1);
    upper = values.empty() ? one.upper : (upper * count + one.upper) / (count + 1);
    n = values.empty() ? one.n : std::min(n, one.n);
    over.add(one.value);
    values.push_back(one.value);
  }
};

/// Values that span a factor of eight or more are laid out by their ratios: ranks and doses are mostly doubled.
[[nodiscard]] inline Scale sweep_scale(std::span<const double> values) {
  constexpr double wide = 8;
  if (values.size() < 3) return Scale::linear;
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  return *least > 0 && *most >= wide * *least ? Scale::logarithmic : Scale::linear;
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
