// qlora/run/report.hpp — a comparison, and the study of a job around it, as one HTML page.
#pragma once

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <iterator>
#include <limits>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/eval/bars.hpp"
#include "qlora/eval/pareto_front.hpp"
#include "qlora/eval/report.hpp"
#include "qlora/io/file.hpp"
#include "qlora/run/comparison.hpp"
#include "qlora/run/comparison_tables.hpp"
#include "qlora/run/report_summary.hpp"
#include "qlora/run/study.hpp"
#include "qlora/run/study_report.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// The record of a training: one entry in each list for each step.
struct TrainingCurves {
  std::string name{};               ///< the variant that it led to
  std::vector<double> step{};       ///< optimizer step, from 1
  std::vector<double> loss{};       ///< nats per labelled token
  std::vector<double> lr{};         ///< learning rate
  std::vector<double> grad_norm{};  ///< before clipping
};

namespace detail {

/// The headline and the tables of metrics. With many variants the page begins with the settings, seeds pooled, and the
/// tables of each variant come later.
inline void add_metrics(const Comparison& comparison, const Study& study, eval::Report& report) {
  report.headline = in_words(headline_of(comparison.variants));
  std::vector<eval::Table> tables = metric_tables(comparison.variants);
  std::transform(tables.begin(), tables.end(), tables.begin(), in_words);
  if (many(comparison.variants) && !study.settings.empty()) {
    report.per_model.push_back(std::exchange(report.headline, setting_table(study.settings)));
    std::move(tables.begin(), tables.end(), std::back_inserter(report.per_model));
  } else {
    report.results = std::move(tables);
  }
  if (comparison.requirements && !comparison.requirements->empty()) {
    report.results.push_back(requirement_table(*comparison.requirements));
  }
}

/// The arms that charts and answers leave out if there are many variants: all but the judged one and the first of every
/// group.
[[nodiscard]] inline std::set<std::string> hidden_arms(const Comparison& comparison, const StudyArms& arms) {
  std::set<std::string> hidden;
  std::set<std::string> groups;
  if (!many(comparison.variants)) return hidden;
  for (const auto& [name, arm] : arms) {
    const bool first = arm.in_pareto_front() && groups.insert(arm.group).second;
    if (!first && comparison.tuned != name) hidden.insert(name);
  }
  return hidden;
}

/// One chart for each kind of probe: shares of right replies by relation or entity. None where there are too many bars.
inline void add_bars(const Variants& variants, const std::set<std::string>& hidden, eval::Shares VariantResult::*shares,
                     const std::string& what, std::vector<eval::BarChart>& charts) {
  constexpr std::size_t most_labels = 40;
  std::vector<std::string> kinds;
  for (const auto& [name, variant] : variants) {
    for (const auto& [kind, groups] : variant.*shares) {
      if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
    }
  }
  for (const std::string& kind : kinds) {
    eval::BarChart chart{kind + ", by " + what, {}, {}};
    for (const auto& [name, variant] : variants) {
      const OrderedMap<eval::Share>* groups = (variant.*shares).find(kind);
      if (hidden.contains(name) || groups == nullptr) continue;
      if (chart.labels.empty()) {
        for (const auto& [label, share] : *groups) chart.labels.push_back(label);
      }
      eval::BarSeries series{name, {}};
      for (const std::string& label : chart.labels) {
        const eval::Share* share = groups->find(label);
        eval::Interval value{.value = std::numeric_limits<double>::quiet_NaN()};
        if (share != nullptr) value = {.value = share->value, .n = share->n};
        series.values.push_back(value);
      }
      chart.series.push_back(std::move(series));
    }
    if (chart.labels.size() <= most_labels) charts.push_back(std::move(chart));
  }
}

/// One line for each group of arms, one point for each setting. Empty where fewer than two settings were measured.
[[nodiscard]] inline std::vector<eval::Plot> pareto_front_plots(const std::vector<eval::Trial>& trials) {
  eval::Plot plot{"What was kept against what was learned",
                  "new facts learned, %",
                  "old facts right, % (95 % interval)",
                  eval::Scale::linear,
                  {}};
  std::size_t points = 0;
  for (const auto& [group, settings] : eval::settings_of(trials)) {
    eval::Series series{group, {}, {}};
    for (const eval::SettingPoint& point : settings) {
      series.x.push_back(100 * point.gain.mean);
      series.y.push_back(100 * point.kept.over.mean);
      series.lower.push_back(100 * point.kept.lower);
      series.upper.push_back(100 * point.kept.upper);
      ++points;
    }
    plot.series.push_back(std::move(series));
  }
  if (points < 2) return {};
  return {std::move(plot)};
}

/// What each group kept at gains that the groups share; empty for a single group.
[[nodiscard]] inline std::vector<eval::Table> matched_tables(const std::vector<eval::Trial>& trials) {
  eval::Table table;
  table.caption =
      "Old facts right, in percent, among the settings that learned at least this percentage of the new facts: best "
      "setting of each seed, mean over seeds [minimum, maximum] (number of seeds)";
  table.columns = {"learned"};
  const auto groups = eval::settings_of(trials);
  if (groups.size() < 2) return {};
  for (const auto& [group, settings] : groups) table.columns.push_back(group);
  for (int gain = 10; gain <= 90; gain += 10) {
    std::vector<std::string> row{std::to_string(gain)};
    bool reached = false;
    for (const auto& [group, settings] : groups) {
      const eval::OverSeeds kept = eval::kept_at(trials, group, gain / 100.0);
      reached = reached || kept.seeds > 0;
      row.push_back(kept.seeds == 0 ? "-"
                                    : eval::number(100 * kept.mean) + " [" + eval::number(100 * kept.least) + ", " +
                                          eval::number(100 * kept.most) + "] (" + std::to_string(kept.seeds) + ")");
    }
    if (!reached) break;
    table.rows.push_back(std::move(row));
  }
  return {std::move(table)};
}

/// Replies before and after, one gallery for each group of examples that has any.
[[nodiscard]] inline std::vector<eval::Gallery> galleries_of(const eval::Examples& examples) {
  std::vector<eval::Gallery> galleries;
  for (const auto& [name, group] : examples) {
    if (name == "kept") continue;  // there are too many, and they look alike
    std::string heading = name;
    heading[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(heading[0])));
    eval::Gallery gallery{heading + ": " + std::to_string(group.count) + " items", {}};
    for (const eval::Example& example : group.some) {
      gallery.exchanges.push_back(
          {form_of(example.chat),
           example.prompt,
           {{"expected", example.expected}, {"before", example.before}, {"after", example.after}}});
    }
    if (!gallery.exchanges.empty()) galleries.push_back(std::move(gallery));
  }
  return galleries;
}

[[nodiscard]] inline eval::Plot curve_plot(std::span<const TrainingCurves> trainings, std::string title,
                                           eval::Scale scale, std::vector<double> TrainingCurves::*curve) {
  eval::Plot plot{title, "step", title, scale, {}};
  plot.y_label[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(plot.y_label[0])));
  for (const TrainingCurves& training : trainings) {
    eval::Series series{training.name, {}, {}};
    series.x = training.step;
    series.y = training.*curve;
    plot.series.push_back(std::move(series));
  }
  return plot;
}

}  // namespace detail

/// The page: metrics, the study of the arms (empty for a comparison that is not a job's), curves of the trainings,
/// what the job took, answers, and the tables of details.
[[nodiscard]] inline eval::Report report_of(const Comparison& comparison, const Study& study,
                                            std::span<const TrainingCurves> trainings, std::vector<eval::Table> details,
                                            const JobCosts& costs = {}) {
  eval::Report report;
  report.title = "Base model and tuned models compared";
  report.summary = "What was learned, what was kept, and how training went.";
  const std::set<std::string> hidden = detail::hidden_arms(comparison, study.arms);
  if (!comparison.variants.empty()) {
    report.findings = detail::findings_of(comparison);
    if (std::string text = detail::costs_text(costs); !text.empty()) {
      report.findings.push_back({"Time and memory", std::move(text)});
    }
    report.overview =
        detail::learned_and_kept(comparison.variants, [&](const std::string& name) { return hidden.contains(name); });
    report.picks = detail::picks_of(comparison.examples);
    detail::add_metrics(comparison, study, report);
    const std::vector<eval::Trial> trials = trials_of(study.arms, comparison.variants);
    report.pareto_fronts = detail::pareto_front_plots(trials);
    report.sweeps = sweep_charts(study.sweeps);
    if (!study.controls.empty()) report.controls = control_table(study.controls);
    report.matched = detail::matched_tables(trials);
    detail::add_bars(comparison.variants, hidden, &VariantResult::by_relation, "relation", report.bars);
    detail::add_bars(comparison.variants, hidden, &VariantResult::by_entity, "page", report.bars);
    report.galleries = detail::galleries_of(comparison.examples);
  }
  std::vector<TrainingCurves> shown(trainings.begin(), trainings.end());
  std::erase_if(shown, [&](const TrainingCurves& curves) { return hidden.contains(curves.name); });
  if (!shown.empty()) {
    report.plots = {detail::curve_plot(shown, "Loss", eval::Scale::linear, &TrainingCurves::loss),
                    detail::curve_plot(shown, "Learning rate", eval::Scale::linear, &TrainingCurves::lr),
                    detail::curve_plot(shown, "Gradient norm", eval::Scale::logarithmic, &TrainingCurves::grad_norm)};
  }
  for (const Exchange& asked : comparison.answers) {
    eval::Exchange exchange{detail::form_of(asked.chat), asked.prompt, {}};
    for (const auto& [model, answer] : asked.answers) {
      if (!hidden.contains(model)) exchange.answers.emplace_back(model, answer);
    }
    report.answers.push_back(std::move(exchange));
  }
  report.details = std::move(details);
  return report;
}

/// Writes the page as one HTML file. Throws Error as write_file_atomically does.
inline void write_report(const std::filesystem::path& file, const Comparison& comparison, const Study& study,
                         std::span<const TrainingCurves> trainings, std::vector<eval::Table> details,
                         const JobCosts& costs = {}) {
  write_file_atomically(file, eval::to_html(report_of(comparison, study, trainings, std::move(details), costs)));
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
