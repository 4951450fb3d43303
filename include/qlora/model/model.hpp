// qlora/model/model.hpp — Model<C, B>: a config, its weights and the context that loaded them in one value. A thin
// shell: the code beneath is keyed by code_of(C), so configs that differ in floats, layer count or prompt form share
// it.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/model/limits.hpp"
#include "qlora/model/network.hpp"

namespace qlora {
inline namespace v0 {

/// Tells models of one shape apart: hf::ModelDir::fingerprint(). A literal type, so that options may be constants.
class Fingerprint {
 public:
  /// Not known.
  constexpr Fingerprint() = default;
  /// SHA-256 in hexadecimal; empty: not known. Throws Error (usage) for a text of another length.
  explicit Fingerprint(std::string_view hex) {
    if (hex.empty()) return;
    detail::expect_option(hex.size() == hex_.size(), "the length of a fingerprint", hex.size(), "64");
    std::copy(hex.begin(), hex.end(), hex_.begin());
  }
  /// In hexadecimal; empty: not known.
  [[nodiscard]] std::string text() const {
    return hex_[0] == 0 ? std::string() : std::string(hex_.data(), hex_.size());
  }

 private:
  std::array<char, 64> hex_{};
};

/// How a model is opened.
struct ModelOptions {
  Shape shape{};  ///< as the model directory says; all zero: the config's, which has no dynamic number then
  /// Adapters that the model has to hold. They become the rank cap and the targets where the config's are dynamic; a
  /// config that fixes them must hold them. Rank 0 and no targets: whatever the config holds.
  Lora lora{.rank = 0, .targets = Proj::none};
  float rope_theta = 0.0F;                    ///< 0: the config's
  float norm_eps = 0.0F;                      ///< 0: the config's
  std::optional<RopeScaling> rope_scaling{};  ///< nothing: the config's
  bool keep_dequantized = false;              ///< hold frozen weights dense as well: more memory, less work per step
  /// Of weights that are stored in NF4, whether their scales are quantized again; nothing: weights are stored as they
  /// are. A config of a static shape has to say the same, since its memory plan does.
  std::optional<bool> double_quant{};
  Fingerprint base{};  ///< of the weights
  /// The model's own adapters have magnitudes that are trained (DoRA); with adapters.
  bool dora = false;
};

namespace detail {
inline void agree(std::string_view what, int config, int actual) {
  QLORA_EXPECTS(is_dynamic(config) || config == actual, "the model has ", what, " ", actual, ", this config has ",
                config);
}
/// The rank cap and the targets of a config together with adapters that it has to hold.
[[nodiscard, gnu::cold]] inline Lora resolved(const Lora& config, const Lora& wanted) {
  Lora lora = config;
  if (is_dynamic(config.rank)) {
    QLORA_EXPECTS(wanted.rank > 0, "the config's rank is dynamic and no rank was given");
    lora.rank = wanted.rank;
  } else if (wanted.rank > config.rank) {
    throw Error(
        concat("adapters of rank ", wanted.rank, " were asked for; this config holds ranks up to ", config.rank),
        ErrorKind::usage);
  }
  if (is_dynamic(config.targets)) {
    lora.targets = wanted.targets;
  } else if (!contains(config.targets, wanted.targets)) {
    throw Error(concat("adapters of ", names_of(wanted.targets), " were asked for; this config's targets are ",
                       names_of(config.targets)),
                ErrorKind::usage);
  }
  return lora;
}
}  // namespace detail

namespace detail {
/// How the weights of a config are stored, given that they come in NF4.
[[nodiscard, gnu::cold]] inline Quant resolved(const Config& config, bool double_quant) {
  Quant quant = config.quant;
  if (quant.kind == QuantKind::none) {
    throw Error(
        concat("the model is stored in 4 bits (quantization_config), and ",
               config.trainable == Trainable::all ? "training every weight" : "computing with weights as they are",
               " needs the model in 16 or 32 bits that it was made from"));
  }
  quant.double_quant = double_quant;
  if (is_dynamic(config.shape) || quant == config.quant) return quant;
  throw Error(concat("the model is stored in NF4 ", double_quant ? "with" : "without",
                     " double quantization, and this config of a static shape says otherwise: Quant{.double_quant = ",
                     double_quant, "}"));
}
}  // namespace detail

/// The config with every dynamic number taken from the options; `double_quant` is that of ModelOptions. Throws Error
/// when a number is missing, when one that the config fixes is another in the model, when it cannot hold the adapters
/// of the options or weights that are stored as these are, or when the result breaks a rule of ValidConfig.
[[nodiscard, gnu::cold]] inline Config resolved(Config config, const Shape& shape, const Lora& lora,
                                                std::optional<bool> double_quant = std::nullopt) {
  if (double_quant) config.quant = detail::resolved(config, *double_quant);
  if (shape != Shape{}) {
    detail::agree("vocab", config.shape.vocab, shape.vocab);
    detail::agree("dim", config.shape.dim, shape.dim);
    detail::agree("layers", config.shape.layers, shape.layers);
    detail::agree("heads", config.shape.heads, shape.heads);
    detail::agree("kv_heads", config.shape.kv_heads, shape.kv_heads);
    detail::agree("head_dim", config.shape.head_dim, shape.head_dim);
    detail::agree("ffn", config.shape.ffn, shape.ffn);
    QLORA_EXPECTS(is_dynamic(config.shape) || config.shape.tied_embeddings == shape.tied_embeddings,
                  "the model's head ", shape.tied_embeddings ? "is" : "is not",
                  " its embedding table, this config says otherwise");
    QLORA_EXPECTS(
        is_dynamic(config.shape) || (config.shape.qkv_bias == shape.qkv_bias && config.shape.o_bias == shape.o_bias),
        "the model ", shape.qkv_bias ? "has" : "does not have",
        " biases of queries, keys and values, this config says otherwise");
    config.shape = shape;
  }
  QLORA_EXPECTS(!is_dynamic(config.shape), "the config's shape is dynamic and no shape was given");
  if (config.trainable == Trainable::adapters) {
    config.lora = detail::resolved(config.lora, lora);
  } else if (lora.rank > 0 || lora.targets != Proj::none) {
    throw Error("adapters were asked for; this config trains every weight and has none", ErrorKind::usage);
  }
  if (rule::shape_is_positive(config.shape)) expect_rank(config);
  const std::string_view broken = broken_rule(config);
  QLORA_EXPECTS(broken.empty(), "this model cannot run: its config breaks the rule that ", broken);
  return config;
}

namespace detail {
template <class B>
[[nodiscard]] Config served(const Config& config) {
  expect_served<B>(config, false);
  return config;
}
}  // namespace detail

/// A model: its weights in backend memory, to train, generate or score with.
/// Const members may be called by any number of threads at once, and attach() and detach() with them; what takes the
/// model's own context, training and loading adapters, is for one thread at a time. Generators, scorers and contexts
/// keep the weights alive and stay valid when the model moves.
template <Config C, class B>
requires RunsOn<C, B>
class Model {
 public:
  static constexpr Config config = C;       ///< as written, with dynamic numbers left open
  static constexpr Code code = code_of(C);  ///< what its compute functions are compiled for

  /// Reads all weights by their Hugging Face names and quantizes them as the config says. Throws Error when a tensor is
  /// missing or has another shape, or when the backend has no kernels for a number of the shape.
  explicit Model(const TensorSource& source, const ModelOptions& options = {}, B backend = B());

  /// The context that loaded the weights; a trainer trains in it.
  [[nodiscard]] Context<code, B>& context() { return *context_; }
  /// The backend of that context.
  [[nodiscard]] B& backend() { return context_->backend(); }
  /// The same, to look at.
  [[nodiscard]] const B& backend() const { return context_->backend(); }
  /// Its weights, in backend memory.
  [[nodiscard]] Weights<code, B>& weights() { return *weights_; }
  /// Its weights, to read.
  [[nodiscard]] const Weights<code, B>& weights() const { return *weights_; }
  /// The config with every dynamic number resolved.
  [[nodiscard]] const Config& resolved_config() const { return resolved_; }
  /// Whether frozen weights are also held dense.
  [[nodiscard]] bool keeps_dequantized() const { return keep_dequantized_; }

  /// Which weights these are, as the options say; empty: not known. Adapters of other weights are refused.
  [[nodiscard]] std::string base_fingerprint() const { return base_.text(); }

  /// A context for one more thread, with as many threads of its own as the model was opened with, or with `backend`:
  /// Cpu<>(2), on a GPU one of the same device.
  [[nodiscard]] Context<code, B> new_context() const { return {weights_, backend().fork()}; }
  /// The same with another backend of the device.
  [[nodiscard]] Context<code, B> new_context(B backend) const { return {weights_, std::move(backend)}; }
  /// The same on the heap.
  [[nodiscard]] std::unique_ptr<Context<code, B>> make_context() const;
  /// The same with another backend of the device.
  [[nodiscard]] std::unique_ptr<Context<code, B>> make_context(B backend) const;

  /// Holds adapters under a name that contexts use. Throws Error (usage) when it is empty or taken.
  void attach(const std::string& name, std::shared_ptr<const AdapterSet<B>> adapters) {
    weights_->attach(name, std::move(adapters));
  }
  /// Forgets a name; contexts that use these adapters keep them. Throws Error (usage) for an unknown name.
  void detach(std::string_view name) { weights_->detach(name); }

 private:
  [[nodiscard]] static ModelValues values(const ModelOptions& options) {
    const auto expect = [](std::string_view name, float value) {
      detail::expect_option(std::isfinite(value) && value >= 0.0F, name, value, "0 (the config's) or more, and finite");
    };
    expect("rope_theta", options.rope_theta);
    expect("norm_eps", options.norm_eps);
    return {.rope_theta = options.rope_theta > 0.0F ? options.rope_theta : C.rope_theta,
            .norm_eps = options.norm_eps > 0.0F ? options.norm_eps : C.norm_eps,
            .rope_scaling = options.rope_scaling.value_or(C.rope_scaling)};
  }

  Config resolved_;
  Fingerprint base_;
  bool keep_dequantized_;
  std::shared_ptr<Weights<code, B>> weights_;
  std::unique_ptr<Context<code, B>> context_;
};

// Outside the class, and so not inline: a file that uses a model of qlora_add_model does not compile it again.
template <Config C, class B>
requires RunsOn<C, B> Model<C, B>::Model(const TensorSource& source, const ModelOptions& options, B backend)
    : resolved_(detail::served<B>(resolved(C, options.shape, options.lora, options.double_quant))),
      base_(options.base),
      keep_dequantized_(options.keep_dequantized && C.quant.kind != QuantKind::none),
      weights_(std::make_shared<Weights<code, B>>(backend,
                                                  Dims<code>(resolved_.shape, code_of(resolved_).lora, resolved_.quant),
                                                  values(options), source, keep_dequantized_, options.dora)),
      context_(std::make_unique<Context<code, B>>(weights_, std::move(backend))) {}

template <Config C, class B>
requires RunsOn<C, B>
auto Model<C, B>::make_context() const -> std::unique_ptr<Context<code, B>> { return make_context(backend().fork()); }

template <Config C, class B>
requires RunsOn<C, B>
auto Model<C, B>::make_context(B backend) const -> std::unique_ptr<Context<code, B>> {
  return std::make_unique<Context<code, B>>(weights_, std::move(backend));
}

}  // namespace v0
}  // namespace qlora
