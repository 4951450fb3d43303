// qlora/eval/bars.hpp — grouped horizontal bars as SVG text: shares of several models by relation, page or kind, with
// intervals as whiskers and a <title> on every bar. Uses the style sheet and escaping of svg.hpp.
// What may not change: the output is well-formed XML whatever the texts hold, and the same input gives the same bytes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "qlora/eval/statistics.hpp"
#include "qlora/eval/svg.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// One colour of bars; a value for each label, NaN where there is none. Bounds that are NaN draw no whisker.
struct BarSeries {
  std::string name;              ///< shown in the legend
  std::vector<Interval> values;  ///< in the order of BarChart::labels
};

/// Values from 0 to 1, shown in percent.
struct BarChart {
  std::string title;                ///< above the chart
  std::vector<std::string> labels;  ///< one group of bars each, from the top
  std::vector<BarSeries> series;    ///< the bars of a group, from the top
};

namespace detail {

inline constexpr double bar_height = 15;  // the numbers of neighbours do not touch
inline constexpr double bar_gap = 9;      // between groups
inline constexpr double bar_left = 150;   // room for labels, if none is longer
inline constexpr double bar_top = 50;

/// Where bars begin and how long one of 100 % is.
struct BarSpace {
  double left = bar_left;

  [[nodiscard]] double width() const { return plot_width - left - 60; }  // the rest: the number behind a bar
  [[nodiscard]] double end(double share) const { return left + std::clamp(share, 0.0, 1.0) * width(); }
};
[[nodiscard]] inline BarSpace space_for(const BarChart& chart) {
  BarSpace space;
  for (const std::string& label : chart.labels) {
    space.left = std::max(space.left, std::min(14 + 6.9 * static_cast<double>(label.size()), 330.0));
  }
  return space;
}

[[nodiscard]] inline std::string percent(double share) { return percent_text(share) + " %"; }

[[nodiscard]] inline std::string bar_of(const BarSpace& space, const BarSeries& series, const std::string& label,
                                        std::size_t which, std::size_t row, double y) {
  if (row >= series.values.size() || !std::isfinite(series.values[row].value)) return {};
  const Interval& interval = series.values[row];
  const double end = space.end(interval.value);
  const std::string middle = coordinate(y + bar_height / 2);
  std::string text = escape(series.name) + " · " + escape(label) + ": " + percent(interval.value);
  std::string whisker;
  double behind = end;
  if (std::isfinite(interval.lower) && std::isfinite(interval.upper)) {
    behind = std::max(end, space.end(interval.upper));
    text += " (" + percent(interval.lower) + " to " + percent(interval.upper) + ")";
    whisker = "<line class=\"axis\" x1=\"" + coordinate(space.end(interval.lower)) + "\" y1=\"" + middle + "\" x2=\"" +
              coordinate(behind) + "\" y2=\"" + middle + "\"/>";
  }
  if (interval.n > 0) text += ", n " + std::to_string(interval.n);
  return "<rect class=\"s" + std::to_string(which % plot_colors) + "\" x=\"" + coordinate(space.left) + "\" y=\"" +
         coordinate(y) + "\" width=\"" + coordinate(std::max(end - space.left, 0.5)) + "\" height=\"" +
         coordinate(bar_height - 1) + "\"><title>" + text + "</title></rect>" + whisker + "<text x=\"" +
         coordinate(behind + 4) + "\" y=\"" + coordinate(y + bar_height - 4) + "\">" + percent(interval.value) +
         "</text>\n";
}

}  // namespace detail

/// The chart as one `<svg>` element.
[[nodiscard]] inline std::string to_svg(const BarChart& chart) {
  const detail::BarSpace space = detail::space_for(chart);
  const double group = detail::bar_height * static_cast<double>(chart.series.size()) + detail::bar_gap;
  const double height = detail::bar_top + group * static_cast<double>(chart.labels.size()) + 8;
  std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" viewBox=\"0 0 720 " +
                    detail::coordinate(height) + "\" role=\"img\">\n<title>" + escape(chart.title) +
                    "</title>\n<text class=\"title\" x=\"10\" y=\"18\">" + escape(chart.title) + "</text>\n";
  double x = 10;
  for (std::size_t i = 0; i < chart.series.size(); ++i) {
    out += "<rect class=\"s" + std::to_string(i % detail::plot_colors) + "\" x=\"" + detail::coordinate(x) +
           "\" y=\"27\" width=\"10\" height=\"10\"/><text x=\"" + detail::coordinate(x + 14) + "\" y=\"36\">" +
           escape(chart.series[i].name) + "</text>\n";
    x += 32 + 7.0 * static_cast<double>(std::min<std::size_t>(chart.series[i].name.size(), 40));
  }
  for (std::size_t row = 0; row < chart.labels.size(); ++row) {
    const double top = detail::bar_top + group * static_cast<double>(row);
    out += "<text x=\"" + detail::coordinate(space.left - 8) + "\" y=\"" +
           detail::coordinate(top + (group - detail::bar_gap) / 2 + 4) + "\" text-anchor=\"end\">" +
           escape(chart.labels[row]) + "</text>\n";
    for (std::size_t i = 0; i < chart.series.size(); ++i) {
      out += detail::bar_of(space, chart.series[i], chart.labels[row], i, row,
                            top + detail::bar_height * static_cast<double>(i));
    }
  }
  return out + "</svg>\n";
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
