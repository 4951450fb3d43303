// options.cpp — options.hpp by means of CLI11. The one file that includes it.
#include "options.hpp"

#include <CLI/CLI.hpp>
#include <ostream>
#include <utility>

#include "qlora/error.hpp"
#include "suggest.hpp"

namespace qlora::program {

namespace fs = std::filesystem;

namespace {

/// What is wrong with the first option on the line that the verb does not have, and what it may have meant; empty: nothing.
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
      for (const std::string& one : option->get_lnames()) names.push_back("--" + one);
    }
    return "there is no option `" + name + "`" +
           suggestion(name, std::vector<std::string_view>(names.begin(), names.end()));
  }
  return {};
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

Option Option::range(int low, int high) {
  option_->check(CLI::Range(low, high));
  return *this;
}

Option Option::range(std::int64_t low, std::int64_t high) {
  option_->check(CLI::Range(low, high));
  return *this;
}

Option Option::range(double low, double high) {
  option_->check(CLI::Range(low, high));
  return *this;
}

Option Option::non_negative() {
  option_->check(CLI::NonNegativeNumber);
  return *this;
}

Option Option::positive() {
  option_->check(CLI::PositiveNumber);
  return *this;
}

Option Option::one_of(std::vector<std::string> values) {
  option_->check(CLI::IsMember(std::move(values)));
  return *this;
}

Option OptionSet::add(const std::string& names, bool& target, const std::string& help) {
  return Option(*app_->add_flag(names, target, help));
}

Option OptionSet::add(const std::string& names, int& target, const std::string& help) {
  return Option(*app_->add_option(names, target, help));
}

Option OptionSet::add(const std::string& names, std::int64_t& target, const std::string& help) {
  return Option(*app_->add_option(names, target, help));
}

Option OptionSet::add(const std::string& names, double& target, const std::string& help) {
  return Option(*app_->add_option(names, target, help));
}

Option OptionSet::add(const std::string& names, std::string& target, const std::string& help) {
  return Option(*app_->add_option(names, target, help));
}

Option OptionSet::add(const std::string& names, fs::path& target, const std::string& help) {
  return Option(*app_->add_option(names, target, help));
}

Option OptionSet::add(const std::string& names, std::vector<std::string>& target, const std::string& help) {
  return Option(*app_->add_option(names, target, help));
}

Option OptionSet::add(const std::string& names, std::vector<fs::path>& target, const std::string& help) {
  return Option(*app_->add_option(names, target, help));
}

OptionSet OptionSet::subcommand(const std::string& name, const std::string& help) {
  return OptionSet(*app_->add_subcommand(name, help));
}

void OptionSet::take_any_arguments() { app_->prefix_command(); }

void OptionSet::require_subcommand() { app_->require_subcommand(1); }

bool OptionSet::given(const std::string& name) const { return app_->count(name) > 0; }

void OptionSet::show_defaults() { app_->option_defaults()->always_capture_default(); }

void OptionSet::on_call(std::function<void()> action) { app_->callback(std::move(action)); }

CommandLine::CommandLine(const ProgramText& text) : app_(std::make_unique<CLI::App>(text.about, text.name)) {
  app_->set_version_flag("--version", text.version);
  app_->footer(text.footer);
}

CommandLine::~CommandLine() = default;

OptionSet CommandLine::options() { return OptionSet(*app_); }

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
                        suggestion(wrong, std::vector<std::string_view>(verbs.begin(), verbs.end())),
                    ErrorKind::usage);
      }
    }
    if (const std::string wrong = misspelt(argc, argv, *app_); !wrong.empty()) throw Error(wrong, ErrorKind::usage);
    throw Error(std::string(error.what()) + "; `" + name + " --help` and `" + name + " VERB --help` list what there is",
                ErrorKind::usage);
  }
}

}  // namespace qlora::program
