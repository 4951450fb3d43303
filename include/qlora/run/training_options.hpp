// qlora/run/training_options.hpp — the options of training: plain structs whose initialisers are the defaults, and
// tables that say everything else about each member. A new hyper-parameter is a member, a row and, in
// trainer_options(), a line.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/config.hpp"
#include "qlora/run/option.hpp"
#include "qlora/train/schedule.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// What is trained.
enum class Method : std::uint8_t { qlora, full };
template <>
inline constexpr std::array names_of<Method>{std::string_view("qlora"), std::string_view("full")};

template <>
inline constexpr std::array names_of<Schedule>{std::string_view("linear"), std::string_view("cosine"),
                                               std::string_view("constant")};

/// What A and B begin as: A Kaiming-uniform and B zero, or what quantization lost (io/residual_init.hpp).
enum class AdapterInit : std::uint8_t { kaiming, loftq };
template <>
inline constexpr std::array names_of<AdapterInit>{std::string_view("kaiming"), std::string_view("loftq")};

template <>
inline constexpr std::array names_of<Products>{std::string_view("bf16"), std::string_view("fp8")};

/// How a user writes the projections that get adapters.
inline constexpr std::array<std::pair<Proj, std::string_view>, 7> target_names{{{Proj::q, "q"},
                                                                                {Proj::k, "k"},
                                                                                {Proj::v, "v"},
                                                                                {Proj::o, "o"},
                                                                                {Proj::gate, "gate"},
                                                                                {Proj::up, "up"},
                                                                                {Proj::down, "down"}}};

/// Which activations the backward pass computes again; automatic: on a GPU as few as its memory allows, on the CPU
/// none.
enum class Recomputation : std::uint8_t { automatic, none, cheap, block };
template <>
inline constexpr std::array names_of<Recomputation>{std::string_view("auto"), std::string_view("none"),
                                                    std::string_view("cheap"), std::string_view("block")};

/// "q,v" for a set of projections, and "all" for all of them.
[[nodiscard]] inline std::string targets_text(Proj targets) {
  if (targets == Proj::all) return "all";
  std::string text;
  for (const auto& [proj, name] : target_names) {
    if (contains(targets, proj)) text.append(text.empty() ? "" : ",").append(name);
  }
  return text;
}
/// The set of such a text, in any order; Proj::none for a text of another form.
[[nodiscard]] inline Proj parse_targets(std::string_view text) {
  if (text == "all") return Proj::all;
  Proj targets = Proj::none;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::string_view word = text.substr(at, end - at);
    const auto found =
        std::find_if(target_names.begin(), target_names.end(), [&](const auto& known) { return known.second == word; });
    if (found == target_names.end()) return Proj::none;
    targets = targets | found->first;
    at = end + 1;
  }
  return targets;
}

/// Ranges keep typing errors out; they are no tuning advice.
struct Training {
  Method method = Method::qlora;
  int rank = 64;
  Proj targets = Proj::all;
  double alpha = 16;
  bool rslora = false;
  bool dora = false;
  AdapterInit init = AdapterInit::kaiming;
  double dropout = 0.1;
  double lr = 2e-4;
  double lora_plus_ratio = 1;
  Schedule schedule = Schedule::linear;
  double warmup = 0;
  int epochs = 20;
  int batch = 2;
  int accumulate = 1;
  double weight_decay = 0;
  double max_grad_norm = 1;
  bool adamw8bit = false;
  Products products = Products::bf16;
  std::int64_t seed = 42;
  int checkpoint_every = 50;
  Recomputation recompute = Recomputation::automatic;
};

template <>
struct Table<Training> {
  static constexpr std::string_view title = "Training";
  static constexpr std::string_view section = "train";
  static constexpr std::string_view verbs = "train";
  static constexpr auto options = std::to_array<Option<Training>>({
      {.name = "method",
       .member = choice<&Training::method>,
       .help = "What is trained: adapters on the 4-bit model (qlora), or all weights, on the CPU (full)"},
      {.name = "rank", .member = &Training::rank, .help = "Adapter rank", .range = {1, 1024}, .adapters_only = true},
      {.name = "targets",
       .member = Parsed<Training>{"\"all\", or names of q, k, v, o, gate, up and down with commas between",
                                  [](const Training& from) { return targets_text(from.targets); },
                                  [](Training& into, std::string_view text) {
                                    const Proj targets = parse_targets(text);
                                    if (targets != Proj::none) into.targets = targets;
                                    return targets != Proj::none;
                                  }},
       .help = "Projections with adapters: all, or some of q,k,v,o,gate,up,down",
       .omit_default = true,
       .adapters_only = true},
      {.name = "alpha",
       .member = &Training::alpha,
       .help = "Adapter scale is alpha / rank",
       .range = {1e-6, 1e6},
       .adapters_only = true},
      {.name = "rslora",
       .member = &Training::rslora,
       .help = "Adapter scale is alpha / sqrt(rank)",
       .adapters_only = true},
      {.name = "dora",
       .member = &Training::dora,
       .help = "DoRA: lengths of the rows of weights are trained apart from their directions",
       .omit_default = true,
       .adapters_only = true},
      {.name = "init",
       .member = choice<&Training::init>,
       .help = "What adapters begin as: A random and B zero (kaiming), or what quantization lost, as far as their rank "
               "reaches (loftq)",
       .omit_default = true,
       .adapters_only = true},
      {.name = "dropout",
       .member = &Training::dropout,
       .help = "Dropout rate on the adapters' input",
       .range = {0, 0.99},
       .adapters_only = true},
      {.name = "lr", .member = &Training::lr, .help = "Peak learning rate", .range = {0, 10}},
      {.name = "lora_plus_ratio",
       .member = &Training::lora_plus_ratio,
       .help = "LoRA+: the learning rate of B over that of A; 16 is usual",
       .range = {1e-6, 1e6},
       .omit_default = true,
       .adapters_only = true},
      {.name = "schedule", .member = choice<&Training::schedule>, .help = "Learning rate schedule"},
      {.name = "warmup",
       .member = &Training::warmup,
       .help = "Warmup steps; below 1: a fraction of all steps",
       .range = {0, 1e9},
       .unit = "steps"},
      {.name = "epochs", .member = &Training::epochs, .help = "Training epochs", .range = {1, 1e6}},
      {.name = "batch", .member = &Training::batch, .help = "Micro-batch size", .range = {1, 4096}, .unit = "windows"},
      {.name = "accumulate",
       .member = &Training::accumulate,
       .help = "Gradient accumulation: micro-batches in an optimizer step",
       .range = {1, 65536}},
      {.name = "weight_decay", .member = &Training::weight_decay, .help = "AdamW weight decay", .range = {0, 1}},
      {.name = "max_grad_norm",
       .member = &Training::max_grad_norm,
       .help = "Gradient clipping norm; 0: no clipping",
       .range = {0, 1e9}},
      {.name = "adamw8bit",
       .member = &Training::adamw8bit,
       .help = "AdamW moments in 8 bits: a quarter of their memory",
       .adapters_only = true,
       .old_name = "moments8"},
      {.name = "products",
       .member = choice<&Training::products>,
       .help =
           "Products with the frozen weights: bf16 (float on the CPU), or fp8, faster and less exact, on a GPU from "
           "Hopper on; the CPU rounds likewise",
       .omit_default = true,
       .adapters_only = true},
      {.name = "seed",
       .member = &Training::seed,
       .help = "Seed of data order, adapter initialization and dropout",
       .range = {0, 9e15}},
      {.name = "checkpoint_every",
       .member = &Training::checkpoint_every,
       .help = "Checkpoint interval",
       .range = {1, 1e9},
       .unit = "steps",
       .fingerprint = false},
      {.name = "recompute",
       .member = choice<&Training::recompute>,
       .help = "Activations that the backward pass recomputes to save memory; auto: on a GPU as few as fit, on the "
               "CPU none",
       .fingerprint = false},
  });
};
static_assert(well_formed<Training>());

/// Documents of the model's own world, mixed into a data set against forgetting.
struct Replay {
  std::filesystem::path replay;
  std::int64_t replay_limit = 0;
  friend bool operator==(const Replay&, const Replay&) = default;
};

template <>
struct Table<Replay> {
  static constexpr std::string_view title = "Replay";
  static constexpr std::string_view section = "train";
  static constexpr std::string_view verbs = "pack";
  static constexpr auto options = std::to_array<Option<Replay>>({
      {.name = "replay",
       .member = &Replay::replay,
       .help = "Documents that the model already knows, mixed in against forgetting (.jsonl)",
       .fingerprint = false},
      {.name = "replay_limit",
       .member = &Replay::replay_limit,
       .help = "Use the first N replay documents; 0: all",
       .range = {0, 1e9},
       .unit = "documents"},
  });
};
static_assert(well_formed<Replay>());

/// Probes that are measured during training.
struct LoopProbes {
  std::vector<std::filesystem::path> probes;
  std::vector<std::string> guard;
  int every = 50;
};

template <>
struct Table<LoopProbes> {
  static constexpr std::string_view title = "Probes during training";
  static constexpr std::string_view section = "train";
  static constexpr std::string_view verbs = "train";
  static constexpr auto options = std::to_array<Option<LoopProbes>>({
      {.name = "probes",
       .member = &LoopProbes::probes,
       .help = "Probe files measured during training, on the model and its base (.jsonl)",
       .fingerprint = false},
      {.name = "guard",
       .member = &LoopProbes::guard,
       .help = "Requirements that end training when one fails, and restore the last checkpoint that met all: "
               "retention.lower>=0.95"},
      {.name = "every", .member = &LoopProbes::every, .help = "Probe interval", .range = {1, 1e9}, .unit = "steps"},
  });
};
static_assert(well_formed<LoopProbes>());

/// The trainer's options for a run of `total` steps on windows of `seq` tokens. A template, so that options need no
/// network:
/// TrainOptions is qlora::TrainOptions.
template <class TrainOptions>
[[nodiscard]] TrainOptions trainer_options(const Training& t, int total, int seq) {
  TrainOptions o;
  o.rank = t.rank;
  if (t.method == Method::qlora) o.targets = t.targets;
  o.alpha = static_cast<float>(t.alpha);
  o.rank_stabilized = t.rslora;
  o.dora = t.dora;
  o.dropout = static_cast<float>(t.dropout);
  o.lr = static_cast<float>(t.lr);
  if (t.lora_plus_ratio != 1) {
    auto& b = o.groups.emplace_back();
    b.part = "lora_B";
    b.lr_scale = static_cast<float>(t.lora_plus_ratio);
  }
  if (t.lora_plus_ratio != 1 && t.dora) {  // as peft, which takes all vectors for parameters of B's kind
    auto& magnitudes = o.groups.emplace_back();
    magnitudes.part = "lora_magnitude";
    magnitudes.lr_scale = static_cast<float>(t.lora_plus_ratio);
  }
  o.schedule = t.schedule;
  o.warmup_steps = static_cast<int>(t.warmup < 1 ? std::ceil(t.warmup * total) : t.warmup);
  o.total_steps = total;
  o.weight_decay = static_cast<float>(t.weight_decay);
  o.max_grad_norm = static_cast<float>(t.max_grad_norm);
  o.adamw8bit = t.adamw8bit;
  o.products = t.products;
  o.seed = static_cast<std::uint64_t>(t.seed);
  o.batch = t.batch;
  o.seq = seq;
  return o;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
