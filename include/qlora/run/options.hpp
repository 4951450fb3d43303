// qlora/run/options.hpp — every option of a fine-tuning job, by group: those of data_options.hpp and
// training_options.hpp, those of the terminal in console_options.hpp, and those of the other steps. A group is a plain
// struct, whose initialisers are the defaults, and its table.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/run/console_options.hpp"
#include "qlora/run/data_options.hpp"
#include "qlora/run/exporting_options.hpp"
#include "qlora/run/option.hpp"
#include "qlora/run/quantizing_options.hpp"
#include "qlora/run/rank_options.hpp"
#include "qlora/run/serving_options.hpp"
#include "qlora/run/training_options.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Where to compute; automatic: on a GPU if one is usable, else on the CPU.
enum class DeviceUse : std::uint8_t { automatic, cpu, cuda };
template <>
inline constexpr std::array names_of<DeviceUse>{std::string_view("auto"), std::string_view("cpu"),
                                                std::string_view("cuda")};

/// Where a step computes, and what it may use there.
struct DeviceRequest {
  DeviceUse use = DeviceUse::automatic;
  Bytes memory_cap{};
  bool fast = false;
  bool keep_dequantized = false;
  int threads = 0;
  bool no_verify = false;
};

template <>
struct Table<DeviceRequest> {
  static constexpr std::string_view title = "Device";
  static constexpr std::string_view section = "device";
  static constexpr std::string_view verbs = "train, generate, chat, recall, compare, serve, run";
  static constexpr auto options = std::to_array<Option<DeviceRequest>>({
      {.name = "use",
       .member = choice<&DeviceRequest::use>,
       .help = "Device; auto: a GPU if one is usable, else the CPU",
       .on_the_line = "device"},
      {.name = "memory_cap",
       .member = &DeviceRequest::memory_cap,
       .help = "GPU: cap of the memory used, CUDA context included, as in 24GB; without it all free memory",
       .fingerprint = false},
      {.name = "fast",
       .member = &DeviceRequest::fast,
       .help = "GPU: allow sums whose last bits depend on timing; of `serve`, also on what else runs"},
      {.name = "keep_dequantized",
       .member = &DeviceRequest::keep_dequantized,
       .help = "GPU: keep the frozen weights in bf16 as well; faster, about four times the weight memory more",
       .fingerprint = false,
       .old_name = "resident"},
      {.name = "threads",
       .member = &DeviceRequest::threads,
       .help = "CPU threads; 0: one for each core",
       .range = {0, 1024},
       .fingerprint = false},
      {.name = "no_verify",
       .member = &DeviceRequest::no_verify,
       .help = "Trust the disk: read models and adapters without comparing their checksums",
       .fingerprint = false},
  });
};
static_assert(well_formed<DeviceRequest>());

/// How a model answers. Temperature 0 is greedy.
struct Sampling {
  int max_new_tokens = 200;
  double top_p = 0.9;
  double temperature = 0.01;
  int top_k = 0;
  std::int64_t seed = 42;
};
/// Samples from the model as it is: for documents that it writes of what it knows.
inline constexpr Sampling recall_sampling{.max_new_tokens = 512, .top_p = 1, .temperature = 1};

template <>
struct Table<Sampling> {
  static constexpr std::string_view title = "Generation";
  static constexpr std::string_view section = "compare";
  static constexpr std::string_view verbs = "generate, chat, recall, compare";
  static constexpr auto options = std::to_array<Option<Sampling>>({
      {.name = "max_new_tokens",
       .member = &Sampling::max_new_tokens,
       .help = "Length limit of an answer",
       .range = {1, 1e6},
       .unit = "tokens"},
      {.name = "top_p",
       .member = &Sampling::top_p,
       .help = "Nucleus sampling: the smallest set of tokens with this probability",
       .range = {0.0001, 1}},
      {.name = "temperature",
       .member = &Sampling::temperature,
       .help = "Sampling temperature; 0: greedy",
       .range = {0, 100}},
      {.name = "top_k",
       .member = &Sampling::top_k,
       .help = "Sample from the K most likely tokens; 0: from all",
       .range = {0, 1e6},
       .unit = "tokens"},
      {.name = "seed", .member = &Sampling::seed, .help = "Sampling seed", .range = {0, 9e15}},
  });
};
static_assert(well_formed<Sampling>());

/// How the weights of a model that answers are held.
enum class BaseWeights : std::uint8_t {
  nf4,  ///< quantized to 4 bits, as they are trained on
  full  ///< as they are in the files, without adapters
};
template <>
inline constexpr std::array names_of<BaseWeights>{std::string_view("nf4"), std::string_view("full")};

/// The form in which a model that answers holds its weights.
struct Base {
  BaseWeights base = BaseWeights::nf4;
};

template <>
struct Table<Base> {
  static constexpr std::string_view title = "Weights";
  static constexpr std::string_view section = "";
  static constexpr std::string_view verbs = "generate, chat, recall, serve";
  static constexpr auto options = std::to_array<Option<Base>>({
      {.name = "base",
       .member = choice<&Base::base>,
       .help = "Weights: quantized to 4 bits (nf4), or as they are in the files (full)"},
  });
};
static_assert(well_formed<Base>());

/// What a model writes of what it knows.
struct Recall {
  int documents = 500;
  std::string prompt;
};

template <>
struct Table<Recall> {
  static constexpr std::string_view title = "Recall";
  static constexpr std::string_view section = "";
  static constexpr std::string_view verbs = "recall";
  static constexpr auto options = std::to_array<Option<Recall>>({
      {.name = "documents",
       .member = &Recall::documents,
       .help = "Documents to generate",
       .range = {1, 1e7},
       .unit = "documents",
       .letter = 'n'},
      {.name = "prompt",
       .member = &Recall::prompt,
       .help = "Start of every document; with \"[INST]\" a chat model writes the question, too",
       .letter = 'p'},
  });
};
static_assert(well_formed<Recall>());

/// Which arm of a job is merged.
struct MergeSource {
  std::string arm;
};

template <>
struct Table<MergeSource> {
  static constexpr std::string_view title = "Merged arm";
  static constexpr std::string_view section = "merge";
  static constexpr std::string_view verbs = "";
  static constexpr auto options = std::to_array<Option<MergeSource>>({
      {.name = "arm",
       .member = &MergeSource::arm,
       .help = "Arm to merge; without it the last one that is no control",
       .fingerprint = false},
  });
};
static_assert(well_formed<MergeSource>());

/// Type of merged weights; base: that of the model.
enum class MergedType : std::uint8_t { base, f16, bf16, f32 };
template <>
inline constexpr std::array names_of<MergedType>{std::string_view("base"), std::string_view("f16"),
                                                 std::string_view("bf16"), std::string_view("f32")};

/// Weights that an adapter is merged onto.
enum class MergeBase : std::uint8_t { original, nf4, best };
template <>
inline constexpr std::array names_of<MergeBase>{std::string_view("original"), std::string_view("nf4"),
                                                std::string_view("best")};

/// How a merged model is written.
struct Merging {
  std::int64_t shard_bytes = 2'000'000'000;
  MergedType dtype = MergedType::base;
  MergeBase onto = MergeBase::original;
  int windows = 0;
};

template <>
struct Table<Merging> {
  static constexpr std::string_view title = "Merging";
  static constexpr std::string_view section = "merge";
  static constexpr std::string_view verbs = "merge";
  static constexpr auto options = std::to_array<Option<Merging>>({
      {.name = "shard_bytes",
       .member = &Merging::shard_bytes,
       .help = "Size limit of one weight file",
       .range = {1 << 20, 1e12},
       .unit = "bytes"},
      {.name = "dtype",
       .member = choice<&Merging::dtype>,
       .help = "Type of the merged weights; base: that of the model"},
      {.name = "onto",
       .member = choice<&Merging::onto>,
       .help = "Weights below the adapter: the model's, those that its NF4 codes mean, which the adapter was trained "
               "on, or what --windows shows to be nearer to the model with its adapter",
       .omit_default = true},
      {.name = "windows",
       .member = &Merging::windows,
       .help =
           "Compare merged models with the adapter on texts of 64 tokens that it writes, and put the numbers beside "
           "the model, in merge_certificate.json; loads the merged model. 0: none, with --onto best 8",
       .range = {0, 256},
       .unit = "windows",
       .omit_default = true},
  });
};
static_assert(well_formed<Merging>());

/// What models are compared by.
struct Comparing {
  std::filesystem::path questions;
  std::vector<std::filesystem::path> probes;
  std::vector<std::string> require;
};

template <>
struct Table<Comparing> {
  static constexpr std::string_view title = "Comparison";
  static constexpr std::string_view section = "compare";
  static constexpr std::string_view verbs = "compare";
  static constexpr auto options = std::to_array<Option<Comparing>>({
      {.name = "questions",
       .member = &Comparing::questions,
       .help = "Questions that all models answer: .jsonl with {form, prompt}, or text with one a line",
       .fingerprint = false},
      {.name = "probes",
       .member = &Comparing::probes,
       .help = "Probe files: questions with known answers, and texts (.jsonl)",
       .fingerprint = false},
      {.name = "require",
       .member = &Comparing::require,
       .help = "Requirements on the tuned model; exit code 1 if one is not met: retention.lower>=0.98"},
  });
};
static_assert(well_formed<Comparing>());

/// What a memory plan is made for.
struct Plan {
  std::string on = "cpu";
  Bytes gpu_memory;
  int probe_tokens = 0;
  bool no_dropout = false;
  bool unquantized = false;
};

template <>
struct Table<Plan> {
  static constexpr std::string_view title = "Memory plan";
  static constexpr std::string_view section = "";
  static constexpr std::string_view verbs = "plan";
  static constexpr auto options = std::to_array<Option<Plan>>({
      {.name = "on", .member = &Plan::on, .help = "A GPU by name, as in \"A10G 24 GB\", or \"cpu\""},
      {.name = "gpu_memory",
       .member = &Plan::gpu_memory,
       .help = "A GPU with this much memory instead of --on, as in 24GB or 80GiB"},
      {.name = "probe_tokens",
       .member = &Plan::probe_tokens,
       .help = "Length of the longest probe measured during training, its reply included; 0: no probes",
       .range = {0, 1 << 20},
       .unit = "tokens"},
      {.name = "no_dropout", .member = &Plan::no_dropout, .help = "Train without dropout"},
      {.name = "unquantized", .member = &Plan::unquantized, .help = "Keep the frozen weights unquantized"},
  });
};
static_assert(well_formed<Plan>());

/// A model of a job.
struct ModelSource {
  std::filesystem::path path;
};

template <>
struct Table<ModelSource> {
  static constexpr std::string_view title = "Model";
  static constexpr std::string_view section = "model";
  static constexpr std::string_view verbs = "";
  static constexpr auto options = std::to_array<Option<ModelSource>>({
      {.name = "path",
       .member = &ModelSource::path,
       .help = "Hugging Face model directory",
       .fingerprint = false},  // its content is
  });
};
static_assert(well_formed<ModelSource>());

/// How conversations with a model are written.
struct ChatChoice {
  std::string chat_template;
};

template <>
struct Table<ChatChoice> {
  static constexpr std::string_view title = "Chat";
  static constexpr std::string_view section = "model";
  static constexpr std::string_view verbs = "pack, train, chat, recall, compare, serve";
  static constexpr auto options = std::to_array<Option<ChatChoice>>({
      {.name = "chat_template",
       .member = &ChatChoice::chat_template,
       .help = "Chat form instead of the model's own template: llama2, llama3, chatml, mistral, zephyr or vicuna",
       .fingerprint = false},  // the form itself is
  });
};
static_assert(well_formed<ChatChoice>());

/// How the report calls an arm of a job, beside its place in sweeps.
struct ArmLabels {
  std::string group;
  bool pareto_front = true;
  std::string control;
};

template <>
struct Table<ArmLabels> {
  static constexpr std::string_view title = "Arms";
  static constexpr std::string_view section = "arm";
  static constexpr std::string_view verbs = "";
  static constexpr auto options = std::to_array<Option<ArmLabels>>({
      {.name = "group",
       .member = &ArmLabels::group,
       .help = "Its line in the report's Pareto front; without it that of its method",
       .fingerprint = false},
      {.name = "pareto_front",
       .member = &ArmLabels::pareto_front,
       .help = "Whether it is a point of the Pareto front and of the comparison at equal gain",
       .fingerprint = false,
       .old_name = "front"},
      {.name = "control",
       .member = &ArmLabels::control,
       .help = "What it controls for; the report lists controls apart",
       .fingerprint = false},
  });
};
static_assert(well_formed<ArmLabels>());

/// Where a job writes.
struct Output {
  std::filesystem::path dir;
};

template <>
struct Table<Output> {
  static constexpr std::string_view title = "Output";
  static constexpr std::string_view section = "output";
  static constexpr std::string_view verbs = "";
  static constexpr auto options = std::to_array<Option<Output>>({
      {.name = "dir", .member = &Output::dir, .help = "Directory of all results", .fingerprint = false},
  });
};
static_assert(well_formed<Output>());

/// Calls `use.operator()<S>()` for each group, in the order of the documentation.
template <class Use>
void for_each_group(const Use& use) {
  use.template operator()<ModelSource>();
  use.template operator()<ChatChoice>();
  use.template operator()<DeviceRequest>();
  use.template operator()<Pages>();
  use.template operator()<Fetching>();
  use.template operator()<Packing>();
  use.template operator()<Training>();
  use.template operator()<Replay>();
  use.template operator()<LoopProbes>();
  use.template operator()<Ranks>();
  use.template operator()<ArmLabels>();
  use.template operator()<MergeSource>();
  use.template operator()<Merging>();
  use.template operator()<Quantizing>();
  use.template operator()<Exporting>();
  use.template operator()<Comparing>();
  use.template operator()<Sampling>();
  use.template operator()<Output>();
  use.template operator()<Base>();
  use.template operator()<Recall>();
  use.template operator()<Plan>();
  use.template operator()<Serving>();
  use.template operator()<Show>();
  use.template operator()<Console>();
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
