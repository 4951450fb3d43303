// options.cpp — options.hpp by means of CLI11. The one file that includes it.
#include "options.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ostream>
#include <utility>

#include "qlora/error.hpp"
#include "qlora/run/suggest.hpp"

namespace qlora::program {

namespace fs = std::filesystem;

namespace {

/// What is wrong with the first option on the line that the verb does not have, and what it may have meant; empty:
/// nothing.
std::string misspelt(int argc, const char* const* argv, const CLI::App& app) {
  const CLI::App* verb = &app;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--") break;
    if (!word.starts_with("-")) {
      for (const CLI::App* deeper : verb->get_subcommands({})) {
        if (deeper->get_name() == word) verb = deeper;
      }
      continue;
    }
    const std::string name = word.substr(0, word.find('='));
    if (!name.starts_with("--") || verb->get_option_no_throw(name) != nullptr) continue;
    std::vector<std::string> names;
    for (const CLI::Option* option : verb->get_options({})) {
      if (option->get_group().empty()) continue;  // old names
      for (const std::string& spelled : option->get_lnames()) names.push_back("--" + spelled);
    }
    return "there is no option `" + name + "`" +
           run::suggestion(name, std::vector<std::string_view>(names.begin(), names.end()));
  }
  return {};
}

/// The words of the line as the option's value. Throws CLI::ValidationError when they are none.
void take_words(const TableOption& option, const std::vector<std::string>& words) {
  const bool list = option.kind == run::Kind::texts || option.kind == run::Kind::paths;
  const auto value = list ? run::Value(words) : run::parse_value(option.kind, words.at(0));
  // A word that is no value of this kind is refused like a value of another kind: by what there must be.
  const std::string wrong = option.assign(value.value_or(std::vector<std::string>{}));
  if (!wrong.empty()) throw CLI::ValidationError(wrong);
}

CLI::Option* add_to(CLI::App& app, const std::string& names, const TableOption& option) {
  if (option.kind == run::Kind::flag) {
    return app.add_flag_function(
        names, [option](std::int64_t count) { take_words(option, {count > 0 ? "true" : "false"}); }, option.help);
  }
  CLI::Option* added = app.add_option(
      names,
      [option](const CLI::results_t& words) {
        take_words(option, words);
        return true;
      },
      option.help);
  added->type_name(option.type);
  if (!option.fallback.empty()) added->default_str(option.fallback);
  if (option.kind == run::Kind::texts || option.kind == run::Kind::paths) {
    added->expected(1, CLI::detail::expected_max_vector_size)->allow_extra_args(true);
  }
  return added;
}

}  // namespace

Option Option::required() {
  option_->required();
  return *this;
}

Option Option::type_name(const std::string& name) {
  option_->type_name(name);
  return *this;
}

Option Option::one_of(std::vector<std::string> values) {
  option_->check(CLI::IsMember(std::move(values)));
  return *this;
}

Option OptionSet::add(const std::string& names, bool& target, const std::string& help) {
  return Option(*app_->add_flag(names, target, help));
}

Option OptionSet::add(const std::string& names, std::string& target, const std::string& help) {
  return Option(*app_->add_option(names, target, help));
}

Option OptionSet::add(const std::string& names, fs::path& target, const std::string& help) {
  notes_->paths.push_back({&target, [&target] { return std::vector{target}; },
                           [&target](const PathChange& change) { target = change(target); }});
  return Option(*app_->add_option(names, target, help));
}

Option OptionSet::add_model(const std::string& names, fs::path& target, const std::string& help) {
  notes_->models.push_back(&target);
  return add(names, target, help);
}

Option OptionSet::add_output(const std::string& names, fs::path& target, Written what, const std::string& help) {
  notes_->outputs.push_back({&target, what});
  return add(names, target, help);
}

Option OptionSet::add(const std::string& names, std::vector<std::string>& target, const std::string& help) {
  return Option(*app_->add_option(names, target, help));
}

Option OptionSet::add(const std::string& names, std::vector<fs::path>& target, const std::string& help) {
  notes_->paths.push_back({&target, [&target] { return target; },
                           [&target](const PathChange& change) {
                             for (fs::path& path : target) path = change(path);
                           }});
  return Option(*app_->add_option(names, target, help));
}

void OptionSet::add(const TableOption& option) {
  if (option.paths) notes_->paths.push_back({nullptr, option.paths, option.change});
  add_to(*app_, option.names, option);
  if (option.old_name.empty()) return;
  const std::string name = option.names.substr(option.names.find("--"));
  TableOption old = option;
  old.assign = [assign = option.assign, notes = notes_, name, before = option.old_name](const run::Value& value) {
    notes->notes.push_back(before + " is now called " + name + "; the next version no longer knows the old name");
    return assign(value);
  };
  add_to(*app_, option.old_name, old)->group("");
  notes_->old_names[name] = option.old_name;
}

OptionSet OptionSet::subcommand(const std::string& name, const std::string& help) {
  return {*app_->add_subcommand(name, help), *notes_};
}

void OptionSet::take_any_arguments() { app_->prefix_command(); }

void OptionSet::require_subcommand() { app_->require_subcommand(1); }

bool OptionSet::given(const std::string& name) const {
  const auto count = [&](const std::string& text) {
    const CLI::Option* option = app_->get_option_no_throw(text);
    return option == nullptr ? 0 : option->count();
  };
  const auto old = notes_->old_names.find(name);
  return count(name) > 0 || (old != notes_->old_names.end() && count(old->second) > 0);
}

void OptionSet::show_defaults() { app_->option_defaults()->always_capture_default(); }

void OptionSet::on_call(std::function<void()> action) { app_->callback(std::move(action)); }

CommandLine::CommandLine(const ProgramText& text) : app_(std::make_unique<CLI::App>(text.about, text.name)) {
  app_->set_version_flag("--version", text.version);
  app_->footer(text.footer);
}

CommandLine::~CommandLine() = default;

OptionSet CommandLine::options() { return {*app_, notes_}; }

std::vector<fs::path> CommandLine::paths(const fs::path& but) const {
  std::vector<fs::path> all;
  for (const PathOption& option : notes_.paths) {
    if (option.target == &but) continue;
    for (fs::path& path : option.read()) {
      if (!path.empty()) all.push_back(std::move(path));
    }
  }
  return all;
}

void CommandLine::change_inputs(const PathChange& change) const {
  for (const PathOption& option : notes_.paths) {
    const auto same = [&](const OutputOption& output) { return output.target == option.target; };
    if (std::none_of(notes_.outputs.begin(), notes_.outputs.end(), same)) option.change(change);
  }
}

bool CommandLine::parse(int argc, const char* const* argv, std::ostream& out) {
  try {
    app_->parse(argc, argv);
    return true;
  } catch (const CLI::Success& help_or_version) {
    app_->exit(help_or_version, out, out);
    return false;
  } catch (const CLI::ParseError& error) {
    const std::string name = app_->get_name();
    if (const std::string wrong = argc > 1 ? argv[1] : ""; !wrong.empty() && wrong[0] != '-') {
      std::vector<std::string> verbs;
      for (const CLI::App* verb : app_->get_subcommands({})) verbs.push_back(verb->get_name());
      if (std::find(verbs.begin(), verbs.end(), wrong) == verbs.end()) {
        throw Error("there is no verb `" + wrong + "`" +
                        run::suggestion(wrong, std::vector<std::string_view>(verbs.begin(), verbs.end())),
                    ErrorKind::usage);
      }
    }
    if (const std::string wrong = misspelt(argc, argv, *app_); !wrong.empty()) throw Error(wrong, ErrorKind::usage);
    throw Error(std::string(error.what()) + "; `" + name + " --help` and `" + name + " VERB --help` list what there is",
                ErrorKind::usage);
  }
}

}  // namespace qlora::program
