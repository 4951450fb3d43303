// qlora/io/hf_config.hpp — a Hugging Face config.json as a checked Shape and a few numbers.
// Two dialects are read: rope_theta and torch_dtype at the top (transformers 4), and rope_parameters and dtype (5).
// What may not change: a key that alters the computation is honoured or refused by name, never ignored; every number
// is bounded before anything is allocated by it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/config.hpp"
#include "qlora/dtype.hpp"
#include "qlora/error.hpp"
#include "qlora/io/json.hpp"
#include "qlora/model/names.hpp"

namespace qlora {
inline namespace v0 {
namespace hf {

/// What a model directory says about a model.
struct ModelConfig {
  Shape shape;                           ///< layers included
  float rope_theta = 10000.0F;           ///< base of the rotary embedding's wavelengths
  float norm_eps = 1e-5F;                ///< added to the mean square in RMS normalisation
  int bos_token_id = 1;                  ///< -1: the model has none
  std::vector<int> eos_token_ids = {2};  ///< any of these ends a text; the first is the main one
  int max_positions = 4096;              ///< tokens of a context
  DType dtype = DType::f16;              ///< of the stored weights

  /// The main end mark; -1 without any.
  [[nodiscard]] int eos_token_id() const { return eos_token_ids.empty() ? -1 : eos_token_ids.front(); }
};

// Far above every published model of this family, and low enough that no product of two of them leaves 64 bits.
/// Highest vocab_size that a config.json may have.
inline constexpr int max_vocab = 1 << 20;
/// Highest hidden_size that a config.json may have.
inline constexpr int max_dim = 1 << 16;
/// Highest intermediate_size that a config.json may have.
inline constexpr int max_ffn = 1 << 19;
/// Highest num_hidden_layers that a config.json may have.
inline constexpr int max_layers = 1024;
/// Highest num_attention_heads and num_key_value_heads that a config.json may have.
inline constexpr int max_heads = 1024;
/// Highest head_dim that a config.json may have.
inline constexpr int max_head_dim = 1024;
/// Highest max_position_embeddings that a config.json may have.
inline constexpr int max_max_positions = 1 << 24;

namespace detail {

[[nodiscard]] inline int int_of(const Json& config, const char* key, std::string_view where, int max) {
  return static_cast<int>(json_int(config, key, where, 1, max));
}
[[nodiscard]] inline int int_or(const Json& config, const char* key, std::string_view where, int max, int otherwise) {
  return static_cast<int>(json_int_or(config, key, where, 1, max, otherwise));
}

[[nodiscard]] inline Shape shape_of(const Json& config, std::string_view where) {
  Shape shape;
  shape.vocab = int_of(config, "vocab_size", where, max_vocab);
  shape.dim = int_of(config, "hidden_size", where, max_dim);
  shape.layers = int_of(config, "num_hidden_layers", where, max_layers);
  shape.heads = int_of(config, "num_attention_heads", where, max_heads);
  shape.kv_heads = int_or(config, "num_key_value_heads", where, max_heads, shape.heads);
  shape.ffn = int_of(config, "intermediate_size", where, max_ffn);
  const int derived = shape.dim % shape.heads == 0 ? shape.dim / shape.heads : 0;
  shape.head_dim = int_or(config, "head_dim", where, max_head_dim, derived);
  shape.tied_embeddings = json_bool_or(config, "tie_word_embeddings", where, false);
  if (shape.head_dim == 0 || shape.head_dim % 2 != 0 || shape.head_dim > max_head_dim) {
    throw Error(concat(where, ": a head size of hidden_size / num_attention_heads = ", shape.dim, " / ", shape.heads,
                       " or head_dim ", shape.head_dim, " is not an even number up to ", max_head_dim));
  }
  if (shape.heads % shape.kv_heads != 0) {
    throw Error(
        concat(where, ": num_key_value_heads ", shape.kv_heads, " does not divide num_attention_heads ", shape.heads));
  }
  return shape;
}

/// The one frequency of rotary embedding, from either dialect; scaled variants are refused.
[[nodiscard]] inline float rope_theta_of(const Json& config, std::string_view where) {
  constexpr double min = 1.0;
  constexpr double max = 1e12;
  double theta = json_number_or(config, "rope_theta", where, min, max, 10000.0);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json* rope = json_find(config, key);
    if (rope == nullptr) continue;
    if (!rope->is_object()) throw Error(concat(where, ": '", key, "' must be an object"));
    const std::string type = json_string_or(*rope, "rope_type", where, json_string_or(*rope, "type", where, "default"));
    if (type != "default") {
      throw Error(concat(where, ": rotary embedding of type '", ::qlora::detail::excerpt(type),
                         "' is not computed here; only 'default' is"));
    }
    const double inner = json_number_or(*rope, "rope_theta", where, min, max, theta);
    if (json_find(config, "rope_theta") != nullptr && inner != theta) {
      throw Error(concat(where, ": rope_theta is given twice, as ", theta, " and as ", inner));
    }
    theta = inner;
    if (json_number_or(*rope, "partial_rotary_factor", where, 0, 1, 1) != 1) {
      throw Error(concat(where, ": partial_rotary_factor other than 1 is not computed here"));
    }
  }
  return static_cast<float>(theta);
}

/// Refuses what would make this another computation than the one of this library.
inline void refuse_other_models(const Json& config, std::string_view where) {
  const auto excerpt = [](std::string_view text) { return ::qlora::detail::excerpt(text); };
  const std::string type = json_string(config, "model_type", where);
  if (type != "llama") {
    throw Error(concat(where, ": model_type is '", excerpt(type), "'; models of type 'llama' are what is read here"));
  }
  const std::string activation = json_string_or(config, "hidden_act", where, "silu");
  if (activation != "silu") throw Error(concat(where, ": hidden_act '", excerpt(activation), "' is not 'silu'"));
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (json_bool_or(config, key, where, false)) throw Error(concat(where, ": ", key, " true is not computed here"));
  }
  if (json_number_or(config, "partial_rotary_factor", where, 0, 1, 1) != 1) {
    throw Error(concat(where, ": partial_rotary_factor other than 1 is not computed here"));
  }
  if (json_find(config, "quantization_config") != nullptr) {
    throw Error(concat(where,
                       ": the model is quantized already (quantization_config); give the 16-bit model, it is "
                       "quantized here"));
  }
}

/// A token id that a config gives: absent means `otherwise`, null and ids of none -1.
[[nodiscard]] inline int token_id(const Json& value, const char* key, std::string_view where, int vocab) {
  return static_cast<int>(::qlora::detail::checked_int(value, key, where, -1, vocab - 1));
}

inline void read_token_ids(const Json& config, std::string_view where, ModelConfig& out) {
  if (config.contains("bos_token_id")) {
    const Json& bos = config["bos_token_id"];
    out.bos_token_id = bos.is_null() ? -1 : token_id(bos, "bos_token_id", where, out.shape.vocab);
  }
  if (config.contains("eos_token_id")) {
    const Json& eos = config["eos_token_id"];
    out.eos_token_ids.clear();
    if (eos.is_array() && eos.size() > 1024) throw Error(concat(where, ": more than 1024 eos_token_ids"));
    const Json list = eos.is_array() ? eos : eos.is_null() ? Json::array() : Json::array({eos});
    for (const Json& one : list) out.eos_token_ids.push_back(token_id(one, "eos_token_id", where, out.shape.vocab));
    std::erase(out.eos_token_ids, -1);
  }
}

[[nodiscard]] inline DType dtype_of(const Json& config, std::string_view where) {
  const char* key = json_find(config, "dtype") != nullptr ? "dtype" : "torch_dtype";
  const std::string name = json_string_or(config, key, where, "float32");  // what transformers takes an absent one for
  if (name == "float16" || name == "auto") return DType::f16;              // auto: as stored, which the files tell
  if (name == "bfloat16") return DType::bf16;
  if (name == "float32") return DType::f32;
  if (name == "float64") return DType::f64;
  throw Error(concat(where, ": '", key, "' is '", ::qlora::detail::excerpt(name), "', not a floating type read here"));
}

}  // namespace detail

/// Reads a parsed config.json. `where` is the file's name, for messages. Throws Error naming the key.
[[nodiscard]] inline ModelConfig parse_config(const Json& config, std::string_view where) {
  if (!config.is_object()) throw Error(concat(where, ": holds no JSON object"));
  detail::refuse_other_models(config, where);
  ModelConfig out;
  out.shape = detail::shape_of(config, where);
  out.rope_theta = detail::rope_theta_of(config, where);
  out.norm_eps = static_cast<float>(json_number_or(config, "rms_norm_eps", where, 1e-12, 1.0, 1e-6));
  out.max_positions = detail::int_or(config, "max_position_embeddings", where, max_max_positions, 2048);
  out.dtype = detail::dtype_of(config, where);
  detail::read_token_ids(config, where, out);
  return out;
}

/// A tensor's Hugging Face name and its shape.
struct NamedShape {
  std::string name;                 ///< "model.layers.0.input_layernorm.weight"
  std::vector<std::int64_t> shape;  ///< (out, in) of a matrix, (D) of a norm
};

/// Every tensor of a model in file order: embedding, layers, final norm, head (none when it is tied).
[[nodiscard]] inline std::vector<NamedShape> tensor_names(const Shape& shape) {
  std::vector<NamedShape> names;
  const std::int64_t dim = shape.dim;
  names.push_back({std::string(tensor_name::embedding), {shape.vocab, dim}});
  for (int layer = 0; layer < shape.layers; ++layer) {
    names.push_back({tensor_name::norm(layer, 0), {dim}});
    for (const Proj proj : all_projections) {
      if (proj == Proj::gate) names.push_back({tensor_name::norm(layer, 1), {dim}});
      names.push_back({tensor_name::weight(layer, proj), {rows_of(shape, proj), cols_of(shape, proj)}});
    }
  }
  names.push_back({std::string(tensor_name::final_norm), {dim}});
  if (!shape.tied_embeddings) names.push_back({std::string(tensor_name::head), {shape.vocab, dim}});
  return names;
}

}  // namespace hf
}  // namespace v0
}  // namespace qlora
