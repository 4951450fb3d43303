// qlora/model/model.hpp — Model<C, B>: a config, its weights and a backend in one value. A thin shell: the code beneath
// is keyed by code_of(C), so configs that differ in floats, layer count or prompt form share it.
#pragma once

#include <memory>

#include "qlora/model/pass.hpp"

namespace qlora {
inline namespace v0 {

/// How a model is opened.
struct ModelOptions {
  float rope_theta = 0.0F;        ///< 0: the config's
  float norm_eps = 0.0F;          ///< 0: the config's
  bool keep_dequantized = false;  ///< hold frozen weights dense as well: more memory, less work per step
};

template <Config C, class B>
requires ValidConfig<C> && Backend<B>
class Model {
 public:
  static constexpr Config config = C;
  static constexpr Code code = code_of(C);

  /// Reads all weights by their Hugging Face names and quantizes them as the config says. Throws Error when a tensor is
  /// missing or has another size.
  explicit Model(const TensorSource& source, const ModelOptions& options = {}, B backend = B());
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  [[nodiscard]] B& backend() { return backend_; }
  [[nodiscard]] Weights<code, B>& weights() { return *weights_; }
  [[nodiscard]] const Weights<code, B>& weights() const { return *weights_; }
  [[nodiscard]] bool keeps_dequantized() const { return keep_dequantized_; }

  /// With adapters off the model is its base, to the bit.
  void use_adapters(bool on) { weights_->use_adapters(on); }

 private:
  [[nodiscard]] static ModelValues values(const ModelOptions& options) {
    return {.rope_theta = options.rope_theta > 0.0F ? options.rope_theta : C.rope_theta,
            .norm_eps = options.norm_eps > 0.0F ? options.norm_eps : C.norm_eps};
  }

  B backend_;
  bool keep_dequantized_;
  std::unique_ptr<Weights<code, B>> weights_;
};

// Outside the class, and so not inline: a file that uses a model of qlora_add_model does not compile it again.
template <Config C, class B>
requires ValidConfig<C> && Backend<B> Model<C, B>::Model(const TensorSource& source, const ModelOptions& options,
                                                         B backend)
    : backend_(std::move(backend)),
      keep_dequantized_(options.keep_dequantized && C.quant.kind != QuantKind::none),
      weights_(
          std::make_unique<Weights<code, B>>(backend_, C.shape.layers, values(options), source, keep_dequantized_)) {}

}  // namespace v0
}  // namespace qlora
