// run.cpp — `qlora run job.toml`: fetch, then pack, train, merge, compare for each model; skips what is done and
// unchanged, resumes what was interrupted. Its last line on stdout is the path of report.json.
#include <chrono>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <ostream>
#include <string>
#include <string_view>

#include "interrupt.hpp"
#include "job.hpp"
#include "option_json.hpp"
#include "option_text.hpp"
#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/io/lock.hpp"
#include "qlora/run/fetch.hpp"
#include "qlora/run/merge.hpp"
#include "qlora/run/pack.hpp"
#include "qlora/run/report.hpp"
#include "qlora/run/settings.hpp"
#include "qlora/run/study_json.hpp"
#include "qlora/run/train.hpp"
#include "qlora/run/training_log.hpp"
#include "runbook.hpp"
#include "steps.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

struct RunOptions {
  fs::path job;
  fs::path out;
  std::vector<std::string> again;
  run::DeviceRequest device;  ///< what the command line says of it goes before the job file's [device]
  run::Training training;     ///< the same of [train] recompute
  bool check = false;
  bool keys = false;
  bool markdown = false;
};

/// What decides the documents of a fetch, the content of files apart.
Result fetch_settings(const run::Pages& pages, const run::Fetching& fetching) {
  Result all = options_json(pages, Which::fingerprint);
  add_options(all, fetching, Which::fingerprint);
  return all;
}

/// The job as it was understood: what `--check` shows, and the page's table of settings.
Result describe(const Job& job) {
  Result models = Result::object();
  for (const ModelSection& model : job.models) {
    models[model.name.empty() ? "path" : model.name] = model.source.path.string();
  }
  Result arms = Result::object();
  for (const Arm& arm : job.arms) {
    Result& one = arms[arm.name] = Result::object();
    add_options(one, arm.train.options, Which::all, !arm.trains_all());
    add_options(one, arm.train.replay, Which::all);
    add_options(one, arm.train.loop, Which::all);
    if (!arm.sweep.empty()) one["sweep"] = arm.sweep;
    if (!arm.labels.control.empty()) one["control"] = arm.labels.control;
    if (!arm.labels.front) one["front"] = false;
    if (arm.pages != job.pages) add_options(one, arm.pages, Which::all);
  }
  Result all{{"model", models}};
  add_options(all["device"], job.device, Which::all);
  add_options(all["data"], job.pages, Which::all);
  add_options(all["data"], job.fetching, Which::all);
  add_options(all["pack"], job.packing, Which::all);
  all["arms"] = arms;
  add_options(all["merge"], job.merge, Which::all);
  add_options(all["merge"], job.merging, Which::all);
  add_options(all["compare"], job.sampling, Which::all);
  add_options(all["compare"], job.comparison, Which::all);
  add_options(all["output"], job.output, Which::all);
  return all;
}

using run::spaced;

/// What belongs to one model alone; that of a model without a name lies in the output directory itself.
fs::path folder_of(const Job& job, const ModelSection& model) {
  return model.name.empty() ? job.output.dir : job.output.dir / model.name;
}
fs::path folder_of(const Job& job, const ModelSection& model, const Arm& arm) {
  return folder_of(job, model) / arm.name;
}
fs::path trained_of(const Job& job, const ModelSection& model, const Arm& arm) {
  return run::trained_in(folder_of(job, model, arm) / "train", arm.train.options.method);
}

/// The arm that is merged; null when every arm trains all weights.
const Arm* merged_arm(const Job& job) {
  for (const Arm& arm : job.arms) {
    if (arm.name == job.merge.arm && !arm.trains_all()) return &arm;
  }
  return nullptr;
}

/// The comparison of what a model's arms became.
CompareStep compare_step(const Job& job, const ModelSection& model) {
  CompareStep step{
      .model = model.source.path, .comparison = job.comparison, .sampling = job.sampling, .device = job.device};
  step.judged = job.merge.arm;
  if (const Arm* arm = merged_arm(job); arm != nullptr) {
    step.merged = folder_of(job, model) / "merged";
    step.merged_from = arm->name;
  }
  for (const Arm& arm : job.arms) {
    (arm.trains_all() ? step.models : step.adapters).emplace_back(arm.name, trained_of(job, model, arm));
  }
  return step;
}

/// What a comparison at the end, or a guard on the way, could not answer is refused before the job begins.
void check_requirements(const Job& job) {
  for (const Arm& arm : job.arms) {
    if (!arm.train.loop.guard.empty()) (void)run::read_probes(arm.train.loop);
  }
  if (!job.comparison.require.empty()) check_compare(compare_step(job, job.models.front()));
}

/// The steps of one job in one output directory.
class JobRun {
 public:
  JobRun(const Job& job, const RunOptions& options, Context& context)
      : job_(job), options_(options), context_(context), out_(job.output.dir), book_(out_ / "run.json") {}

  run::JobResult run() {
    const Result fetched = fetch();
    std::vector<std::string> names;
    std::vector<run::Comparison> comparisons;
    for (const ModelSection& model : job_.models) {
      names.push_back(model.name);
      comparisons.push_back(tune(model));
    }
    return report(fetched, run::join_comparisons(names, comparisons));
  }

 private:
  Result step(Step step) {
    if (interrupted()) {
      throw Error("interrupted before " + step.name + "; the same command goes on from there", ErrorKind::interrupted);
    }
    const std::string verb = step.name.substr(0, step.name.find(' '));
    const bool again = std::find(options_.again.begin(), options_.again.end(), verb) != options_.again.end();
    return book_.run(step, context_.progress, again);
  }

  /// Whose pages an arm learns from: the first arm's that has the same. Empty: those of [data].
  [[nodiscard]] std::string pages_of(const Arm& arm) const {
    if (arm.pages == job_.pages) return {};
    const auto same = [&](const Arm& other) { return arm.pages == other.pages; };
    return std::find_if(job_.arms.begin(), job_.arms.end(), same)->name;
  }
  [[nodiscard]] fs::path pages(const Arm& arm) const {
    const std::string of = pages_of(arm);
    return out_ / (of.empty() ? "pages.jsonl" : "pages_" + of + ".jsonl");
  }
  /// The first arm with the same pages and the same replay: the data set in its folder serves all of these.
  [[nodiscard]] const Arm& packed_for(const Arm& arm) const {
    return *std::find_if(job_.arms.begin(), job_.arms.end(), [&](const Arm& other) {
      return arm.pages == other.pages && arm.train.replay == other.train.replay;
    });
  }

  /// By whose pages they are.
  Result fetch() {
    Result all = Result::object();
    for (const Arm& arm : job_.arms) {
      const std::string of = pages_of(arm);
      if (all.contains(of)) continue;
      all[of] =
          step({spaced({"fetch", of}), fetch_settings(arm.pages, job_.fetching), arm.pages.files, {pages(arm)}, [&] {
                  return to_json(run::fetch({arm.pages, job_.fetching, pages(arm)}, context_.progress));
                }});
    }
    return all;
  }

  run::Comparison tune(const ModelSection& model) {
    for (const Arm& arm : job_.arms) {
      if (&packed_for(arm) == &arm) pack(model, arm);
    }
    for (const Arm& arm : job_.arms) train(model, arm);
    merge(model);
    return compare(model);
  }

  [[nodiscard]] fs::path folder(const ModelSection& model) const { return folder_of(job_, model); }
  [[nodiscard]] fs::path folder(const ModelSection& model, const Arm& arm) const { return folder_of(job_, model, arm); }

  void pack(const ModelSection& model, const Arm& arm) {
    const run::PackRequest settings{
        {pages(arm)}, arm.train.replay, model.source.path, folder(model, arm) / "data", job_.packing};
    std::vector<fs::path> inputs{pages(arm), model.source.path / "tokenizer.model"};
    if (!arm.train.replay.replay.empty()) inputs.push_back(arm.train.replay.replay);
    fs::create_directories(settings.out.parent_path());
    Result pack_settings = options_json(job_.packing, Which::fingerprint);
    add_options(pack_settings, arm.train.replay, Which::fingerprint);
    const std::string name = spaced({"pack", model.name, arm.name});
    const run::PackResult result =
        run::pack_result_from_json(step({name, pack_settings, inputs, {settings.out}, [&] {
                                           return to_json(run::pack(settings, context_.progress));
                                         }}));
    context_.out << name << ": " << result.documents << " documents, of these " << result.replayed << " replayed, "
                 << result.cut_documents << " cut; " << result.windows << " windows, " << result.tokens << " tokens\n";
  }

  void train(const ModelSection& model, const Arm& arm) {
    const fs::path out = folder(model, arm) / "train";
    fs::create_directories(out.parent_path());
    const run::TrainRequest settings{
        model.source.path, folder(model, packed_for(arm)) / "data", out, arm.train.options, arm.train.loop,
        job_.device};
    Result train_settings = run::to_json(run::train_settings(arm.train.options, arm.train.loop));
    train_settings["device"] = name_of(job_.device.use);
    train_settings["fast"] = job_.device.fast;
    const std::string name = spaced({"train", model.name, arm.name});
    std::vector<fs::path> inputs{model.source.path, settings.data};
    const run::LoopProbes& loop = arm.train.loop;
    if (!loop.guard.empty()) inputs.insert(inputs.end(), loop.probes.begin(), loop.probes.end());
    const Result result =
        step({name, train_settings, inputs, {out}, [&] { return Result(run::train(settings, context_.progress)); }});
    context_.out << name << ": " << result.value("steps", 0) << " steps, loss " << result.value("first_loss", 0.0)
                 << " -> " << result.value("last_loss", 0.0) << '\n';
  }

  void merge(const ModelSection& model) {
    const Arm* arm = merged_arm(job_);
    if (arm == nullptr) return;
    const run::MergeRequest settings{model.source.path, trained_of(job_, model, *arm), folder(model) / "merged",
                                     job_.merging, job_.device};
    const std::string name = spaced({"merge", model.name});
    step({name,
          options_json(settings.merging, Which::fingerprint),
          {settings.model, settings.adapter},
          {settings.out},
          [&] { return to_json(run::merge(settings, context_.progress)); }});
  }

  run::Comparison compare(const ModelSection& model) {
    const CompareStep settings = compare_step(job_, model);
    std::vector<fs::path> inputs{model.source.path};
    if (!settings.merged.empty()) inputs.push_back(settings.merged);
    for (const Arm& arm : job_.arms) inputs.push_back(trained_of(job_, model, arm));
    const run::Comparing& asked = job_.comparison;
    if (!asked.questions.empty()) inputs.push_back(asked.questions);
    inputs.insert(inputs.end(), asked.probes.begin(), asked.probes.end());
    const fs::path answers = folder(model) / "comparison.json";
    const std::string name = spaced({"compare", model.name});
    Result compare_settings = options_json(job_.sampling, Which::fingerprint);
    add_options(compare_settings, asked, Which::fingerprint);
    compare_settings["judged"] = settings.judged;
    for (const Arm& arm : job_.arms)
      compare_settings["arms"].push_back(arm.name);  // its figures stand under their names
    return run::comparison_from_json(step({name, compare_settings, inputs, {answers}, [&] {
                                             Result comparison = run::to_json(run_compare(settings, context_.progress));
                                             write_file_atomically(answers, run::file_text(comparison));
                                             return comparison;
                                           }}));
  }

  [[nodiscard]] run::StudyArms arms() const {
    run::StudyArms all;
    for (const ModelSection& model : job_.models) {
      for (const Arm& arm : job_.arms) {
        run::StudyArm& one = all[spaced({model.name, arm.name})];
        one.group =
            spaced({model.name, arm.labels.group.empty() ? name_of(arm.train.options.method) : arm.labels.group});
        one.setting = setting_of(arm);
        if (arm.pages != job_.pages) one.pages = arm.pages;
        one.seed = arm.train.options.seed;
        one.sweep = arm.sweep;
        one.control = arm.labels.control;
        one.front = arm.labels.front;
      }
    }
    return all;
  }
  /// What decides the training of an arm but its seed: arms that share it are one point.
  [[nodiscard]] static run::Settings setting_of(const Arm& arm) {
    run::Settings setting = run::train_settings(arm.train.options, arm.train.loop);
    std::erase_if(setting, [](const auto& one) { return one.first == "seed"; });
    run::add_settings(setting, arm.train.replay, run::Which::all);
    return setting;
  }

  run::JobResult report(const Result& fetched, const run::Comparison& comparison) {
    run::JobResult result{comparison, {}, run::study_of(arms(), comparison.variants)};
    Result hashes = Result::object();
    double total = 0;
    for (const auto& [name, step] : book_.steps().items()) {
      const double spent = step.value("seconds", 0.0);
      result.seconds[name] = spent;
      total += spent;
      for (const auto& [where, files] : step.at("outputs").items()) {
        for (const auto& [file, hash] : files.items()) hashes[name + ": " + where + "/" + file] = hash;
      }
    }
    result.seconds["total"] = total;
    write_file_atomically(out_ / "report.json", run::file_text(run::to_json(result)));
    std::vector<run::TrainingCurves> trainings;
    for (const ModelSection& model : job_.models) {
      for (const Arm& arm : job_.arms) {
        trainings.push_back(
            run::training_curves(spaced({model.name, arm.name}), folder(model, arm) / "train" / "metrics.jsonl"));
      }
    }
    Result details = describe(job_);
    for (const auto& [name, spent] : result.seconds) details["seconds"][name] = spent;
    for (const auto& [of, pages] : fetched.items()) details[spaced({"pages", of})] = pages;
    details["SHA-256"] = hashes;
    run::write_report(out_ / "report.html", comparison, result.study, trainings, run::tables_of(details));
    run::print_comparison(comparison, context_.out);
    context_.out << (out_ / "report.html").string() << '\n' << (out_ / "report.json").string() << '\n';
    return result;
  }

  const Job& job_;
  const RunOptions& options_;
  Context& context_;
  fs::path out_;
  Runbook book_;
};

Result run_job(const RunOptions& options, const OptionSet& given, Context& context) {
  if (options.keys) {
    options.markdown ? print_options_page(context.out) : print_job_keys(context.out);
    return Result::object();
  }
  if (options.job.empty())
    throw Error("which job? `qlora run job.toml`, or `qlora run --keys` to see what one holds", ErrorKind::usage);
  Job job = read_job(options.job);
  if (!options.out.empty()) job.output.dir = options.out;
  for (const std::string& note : job.notes) context.progress.say(note);
  copy_given(given, options.device, job.device);
  for (Arm& arm : job.arms) copy_given(given, options.training, arm.train.options);
  check_requirements(job);
  if (options.check) {
    const Result plan = describe(job);
    context.out << plan.dump(2) << '\n';
    return plan;
  }
  fs::create_directories(job.output.dir);
  const RunLock lock(job.output.dir / "run.lock");
  return run::to_json(JobRun(job, options, context).run());
}

}  // namespace

void add_run(OptionSet app, Invocation& call) {
  OptionSet verb =
      add_verb(app, call, "run", "Do all steps of a job file; skip what is done, resume what was interrupted");
  auto options = std::make_shared<RunOptions>();
  verb.add("job", options->job, "Job file (TOML)").type_name("FILE");
  verb.add("-o,--out", options->out, "Write below this directory instead of [output] dir").type_name("DIR");
  verb.add("--again", options->again, "Do these steps again though nothing changed")
      .one_of({"fetch", "pack", "train", "merge", "compare"});
  add_table(verb, options->device, {.defaults = false});
  add_table(verb, options->training, {.only = {"recompute"}, .defaults = false});
  verb.add("--check", options->check, "Read the job file, show what it means, do nothing");
  verb.add("--keys", options->keys, "Print every key of a job file with its default");
  verb.add("--markdown", options->markdown, "With --keys: the options of all verbs, as the page docs/options.md");
  verb.on_call([&call, options, verb] {
    call.action = [options, verb](Context& context) { return run_job(*options, verb, context); };
  });
}

}  // namespace qlora::program
