// option_text.cpp — tables of options for readers: as a commented job file, and as the page docs/options.md. All that
// is said comes from the tables.
#include <ostream>
#include <variant>
#include <vector>

#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/run/options.hpp"

namespace qlora::program {
namespace {

/// A value as the job file has it.
std::string toml_of(const run::Value& value) {
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
std::string range_of(const run::Option<S>& option) {
  std::string text;
  for (const std::string_view name : option.choices()) text += (text.empty() ? "" : ", ") + std::string(name);
  if (option.kind() == run::Kind::integer || option.kind() == run::Kind::number) {
    text = concat(run::text_of(option.range.low), " to ", run::text_of(option.range.high),
                  option.unit.empty() ? "" : " ", option.unit);
  }
  return text.empty() ? text : " (" + text + ")";
}

template <run::HasTable S>
void print_group(std::ostream& out, std::string_view before = "") {
  for (const run::Option<S>& option : run::Table<S>::options) {
    out << before << option.name << " = " << toml_of(run::value_of(option, S{})) << "  # " << option.help
        << range_of(option) << (option.adapters_only ? "; not with method = \"full\"" : "") << '\n';
  }
}

/// A cell of a Markdown table, in code marks unless it is empty.
std::string code(const std::string& text) { return text.empty() ? text : "`" + text + "`"; }

template <run::HasTable S>
void print_page_of(std::ostream& out) {
  using Table = run::Table<S>;
  out << "\n## " << Table::title << "\n\n";
  if (!Table::section.empty()) out << "Job file: " << code(concat("[", Table::section, "]")) << ".";
  if (!Table::section.empty() && !Table::verbs.empty()) out << " ";
  if (!Table::verbs.empty()) out << "Verbs: " << Table::verbs << ".";
  out << "\n\n| option | key | default | values | fingerprint | meaning |\n|---|---|---|---|---|---|\n";
  for (const run::Option<S>& option : Table::options) {
    const std::string values = range_of(option);
    out << "| " << (Table::verbs.empty() ? "" : code(run::line_name(option))) << " | "
        << (Table::section.empty() ? "" : code(std::string(option.name))) << " | "
        << code(toml_of(run::value_of(option, S{}))) << " | "
        << (values.empty() ? values : values.substr(2, values.size() - 3)) << " | "
        << (option.fingerprint && !Table::section.empty() ? "yes" : "") << " | " << option.help
        << (option.adapters_only ? "; not with `--method full`" : "");
    if (!option.old_name.empty()) out << "; old name: " << code(std::string(option.old_name));
    out << " |\n";
  }
}

}  // namespace

void print_job_keys(std::ostream& out) {
  out << "[model]  # or several: [[model]] takes the same key and a name\n";
  print_group<run::ModelSource>(out);
  out << "\n[device]\n";
  print_group<run::DeviceRequest>(out);
  out << "\n[data]\n";
  print_group<run::Pages>(out);
  print_group<run::Fetching>(out);
  out << "\n[pack]\n";
  print_group<run::Packing>(out);
  out << "\n[train]\n";
  print_group<run::Training>(out);
  print_group<run::Replay>(out);
  print_group<run::LoopProbes>(out);
  // As comments: an arm that names empty pages is refused, and a job without arms is one, too.
  out << "\n# [[arm]]  # none or several; each takes a name, the keys of [train], urls and files instead of [data], "
         "and these\n";
  print_group<run::ArmLabels>(out, "# ");
  out << "# sweep = {}  # Its values of what is varied, as { \"rank\" = 64 }: the report draws each name as a chart\n";
  out << "\n[merge]\n";
  print_group<run::MergeSource>(out);
  print_group<run::Merging>(out);
  out << "\n[compare]\n";
  print_group<run::Comparing>(out);
  print_group<run::Sampling>(out);
  out << "\n[output]\n";
  print_group<run::Output>(out);
}

void print_options_page(std::ostream& out) {
  out << "# Options\n\n"
         "Written by `qlora run --keys --markdown` from the tables in `include/qlora/run`. Keys are those of job "
         "files\n"
         "(`qlora run`); options are those of the verbs. An option with fingerprint decides results: when it changes, "
         "a\n"
         "job repeats the step, and an interrupted training does not resume.\n";
  run::for_each_group([&]<class S>() { print_page_of<S>(out); });
  const run::Sampling usual;
  out << "\n`qlora recall` has other defaults for generation:";
  const char* separator = " ";
  for (const run::Option<run::Sampling>& option : run::Table<run::Sampling>::options) {
    const run::Value own = run::value_of(option, run::recall_sampling);
    if (own == run::value_of(option, usual)) continue;
    out << separator << code(concat(run::line_name(option), " ", run::text_of(own)));
    separator = ", ";
  }
  out << ".\n";
}

}  // namespace qlora::program
