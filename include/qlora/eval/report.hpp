// qlora/eval/report.hpp — the result of a run as one HTML page: scores, training curves, each model's answers,
// settings and hashes. It has no script and no external reference, so that it opens offline, and its layout also fits
// print and phones. What may not change: every text is escaped, and the page is well-formed XML too (the tests parse
// it).
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/eval/bars.hpp"
#include "qlora/eval/page_style.hpp"
#include "qlora/eval/svg.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// Rows of text under named columns; the first column heads its row.
struct Table {
  std::string caption;                         ///< above the table; empty: none
  std::vector<std::string> columns;            ///< heads of the columns, the first one's included
  std::vector<std::vector<std::string>> rows;  ///< as many cells as columns
};

/// One question and each model's answer, in display order.
struct Exchange {
  std::string form;                                          ///< "completion" or "chat"
  std::string prompt;                                        ///< the question as asked
  std::vector<std::pair<std::string, std::string>> answers;  ///< model, answer
};

/// Questions and answers under their own heading, such as what was learned or lost.
struct Gallery {
  std::string heading;              ///< shown as a second-level heading
  std::vector<Exchange> exchanges;  ///< under the heading, in this order
};

/// How scores depend on one setting: a chart, and its numbers beneath it.
struct Sweep {
  Plot plot;    ///< the scores against the setting
  Table table;  ///< the same numbers
};

/// A finding in words.
struct Finding {
  std::string head;  ///< "Learned"
  std::string text;  ///< sentences
};

/// What the page shows, in its order. An empty member leaves its section out.
struct Report {
  std::string title;                ///< in the head of the page, and the title of the window
  std::string summary;              ///< one or two sentences under the title
  std::vector<Finding> findings;    ///< the results in words, first on the page
  BarChart overview;                ///< beside them: learned and kept
  std::vector<Exchange> picks;      ///< an answer for each finding
  Table headline;                   ///< the main results
  std::vector<Table> results;       ///< below it: other metrics, requirements
  std::vector<Plot> pareto_fronts;  ///< share kept against share learned, by method
  std::vector<Table> matched;       ///< below the fronts: the share kept at equal shares learned
  std::vector<Sweep> sweeps;        ///< models that differ in one setting
  Table controls;                   ///< control arms
  std::vector<BarChart> bars;       ///< shares by relation and by page
  std::vector<Gallery> galleries;   ///< what was learned, lost and invented
  std::vector<Table> per_model;     ///< tables of each model, where there are too many for the beginning
  std::vector<Plot> plots;          ///< of training
  std::vector<Exchange> answers;    ///< of all models to the same questions
  std::vector<Table> details;       ///< settings, files and hashes, seconds per step
};

namespace detail {

[[nodiscard]] inline std::string html_of(const Table& table, const std::string& kind = {}) {
  std::string out;
  // Not in the table, with which it would scroll out of sight.
  if (!table.caption.empty()) out += "<p class=\"caption\">" + escape(table.caption) + "</p>\n";
  out += "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"" +
         escape(table.caption.empty() ? "table" : table.caption) + "\"><table" +
         (kind.empty() ? "" : " class=\"" + kind + "\"") + ">";
  out += "<thead><tr>";
  for (const std::string& column : table.columns) out += "<th scope=\"col\">" + escape(column) + "</th>";
  out += "</tr></thead>\n<tbody>";
  for (const auto& row : table.rows) {
    out += "<tr>";
    for (std::size_t i = 0; i < row.size(); ++i) {
      out += i == 0 ? "<th scope=\"row\">" + escape(row[i]) + "</th>" : "<td>" + escape(row[i]) + "</td>";
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

/// The numbers beneath a plot: at most this many rows, evenly spaced, the last one always there.
inline constexpr std::size_t data_rows = 60;

[[nodiscard]] inline std::string data_of(const Plot& plot) {
  std::string out;
  for (const Series& series : plot.series) {
    const std::size_t count = std::min(series.x.size(), series.y.size());
    const std::size_t stride = std::max<std::size_t>(1, (count + data_rows - 1) / data_rows);
    Table table;
    table.caption = series.name + (stride > 1 ? " (one in " + std::to_string(stride) + " of " + std::to_string(count) +
                                                    " points; all are in metrics.jsonl)"
                                              : "");
    table.columns = {plot.x_label, plot.y_label};
    for (std::size_t i = 0; i < count; ++i) {
      if (i % stride == 0 || i + 1 == count) table.rows.push_back({number(series.x[i], 8), number(series.y[i], 6)});
    }
    out += html_of(table);
  }
  return out;
}

[[nodiscard]] inline std::string html_of(const Exchange& exchange) {
  std::string out = "<article><h3 dir=\"auto\"><small>" + escape(exchange.form) + "</small> " +
                    escape(exchange.prompt) + "</h3>\n<div class=\"answers\">";
  for (const auto& [model, answer] : exchange.answers) {
    out += "<div><h4>" + escape(model) + "</h4><div class=\"answer\" dir=\"auto\">" + escape(answer) + "</div></div>\n";
  }
  return out + "</div></article>\n";
}

/// A section that is folded until it is asked for.
[[nodiscard]] inline std::string folded(const std::string& heading, const std::string& content) {
  if (content.empty()) return {};
  return "<details class=\"section\"><summary><h2>" + escape(heading) + "</h2></summary>\n" + content + "</details>\n";
}

/// The first screen: findings beside a chart, and answers beneath.
[[nodiscard]] inline std::string first_screen(const Report& report) {
  std::string out;
  if (!report.findings.empty()) {
    out += "<dl class=\"findings\">\n";
    for (const Finding& finding : report.findings) {
      out += "<dt>" + escape(finding.head) + "</dt><dd>" + escape(finding.text) + "</dd>\n";
    }
    out += "</dl>\n";
  }
  if (!report.overview.series.empty()) out += "<figure>" + to_svg(report.overview) + "</figure>\n";
  if (!out.empty()) out = "<div class=\"first\">\n" + out + "</div>\n";
  for (const Exchange& exchange : report.picks) out += html_of(exchange);
  return out;
}

/// Plots side by side, each with its numbers; nothing for none.
[[nodiscard]] inline std::string plots_of(const std::vector<Plot>& plots) {
  if (plots.empty()) return {};
  std::string out = "<div class=\"plots\">\n";
  for (const Plot& plot : plots) {
    out += "<figure>" + to_svg(plot) + "<details><summary>data</summary>" + data_of(plot) + "</details></figure>\n";
  }
  return out + "</div>\n";
}

}  // namespace detail

/// The page as HTML that is also well-formed XML.
[[nodiscard]] inline std::string to_html(const Report& report) {
  std::string out =
      "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\"><head><meta charset=\"utf-8\"/>\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>";
  out += escape(report.title) + "</title>\n<style>" + std::string(detail::page_style) + std::string(plot_style) +
         "</style></head>\n<body><h1>" + escape(report.title) + "</h1>\n";
  if (!report.summary.empty()) out += "<p class=\"summary\">" + escape(report.summary) + "</p>\n";
  out += detail::first_screen(report);
  if (!report.headline.rows.empty()) {
    // Pooled results are long; line breaks keep all columns visible.
    out += "<h2>Results</h2>\n" + detail::html_of(report.headline, report.per_model.empty() ? "" : "narrow");
  }
  for (const Table& table : report.results) out += detail::html_of(table);
  if (!report.pareto_fronts.empty()) out += "<h2>Learning against forgetting</h2>\n";
  out += detail::plots_of(report.pareto_fronts);
  for (const Table& table : report.matched) out += detail::html_of(table);
  if (!report.sweeps.empty()) out += "<h2>Sweeps</h2>\n";
  for (const Sweep& sweep : report.sweeps) {
    out += "<div class=\"sweep\"><figure>" + to_svg(sweep.plot) + "</figure>" + detail::html_of(sweep.table, "narrow") +
           "</div>\n";
  }
  if (!report.controls.rows.empty()) out += "<h2>Controls</h2>\n" + detail::html_of(report.controls, "narrow");
  std::string section;
  for (const BarChart& chart : report.bars) section += "<figure>" + to_svg(chart) + "</figure>\n";
  if (!section.empty()) section = "<div class=\"plots\">\n" + section + "</div>\n";
  out += detail::folded("By relation and by page", section);
  for (const Gallery& gallery : report.galleries) {
    section.clear();
    for (const Exchange& exchange : gallery.exchanges) section += detail::html_of(exchange);
    out += detail::folded(gallery.heading, section);
  }
  section.clear();
  for (const Table& table : report.per_model) section += detail::html_of(table);
  out += detail::folded("Each model", section);
  out += detail::folded("Training", detail::plots_of(report.plots));
  section.clear();
  for (const Exchange& exchange : report.answers) section += detail::html_of(exchange);
  out += detail::folded("Answers, side by side", section);
  section.clear();
  for (const Table& table : report.details) section += detail::html_of(table, "text");
  out += detail::folded("Settings and files", section);
  return out + "</body></html>\n";
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
