// job.hpp — a job file: everything that `qlora run` does, as one TOML page. Its keys are the tables of
// qlora/run/options.hpp. Unknown keys and wrong values are errors with a line number and a suggestion.
// Relative paths are meant from the folder of the job file, so that a job does the same from wherever it is started.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/run/options.hpp"

namespace qlora::program {

/// [model], or one of several [[model]] that go through the same job.
struct ModelSection {
  std::string name;  ///< of [[model]] alone: its folder below [output] dir, and how the report calls it
  run::ModelSource source;
};

/// What [train] says, and each [[arm]] may say otherwise.
struct TrainSection {
  run::Training options;
  run::Replay replay;
  run::LoopProbes loop;
};

/// [train] with its own name and overrides, and [data] with its own pages. A job without [[arm]] has one, named "qlora".
struct Arm {
  std::string name = "qlora";
  std::map<std::string, double> sweep{};  ///< where it stands in which sweeps: name of what is varied, value
  run::ArmLabels labels{};
  run::Pages pages{};  ///< those of the job; an arm that names urls or files has these alone
  TrainSection train{};

  [[nodiscard]] bool trains_all() const { return train.options.method == run::Method::full; }
};

struct Job {
  std::vector<ModelSection> models;  ///< at least one; a single one may have no name
  run::DeviceRequest device;
  run::Pages pages;
  run::Fetching fetching;
  run::Packing packing;
  TrainSection train;
  std::vector<Arm> arms;
  run::MergeSource merge;
  run::Merging merging;
  run::Comparing comparison;
  run::Sampling sampling;
  run::Output output;
  std::vector<std::string> notes;  ///< what the user is to know: old keys that were used
};

/// Throws Error(input) that names file, line and key.
[[nodiscard]] Job parse_job(std::string_view text, const std::filesystem::path& file);
[[nodiscard]] Job read_job(const std::filesystem::path& file);

}  // namespace qlora::program
