// qlora/run/job_checks.hpp — what is wrong with a job before a step of it runs: outputs that would overwrite inputs,
// requirements that nothing measures, files that are missing or damaged, options that do not go together, a full disk.
// Also the files that a job reads, and what it compares. run/job_run.hpp does the job.
#pragma once

#include <filesystem>
#include <vector>

#include "qlora/run/job.hpp"
#include "qlora/run/prebuilt.hpp"
#include "qlora/run/steps.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

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

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "qlora/dtype.hpp"
#include "qlora/error.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/model/limits.hpp"
#include "qlora/run/adapter.hpp"
#include "qlora/run/compare.hpp"
#include "qlora/run/guard.hpp"
#include "qlora/run/merge.hpp"
#include "qlora/run/registry.hpp"
#include "qlora/run/train.hpp"
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
      const Selection selected = select_code(model.shape, config.lora, job.device, options.method);
      selected.code->expect_products(options.products, {});
    }
    expect_length(job.packing.seq, model.max_positions, model.limited_by);
  }
  check_questions(compare_request(job, job.models.front()));
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
