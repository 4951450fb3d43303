// qlora/config.hpp — what is known about a model when it is compiled: its shape, its adapters, its quantization.
// A Config is a constexpr value that a program writes down once. What changes the generated code is kept apart
// (code_of) from what is a mere number at run time (alpha, dropout, eps, rope_theta, layer count, prompt form).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

namespace qlora {
inline namespace v0 {

/// Shape of a LLaMA-architecture model. Letters as in every shape comment: V vocab, D dim, H heads, K kv heads,
/// E head_dim, F ffn. Weights are (out, in) row-major, as Hugging Face stores them.
struct Shape {
  int vocab = 0;
  int dim = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;
  bool tied_embeddings = false;  ///< the head is the embedding table

  friend constexpr bool operator==(const Shape&, const Shape&) = default;
};

/// The seven linear projections of a decoder block, as bits, so that a set of them is a value too.
enum class Proj : std::uint8_t {
  none = 0,
  q = 1,
  k = 2,
  v = 4,
  o = 8,
  gate = 16,
  up = 32,
  down = 64,
  attention = q | k | v | o,
  mlp = gate | up | down,
  all = attention | mlp,
};
[[nodiscard]] constexpr Proj operator|(Proj a, Proj b) {
  return static_cast<Proj>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}
[[nodiscard]] constexpr bool contains(Proj set, Proj one) {
  return (static_cast<unsigned>(set) & static_cast<unsigned>(one)) == static_cast<unsigned>(one);
}

/// The projections in the order in which everything here lists them, and their Hugging Face names.
inline constexpr std::array<Proj, 7> all_projections{Proj::q,    Proj::k,  Proj::v,   Proj::o,
                                                     Proj::gate, Proj::up, Proj::down};
/// "self_attn.q_proj" and so on: what stands between "model.layers.N." and ".weight".
[[nodiscard]] constexpr std::string_view name_of(Proj one) {
  switch (one) {
    case Proj::q:
      return "self_attn.q_proj";
    case Proj::k:
      return "self_attn.k_proj";
    case Proj::v:
      return "self_attn.v_proj";
    case Proj::o:
      return "self_attn.o_proj";
    case Proj::gate:
      return "mlp.gate_proj";
    case Proj::up:
      return "mlp.up_proj";
    case Proj::down:
      return "mlp.down_proj";
    default:
      return "";
  }
}

/// Low-rank adapters: y += alpha/r * B A x on each target. The rank is a cap: any rank up to it, per layer and
/// projection, is chosen at run time and padded with zeros that stay zero.
struct Lora {
  int rank = 64;
  Proj targets = Proj::all;
  friend constexpr bool operator==(const Lora&, const Lora&) = default;
};

enum class QuantKind : std::uint8_t { none, nf4 };

/// How frozen linear weights are stored. NF4 blocks run over the flattened (out, in) matrix, as in bitsandbytes.
struct Quant {
  QuantKind kind = QuantKind::nf4;
  int block = 64;            ///< elements that share one absmax
  bool double_quant = true;  ///< absmax itself in 8 bits
  int nested_block = 256;    ///< absmax values that share one nested absmax
  friend constexpr bool operator==(const Quant&, const Quant&) = default;
};
inline constexpr Quant unquantized{.kind = QuantKind::none};

/// Completion models continue text; chat models take turns in LLaMA-2's chat form and know when to stop.
enum class Form : std::uint8_t { completion, chat };

/// What training changes: the adapters (QLoRA), or every weight (full fine-tuning, for small models).
enum class Trainable : std::uint8_t { adapters, all };

/// A model and how it is trained, as one compile-time value. Structural, no arrays, so that it can be a template
/// argument; rope_theta and norm_eps are defaults that a model directory may override at run time.
struct Config {
  Shape shape;
  Lora lora{};
  Quant quant{};
  Form form = Form::completion;
  Trainable trainable = Trainable::adapters;
  float rope_theta = 10000.0F;
  float norm_eps = 1e-5F;

  [[nodiscard]] constexpr Config with(Lora value) const {
    Config copy = *this;
    copy.lora = value;
    return copy;
  }
  [[nodiscard]] constexpr Config with(Quant value) const {
    Config copy = *this;
    copy.quant = value;
    return copy;
  }
  [[nodiscard]] constexpr Config with(Form value) const {
    Config copy = *this;
    copy.form = value;
    return copy;
  }
  [[nodiscard]] constexpr Config with(Trainable value) const {
    Config copy = *this;
    copy.trainable = value;
    if (value == Trainable::all) copy.quant = unquantized;  // what is trained in full is not frozen in 4 bits
    return copy;
  }
  friend constexpr bool operator==(const Config&, const Config&) = default;
};

/// Rows (out) of one projection's weight.
[[nodiscard]] constexpr int rows_of(const Shape& s, Proj one) {
  switch (one) {
    case Proj::q:
      return s.heads * s.head_dim;
    case Proj::k:
    case Proj::v:
      return s.kv_heads * s.head_dim;
    case Proj::gate:
    case Proj::up:
      return s.ffn;
    default:
      return s.dim;  // o, down
  }
}
/// Columns (in) of one projection's weight.
[[nodiscard]] constexpr int cols_of(const Shape& s, Proj one) {
  switch (one) {
    case Proj::o:
      return s.heads * s.head_dim;
    case Proj::down:
      return s.ffn;
    default:
      return s.dim;
  }
}

/// Weights in the seven projections of all layers.
[[nodiscard]] constexpr std::int64_t linear_parameters(const Shape& s) {
  std::int64_t sum = 0;
  for (const Proj one : all_projections) sum += std::int64_t{rows_of(s, one)} * cols_of(s, one);
  return sum * s.layers;
}
/// All weights of the model; a tied head counts once.
[[nodiscard]] constexpr std::int64_t parameters(const Shape& s) {
  const std::int64_t table = std::int64_t{s.vocab} * s.dim;
  return linear_parameters(s) + table * (s.tied_embeddings ? 1 : 2) + std::int64_t{s.dim} * (2 * s.layers + 1);
}
/// Weights in the adapters at the rank cap: r (in + out) for each target.
[[nodiscard]] constexpr std::int64_t adapter_parameters(const Shape& s, const Lora& lora) {
  std::int64_t sum = 0;
  for (const Proj one : all_projections) {
    if (contains(lora.targets, one)) sum += std::int64_t{lora.rank} * (rows_of(s, one) + cols_of(s, one));
  }
  return sum * s.layers;
}

// --- what a config must satisfy; each name is the sentence a user reads when it does not --------------------------

template <Config C>
concept ShapeIsPositive = C.shape.vocab > 0 && C.shape.dim > 0 && C.shape.layers > 0 && C.shape.heads > 0 &&
                          C.shape.kv_heads > 0 && C.shape.head_dim > 0 && C.shape.ffn > 0;
template <Config C>
concept KvHeadsDivideHeads = C.shape.heads % C.shape.kv_heads == 0;
template <Config C>
concept HeadDimIsEven = C.shape.head_dim % 2 == 0;  // rotary embedding turns pairs
template <Config C>
concept RankFitsEveryTarget = C.trainable == Trainable::all ||
                              (C.lora.rank > 0 &&
                               C.lora.rank <= std::min({C.shape.dim, C.shape.ffn, C.shape.heads* C.shape.head_dim}));
template <Config C>
concept AdaptersHaveTargets = C.trainable == Trainable::all || C.lora.targets != Proj::none;
template <Config C>
concept FullTrainingIsUnquantized = C.trainable == Trainable::adapters || C.quant.kind == QuantKind::none;
template <Config C>
concept QuantBlocksAreKnown = C.quant.kind == QuantKind::none || (C.quant.block == 64 && C.quant.nested_block == 256);
/// A Config that Model, Trainer and Generator accept.
template <Config C>
concept ValidConfig = ShapeIsPositive<C> && KvHeadsDivideHeads<C> && HeadDimIsEven<C> && RankFitsEveryTarget<C> &&
    AdaptersHaveTargets<C> && FullTrainingIsUnquantized<C> && QuantBlocksAreKnown<C>;

/// The part of a Config that changes generated code. Configs with equal Code share every compute function.
struct Code {
  Shape shape;  ///< layers is 0: the layer count is a run-time loop bound
  Lora lora;
  Quant quant;
  Trainable trainable;
  friend constexpr bool operator==(const Code&, const Code&) = default;
};
[[nodiscard]] constexpr Code code_of(const Config& config) {
  Code code{config.shape, config.lora, config.quant, config.trainable};
  code.shape.layers = 0;
  if (config.trainable == Trainable::all) code.lora = Lora{.rank = 0, .targets = Proj::none};
  return code;
}

}  // namespace v0
}  // namespace qlora
