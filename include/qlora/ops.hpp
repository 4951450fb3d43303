// qlora/ops.hpp — the arguments of the op table: plain structs that network code fills and every backend reads.
// Pointers are in the backend's own memory. Letters as everywhere: T tokens, D dim, H heads, K kv heads, E head dim,
// F ffn, V vocab, R rank. In a linear group, K stands for its input width.
#pragma once

#include <cstdint>

#include "qlora/config.hpp"
#include "qlora/dtype.hpp"
#include "qlora/rng.hpp"

namespace qlora {
inline namespace v0 {

/// Buffers start on cache lines; every size in the memory plan is rounded up to them.
inline constexpr std::int64_t arena_alignment = 64;
[[nodiscard]] constexpr std::int64_t arena_bytes(std::int64_t bytes) {
  return (bytes + arena_alignment - 1) / arena_alignment * arena_alignment;
}

/// Queries in one tile of scores; a worker's scratch holds such tiles.
inline constexpr int attention_tile = 64;
/// Elements that one partial sum of the gradient norm covers.
inline constexpr std::int64_t norm_tile = 16384;
[[nodiscard]] constexpr std::int64_t norm_partials(std::int64_t count) { return (count + norm_tile - 1) / norm_tile; }

/// A piece of a document inside the tokens of a batch: attention stays inside, positions count from its first token.
struct Segment {
  int first = 0;
  int last = 0;  ///< one past the end
  friend constexpr bool operator==(const Segment&, const Segment&) = default;
};

/// Heads of one attention layer; its qkv rows hold H query heads, K key heads, K value heads of E each.
struct AttentionShape {
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  [[nodiscard]] constexpr int width() const { return (heads + 2 * kv_heads) * head_dim; }
};

/// One sequence that grows: its keys and values so far, to which `added` tokens were appended last.
template <class S>
struct CachedSequence {
  S* kv = nullptr;  ///< (capacity, 2KE): K key heads, then K value heads
  int length = 0;   ///< tokens in the cache, the new ones included
  int first = 0;    ///< row of its first new token in qkv and o
  int added = 0;    ///< new tokens, at positions length - added ... length - 1
};

/// A matrix in NF4 that somebody else owns. Exactly one of absmax and absmax8 is set.
struct Nf4View {
  const std::uint8_t* codes = nullptr;
  const float* absmax = nullptr;
  const std::uint8_t* absmax8 = nullptr;
  const float* nested = nullptr;
  float offset = 0.0F;
  DType state = DType::f32;  ///< what dequantized values are rounded to: the dtype that the weights came in
};

/// Where quantize writes. absmax is needed, as workspace, with double quantization too.
struct Nf4Target {
  std::uint8_t* codes = nullptr;
  float* absmax = nullptr;
  std::uint8_t* absmax8 = nullptr;  ///< null: no double quantization
  float* nested = nullptr;
  float* offset = nullptr;  ///< host memory
};

/// A frozen or trained weight matrix (rows, K): dense if set, else NF4.
template <class S>
struct Weight {
  int rows = 0;
  const S* dense = nullptr;
  Nf4View nf4{};
};

/// One linear layer of a group. a == nullptr: no adapter, or it is switched off.
template <class S>
struct LinearPart {
  Weight<S> weight{};
  const S* a = nullptr;  ///< (R,K)
  const S* b = nullptr;  ///< (N,R)
  S scale = S(0);        ///< alpha / r, or alpha / sqrt(r)
};
template <class S>
struct LinearGradient {
  S* a = nullptr;
  S* b = nullptr;
  S* weight = nullptr;  ///< null while the weight is frozen
};

/// Linear layers that read the same input: run-time sizes, and the workspaces that their products need.
template <class S>
struct LinearGroup {
  int in = 0;
  int rank = 0;
  int adapted = 0;  ///< parts that have an adapter; their A matrices are stacked in order
  Quant quant{};
  DropoutSite dropout{};
  S* weight_scratch = nullptr;   ///< (largest N, K); unused when all weights are dense
  S* input_scratch = nullptr;    ///< (T,K); unused without dropout
  S* adapter_scratch = nullptr;  ///< (rounding only) copies of A or s B as the GPU stores them
};

/// Workspace of linear_cross_entropy, all for `chunk` rows.
template <class S>
struct LossScratch {
  int chunk = 0;
  S* rows = nullptr;              ///< (chunk, D)
  S* grads = nullptr;             ///< (chunk, D)
  S* logits = nullptr;            ///< (chunk, V)
  std::int32_t* index = nullptr;  ///< (T) rows that have a target
};

/// One AdamW update.
struct AdamW {
  float lr = 0.0F;
  float beta1 = 0.9F;
  float beta2 = 0.999F;
  float eps = 1e-8F;
  float weight_decay = 0.0F;
  int step = 1;                 ///< counts from 1
  double gradient_scale = 1.0;  ///< the clip factor
};

}  // namespace v0
}  // namespace qlora
