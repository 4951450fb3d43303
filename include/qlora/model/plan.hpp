// qlora/model/plan.hpp — every byte of a training run by purpose, as constexpr arithmetic.
// Arenas are allocated from these very numbers (tests hold them equal). What differs between backends, element sizes
// and workspaces, is asked of Storage.
#pragma once

#include <array>
#include <cstdint>
#include <numeric>
#include <string>
#include <string_view>

#include "qlora/comm.hpp"
#include "qlora/error.hpp"
#include "qlora/model/layout.hpp"
#include "qlora/nf4.hpp"
#include "qlora/workspace.hpp"

namespace qlora {
inline namespace v0 {

/// What memory is for.
enum class Purpose : std::uint8_t {
  nf4_codes,          ///< of the frozen projections
  nf4_scales,         ///< of their blocks
  dense_linears,      ///< frozen linears that are not quantized, or their dequantized form that is kept
  embedding_head,     ///< frozen embedding, head and norms
  trained,            ///< adapters (or all weights), in full precision
  gradients,          ///< of what is trained, and of a micro-batch, or of other ranks, before they are added
  moments,            ///< of AdamW, two a number; of several ranks each has its share
  activations,        ///< kept for the backward pass, all layers
  layer_scratch,      ///< activations that are made again, one layer's worth
  backward_scratch,   ///< gradients of the stream and of a group's input
  weight_scratch,     ///< the dequantized weight of the product at hand, and its adapters as products read them
  input_scratch,      ///< the dropped input of the product at hand
  attention_scratch,  ///< scores and partial sums of attention
  loss_scratch,       ///< a chunk of logits, as far as it does not fit the scratch of products; losses
  tables,             ///< rotary tables, indices, partial sums
  probing,            ///< a decoder beside the trainer: probes that are measured between two steps
  context,            ///< what the driver takes for an empty process
  library,            ///< workspaces of libraries
};
/// Number of values of Purpose.
inline constexpr std::size_t purpose_count = 18;
/// The purposes in words, in the order of their values.
inline constexpr std::array<std::string_view, purpose_count> purpose_names{
    "NF4 codes",          "NF4 scales",    "dense linears",     "embedding, head, norms", "trained parameters",
    "gradients",          "moments",       "activations",       "layer scratch",          "backward scratch",
    "weight scratch",     "input scratch", "attention scratch", "loss scratch",           "tables",
    "probes in the loop", "context",       "libraries"};

/// Bytes of a run by purpose. Arenas are allocated from it.
struct MemoryPlan {
  std::array<std::int64_t, purpose_count> bytes{};  ///< by the number of the purpose
  /// Bytes for one purpose.
  [[nodiscard]] constexpr std::int64_t& operator[](Purpose p) { return bytes[static_cast<std::size_t>(p)]; }
  /// Bytes for one purpose.
  [[nodiscard]] constexpr std::int64_t operator[](Purpose p) const { return bytes[static_cast<std::size_t>(p)]; }
  /// Bytes of all purposes.
  [[nodiscard]] constexpr std::int64_t total() const {
    return std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0});
  }
};

/// How much can be decoded at once.
struct DecodeLimits {
  int sequences = 1;        ///< that grow side by side
  int length = 2048;        ///< tokens in one sequence, prompt included
  int step_tokens = 512;    ///< new tokens of all sequences in one call; longer prompts go in pieces
  bool all_logits = false;  ///< room for logits of every token of a call
  bool one_order = false;   ///< a sequence has the same bits beside any others, see RowOrder; step_tokens of 3 or more

  /// Rows of logits that exist at once.
  [[nodiscard]] constexpr std::int64_t logit_rows() const { return all_logits ? step_tokens : sequences; }
  /// Whether all limits are the same.
  friend constexpr bool operator==(const DecodeLimits&, const DecodeLimits&) = default;
};

/// A training run, as far as memory is concerned. The defaults are those of TrainOptions.
struct Run {
  int batch = 2;                           ///< windows in one micro-batch
  int seq = 2048;                          ///< tokens in a window
  Recompute recompute = Recompute::block;  ///< for the first `recompute_layers` layers; the others keep everything
  int recompute_layers = -1;               ///< -1: all
  int loss_chunk = 512;                    ///< labelled rows whose logits exist at once
  bool dropout = true;                     ///< whether the trainer drops adapter inputs
  bool keep_dequantized = false;           ///< frozen weights also dense: faster where memory is no concern
  bool adamw8bit = false;                  ///< AdamW's moments in 8 bits
  bool dora = false;                       ///< adapters have magnitudes
  Products products = Products::bf16;      ///< of frozen weights
  int ranks = 1;                           ///< processes that share a step
  DecodeLimits probing{.sequences = 0};    ///< of probes that are measured in the loop; no sequences: none are
  /// Whether all numbers are the same.
  friend constexpr bool operator==(const Run&, const Run&) = default;
};

/// What of a model a workspace serves.
[[nodiscard]] constexpr WorkspaceNeeds workspace_needs(const Config& config) {
  const Shape& s = config.shape;
  const Lora lora = code_of(config).lora;
  WorkspaceNeeds needs{.rank = lora.rank,
                       .heads = s.heads,
                       .dim = s.dim,
                       .vocab = s.vocab,
                       .dequantizes = config.trainable == Trainable::adapters && config.quant.kind == QuantKind::nf4};
  for (std::size_t i = 0; i < all_groups.size(); ++i) {
    const Group g = all_groups[i];
    needs.groups[i] = {.in = group_in(s, g), .out = group_out(s, g), .adapters = adapter_width(lora, g)};
    for (int p = 0; p < part_count(g); ++p) {
      needs.groups[i].tallest = std::max(needs.groups[i].tallest, rows_of(s, part(g, p)));
    }
  }
  return needs;
}
/// The same in a training run, and in a decoder.
[[nodiscard]] constexpr WorkspaceNeeds workspace_needs(const Config& config, const Run& run, int workers) {
  WorkspaceNeeds needs = workspace_needs(config);
  needs.tokens = std::int64_t{run.batch} * run.seq;
  needs.longest = run.seq;
  if (needs.dequantizes) needs.products = run.products;
  needs.dequantizes = needs.dequantizes && !run.keep_dequantized;
  needs.dropout = run.dropout && config.trainable == Trainable::adapters;
  needs.dora = run.dora && config.trainable == Trainable::adapters;
  needs.loss_chunk = run.loss_chunk;
  needs.workers = workers;
  return needs;
}
/// The workspace of a decoder; `workers` as the backend says.
[[nodiscard]] constexpr WorkspaceNeeds workspace_needs(const Config& config, const DecodeLimits& limits, int workers) {
  WorkspaceNeeds needs = workspace_needs(config);
  needs.tokens = limits.step_tokens;
  needs.longest = limits.length;
  needs.cached = true;
  needs.layers = config.shape.layers;
  needs.sequences = limits.sequences;
  needs.workers = workers;
  return needs;
}

/// A decoder's arena: keys and values of all its sequences, and one call's activations.
[[nodiscard]] constexpr std::int64_t decode_bytes(const Config& config, const DecodeLimits& limits,
                                                  const Storage& store) {
  const Shape& s = config.shape;
  const Lora lora = code_of(config).lora;
  const auto acts = [&](std::int64_t count) { return arena_bytes(count * store.activation); };
  const auto stats = [&](std::int64_t count) { return arena_bytes(count * store.parameter); };
  const std::int64_t t = limits.step_tokens;
  const std::int64_t cache = std::int64_t{2} * s.kv_heads * s.head_dim * limits.sequences * limits.length;
  const std::int64_t normed = std::max(elements(s, lora, t, Buffer::norm1), elements(s, lora, t, Buffer::norm2));
  return s.layers * acts(cache) + 2 * acts(t * s.dim) + acts(normed) + acts(t * group_out(s, Group::qkv)) +
         acts(elements(s, lora, t, Buffer::o)) + acts(t * 2 * s.ffn) + acts(elements(s, lora, t, Buffer::act)) +
         acts(std::int64_t{limits.sequences} * s.dim) +
         store.workspace(workspace_needs(config, limits, store.workers)).total() + stats(t) +
         stats(limits.logit_rows() * s.vocab) + arena_bytes(std::int64_t{4} * limits.sequences) +
         2 * stats(std::int64_t{limits.length} * (s.head_dim / 2));
}

/// Bytes of the biases of one layer: those of queries, keys and values one after another, and that of the output.
[[nodiscard]] constexpr std::int64_t bias_bytes(const Shape& s, std::int64_t element) {
  const std::int64_t qkv = std::int64_t{group_out(s, Group::qkv)} * element;
  return (s.qkv_bias ? arena_bytes(qkv) : 0) + (s.o_bias ? arena_bytes(std::int64_t{s.dim} * element) : 0);
}

/// How the sum of gradients and AdamW's state are cut over ranks: in whole tiles of the norm, which are whole blocks of
/// moments in 8 bits, so that each rank computes on its part the very bits that one alone would.
[[nodiscard]] constexpr Shards trained_shards(const TrainedLayout& trained, int ranks) {
  static_assert(norm_tile % moment_block == 0 && moment_block % 4 == 0);
  return {.count = trained.total(), .ranks = ranks, .unit = norm_tile};
}
/// Numbers of a shard that a rank sends another at a time. There is room for 2^25 numbers of all others, 128 MiB: few
/// messages, since each of them starts a transfer and is waited for, and little beside the moments that ranks save.
[[nodiscard]] constexpr std::int64_t message_numbers(const Shards& shards) {
  constexpr std::int64_t room = std::int64_t{1} << 25;
  const std::int64_t most = room / std::max(shards.ranks - 1, 1) / norm_tile * norm_tile;
  return std::min(shards.largest(), std::max(most, norm_tile));
}
/// Micro-batches of a step that one of several ranks may have; the loss of each is kept until the end of the step.
inline constexpr int most_micro_batches = 1024;
/// Bytes of the step's scalars, and of several ranks those of each micro-batch.
[[nodiscard]] constexpr std::int64_t step_scalars_bytes(int ranks) {
  constexpr auto one = static_cast<std::int64_t>(sizeof(StepScalars));
  return arena_bytes(one) + (ranks > 1 ? arena_bytes(most_micro_batches * one) : 0);
}

/// What training takes with every number of the config known; `store` is the backend's storage_of.
[[nodiscard]] constexpr MemoryPlan memory_plan(const Config& config, const Run& run, const Storage& store) {
  const Shape& s = config.shape;
  const bool full = config.trainable == Trainable::all;
  const Lora lora = code_of(config).lora;
  const std::int64_t tokens = std::int64_t{run.batch} * run.seq;
  const std::int64_t table = std::int64_t{s.vocab} * s.dim;
  const TrainedLayout trained{s, lora, config.trainable, run.dora && !full};
  MemoryPlan plan;
  for (const Proj proj : all_projections) {
    const std::int64_t count = trained.matrix(proj);
    if (full) continue;
    const bool quantized = config.quant.kind == QuantKind::nf4;
    if (quantized) {
      const Nf4Layout layout = Nf4Layout::of(count, config.quant);
      plan[Purpose::nf4_codes] += s.layers * arena_bytes(layout.code_bytes);
      plan[Purpose::nf4_scales] +=
          s.layers * (layout.nested > 0 ? arena_bytes(layout.blocks) + arena_bytes(4 * layout.nested)
                                        : arena_bytes(4 * layout.blocks));
    }
    if (!quantized || (run.keep_dequantized && !store.wide_groups)) {
      plan[Purpose::dense_linears] += s.layers * arena_bytes(count * store.activation);
    }
  }
  if (!full && config.quant.kind == QuantKind::nf4 && run.keep_dequantized && store.wide_groups) {
    for (const Group g : all_groups) {
      const std::int64_t count = std::int64_t{group_out(s, g)} * (group_in(s, g) + adapter_width(lora, g));
      plan[Purpose::dense_linears] += s.layers * arena_bytes(count * store.activation);
    }
  }
  if (!full) {
    plan[Purpose::embedding_head] = (s.tied_embeddings ? 1 : 2) * arena_bytes(table * store.activation) +
                                    (2 * s.layers + 1) * arena_bytes(std::int64_t{s.dim} * store.parameter) +
                                    s.layers * bias_bytes(s, store.parameter);
  }
  plan[Purpose::trained] = arena_bytes(trained.total() * store.parameter);
  if (trained.dora) {  // factors and lengths of rows
    plan[Purpose::trained] += arena_bytes(2 * s.layers * trained.magnitudes(Proj::none) * store.parameter);
  }
  const Shards shards = trained_shards(trained, run.ranks);
  const std::int64_t own = shards.largest();
  plan[Purpose::gradients] = arena_bytes(trained.total() * store.parameter);
  if (run.ranks == 1) {
    plan[Purpose::gradients] += arena_bytes(trained.addend_size() * store.parameter);
  } else {
    plan[Purpose::gradients] +=
        arena_bytes(own * store.parameter) + (run.ranks - 1) * arena_bytes(message_numbers(shards) * store.parameter);
  }
  plan[Purpose::moments] =
      2 * (run.adamw8bit ? arena_bytes(moment_code_words(own) * 4) + arena_bytes(moment_blocks(own) * 4)
                         : arena_bytes(own * store.parameter));
  plan[Purpose::activations] =
      (s.layers + 1) * arena_bytes(tokens * s.dim * store.activation) + arena_bytes(tokens * store.parameter);
  const int asked = run.recompute_layers < 0 ? s.layers : std::min(run.recompute_layers, s.layers);
  const int again = run.recompute == Recompute::none ? 0 : asked;
  for (const Buffer buffer : all_buffers) {
    const std::int64_t bytes =
        arena_bytes(elements(s, lora, tokens, buffer) * (is_statistic(buffer) ? store.parameter : store.activation));
    const bool kept = is_kept(buffer, run.recompute);
    plan[Purpose::activations] += (kept ? s.layers : s.layers - again) * bytes;
    if (!kept && again > 0) plan[Purpose::layer_scratch] += bytes;
  }
  plan[Purpose::backward_scratch] = arena_bytes(tokens * s.dim * store.activation) +
                                    arena_bytes(tokens * input_gradient_row(s, lora) * store.activation);
  const WorkspaceBytes work = store.workspace(workspace_needs(config, run, store.workers));
  plan[Purpose::weight_scratch] = work.weight + work.adapter;
  plan[Purpose::input_scratch] = work.input + work.output;
  plan[Purpose::attention_scratch] = work.attention;
  // the loss works in the scratch of products, and takes what is missing there
  plan[Purpose::loss_scratch] =
      std::max<std::int64_t>(0, work.loss() - work.products()) + arena_bytes(tokens * store.parameter);
  plan[Purpose::tables] = 2 * arena_bytes(std::int64_t{run.seq} * (s.head_dim / 2) * store.parameter) +
                          arena_bytes(norm_partials(trained.total()) * 8) + step_scalars_bytes(run.ranks);
  if (run.probing.sequences > 0) plan[Purpose::probing] = decode_bytes(config, run.probing, store);
  plan[Purpose::context] = store.context;
  plan[Purpose::library] = store.library;
  return plan;
}

/// Throws Error (usage) where adapters with DoRA are asked for and cannot be trained.
[[gnu::cold]] inline void expect_dora(bool asked, bool adapters) {
  if (!asked || adapters) return;
  throw Error("DoRA (TrainOptions::dora) is for adapters; this config trains every weight", ErrorKind::usage);
}

/// Throws Error (usage) where fp8 products are asked for and cannot be made.
[[gnu::cold]] inline void expect_products(Products asked, const Config& config, bool dora, bool resident) {
  if (asked == Products::bf16) return;
  const bool frozen = config.trainable == Trainable::adapters && config.quant.kind == QuantKind::nf4;
  const std::string_view why = !frozen    ? "they are for frozen weights in NF4, which this training does not have"
                               : dora     ? "DoRA measures the rows of weights in 16 bits; leave out one of the two"
                               : resident ? "weights that are kept dequantized are in bf16; leave out one of the two"
                                          : "";
  if (!why.empty())
    throw Error(concat("products in fp8 (--products, TrainOptions::products): ", why), ErrorKind::usage);
  for (const Group g : all_groups) {
    if (group_in(config.shape, g) % 64 == 0 && group_out(config.shape, g) % 16 == 0) continue;
    throw Error(
        concat("products in fp8 (--products, TrainOptions::products) need layers whose inputs are a multiple of "
               "64 numbers and whose outputs are one of 16; here is one with ",
               group_in(config.shape, g), " and ", group_out(config.shape, g)),
        ErrorKind::usage);
  }
}

/// Throws Error (resource): a run takes `needed` bytes, and there are `budget`.
[[noreturn]] inline void refuse_run(const Run& run, std::int64_t needed, std::int64_t budget) {
  const auto gb = [](std::int64_t bytes) { return static_cast<double>(bytes / 1'000'000) / 1000.0; };
  const bool blocks = run.recompute == Recompute::block;
  std::string how;
  if (run.probing.sequences > 0) how = concat(", with room for probes of up to ", run.probing.length, " tokens");
  if (blocks) how += ", even when every block is computed again in the backward pass";
  throw Error(concat("training on ", run.batch, " x ", run.seq, " tokens takes ", gb(needed), " GB", how,
                     "; there are ", gb(budget), " GB. A smaller batch", blocks ? "" : ", more that is computed again",
                     " or shorter windows need less"),
              ErrorKind::resource);
}

/// The run with the least recomputation whose plan fits into `budget` bytes: nothing; else the cheap buffers, in as few
/// layers as it takes; else whole blocks, in as few layers as it takes. Throws Error with what is needed when not even
/// all blocks will do.
[[nodiscard]] constexpr Run choose_recompute(const Config& config, Run run, std::int64_t budget, const Storage& store) {
  const auto fits = [&](Recompute policy, int layers) {
    run.recompute = policy;
    run.recompute_layers = layers;
    return memory_plan(config, run, store).total() <= budget;
  };
  if (fits(Recompute::none, 0)) return run;
  for (const Recompute policy : {Recompute::cheap, Recompute::block}) {
    int enough = config.shape.layers;
    if (!fits(policy, enough)) continue;
    // One layer more never takes more memory: scratch for one layer replaces what the first kept.
    for (int few = 0; enough - few > 1;) {
      const int middle = few + (enough - few) / 2;
      (fits(policy, middle) ? enough : few) = middle;
    }
    (void)fits(policy, enough);
    return run;
  }
  refuse_run(run, memory_plan(config, run, store).total(), budget);
}

}  // namespace v0
}  // namespace qlora
