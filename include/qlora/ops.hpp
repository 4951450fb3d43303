// qlora/ops.hpp — the arguments of the ops: plain structs that network code fills and every backend reads.
// Pointers are in the backend's own memory. Letters as everywhere: T tokens, D dim, H heads, K kv heads, E head dim,
// F ffn, V vocab, R rank. In a linear group, K stands for its input width.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "qlora/config.hpp"
#include "qlora/dtype.hpp"
#include "qlora/error.hpp"
#include "qlora/rng.hpp"

namespace qlora {
inline namespace v0 {

/// Buffers start on cache lines; every size in the memory plan is rounded up to them.
inline constexpr std::int64_t arena_alignment = 64;
/// `bytes` rounded up to a multiple of arena_alignment.
[[nodiscard]] constexpr std::int64_t arena_bytes(std::int64_t bytes) {
  return (bytes + arena_alignment - 1) / arena_alignment * arena_alignment;
}

/// Queries in one tile of scores; a worker's scratch holds such tiles.
inline constexpr int attention_tile = 64;
/// Elements that one partial sum of the gradient norm covers.
inline constexpr std::int64_t norm_tile = 16384;
/// Partial sums that cover `count` elements.
[[nodiscard]] constexpr std::int64_t norm_partials(std::int64_t count) { return (count + norm_tile - 1) / norm_tile; }

/// A piece of a document inside the tokens of a batch: attention stays inside, positions count from its first token.
struct Segment {
  int first = 0;  ///< row of its first token
  int last = 0;   ///< one past the end
  friend constexpr bool operator==(const Segment&, const Segment&) = default;
};

/// Heads of one attention layer; its qkv rows hold H query heads, K key heads, K value heads of E each.
struct AttentionShape {
  int heads = 0;     ///< H, query heads
  int kv_heads = 0;  ///< K, key and value heads
  int head_dim = 0;  ///< E, numbers of a head
  /// Numbers of a qkv row: (H + 2K) E.
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

/// How an id is drawn from a row of logits: of the ids below `among` the top_k likeliest, of these the fewest likeliest
/// with a share of top_p, of these all with at least min_p of the likeliest's probability.
struct DrawRow {
  float temperature = 0.0F;  ///< divides the logits; 0: the likeliest id
  float top_p = 1.0F;        ///< 1: all
  float min_p = 0.0F;        ///< 0: all
  int top_k = 0;             ///< 0: all
  int among = 0;             ///< the ids are below it
  std::uint32_t random = 0;  ///< of 2^32
};

/// What the ops of a decoding step depend on, besides what is in the arrays that they are given.
struct Repetition {
  /// Rows with adapters of their own.
  struct Range {
    int first = 0;                   ///< row
    int count = 0;                   ///< rows
    const void* adapters = nullptr;  ///< where their values are
    friend constexpr bool operator==(const Range&, const Range&) = default;
  };
  int tokens = 0;                   ///< new ones, one in each sequence
  int longest = 0;                  ///< tokens in the longest sequence, the new one included
  int among = 0;                    ///< ids that the likeliest is picked from; 0: none is; -1: ids are drawn
  const void* adapters = nullptr;   ///< where their values are; null: none
  std::span<const Range> ranges{};  ///< where not all rows have the same adapters
  std::span<const float> scales{};  ///< of all adapters
};

/// A non-owning view of a matrix in NF4. Exactly one of absmax and absmax8 is set.
struct Nf4View {
  const std::uint8_t* codes = nullptr;  ///< two a byte, element 2j in the high nibble
  const float* absmax = nullptr;        ///< one a block; null with double quantization
  /// 8-bit codes of absmax - offset, one a block; null without double quantization
  const std::uint8_t* absmax8 = nullptr;
  const float* nested = nullptr;  ///< one scale for 256 codes of absmax8; null without double quantization
  float offset = 0.0F;            ///< mean of all absmax; 0 without double quantization
  DType state = DType::f32;       ///< what dequantized values are rounded to: the dtype that the weights came in
  float largest =
      0.0F;  ///< a bound of all absmax: the largest, or with double quantization that of `nested` + |offset|
};

/// Where quantize writes. absmax is needed, as workspace, with double quantization too.
struct Nf4Target {
  std::uint8_t* codes = nullptr;    ///< (elements / 2, rounded up)
  float* absmax = nullptr;          ///< (blocks)
  std::uint8_t* absmax8 = nullptr;  ///< null: no double quantization
  float* nested = nullptr;          ///< (blocks / 256, rounded up); null without double quantization
  float* offset = nullptr;          ///< host memory
};

/// A frozen or trained weight matrix (rows, K): dense if set, else NF4. Act is what activations are stored in.
template <class Act>
struct Weight {
  int rows = 0;                ///< N, outputs of the layer
  const Act* dense = nullptr;  ///< (N,K); null: the weight is in `nf4`
  int stride = 0;              ///< between rows of `dense`
  Nf4View nf4{};               ///< read where `dense` is null
};

/// One linear layer of a group. a == nullptr: no adapter, or it is switched off. Param is what is trained.
template <class Act, class Param = Act>
struct LinearPart {
  Weight<Act> weight{};      ///< frozen, or trained in full training
  const Param* a = nullptr;  ///< (R,K)
  const Param* b = nullptr;  ///< (N,R)
  Param scale = Param(0);    ///< alpha / r, or alpha / sqrt(r)
  /// (N), of DoRA: 1 + strength (row_factors - 1) times the product with W; B has its factors in it. Null: the product
  /// as it is.
  const Param* row_factors = nullptr;
  Param strength = Param(1);  ///< how strong the adapter is; in `scale` already
  /// (N), of trained DoRA: 1 / |W + s B A| of each row. B is without factors then: row_factors times the sum of both
  /// products, at full strength.
  const Param* inverse_lengths = nullptr;
};
/// Throws Error (usage) unless adapters with trained DoRA are at full strength.
template <class Param>
void expect_whole(Param strength) {
  if (strength == Param(1)) return;
  throw Error("adapters with DoRA that are trained have no other strength than 1; attach a copy to use it weaker",
              ErrorKind::usage);
}
/// Where the lengths of rows of W + s B A go, of adapters with DoRA that are trained.
template <class Param>
struct RowLengths {
  Param* magnitude = nullptr;        ///< (N), trained
  bool begins = false;               ///< the magnitudes are to become the lengths
  Param* inverse_lengths = nullptr;  ///< (N); 0 for a row of zeros
  Param* row_factors = nullptr;      ///< (N), magnitude over length; 1 for a row of zeros
};
/// Adapters of neighbouring rows of a pass, for each part of a group; rows that are in no such range have none.
template <class Param>
struct RowAdapters {
  /// One part's; a == nullptr: none. As in LinearPart.
  struct Part {
    const Param* a = nullptr;                ///< (R,K)
    const Param* b = nullptr;                ///< (N,R)
    Param scale = Param(0);                  ///< times the product
    const Param* row_factors = nullptr;      ///< (N), of DoRA
    Param strength = Param(1);               ///< with row_factors
    const Param* inverse_lengths = nullptr;  ///< (N), of trained DoRA
  };
  int first = 0;                ///< row
  int count = 0;                ///< rows
  std::array<Part, 3> parts{};  ///< in the order of the group's
};
/// Ranges that one pass may have.
inline constexpr int most_row_adapters = 8;
/// Where the gradients of one linear layer are added.
template <class Param>
struct LinearGradient {
  Param* a = nullptr;          ///< (R,K); unused without an adapter
  Param* b = nullptr;          ///< (N,R); unused without an adapter
  Param* weight = nullptr;     ///< null while the weight is frozen
  Param* magnitude = nullptr;  ///< (N), of trained DoRA
};

/// Linear layers that read the same input: run-time sizes, and the workspaces that their products need.
/// Rows of the input hold XA behind X, so that [X | XA] [W | s B]^T is one product; rows of its gradient likewise.
template <class Act>
struct LinearGroup {
  int in = 0;                          ///< K, columns of the input without XA
  int rank = 0;                        ///< R, columns of XA for one adapter
  int adapted = 0;                     ///< parts that have an adapter; their A matrices are stacked in order
  Quant quant{};                       ///< how the frozen weights are stored
  DropoutSite dropout{};               ///< threshold 0: no dropout
  Products products = Products::bf16;  ///< of the frozen weights
  /// Dequantized weights as products read them; unused when all weights are dense. With fp8 products the rows that they
  /// are multiplied with are there too: the backend's workspace_bytes has the size.
  Act* weight_scratch = nullptr;
  Act* input_scratch = nullptr;    ///< (T,K), the dropped input where products read one; unused without dropout
  Act* adapter_scratch = nullptr;  ///< copies of adapter matrices as products read them; unused where they read params
  Act* output_scratch = nullptr;   ///< (T, tallest part), for gradients of trained DoRA and for lengths of rows

  /// Columns of XA for all adapters of the group.
  [[nodiscard]] constexpr int adapter_width() const { return adapted * rank; }
};

/// A micro-batch of T tokens: arrays in backend memory, segments in the host's.
struct TokenBatch {
  int tokens = 0;                           ///< T, rows of every array but `labelled`
  const std::int32_t* ids = nullptr;        ///< (T), each in [0, V)
  const std::int32_t* positions = nullptr;  ///< inside the document piece: row t's piece begins at t - positions[t]
  const std::int32_t* ends = nullptr;       ///< one past the last row of the document piece
  const std::int32_t* targets = nullptr;    ///< the id that row t predicts, -1 for none
  const std::int32_t* labelled = nullptr;   ///< the rows that predict something, in order
  int labelled_count = 0;                   ///< entries of `labelled`
  int longest = 0;                          ///< tokens in the longest document piece
  std::span<const Segment> segments{};      ///< the document pieces, in order; they cover all T rows
};

/// Which kernels linear layers and the head may use. The order of a row's sums is the kernel's, and the fastest kernel
/// is another one for other numbers of rows.
enum class RowOrder : std::uint8_t {
  any,     ///< the fastest for the number of rows: a row's last bits can depend on how many there are
  newest,  ///< one kernel for the newest tokens of sequences: a row has the same bits beside any others (GPU)
  prompt,  ///< the same for two or more tokens of each sequence
};

/// Where in the network an op runs; what a NaN or an infinity is reported with.
enum class Site : std::uint8_t {
  none,
  input_norm,
  attention,
  post_attention_norm,
  feed_forward,
  final_norm,
  loss,
  final_norm_gradient,
  feed_forward_gradient,
  post_attention_norm_gradient,
  attention_gradient,
  input_norm_gradient,
};
/// The site as an error message names it: "the norm after attention", "the gradient of attention".
[[nodiscard]] constexpr std::string_view name_of(Site site) {
  constexpr std::array<std::string_view, 12> names{"nowhere",
                                                   "the input norm",
                                                   "attention",
                                                   "the norm after attention",
                                                   "the feed-forward block",
                                                   "the final norm",
                                                   "the loss",
                                                   "the gradient of the final norm",
                                                   "the gradient of the feed-forward block",
                                                   "the gradient of the norm after attention",
                                                   "the gradient of attention",
                                                   "the gradient of the input norm"};
  return names[static_cast<std::size_t>(site)];
}
/// Layer and site in one number that is never 0; layer -1 is outside the blocks.
[[nodiscard]] constexpr std::uint32_t place_code(int layer, Site site) {
  return (static_cast<std::uint32_t>(layer + 1) << 8) | static_cast<std::uint32_t>(site);
}
/// The layer in a place_code; -1: outside the blocks.
[[nodiscard]] constexpr int place_layer(std::uint32_t code) { return static_cast<int>(code >> 8) - 1; }
/// The site in a place_code.
[[nodiscard]] constexpr Site place_site(std::uint32_t code) { return static_cast<Site>(code & 0xFFU); }

/// What a step leaves behind besides parameters, in backend memory.
struct StepScalars {
  double loss = 0.0;        ///< sum over labelled rows
  double grad_norm = 0.0;   ///< before clipping
  double clip = 1.0;        ///< factor on gradients
  std::uint32_t fault = 0;  ///< the first place that met a NaN or an infinity; 0: none
};

/// Workspace of cross_entropy, all for `chunk` rows.
template <class Act, class Param = Act>
struct LossScratch {
  int chunk = 0;               ///< rows at a time
  Act* rows = nullptr;         ///< (chunk, D)
  Act* grads = nullptr;        ///< (chunk, D)
  Param* logits = nullptr;     ///< (chunk, V)
  Act* logit_grads = nullptr;  ///< (chunk, V), may be logits where both types are one
};

/// One AdamW update.
struct AdamW {
  float lr = 0.0F;            ///< learning rate of this step
  float beta1 = 0.9F;         ///< share of the first moment that a step keeps
  float beta2 = 0.999F;       ///< share of the second moment that a step keeps
  float eps = 1e-8F;          ///< added to the square root of the second moment
  float weight_decay = 0.0F;  ///< times lr: the share of a parameter that a step takes away
  int step = 1;               ///< counts from 1
};

/// Elements that share one absmax in Moments8bit; bitsandbytes' block for optimizer states.
inline constexpr int moment_block = 256;
/// One moment of Adam in 8 bits. All zero at the start.
struct Moments8bit {
  std::uint8_t* codes = nullptr;  ///< (count): dynamic8 for the first moment, dynamic8_unsigned for the second
  float* absmax = nullptr;        ///< (count / moment_block, rounded up)
};
/// Bytes of the two arrays; codes fill whole 32-bit words.
[[nodiscard]] constexpr std::int64_t moment_code_words(std::int64_t count) { return (count + 3) / 4; }
/// Elements of Moments8bit::absmax for `count` parameters.
[[nodiscard]] constexpr std::int64_t moment_blocks(std::int64_t count) {
  return (count + moment_block - 1) / moment_block;
}

}  // namespace v0
}  // namespace qlora
