// qlora/io/open_model.hpp — the model of a Hugging Face directory:
//   auto model = qlora::open_model<mine, qlora::Cpu<>>("models/tiny");
// The whole shape is compared with config.json: two shapes may have tensors of the same sizes and compute something
// else.
#pragma once

#include <filesystem>
#include <utility>

#include "qlora/io/hf_model.hpp"
#include "qlora/model/model.hpp"

namespace qlora {
inline namespace v0 {

/// Options with the shape, rotary embedding, norm_eps, way of quantization and fingerprint of a directory, for a Model
/// or as TrainOptions::model. A rope_theta, rope_scaling or norm_eps that the options give stays. Throws Error (usage)
/// when the options give another shape.
[[nodiscard]] inline ModelOptions model_options(const hf::ModelDir& directory, ModelOptions options = {}) {
  if (options.shape != Shape{} && options.shape != directory.shape) {
    throw Error(concat("the options give another shape than ", (directory.path / "config.json").string()),
                ErrorKind::usage);
  }
  options.shape = directory.shape;
  if (options.rope_theta == 0.0F) options.rope_theta = directory.rope_theta;
  if (options.norm_eps == 0.0F) options.norm_eps = directory.norm_eps;
  if (!options.rope_scaling) options.rope_scaling = directory.rope_scaling;
  if (directory.nf4) options.double_quant = directory.nf4->double_quant;
  options.base = Fingerprint(directory.fingerprint());
  return options;
}

/// The model of a directory that is open. Throws Error, naming the number, when the config has another shape than
/// config.json, and as Model does.
template <Config C, class B>
requires RunsOn<C, B>
[[nodiscard]] Model<C, B> open_model(const hf::ModelDir& directory, const ModelOptions& options = {}, B backend = B()) {
  return Model<C, B>(directory.source(), model_options(directory, options), std::move(backend));
}
/// The same from a path. Throws Error when it is no model directory or its files do not hold what they should.
template <Config C, class B>
requires RunsOn<C, B>
[[nodiscard]] Model<C, B> open_model(const std::filesystem::path& directory, const ModelOptions& options = {},
                                     B backend = B()) {
  return open_model<C, B>(hf::ModelDir::open(directory), options, std::move(backend));
}

}  // namespace v0
}  // namespace qlora
