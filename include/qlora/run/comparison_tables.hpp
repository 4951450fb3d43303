// qlora/run/comparison_tables.hpp — the metrics of a comparison as tables, and the whole of it as text for a terminal.
#pragma once

#include <iosfwd>

#include "qlora/run/comparison.hpp"
#include "qlora/run/prebuilt.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// The answers, the main metrics and the requirements as text.
QLORA_STEP void print_comparison(const Comparison& comparison, std::ostream& out);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <iomanip>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/eval/metrics.hpp"
#include "qlora/eval/report.hpp"
#include "qlora/io/json.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

namespace detail {

/// "83.8 [75.0, 91.2]": a number in percent (or as it is), with its interval; "-" where it was not measured.
[[nodiscard]] inline std::string interval_cell(const eval::Interval* number, bool percent) {
  if (number == nullptr || !std::isfinite(number->value)) return "-";
  const auto text = [&](double value) {
    std::array<char, 32> out{};
    std::snprintf(out.data(), out.size(), percent ? "%.1f" : "%.4f", percent ? 100 * value : value);
    return std::string(out.data());
  };
  if (!std::isfinite(number->lower) || !std::isfinite(number->upper)) return text(number->value);
  return text(number->value) + " [" + text(number->lower) + ", " + text(number->upper) + "]";
}

/// Which number of the metrics a table shows; "" is the main one.
[[nodiscard]] inline std::string path_of(const std::string& metric, const std::string& number) {
  return number.empty() ? metric : metric + "." + number;
}

/// Names of metrics that have a number, in the order of the first variant that has them.
[[nodiscard]] inline std::vector<std::string> metrics_with(const OrderedMap<VariantResult>& variants,
                                                           const std::string& number, bool texts) {
  std::vector<std::string> names;
  for (const auto& [name, variant] : variants) {
    for (const eval::Metric& metric : variant.metrics) {
      if (metric.name.starts_with("text_") != texts) continue;
      if (!number.empty() && metric.find(number) == nullptr) continue;
      if (std::find(names.begin(), names.end(), metric.name) == names.end()) names.push_back(metric.name);
    }
  }
  return names;
}

/// One row for each metric, one column for each variant.
[[nodiscard]] inline eval::Table metric_table(const OrderedMap<VariantResult>& variants, std::string caption,
                                              const std::string& number, bool texts) {
  eval::Table table{std::move(caption), {"", "n"}, {}};
  const bool compared = number == "change" || number == "kept" || number == "kl";
  for (const auto& [name, variant] : variants) {
    const bool alone = !compared || variant.reference.empty();
    table.columns.push_back(alone ? name : name + " against " + variant.reference);
  }
  const bool percent = !texts && number != "margin";
  for (const std::string& metric : metrics_with(variants, number, texts)) {
    std::vector<std::string> row{metric, ""};
    for (const auto& [name, variant] : variants) {
      const eval::Interval* interval = eval::find_interval(variant.metrics, path_of(metric, number));
      if (interval != nullptr && row[1].empty()) row[1] = std::to_string(interval->n);
      row.push_back(interval_cell(interval, percent));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

/// More variants than a page has room for side by side.
[[nodiscard]] inline bool many(const OrderedMap<VariantResult>& variants) { return variants.size() > 8; }

/// The transposed table, with a row for each variant; `n` goes into the column heads.
[[nodiscard]] inline eval::Table transposed(const eval::Table& table) {
  eval::Table out{table.caption, {""}, {}};
  for (const auto& row : table.rows) out.columns.push_back(row[0] + ", n " + row[1]);
  for (std::size_t column = 2; column < table.columns.size(); ++column) {
    std::vector<std::string> row{table.columns[column]};
    for (const auto& from : table.rows) row.push_back(from[column]);
    out.rows.push_back(std::move(row));
  }
  return out;
}

[[nodiscard]] inline eval::Table headline_of(const OrderedMap<VariantResult>& variants) {
  eval::Table table = metric_table(
      variants,
      "Right replies in percent, with 95 % bootstrap intervals over entities. w16: the base model in 16 bits; nf4: "
      "the base model in 4 bits, without an adapter.",
      "", false);
  return many(variants) ? transposed(table) : table;
}

/// The tables below the headline that have rows.
[[nodiscard]] inline std::vector<eval::Table> metric_tables(const OrderedMap<VariantResult>& variants) {
  std::vector<eval::Table> tables{
      metric_table(variants,
                   "Net: percent right minus percent that matches the twin world, on which no model was trained.",
                   "net", false),
      metric_table(variants, "Choice: percent of items whose answer is more likely than every alternative.", "choice",
                   false),
      metric_table(variants, "Change from the reference in percentage points, on the same items.", "change", false),
      metric_table(variants,
                   "Kept: of the items that the reference has right, the percentage that this model has right, too.",
                   "kept", false),
      metric_table(variants, "Loss on texts in nats per token.", "", true),
      metric_table(variants, "KL(reference || this model) on texts in nats per token.", "kl", true)};
  std::erase_if(tables, [](const eval::Table& table) { return table.rows.empty(); });
  if (many(variants)) std::transform(tables.begin(), tables.end(), tables.begin(), transposed);
  return tables;
}

[[nodiscard]] inline std::string measured_text(const eval::RequirementResult& result) {
  return Json(result.measured).dump();  // null if it was not measured
}

[[nodiscard]] inline eval::Table requirement_table(std::span<const eval::RequirementResult> results) {
  eval::Table table{"Requirements", {"", "measured", "met"}, {}};
  for (const eval::RequirementResult& requirement : results) {
    table.rows.push_back({requirement.expression, measured_text(requirement), requirement.met ? "yes" : "no"});
  }
  return table;
}

[[nodiscard]] inline const char* form_of(bool chat) { return chat ? "chat" : "completion"; }

inline void print_table(const eval::Table& table, std::ostream& out) {
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

/// One line of at most `limit` bytes without control characters, for a terminal. The JSON and the page have all of it.
[[nodiscard]] inline std::string for_terminal(std::string_view text) {
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

}  // namespace detail

QLORA_STEP void print_comparison(const Comparison& comparison, std::ostream& out) {
  for (const Exchange& exchange : comparison.answers) {
    out << "\n[" << detail::form_of(exchange.chat) << "] " << detail::for_terminal(exchange.prompt) << '\n';
    for (const auto& [model, answer] : exchange.answers) {
      out << "  " << std::left << std::setw(12) << model << ' ' << detail::for_terminal(answer) << '\n';
    }
  }
  if (comparison.variants.empty()) return;
  out << '\n';
  detail::print_table(detail::headline_of(comparison.variants), out);
  if (!comparison.requirements) return;
  for (const eval::RequirementResult& requirement : *comparison.requirements) {
    out << "requirement " << requirement.expression << ": " << detail::measured_text(requirement) << ", "
        << (requirement.met ? "met" : "NOT MET") << '\n';
  }
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
