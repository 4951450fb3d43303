// qlora/run/steps.hpp — what the smaller steps of a job take and return, as plain structs: pages to documents,
// documents to windows, an adapter into a model, documents that a model writes, a comparison, and the memory that
// training takes. The functions are in the header that each struct names; json.hpp has the results as JSON.
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
  Pages pages;                ///< URLs and files
  Fetching fetching;          ///< limits, and how pages become text
  std::filesystem::path out;  ///< a .jsonl file
};

/// A document that was written.
struct FetchedDocument {
  std::string source;                 ///< URL or path
  std::string title;                  ///< may be empty
  std::int64_t bytes = 0;             ///< of its text
  std::string sha256;                 ///< of its text
  std::string unknown_encoding = {};  ///< what the page calls its encoding where that is no known name; else empty
};

/// A source that gave no document.
struct FetchFailure {
  std::string source;  ///< URL or path
  std::string error;   ///< one line
};

/// What was fetched.
struct FetchResult {
  std::vector<FetchedDocument> documents;   ///< in the order of the sources
  std::int64_t bytes = 0;                   ///< of all texts
  std::int64_t shared_lines_removed = 0;    ///< lines that many pages of one site share
  std::vector<FetchFailure> failed;         ///< sources that were left out
  std::vector<FetchFailure> repeated = {};  ///< sources left out because an earlier one has the same address or text
};

/// Documents to windows of token ids in the directory `out`; see run/pack.hpp.
struct PackRequest {
  std::vector<std::filesystem::path> documents;  ///< .jsonl, .txt or .md files, or folders of them
  Replay replay;                                 ///< documents that are mixed in
  std::filesystem::path model;                   ///< model directory, or a tokenizer.model
  std::filesystem::path out;                     ///< directory of the data set
  Packing packing;                               ///< how windows are cut and labelled
  ChatChoice chat{};                             ///< the form of conversations, if not the model's own
};

/// The data set that was written.
struct PackResult {
  std::int64_t documents = 0;          ///< that were read
  std::int64_t replayed = 0;           ///< of the documents, those of the replay file
  std::int64_t skipped_documents = 0;  ///< without text
  std::int64_t cut_documents = 0;      ///< in more than one window
  std::int64_t windows = 0;            ///< that were written
  int seq = 0;                         ///< tokens in a window
  std::int64_t tokens = 0;             ///< in the windows, padding not counted
  std::int64_t labelled = 0;           ///< tokens that are learned
  std::int64_t padding = 0;            ///< tokens
  std::int64_t dropped_tokens = 0;     ///< in no window; the article's form only
  std::filesystem::path path;          ///< directory of the data set
};

/// An adapter into a copy of its model; see run/merge.hpp.
struct MergeRequest {
  std::filesystem::path model;    ///< model directory
  std::filesystem::path adapter;  ///< PEFT directory
  std::filesystem::path out;      ///< model directory that is written
  Merging merging;                ///< size of its files
  DeviceRequest device;           ///< where the products are computed
  bool any_base = false;          ///< take an adapter that was trained on other weights
  bool replace = false;           ///< take the place of a directory that holds a model alone
};

/// A merged model beside the model with its adapter, over the tokens of all windows.
struct MergeDifference {
  std::string onto;          ///< the weights that it was merged onto: "original", "nf4"
  double largest_logit = 0;  ///< difference
  double mean_logit = 0;     ///< difference, absolute
  double kl = 0;             ///< KL(with the adapter || merged), nats a token
  double agreement = 0;      ///< share of tokens where both find the same one likeliest
  double perplexity = 0;     ///< of the merged model
};

/// What merged models were measured to be, see run/merge_certificate.hpp.
struct MergeCertificate {
  std::string written;                  ///< the weights that the model was merged onto in the end
  int windows = 0;                      ///< texts that the model with its adapter wrote
  std::int64_t tokens = 0;              ///< predicted in them
  double perplexity = 0;                ///< of the model with its adapter
  std::vector<MergeDifference> merged;  ///< each that was tried
};

/// The model that was written.
struct MergeResult {
  std::int64_t tensors = 0;                       ///< that were written
  std::int64_t changed = 0;                       ///< tensors with an adapter
  std::int64_t parameters = 0;                    ///< weights in all tensors
  std::string dtype;                              ///< of its weights: "F16"
  std::filesystem::path path;                     ///< the directory
  std::optional<MergeCertificate> certificate{};  ///< where it was asked for; also in the directory
};

/// A model into one in NF4; see run/quantize.hpp.
struct QuantizeRequest {
  std::filesystem::path model;  ///< model directory in 16 or 32 bits
  std::filesystem::path out;    ///< model directory that is written
  Quantizing quantizing;        ///< of the scales, and the size of its files
  DeviceRequest device;         ///< of it threads and no_verify count
};

/// The model that was written.
struct QuantizeResult {
  std::int64_t tensors = 0;    ///< of the model
  std::int64_t quantized = 0;  ///< tensors in NF4
  bool double_quant = true;    ///< whether the scales are in 8 bits
  std::filesystem::path path;  ///< the directory
};

/// A model of the hub that was downloaded, or was there already; see run/hub.hpp.
struct PullResult {
  std::string model;               ///< "org/name"
  std::string commit;              ///< of the snapshot
  std::int64_t files = 0;          ///< of the snapshot
  std::int64_t bytes = 0;          ///< of these files
  std::int64_t downloaded = 0;     ///< of the bytes, those that came over the network
  std::vector<std::string> legal;  ///< names of licences and policies of use among the files
  std::filesystem::path path;      ///< the snapshot: a model directory
};

/// A licence that was accepted.
struct AcceptResult {
  std::string model;               ///< "org/name"
  std::string commit;              ///< that its texts are of
  std::string licence;             ///< as the hub names it; may be empty
  std::string page;                ///< of the model, where a gated one is accepted
  std::string accepted_at;         ///< ISO 8601, UTC
  std::vector<std::string> legal;  ///< paths of its texts in the cache
  std::filesystem::path record;    ///< the file that says so
};

/// A model or an adapter into a file of other programs; see run/export.hpp.
struct ExportRequest {
  std::filesystem::path model;    ///< model directory
  std::filesystem::path adapter;  ///< PEFT directory, which alone is written; empty: the model is
  std::filesystem::path out;      ///< file that is written
  Exporting exporting;            ///< its format
  DeviceRequest device;           ///< of it only no_verify counts
  bool any_base = false;          ///< take an adapter that was trained on other weights
};

/// The file that was written.
struct ExportResult {
  std::int64_t tensors = 0;    ///< in the file
  std::int64_t bytes = 0;      ///< of the file
  std::filesystem::path path;  ///< the file
};

/// What a model directory, or a published model, takes to train; see run/plan.hpp.
struct PlanRequest {
  std::filesystem::path model;   ///< directory with a config.json; or a name, as 13b for LLaMA-2 and llama3.1-8b
  Plan plan;                     ///< what it is made for
  Training training;             ///< rank, targets, batch and recomputation
  Packing packing{.seq = 2048};  ///< of it only seq counts; 0: 2048, or what the model reads if that is less
  DeviceRequest device;          ///< of it only keep_dequantized counts
};

/// Ways of recomputing, by their number, as options and results name them.
inline constexpr std::array<std::string_view, 3> recompute_names{"none", "cheap", "block"};
/// "none", "cheap" or "block".
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

/// Memory of a planned run.
struct PlanResult {
  Run run;                           ///< that is planned
  int layers = 0;                    ///< of the model
  MemoryPlan bytes;                  ///< by purpose
  std::string device;                ///< the GPU by name, or "cpu"
  std::int64_t device_bytes = 0;     ///< of its memory
  std::int64_t reserve = 0;          ///< bytes of the device that no plan uses
  int largest_batch = 0;             ///< windows in a micro-batch that fit with this recomputation; 0: not even one
  std::optional<PlanAdvice> advice;  ///< for GPUs

  /// Whether the planned run fits the device.
  [[nodiscard]] bool fits() const { return bytes.total() <= device_bytes - reserve; }
};

/// Documents that a model writes of what it knows; see run/recall.hpp.
struct RecallRequest {
  std::filesystem::path model;          ///< model directory
  Base weights;                         ///< how its weights are held
  Recall recall;                        ///< how many documents, and how they begin
  Sampling sampling = recall_sampling;  ///< how tokens are drawn
  DeviceRequest device;                 ///< where to run
  std::filesystem::path out;            ///< a .jsonl file
  ChatChoice chat{};                    ///< the form of conversations, if not the model's own
};

/// What was written.
struct RecallResult {
  std::int64_t documents = 0;  ///< in `out`
  std::int64_t chats = 0;      ///< of the documents
  std::int64_t left_out = 0;   ///< texts without an end or a form
  std::filesystem::path out;   ///< the file
};

/// An adapter directory by the name that Engine::use takes.
struct NamedAdapter {
  std::string name;           ///< unique among the adapters of a model
  std::filesystem::path dir;  ///< PEFT directory
};

/// A model directory by the name that the report gives it.
struct NamedModel {
  std::string name;           ///< in the report, unique among all variants
  std::filesystem::path dir;  ///< model directory
};

/// The models that are compared, and by what; see run/compare.hpp.
struct CompareRequest {
  std::filesystem::path model;           ///< the base
  std::vector<NamedAdapter> adapters{};  ///< trained on the base in 4 bits
  std::filesystem::path merged{};        ///< may be empty
  std::string merged_from{};             ///< the adapter that was merged
  std::string judged{};  ///< the variant of requirements and examples; empty: merged_from, else the last variant
  std::vector<NamedModel> models{};  ///< all of whose weights were trained
  Comparing comparison{};            ///< questions, probes and requirements
  Sampling sampling{};               ///< of the answers to `questions`
  DeviceRequest device{};            ///< where the models run, one after the other
  bool any_base = false;             ///< take adapters that were trained on other weights
  ChatChoice chat{};                 ///< the form of conversations with all of them, if not their own
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
