// qlora/run/study.hpp — the arms of a job beside each other: what each learned and kept, how metrics depend on what was
// varied, and what the controls show. Everything is derived from the arms and the metrics of a comparison.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "qlora/eval/pareto_front.hpp"
#include "qlora/ordered_map.hpp"
#include "qlora/run/comparison.hpp"
#include "qlora/run/options.hpp"
#include "qlora/run/prebuilt.hpp"
#include "qlora/run/settings.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// What a study needs to know of an arm.
struct StudyArm {
  std::string group{};                    ///< the method, or as the job names it: one line of the Pareto front
  Settings setting{};                     ///< what decides the training but the seed: arms that share it are one point
  Pages pages{};                          ///< part of the setting, where they are not those of the job
  std::int64_t seed = 0;                  ///< of the training
  std::map<std::string, double> sweep{};  ///< name of what is varied, value
  std::string control{};                  ///< what the arm is a control for; empty: it is none
  bool pareto_front = true;               ///< whether it is a point of the Pareto front

  /// Whether it is a point of the Pareto front; controls are none.
  [[nodiscard]] bool in_pareto_front() const { return pareto_front && control.empty(); }
};
/// By the arm's name in the comparison.
using StudyArms = OrderedMap<StudyArm>;

/// Metrics of arms that differ in nothing but the seed, by their path, as "paraphrase.net".
using PooledMetrics = OrderedMap<eval::PooledSeeds>;

/// One setting over its seeds, or one model that is no arm.
struct SettingResult {
  std::string name;               ///< the group with what sets the setting apart there: "QLoRA, lr 0.002"
  std::vector<std::string> arms;  ///< names in the comparison
  PooledMetrics metrics;          ///< pooled over the arms
};

/// The arms of one group that have one value in a sweep.
struct SweepPoint {
  double at = 0;                  ///< the value of what is varied
  std::vector<std::string> arms;  ///< names in the comparison
  PooledMetrics metrics;          ///< pooled over the arms
};
/// How metrics depend on one varied setting, in one group.
struct SweepResult {
  std::string sweep;               ///< what is varied
  std::string group;               ///< of the arms
  std::vector<SweepPoint> points;  ///< by rising value
};

/// What the arms of one control show.
struct ControlResult {
  std::string control;            ///< what it controls for, as the job says it
  std::string group;              ///< of the arms
  std::vector<std::string> arms;  ///< names in the comparison
  PooledMetrics metrics;          ///< pooled over the arms
};

/// What is derived from the arms of a job.
struct Study {
  StudyArms arms{};                       ///< in the order of the job
  std::vector<SettingResult> settings{};  ///< of the models that are no arms, and of the arms in the Pareto front
  std::vector<SweepResult> sweeps{};      ///< one for each varied setting and group
  std::vector<ControlResult> controls{};  ///< in the order of the first arm of each
};

/// What a job found: report.json.
struct JobResult {
  Comparison comparison{};       ///< of all its models
  OrderedMap<double> seconds{};  ///< of each step, and their "total"
  Study study{};                 ///< of its arms
};

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>
#include <variant>

#include "qlora/eval/metrics.hpp"
#include "qlora/io/json.hpp"
#include "qlora/net/shown.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

using Paths = std::vector<std::string>;
using Variants = OrderedMap<VariantResult>;

/// What counts as new facts learned: the first of these that was measured.
[[nodiscard]] inline const Paths& learned_paths() {
  static const Paths paths{"paraphrase.net", "paraphrase", "knowledge.net", "knowledge"};
  return paths;
}

/// A value as text: as it is written in JSON, a text without quotes.
[[nodiscard]] inline std::string setting_text(const Value& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  return std::visit([](const auto& held) { return Json(held).dump(); }, value);
}
[[nodiscard]] inline std::string setting_text(const Pages& pages) {
  const auto texts = [](const auto& all) {
    Json list = Json::array();
    for (const auto& path : all) list.push_back(net::shown_address(std::filesystem::path(path).string()));
    return list;
  };
  return Json::array({texts(pages.urls), texts(pages.files)}).dump();
}

/// A setting with its pages as names and texts.
[[nodiscard]] inline std::vector<std::pair<std::string, std::string>> setting_texts(const StudyArm& arm) {
  std::vector<std::pair<std::string, std::string>> texts;
  for (const auto& [name, value] : arm.setting) texts.emplace_back(name, setting_text(value));
  if (arm.pages != Pages{}) texts.emplace_back("pages", setting_text(arm.pages));
  return texts;
}
[[nodiscard]] inline bool same_setting(const StudyArm& a, const StudyArm& b) {
  return a.setting == b.setting && a.pages == b.pages;
}

/// ", lr 0.002": what a setting says of the names in which the settings of its group differ.
[[nodiscard]] inline std::string what_differs(const StudyArm& arm, const std::vector<const StudyArm*>& group) {
  std::string text;
  for (const auto& [name, value] : setting_texts(arm)) {
    const bool differs =
        std::any_of(group.begin(), group.end(), [&, &own = name, &said = value](const StudyArm* other) {
          const auto others = setting_texts(*other);
          return std::find(others.begin(), others.end(), std::pair(own, said)) == others.end();
        });
    if (!differs) continue;
    text += ", " + name + " " + (value.empty() ? "none" : value.substr(value.rfind('/') + 1));  // of a path the name
  }
  return text;
}

/// A number that was measured; null where it was not.
[[nodiscard]] inline const eval::Interval* measured(const VariantResult& variant, std::string_view path) {
  const eval::Interval* number = eval::find_interval(variant.metrics, path);
  return number != nullptr && std::isfinite(number->value) ? number : nullptr;
}

/// Arms that are one point: their names, and each number over their seeds.
class Pool {
 public:
  void add(const std::string& arm, const VariantResult& variant, const Paths& paths) {
    arms_.push_back(arm);
    for (const std::string& path : paths) {
      if (const eval::Interval* number = measured(variant, path)) numbers_[path].add(*number);
    }
  }
  [[nodiscard]] const std::vector<std::string>& arms() const { return arms_; }
  /// In the order of `paths`.
  [[nodiscard]] PooledMetrics metrics(const Paths& paths) const {
    PooledMetrics all;
    for (const std::string& path : paths) {
      if (const auto found = numbers_.find(path); found != numbers_.end()) all[path] = found->second;
    }
    return all;
  }

 private:
  std::vector<std::string> arms_;
  std::map<std::string, eval::PooledSeeds> numbers_;
};

/// Of each list the first path that any of the variants with these names has.
template <class Names>
[[nodiscard]] Paths known_paths(const std::vector<Paths>& wanted, const Names& names, const Variants& variants) {
  Paths paths;
  for (const Paths& alternatives : wanted) {
    const auto known = [&](const std::string& path) {
      return std::any_of(names.begin(), names.end(), [&](const auto& entry) {
        const VariantResult* variant = variants.find(entry.first);
        return variant != nullptr && eval::find_interval(variant->metrics, path) != nullptr;
      });
    };
    const auto found = std::find_if(alternatives.begin(), alternatives.end(), known);
    if (found != alternatives.end() && std::find(paths.begin(), paths.end(), *found) == paths.end()) {
      paths.push_back(*found);
    }
  }
  return paths;
}

}  // namespace detail

/// The arms of the Pareto front as trials. Learned: the share of new facts asked in new words, less the share that fits
/// a twin world where probes have one. Kept: the share of old facts.
[[nodiscard]] inline std::vector<eval::Trial> trials_of(const StudyArms& arms,
                                                        const OrderedMap<VariantResult>& variants) {
  std::vector<eval::Trial> trials;
  for (const auto& [name, arm] : arms) {
    const VariantResult* variant = variants.find(name);
    if (variant == nullptr || !arm.in_pareto_front()) continue;
    eval::Trial trial;
    trial.group = arm.group;
    trial.seed = arm.seed;
    for (const auto& [setting, text] : detail::setting_texts(arm)) trial.setting += setting + "=" + text + "\n";
    trial.gain = trial.kept = std::numeric_limits<double>::quiet_NaN();
    for (const std::string& path : detail::learned_paths()) {
      const eval::Interval* learned = detail::measured(*variant, path);
      if (learned == nullptr) continue;
      trial.gain = learned->value;
      break;
    }
    if (const eval::Interval* kept = detail::measured(*variant, "retention")) {
      trial.kept = kept->value;
      trial.kept_lower = kept->lower;
      trial.kept_upper = kept->upper;
    }
    trials.push_back(std::move(trial));
  }
  return trials;
}

/// The models that are no arms, and the settings of the arms in the Pareto front, in the order of the variants. Of each
/// kind of probe the net number where there is one.
[[nodiscard]] inline std::vector<SettingResult> pooled_settings(const StudyArms& arms,
                                                                const OrderedMap<VariantResult>& variants) {
  std::vector<detail::Paths> wanted;  // kinds of probes; their parts ("retention_chat") and texts have an underscore
  for (const auto& [name, variant] : variants) {
    for (const eval::Metric& metric : variant.metrics) {
      const detail::Paths kind{metric.name + ".net", metric.name};
      if (metric.name.find('_') == std::string::npos && std::find(wanted.begin(), wanted.end(), kind) == wanted.end()) {
        wanted.push_back(kind);
      }
    }
  }
  const detail::Paths paths = detail::known_paths(wanted, variants, variants);
  struct Row {
    std::string name;               // of a model that is no arm
    const StudyArm* arm = nullptr;  // the first of its setting
    detail::Pool pool{};
  };
  std::vector<Row> rows;
  std::map<std::string, std::vector<const StudyArm*>> groups;  // one arm of each setting
  for (const auto& [name, variant] : variants) {
    const StudyArm* arm = arms.find(name);
    if (arm != nullptr && !arm->in_pareto_front()) continue;
    const auto same = [&](const Row& row) {
      return arm != nullptr && row.arm != nullptr && row.arm->group == arm->group &&
             detail::same_setting(*row.arm, *arm);
    };
    auto row = std::find_if(rows.begin(), rows.end(), same);
    if (row == rows.end()) {
      row = rows.insert(rows.end(), Row{name, arm});
      if (arm != nullptr) groups[arm->group].push_back(arm);
    }
    row->pool.add(name, variant, paths);
  }
  std::vector<SettingResult> all;
  for (const Row& row : rows) {
    all.push_back(
        {row.arm == nullptr ? row.name : row.arm->group + detail::what_differs(*row.arm, groups.at(row.arm->group)),
         row.pool.arms(), row.pool.metrics(paths)});
  }
  return all;
}

/// One result for each sweep and group, in the order in which the arms name them. Arms of one sweep, group and value
/// are one point: they differ in the seed.
[[nodiscard]] inline std::vector<SweepResult> sweep_results(const StudyArms& arms,
                                                            const OrderedMap<VariantResult>& variants) {
  const detail::Paths paths =
      detail::known_paths({{"knowledge_chat", "knowledge"}, detail::learned_paths(), {"retention"}}, arms, variants);
  struct Line {
    std::string sweep;
    std::string group;
    std::map<double, detail::Pool> points{};
  };
  std::vector<Line> lines;
  for (const auto& [name, arm] : arms) {
    const VariantResult* variant = variants.find(name);
    if (variant == nullptr) continue;
    for (const auto& [sweep, at] : arm.sweep) {
      const auto same = [&, &s = sweep, &a = arm](const Line& line) {
        return line.sweep == s && line.group == a.group;
      };
      auto line = std::find_if(lines.begin(), lines.end(), same);
      if (line == lines.end()) line = lines.insert(lines.end(), Line{sweep, arm.group});
      line->points[at].add(name, *variant, paths);
    }
  }
  std::vector<SweepResult> all;
  for (const Line& line : lines) {
    SweepResult& result = all.emplace_back(SweepResult{line.sweep, line.group, {}});
    for (const auto& [at, pool] : line.points) result.points.push_back({at, pool.arms(), pool.metrics(paths)});
  }
  return all;
}

/// One result for each control and group, in the order of the arms.
[[nodiscard]] inline std::vector<ControlResult> control_results(const StudyArms& arms,
                                                                const OrderedMap<VariantResult>& variants) {
  const detail::Paths paths = detail::known_paths(
      {{"knowledge.net", "knowledge"}, {"paraphrase.net", "paraphrase"}, {"retention.net", "retention"}}, arms,
      variants);
  std::vector<std::pair<const StudyArm*, detail::Pool>> controls;
  for (const auto& [name, arm] : arms) {
    const VariantResult* variant = variants.find(name);
    if (arm.control.empty() || variant == nullptr) continue;
    auto found = std::find_if(controls.begin(), controls.end(), [&a = arm](const auto& entry) {
      return entry.first->control == a.control && entry.first->group == a.group;
    });
    if (found == controls.end()) found = controls.insert(controls.end(), {&arm, {}});
    found->second.add(name, *variant, paths);
  }
  std::vector<ControlResult> all;
  for (const auto& [arm, pool] : controls) {
    all.push_back({arm->control, arm->group, pool.arms(), pool.metrics(paths)});
  }
  return all;
}

/// All of it. Without probes there are the arms alone.
[[nodiscard]] inline Study study_of(StudyArms arms, const OrderedMap<VariantResult>& variants) {
  Study study;
  if (!variants.empty()) study.settings = pooled_settings(arms, variants);
  study.sweeps = sweep_results(arms, variants);
  study.controls = control_results(arms, variants);
  study.arms = std::move(arms);
  return study;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
