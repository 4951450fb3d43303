// verb.hpp — what a verb of the program is: options that the command line fills, and an action that main runs then.
// Each verb lives in a file of its own and is known to main by its add_ function alone.
#pragma once

#include <filesystem>
#include <functional>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/run/options.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/remote_path.hpp"
#include "result.hpp"

namespace qlora::program {

class OptionSet;
enum class Written;
using run::Progress;

/// Called when a run has saved: has that copied to S3 in the background. Says why the copy before failed; empty: it did
/// not.
using CopyMeanwhile = std::function<std::string()>;

/// What an action works with: where results go, and where it says how far it is.
struct Context {
  std::ostream& out;
  Progress& progress;
  std::vector<run::RemoteOutput> remote;  ///< what is copied to S3 when the action has ended
  std::optional<Result> so_far;           ///< what `--json` writes when the action ends with an error
  std::vector<CopyMeanwhile> copies;      ///< of what a run that goes on has saved; they end with it
};

using Action = std::function<Result(Context&)>;

/// What the command line asked for.
struct Invocation {
  std::filesystem::path json;
  run::Console console;
  Action action;
  /// Where a container's error goes as well; empty: not in a container.
  std::function<void(std::string_view message, ErrorKind kind)> on_failure;
};

/// A verb with the options that all of them have.
OptionSet add_verb(OptionSet parent, Invocation& call, const std::string& name, const std::string& help);

/// Throws Error (resource) when a file that is to be written at the end could not be, for want of its folder: before
/// the work.
void check_folder_of(const std::string& option, const std::filesystem::path& file);
/// Throws Error: (resource) when a result could not be written to this file, for want of its folder; (usage) when it
/// would replace one of these files, or one in the folder of a model, an adapter or a data set among them.
void check_result_file(const std::filesystem::path& json, const std::vector<std::filesystem::path>& named);
/// Throws Error (usage) when a verb's output would go into a model's directory.
void check_no_model(const std::filesystem::path& out);

/// run::model_directory of run/hub.hpp; without libcurl the path itself.
std::filesystem::path model_directory(const std::filesystem::path& named, Progress& progress,
                                      const std::filesystem::path& folder = {});

/// run::local_copy of run/remote.hpp; where this build has no S3, Error (resource) for a path there.
std::filesystem::path local_path(const std::filesystem::path& named, Progress& progress);
/// Makes a path in S3, where something is to be written, a path of this machine, and notes it in `context.remote`.
void stage(std::filesystem::path& target, Written what, Context& context);
/// A text where the paths that stage() made stand as what they were.
std::string with_addresses(std::string text, const Context& context);
/// run::remote_output and run::publish of run/remote.hpp.
run::RemoteOutput stage_output(const std::string& address, bool file, bool keep, Progress& progress);
void publish_output(const run::RemoteOutput& output, Progress& progress);
/// run::RemoteCopies of run/remote_copies.hpp.
CopyMeanwhile copy_meanwhile(const run::RemoteOutput& output);

/// From now on SIGTERM asks to stop however often it comes. Launchers send it to all processes as soon as one has
/// ended, which may have been told to stop before and be about to leave; they kill a while later.
void expect_launcher_signals();

/// What `qlora --version` says: the version, and what this build holds.
std::string version_text();

void add_chat(OptionSet app, Invocation& call);
void add_compare(OptionSet app, Invocation& call);
void add_data(OptionSet app, Invocation& call);
void add_export(OptionSet app, Invocation& call);
void add_fetch(OptionSet app, Invocation& call);
void add_generate(OptionSet app, Invocation& call);
void add_hub(OptionSet app, Invocation& call);  ///< login, logout, pull, accept
void add_info(OptionSet app, Invocation& call);
void add_merge(OptionSet app, Invocation& call);
void add_pack(OptionSet app, Invocation& call);
void add_plan(OptionSet app, Invocation& call);
void add_quantize(OptionSet app, Invocation& call);
void add_recall(OptionSet app, Invocation& call);
void add_run(OptionSet app, Invocation& call);
void add_serve(OptionSet app, Invocation& call);
void add_train(OptionSet app, Invocation& call);

}  // namespace qlora::program
