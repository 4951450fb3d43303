// qlora/run/study_report.hpp — the settings, sweeps and controls of a study as charts and tables of a report.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/eval/report.hpp"
#include "qlora/eval/svg.hpp"
#include "qlora/eval/sweep.hpp"
#include "qlora/run/study.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

namespace detail {

/// "knowledge_chat" as "knowledge (chat)", "paraphrase.net" as "paraphrase, net".
[[nodiscard]] inline std::string label_of(std::string path) {
  if (const std::size_t dot = path.find('.'); dot != std::string::npos) path.replace(dot, 1, ", ");
  for (const std::string form : {"chat", "completion"}) {
    if (const std::size_t at = path.find("_" + form); at != std::string::npos) {
      path.replace(at, form.size() + 1, " (" + form + ")");
    }
  }
  return path;
}

/// "83.8 [75.0, 91.2] (82.1 to 85.0)": mean over seeds, interval, and the range of the seeds if there are several.
/// Lines break between these three only. "-" where nothing was measured.
[[nodiscard]] inline std::string pooled_cell(const PooledMetrics& metrics, std::string_view path) {
  const eval::PooledSeeds* pooled = metrics.find(path);
  if (pooled == nullptr) return "-";
  std::string text = eval::percent_text(pooled->over.mean);
  if (std::isfinite(pooled->lower) && std::isfinite(pooled->upper)) {
    text += " [" + eval::percent_text(pooled->lower) + ",\u00A0" + eval::percent_text(pooled->upper) + "]";
  }
  if (pooled->over.seeds > 1) {
    text +=
        " (" + eval::percent_text(pooled->over.least) + "\u00A0to\u00A0" + eval::percent_text(pooled->over.most) + ")";
  }
  return text;
}

/// The paths that the results have, each with the items that it was measured on.
template <class R>
[[nodiscard]] std::vector<std::pair<std::string, int>> pooled_paths(const std::vector<R>& results) {
  OrderedMap<int> paths;
  for (const R& result : results) {
    for (const auto& [path, pooled] : result.metrics) {
      if (!paths.contains(path)) paths[path] = pooled.n;
    }
  }
  return {paths.begin(), paths.end()};
}

/// One row for each result, headed by `head(result)`.
template <class R, class Head>
[[nodiscard]] eval::Table pooled_table(const std::vector<R>& results, std::string caption, std::string corner,
                                       const Head& head) {
  eval::Table table{std::move(caption), {std::move(corner), "seeds"}, {}};
  const auto paths = pooled_paths(results);
  for (const auto& [path, n] : paths) table.columns.push_back(label_of(path) + " (n\u00A0" + std::to_string(n) + ")");
  for (const R& result : results) {
    std::vector<std::string> cells{head(result), std::to_string(result.arms.size())};
    for (const auto& [path, n] : paths) cells.push_back(pooled_cell(result.metrics, path));
    table.rows.push_back(std::move(cells));
  }
  return table;
}

inline constexpr std::string_view pooled_caption =
    "Percent: mean over seeds [95 % interval over entities] (minimum to maximum over seeds).";

[[nodiscard]] inline eval::Series sweep_series(const SweepResult& sweep, const std::string& path) {
  eval::Series line{label_of(path), {}, {}};
  for (const SweepPoint& point : sweep.points) {
    const eval::PooledSeeds* pooled = point.metrics.find(path);
    if (pooled == nullptr) continue;
    line.x.push_back(point.at);
    line.y.push_back(100 * pooled->over.mean);
    line.lower.push_back(100 * pooled->lower);
    line.upper.push_back(100 * pooled->upper);
    std::vector<double>& seeds = line.behind.emplace_back();
    if (pooled->over.seeds < 2) continue;
    for (const double value : pooled->values) seeds.push_back(100 * value);
  }
  return line;
}

}  // namespace detail

/// One chart for each sweep, with its numbers as a table.
[[nodiscard]] inline std::vector<eval::Sweep> sweep_charts(const std::vector<SweepResult>& sweeps) {
  std::vector<eval::Sweep> charts;
  for (const SweepResult& sweep : sweeps) {
    eval::Plot plot{sweep.sweep + " · " + sweep.group, sweep.sweep, "%", eval::Scale::linear, {}};
    plot.y_holds = {0, 100};
    for (const SweepPoint& point : sweep.points) plot.x_ticks.push_back(point.at);
    plot.x_scale = eval::sweep_scale(plot.x_ticks);
    for (const auto& [path, n] : detail::pooled_paths(sweep.points)) {
      plot.series.push_back(detail::sweep_series(sweep, path));
    }
    const auto head = [](const SweepPoint& point) { return eval::number(point.at, 6); };
    charts.push_back(
        {std::move(plot), detail::pooled_table(sweep.points, std::string(detail::pooled_caption), sweep.sweep, head)});
  }
  return charts;
}

/// A row for each control, with the metrics of its arms pooled over seeds.
[[nodiscard]] inline eval::Table control_table(const std::vector<ControlResult>& controls) {
  return detail::pooled_table(
      controls,
      std::string(detail::pooled_caption) +
          " A control cannot know the answers: if it was trained on permuted values and is asked for the true "
          "ones, a net score above 0 is an error of the measurement.",
      "", [](const ControlResult& control) { return control.control + " (" + control.group + ")"; });
}

/// A row for each setting, with the metrics of its arms pooled over seeds.
[[nodiscard]] inline eval::Table setting_table(const std::vector<SettingResult>& settings) {
  return detail::pooled_table(
      settings,
      std::string(detail::pooled_caption) +
          " Net: minus the percentage that matches the twin world, on which no model was trained.",
      "", [](const SettingResult& setting) { return setting.name; });
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
