// qlora/eval/svg.hpp — small line plots as SVG text: axes with round ticks, linear or logarithmic scale, legend, and
// a <title> on every point so that a reader can hover for the value. No script, no outside reference.
// What may not change: the output is well-formed XML whatever the texts and numbers hold, and the same input gives the
// same bytes. Colours are classes (s0, s1, ...); plot_style is the sheet that gives them a light and a dark theme.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace qlora {
inline namespace v0 {
namespace eval {

/// Text as XML 1.0 and HTML both read it. Bytes that are not UTF-8, and characters that XML forbids even when escaped
/// (controls, surrogates, U+FFFE, U+FFFF), become U+FFFD, so that hostile text can neither break out nor break the
/// page.
[[nodiscard]] inline std::string escape(std::string_view text) {
  static constexpr std::string_view replacement = "\xEF\xBF\xBD";
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t length = lead < 0x80   ? 1
                               : lead < 0xC2 ? 0
                               : lead < 0xE0 ? 2
                               : lead < 0xF0 ? 3
                               : lead < 0xF5 ? 4
                                             : 0;
    std::uint32_t code = length == 1 ? lead : length == 0 ? 0U : lead & (0x7FU >> length);
    bool good = length != 0 && i + length <= text.size();
    for (std::size_t k = 1; good && k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      good = (next & 0xC0U) == 0x80U;
      code = (code << 6) | (next & 0x3FU);
    }
    good = good && !(length == 3 && code < 0x800) && !(length == 4 && (code < 0x10000 || code > 0x10FFFF)) &&
           !(code >= 0xD800 && code <= 0xDFFF) && (code & 0xFFFEU) != 0xFFFEU &&
           (code >= 0x20 || code == '\t' || code == '\n' || code == '\r') && code != 0x7F;
    if (!good) {
      out += replacement;
      ++i;
      continue;
    }
    switch (code) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '\r':
        out += "&#13;";  // a bare one would be read back as a newline
        break;
      default:
        out += text.substr(i, length);
    }
    i += length;
  }
  return out;
}

/// A share from 0 to 1 in percent, with one decimal: "35.7".
[[nodiscard]] inline std::string percent_text(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f", 100 * value);
  return text.data();
}

/// A readable number: at most `digits` significant ones, no trailing zeros ("0.0002", "1e-06", "1250").
[[nodiscard]] inline std::string number(double value, int digits = 4) {
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), "%.*g", digits, value);
  return text.data();
}

/// Of an axis; a logarithmic one is labelled at powers of ten, if two or more lie on it.
enum class Scale : std::uint8_t { linear, logarithmic };

/// One line. x and y have the same length; points that are not finite (or not positive on a logarithmic axis) are left
/// out and break the line.
struct Series {
  std::string name;             ///< in the legend, which a plot with one line does not have, and at each point
  std::vector<double> x;        ///< as many as y
  std::vector<double> y;        ///< as many as x
  std::vector<double> lower{};  ///< ends of the points' whiskers; empty, or NaN: none
  std::vector<double> upper{};  ///< as many as lower
  std::vector<std::vector<double>> behind{};  ///< what a point is the mean of: pale dots at its x
};

/// Lines on one pair of axes.
struct Plot {
  std::string title;              ///< above the axes
  std::string x_label;            ///< below the axis
  std::string y_label;            ///< beside the axis
  Scale y_scale = Scale::linear;  ///< logarithmic: values of 0 and less are not drawn
  std::vector<Series> series;     ///< drawn in this order
  Scale x_scale = Scale::linear;  ///< logarithmic: values of 0 and less are not drawn
  std::vector<double> x_ticks{};  ///< where the axis is labelled; round numbers if empty
  std::vector<double> y_holds{};  ///< values that the axis reaches in any case, so that plots can be compared
};

/// Style sheet of the plots; once per page, or inside a standalone SVG file.
inline constexpr std::string_view plot_style = R"(
.plot{width:100%;max-width:720px;height:auto;font:12px system-ui,sans-serif}
.plot text{fill:#333}.plot .title{font-weight:600;font-size:14px}.plot .grid{stroke:#ddd}.plot .axis{stroke:#666}
.plot polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}.plot .behind{stroke:none;fill-opacity:.4}
.s0{stroke:#1f6fb4;fill:#1f6fb4}.s1{stroke:#c8501e;fill:#c8501e}.s2{stroke:#2b8a3e;fill:#2b8a3e}
.s3{stroke:#8a3ea8;fill:#8a3ea8}.s4{stroke:#a8761a;fill:#a8761a}.s5{stroke:#5b6470;fill:#5b6470}
@media (prefers-color-scheme:dark){.plot text{fill:#ddd}.plot .grid{stroke:#3a3f46}.plot .axis{stroke:#9aa}
.s0{stroke:#6db3f2;fill:#6db3f2}.s1{stroke:#f79a6b;fill:#f79a6b}.s2{stroke:#7bd88f;fill:#7bd88f}
.s3{stroke:#d09bea;fill:#d09bea}.s4{stroke:#e6c06a;fill:#e6c06a}.s5{stroke:#b0bac5;fill:#b0bac5}}
)";

namespace detail {

inline constexpr double plot_width = 720;
inline constexpr double plot_height = 320;
inline constexpr double plot_left = 66;
inline constexpr double plot_right = 16;
inline constexpr double plot_top = 34;
inline constexpr double plot_bottom = 46;
inline constexpr std::size_t plot_colors = 6;
/// Points drawn per line. More would make pages of megabytes; each bucket then keeps its lowest and highest point, so
/// that no spike is lost.
inline constexpr std::size_t plot_points = 600;

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void widen(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  [[nodiscard]] bool empty() const { return !(low <= high); }
};

/// Multiples of 1, 2 or 5 times a power of ten that cut [low, high] into about five.
[[nodiscard]] inline std::vector<double> round_ticks(double low, double high) {
  const double span = high - low;
  if (!(span > 0) || !std::isfinite(span)) return {low};
  const double raw = span / 5;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  const double lead = raw / power;
  const double step = power * (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10);
  std::vector<double> ticks;
  const double first = std::ceil(low / step - 1e-9);
  for (int i = 0; i < 12 && (first + i) * step <= high + step * 1e-9; ++i) {
    const double tick = (first + i) * step;
    ticks.push_back(std::abs(tick) < step * 1e-9 ? 0.0 : tick);
  }
  return ticks;
}

/// Powers of ten in [low, high] given as logarithms; falls back to round ticks when the range holds less than two.
[[nodiscard]] inline std::vector<double> decade_ticks(double low, double high) {
  std::vector<double> ticks;
  const double stride = std::max(1.0, std::ceil((high - low) / 8));
  for (double decade = std::ceil(low - 1e-9); decade <= high + 1e-9; decade += stride) ticks.push_back(decade);
  return ticks.size() >= 2 ? ticks : round_ticks(low, high);
}

[[nodiscard]] inline bool drawable(double x, double y, const Plot& plot) {
  const auto on = [](double value, Scale scale) {
    return std::isfinite(value) && (scale == Scale::linear || value > 0);
  };
  return on(x, plot.x_scale) && on(y, plot.y_scale);
}

/// Indices to draw, in order; all of them up to plot_points.
[[nodiscard]] inline std::vector<std::size_t> thinned(const Series& series) {
  const std::size_t count = std::min(series.x.size(), series.y.size());
  std::vector<std::size_t> kept;
  if (count <= plot_points) {
    for (std::size_t i = 0; i < count; ++i) kept.push_back(i);
    return kept;
  }
  const std::size_t buckets = plot_points / 2;
  for (std::size_t b = 0; b < buckets; ++b) {
    const std::size_t first = b * count / buckets;
    const std::size_t last = (b + 1) * count / buckets;
    std::size_t low = first;
    std::size_t high = first;
    for (std::size_t i = first; i < last; ++i) {
      if (!(series.y[i] >= series.y[low])) low = i;
      if (series.y[i] > series.y[high]) high = i;
    }
    kept.push_back(std::min(low, high));
    if (low != high) kept.push_back(std::max(low, high));
  }
  return kept;
}

[[nodiscard]] inline std::string coordinate(double value) {
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), "%.1f", value);
  return text.data();
}

/// Where data land on the sheet.
struct Frame {
  Range x;  // of log10 on a logarithmic axis, both
  Range y;
  Scale x_scale = Scale::linear;
  Scale scale = Scale::linear;

  [[nodiscard]] double along(double value) const { return x_scale == Scale::logarithmic ? std::log10(value) : value; }
  [[nodiscard]] double up(double value) const { return scale == Scale::logarithmic ? std::log10(value) : value; }
  [[nodiscard]] double to_x(double value) const {
    return plot_left + (along(value) - x.low) / (x.high - x.low) * (plot_width - plot_left - plot_right);
  }
  [[nodiscard]] double to_y(double risen) const {
    return plot_height - plot_bottom - (risen - y.low) / (y.high - y.low) * (plot_height - plot_top - plot_bottom);
  }
};

[[nodiscard]] inline Frame frame_of(const Plot& plot) {
  Frame frame;
  frame.x_scale = plot.x_scale;
  frame.scale = plot.y_scale;
  const auto widen = [&](double x, double y) {
    if (!drawable(x, y, plot)) return;
    frame.x.widen(frame.along(x));
    frame.y.widen(frame.up(y));
  };
  for (const Series& series : plot.series) {
    for (std::size_t i = 0; i < std::min(series.x.size(), series.y.size()); ++i) {
      widen(series.x[i], series.y[i]);
      if (i < series.lower.size()) widen(series.x[i], series.lower[i]);
      if (i < series.upper.size()) widen(series.x[i], series.upper[i]);
      if (i < series.behind.size())
        std::for_each(series.behind[i].begin(), series.behind[i].end(), [&](double y) { widen(series.x[i], y); });
    }
  }
  if (frame.x.empty()) {
    frame.x = {0, 1};
    frame.y = {0, 1};
  }
  const auto open_up = [](Range& range) {  // a single value still needs a range
    if (range.high > range.low) return;
    const double half = range.low == 0 ? 0.5 : std::abs(range.low) * 0.1;
    range = {range.low - half, range.high + half};
  };
  for (const double held : plot.y_holds) frame.y.widen(frame.up(held));
  const auto loosen = [](Range& range) {
    const double margin = (range.high - range.low) * 0.04;
    range = {range.low - margin, range.high + margin};
  };
  open_up(frame.x);
  open_up(frame.y);
  loosen(frame.y);
  const bool whiskers =
      std::any_of(plot.series.begin(), plot.series.end(), [](const Series& s) { return !s.lower.empty(); });
  if (!plot.x_ticks.empty() || whiskers) loosen(frame.x);  // keeps whiskers off the axis
  return frame;
}

[[nodiscard]] inline double width_of(const std::string& text) { return 7.0 * static_cast<double>(text.size()); }

/// Ticks below the axis; of overlapping labels only the first is drawn.
[[nodiscard]] inline std::string x_ticks_of(const Plot& plot, const Frame& frame) {
  const std::string bottom = coordinate(plot_height - plot_bottom);
  std::string out;
  double taken = 0;
  std::vector<double> ticks = plot.x_ticks;
  if (ticks.empty() && plot.x_scale == Scale::linear) ticks = round_ticks(frame.x.low, frame.x.high);
  if (ticks.empty()) {
    for (const double decade : decade_ticks(frame.x.low, frame.x.high)) ticks.push_back(std::pow(10.0, decade));
  }
  for (const double tick : ticks) {
    const std::string x = coordinate(frame.to_x(tick));
    out += "<line class=\"axis\" x1=\"" + x + "\" y1=\"" + bottom + "\" x2=\"" + x + "\" y2=\"" +
           coordinate(plot_height - plot_bottom + 4) + "\"/>";
    const std::string label = number(tick, 6);
    if (!plot.x_ticks.empty() && frame.to_x(tick) - width_of(label) / 2 < taken) continue;
    taken = frame.to_x(tick) + width_of(label) / 2 + 4;
    out += "<text x=\"" + x + "\" y=\"" + coordinate(plot_height - plot_bottom + 18) + "\" text-anchor=\"middle\">" +
           label + "</text>\n";
  }
  return out;
}

[[nodiscard]] inline std::string axes_of(const Plot& plot, const Frame& frame) {
  const std::string left = coordinate(plot_left);
  const std::string right = coordinate(plot_width - plot_right);
  const std::string top = coordinate(plot_top);
  const std::string bottom = coordinate(plot_height - plot_bottom);
  std::string out;
  const bool log = frame.scale == Scale::logarithmic;
  for (const double tick : log ? decade_ticks(frame.y.low, frame.y.high) : round_ticks(frame.y.low, frame.y.high)) {
    const std::string y = coordinate(frame.to_y(tick));
    out += "<line class=\"grid\" x1=\"" + left + "\" y1=\"" + y + "\" x2=\"" + right + "\" y2=\"" + y + "\"/>";
    out += "<text x=\"" + coordinate(plot_left - 6) + "\" y=\"" + y + "\" text-anchor=\"end\" dy=\"4\">" +
           number(log ? std::pow(10.0, tick) : tick) + "</text>\n";
  }
  out += x_ticks_of(plot, frame);
  out += "<polyline class=\"axis\" points=\"" + left + "," + top + " " + left + "," + bottom + " " + right + "," +
         bottom + "\"/>\n";
  out += "<text x=\"" + coordinate((plot_left + plot_width - plot_right) / 2) + "\" y=\"" +
         coordinate(plot_height - 8) + "\" text-anchor=\"middle\">" + escape(plot.x_label) + "</text>\n";
  out += "<text x=\"14\" y=\"" + coordinate((plot_top + plot_height - plot_bottom) / 2) +
         "\" text-anchor=\"middle\" transform=\"rotate(-90 14 " +
         coordinate((plot_top + plot_height - plot_bottom) / 2) + ")\">" + escape(plot.y_label) + "</text>\n";
  return out;
}

[[nodiscard]] inline std::string line_of(const Plot& plot, const Frame& frame, std::size_t which) {
  const Series& series = plot.series[which];
  const std::string color = "s" + std::to_string(which % plot_colors);
  // Whiskers and points of several lines at one x are drawn side by side.
  const double aside =
      series.lower.empty() ? 0 : 5 * (static_cast<double>(which) - static_cast<double>(plot.series.size() - 1) / 2);
  std::string lines;
  std::string points;
  std::string dots;
  const auto end_line = [&] {
    if (!points.empty()) lines += "<polyline class=\"" + color + "\" points=\"" + points + "\"/>\n";
    points.clear();
  };
  for (const std::size_t i : thinned(series)) {
    if (!drawable(series.x[i], series.y[i], plot)) {
      end_line();
      continue;
    }
    const std::string x = coordinate(frame.to_x(series.x[i]) + aside);
    const auto at = [&](double value) { return coordinate(frame.to_y(frame.up(value))); };
    points += (points.empty() ? "" : " ") + x + "," + at(series.y[i]);
    std::string ends;
    if (i < series.lower.size() && i < series.upper.size() && drawable(series.x[i], series.lower[i], plot) &&
        drawable(series.x[i], series.upper[i], plot)) {
      lines += "<line class=\"" + color + "\" x1=\"" + x + "\" y1=\"" + at(series.lower[i]) + "\" x2=\"" + x +
               "\" y2=\"" + at(series.upper[i]) + "\"/>\n";
      ends = " (" + number(series.lower[i]) + " to " + number(series.upper[i]) + ")";
    }
    for (const double value : i < series.behind.size() ? series.behind[i] : std::vector<double>()) {
      if (!drawable(series.x[i], value, plot)) continue;
      lines += "<circle class=\"" + color + " behind\" cx=\"" + x + "\" cy=\"" + at(value) + "\" r=\"3\"/>\n";
    }
    dots += "<circle class=\"" + color + "\" cx=\"" + x + "\" cy=\"" + at(series.y[i]) + "\" r=\"" +
            (series.lower.empty() ? "1.8" : "2.6") + "\"><title>" + escape(series.name) + " · " + escape(plot.x_label) +
            " " + number(series.x[i], 8) + ": " + number(series.y[i], 6) + ends + "</title></circle>\n";
  }
  end_line();
  return lines + dots;
}

inline constexpr double legend_row = 18;

[[nodiscard]] inline double legend_width(const Series& series) { return 28 + std::min(width_of(series.name), 280.0); }

/// Title and right-aligned legend. If both do not fit into one line, the legend gets its own lines below the title.
/// `above` becomes the height that they need beyond the line that every plot has.
[[nodiscard]] inline std::string head_of(const Plot& plot, double& above) {
  struct Row {
    std::size_t first;
    double width;
  };
  std::vector<Row> rows;
  if (plot.series.size() > 1) {
    for (std::size_t i = 0; i < plot.series.size(); ++i) {
      const double width = legend_width(plot.series[i]);
      if (rows.empty() || rows.back().width + width > plot_width - plot_left - plot_right) rows.push_back({i, 0});
      rows.back().width += width;
    }
  }
  const double title_end = plot_left + 8.0 * static_cast<double>(plot.title.size());  // bold and larger
  const bool beside = rows.empty() || (rows.size() == 1 && title_end + rows[0].width <= plot_width - plot_right);
  above = beside ? 0 : legend_row * static_cast<double>(rows.size());
  std::string out = "<text class=\"title\" x=\"" + coordinate(plot_left) + "\" y=\"" + coordinate(21 - above) + "\">" +
                    escape(plot.title) + "</text>\n";
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const double y = 12 - legend_row * static_cast<double>(rows.size() - 1 - r);
    double x = plot_width - plot_right - rows[r].width;
    const std::size_t end = r + 1 < rows.size() ? rows[r + 1].first : plot.series.size();
    for (std::size_t i = rows[r].first; i < end; ++i) {
      out += "<rect class=\"s" + std::to_string(i % plot_colors) + "\" x=\"" + coordinate(x) + "\" y=\"" +
             coordinate(y) + "\" width=\"10\" height=\"10\"/><text x=\"" + coordinate(x + 14) + "\" y=\"" +
             coordinate(y + 9) + "\">" + escape(plot.series[i].name) + "</text>\n";
      x += legend_width(plot.series[i]);
    }
  }
  return out;
}

}  // namespace detail

/// The plot as one `<svg>` element. Empty series give empty axes. A standalone file needs plot_style inside: see
/// `standalone`.
[[nodiscard]] inline std::string to_svg(const Plot& plot, bool standalone = false) {
  const detail::Frame frame = detail::frame_of(plot);
  double above = 0;
  const std::string head = detail::head_of(plot, above);
  std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" viewBox=\"0 " +
                    number(above == 0 ? 0 : -above) + " 720 " + number(detail::plot_height + above) +
                    "\" role=\"img\">\n";
  if (standalone) out += "<style>" + std::string(plot_style) + "</style>\n";
  out += "<title>" + escape(plot.title) + "</title>\n" + head + detail::axes_of(plot, frame);
  for (std::size_t i = 0; i < plot.series.size(); ++i) out += detail::line_of(plot, frame, i);
  return out + "</svg>\n";
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
