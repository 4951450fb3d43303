// qlora/run/steps.hpp — what the smaller steps of a job take and return, as plain structs: pages to documents,
// documents to windows, an adapter into a model, documents that a model writes, and the memory that training takes. The
// functions are in the header that each struct names; json.hpp has the results as JSON.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/model/plan.hpp"
#include "qlora/run/options.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Pages to a file with one document per line; see run/fetch.hpp.
struct FetchRequest {
  Pages pages;
  Fetching fetching;
  std::filesystem::path out;
};

struct FetchedDocument {
  std::string source;
  std::string title;
  std::int64_t bytes = 0;  ///< of its text
  std::string sha256;      ///< of its text
};

struct FetchFailure {
  std::string source;
  std::string error;
};

struct FetchResult {
  std::vector<FetchedDocument> documents;
  std::int64_t bytes = 0;                 ///< of all texts
  std::int64_t shared_lines_removed = 0;  ///< lines that many pages of one site share
  std::vector<FetchFailure> failed;       ///< sources that were left out
};

/// Documents to windows of token ids in the directory `out`; see run/pack.hpp.
struct PackRequest {
  std::vector<std::filesystem::path> documents;
  Replay replay;
  std::filesystem::path model;  ///< model directory, or a tokenizer.model
  std::filesystem::path out;
  Packing packing;
};

struct PackResult {
  std::int64_t documents = 0;
  std::int64_t replayed = 0;           ///< of the documents, those of the replay file
  std::int64_t skipped_documents = 0;  ///< without text
  std::int64_t cut_documents = 0;
  std::int64_t windows = 0;
  int seq = 0;  ///< tokens in a window
  std::int64_t tokens = 0;
  std::int64_t labelled = 0;  ///< tokens that are learned
  std::int64_t padding = 0;   ///< tokens
  std::int64_t dropped_tokens = 0;
  std::filesystem::path path;
};

/// An adapter into a copy of its model; see run/merge.hpp.
struct MergeRequest {
  std::filesystem::path model;
  std::filesystem::path adapter;
  std::filesystem::path out;
  Merging merging;
  DeviceRequest device;
  bool any_base = false;  ///< take an adapter that was trained on other weights
};

struct MergeResult {
  std::int64_t tensors = 0;
  std::int64_t changed = 0;  ///< tensors with an adapter
  std::int64_t parameters = 0;
  std::string dtype;  ///< of its weights: "F16"
  std::filesystem::path path;
};

/// What a model directory, or a published model, takes to train; see run/plan.hpp.
struct PlanRequest {
  std::filesystem::path model;  ///< directory with a config.json; or 7b, 13b, 70b for LLaMA-2
  Plan plan;
  Training training;
  Packing packing{.seq = 2048};
  DeviceRequest device;
};

/// Ways of recomputing, by their number, as options and results name them.
inline constexpr std::array<std::string_view, 3> recompute_names{"none", "cheap", "block"};
[[nodiscard]] constexpr std::string_view recompute_name(Recompute recompute) {
  return recompute_names[static_cast<std::size_t>(recompute)];
}

/// What fits a GPU.
struct PlanAdvice {
  /// The largest batch for each of recompute_names; 0 where not even one window fits.
  std::array<int, 3> largest_batches{};
  /// What `train` chooses for the batch that was asked for, or the largest that fits; nothing where none does.
  std::optional<Run> recommended;
  std::int64_t total = 0;  ///< bytes that `recommended` takes
};

struct PlanResult {
  Run run;         ///< that is planned
  int layers = 0;  ///< of the model
  MemoryPlan bytes;
  std::string device;
  std::int64_t device_bytes = 0;
  std::int64_t reserve = 0;  ///< bytes of the device that no plan uses
  int largest_batch = 0;
  std::optional<PlanAdvice> advice;  ///< for GPUs

  [[nodiscard]] bool fits() const { return bytes.total() <= device_bytes - reserve; }
};

/// Documents that a model writes of what it knows; see run/recall.hpp.
struct RecallRequest {
  std::filesystem::path model;
  Base weights;
  Recall recall;
  Sampling sampling = recall_sampling;
  DeviceRequest device;
  std::filesystem::path out;  ///< a .jsonl file
};

struct RecallResult {
  std::int64_t documents = 0;
  std::int64_t chats = 0;     ///< of the documents
  std::int64_t left_out = 0;  ///< texts without an end or a form
  std::filesystem::path out;
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
