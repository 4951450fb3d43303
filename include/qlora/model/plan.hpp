// qlora/model/plan.hpp — every byte of a training run by purpose, as constexpr arithmetic.
// On the CPU the arenas are allocated from these very numbers (a test holds them equal). For GPUs the plan is a
// formula: 16-bit activations, 32-bit adapters and moments, plus what a CUDA context and the libraries take.
#pragma once

#include <array>
#include <cstdint>
#include <numeric>
#include <string_view>

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
  trained_copy,    ///< 16-bit copy of the adapters for products
  gradients,
  moments,
  activations,       ///< kept for the backward pass, all layers
  layer_scratch,     ///< activations that are made again, one layer's worth
  backward_scratch,  ///< gradients of activations
  weight_scratch,    ///< the dequantized weight of the product at hand
  input_scratch,     ///< the dropped input of the product at hand
  attention_scratch,
  loss_scratch,  ///< a chunk of logits
  tables,        ///< rotary tables, indices, partial sums
  context,       ///< what the driver takes for an empty process
  library,       ///< workspaces of cuBLASLt and cuDNN
};
inline constexpr std::size_t purpose_count = 18;
inline constexpr std::array<std::string_view, purpose_count> purpose_names{"NF4 codes",
                                                                           "NF4 scales",
                                                                           "dense linears",
                                                                           "embedding, head, norms",
                                                                           "trained parameters",
                                                                           "16-bit copy",
                                                                           "gradients",
                                                                           "moments",
                                                                           "activations",
                                                                           "layer scratch",
                                                                           "backward scratch",
                                                                           "weight scratch",
                                                                           "input scratch",
                                                                           "attention scratch",
                                                                           "loss scratch",
                                                                           "tables",
                                                                           "context",
                                                                           "libraries"};

struct MemoryPlan {
  std::array<std::int64_t, purpose_count> bytes{};
  [[nodiscard]] constexpr std::int64_t& operator[](Purpose p) { return bytes[static_cast<std::size_t>(p)]; }
  [[nodiscard]] constexpr std::int64_t operator[](Purpose p) const { return bytes[static_cast<std::size_t>(p)]; }
  [[nodiscard]] constexpr std::int64_t total() const {
    return std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0});
  }
};

/// A training run, as far as memory is concerned.
struct Run {
  int batch = 1;                           ///< windows in one micro-batch
  int seq = 2048;                          ///< tokens in a window
  Recompute recompute = Recompute::block;  ///< for the first `recompute_layers` layers; the others keep everything
  int recompute_layers = -1;               ///< -1: all
  int loss_chunk = 512;                    ///< labelled rows whose logits exist at once
  bool dropout = true;
  bool keep_dequantized = false;  ///< frozen weights also dense: faster where memory is no concern
};

/// Bytes per element by kind, and what the machine takes besides.
struct Storage {
  int activation = 2;
  int statistic = 4;
  int frozen = 2;  ///< embedding, head, dense linears
  int trained = 4;
  int copy = 2;  ///< 0: products read the trained parameters themselves
  int moment = 4;
  int indices = 4;             ///< 32-bit numbers per token: ids, positions, targets, labelled rows
  int workers = 0;             ///< CPU: attention scratch for each
  bool rounding_copy = false;  ///< CPU with bf16 rounding: one rounded adapter matrix
  std::int64_t context = 0;
  std::int64_t library = 0;
};
/// bf16 on one GPU. Context: 500 MB measured for an empty process with cuBLAS loaded on an H200, rounded up; libraries:
/// the 32 MiB that NVIDIA's guide gives cuBLASLt on Hopper, twice, and as much again for fused attention.
inline constexpr Storage gpu_storage{.context = 550'000'000, .library = 128 * 1024 * 1024};

[[nodiscard]] constexpr MemoryPlan memory_plan(const Config& config, const Run& run, const Storage& store) {
  const Shape& s = config.shape;
  const bool full = config.trainable == Trainable::all;
  const Lora lora = full ? Lora{.rank = 0, .targets = Proj::none} : config.lora;
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
    if (!quantized || run.keep_dequantized)
      plan[Purpose::dense_linears] += s.layers * arena_bytes(count * store.frozen);
  }
  if (!full) {
    plan[Purpose::embedding_head] = (s.tied_embeddings ? 1 : 2) * arena_bytes(table * store.frozen) +
                                    (2 * s.layers + 1) * arena_bytes(std::int64_t{s.dim} * store.trained);
  }
  plan[Purpose::trained] = arena_bytes(trained.total() * store.trained);
  plan[Purpose::gradients] = arena_bytes(trained.total() * store.trained);
  plan[Purpose::moments] = 2 * arena_bytes(trained.total() * store.moment);
  plan[Purpose::trained_copy] = full ? 0 : arena_bytes(trained.total() * store.copy);
  plan[Purpose::activations] =
      (s.layers + 2) * arena_bytes(tokens * s.dim * store.activation) + arena_bytes(tokens * store.statistic);
  const int asked = run.recompute_layers < 0 ? s.layers : std::min(run.recompute_layers, s.layers);
  const int again = run.recompute == Recompute::none ? 0 : asked;
  for (const Buffer buffer : all_buffers) {
    const std::int64_t bytes =
        arena_bytes(elements(s, lora, tokens, buffer) * (is_statistic(buffer) ? store.statistic : store.activation));
    const bool kept = is_kept(buffer, run.recompute);
    plan[Purpose::activations] += (kept ? s.layers : s.layers - again) * bytes;
    if (!kept && again > 0) plan[Purpose::layer_scratch] += bytes;
  }
  plan[Purpose::backward_scratch] = 3 * arena_bytes(tokens * s.dim * store.activation) +  // stream, norm input, delta
                                    arena_bytes(tokens * group_out(s, Group::qkv) * store.activation) +  // qkv
                                    arena_bytes(tokens * s.heads * s.head_dim * store.activation) +      // o
                                    arena_bytes(tokens * 2 * s.ffn * store.activation) +                 // gate|up
                                    arena_bytes(tokens * s.ffn * store.activation) +                     // act
                                    arena_bytes(tokens * widest_xa(lora) * store.activation);            // xa
  const bool dequantizes = !full && config.quant.kind == QuantKind::nf4 && !run.keep_dequantized;
  plan[Purpose::weight_scratch] = (dequantizes ? arena_bytes(largest_matrix(s) * store.activation) : 0) +
                                  (store.rounding_copy ? arena_bytes(largest_adapter(s, lora) * store.activation) : 0);
  plan[Purpose::input_scratch] = run.dropout && !full ? arena_bytes(tokens * widest_in(s) * store.activation) : 0;
  plan[Purpose::attention_scratch] =
      store.workers * arena_bytes(std::int64_t{2} * attention_tile * run.seq * store.activation);
  plan[Purpose::loss_scratch] = 2 * arena_bytes(std::int64_t{run.loss_chunk} * s.dim * store.activation) +
                                arena_bytes(std::int64_t{run.loss_chunk} * s.vocab * store.activation) +
                                arena_bytes(tokens * store.statistic);
  plan[Purpose::tables] = 2 * arena_bytes(std::int64_t{run.seq} * (s.head_dim / 2) * store.statistic) +
                          store.indices * arena_bytes(tokens * 4) + arena_bytes(norm_partials(trained.total()) * 8);
  plan[Purpose::context] = store.context;
  plan[Purpose::library] = store.library;
  return plan;
}

/// The plan of a config for one GPU.
template <Config C>
requires ValidConfig<C>
[[nodiscard]] constexpr MemoryPlan memory_plan(const Run& run) { return memory_plan(C, run, gpu_storage); }

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

/// Whether a training run of this config fits into a GPU: static_assert(fits<mine>(gpu::a10g_24gb, {.batch = 2})).
template <Config C>
requires ValidConfig<C>
[[nodiscard]] constexpr bool fits(const Gpu& card, const Run& run) { return memory_plan<C>(run).total() <= card.bytes; }

}  // namespace v0
}  // namespace qlora
