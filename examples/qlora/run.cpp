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
#include "qlora/run/json.hpp"
#include "qlora/run/merge.hpp"
#include "qlora/run/pack.hpp"
#include "report.hpp"
#include "runbook.hpp"
#include "steps.hpp"
#include "sweeps.hpp"
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

/// The words that are there with spaces between: what a step is called, and a column of the report. The only model of a
/// job need have no name.
std::string spaced(std::initializer_list<std::string_view> words) {
  std::string text;
  for (const std::string_view word : words) {
    if (!text.empty() && !word.empty()) text += ' ';
    text += word;
  }
  return text;
}

/// The comparisons of all models as one: the answers of all beside each other, everything else under its model's name.
/// That of a model without a name is the only one and stays as it is.
Result joined(const std::vector<ModelSection>& models, const std::vector<Result>& comparisons) {
  if (models.front().name.empty()) return comparisons.front();
  Result all = Result::object();
  all["answers"] = comparisons.front().at("answers");
  for (Result& exchange : all["answers"]) exchange["answers"] = Result::object();
  for (std::size_t m = 0; m < models.size(); ++m) {
    for (const auto& [section, content] : comparisons[m].items()) {
      if (section == "answers" || section == "tuned") continue;
      if (content.is_array()) {  // requirements: each with its model's name
        for (Result one : content) {
          one["requirement"] = spaced({models[m].name, one.value("requirement", "")});
          all[section].push_back(one);
        }
        continue;
      }
      Result& together = all[section];
      if (together.is_null()) together = Result::object();
      for (const auto& [name, value] : content.items()) together[spaced({models[m].name, name})] = value;
    }
    for (std::size_t i = 0; i < all["answers"].size(); ++i) {
      Result& beside = all["answers"][i]["answers"];
      for (const auto& [column, answer] : comparisons[m].at("answers").at(i).at("answers").items()) {
        // A comparison calls the quantized model "base", which may be the name of a model here.
        beside[spaced({models[m].name, column == "base" ? "nf4" : column})] = answer;
      }
    }
  }
  return all;
}

/// What belongs to one model alone; that of a model without a name lies in the output directory itself.
fs::path folder_of(const Job& job, const ModelSection& model) {
  return model.name.empty() ? job.output.dir : job.output.dir / model.name;
}
fs::path folder_of(const Job& job, const ModelSection& model, const Arm& arm) {
  return folder_of(job, model) / arm.name;
}
fs::path trained_of(const Job& job, const ModelSection& model, const Arm& arm) {
  return trained_in(folder_of(job, model, arm) / "train", arm.train.options.method);
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
  for (const Arm& arm : job.arms) check_guard(arm.train.loop);
  if (!job.comparison.require.empty()) check_compare(compare_step(job, job.models.front()));
}

/// The steps of one job in one output directory.
class JobRun {
 public:
  JobRun(const Job& job, const RunOptions& options, Context& context)
      : job_(job), options_(options), context_(context), out_(job.output.dir), book_(out_ / "run.json") {}

  Result run() {
    const Result fetched = fetch();
    std::vector<Result> comparisons;
    for (const ModelSection& model : job_.models) comparisons.push_back(tune(model));
    return report(fetched, joined(job_.models, comparisons));
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

  Result tune(const ModelSection& model) {
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
    const TrainStep settings{model.source.path, folder(model, packed_for(arm)) / "data", out, arm.train, job_.device};
    Result train_settings = settings_of(arm.train);
    train_settings["device"] = name_of(job_.device.use);
    train_settings["fast"] = job_.device.fast;
    const std::string name = spaced({"train", model.name, arm.name});
    std::vector<fs::path> inputs{model.source.path, settings.data};
    const run::LoopProbes& loop = arm.train.loop;
    if (!loop.guard.empty()) inputs.insert(inputs.end(), loop.probes.begin(), loop.probes.end());
    const Result result =
        step({name, train_settings, inputs, {out}, [&] { return run_train(settings, context_.progress); }});
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

  Result compare(const ModelSection& model) {
    const CompareStep settings = compare_step(job_, model);
    std::vector<fs::path> inputs{model.source.path};
    if (!settings.merged.empty()) inputs.push_back(settings.merged);
    for (const Arm& arm : job_.arms) inputs.push_back(trained_of(job_, model, arm));
    const run::Comparison& asked = job_.comparison;
    if (!asked.questions.empty()) inputs.push_back(asked.questions);
    inputs.insert(inputs.end(), asked.probes.begin(), asked.probes.end());
    const fs::path answers = folder(model) / "comparison.json";
    const std::string name = spaced({"compare", model.name});
    Result compare_settings = options_json(job_.sampling, Which::fingerprint);
    add_options(compare_settings, asked, Which::fingerprint);
    compare_settings["judged"] = settings.judged;
    for (const Arm& arm : job_.arms)
      compare_settings["arms"].push_back(arm.name);  // its figures stand under their names
    return step({name, compare_settings, inputs, {answers}, [&] {
                   const Result comparison = run_compare(settings, context_.progress);
                   write_file_atomically(answers,
                                         comparison.dump(2, ' ', false, Result::error_handler_t::replace) + "\n");
                   return comparison;
                 }});
  }

  /// What the report needs of each arm: its line in the front (those of one method, or as it says itself), its point there,
  /// which arms that differ in nothing but the seed share, and what it says of sweeps and controls.
  [[nodiscard]] Result arms() const {
    Result all = Result::object();
    for (const ModelSection& model : job_.models) {
      for (const Arm& arm : job_.arms) {
        Result setting = settings_of(arm.train);
        setting.erase("seed");
        add_options(setting, arm.train.replay, Which::all);
        if (arm.pages != job_.pages) {
          const Result pages = options_json(arm.pages, Which::all);
          setting["pages"] = {pages.at("urls"), pages.at("files")};
        }
        const std::string name = spaced({model.name, arm.name});
        all[name] = {{"group", spaced({model.name, arm.labels.group.empty() ? name_of(arm.train.options.method)
                                                                            : arm.labels.group})},
                     {"setting", setting.dump()},
                     {"seed", arm.train.options.seed}};
        if (!arm.sweep.empty()) all[name]["sweep"] = arm.sweep;
        if (!arm.labels.control.empty()) all[name]["control"] = arm.labels.control;
        if (!arm.labels.front) all[name]["front"] = false;
      }
    }
    return all;
  }

  Result report(const Result& fetched, const Result& comparison) {
    Result seconds = Result::object();
    Result hashes = Result::object();
    double total = 0;
    for (const auto& [name, step] : book_.steps().items()) {
      const double spent = step.value("seconds", 0.0);
      seconds[name] = spent;
      total += spent;
      for (const auto& [where, files] : step.at("outputs").items()) {
        for (const auto& [file, hash] : files.items()) hashes[name + ": " + where + "/" + file] = hash;
      }
    }
    seconds["total"] = total;
    const Result variants = comparison.contains("variants") ? comparison["variants"] : Result::object();
    Result result{{"answers", comparison.at("answers")}, {"variants", variants}, {"seconds", seconds}};
    for (const char* section : {"examples", "requirements"}) {
      if (comparison.contains(section)) result[section] = comparison.at(section);
    }
    Result page = comparison;
    page["arms"] = result["arms"] = arms();
    if (!variants.empty()) page["settings"] = result["settings"] = pooled_of(arms(), variants);
    if (const Result sweeps = sweeps_of(arms(), variants); !sweeps.empty()) page["sweeps"] = result["sweeps"] = sweeps;
    if (const Result controls = controls_of(arms(), variants); !controls.empty()) {
      page["controls"] = result["controls"] = controls;
    }
    write_file_atomically(out_ / "report.json", result.dump(2, ' ', false, Result::error_handler_t::replace) + "\n");
    std::vector<std::pair<std::string, fs::path>> metrics;
    for (const ModelSection& model : job_.models) {
      for (const Arm& arm : job_.arms) {
        metrics.emplace_back(spaced({model.name, arm.name}), folder(model, arm) / "train" / "metrics.jsonl");
      }
    }
    Result details = describe(job_);
    details["seconds"] = seconds;
    for (const auto& [of, pages] : fetched.items()) details[spaced({"pages", of})] = pages;
    details["SHA-256"] = hashes;
    write_report(out_ / "report.html", page, metrics, details);
    print_comparison(comparison, context_.out);
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
  return JobRun(job, options, context).run();
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
