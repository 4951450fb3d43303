// qlora/run/option_pages.hpp — tables of options for readers: as a commented job file, and as the page docs/options.md.
// All that is said comes from the tables.
#pragma once

#include <ostream>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/run/option.hpp"
#include "qlora/run/options.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// A value as written in a job file.
[[nodiscard]] inline std::string toml_of(const Value& value) {
  const auto quoted = [](const std::string& text) { return "\"" + text + "\""; };
  if (const auto* text = std::get_if<std::string>(&value)) return quoted(*text);
  const auto* texts = std::get_if<std::vector<std::string>>(&value);
  if (texts == nullptr) return run::text_of(value);
  std::string all;
  for (const std::string& text : *texts) all += (all.empty() ? "" : ", ") + quoted(text);
  return "[" + all + "]";
}

/// What a value may be, for the reader: choices, or range and unit.
template <class S>
[[nodiscard]] std::string range_of(const Option<S>& option) {
  std::string text;
  for (const std::string_view name : option.choices()) text += (text.empty() ? "" : ", ") + std::string(name);
  if (option.kind() == Kind::integer || option.kind() == Kind::number) {
    text = concat(run::text_of(option.range.low), " to ", run::text_of(option.range.high),
                  option.unit.empty() ? "" : " ", option.unit);
  }
  return text.empty() ? text : " (" + text + ")";
}

template <HasTable S>
void print_group(std::ostream& out, std::string_view before = "") {
  for (const Option<S>& option : Table<S>::options) {
    out << before << option.name << " = " << toml_of(value_of(option, S{})) << "  # " << option.help << range_of(option)
        << (option.adapters_only ? "; not with method = \"full\"" : "") << '\n';
  }
}

/// A cell of a Markdown table, in code marks unless it is empty.
[[nodiscard]] inline std::string code(const std::string& text) { return text.empty() ? text : "`" + text + "`"; }

template <HasTable S>
void print_page_of(std::ostream& out) {
  using Table = Table<S>;
  out << "\n## " << Table::title << "\n\n";
  if (!Table::section.empty()) out << "Job file: " << code(concat("[", Table::section, "]")) << ".";
  if (!Table::section.empty() && !Table::verbs.empty()) out << " ";
  if (!Table::verbs.empty()) out << "Verbs: " << Table::verbs << ".";
  out << "\n\n| option | key | default | values | fingerprint | meaning |\n|---|---|---|---|---|---|\n";
  for (const Option<S>& option : Table::options) {
    const std::string values = range_of(option);
    out << "| " << (Table::verbs.empty() ? "" : code(line_name(option))) << " | "
        << (Table::section.empty() ? "" : code(std::string(option.name))) << " | "
        << code(toml_of(value_of(option, S{}))) << " | "
        << (values.empty() ? values : values.substr(2, values.size() - 3)) << " | "
        << (option.fingerprint && !Table::section.empty() ? "yes" : "") << " | " << option.help
        << (option.adapters_only ? "; not with `--method full`" : "");
    if (!option.old_name.empty()) out << "; old name: " << code(std::string(option.old_name));
    out << " |\n";
  }
}

}  // namespace detail

/// Writes every key of a job file with its default, what it may be and what it means: a job file with comments.
inline void print_job_keys(std::ostream& out) {
  out << "[model]  # or several: [[model]] takes the same key and a name\n";
  detail::print_group<ModelSource>(out);
  out << "\n[device]\n";
  detail::print_group<DeviceRequest>(out);
  out << "\n[data]\n";
  detail::print_group<Pages>(out);
  detail::print_group<Fetching>(out);
  out << "\n[pack]\n";
  detail::print_group<Packing>(out);
  out << "\n[train]\n";
  detail::print_group<Training>(out);
  detail::print_group<Replay>(out);
  detail::print_group<LoopProbes>(out);
  // As comments: an arm that names empty pages is refused, and a job without arms is one, too.
  out << "\n# [[arm]]  # none or several; each takes a name, the keys of [train], urls and files instead of [data], "
         "and these\n";
  detail::print_group<ArmLabels>(out, "# ");
  out << "# sweep = {}  # Its values of what is varied, as { \"rank\" = 64 }: the report draws each name as a chart\n";
  out << "\n[merge]\n";
  detail::print_group<MergeSource>(out);
  detail::print_group<Merging>(out);
  out << "\n[compare]\n";
  detail::print_group<Comparing>(out);
  detail::print_group<Sampling>(out);
  out << "\n[output]\n";
  detail::print_group<Output>(out);
}

/// Writes the page docs/options.md: every option of the verbs and key of a job file, in Markdown.
inline void print_options_page(std::ostream& out) {
  out << "# Options\n\n"
         "Written by `qlora run --keys --markdown` from the tables in `include/qlora/run`. Keys are those of job "
         "files\n"
         "(`qlora run`); options are those of the verbs. An option with fingerprint decides results: when it changes, "
         "a\n"
         "job repeats the step, and an interrupted training does not resume.\n";
  for_each_group([&]<class S>() { detail::print_page_of<S>(out); });
  const Sampling usual;
  out << "\n`qlora recall` has other defaults for generation:";
  const char* separator = " ";
  for (const Option<Sampling>& option : Table<Sampling>::options) {
    const Value own = value_of(option, recall_sampling);
    if (own == value_of(option, usual)) continue;
    out << separator << detail::code(concat(line_name(option), " ", run::text_of(own)));
    separator = ", ";
  }
  out << ".\n";
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
