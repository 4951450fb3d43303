// verb.hpp — what a verb of the program is: options that CLI11 fills, and an action that main runs afterwards.
// Each verb lives in a file of its own and is known to main by its add_ function alone.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <nlohmann/json.hpp>
#include <string>

#include "progress.hpp"

namespace qlora::program {

/// A verb's machine-readable result: what `--json FILE` writes.
using Result = nlohmann::ordered_json;

/// What an action works with: where results go, and where it says how far it is.
struct Context {
  std::ostream& out;
  Progress& progress;
};

using Action = std::function<Result(Context&)>;

/// What the command line asked for.
struct Invocation {
  std::filesystem::path json;
  std::string progress = "auto";
  bool quiet = false;
  Action action;
};

/// A verb with the options that all of them have.
inline CLI::App& add_verb(CLI::App& parent, Invocation& call, const std::string& name, const std::string& help) {
  CLI::App& verb = *parent.add_subcommand(name, help);
  verb.option_defaults()->always_capture_default();
  verb.add_option("--json", call.json, "Write the result as JSON to this file")->type_name("FILE");
  verb.add_flag("-q,--quiet", call.quiet, "Say nothing on stderr but errors");
  verb.add_option("--progress", call.progress, "How progress is shown on stderr")
      ->check(CLI::IsMember({"auto", "bar", "lines", "json", "none"}));
  return verb;
}

void add_chat(CLI::App& app, Invocation& call);
void add_compare(CLI::App& app, Invocation& call);
void add_data(CLI::App& app, Invocation& call);
void add_fetch(CLI::App& app, Invocation& call);
void add_generate(CLI::App& app, Invocation& call);
void add_info(CLI::App& app, Invocation& call);
void add_merge(CLI::App& app, Invocation& call);
void add_pack(CLI::App& app, Invocation& call);
void add_plan(CLI::App& app, Invocation& call);
void add_run(CLI::App& app, Invocation& call);
void add_train(CLI::App& app, Invocation& call);

}  // namespace qlora::program
