// options.hpp — the command line as the verbs see it: options that fill variables, checks on their values, subcommands.
// CLI11 is behind it and is seen by options.cpp alone: its templates take longer to compile than most verbs, and no
// verb should pay for them. A type of variable or a check that a verb wants anew is one line here and one there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <iosfwd>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/run/option.hpp"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace qlora::program {

/// An option that was added. Each function gives the option back, so that they chain.
class Option {
 public:
  Option required();
  /// What stands for the value in the help: "DIR".
  Option type_name(const std::string& name);
  Option one_of(std::vector<std::string> values);

 private:
  friend class OptionSet;
  explicit Option(CLI::Option& option) : option_(&option) {}

  CLI::Option* option_;
};

/// What a path of an option becomes.
using PathChange = std::function<std::filesystem::path(const std::filesystem::path&)>;

/// An option of a table as the command line shows and reads it.
struct TableOption {
  std::string names;     ///< "-n,--documents"
  std::string old_name;  ///< such as "--resident"; empty: none
  std::string type;      ///< what stands for the value in the help
  std::string fallback;  ///< the default, as the help shows it
  std::string help;
  run::Kind kind;
  std::function<std::string(const run::Value&)> assign;         ///< gives back what is wrong with the value
  std::function<std::vector<std::filesystem::path>()> paths{};  ///< what a path option holds; empty: another kind
  std::function<void(const PathChange&)> change{};              ///< replaces these paths
};

/// An option that holds paths.
struct PathOption {
  const void* target;  ///< what it fills; null for options of a table
  std::function<std::vector<std::filesystem::path>()> read;
  std::function<void(const PathChange&)> change;  ///< replaces them
};

/// What is written to the path of an option; `either`: a file where its name has an extension.
enum class Written { file, directory, resumed, either };

/// An option that says where something is written. `resumed`: a directory where an earlier run is resumed.
struct OutputOption {
  std::filesystem::path* target;
  Written what;
};

/// What a parsed line leaves behind beside its targets.
struct LineNotes {
  std::map<std::string, std::string> old_names;  ///< by new name
  std::vector<std::string> notes;                ///< on old names that were used
  std::vector<PathOption> paths;                 ///< of all verbs
  std::vector<std::filesystem::path*> models;    ///< targets of add_model
  std::vector<OutputOption> outputs;             ///< of add_output
};

/// The options of the program or of a verb: a handle, copies mean the same ones. It must not outlive its CommandLine,
/// nor a target the parsing. `names` is "-m,--model", or "model" for an argument that is known by its place.
class OptionSet {
 public:
  Option add(const std::string& names, bool& target, const std::string& help);  ///< a flag: takes no value
  Option add(const std::string& names, std::string& target, const std::string& help);
  Option add(const std::string& names, std::filesystem::path& target, const std::string& help);
  Option add(const std::string& names, std::vector<std::string>& target, const std::string& help);
  Option add(const std::string& names, std::vector<std::filesystem::path>& target, const std::string& help);

  /// A directory that may be the name of a model of the hub instead: see CommandLine::models().
  Option add_model(const std::string& names, std::filesystem::path& target, const std::string& help);
  /// A file or a directory that is written.
  Option add_output(const std::string& names, std::filesystem::path& target, Written what, const std::string& help);
  void add(const TableOption& option);

  OptionSet subcommand(const std::string& name, const std::string& help);
  /// Exactly one of the subcommands must be given.
  void require_subcommand();
  /// Whatever follows is taken and not looked at.
  void take_any_arguments();
  /// Whether the verb has this option and the line that was parsed gives it, under this name or its old one: "--rank".
  [[nodiscard]] bool given(const std::string& name) const;
  /// The help of options added from now on shows what their targets hold.
  void show_defaults();
  /// Called once parsing succeeded, if this subcommand was given.
  void on_call(std::function<void()> action);

 private:
  friend class CommandLine;
  OptionSet(CLI::App& app, LineNotes& notes) : app_(&app), notes_(&notes) {}

  CLI::App* app_;
  LineNotes* notes_;
};

inline void add_any_base(OptionSet verb, bool& any_base) {
  verb.add("--any-base", any_base,
           "Take an adapter that was trained on other weights: the same ones in another type, say");
}

/// Which options of a table a verb takes, and how.
struct TableUse {
  std::initializer_list<std::string_view> only{};  ///< empty: all
  bool defaults = true;                            ///< whether the help shows what the target holds
};

/// What stands for a value in the help: "{auto,cpu,cuda}", "STEPS 1..1000000000", "FLOAT 0..10".
template <class S>
std::string type_of(const run::Option<S>& option) {
  std::string text;
  for (const std::string_view name : option.choices()) text += (text.empty() ? "{" : ",") + std::string(name);
  switch (option.kind()) {
    case run::Kind::flag:
      return {};
    case run::Kind::choice:
      return text + "}";
    case run::Kind::size:
      return "SIZE";
    case run::Kind::text:
      return "TEXT";
    case run::Kind::path:
      return "PATH";
    case run::Kind::texts:
      return "TEXT...";
    case run::Kind::paths:
      return "PATH...";
    case run::Kind::integer:
      text = "INT";
      break;
    case run::Kind::number:
      text = "FLOAT";
      break;
  }
  if (!option.unit.empty()) {
    text = option.unit;
    std::transform(text.begin(), text.end(), text.begin(), [](char c) { return static_cast<char>(c - 'a' + 'A'); });
  }
  return text + " " + run::text_of(option.range.low) + ".." + run::text_of(option.range.high);
}

/// What a path option of a table holds, when it is asked; empty for other kinds.
template <run::HasTable S>
std::function<std::vector<std::filesystem::path>()> paths_of(const run::Option<S>& option, const S& target) {
  if (option.kind() != run::Kind::path && option.kind() != run::Kind::paths) return {};
  return [&option, &target] {
    const run::Value value = run::value_of(option, target);
    if (const auto* path = std::get_if<std::string>(&value)) return std::vector<std::filesystem::path>{*path};
    const auto& several = std::get<std::vector<std::string>>(value);
    return std::vector<std::filesystem::path>(several.begin(), several.end());
  };
}

/// Replaces what a path option of a table holds; empty for other kinds.
template <run::HasTable S>
std::function<void(const PathChange&)> change_of(const run::Option<S>& option, S& target) {
  if (option.kind() != run::Kind::path && option.kind() != run::Kind::paths) return {};
  return [&option, &target](const PathChange& change) {
    run::Value value = run::value_of(option, target);
    if (auto* path = std::get_if<std::string>(&value)) *path = change(*path).string();
    if (auto* several = std::get_if<std::vector<std::string>>(&value)) {
      for (std::string& path : *several) path = change(path).string();
    }
    (void)run::assign(option, target, value);
  };
}

/// The options of a table as those of a verb. They fill `target`, which must outlive the parsing.
template <run::HasTable S>
void add_table(OptionSet verb, S& target, const TableUse& use = {}) {
  for (const run::Option<S>& option : run::Table<S>::options) {
    if (use.only.size() > 0 && std::find(use.only.begin(), use.only.end(), option.name) == use.only.end()) continue;
    const std::string name = run::line_name(option);
    const std::string letter = option.letter == '\0' ? std::string() : std::string{'-', option.letter, ','};
    verb.add({.names = letter + name,
              .old_name = option.old_name.empty() ? std::string() : run::dashed(option.old_name),
              .type = type_of(option),
              .fallback = use.defaults ? run::text_of(run::value_of(option, target)) : std::string(),
              .help = std::string(option.help) +
                      (option.adapters_only && use.only.size() == 0 ? "; not with --method full" : ""),
              .kind = option.kind(),
              .assign =
                  [&option, &target, name](const run::Value& value) {
                    const std::string wrong = run::assign(option, target, value);
                    return wrong.empty() ? wrong : name + " " + wrong;
                  },
              .paths = paths_of(option, target),
              .change = change_of(option, target)});
  }
}

/// Copies the options of a table that the line that was parsed has.
template <run::HasTable S>
void copy_given(const OptionSet& verb, const S& from, S& into) {
  for (const run::Option<S>& option : run::Table<S>::options) {
    if (verb.given(run::line_name(option))) run::copy_option(option, from, into);
  }
}

/// What the program says of itself.
struct ProgramText {
  std::string name;
  std::string about;
  std::string version;
  std::string footer;  ///< below the help
};

class CommandLine {
 public:
  explicit CommandLine(const ProgramText& text);
  CommandLine(const CommandLine&) = delete;
  CommandLine& operator=(const CommandLine&) = delete;
  ~CommandLine();

  [[nodiscard]] OptionSet options();
  /// False if help or version was asked for and is now printed to `out`. Throws Error(usage) for a line that cannot be
  /// meant.
  [[nodiscard]] bool parse(int argc, const char* const* argv, std::ostream& out);
  /// What the user is to know of the line that was parsed: old names that were used.
  [[nodiscard]] const std::vector<std::string>& notes() const { return notes_.notes; }
  /// What directories of models hold, to be replaced where it is a name of the hub.
  [[nodiscard]] const std::vector<std::filesystem::path*>& models() const { return notes_.models; }
  /// Replaces each path that is read, not those of add_output.
  void change_inputs(const PathChange& change) const;
  /// Where the line that was parsed, or another one of the program's verbs, writes.
  [[nodiscard]] const std::vector<OutputOption>& outputs() const { return notes_.outputs; }
  /// The paths that options hold, without those of the option that fills `but`.
  [[nodiscard]] std::vector<std::filesystem::path> paths(const std::filesystem::path& but) const;

 private:
  std::unique_ptr<CLI::App> app_;
  LineNotes notes_;
};

}  // namespace qlora::program
