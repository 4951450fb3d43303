// qlora/run/container.hpp — SageMaker's contract with a container that trains: what `qlora train` does by itself where
// the platform has laid out its folder, /opt/ml or QLORA_ML_ROOT. docs/cloud.md describes it for users.
//   input/config/hyperparameters.json    options by name; all values are texts
//   input/config/inputdataconfig.json    the channels: training, model, probes, replay
//   input/config/resourceconfig.json     the hosts of the job (dist/sagemaker.hpp)
//   input/data/CHANNEL                   files of a channel; SM_CHANNEL_NAME names another folder
//   checkpoints                          where the run is, so that the next container resumes it
//   model                                the adapter or the merged model, complete or not at all
//   output/data                          the record of the run
//   output/failure                       why it failed, the message first
#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "qlora/dist/launch.hpp"
#include "qlora/error.hpp"
#include "qlora/run/option.hpp"
#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/rank_options.hpp"
#include "qlora/run/steps.hpp"
#include "qlora/run/train_request.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Hyperparameters of a container that are options of no verb.
struct ContainerOptions {
  std::string model;
  bool merge = false;
};

template <>
struct Table<ContainerOptions> {
  static constexpr std::string_view title = "Container";
  static constexpr std::string_view section = "";
  static constexpr std::string_view verbs = "";
  static constexpr auto options = std::to_array<Option<ContainerOptions>>({
      {.name = "model",
       .member = &ContainerOptions::model,
       .help = "A model of the hub, ORG/NAME, in a job without the channel model"},
      {.name = "merge",
       .member = &ContainerOptions::merge,
       .help = "Leave the merged model in place of the adapter",
       .fingerprint = false},
  });
};
static_assert(well_formed<ContainerOptions>());

/// What a container is to do.
struct ContainerTraining {
  std::filesystem::path root;                      ///< /opt/ml
  TrainRequest train;                              ///< with `out`; its data set is empty where documents are packed
  std::vector<std::filesystem::path> documents{};  ///< to be packed first; empty: the channel is a packed data set
  Packing packing{};                               ///< of the documents
  Replay replay{};                                 ///< mixed into them
  Merging merging{};                               ///< of the merged model
  ContainerOptions options{};                      ///< what becomes of the adapter
  Ranks ranks{};                                   ///< processes on each host
  int hosts = 1;                                   ///< of the job
};

/// Whether the platform has laid out a training job below `root`.
[[nodiscard]] inline bool is_training_container(const std::filesystem::path& root) {
  std::error_code none;
  return std::filesystem::is_directory(root / "input" / "config", none);
}

/// Reads what the platform wrote. The model is that of the channel, or the name that the hyperparameter `model` gives.
/// Throws Error: (usage) that names the hyperparameter or the channel that is unknown, wrong, without a meaning beside
/// the others, or missing; (input) for files of another form.
[[nodiscard]] QLORA_STEP ContainerTraining container_training(const std::filesystem::path& root,
                                                              const dist::Environment& get);

/// Packs where that is asked for, trains or resumes, and leaves on rank 0 the result in model/ and the record in
/// output/data/. `trained` of the result is model/, or of a merged model the adapter in checkpoints/. Throws Error as
/// pack, train and merge do, and (usage) when model/ holds something.
[[nodiscard]] QLORA_STEP TrainResult train_in_container(const ContainerTraining& job, Progress& progress);

/// "step=8 epoch=0.5 loss=3.25 grad_norm=0.7 lr=0.0002 tokens_per_s=1200": what the job's MetricDefinitions match, with
/// shortest numbers that are read back to the same. Measured probes follow as "probe.retention.value=0.98".
[[nodiscard]] QLORA_STEP std::string metric_line(const StepRecord& record);

/// Removes the failure of a container before this one, which a reused folder may hold.
QLORA_STEP void forget_failure(const std::filesystem::path& root);
/// Writes output/failure unless another process of the container has said why before. An error to write is ignored: the
/// message is on stderr, too.
QLORA_STEP void write_failure(const std::filesystem::path& root, std::string_view message, ErrorKind kind);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include "qlora/run/container_steps.hpp"
#endif  // QLORA_STEP_CODE
