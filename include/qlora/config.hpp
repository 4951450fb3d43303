// qlora/config.hpp — what is known about a model when it is compiled: its shape, its adapters, its quantization.
// A Config is a constexpr value that a program writes down once. What changes the generated code is kept apart
// (code_of) from what is a mere number at run time (alpha, dropout, eps, rope_theta, layer count, prompt form).
// A number of the shape, the rank or the targets may be `dynamic`: it is then read from the model directory or the
// options when the program runs, and its checks run then.
#pragma once

#include "qlora/compiler.hpp"
#include "qlora/rope.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

namespace qlora {
inline namespace v0 {

/// Stands for a number, or a set of projections, that is not known when the program is compiled.
struct Dynamic;

/// Shape of a LLaMA-architecture model. Letters as in every shape comment: V vocab, D dim, H heads, K kv heads,
/// E head_dim, F ffn. Weights are (out, in) row-major, as Hugging Face stores them.
struct Shape {
  int vocab = 0;                 ///< V: rows of the embedding table
  int dim = 0;                   ///< D: width of the residual stream
  int layers = 0;                ///< number of decoder blocks
  int heads = 0;                 ///< H: query heads
  int kv_heads = 0;              ///< K: key and value heads; H is a multiple of it
  int head_dim = 0;              ///< E: numbers of a head, even
  int ffn = 0;                   ///< F: width of the feed-forward block
  bool tied_embeddings = false;  ///< the head is the embedding table
  bool qkv_bias = false;         ///< queries, keys and values have a bias
  bool o_bias = false;           ///< and so has the output of attention

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

/// Stands in place of a number or a set of projections: no shape and no rank has its values.
struct Dynamic {
  /// As a number it is -1.
  constexpr operator int() const { return -1; }  // NOLINT: stands in place of a number
  /// As a set it is 128, a bit that no projection has.
  constexpr operator Proj() const { return static_cast<Proj>(128); }
};
/// The value to write where a Config leaves a number or the targets open.
inline constexpr Dynamic dynamic{};
/// Whether the number is left open until the program runs.
[[nodiscard]] constexpr bool is_dynamic(int number) { return number == int{dynamic}; }
/// Whether the set is left open until the program runs.
[[nodiscard]] constexpr bool is_dynamic(Proj set) { return set == Proj{dynamic}; }

/// A shape of which nothing is known when the program is compiled.
inline constexpr Shape dynamic_shape{.vocab = dynamic,
                                     .dim = dynamic,
                                     .layers = dynamic,
                                     .heads = dynamic,
                                     .kv_heads = dynamic,
                                     .head_dim = dynamic,
                                     .ffn = dynamic};
/// Whether at least one number of the shape is left open; tied_embeddings never is.
[[nodiscard]] constexpr bool is_dynamic(const Shape& s) {
  return is_dynamic(s.vocab) || is_dynamic(s.dim) || is_dynamic(s.layers) || is_dynamic(s.heads) ||
         is_dynamic(s.kv_heads) || is_dynamic(s.head_dim) || is_dynamic(s.ffn);
}
/// The union of two sets.
[[nodiscard]] constexpr Proj operator|(Proj a, Proj b) {
  return static_cast<Proj>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}
/// Whether every projection of `proj` is in `set`.
[[nodiscard]] constexpr bool contains(Proj set, Proj proj) {
  return (static_cast<unsigned>(set) & static_cast<unsigned>(proj)) == static_cast<unsigned>(proj);
}

/// The projections in the order in which everything here lists them, and their Hugging Face names.
inline constexpr std::array<Proj, 7> all_projections{Proj::q,    Proj::k,  Proj::v,   Proj::o,
                                                     Proj::gate, Proj::up, Proj::down};
/// "self_attn.q_proj" and so on: what stands between "model.layers.N." and ".weight".
[[nodiscard]] constexpr std::string_view name_of(Proj proj) {
  switch (proj) {
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

/// The names of a set, in the order of all_projections: "self_attn.q_proj, mlp.up_proj".
[[nodiscard, gnu::cold]] inline std::string names_of(Proj set) {
  std::string names;
  for (const Proj proj : all_projections) {
    if (contains(set, proj)) names.append(names.empty() ? "" : ", ").append(name_of(proj));
  }
  return names;
}

/// Low-rank adapters: y += alpha/r * B A x on each target. The rank is a cap: any rank up to it, per layer and
/// projection, is chosen at run time and padded with zeros that stay zero.
struct Lora {
  int rank = 64;             ///< the cap: 1 to the narrowest input or output of a target
  Proj targets = Proj::all;  ///< projections that get an adapter
  friend constexpr bool operator==(const Lora&, const Lora&) = default;
};

/// Rank and targets that are chosen when the program runs.
inline constexpr Lora dynamic_lora{.rank = dynamic, .targets = dynamic};
/// Whether rank or targets are left open.
[[nodiscard]] constexpr bool is_dynamic(const Lora& lora) { return is_dynamic(lora.rank) || is_dynamic(lora.targets); }
/// What B A is multiplied by: alpha / r, or alpha / sqrt(r) when rank-stabilised (arXiv 2312.03732).
[[nodiscard]] inline float lora_scale(float alpha, int rank, bool rank_stabilized) {
  const auto r = static_cast<float>(rank);
  return alpha / (rank_stabilized ? std::sqrt(r) : r);
}

/// How weights are stored: as they are, or in NF4.
enum class QuantKind : std::uint8_t { none, nf4 };

/// How frozen linear weights are stored. NF4 blocks run over the flattened (out, in) matrix, as in bitsandbytes.
struct Quant {
  QuantKind kind = QuantKind::nf4;  ///< none: the other members have no meaning
  int block = 64;                   ///< elements that share one absmax
  bool double_quant = true;         ///< absmax itself in 8 bits
  int nested_block = 256;           ///< absmax values that share one nested absmax
  friend constexpr bool operator==(const Quant&, const Quant&) = default;
};
/// Weights stay as they are; for full training, and for adapters on weights in 16 or 32 bits.
inline constexpr Quant unquantized{.kind = QuantKind::none};

/// Completion models continue text; chat models take turns in LLaMA-2's chat form and know when to stop.
enum class Form : std::uint8_t { completion, chat };

/// What training changes: the adapters (QLoRA), or every weight (full fine-tuning, for small models).
enum class Trainable : std::uint8_t { adapters, all };
/// What products with the frozen weights of linear layers are computed in. The products of adapters are not affected.
enum class Products : std::uint8_t {
  bf16,  ///< in what activations are stored in: bf16 on a GPU, float on the CPU
  fp8,   ///< in e4m3 with fp32 sums, a scale for each row of activations and gradients and for each group's weights
};

/// A model and how it is trained, as one compile-time value. Structural, no arrays, so that it can be a template
/// argument; rope_theta and norm_eps are defaults that a model directory may override at run time.
struct Config {
  Shape shape;                   ///< numbers that are `dynamic` come from the model directory
  Lora lora{};                   ///< without a meaning in full training
  Quant quant{};                 ///< of the frozen projections; embeddings, head and norms are never quantized
  Form form = Form::completion;  ///< how prompts are written and where a reply ends
  Trainable trainable = Trainable::adapters;  ///< adapters, or every weight
  float rope_theta = 10000.0F;                ///< base of the rotary embedding's wavelengths
  float norm_eps = 1e-5F;                     ///< added to the mean square in RMS normalisation
  RopeScaling rope_scaling{};                 ///< of the rotary embedding's frequencies

  /// The same with another rank cap or other targets.
  [[nodiscard]] constexpr Config with(Lora value) const {
    Config copy = *this;
    copy.lora = value;
    return copy;
  }
  /// The same with weights stored in another way.
  [[nodiscard]] constexpr Config with(Quant value) const {
    Config copy = *this;
    copy.quant = value;
    return copy;
  }
  /// The same with another form of prompts.
  [[nodiscard]] constexpr Config with(Form value) const {
    Config copy = *this;
    copy.form = value;
    return copy;
  }
  /// The same with other weights trained; Trainable::all sets `quant` to unquantized.
  [[nodiscard]] constexpr Config with(Trainable value) const {
    Config copy = *this;
    copy.trainable = value;
    if (value == Trainable::all) copy.quant = unquantized;  // what is trained in full is not frozen in 4 bits
    return copy;
  }
  friend constexpr bool operator==(const Config&, const Config&) = default;
};

/// Rows (out) of one projection's weight.
[[nodiscard]] constexpr int rows_of(const Shape& s, Proj proj) {
  switch (proj) {
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
[[nodiscard]] constexpr int cols_of(const Shape& s, Proj proj) {
  switch (proj) {
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
  for (const Proj proj : all_projections) sum += std::int64_t{rows_of(s, proj)} * cols_of(s, proj);
  return sum * s.layers;
}
/// Elements of the biases of one layer.
[[nodiscard]] constexpr std::int64_t bias_parameters(const Shape& s) {
  return (s.qkv_bias ? std::int64_t{s.heads + 2 * s.kv_heads} * s.head_dim : 0) + (s.o_bias ? s.dim : 0);
}
/// All weights of the model; a tied head counts once.
[[nodiscard]] constexpr std::int64_t parameters(const Shape& s) {
  const std::int64_t table = std::int64_t{s.vocab} * s.dim;
  return linear_parameters(s) + table * (s.tied_embeddings ? 1 : 2) + std::int64_t{s.dim} * (2 * s.layers + 1) +
         s.layers * bias_parameters(s);
}
/// Weights in the adapters at the rank cap: r (in + out) for each target.
[[nodiscard]] constexpr std::int64_t adapter_parameters(const Shape& s, const Lora& lora) {
  std::int64_t sum = 0;
  for (const Proj proj : all_projections) {
    if (contains(lora.targets, proj)) sum += std::int64_t{lora.rank} * (rows_of(s, proj) + cols_of(s, proj));
  }
  return sum * s.layers;
}

// --- what a config must satisfy; each concept's name is the sentence a user reads when it does not ------------------
// A rule holds as long as a number that it needs is dynamic: broken_rule() asks again when the number is known.

namespace rule {
/// At least 1, or not known yet.
[[nodiscard]] constexpr bool positive(int number) { return number > 0 || is_dynamic(number); }
/// The seven numbers of a shape are positive.
[[nodiscard]] constexpr bool shape_is_positive(const Shape& s) {
  return positive(s.vocab) && positive(s.dim) && positive(s.layers) && positive(s.heads) && positive(s.kv_heads) &&
         positive(s.head_dim) && positive(s.ffn);
}
/// Every key head serves the same number of query heads.
[[nodiscard]] constexpr bool kv_heads_divide_heads(const Shape& s) {
  return is_dynamic(s.heads) || is_dynamic(s.kv_heads) || (s.kv_heads > 0 && s.heads % s.kv_heads == 0);
}
/// The rotary embedding turns pairs of numbers.
[[nodiscard]] constexpr bool head_dim_is_even(const Shape& s) {  // rotary embedding turns pairs
  return is_dynamic(s.head_dim) || s.head_dim % 2 == 0;
}
/// `rank` is at most a width, if that is known.
[[nodiscard]] constexpr bool rank_fits(int rank, int width) { return is_dynamic(width) || rank <= width; }
/// The rank is 1 to dim, ffn and the width of all heads together. Full training has no rank.
[[nodiscard]] constexpr bool rank_fits_every_target(const Config& c) {
  if (c.trainable == Trainable::all || is_dynamic(c.lora.rank)) return true;
  const Shape& s = c.shape;
  const bool attention_is_known = !is_dynamic(s.heads) && !is_dynamic(s.head_dim);
  return c.lora.rank > 0 && rank_fits(c.lora.rank, s.dim) && rank_fits(c.lora.rank, s.ffn) &&
         (!attention_is_known || c.lora.rank <= s.heads * s.head_dim);
}
/// Adapters without a target would train nothing.
[[nodiscard]] constexpr bool adapters_have_targets(const Config& c) {
  return c.trainable == Trainable::all || c.lora.targets != Proj::none;
}
/// Weights in 4 bits cannot be trained.
[[nodiscard]] constexpr bool full_training_is_unquantized(const Config& c) {
  return c.trainable == Trainable::adapters || c.quant.kind == QuantKind::none;
}
/// The block sizes are those of bitsandbytes, 64 and 256, which the kernels are written for.
[[nodiscard]] constexpr bool quant_blocks_are_known(const Config& c) {
  return c.quant.kind == QuantKind::none || (c.quant.block == 64 && c.quant.nested_block == 256);
}
}  // namespace rule

/// See rule::shape_is_positive.
template <Config C>
concept ShapeIsPositive = rule::shape_is_positive(C.shape);
/// See rule::kv_heads_divide_heads.
template <Config C>
concept KvHeadsDivideHeads = rule::kv_heads_divide_heads(C.shape);
/// See rule::head_dim_is_even.
template <Config C>
concept HeadDimIsEven = rule::head_dim_is_even(C.shape);
/// See rule::rank_fits_every_target.
template <Config C>
concept RankFitsEveryTarget = rule::rank_fits_every_target(C);
/// See rule::adapters_have_targets.
template <Config C>
concept AdaptersHaveTargets = rule::adapters_have_targets(C);
/// See rule::full_training_is_unquantized.
template <Config C>
concept FullTrainingIsUnquantized = rule::full_training_is_unquantized(C);
/// See rule::quant_blocks_are_known.
template <Config C>
concept QuantBlocksAreKnown = rule::quant_blocks_are_known(C);
/// A Config that Model, Trainer and Generator accept.
template <Config C>
concept ValidConfig = ShapeIsPositive<C> && KvHeadsDivideHeads<C> && HeadDimIsEven<C> && RankFitsEveryTarget<C> &&
    AdaptersHaveTargets<C> && FullTrainingIsUnquantized<C> && QuantBlocksAreKnown<C>;
/// Every number is known when the program is compiled, and so is the memory plan.
template <Config C>
concept StaticConfig = ValidConfig<C> && !is_dynamic(C.shape) && !is_dynamic(C.lora);

namespace detail {
/// Throws the first rule that a config breaks, as a sentence. Where the compiler evaluates it, its message shows the
/// line.
constexpr void expect_rules(const Config& c) {
  if (!rule::shape_is_positive(c.shape)) throw "every number of the shape is positive";
  if (!rule::kv_heads_divide_heads(c.shape)) throw "the number of key heads divides the number of query heads";
  if (!rule::head_dim_is_even(c.shape)) throw "head_dim is even";
  if (!rule::rank_fits_every_target(c)) throw "the LoRA rank is at least 1 and at most the input width of every layer";
  if (!rule::adapters_have_targets(c)) throw "adapters have at least one target";
  if (!rule::full_training_is_unquantized(c)) throw "full training is unquantized";
  if (!rule::quant_blocks_are_known(c)) throw "NF4 blocks have 64 weights, and nested blocks 256 scales";
}
}  // namespace detail

/// The config itself, refused by the compiler with a sentence of a few words when it breaks a rule:
///   constexpr qlora::Config mine = qlora::checked({.shape = {...}});
/// Without it ValidConfig refuses the config where it is first used, with the compiler's account of the concept.
consteval Config checked(const Config& c) {
  detail::expect_rules(c);
  return c;
}

/// The rule that a config breaks, as a sentence; empty when it breaks none.
[[nodiscard]] inline std::string_view broken_rule(const Config& c) {
  try {
    detail::expect_rules(c);
  } catch (const char* rule) {
    return rule;
  }
  return {};
}

/// The part of a Config that changes generated code. Configs with equal Code share every compute function.
struct Code {
  Shape shape;  ///< without the layer count, a loop bound, and without what moves a pointer (tied_embeddings, biases)
  Lora lora;    ///< rank 0 without targets in full training
  Quant quant;  ///< how the frozen projections are stored
  Trainable trainable;  ///< which weights have gradients
  friend constexpr bool operator==(const Code&, const Code&) = default;
};
/// The Code of a Config: no layer count, no tied_embeddings, no biases, no LoRA in full training.
[[nodiscard]] constexpr Code code_of(const Config& config) {
  Code code{config.shape, config.lora, config.quant, config.trainable};
  code.shape.layers = 0;
  code.shape.tied_embeddings = code.shape.qkv_bias = code.shape.o_bias = false;
  if (config.trainable == Trainable::all) code.lora = Lora{.rank = 0, .targets = Proj::none};
  return code;
}

}  // namespace v0
}  // namespace qlora
