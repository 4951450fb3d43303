// qlora/run/job_run.hpp — run::run_job does a job: fetch, then pack, train, merge and compare for each model, and the
// report. Steps that are done and unchanged are skipped, training resumes where it was interrupted. The output
// directory then holds run.json, report.json and report.html, and the folders of models and arms.
// Fetching needs libcurl and libgumbo, so that it comes in as a function: run::fetch of run/fetch.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/run/job.hpp"
#include "qlora/run/option.hpp"
#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/steps.hpp"
#include "qlora/run/study.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// The steps of a job, in the order in which they run.
enum class JobStep : std::uint8_t { fetch, pack, train, merge, compare };
template <>
inline constexpr std::array names_of<JobStep>{std::string_view("fetch"), std::string_view("pack"),
                                              std::string_view("train"), std::string_view("merge"),
                                              std::string_view("compare")};

/// What a program gives a job besides its file.
struct JobOptions {
  std::string version{};         ///< of the program: steps that another version did are done again
  std::vector<JobStep> again{};  ///< done again even where nothing changed
  std::function<FetchResult(const FetchRequest&, Progress&)> fetch{};  ///< needed unless all pages are fetched
  std::function<void(const std::string&)> on_summary{};  ///< gets one line about each data set and each training
};

/// Does a complete job (see complete_job); one run at a time in an output directory. Throws Error as the steps do, and
/// (interrupted) when `progress` asks to stop: the same call then continues.
[[nodiscard]] QLORA_STEP JobResult run_job(const Job& job, const JobOptions& options, Progress& progress);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <algorithm>
#include <utility>

#include "qlora/error.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/lock.hpp"
#include "qlora/run/compare.hpp"
#include "qlora/run/job_checks.hpp"
#include "qlora/run/job_json.hpp"
#include "qlora/run/merge.hpp"
#include "qlora/run/pack.hpp"
#include "qlora/run/report.hpp"
#include "qlora/run/settings.hpp"
#include "qlora/run/step_cache.hpp"
#include "qlora/run/train.hpp"
#include "qlora/run/training_log.hpp"
#include "qlora/text/chat_directory.hpp"
#include "qlora/text/tokenizer.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// The arms of a complete job as a study sees them.
[[nodiscard]] inline StudyArms study_arms(const Job& job) {
  StudyArms all;
  for (const JobModel& model : job.models) {
    for (const Arm& arm : job.arms) {
      StudyArm& of_arm = all[spaced({model.name, arm.name})];
      of_arm.group = spaced({model.name, arm.group()});
      of_arm.setting = train_settings(arm.train.options, arm.train.loop);
      std::erase_if(of_arm.setting, [](const auto& setting) { return setting.first == "seed"; });
      add_settings(of_arm.setting, arm.train.replay, Which::all);
      if (arm.pages != job.pages) of_arm.pages = arm.pages;
      of_arm.seed = arm.train.options.seed;
      of_arm.sweep = arm.sweep;
      of_arm.control = arm.labels.control;
      of_arm.pareto_front = arm.labels.pareto_front;
    }
  }
  return all;
}

namespace detail {

/// The steps of one job in its output directory.
class JobRun {
 public:
  JobRun(const Job& job, const JobOptions& options, Progress& progress)
      : job_(job),
        options_(options),
        progress_(progress),
        out_(job.output.dir),
        cache_(out_ / "run.json", options.version) {}

  [[nodiscard]] JobResult run() {
    fetch();
    std::vector<std::string> names;
    std::vector<Comparison> comparisons;
    for (const JobModel& model : job_.models) {
      names.push_back(model.name);
      comparisons.push_back(tune(model));
    }
    JobResult result = report(join_comparisons(names, comparisons));
    cache_.end_of_run();
    return result;
  }

 private:
  using Path = std::filesystem::path;

  template <class R, class Act>
  [[nodiscard]] R step(JobStep kind, const CachedStep& step, R (*from_json)(const OrderedJson&), const Act& act) {
    if (progress_.stop_requested()) {
      throw Error("interrupted before " + step.name + "; the same command goes on from there", ErrorKind::interrupted);
    }
    steps_.push_back(step.name);
    const bool again = std::find(options_.again.begin(), options_.again.end(), kind) != options_.again.end();
    return cache_.run(step, std::function<R()>(act), from_json, progress_, again);
  }
  void summary(const std::string& line) const {
    if (options_.on_summary) options_.on_summary(line);
  }

  /// The arm whose pages an arm learns from: the first with the same ones. Empty: those of the job.
  [[nodiscard]] std::string pages_of(const Arm& arm) const {
    if (arm.pages == job_.pages) return {};
    const auto same = [&](const Arm& other) { return arm.pages == other.pages; };
    return std::find_if(job_.arms.begin(), job_.arms.end(), same)->name;
  }
  [[nodiscard]] Path pages(const Arm& arm) const {
    const std::string of = pages_of(arm);
    return out_ / (of.empty() ? "pages.jsonl" : "pages_" + of + ".jsonl");
  }
  /// The first arm with the same pages and the same replay: the data set in its folder serves all of these.
  [[nodiscard]] const Arm& packed_for(const Arm& arm) const {
    return *std::find_if(job_.arms.begin(), job_.arms.end(), [&](const Arm& other) {
      return arm.pages == other.pages && arm.train.replay == other.train.replay;
    });
  }
  [[nodiscard]] Path folder(const JobModel& model) const { return folder_of(job_, model); }
  [[nodiscard]] Path folder(const JobModel& model, const Arm& arm) const { return folder_of(job_, model, arm); }

  void fetch() {
    for (const Arm& arm : job_.arms) {
      const std::string of = pages_of(arm);
      if (fetched_.contains(of)) continue;
      Settings settings = settings_of(arm.pages, Which::fingerprint);
      add_settings(settings, job_.fetching, Which::fingerprint);
      fetched_[of] =
          step(JobStep::fetch, {spaced({"fetch", of}), settings, arm.pages.files, {pages(arm)}}, fetch_result_from_json,
               [&] {
                 if (!options_.fetch) {
                   throw Error("the job fetches pages, and no function that does it was given", ErrorKind::usage);
                 }
                 return options_.fetch({arm.pages, job_.fetching, pages(arm)}, progress_);
               });
    }
  }

  [[nodiscard]] Comparison tune(const JobModel& model) {
    for (const Arm& arm : job_.arms) {
      if (&packed_for(arm) == &arm) pack(model, arm);
    }
    for (const Arm& arm : job_.arms) train(model, arm);
    merge(model);
    return compare(model);
  }

  /// The form of the model's conversations; nothing for LLaMA-2's, so that finished steps stay valid.
  static void add_chat_form(Settings& settings, const JobModel& model) {
    const Path& dir = model.source.path;
    const ChatTemplate chat = chat_template_of(dir, Tokenizer::load(tokenizer_file(dir)), model.chat.chat_template);
    if (const std::string form = chat.fingerprint(); !form.empty()) set(settings, "chat_template", form);
  }

  void pack(const JobModel& model, const Arm& arm) {
    const PackRequest request{{pages(arm)}, arm.train.replay, model.source.path, folder(model, arm) / "data",
                              job_.packing, model.chat};
    std::vector<Path> inputs{pages(arm), tokenizer_file(model.source.path)};
    if (!arm.train.replay.replay.empty()) inputs.push_back(arm.train.replay.replay);
    make_directories(request.out.parent_path());
    Settings settings = settings_of(job_.packing, Which::fingerprint);
    add_settings(settings, arm.train.replay, Which::fingerprint);
    add_chat_form(settings, model);
    const std::string name = spaced({"pack", model.name, arm.name});
    const PackResult result = step(JobStep::pack, {name, settings, inputs, {request.out}}, pack_result_from_json,
                                   [&] { return run::pack(request, progress_); });
    summary(concat(name, ": ", result.documents, " documents, of these ", result.replayed, " replayed, ",
                   result.cut_documents, " cut; ", result.windows, " windows, ", result.tokens, " tokens"));
  }

  void train(const JobModel& model, const Arm& arm) {
    const TrainRequest request{.model = model.source.path,
                               .data = folder(model, packed_for(arm)) / "data",
                               .out = folder(model, arm) / "train",
                               .options = arm.train.options,
                               .loop = arm.train.loop,
                               .device = job_.device,
                               .chat = model.chat};
    make_directories(request.out.parent_path());
    Settings settings = train_settings(arm.train.options, arm.train.loop);
    set(settings, "device", std::string(name_of(job_.device.use)));
    set(settings, "fast", job_.device.fast);
    const std::string name = spaced({"train", model.name, arm.name});
    std::vector<Path> inputs{request.model, request.data};
    if (!request.loop.guard.empty()) {
      add_chat_form(settings, model);
      inputs.insert(inputs.end(), request.loop.probes.begin(), request.loop.probes.end());
    }
    const TrainResult result = step(JobStep::train, {name, settings, inputs, {request.out}, true},
                                    train_result_from_json, [&] { return run::train(request, progress_); });
    training_bytes_ = std::max(training_bytes_, result.memory_bytes);
    summary(concat(name, ": ", result.steps, " steps, loss ", result.first_loss, " -> ", result.last_loss));
  }

  void merge(const JobModel& model) {
    const Arm* arm = merged_arm(job_);
    if (arm == nullptr) return;
    const MergeRequest request{.model = model.source.path,
                               .adapter = trained_in(folder(model, *arm) / "train", arm->train.options.method),
                               .out = folder(model) / "merged",
                               .merging = job_.merging,
                               .device = job_.device,
                               .replace = true};  // what a run wrote whose record was lost
    const Settings settings = settings_of(job_.merging, Which::fingerprint);
    (void)step(JobStep::merge,
               {spaced({"merge", model.name}), settings, {request.model, request.adapter}, {request.out}},
               merge_result_from_json, [&] { return run::merge(request, progress_); });
  }

  [[nodiscard]] Comparison compare(const JobModel& model) {
    const CompareRequest request = compare_request(job_, model);
    std::vector<Path> inputs{request.model};
    if (!request.merged.empty()) inputs.push_back(request.merged);
    for (const Arm& arm : job_.arms) {
      inputs.push_back(trained_in(folder(model, arm) / "train", arm.train.options.method));
    }
    const Comparing& asked = request.comparison;
    if (!asked.questions.empty()) inputs.push_back(asked.questions);
    inputs.insert(inputs.end(), asked.probes.begin(), asked.probes.end());
    Settings settings = settings_of(job_.sampling, Which::fingerprint);
    add_settings(settings, asked, Which::fingerprint);
    set(settings, "judged", request.judged);
    std::vector<std::string> arms;  // the metrics are by their names
    for (const Arm& arm : job_.arms) arms.push_back(arm.name);
    set(settings, "arms", std::move(arms));
    add_chat_form(settings, model);
    const Path answers = folder(model) / "comparison.json";
    return step(JobStep::compare, {spaced({"compare", model.name}), settings, inputs, {answers}}, comparison_from_json,
                [&] {
                  Comparison comparison = run::compare(request, progress_);
                  write_file_atomically(answers, file_text(to_json(comparison)));
                  return comparison;
                });
  }

  [[nodiscard]] JobResult report(Comparison comparison) const {
    JobResult result;
    result.comparison = std::move(comparison);
    result.study = study_of(study_arms(job_), result.comparison.variants);
    OrderedMap<std::string> hashes;
    double total = 0;
    for (const CachedRecord& record : cache_.records()) {
      // The file remembers steps of arms that the job no longer has.
      if (std::find(steps_.begin(), steps_.end(), record.name) == steps_.end()) continue;
      result.seconds[record.name] = record.seconds;
      total += record.seconds;
      for (const auto& [where, files] : record.outputs) {
        for (const auto& [file, hash] : files) hashes[record.name + ": " + where + "/" + file] = hash;
      }
    }
    result.seconds["total"] = total;
    write_file_atomically(out_ / "report.json", file_text(to_json(result)));
    write_report(out_ / "report.html", result.comparison, result.study, curves(),
                 job_tables(job_, result.seconds, fetched_, hashes), {result.seconds, training_bytes_});
    return result;
  }
  [[nodiscard]] std::vector<TrainingCurves> curves() const {
    std::vector<TrainingCurves> all;
    for (const JobModel& model : job_.models) {
      for (const Arm& arm : job_.arms) {
        all.push_back(training_curves(spaced({model.name, arm.name}), folder(model, arm) / "train" / "metrics.jsonl"));
      }
    }
    return all;
  }

  const Job& job_;
  const JobOptions& options_;
  Progress& progress_;
  Path out_;
  StepCache cache_;
  std::vector<std::string> steps_;   ///< of this job, by name
  OrderedMap<FetchResult> fetched_;  ///< by the arm whose pages they are
  std::int64_t training_bytes_ = 0;  ///< the most that a training took
};

}  // namespace detail

[[nodiscard]] QLORA_STEP JobResult run_job(const Job& job, const JobOptions& options, Progress& progress) {
  check_job(job);
  check_inputs(job);
  make_directories(job.output.dir);
  const RunLock lock(job.output.dir / "run.lock");
  remove_stale_temporaries(job.output.dir);
  check_room(job);
  return detail::JobRun(job, options, progress).run();
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
