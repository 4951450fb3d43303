// qlora/model/plan.hpp — every byte of a training run by purpose, as constexpr arithmetic.
// On the CPU the arenas are allocated from these very numbers (a test holds them equal). For GPUs the plan is a
// formula: 16-bit activations, 32-bit adapters and moments, plus what a CUDA context and the libraries take.
#pragma once

#include <array>
#include <cstdint>
#include <numeric>
#include <string>
#include <string_view>

#include "qlora/error.hpp"
#include "qlora/model/layout.hpp"
#include "qlora/nf4.hpp"
#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {

enum class Purpose : std::uint8_t {
  nf4_codes,
  nf4_scales,
  dense_linears,   ///< frozen linears that are not quantized, or their resident dequantized form
  embedding_head,  ///< frozen embedding, head and norms
  trained,         ///< adapters (or all weights), in full precision
  gradients,
  moments,
  activations,       ///< kept for the backward pass, all layers
  layer_scratch,     ///< activations that are made again, one layer's worth
  backward_scratch,  ///< gradients of the stream and of a group's input
  weight_scratch,    ///< the dequantized weight of the product at hand, and its adapters as products read them
  input_scratch,     ///< the dropped input of the product at hand
  attention_scratch,
  loss_scratch,  ///< a chunk of logits, as far as it does not fit the scratch of products; losses
  tables,        ///< rotary tables, indices, partial sums
  probing,       ///< a decoder beside the trainer: probes that are measured between two steps
  context,       ///< what the driver takes for an empty process
  library,       ///< workspaces of cuBLASLt and cuDNN
};
inline constexpr std::size_t purpose_count = 18;
inline constexpr std::array<std::string_view, purpose_count> purpose_names{
    "NF4 codes",          "NF4 scales",    "dense linears",     "embedding, head, norms", "trained parameters",
    "gradients",          "moments",       "activations",       "layer scratch",          "backward scratch",
    "weight scratch",     "input scratch", "attention scratch", "loss scratch",           "tables",
    "probes in the loop", "context",       "libraries"};

struct MemoryPlan {
  std::array<std::int64_t, purpose_count> bytes{};
  [[nodiscard]] constexpr std::int64_t& operator[](Purpose p) { return bytes[static_cast<std::size_t>(p)]; }
  [[nodiscard]] constexpr std::int64_t operator[](Purpose p) const { return bytes[static_cast<std::size_t>(p)]; }
  [[nodiscard]] constexpr std::int64_t total() const {
    return std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0});
  }
};

/// How much can be decoded at once.
struct DecodeRoom {
  int sequences = 1;        ///< that grow side by side
  int length = 2048;        ///< tokens in one sequence, prompt included
  int step_tokens = 512;    ///< new tokens of all sequences in one call; longer prompts go in pieces
  bool all_logits = false;  ///< room for logits of every token of a call

  /// Rows of logits that exist at once.
  [[nodiscard]] constexpr std::int64_t logit_rows() const { return all_logits ? step_tokens : sequences; }
};

/// A training run, as far as memory is concerned.
struct Run {
  int batch = 1;                           ///< windows in one micro-batch
  int seq = 2048;                          ///< tokens in a window
  Recompute recompute = Recompute::block;  ///< for the first `recompute_layers` layers; the others keep everything
  int recompute_layers = -1;               ///< -1: all
  int loss_chunk = 512;                    ///< labelled rows whose logits exist at once
  bool dropout = true;
  bool keep_dequantized = false;       ///< frozen weights also dense: faster where memory is no concern
  bool adamw8bit = false;              ///< AdamW's moments in 8 bits
  DecodeRoom probing{.sequences = 0};  ///< of probes that are measured in the loop; no sequences: none are
};

/// Bytes per element by kind, and what the machine takes besides.
struct Storage {
  int activation = 2;
  int statistic = 4;
  int frozen = 2;  ///< embedding, head, dense linears
  int trained = 4;
  int moment = 4;
  bool widens = true;          ///< products read [W | s B] of a whole group, and a 16-bit copy of its A
  bool rounding_copy = false;  ///< CPU with bf16 rounding: one rounded adapter matrix
  int workers = 0;             ///< CPU: attention scratch for each; 0: one sum for each token and head
  int logit_gradient = 2;      ///< 0: made in the place of the logits
  std::int64_t context = 0;
  std::int64_t library = 0;
};
/// bf16 on one GPU. Context: 500 MB measured for an empty process with cuBLAS loaded on an H200, rounded up; libraries:
/// the 32 MiB that NVIDIA's guide gives cuBLASLt on Hopper, the ring that small host data passes through, and what fused
/// attention asks for.
inline constexpr Storage gpu_storage{.context = 550'000'000, .library = 128 * 1024 * 1024};

/// How a backend stores things; its own arenas are planned with it. `workers` as the backend says.
template <class B>
[[nodiscard]] constexpr Storage storage_of(int workers) {
  constexpr int act = sizeof(typename B::Act);
  constexpr int param = sizeof(typename B::Param);
  return {.activation = act,
          .statistic = param,
          .frozen = act,
          .trained = param,
          .moment = param,
          .widens = B::widens,
          .rounding_copy = B::rounds,
          .workers = workers,
          .logit_gradient = act == param ? 0 : act};
}

/// Elements of the weight and adapter workspaces that all products share.
struct WorkSizes {
  std::int64_t weight = 0;
  std::int64_t adapter = 0;
};
[[nodiscard]] constexpr WorkSizes work_sizes(const Shape& s, const Lora& lora, bool widens, bool rounds,
                                             bool dequantizes) {
  WorkSizes sizes;
  if (dequantizes) sizes.weight = widens ? largest_wide_group(s, lora) : largest_matrix(s);
  if (widens) {
    sizes.adapter = largest_stacked_a(s, lora);
  } else if (rounds) {
    sizes.adapter = largest_adapter(s, lora);
  }
  return sizes;
}
/// Workspace of the loss: rows, their gradients, logits and theirs.
[[nodiscard]] constexpr std::int64_t loss_bytes(const Shape& s, std::int64_t chunk, const Storage& store) {
  return 2 * arena_bytes(chunk * s.dim * store.activation) + arena_bytes(chunk * s.vocab * store.statistic) +
         arena_bytes(chunk * s.vocab * store.logit_gradient);
}
[[nodiscard]] constexpr std::int64_t attention_scratch_bytes(const Shape& s, std::int64_t tokens, int seq,
                                                             const Storage& store) {
  if (store.workers == 0) return arena_bytes(tokens * s.heads * store.statistic);
  return store.workers * arena_bytes(std::int64_t{2} * attention_tile * seq * store.activation);
}

/// Scratch of attention over cached keys: a tile of scores for each worker.
[[nodiscard]] constexpr std::int64_t decode_attention_bytes(const DecodeRoom& room, const Storage& store) {
  return store.workers * arena_bytes(std::int64_t{attention_tile} * room.length * store.activation);
}
/// A decoder's arena: keys and values of all its sequences, and one call's activations.
[[nodiscard]] constexpr std::int64_t decode_bytes(const Config& config, const DecodeRoom& room, const Storage& store) {
  const Shape& s = config.shape;
  const bool full = config.trainable == Trainable::all;
  const Lora lora = code_of(config).lora;
  const bool dequantizes = !full && config.quant.kind == QuantKind::nf4;
  const WorkSizes work = work_sizes(s, lora, store.widens, store.rounding_copy, dequantizes);
  const auto acts = [&](std::int64_t count) { return arena_bytes(count * store.activation); };
  const auto stats = [&](std::int64_t count) { return arena_bytes(count * store.statistic); };
  const std::int64_t t = room.step_tokens;
  const std::int64_t cache = std::int64_t{2} * s.kv_heads * s.head_dim * room.sequences * room.length;
  const std::int64_t normed = std::max(elements(s, lora, t, Buffer::norm1), elements(s, lora, t, Buffer::norm2));
  return s.layers * acts(cache) + 2 * acts(t * s.dim) + acts(normed) + acts(t * group_out(s, Group::qkv)) +
         acts(elements(s, lora, t, Buffer::o)) + acts(t * 2 * s.ffn) + acts(elements(s, lora, t, Buffer::act)) +
         acts(std::int64_t{room.sequences} * s.dim) + acts(work.weight) + acts(work.adapter) +
         decode_attention_bytes(room, store) + stats(t) + stats(room.logit_rows() * s.vocab) +
         2 * stats(std::int64_t{room.length} * (s.head_dim / 2));
}

[[nodiscard]] constexpr MemoryPlan memory_plan(const Config& config, const Run& run, const Storage& store) {
  const Shape& s = config.shape;
  const bool full = config.trainable == Trainable::all;
  const Lora lora = code_of(config).lora;
  const std::int64_t tokens = std::int64_t{run.batch} * run.seq;
  const std::int64_t table = std::int64_t{s.vocab} * s.dim;
  const TrainedLayout trained{s, lora, config.trainable};
  MemoryPlan plan;
  for (const Proj one : all_projections) {
    const std::int64_t count = trained.matrix(one);
    if (full) continue;
    const bool quantized = config.quant.kind == QuantKind::nf4;
    if (quantized) {
      const Nf4Layout layout = Nf4Layout::of(count, config.quant);
      plan[Purpose::nf4_codes] += s.layers * arena_bytes(layout.code_bytes);
      plan[Purpose::nf4_scales] +=
          s.layers * (layout.nested > 0 ? arena_bytes(layout.blocks) + arena_bytes(4 * layout.nested)
                                        : arena_bytes(4 * layout.blocks));
    }
    if (!quantized || (run.keep_dequantized && !store.widens)) {
      plan[Purpose::dense_linears] += s.layers * arena_bytes(count * store.frozen);
    }
  }
  if (!full && config.quant.kind == QuantKind::nf4 && run.keep_dequantized && store.widens) {
    for (const Group g : all_groups) {
      const std::int64_t count = std::int64_t{group_out(s, g)} * (group_in(s, g) + adapter_width(lora, g));
      plan[Purpose::dense_linears] += s.layers * arena_bytes(count * store.frozen);
    }
  }
  if (!full) {
    plan[Purpose::embedding_head] = (s.tied_embeddings ? 1 : 2) * arena_bytes(table * store.frozen) +
                                    (2 * s.layers + 1) * arena_bytes(std::int64_t{s.dim} * store.trained);
  }
  plan[Purpose::trained] = arena_bytes(trained.total() * store.trained);
  plan[Purpose::gradients] = arena_bytes(trained.total() * store.trained);
  plan[Purpose::moments] = 2 * (run.adamw8bit ? arena_bytes(moment_code_words(trained.total()) * 4) +
                                                    arena_bytes(moment_blocks(trained.total()) * 4)
                                              : arena_bytes(trained.total() * store.moment));
  plan[Purpose::activations] =
      (s.layers + 1) * arena_bytes(tokens * s.dim * store.activation) + arena_bytes(tokens * store.statistic);
  const int asked = run.recompute_layers < 0 ? s.layers : std::min(run.recompute_layers, s.layers);
  const int again = run.recompute == Recompute::none ? 0 : asked;
  for (const Buffer buffer : all_buffers) {
    const std::int64_t bytes =
        arena_bytes(elements(s, lora, tokens, buffer) * (is_statistic(buffer) ? store.statistic : store.activation));
    const bool kept = is_kept(buffer, run.recompute);
    plan[Purpose::activations] += (kept ? s.layers : s.layers - again) * bytes;
    if (!kept && again > 0) plan[Purpose::layer_scratch] += bytes;
  }
  plan[Purpose::backward_scratch] = arena_bytes(tokens * s.dim * store.activation) +
                                    arena_bytes(tokens * input_gradient_row(s, lora) * store.activation);
  const bool dequantizes = !full && config.quant.kind == QuantKind::nf4 && !run.keep_dequantized;
  const WorkSizes work = work_sizes(s, lora, store.widens, store.rounding_copy, dequantizes);
  plan[Purpose::weight_scratch] =
      arena_bytes(work.weight * store.activation) + arena_bytes(work.adapter * store.activation);
  plan[Purpose::input_scratch] =
      run.dropout && !full ? arena_bytes(tokens * dropped_row(s, lora, store.widens) * store.activation) : 0;
  plan[Purpose::attention_scratch] = attention_scratch_bytes(s, tokens, run.seq, store);
  // the loss runs while no product of a block does: it works in their scratch, and takes what is missing there
  const std::int64_t products = plan[Purpose::weight_scratch] + plan[Purpose::input_scratch];
  plan[Purpose::loss_scratch] = std::max<std::int64_t>(0, loss_bytes(s, run.loss_chunk, store) - products) +
                                arena_bytes(tokens * store.statistic);
  plan[Purpose::tables] = 2 * arena_bytes(std::int64_t{run.seq} * (s.head_dim / 2) * store.statistic) +
                          arena_bytes(norm_partials(trained.total()) * 8) +
                          arena_bytes(static_cast<std::int64_t>(sizeof(StepScalars)));
  if (run.probing.sequences > 0) plan[Purpose::probing] = decode_bytes(config, run.probing, store);
  plan[Purpose::context] = store.context;
  plan[Purpose::library] = store.library;
  return plan;
}

/// The plan of a config for one GPU. A config with dynamic numbers has one when they are known: memory_plan(config, run,
/// gpu_storage).
template <Config C>
requires StaticConfig<C>
[[nodiscard]] constexpr MemoryPlan memory_plan(const Run& run) { return memory_plan(C, run, gpu_storage); }

namespace detail {
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
}  // namespace detail

/// The run with the least recomputation whose plan fits into `budget` bytes: nothing; else the cheap buffers, in as few
/// layers as it takes; else whole blocks, in as few layers as it takes. Throws Error with what is needed when not even
/// all blocks will do.
[[nodiscard]] constexpr Run choose_recompute(const Config& config, Run run, std::int64_t budget,
                                             const Storage& store = gpu_storage) {
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
  detail::refuse_run(run, memory_plan(config, run, store).total(), budget);
}

/// What a GPU offers: nvidia-smi's memory.total.
struct Gpu {
  std::string_view name;
  std::int64_t bytes = 0;
};
namespace gpu {
inline constexpr std::int64_t mib = 1024 * 1024;
inline constexpr Gpu t4_16gb{"T4 16 GB", 15360 * mib};
inline constexpr Gpu rtx3090_24gb{"RTX 3090 24 GB", 24576 * mib};
inline constexpr Gpu rtx4090_24gb{"RTX 4090 24 GB", 24564 * mib};
inline constexpr Gpu l4_24gb{"L4 24 GB", 23034 * mib};
inline constexpr Gpu a10g_24gb{"A10G 24 GB", 23028 * mib};
inline constexpr Gpu a100_40gb{"A100 40 GB", 40960 * mib};
inline constexpr Gpu l40s_48gb{"L40S 48 GB", 46068 * mib};
inline constexpr Gpu a100_80gb{"A100 80 GB", 81920 * mib};
inline constexpr Gpu h100_80gb{"H100 80 GB", 81559 * mib};
inline constexpr Gpu h200_141gb{"H200 141 GB", 143771 * mib};
inline constexpr std::array all{t4_16gb,   rtx3090_24gb, rtx4090_24gb, l4_24gb,   a10g_24gb,
                                a100_40gb, l40s_48gb,    a100_80gb,    h100_80gb, h200_141gb};
}  // namespace gpu

/// Whether a training run of a config fits into a GPU.
[[nodiscard]] constexpr bool fits(const Config& config, const Gpu& card, const Run& run) {
  return memory_plan(config, run, gpu_storage).total() <= card.bytes;
}
/// The same at compile time: static_assert(fits<mine>(gpu::a10g_24gb, {.batch = 2})).
template <Config C>
requires StaticConfig<C>
[[nodiscard]] constexpr bool fits(const Gpu& card, const Run& run) { return fits(C, card, run); }

}  // namespace v0
}  // namespace qlora
