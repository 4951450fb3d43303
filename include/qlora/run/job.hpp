// qlora/run/job.hpp — a job: one or more models, what they learn from, and arms that are trained, merged and compared.
// A plain struct with the rules that it must meet, whatever file or program it comes from; run/job_run.hpp does it.
#pragma once

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/run/options.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// One of the models that go through the job.
struct JobModel {
  std::string name;    ///< its folder below the output directory, and its name in the report; empty: the only model
  ModelSource source;  ///< where it is read from
  ChatChoice chat{};   ///< the form of conversations, if not the model's own
};

/// What all arms train by, unless an arm has something else.
struct TrainSection {
  Training options;  ///< of every training
  Replay replay;     ///< documents that are mixed in
  LoopProbes loop;   ///< probes in the loop
};

/// One training of each model.
struct Arm {
  std::string name = "qlora";             ///< its folder and its name in the report; see is_plain_name
  std::map<std::string, double> sweep{};  ///< its place in sweeps: name of what is varied, value
  ArmLabels labels{};                     ///< what the report calls it
  Pages pages{};                          ///< those of the job, or its own instead of them
  TrainSection train{};                   ///< that of the job, with what the arm sets itself

  /// Whether it trains every weight, and has no adapter.
  [[nodiscard]] bool trains_all() const { return train.options.method == Method::full; }
  /// The method, or the group that the arm names.
  [[nodiscard]] std::string group() const {
    return labels.group.empty() ? std::string(name_of(train.options.method)) : labels.group;
  }
};

/// A whole job: the models, what each arm trains on, and what they are compared by. See complete_job and
/// run/job_run.hpp.
struct Job {
  std::vector<JobModel> models;  ///< at least one; a single one may have no name
  DeviceRequest device;          ///< of training, merging and comparison
  Pages pages;                   ///< of arms without pages of their own
  Fetching fetching;             ///< how pages become text
  Packing packing;               ///< how text becomes windows
  TrainSection train;            ///< of arms that set nothing else
  std::vector<Arm> arms;         ///< without any, complete_job adds one
  MergeSource merge;             ///< without an arm, complete_job chooses one
  Merging merging;               ///< how the merged model is written
  Comparing comparison;          ///< questions, probes and requirements
  Sampling sampling;             ///< of the answers to questions
  Output output;                 ///< where everything is written
};

/// Names of arms and models are folders and keys of the report: 1 to 64 of a-z 0-9 _ -.
[[nodiscard]] inline bool is_plain_name(std::string_view name) {
  return !name.empty() && name.size() <= 64 &&
         name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_-") == std::string_view::npos;
}
/// Names of variants that no arm may have.
[[nodiscard]] inline bool is_variant_name(std::string_view name) {
  return name == "w16" || name == "nf4" || name == "merged" || name == "base";
}

/// Arms of a job, and models of one. Each is compared with all others of its kind.
inline constexpr std::size_t max_named = 1000;

/// The sweep in which two arms are one point with one seed; empty: none. There the one would be counted as another draw
/// of the other.
[[nodiscard]] inline std::string shared_point(const Arm& a, const Arm& b) {
  if (a.train.options.seed != b.train.options.seed) return {};
  for (const auto& [name, at] : a.sweep) {
    const auto other = b.sweep.find(name);
    if (other != b.sweep.end() && other->second == at && a.group() == b.group()) return name;
  }
  return {};
}

namespace detail {

/// The last arm that has an adapter. Requirements are checked on it, so it is no control if there is another.
[[nodiscard]] inline const Arm& default_merge_arm(const std::vector<Arm>& arms) {
  const auto last = [&](const auto& wanted) { return std::find_if(arms.rbegin(), arms.rend(), wanted); };
  auto found = last([](const Arm& arm) { return !arm.trains_all() && arm.labels.control.empty(); });
  if (found == arms.rend()) found = last([](const Arm& arm) { return arm.labels.control.empty(); });
  return found == arms.rend() ? arms.back() : *found;
}

inline void check_arms(const std::vector<Arm>& arms) {
  if (arms.size() > max_named) throw Error(concat(arms.size(), " arms; a job has at most ", max_named));
  for (std::size_t i = 0; i < arms.size(); ++i) {
    const Arm& arm = arms[i];
    if (!is_plain_name(arm.name) || is_variant_name(arm.name)) {
      throw Error(concat("an arm cannot be named \"", arm.name, "\""));
    }
    if (!arm.labels.control.empty() && !arm.sweep.empty()) {
      throw Error(concat("the arm \"", arm.name, "\" is a control or stands in a sweep, not both"));
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (arms[j].name == arm.name) throw Error(concat("a second arm \"", arm.name, "\""));
      if (const std::string sweep = shared_point(arms[j], arm); !sweep.empty()) {
        throw Error(concat("the arms \"", arms[j].name, "\" and \"", arm.name, "\" are one point of the sweep \"",
                           sweep, "\" with one seed"));
      }
    }
  }
}

inline void check_models(const std::vector<JobModel>& models) {
  if (models.empty() || models.front().source.path.empty()) {
    throw Error("[model] path is missing: the directory of the model to tune");
  }
  if (models.size() == 1 && models.front().name.empty()) return;
  if (models.size() > max_named) throw Error(concat(models.size(), " models; a job has at most ", max_named));
  for (std::size_t i = 0; i < models.size(); ++i) {
    if (!is_plain_name(models[i].name)) throw Error(concat("a model cannot be named \"", models[i].name, "\""));
    if (models[i].source.path.empty()) throw Error(concat("the model \"", models[i].name, "\" has no path"));
    for (std::size_t j = 0; j < i; ++j) {
      if (models[j].name == models[i].name) throw Error(concat("a second model \"", models[i].name, "\""));
    }
  }
}

}  // namespace detail

/// Fills in what a job may leave out, the arm and the arm that is merged, and checks the rest. Throws Error (input),
/// whose text names sections and keys as in a job file.
inline void complete_job(Job& job) {
  if (job.arms.empty()) job.arms.push_back({.name = "qlora", .pages = job.pages, .train = job.train});
  for (const Arm& arm : job.arms) {
    if (arm.name == job.merge.arm && arm.trains_all()) {
      throw Error(concat("[merge] arm is \"", arm.name, "\", which trains all weights: there is no adapter"));
    }
  }
  if (job.merge.arm.empty()) job.merge.arm = detail::default_merge_arm(job.arms).name;
  detail::check_models(job.models);
  for (const Arm& arm : job.arms) {
    if (arm.pages == Pages{}) throw Error("[data] needs urls or files: what to learn from");
  }
  if (job.output.dir.empty()) throw Error("[output] dir is missing: where results go");
  if (std::none_of(job.arms.begin(), job.arms.end(), [&](const Arm& arm) { return arm.name == job.merge.arm; })) {
    throw Error(concat("[merge] arm is \"", job.merge.arm, "\", and no [[arm]] has that name"));
  }
  const auto replays = [](const Arm& arm) { return !arm.train.replay.replay.empty(); };
  const auto limits = [](const Arm& arm) { return arm.train.replay.replay_limit > 0; };
  if (std::any_of(job.arms.begin(), job.arms.end(), limits) &&
      std::none_of(job.arms.begin(), job.arms.end(), replays)) {
    throw Error("replay_limit says how many documents are replayed, and no arm has a replay");
  }
  detail::check_arms(job.arms);
}

/// The folder of a model's results; that of a model without a name is the output directory itself.
[[nodiscard]] inline std::filesystem::path folder_of(const Job& job, const JobModel& model) {
  return model.name.empty() ? job.output.dir : job.output.dir / model.name;
}
/// The folder of one arm's data set and training.
[[nodiscard]] inline std::filesystem::path folder_of(const Job& job, const JobModel& model, const Arm& arm) {
  return folder_of(job, model) / arm.name;
}

/// The arm that is merged; null when every arm trains all weights.
[[nodiscard]] inline const Arm* merged_arm(const Job& job) {
  for (const Arm& arm : job.arms) {
    if (arm.name == job.merge.arm && !arm.trains_all()) return &arm;
  }
  return nullptr;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
