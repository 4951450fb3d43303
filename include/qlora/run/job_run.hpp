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

/// Throws Error (usage) for an input that the job would overwrite or an output that it would read, and for a
/// requirement that the comparison, or a guard that a training could not answer, before anything is done. Reads the
/// probes, but no model.
QLORA_STEP void check_job(const Job& job);

/// Files and folders that the job reads, as its file names them.
[[nodiscard]] QLORA_STEP std::vector<std::filesystem::path> inputs_of(const Job& job);

/// The same as members of the job, those that are empty left out.
[[nodiscard]] QLORA_STEP std::vector<std::filesystem::path*> input_paths(Job& job);

/// Opens what the job will read, so that nothing is missing after hours of work: models, pages, replay, questions and
/// probes. Throws Error: (input) for a file that is missing or not what it should be, (usage) for a rank that the model
/// cannot have, windows that are longer than it reads, options that do not go together, code that the program lacks,
/// and a comparison without anything to ask, (resource) for a GPU that is not there.
QLORA_STEP void check_inputs(const Job& job);

/// Throws Error (resource) unless the disk has room for the merged models and the trainings that are not there yet.
QLORA_STEP void check_room(const Job& job);

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
#include "qlora/io/hf_model.hpp"
#include "qlora/io/lock.hpp"
#include "qlora/model/limits.hpp"
#include "qlora/run/adapter.hpp"
#include "qlora/run/compare.hpp"
#include "qlora/run/guard.hpp"
#include "qlora/run/job_json.hpp"
#include "qlora/run/merge.hpp"
#include "qlora/run/pack.hpp"
#include "qlora/run/registry.hpp"
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

/// What a job leads to compare for one of its models.
[[nodiscard]] inline CompareRequest compare_request(const Job& job, const JobModel& model) {
  CompareRequest request{
      .model = model.source.path, .comparison = job.comparison, .sampling = job.sampling, .device = job.device};
  request.chat = model.chat;
  request.judged = job.merge.arm;
  if (const Arm* arm = merged_arm(job); arm != nullptr) {
    request.merged = folder_of(job, model) / "merged";
    request.merged_from = arm->name;
  }
  for (const Arm& arm : job.arms) {
    const std::filesystem::path trained = trained_in(folder_of(job, model, arm) / "train", arm.train.options.method);
    if (arm.trains_all()) {
      request.models.push_back({arm.name, trained});
    } else {
      request.adapters.push_back({arm.name, trained});
    }
  }
  return request;
}

[[nodiscard]] QLORA_STEP std::vector<std::filesystem::path*> input_paths(Job& job) {
  std::vector<std::filesystem::path*> inputs{&job.comparison.questions};
  const auto add = [&](std::vector<std::filesystem::path>& paths) {
    for (std::filesystem::path& path : paths) inputs.push_back(&path);
  };
  add(job.comparison.probes);
  for (JobModel& model : job.models) inputs.push_back(&model.source.path);
  for (Arm& arm : job.arms) {
    inputs.push_back(&arm.train.replay.replay);
    add(arm.pages.files);
    add(arm.train.loop.probes);
  }
  std::erase_if(inputs, [](const std::filesystem::path* input) { return input->empty(); });
  return inputs;
}

[[nodiscard]] QLORA_STEP std::vector<std::filesystem::path> inputs_of(const Job& job) {
  Job copy = job;
  std::vector<std::filesystem::path> inputs;
  for (const std::filesystem::path* input : input_paths(copy)) inputs.push_back(*input);
  return inputs;
}

namespace detail {

/// Whether `inside` is `folder` or lies below it; both exist or not.
[[nodiscard]] inline bool lies_in(const std::filesystem::path& inside, const std::filesystem::path& folder) {
  const std::filesystem::path rest =
      std::filesystem::weakly_canonical(inside).lexically_relative(std::filesystem::weakly_canonical(folder));
  return !rest.empty() && *rest.begin() != "..";
}

/// Outputs are removed before a step is repeated, and a folder of inputs is read whole. Throws Error (usage) when an
/// output is, or holds, an input of the job, and when a folder of inputs holds the output directory.
inline void check_inputs_outside(const Job& job) {
  namespace fs = std::filesystem;
  const std::vector<fs::path> inputs = inputs_of(job);
  std::vector<fs::path> outputs;
  for (const JobModel& model : job.models) {
    outputs.push_back(folder_of(job, model) / "merged");
    outputs.push_back(folder_of(job, model) / "comparison.json");
    for (const Arm& arm : job.arms) {
      outputs.push_back(folder_of(job, model, arm) / "data");
      outputs.push_back(folder_of(job, model, arm) / "train");
    }
  }
  for (const Arm& arm : job.arms) {
    outputs.push_back(job.output.dir / "pages.jsonl");
    outputs.push_back(job.output.dir / ("pages_" + arm.name + ".jsonl"));
  }
  for (const fs::path& input : inputs) {
    for (const fs::path& output : outputs) {
      if (!lies_in(input, output)) continue;
      throw Error(
          concat(input.string(), " lies in ", output.string(), ", which this job writes; choose another [output] dir"),
          ErrorKind::usage);
    }
    if (fs::is_directory(input) && lies_in(job.output.dir, input)) {
      throw Error(concat("[output] dir ", job.output.dir.string(), " lies in ", input.string(),
                         ", all of which is read; choose a directory outside it"),
                  ErrorKind::usage);
    }
  }
}

/// The folder itself, or the one above it that is there.
[[nodiscard]] inline std::filesystem::path nearest_folder(std::filesystem::path path) {
  path = std::filesystem::absolute(path);
  while (!std::filesystem::exists(path) && path.has_relative_path()) path = path.parent_path();
  return path;
}

}  // namespace detail

QLORA_STEP void check_room(const Job& job) {
  std::uint64_t bytes = 0;
  std::uint64_t largest_checkpoint = 0;  // is there twice while it is saved
  for (const JobModel& model : job.models) {
    const hf::ModelDir base = hf::ModelDir::open(model.source.path, Verify::nothing);
    if (merged_arm(job) != nullptr && !std::filesystem::exists(folder_of(job, model) / "merged")) {
      const DType type = dtype_of(job.merging.dtype).value_or(base.dtype == DType::f64 ? DType::f32 : base.dtype);
      bytes += size_of(type) * static_cast<std::uint64_t>(parameters(base.shape));
    }
    for (const Arm& arm : job.arms) {
      if (std::filesystem::exists(folder_of(job, model, arm) / "train")) continue;
      const auto kept = [&](int checkpoints) {
        return training_bytes_on_disk(base.shape, arm.train.options, static_cast<std::size_t>(checkpoints));
      };
      bytes += kept(kept_checkpoints);
      largest_checkpoint = std::max(largest_checkpoint, kept(1) - kept(0));
    }
  }
  expect_free_space(detail::nearest_folder(job.output.dir), bytes + largest_checkpoint);
}

QLORA_STEP void check_job(const Job& job) {
  detail::check_inputs_outside(job);
  for (const Arm& arm : job.arms) {
    if (!arm.train.loop.guard.empty()) (void)read_probes(arm.train.loop);
  }
  if (!job.comparison.require.empty()) check_comparison(compare_request(job, job.models.front()));
}

QLORA_STEP void check_inputs(const Job& job) {
  namespace fs = std::filesystem;
  const auto expect_file = [](const fs::path& path, std::string_view key) {
    if (!path.empty() && !fs::exists(path)) throw Error(concat(key, ": ", path.string(), " is not there"));
  };
  for (const Arm& arm : job.arms) {
    for (const fs::path& page : arm.pages.files) expect_file(page, "files");
    expect_file(arm.train.replay.replay, "replay");
    if (!arm.train.loop.probes.empty()) (void)read_probes(arm.train.loop);
  }
  for (const JobModel& named : job.models) {
    const hf::ModelDir model = hf::ModelDir::open(named.source.path, verify_of(job.device));
    const Tokenizer tokenizer = Tokenizer::load(tokenizer_file(named.source.path));
    (void)chat_template_of(named.source.path, tokenizer, named.chat.chat_template);
    for (const Arm& arm : job.arms) {
      const Training& options = arm.train.options;
      check_training(options);
      if (model.nf4 && arm.trains_all()) {
        throw Error(concat(named.source.path.string(),
                           " is in 4 bits, and an arm trains every weight (method = \"full\"); ",
                           "name the model in 16 or 32 bits that it was made from"));
      }
      Config config{.shape = model.shape};
      config.lora = arm.trains_all() ? no_adapters : Lora{.rank = options.rank, .targets = options.targets};
      if (!arm.trains_all()) expect_rank(config);
      (void)select_code(model.shape, config.lora, job.device, options.method);
    }
    expect_length(job.packing.seq, model.max_positions, model.limited_by);
  }
  check_questions(compare_request(job, job.models.front()));
}

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
      of_arm.front = arm.labels.front;
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
