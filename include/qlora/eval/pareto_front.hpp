// qlora/eval/pareto_front.hpp — trials of several methods against each other: what a method kept, at what it learned.
// Methods are tuned separately (learning rates, epochs), so neither number alone ranks them. A trial that gained 60 and
// kept 98 shows that 98 can be kept at any gain up to 60. So kept_at(gain) is, for each seed, the most that any setting
// of a method with at least this gain kept.
// What may not change: the choice is made per seed, so that luck of different seeds does not add up.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "qlora/eval/statistics.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// One training run, measured.
struct Trial {
  std::string group;                                             ///< the method: one line of the plot
  std::string setting;                                           ///< what trials of different seeds share
  std::int64_t seed = 0;                                         ///< of the training
  double gain = 0.0;                                             ///< new facts learned, a share
  double kept = 0.0;                                             ///< old facts that are right, a share
  double kept_lower = std::numeric_limits<double>::quiet_NaN();  ///< its interval over items; NaN: none
  double kept_upper = std::numeric_limits<double>::quiet_NaN();  ///< upper end; NaN: none
};

/// A number over seeds: mean, least and most. Without any, NaN.
struct OverSeeds {
  double mean = std::numeric_limits<double>::quiet_NaN();  ///< sum over seeds / their number
  double least = mean;                                     ///< lowest value
  double most = mean;                                      ///< highest value
  int seeds = 0;                                           ///< values that were added

  /// Counts the value of one more seed.
  void add(double value) {
    least = seeds == 0 ? value : std::min(least, value);
    most = seeds == 0 ? value : std::max(most, value);
    mean = (seeds == 0 ? 0.0 : mean * seeds) + value;
    mean /= ++seeds;
  }
};

/// Measurements of several seeds. Each run is measured on the same items and has an interval over
/// them. The interval of the mean over seeds has the means of their ends. It is exact if all seeds err on the same
/// items, else too wide. It does not cover other seeds: least and most show those. Bounds are NaN unless every seed has
/// them. Proven by tests/run/run_study_test.cpp.
struct PooledSeeds {
  OverSeeds over;                                           ///< of the values
  double lower = std::numeric_limits<double>::quiet_NaN();  ///< mean of the lower ends
  double upper = lower;                                     ///< mean of the upper ends
  int n = 0;                                                ///< items of a seed: the fewest
  std::vector<double> values;                               ///< one a seed, in the order of adding

  /// Counts the measurement of one more seed.
  void add(const Interval& interval) {
    const auto count = static_cast<double>(values.size());
    lower = values.empty() ? interval.lower : (lower * count + interval.lower) / (count + 1);
    upper = values.empty() ? interval.upper : (upper * count + interval.upper) / (count + 1);
    n = values.empty() ? interval.n : std::min(n, interval.n);
    over.add(interval.value);
    values.push_back(interval.value);
  }
};

/// One setting of a group, over its seeds.
struct SettingPoint {
  std::string setting{};  ///< Trial::setting
  OverSeeds gain{};       ///< new facts learned, a share
  PooledSeeds kept{};     ///< old facts that are right, a share
};

/// The settings of each group, by rising gain. Trials without a number for either are left out.
[[nodiscard]] inline std::map<std::string, std::vector<SettingPoint>> settings_of(std::span<const Trial> trials) {
  std::map<std::string, std::vector<SettingPoint>> groups;
  for (const Trial& trial : trials) {
    if (!std::isfinite(trial.gain) || !std::isfinite(trial.kept)) continue;
    std::vector<SettingPoint>& points = groups[trial.group];
    const auto same = [&](const SettingPoint& point) { return point.setting == trial.setting; };
    auto point = std::find_if(points.begin(), points.end(), same);
    if (point == points.end()) point = points.insert(points.end(), SettingPoint{.setting = trial.setting});
    point->gain.add(trial.gain);
    point->kept.add({trial.kept, trial.kept_lower, trial.kept_upper, 0, 0});
  }
  for (auto& [group, points] : groups) {  // not std::stable_sort, which warns with clang 19 and libstdc++ 12
    std::vector<SettingPoint> sorted;
    for (SettingPoint& point : points) {
      const auto less = [](double gain, const SettingPoint& other) { return gain < other.gain.mean; };
      const auto place = std::upper_bound(sorted.begin(), sorted.end(), point.gain.mean, less);
      sorted.insert(place, std::move(point));
    }
    points = std::move(sorted);
  }
  return groups;
}

/// The most that a group kept with at least this gain, for each seed that reached it; `seeds` counts those.
[[nodiscard]] inline OverSeeds kept_at(std::span<const Trial> trials, const std::string& group, double gain) {
  std::map<std::int64_t, double> best;
  for (const Trial& trial : trials) {
    if (trial.group != group || !(trial.gain >= gain) || !std::isfinite(trial.kept)) continue;
    const auto [at, first] = best.try_emplace(trial.seed, trial.kept);
    if (!first) at->second = std::max(at->second, trial.kept);
  }
  OverSeeds result;
  for (const auto& [seed, kept] : best) result.add(kept);
  return result;
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
