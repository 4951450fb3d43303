// qlora/io/peft_config.hpp — adapter_config.json of a PEFT LoRA adapter: read, and written as peft writes it.
// What may not change: a setting that alters the computation is honoured or refused by name, never ignored; settings
// that are off, also ones that this version has never heard of, are let be.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "qlora/config.hpp"
#include "qlora/error.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/name_pattern.hpp"
#include "qlora/io/peft_targets.hpp"
#include "qlora/model/names.hpp"

namespace qlora {
inline namespace v0 {

/// What adapter_config.json says. Pattern keys are "layers.3.self_attn.q_proj"; see module_name().
struct PeftConfig {
  int r = 8;                                     ///< rank of modules without a pattern
  float alpha = 16;                              ///< alpha of modules without a pattern
  float dropout = 0;                             ///< rate in training
  bool rslora = false;                           ///< scale alpha / sqrt(r) instead of alpha / r
  bool dora = false;                             ///< rows of W + s B A are brought to the lengths of a third tensor
  bool embedding = false;                        ///< the embedding table was trained whole (modules_to_save)
  bool head = false;                             ///< and so was the head
  Proj targets = Proj::all;                      ///< projections that get an adapter, in some layer at least
  PeftTargets only{};                            ///< which of them do, where not all in every layer
  std::map<std::string, int> rank_pattern{};     ///< modules whose rank is not r
  std::map<std::string, float> alpha_pattern{};  ///< modules whose alpha is not alpha
  std::string base_model{};                      ///< name or path of the base; may be empty
  std::string revision{};                        ///< of the base; may be empty
  std::string base_fingerprint{};                ///< of the base's weights (hf::ModelDir); empty: not known. In the
                                                 ///< metadata of the matrices' file, where peft looks past it
  std::string base_checksum{};                   ///< hf::ModelDir::checksum() of the base; empty: not known

  friend bool operator==(const PeftConfig&, const PeftConfig&) = default;
};

/// Whether a module has an adapter: it is one of target_modules, not excluded, and in a layer that may have some.
[[nodiscard]] inline bool has_adapter(const PeftConfig& config, int layer, Proj proj) {
  const PeftTargets& only = config.only;
  if (!(only.targets.empty() ? contains(config.targets, proj) : only.targets.has(layer, proj))) return false;
  if (only.excluded.has(layer, proj)) return false;
  return only.layers.empty() || std::binary_search(only.layers.begin(), only.layers.end(), layer);
}

namespace detail {
inline constexpr std::string_view peft_prefix = "base_model.model.";  ///< of every name in a PEFT file
}
/// The tensor names of one module: A is (r, in), B is (out, r), and of DoRA M (out), the lengths of rows.
[[nodiscard]] inline std::string lora_name(int layer, Proj proj, char matrix) {
  const std::string module = concat(detail::peft_prefix, tensor_name::module(layer, proj));
  return matrix == 'M' ? module + ".lora_magnitude_vector" : concat(module, ".lora_", matrix, ".weight");
}
/// The tensors of each module that has an adapter, as lora_name() takes them: "AB", of DoRA "ABM".
[[nodiscard]] inline std::string_view matrices_of(const PeftConfig& config) { return config.dora ? "ABM" : "AB"; }

namespace detail {

/// Whether the key of a pattern is a name and no regular expression; its dots are dots.
[[nodiscard]] inline bool is_plain_name(std::string_view key) {
  return !key.empty() && std::all_of(key.begin(), key.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.';
  });
}

/// The value of the pattern that fits a module: the whole name, or what follows a dot, as peft matches
/// "(.*\.)?(KEY)$".
/// peft takes the first fitting key in the file's order, which JSON does not promise: two that disagree are refused.
template <class Value>
[[nodiscard]] Value pattern_value(const std::map<std::string, Value>& pattern, const std::string& module,
                                  Value otherwise) {
  const std::string full = "model." + module;
  std::optional<Value> found;
  for (const auto& [key, value] : pattern) {
    const bool fits = is_plain_name(key) ? full == key || full.ends_with("." + key)
                                         : NamePattern(concat("(.*\\.)?(", key, ")"), "the adapter").matches(full);
    if (!fits) continue;
    if (found && *found != value) throw Error(concat("two patterns of the adapter give ", module, " different values"));
    found = value;
  }
  return found.value_or(otherwise);
}

}  // namespace detail

/// The rank of a module, from rank_pattern or r.
[[nodiscard]] inline int rank_of(const PeftConfig& config, int layer, Proj proj) {
  return detail::pattern_value(config.rank_pattern, module_name(layer, proj), config.r);
}
/// The alpha of a module, from alpha_pattern or alpha.
[[nodiscard]] inline float alpha_of(const PeftConfig& config, int layer, Proj proj) {
  return detail::pattern_value(config.alpha_pattern, module_name(layer, proj), config.alpha);
}
/// What the product B A x is multiplied by in a module: alpha/r, or alpha/sqrt(r) when rank-stabilised.
[[nodiscard]] inline float scale_of(const PeftConfig& config, int layer, Proj proj) {
  return lora_scale(alpha_of(config, layer, proj), rank_of(config, layer, proj), config.rslora);
}

namespace detail {

inline constexpr int max_lora_rank = 4096;
inline constexpr double max_lora_alpha = 1e6;

/// A value that means "off" whatever its key is.
[[nodiscard]] inline bool is_off(const Json& value) {
  return value.is_null() || value == Json(false) || ((value.is_object() || value.is_array()) && value.empty());
}

/// What a user can do with an adapter that is not computed here.
inline constexpr const char* merge_cure = "; merge it into its base with peft's merge_and_unload() and use that model";

/// Refuses what changes the computation. Keys not listed here are described by their value: off is let be.
inline void refuse_other_adapters(const Json& config, std::string_view where) {
  const std::string type = json_string(config, "peft_type", where);
  if (type != "LORA") throw Error(concat(where, ": peft_type is '", excerpt(type), "', not 'LORA'", merge_cure));
  if (json_string_or(config, "task_type", where, "CAUSAL_LM") != "CAUSAL_LM") {
    throw Error(concat(where, ": task_type is not CAUSAL_LM"));
  }
  if (const std::string bias = json_string_or(config, "bias", where, "none"); bias != "none") {
    throw Error(
        concat(where, ": bias is '", excerpt(bias), "': biases that were trained are not computed here", merge_cure));
  }
  // What is read, what only describes how training began, and what matters only together with a key that is refused.
  constexpr std::array inert{"peft_type",
                             "task_type",
                             "bias",
                             "r",
                             "lora_alpha",
                             "lora_dropout",
                             "use_rslora",
                             "use_dora",
                             "modules_to_save",
                             "target_modules",
                             "rank_pattern",
                             "alpha_pattern",
                             "revision",
                             "base_model_name_or_path",
                             "auto_mapping",
                             "inference_mode",
                             "peft_version",
                             "init_lora_weights",
                             "megatron_core",
                             "qalora_group_size",
                             "loftq_config",
                             "eva_config",
                             "corda_config",
                             "layers_pattern",
                             "runtime_config",
                             "lora_ga_config",
                             "merge_weights",
                             "exclude_modules",
                             "layers_to_transform"};
  for (const auto& [key, value] : config.items()) {
    if (std::find(inert.begin(), inert.end(), key) != inert.end() || is_off(value)) continue;
    throw Error(concat(where, ": '", excerpt(key), "' is ", excerpt(value.dump()),
                       ", which is not computed here; LoRA, rank-stabilised LoRA and DoRA are", merge_cure));
  }
  // PiSSA, OLoRA and the like change the base weights; an adapter that was not converted does not fit the plain base.
  constexpr std::array leaves_base{"gaussian", "eva", "orthogonal", "mica"};
  const Json* init = json_find(config, "init_lora_weights");
  const bool plain = init == nullptr || init->is_boolean() ||
                     std::any_of(leaves_base.begin(), leaves_base.end(), [&](const char* how) { return *init == how; });
  if (!plain) {
    throw Error(concat(where, ": init_lora_weights ", excerpt(init->dump()),
                       " changes the base model; convert the adapter to plain LoRA when saving it with peft"));
  }
}

/// Keys of rank_pattern and alpha_pattern are names, or regular expressions that are understood. A name that is none of
/// a projection would change nothing, and is likely a mistake.
inline void check_pattern_key(const std::string& key, const char* which, std::string_view where) {
  if (!is_plain_name(key)) {
    (void)NamePattern(concat("(.*\\.)?(", key, ")"), concat(where, ": ", which));
    return;
  }
  const bool names_module = std::any_of(all_projections.begin(), all_projections.end(), [&](Proj proj) {
    return key == short_name(proj) || key.ends_with(name_of(proj));
  });
  if (!names_module) {
    throw Error(concat(where, ": ", which, " has the key '", excerpt(key),
                       "', which names no projection; names are q_proj or layers.3.self_attn.q_proj"));
  }
}

/// modules_to_save: embedding table and head, the two that are taken.
inline void parse_whole_modules(const Json& config, std::string_view where, PeftConfig& out) {
  const Json* saved = json_find(config, "modules_to_save");
  if (saved == nullptr || is_off(*saved)) return;
  if (!saved->is_array()) throw Error(concat(where, ": 'modules_to_save' must be a list of names"));
  for (const Json& entry : *saved) {
    const bool embedding = entry == "embed_tokens" || entry == "model.embed_tokens";
    if (!embedding && entry != "lm_head") {
      throw Error(concat(where, ": 'modules_to_save' has ", excerpt(entry.dump()),
                         ", which is not computed here; embed_tokens and lm_head are", merge_cure));
    }
    (embedding ? out.embedding : out.head) = true;
  }
}

[[nodiscard]] inline PeftConfig parse_peft_config(const Json& config, std::string_view where) {
  refuse_other_adapters(config, where);
  PeftConfig out;
  out.r = static_cast<int>(json_int(config, "r", where, 1, max_lora_rank));
  out.alpha = static_cast<float>(json_number(config, "lora_alpha", where, 0, max_lora_alpha));
  out.dropout = static_cast<float>(json_number_or(config, "lora_dropout", where, 0, 0.999, 0));
  out.rslora = json_bool_or(config, "use_rslora", where, false);
  out.dora = json_bool_or(config, "use_dora", where, false);
  parse_whole_modules(config, where, out);
  out.only = parse_peft_targets(config, where);
  ModuleSet& targets = out.only.targets;
  out.targets = targets.expression.empty() ? targets.everywhere : Proj::all;
  for (const auto& [layer, projections] : targets.in_layer) out.targets = out.targets | projections;
  if (targets.in_layer.empty() && targets.expression.empty()) targets = {};
  out.base_model = json_string_or(config, "base_model_name_or_path", where, "");
  out.revision = json_string_or(config, "revision", where, "");
  for (const char* which : {"rank_pattern", "alpha_pattern"}) {
    const Json* pattern = json_find(config, which);
    if (pattern == nullptr) continue;
    if (!pattern->is_object()) throw Error(concat(where, ": '", which, "' must be an object"));
    for (const auto& [key, value] : pattern->items()) {
      check_pattern_key(key, which, where);
      if (which == std::string_view("rank_pattern")) {
        out.rank_pattern[key] = static_cast<int>(checked_int(value, key, where, 1, max_lora_rank));
      } else {
        out.alpha_pattern[key] = static_cast<float>(checked_number(value, key, where, 0, max_lora_alpha));
      }
    }
  }
  return out;
}

/// A whole number prints as one: peft writes "lora_alpha": 16.
[[nodiscard]] inline Json number_json(float value) {
  if (value == std::floor(value) && std::abs(value) < 1e9F) return static_cast<std::int64_t>(value);
  return shortest_decimal(value);
}

[[nodiscard]] inline Json peft_config_json(const PeftConfig& config) {
  const PeftTargets& only = config.only;
  const Json targets = module_set_json(only.targets.empty() ? ModuleSet{.everywhere = config.targets} : only.targets);
  Json whole = Json::array();
  if (config.embedding) whole.push_back("embed_tokens");
  if (config.head) whole.push_back("lm_head");
  Json alphas = Json::object();
  for (const auto& [key, value] : config.alpha_pattern) alphas[key] = number_json(value);
  Json out{{"alpha_pattern", alphas},
           {"base_model_name_or_path", config.base_model.empty() ? Json() : Json(config.base_model)},
           {"bias", "none"},
           {"exclude_modules", only.excluded.empty() ? Json() : module_set_json(only.excluded)},
           {"inference_mode", true},
           {"init_lora_weights", true},
           {"layers_to_transform", only.layers.empty() ? Json() : Json(only.layers)},
           {"loftq_config", Json::object()},
           {"lora_alpha", number_json(config.alpha)},
           {"lora_dropout", number_json(config.dropout)},
           {"megatron_core", "megatron.core"},
           {"modules_to_save", whole.empty() ? Json() : whole},
           {"peft_type", "LORA"},
           {"peft_version", "0.21.0"},
           {"qalora_group_size", 16},
           {"r", config.r},
           {"rank_pattern", config.rank_pattern},
           {"revision", config.revision.empty() ? Json() : Json(config.revision)},
           {"target_modules", targets},
           {"task_type", "CAUSAL_LM"},
           {"use_dora", config.dora},
           {"use_rslora", config.rslora}};
  for (const char* key : {"ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_qalora"}) {
    out[key] = false;
  }
  for (const char* key :
       {"alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config", "layer_replication",
        "layers_pattern", "megatron_config", "target_parameters", "trainable_token_indices"}) {
    out[key] = nullptr;
  }
  return out;
}

}  // namespace detail
}  // namespace v0
}  // namespace qlora
