// qlora/io/hf_config.hpp — a Hugging Face config.json as a checked Shape and a few numbers.
// Two dialects are read: rope_theta and torch_dtype at the top (transformers 4), and rope_parameters and dtype (5).
// What may not change: a key that alters the computation is honoured or refused by name, never ignored; every number
// is bounded before anything is allocated by it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/config.hpp"
#include "qlora/dtype.hpp"
#include "qlora/error.hpp"
#include "qlora/io/bnb.hpp"
#include "qlora/io/json.hpp"
#include "qlora/model/layout.hpp"
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
  int max_positions = 4096;              ///< tokens of a context that attention sees as the model was trained to
  std::string limited_by = "max_position_embeddings";  ///< the key that max_positions comes from
  RopeScaling rope_scaling{};                          ///< of the rotary embedding's frequencies
  Json file{};                                         ///< config.json as it stands; null: the model comes from no file
  DType dtype = DType::f16;                            ///< of the stored weights
  std::optional<bnb::Storage> nf4{};                   ///< the matrices of the layers are stored in NF4, in this way

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
  // Qwen 2 has biases of queries, keys and values, and no key that says so.
  const bool qwen = json_string(config, "model_type", where) == "qwen2";
  shape.o_bias = !qwen && json_bool_or(config, "attention_bias", where, false);
  shape.qkv_bias = qwen || shape.o_bias;
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

/// The settings of a type in "rope_parameters" or "rope_scaling".
[[nodiscard]] inline RopeScaling scaling_of(const Json& rope, const std::string& type, const Json& config,
                                            std::string_view where) {
  const auto number = [&](const char* key, double min, double max, double otherwise) {
    return static_cast<float>(json_number_or(rope, key, where, min, max, otherwise));
  };
  RopeScaling out;
  if (type == "default") return out;
  const bool known = type == "linear" || type == "dynamic" || type == "llama3" || type == "yarn";
  if (!known) {
    throw Error(concat(where, ": rotary embedding of type '", ::qlora::detail::excerpt(type),
                       "' is not computed here; default, linear, dynamic, llama3 and yarn are"));
  }
  out.factor = static_cast<float>(json_number(rope, "factor", where, 1e-3, 1e6));
  if (type == "dynamic") return {};  // up to max_position_embeddings the frequencies are not scaled
  out.kind = type == "linear" ? RopeKind::linear : type == "llama3" ? RopeKind::llama3 : RopeKind::yarn;
  if (type == "linear") return out;
  const int positions = int_or(config, "max_position_embeddings", where, max_max_positions, 2048);
  out.old_positions = int_or(rope, "original_max_position_embeddings", where, max_max_positions, positions);
  if (type == "llama3") {
    out.low = static_cast<float>(json_number(rope, "low_freq_factor", where, 1e-3, 1e6));
    out.high = static_cast<float>(json_number(rope, "high_freq_factor", where, 1e-3, 1e6));
    if (out.low >= out.high) throw Error(concat(where, ": low_freq_factor is not below high_freq_factor"));
    return out;
  }
  out.fast = number("beta_fast", 1e-3, 1e6, 32);
  out.slow = number("beta_slow", 1e-3, 1e6, 1);
  out.whole_pairs = json_bool_or(rope, "truncate", where, true);
  const auto mscale = [&](double by) {
    const double factor = json_number(rope, "factor", where, 1e-3, 1e6);
    return factor <= 1 ? 1.0 : 0.1 * by * std::log(factor) + 1.0;
  };
  const double mine = json_number_or(rope, "mscale", where, 0, 100, 0);
  const double all = json_number_or(rope, "mscale_all_dim", where, 0, 100, 0);
  out.attention = number("attention_factor", 1e-3, 1e3, mine > 0 && all > 0 ? mscale(mine) / mscale(all) : mscale(1));
  return out;
}

/// Base and scaling of the rotary embedding, from either dialect.
inline void read_rope(const Json& config, std::string_view where, ModelConfig& out) {
  constexpr double min = 1.0;
  constexpr double max = 1e12;
  double theta = json_number_or(config, "rope_theta", where, min, max, 10000.0);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json* rope = json_find(config, key);
    if (rope == nullptr) continue;
    if (!rope->is_object()) throw Error(concat(where, ": '", key, "' must be an object"));
    const std::string type = json_string_or(*rope, "rope_type", where, json_string_or(*rope, "type", where, "default"));
    out.rope_scaling = scaling_of(*rope, type, config, concat(where, ": '", key, "'"));
    const double inner = json_number_or(*rope, "rope_theta", where, min, max, theta);
    if (json_find(config, "rope_theta") != nullptr && inner != theta) {
      throw Error(concat(where, ": rope_theta is given twice, as ", theta, " and as ", inner));
    }
    theta = inner;
    if (json_number_or(*rope, "partial_rotary_factor", where, 0, 1, 1) != 1) {
      throw Error(concat(where, ": partial_rotary_factor other than 1 is not computed here"));
    }
  }
  out.rope_theta = static_cast<float>(theta);
}

/// Attention over a sliding window is that over all tokens as long as no text is longer than the window.
inline void read_window(const Json& config, std::string_view where, ModelConfig& out) {
  if (json_string(config, "model_type", where) == "qwen2" && !json_bool_or(config, "use_sliding_window", where, false))
    return;
  const int window = int_or(config, "sliding_window", where, max_max_positions, out.max_positions);
  if (window >= out.max_positions) return;
  out.max_positions = window;
  out.limited_by = "sliding_window";
}

/// Refuses what would make this another computation than the one of this library.
inline void refuse_other_models(const Json& config, std::string_view where) {
  const auto excerpt = [](std::string_view text) { return ::qlora::detail::excerpt(text); };
  for (const char* key : {"num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size"}) {
    if (json_find(config, key) != nullptr)
      throw Error(concat(where, ": a mixture of experts (", key, ") is not computed here"));
  }
  for (const char* key : {"layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"}) {
    if (json_find(config, key) != nullptr)
      throw Error(concat(where, ": layer normalisation (", key, ") is not computed here; rms_norm_eps is"));
  }
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "logits_scaling",
                          "embedding_multiplier", "residual_multiplier", "attention_multiplier",
                          "query_pre_attn_scalar", "clip_qkv", "use_parallel_residual", "no_rope_layers"}) {
    if (json_find(config, key) != nullptr) throw Error(concat(where, ": ", key, " is not computed here"));
  }
  const std::string type = json_string(config, "model_type", where);
  if (type != "llama" && type != "mistral" && type != "qwen2") {
    throw Error(concat(where, ": model_type is '", excerpt(type),
                       "'; models of type 'llama', 'mistral' and 'qwen2' are what is read here"));
  }
  const std::string activation = json_string_or(config, "hidden_act", where, "silu");
  if (activation != "silu") throw Error(concat(where, ": hidden_act '", excerpt(activation), "' is not 'silu'"));
  if (type != "llama" && json_bool_or(config, "attention_bias", where, false))
    throw Error(concat(where, ": attention_bias true in a model of type '", type, "' is not computed here"));
  if (json_bool_or(config, "mlp_bias", where, false)) {
    throw Error(concat(where, ": mlp_bias true is not computed here"));
  }
  if (json_number_or(config, "partial_rotary_factor", where, 0, 1, 1) != 1) {
    throw Error(concat(where, ": partial_rotary_factor other than 1 is not computed here"));
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
    for (const Json& id : list) out.eos_token_ids.push_back(token_id(id, "eos_token_id", where, out.shape.vocab));
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
  detail::read_rope(config, where, out);
  out.norm_eps = static_cast<float>(json_number_or(config, "rms_norm_eps", where, 1e-12, 1.0, 1e-6));
  out.max_positions = detail::int_or(config, "max_position_embeddings", where, max_max_positions,
                                     json_string(config, "model_type", where) == "llama" ? 2048 : 32768);
  detail::read_window(config, where, out);
  if (const Json* quantization = json_find(config, "quantization_config")) {
    out.nf4 = bnb::parse_storage(*quantization, where);
  }
  out.file = config;
  out.dtype = detail::dtype_of(config, where);
  detail::read_token_ids(config, where, out);
  return out;
}

/// A tensor's Hugging Face name and its shape.
struct NamedShape {
  std::string name;                 ///< "model.layers.0.input_layernorm.weight"
  std::vector<std::int64_t> shape;  ///< (out, in) of a matrix, (D) of a norm
};

/// Whether a tensor of that name is the matrix of one of the seven projections.
[[nodiscard]] inline bool is_projection(std::string_view name) {
  return std::any_of(all_projections.begin(), all_projections.end(), [&](Proj proj) {
    return name.starts_with(tensor_name::layers) && name.ends_with(concat(".", name_of(proj), ".weight"));
  });
}

/// Every tensor of a model in file order: embedding, layers, final norm, head (none when it is tied).
[[nodiscard]] inline std::vector<NamedShape> tensor_names(const Shape& shape) {
  std::vector<NamedShape> names;
  const std::int64_t dim = shape.dim;
  names.push_back({std::string(tensor_name::embedding), {shape.vocab, dim}});
  for (int layer = 0; layer < shape.layers; ++layer) {
    names.push_back({tensor_name::norm(layer, NormBefore::attention), {dim}});
    for (const Proj proj : all_projections) {
      if (proj == Proj::gate) names.push_back({tensor_name::norm(layer, NormBefore::feed_forward), {dim}});
      names.push_back({tensor_name::weight(layer, proj), {rows_of(shape, proj), cols_of(shape, proj)}});
      const bool has_bias = proj == Proj::o ? shape.o_bias : shape.qkv_bias && group_of(proj) == Group::qkv;
      if (has_bias) names.push_back({tensor_name::bias(layer, proj), {rows_of(shape, proj)}});
    }
  }
  names.push_back({std::string(tensor_name::final_norm), {dim}});
  if (!shape.tied_embeddings) names.push_back({std::string(tensor_name::head), {shape.vocab, dim}});
  return names;
}

}  // namespace hf
}  // namespace v0
}  // namespace qlora
