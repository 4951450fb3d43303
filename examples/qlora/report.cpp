// report.cpp — a comparison as a table on stdout and as the HTML page.
#include "report.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iomanip>
#include <iterator>
#include <ostream>
#include <set>
#include <string>
#include <utility>

#include "metrics.hpp"
#include "qlora/eval/pareto_front.hpp"
#include "qlora/eval/report.hpp"
#include "qlora/io/file.hpp"
#include "sweeps.hpp"

namespace qlora::program {
namespace {

/// "83.8 [75.0, 91.2]": a figure's number in percent (or as it is), with its interval.
std::string cell_of(const Result& number, bool percent) {
  if (!number.is_object() || !number.value("value", Result()).is_number()) return "-";
  const double unit = percent ? 100.0 : 1.0;
  const auto text = [&](const char* field) {
    std::array<char, 32> out{};
    const Result& value = number.at(field);
    std::snprintf(out.data(), out.size(), percent ? "%.1f" : "%.4f",
                  value.is_number() ? unit * value.get<double>() : 0);
    return std::string(out.data());
  };
  if (!number.at("lower").is_number()) return text("value");
  return text("value") + " [" + text("lower") + ", " + text("upper") + "]";
}

/// A number of a variant's figures; null where it was not measured.
Result number_of(const Result& variant, const std::string& figure, const std::string& number) {
  const Result& figures = variant.at("figures");
  if (!figures.contains(figure)) return nullptr;
  const Result& one = figures.at(figure);
  if (number.empty()) return one;
  return one.contains(number) ? one.at(number) : Result(nullptr);
}

/// Names of figures that hold `number`, in the order of the first variant that has them.
std::vector<std::string> figures_with(const Result& variants, const std::string& number, bool texts) {
  std::vector<std::string> names;
  for (const auto& [variant, content] : variants.items()) {
    for (const auto& [name, figure] : content.at("figures").items()) {
      if ((name.rfind("text_", 0) == 0) != texts || (!number.empty() && !figure.contains(number))) continue;
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  return names;
}

/// One row a figure, one column a variant.
eval::Table table_of(const Result& variants, std::string caption, const std::string& number, bool texts) {
  eval::Table table;
  table.caption = std::move(caption);
  table.columns = {"", "n"};
  for (const auto& [variant, content] : variants.items()) {
    const std::string reference = content.value("reference", "");
    const bool compared = number == "change" || number == "kept" || number == "kl";
    table.columns.push_back(!compared || reference.empty() ? variant : variant + " against " + reference);
  }
  const bool percent = !texts && number != "margin";
  for (const std::string& name : figures_with(variants, number, texts)) {
    std::vector<std::string> row{name, ""};
    for (const auto& [variant, content] : variants.items()) {
      const Result one = number_of(content, name, number);
      if (one.is_object() && row[1].empty()) row[1] = std::to_string(one.value("n", 0));
      row.push_back(cell_of(one, percent));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

/// More models than a page has room for side by side.
bool many(const Result& variants) { return variants.size() > 8; }

/// Rows and columns changed places: a row for each model. `n` stands in the heads.
eval::Table turned(const eval::Table& table) {
  eval::Table out{table.caption, {""}, {}};
  for (const auto& row : table.rows) out.columns.push_back(row[0] + ", n " + row[1]);
  for (std::size_t column = 2; column < table.columns.size(); ++column) {
    std::vector<std::string> row{table.columns[column]};
    for (const auto& from : table.rows) row.push_back(from[column]);
    out.rows.push_back(std::move(row));
  }
  return out;
}

eval::Table headline_of(const Result& variants) {
  eval::Table table = table_of(
      variants,
      "Percent of right replies with 95 % intervals (bootstrap over entities). w16: the base in 16 bits; nf4: the "
      "base in 4 bits, adapter off.",
      "", false);
  return many(variants) ? turned(table) : table;
}

/// What stands beneath the headline, as far as it was measured.
std::vector<eval::Table> metrics_of(const Result& variants) {
  std::vector<eval::Table> tables{
      table_of(variants, "Net: percent right less percent that fits a twin world nobody was shown.", "net", false),
      table_of(variants, "Choice: percent of items whose answer is likelier than every alternative.", "choice", false),
      table_of(variants, "Change in percentage points, on the same items.", "change", false),
      table_of(variants, "Kept: percent of what the reference had right that is right still.", "kept", false),
      table_of(variants, "Loss on texts, nats per token.", "", true),
      table_of(variants, "KL(reference || variant) on texts, nats per token.", "kl", true)};
  std::erase_if(tables, [](const eval::Table& table) { return table.rows.empty(); });
  if (many(variants)) std::transform(tables.begin(), tables.end(), tables.begin(), turned);
  return tables;
}

/// What was asked for, and whether it was met; no rows if nothing was.
eval::Table requirements_of(const Result& comparison) {
  eval::Table table{"Requirements", {"", "measured", "met"}, {}};
  if (!comparison.contains("requirements")) return table;
  for (const Result& one : comparison.at("requirements")) {
    table.rows.push_back(
        {one.value("requirement", ""), one.at("measured").dump(), one.value("met", false) ? "yes" : "no"});
  }
  return table;
}

/// Headline and tables of figures. A page of many models begins with its settings, seeds pooled, and has a row for each
/// model further down.
void add_figures(const Result& comparison, eval::Report& report) {
  const Result& variants = comparison.at("variants");
  report.headline = headline_of(variants);
  std::vector<eval::Table> figures = metrics_of(variants);
  if (many(variants) && comparison.contains("settings")) {
    report.apart.push_back(std::exchange(report.headline, table_of_settings(comparison.at("settings"))));
    std::move(figures.begin(), figures.end(), std::back_inserter(report.apart));
  } else {
    report.results = std::move(figures);
  }
  if (eval::Table table = requirements_of(comparison); !table.rows.empty()) report.results.push_back(std::move(table));
}

/// The arms that charts and galleries of answers leave out where there are many models: all but the one that is judged and
/// the first of every group.
std::set<std::string> hidden_of(const Result& comparison) {
  std::set<std::string> hidden, groups;
  if (!many(comparison.at("variants")) || !comparison.contains("arms")) return hidden;
  for (const auto& [name, about] : comparison.at("arms").items()) {
    const bool first =
        !about.contains("control") && about.value("front", true) && groups.insert(about.value("group", "")).second;
    if (!first && comparison.value("tuned", "") != name) hidden.insert(name);
  }
  return hidden;
}

/// Shares by relation or entity, one chart a kind.
void add_bars(const Result& variants, const std::set<std::string>& hidden, const std::string& group,
              const std::string& what, std::vector<eval::BarChart>& charts) {
  std::vector<std::string> kinds;
  for (const auto& [variant, content] : variants.items()) {
    if (!content.contains(group)) continue;
    for (const auto& [kind, shares] : content.at(group).items()) {
      if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
    }
  }
  for (const std::string& kind : kinds) {
    eval::BarChart chart{kind + ", by " + what, {}, {}};
    for (const auto& [variant, content] : variants.items()) {
      if (hidden.contains(variant) || !content.contains(group) || !content.at(group).contains(kind)) continue;
      eval::BarSeries series{variant, {}};
      const Result& shares = content.at(group).at(kind);
      if (chart.labels.empty()) {
        for (const auto& [label, share] : shares.items()) chart.labels.push_back(label);
      }
      for (const std::string& label : chart.labels) {
        eval::Interval value;
        value.value = shares.contains(label) ? shares.at(label).value("value", 0.0) : std::nan("");
        value.n = shares.contains(label) ? shares.at(label).value("n", 0) : 0;
        series.values.push_back(value);
      }
      chart.series.push_back(std::move(series));
    }
    if (chart.labels.size() <= 40) charts.push_back(std::move(chart));
  }
}

/// One line a group of arms, one point a setting. Empty where fewer than two settings were measured.
std::vector<eval::Plot> fronts_of(const std::vector<eval::Trial>& trials) {
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

/// What each group kept at least at gains that groups share; empty for a single group.
std::vector<eval::Table> at_matched_gain(const std::vector<eval::Trial>& trials) {
  eval::Table table;
  table.caption =
      "Old facts right, percent, at a gain of at least so many percent of the new facts: the best setting of each "
      "seed, mean over seeds [least, most] (seeds that reached it)";
  table.columns = {"gain"};
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

/// What was learned, lost and invented, as before and after.
std::vector<eval::Gallery> galleries_of(const Result& comparison) {
  std::vector<eval::Gallery> galleries;
  if (!comparison.contains("examples")) return galleries;
  for (const auto& [name, group] : comparison.at("examples").items()) {
    if (!group.contains("some")) continue;  // of several models: one gallery each would be too long
    std::string heading = name;
    heading[0] = static_cast<char>(std::toupper(heading[0]));
    eval::Gallery gallery{heading + ": " + std::to_string(group.value("count", 0)) + " items", {}};
    for (const Result& one : group.at("some")) {
      gallery.exchanges.push_back({one.value("form", ""),
                                   one.value("prompt", ""),
                                   {{"expected", one.value("expected", "")},
                                    {"before", one.value("before", "")},
                                    {"after", one.value("after", "")}}});
    }
    if (!gallery.exchanges.empty()) galleries.push_back(std::move(gallery));
  }
  return galleries;
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

std::string text_of(const Result& value) {
  return value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, Result::error_handler_t::replace);
}

/// One table for each object in `details`; deeper objects become "a.b" rows.
void add_rows(const Result& object, const std::string& prefix, eval::Table& table) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      add_rows(value, prefix + key + ".", table);
    } else {
      table.rows.push_back({prefix + key, text_of(value)});
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
  if (!comparison.contains("requirements")) return;
  for (const Result& one : comparison.at("requirements")) {
    out << "requirement " << one.value("requirement", "") << ": " << one.at("measured").dump() << ", "
        << (one.value("met", false) ? "met" : "NOT MET") << '\n';
  }
}

void write_report(const std::filesystem::path& file, const Result& comparison,
                  const std::vector<std::pair<std::string, std::filesystem::path>>& metrics, const Result& details) {
  eval::Report report;
  report.title = "Base and tuned, side by side";
  report.summary = "What was learned, what was kept, and how training went.";
  const Result& variants = comparison.at("variants");
  const std::set<std::string> hidden = hidden_of(comparison);
  if (!variants.empty()) {
    add_figures(comparison, report);
    const std::vector<eval::Trial> trials =
        comparison.contains("arms") ? trials_of(comparison.at("arms"), variants) : std::vector<eval::Trial>();
    report.fronts = fronts_of(trials);
    if (comparison.contains("sweeps")) report.sweeps = charts_of(comparison.at("sweeps"));
    if (comparison.contains("controls")) report.controls = table_of_controls(comparison.at("controls"));
    report.matched = at_matched_gain(trials);
    add_bars(variants, hidden, "by_relation", "relation", report.bars);
    add_bars(variants, hidden, "by_entity", "page", report.bars);
    report.galleries = galleries_of(comparison);
  }
  std::vector<std::pair<std::string, std::vector<Metric>>> runs;
  for (const auto& [name, path] : metrics) {
    if (hidden.contains(name)) continue;
    runs.emplace_back(name, read_metrics(path));
  }
  if (!runs.empty()) {
    report.plots = {plot_of(runs, "Loss", eval::Scale::linear, &Metric::loss),
                    plot_of(runs, "Learning rate", eval::Scale::linear, &Metric::lr),
                    plot_of(runs, "Gradient norm", eval::Scale::logarithmic, &Metric::grad_norm)};
  }
  for (const Result& one : comparison.at("answers")) {
    eval::Exchange exchange{one.value("form", ""), one.value("prompt", ""), {}};
    for (const auto& [model, answer] : one.at("answers").items()) {
      if (hidden.contains(model)) continue;
      exchange.answers.emplace_back(model, answer);
    }
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
