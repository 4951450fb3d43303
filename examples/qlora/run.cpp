// run.cpp — `qlora run job.toml`: fetch, then pack, train, merge, compare for each model; skips what is done and
// unchanged, resumes what was interrupted. Its last line on stdout is the path of report.json.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/run/comparison_tables.hpp"
#include "qlora/run/fetch.hpp"
#include "qlora/run/job_checks.hpp"
#include "qlora/run/job_file.hpp"
#include "qlora/run/job_run.hpp"
#include "qlora/run/option_pages.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

struct RunOptions {
  fs::path job;
  fs::path named;  ///< the job as the command line has it, which may be an address
  fs::path out;
  std::vector<std::string> again;
  run::DeviceRequest device;  ///< what the command line says of it goes before the job file's [device]
  run::Training training;     ///< the same of [train] recompute
  fs::path json;              ///< where the result goes; may be empty
  bool show = false;
  bool check = false;
  bool keys = false;
  bool markdown = false;
};

std::vector<std::string> step_names() {
  const auto& names = run::names_of<run::JobStep>;
  return {names.begin(), names.end()};
}

std::vector<run::JobStep> steps_of(const std::vector<std::string>& chosen) {
  const std::vector<std::string> names = step_names();
  std::vector<run::JobStep> steps;
  for (const std::string& name : chosen) {
    steps.push_back(static_cast<run::JobStep>(std::find(names.begin(), names.end(), name) - names.begin()));
  }
  return steps;
}

Result run_job(const RunOptions& options, const OptionSet& given, Context& context) {
  if (options.keys) {
    options.markdown ? run::print_options_page(context.out) : run::print_job_keys(context.out);
    return no_result();
  }
  if (options.job.empty())
    throw Error("which job? `qlora run job.toml`, or `qlora run --keys` to see what one holds", ErrorKind::usage);
  auto [job, notes] = run::read_job(options.job, options.named);
  if (!options.out.empty()) job.output.dir = options.out;
  if (!options.show) {
    for (fs::path* input : run::input_paths(job)) *input = local_path(*input, context.progress);
    stage(job.output.dir, Written::resumed, context);
  }
  for (run::JobModel& model : job.models) {
    if (options.show) break;
    model.source.path = model_directory(model.source.path, context.progress, options.job.parent_path());
  }
  for (const std::string& note : notes) context.progress.say(note);
  if (!options.json.empty()) check_result_file(options.json, run::inputs_of(job));
  copy_given(given, options.device, job.device);
  for (run::Arm& arm : job.arms) copy_given(given, options.training, arm.train.options);
  if (options.show || options.check) {
    run::check_job(job);
    if (options.check) {
      run::check_inputs(job);
      run::check_room(job);
    }
    Result plan = result_of(job);
    context.out << plan.json;
    return plan;
  }
  const run::JobOptions how{.version = QLORA_VERSION,
                            .again = steps_of(options.again),
                            .fetch = run::fetch,
                            .on_summary = [&](const std::string& line) { context.out << line << '\n'; }};
  const run::JobResult result = run::run_job(job, how, context.progress);
  run::print_comparison(result.comparison, context.out);
  const std::string dir = with_addresses(job.output.dir.string(), context);
  context.out << (fs::path(dir) / "report.html").string() << '\n' << (fs::path(dir) / "report.json").string() << '\n';
  return result_of(result);
}

}  // namespace

void add_run(OptionSet app, Invocation& call) {
  OptionSet verb =
      add_verb(app, call, "run", "Do all steps of a job file; skip what is done, resume what was interrupted");
  auto options = std::make_shared<RunOptions>();
  verb.add("job", options->job, "Job file (TOML)").type_name("FILE");
  verb.add_output("-o,--out", options->out, Written::resumed, "Write below this directory instead of [output] dir")
      .type_name("DIR");
  verb.add("--again", options->again, "Do these steps again though nothing changed").one_of(step_names());
  add_table(verb, options->device, {.defaults = false});
  add_table(verb, options->training, {.only = {"recompute"}, .defaults = false});
  verb.add("--show", options->show, "Read the job file, show what it means, do nothing");
  verb.add("--check", options->check, "The same, and look at all that the job will need: files, devices, disk");
  verb.add("--keys", options->keys, "Print every key of a job file with its default");
  verb.add("--markdown", options->markdown, "With --keys: the options of all verbs, as the page docs/options.md");
  verb.on_call([&call, options, verb] {
    options->json = call.json;
    options->named = options->job;
    call.action = [options, verb](Context& context) { return run_job(*options, verb, context); };
  });
}

}  // namespace qlora::program
