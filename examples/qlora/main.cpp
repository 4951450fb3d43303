// main.cpp — the `qlora` program: registers the verbs, runs the one that was called, and turns errors into one line on
// stderr and an exit code (0 ok, 1 a requirement is not met, 2 usage, 3 input, 4 resource, 5 network, 6 interrupted but
// resumable).
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <iostream>
#include <new>
#include <ostream>
#include <span>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "options.hpp"
#include "qlora/dist/launch.hpp"
#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/run/console_progress.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

/// Set by the handler, read between steps. Nothing else happens inside the handler.
volatile std::sig_atomic_t interrupt_requested = 0;

/// Ctrl-C, SIGTERM, and SIGHUP of a closed terminal ask the running verb to save and leave (exit 6). A second Ctrl-C or
/// SIGTERM ends the program at once, as the system does by itself. Signals of failed writes are ignored, so that the
/// write reports the error.
/// SA_RESETHAND gives the second signal back to the system; SA_RESTART is left out so that waits end. SIGHUP keeps its
/// handler: a shell that ends sends it to its foreground job twice.
void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupt_requested = 1; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction before {};
  sigaction(SIGHUP, nullptr, &before);
  action.sa_flags = 0;
  if (before.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);  // nohup ignores it
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

}  // namespace

void expect_launcher_signals() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupt_requested = 1; };
  sigemptyset(&action.sa_mask);
  sigaction(SIGTERM, &action, nullptr);
}

namespace {

int exit_code(ErrorKind kind) { return static_cast<int>(kind); }

/// The lines of a message stay lines: some are there to be pasted.
int complain(std::string message, ErrorKind kind) {
  while (!message.empty() && (message.back() == ' ' || message.back() == '\n')) message.pop_back();
  std::cerr << "qlora: " << message << std::endl;
  return exit_code(kind);
}

/// A pipe or a device, such as /dev/stdout, is written to as it is; a file is replaced whole.
void write_result(const std::filesystem::path& path, const Result& result) {
  const std::string& text = result.json;
  try {
    if (!std::filesystem::exists(path) || std::filesystem::is_regular_file(path)) {
      return write_file_atomically(path, text);
    }
    // A pipe without a reader is an error; the program would wait for one, deaf to signals.
    const FileDescriptor file = FileDescriptor::open("cannot write", path, O_WRONLY | O_NONBLOCK);
    if (::fcntl(file.get(), F_SETFL, O_WRONLY) != 0) throw_errno("cannot write", path, errno);
    write_stream(file, path, std::as_bytes(std::span(text)));
  } catch (const Error& error) {
    throw Error(concat("cannot write the result: ", error.what()), ErrorKind::resource);
  }
}

using run::ProgressStyle;

ProgressStyle style_of(const run::Console& console) {
  if (console.quiet) return ProgressStyle::none;
  switch (console.progress) {
    case run::ProgressUse::automatic:
      break;
    case run::ProgressUse::bar:
      return ProgressStyle::bar;
    case run::ProgressUse::lines:
      return ProgressStyle::lines;
    case run::ProgressUse::json:
      return ProgressStyle::json;
    case run::ProgressUse::none:
      return ProgressStyle::none;
  }
  return run::style_for(STDERR_FILENO);
}

void flush(std::ostream& out) {
  out.flush();
  if (!out) throw Error("cannot write to stdout; is the disk full or the reader gone?", ErrorKind::resource);
}

/// Ctrl-C, SIGTERM and SIGHUP ask the running verb to stop. What a run saves is copied to S3 where it is to be there.
class ProgramProgress final : public run::ConsoleProgress {
 public:
  using ConsoleProgress::ConsoleProgress;
  [[nodiscard]] bool stop_requested() const override { return interrupt_requested != 0; }
  void saved() override {
    if (context == nullptr) return;
    for (const CopyMeanwhile& copy : context->copies)
      if (const std::string failure = copy(); !failure.empty()) say(failure);
  }
  const Context* context = nullptr;  ///< of the action that runs
};

/// Writes the part of a result that exists when the action ends with an error.
void write_so_far(const Invocation& call, Context& context) {
  if (call.json.empty() || !context.so_far) return;
  try {
    write_result(call.json, *context.so_far);
  } catch (const Error& error) {
    context.progress.say(error.what());
  }
}

/// Copies to S3 what was written for it. After an interrupt that is what can be gone on with, and is not interrupted.
void publish_all(Context& context, bool interrupted) {
  if (dist::launch_of(dist::process_environment).rank > 0) return;  // rank 0 does
  context.copies.clear();
  run::ConsoleProgress unstoppable(std::cerr, ProgressStyle::lines, false);
  for (const run::RemoteOutput& output : context.remote)
    if (!interrupted || output.keep) publish_output(output, interrupted ? unstoppable : context.progress);
}

/// `line`: the one that chose the verb.
int run_verb(Invocation& call, const CommandLine& line) {
  ProgramProgress progress(std::cerr, style_of(call.console), run::color_for(STDERR_FILENO));
  for (const std::string& note : line.notes()) progress.say(note);
  const auto& outputs = line.outputs();
  const bool remote = std::any_of(outputs.begin(), outputs.end(),
                                  [](const OutputOption& output) { return run::is_remote(*output.target); });
  std::ostringstream held;  // until paths in it are what the user gave
  Context context{remote ? static_cast<std::ostream&>(held) : std::cout, progress, {}, {}, {}};
  progress.context = &context;
  catch_interrupts();
  const std::vector<std::filesystem::path> named = line.paths(call.json);
  line.change_inputs([&](const std::filesystem::path& path) { return local_path(path, progress); });
  for (const OutputOption& output : outputs) stage(*output.target, output.what, context);
  for (std::filesystem::path* model : line.models()) *model = model_directory(*model, progress);
  if (!call.json.empty()) check_result_file(call.json, named);
  Result result;
  try {
    result = call.action(context);
  } catch (const Error& error) {
    std::cout << held.str();
    write_so_far(call, context);
    if (error.kind() != ErrorKind::interrupted || context.remote.empty()) throw;
    publish_all(context, true);  // it no longer lies where the error says
    throw Error(with_addresses(error.what(), context), error.kind());
  } catch (...) {
    write_so_far(call, context);
    throw;
  }
  std::cout.flush();  // before the result, which may go to the same pipe
  result.json = with_addresses(std::move(result.json), context);
  if (!call.json.empty()) write_result(call.json, result);
  publish_all(context, false);
  std::cout << with_addresses(held.str(), context);
  flush(std::cout);
  return result.unmet ? 1 : 0;
}

int run_mapped(Invocation& call, const CommandLine& line) {
  const auto complain = [&](const std::string& message, ErrorKind kind) {
    if (call.on_failure) call.on_failure(message, kind);
    return program::complain(message, kind);
  };
  try {
    return run_verb(call, line);
  } catch (const Error& error) {
    return complain(error.what(), error.kind());
  } catch (const std::bad_alloc&) {
    return complain("out of memory; `qlora plan` shows what a model needs, a smaller --batch or --seq needs less",
                    ErrorKind::resource);
  } catch (const std::filesystem::filesystem_error& error) {
    return complain(concat("cannot use ", error.path1().string(), ": ", error.code().message()),
                    is_scarcity(error.code().value()) ? ErrorKind::resource : ErrorKind::input);
  } catch (const std::exception& error) {
    return complain(error.what(), ErrorKind::input);
  }
}

int parse_and_run(int argc, char** argv) {
  Invocation call;
  CommandLine line(
      {.name = "qlora",
       .about = "Fine-tune LLaMA-2 models with QLoRA: from web pages to an adapter, a merged model, and a comparison.",
       .version = version_text(),
       .footer = "Exit codes: 0 ok, 1 a requirement is not met, 2 usage, 3 input, 4 resource, 5 network, 6 interrupted "
                 "but resumable.\n"
                 "Ctrl-C once saves and leaves, twice leaves at once. Results go to stdout, progress to stderr."});
  OptionSet app = line.options();
  app.require_subcommand();
  add_fetch(app, call);
  add_pack(app, call);
  add_train(app, call);
  add_merge(app, call);
  add_quantize(app, call);
  add_export(app, call);
  add_generate(app, call);
  add_chat(app, call);
  add_recall(app, call);
  add_compare(app, call);
  add_plan(app, call);
  add_run(app, call);
  add_serve(app, call);
  add_info(app, call);
  add_data(app, call);
  add_hub(app, call);
  if (line.parse(argc, argv, std::cout)) return run_mapped(call, line);
  try {
    flush(std::cout);  // the help or the version
  } catch (const Error& error) {
    return complain(error.what(), error.kind());
  }
  return 0;
}

}  // namespace

void stage(std::filesystem::path& target, Written what, Context& context) {
  if (!run::is_remote(target)) return;
  const bool file = what == Written::file || (what == Written::either && target.has_extension());
  context.remote.push_back(stage_output(target.string(), file, what == Written::resumed, context.progress));
  target = context.remote.back().staged;
  if (what == Written::resumed && dist::launch_of(dist::process_environment).rank == 0)
    context.copies.push_back(copy_meanwhile(context.remote.back()));
}

std::string with_addresses(std::string text, const Context& context) {
  for (const run::RemoteOutput& output : context.remote) {
    const std::string staged = output.staged.string();
    for (std::size_t at = text.find(staged); at != std::string::npos; at = text.find(staged, at))
      text.replace(at, staged.size(), output.address);
  }
  return text;
}

void check_folder_of(const std::string& option, const std::filesystem::path& file) {
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
  if (std::filesystem::is_directory(folder) && !std::filesystem::is_directory(file)) return;
  throw Error(option + " cannot be written to " + file.string() + "; " +
                  (std::filesystem::is_directory(file) ? "that is a folder" : "make the folder first"),
              ErrorKind::resource);
}

void check_result_file(const std::filesystem::path& json, const std::vector<std::filesystem::path>& named) {
  check_folder_of("--json", json);
  std::error_code absent;
  const bool there = std::filesystem::exists(json);
  const std::filesystem::path folder = json.has_parent_path() ? json.parent_path() : ".";
  for (const std::filesystem::path& path : named) {
    const bool same =
        std::filesystem::equivalent(path, json, absent) || path.lexically_normal() == json.lexically_normal();
    const auto holds = [&](const char* name) { return std::filesystem::exists(path / name, absent); };
    const bool inside = there && std::filesystem::equivalent(path, folder, absent) &&
                        (holds("config.json") || holds("adapter_config.json") || holds("manifest.json"));
    if (same || inside) {
      throw Error("--json would replace " + json.string() + ", which the command or its job names; choose another file",
                  ErrorKind::usage);
    }
  }
}

void check_no_model(const std::filesystem::path& out) {
  if (!std::filesystem::exists(out / "config.json")) return;
  throw Error("--out is " + out.string() + ", where a model lies; choose a folder of its own", ErrorKind::usage);
}

OptionSet add_verb(OptionSet parent, Invocation& call, const std::string& name, const std::string& help) {
  OptionSet verb = parent.subcommand(name, help);
  verb.show_defaults();
  verb.add_output("--json", call.json, Written::file, "Write the result as JSON to this file").type_name("FILE");
  add_table(verb, call.console);
  return verb;
}

}  // namespace qlora::program

namespace {

/// A file that is opened later must not become stdin, stdout or stderr because one of these was closed: progress would
/// be written into a model. A closed stdout is replaced by a descriptor that cannot be written to, so that a lost
/// result is an error.
void open_closed_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) == -1 && errno == EBADF) {
      (void)::open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY);  // gets the lowest free number, fd
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  open_closed_streams();
  try {
    return qlora::program::parse_and_run(argc, argv);
  } catch (const std::exception& error) {
    return qlora::program::complain(error.what(), qlora::ErrorKind::usage);
  }
}
