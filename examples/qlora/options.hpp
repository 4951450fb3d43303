// options.hpp — the command line as the verbs see it: options that fill variables, checks on their values, subcommands.
// CLI11 is behind it and is seen by options.cpp alone: its templates take longer to compile than most verbs, and no
// verb should pay for them. A type of variable or a check that a verb wants anew is one line here and one there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

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
  /// Both ends belong to the range.
  Option range(int low, int high);
  Option range(std::int64_t low, std::int64_t high);
  Option range(double low, double high);
  Option non_negative();
  Option positive();
  Option one_of(std::vector<std::string> values);

 private:
  friend class OptionSet;
  explicit Option(CLI::Option& option) : option_(&option) {}

  CLI::Option* option_;
};

/// The options of the program or of a verb: a handle, copies mean the same ones. It must not outlive its CommandLine,
/// nor a target the parsing. `names` is "-m,--model", or "model" for an argument that is known by its place.
class OptionSet {
 public:
  Option add(const std::string& names, bool& target, const std::string& help);  ///< a flag: takes no value
  Option add(const std::string& names, int& target, const std::string& help);
  Option add(const std::string& names, std::int64_t& target, const std::string& help);
  Option add(const std::string& names, double& target, const std::string& help);
  Option add(const std::string& names, std::string& target, const std::string& help);
  Option add(const std::string& names, std::filesystem::path& target, const std::string& help);
  Option add(const std::string& names, std::vector<std::string>& target, const std::string& help);
  Option add(const std::string& names, std::vector<std::filesystem::path>& target, const std::string& help);

  OptionSet subcommand(const std::string& name, const std::string& help);
  /// Exactly one of the subcommands must be given.
  void require_subcommand();
  /// Whatever follows is taken and not looked at.
  void take_any_arguments();
  /// Whether the line that was parsed has this option, as one of its names: "--rank".
  [[nodiscard]] bool given(const std::string& name) const;
  /// The help of options added from now on shows what their targets hold.
  void show_defaults();
  /// Called once parsing succeeded, if this subcommand was given.
  void on_call(std::function<void()> action);

 private:
  friend class CommandLine;
  explicit OptionSet(CLI::App& app) : app_(&app) {}

  CLI::App* app_;
};

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

 private:
  std::unique_ptr<CLI::App> app_;
};

}  // namespace qlora::program
