// report.cpp — a comparison as a table on stdout and as the HTML page.
#include <array>
#include <cstdio>
#include <filesystem>
#include <iomanip>
#include <ostream>
#include <string>

#include "metrics.hpp"
#include "probes.hpp"
#include "qlora/eval/report.hpp"
#include "qlora/io/file.hpp"
#include "steps.hpp"

namespace qlora::program {
namespace {

std::string percent(const Result& scores, const std::string& name) {
  if (scores.value(name + "_n", 0) == 0) return "-";
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f %%", 100 * scores.value(name, 0.0));
  return text.data();
}

eval::Table headline_of(const Result& variants) {
  eval::Table table;
  table.caption = "Share of right answers; w16 is the base in 16 bits, nf4 the base in 4 bits.";
  table.columns = {"model"};
  const bool any = !variants.empty();
  for (const std::string_view name : score_names) {
    const std::string key(name);
    const int count = any ? variants.begin()->value(key + "_n", 0) : 0;
    table.columns.push_back(key + " (of " + std::to_string(count) + ")");
  }
  for (const auto& [model, scores] : variants.items()) {
    std::vector<std::string> row{model};
    for (const std::string_view name : score_names) row.push_back(percent(scores, std::string(name)));
    table.rows.push_back(std::move(row));
  }
  return table;
}

void print_table(const eval::Table& table, std::ostream& out) {
  std::vector<std::size_t> widths(table.columns.size());
  for (std::size_t i = 0; i < widths.size(); ++i) {
    widths[i] = table.columns[i].size();
    for (const auto& row : table.rows) widths[i] = std::max(widths[i], row[i].size());
  }
  const auto line = [&](const std::vector<std::string>& cells) {
    for (std::size_t i = 0; i < cells.size(); ++i) {
      out << (i == 0 ? std::left : std::right) << std::setw(static_cast<int>(widths[i])) << cells[i]
          << (i + 1 < cells.size() ? "  " : "\n");
    }
  };
  line(table.columns);
  for (const auto& row : table.rows) line(row);
}

eval::Plot plot_of(const std::vector<std::pair<std::string, std::vector<Metric>>>& runs, std::string title,
                   eval::Scale scale, double Metric::*member) {
  eval::Plot plot{title, "step", title, scale, {}};
  plot.y_label[0] = static_cast<char>(std::tolower(plot.y_label[0]));
  for (const auto& [name, metrics] : runs) {
    eval::Series series{name, {}, {}};
    for (const Metric& m : metrics) {
      series.x.push_back(m.step);
      series.y.push_back(m.*member);
    }
    plot.series.push_back(std::move(series));
  }
  return plot;
}

std::string cell_of(const Result& value) {
  return value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, Result::error_handler_t::replace);
}

/// One table for each object in `details`; deeper objects become "a.b" rows.
void add_rows(const Result& object, const std::string& prefix, eval::Table& table) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      add_rows(value, prefix + key + ".", table);
    } else {
      table.rows.push_back({prefix + key, cell_of(value)});
    }
  }
}

/// One line of at most `limit` bytes: control characters must not reach the terminal, a long answer must not fill it.
/// The JSON and the page have all of it.
std::string for_terminal(std::string_view text) {
  constexpr std::size_t limit = 240;
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool starts_character = (byte & 0xC0U) != 0x80U;
    if (out.size() >= limit && starts_character) return out + " ...";
    out += byte < 0x20 || byte == 0x7F ? ' ' : c;
  }
  return out;
}

}  // namespace

void print_comparison(const Result& comparison, std::ostream& out) {
  for (const Result& exchange : comparison.at("answers")) {
    out << "\n[" << exchange.value("form", "") << "] " << for_terminal(exchange.value("prompt", "")) << '\n';
    for (const auto& [model, answer] : exchange.at("answers").items()) {
      out << "  " << std::left << std::setw(12) << model << ' ' << for_terminal(answer.get<std::string>()) << '\n';
    }
  }
  if (comparison.at("variants").empty()) return;
  out << '\n';
  print_table(headline_of(comparison.at("variants")), out);
}

void write_report(const std::filesystem::path& file, const Result& comparison,
                  const std::vector<std::pair<std::string, std::filesystem::path>>& metrics, const Result& details) {
  eval::Report report;
  report.title = "Base and tuned, side by side";
  report.summary = "What was learned, what was kept, and how training went.";
  report.headline = headline_of(comparison.at("variants"));
  std::vector<std::pair<std::string, std::vector<Metric>>> runs;
  for (const auto& [name, path] : metrics) runs.emplace_back(name, read_metrics(path));
  if (!runs.empty()) {
    report.plots = {plot_of(runs, "Loss", eval::Scale::linear, &Metric::loss),
                    plot_of(runs, "Learning rate", eval::Scale::linear, &Metric::lr),
                    plot_of(runs, "Gradient norm", eval::Scale::logarithmic, &Metric::grad_norm)};
  }
  for (const Result& one : comparison.at("answers")) {
    eval::Exchange exchange{one.value("form", ""), one.value("prompt", ""), {}};
    for (const auto& [model, answer] : one.at("answers").items()) exchange.answers.emplace_back(model, answer);
    report.answers.push_back(std::move(exchange));
  }
  for (const auto& [name, object] : details.items()) {
    eval::Table table{name, {"name", "value"}, {}};
    if (object.is_object()) add_rows(object, "", table);
    report.details.push_back(std::move(table));
  }
  write_file_atomically(file, eval::to_html(report));
}

}  // namespace qlora::program
