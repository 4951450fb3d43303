// qlora/io/peft.hpp — PEFT LoRA adapter directories: adapter_config.json and adapter_model.safetensors.
// What may not change: a setting that alters the computation is honoured or refused by name, never ignored; settings
// that are off, also ones that this version has never heard of, are let be.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "qlora/config.hpp"
#include "qlora/error.hpp"
#include "qlora/io/checksum.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/file_sums.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/name_pattern.hpp"
#include "qlora/io/peft_targets.hpp"
#include "qlora/io/safetensors.hpp"
#include "qlora/io/safetensors_writer.hpp"
#include "qlora/model/names.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {

/// What adapter_config.json says. Pattern keys are "layers.3.self_attn.q_proj"; see module_name().
struct PeftConfig {
  int r = 8;                                     ///< rank of modules without a pattern
  float alpha = 16;                              ///< alpha of modules without a pattern
  float dropout = 0;                             ///< rate in training
  bool rslora = false;                           ///< scale alpha / sqrt(r) instead of alpha / r
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
/// The tensor names of one module: A is (r, in), B is (out, r).
[[nodiscard]] inline std::string lora_name(int layer, Proj proj, char matrix) {
  return concat(detail::peft_prefix, tensor_name::module(layer, proj), ".lora_", matrix, ".weight");
}

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

inline constexpr const char* base_key = "base_sha256";
inline constexpr const char* base_checksum_key = "base_xxh3_128";
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
                       ", which is not computed here; only plain LoRA and rank-stabilised LoRA are", merge_cure));
  }
  // PiSSA, OLoRA and the like change the base weights; an adapter that was not converted does not fit the plain base.
  const Json* init = json_find(config, "init_lora_weights");
  const bool plain =
      init == nullptr || init->is_boolean() || *init == "gaussian" || *init == "eva" || *init == "orthogonal";
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

[[nodiscard]] inline PeftConfig parse_peft_config(const Json& config, std::string_view where) {
  refuse_other_adapters(config, where);
  PeftConfig out;
  out.r = static_cast<int>(json_int(config, "r", where, 1, max_lora_rank));
  out.alpha = static_cast<float>(json_number(config, "lora_alpha", where, 0, max_lora_alpha));
  out.dropout = static_cast<float>(json_number_or(config, "lora_dropout", where, 0, 0.999, 0));
  out.rslora = json_bool_or(config, "use_rslora", where, false);
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
           {"peft_type", "LORA"},
           {"peft_version", "0.21.0"},
           {"qalora_group_size", 16},
           {"r", config.r},
           {"rank_pattern", config.rank_pattern},
           {"revision", config.revision.empty() ? Json() : Json(config.revision)},
           {"target_modules", targets},
           {"task_type", "CAUSAL_LM"},
           {"use_rslora", config.rslora}};
  for (const char* key : {"ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_dora", "use_qalora"}) {
    out[key] = false;
  }
  for (const char* key :
       {"alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config", "layer_replication",
        "layers_pattern", "megatron_config", "modules_to_save", "target_parameters", "trainable_token_indices"}) {
    out[key] = nullptr;
  }
  return out;
}

/// Layer and projection of a tensor name, and which matrix it is; nothing when the name has another form.
struct LoraPlace {
  int layer = 0;
  Proj proj = Proj::none;
  char matrix = 'A';
};
[[nodiscard]] inline std::optional<LoraPlace> lora_place(std::string_view name) {
  const std::string prefix = concat(peft_prefix, tensor_name::layers);
  if (!name.starts_with(prefix)) return std::nullopt;
  const std::string_view digits = name.substr(prefix.size(), name.find('.', prefix.size()) - prefix.size());
  if (digits.empty() || digits.size() > 6 || digits.find_first_not_of("0123456789") != std::string_view::npos) {
    return std::nullopt;
  }
  LoraPlace place;
  for (const char c : digits) place.layer = place.layer * 10 + (c - '0');
  for (const Proj proj : all_projections) {
    for (const char matrix : {'A', 'B'}) {
      if (name == lora_name(place.layer, proj, matrix)) return LoraPlace{place.layer, proj, matrix};
    }
  }
  return std::nullopt;
}

/// The name of a LoRA matrix without the adapter's name that a state_dict has in it: ".lora_A.default.weight".
[[nodiscard]] inline std::string without_default(const std::string& name) {
  for (const char* matrix : {".lora_A", ".lora_B"}) {
    const std::string end = concat(matrix, ".default.weight");
    if (name.ends_with(end)) return concat(name.substr(0, name.size() - end.size()), matrix, ".weight");
  }
  return name;
}

/// Modules of the first `layers` layers that have an adapter.
[[nodiscard]] inline std::size_t adapted_modules(const PeftConfig& config, int layers) {
  std::size_t count = 0;
  for (int layer = 0; layer < layers; ++layer) {
    for (const Proj proj : all_projections) count += has_adapter(config, layer, proj) ? 1 : 0;
  }
  return count;
}

}  // namespace detail

/// An open adapter directory. Movable; what source() returns keeps the file mapped. Const members, and
/// the sources, may be called by any number of threads at once.
struct PeftAdapter : PeftConfig {
  std::filesystem::path path;  ///< the directory
  int layers = 0;              ///< one more than the highest layer that has an adapter

  /// Opens and checks an adapter, and reads all of it to compare it with its checksums. Throws Error naming file, key
  /// or tensor; pickle files are refused.
  [[nodiscard]] static PeftAdapter open(const std::filesystem::path& directory, Verify verify = Verify::checksums) {
    PeftAdapter adapter;
    const std::filesystem::path config = directory / "adapter_config.json";
    std::error_code none;  // a path that cannot be, say one that is too long, is no adapter either
    if (!std::filesystem::exists(config, none)) {
      throw Error(concat(directory.string(), " is no adapter: it has no adapter_config.json"));
    }
    if (verify == Verify::checksums) check_file_sums(directory);
    static_cast<PeftConfig&>(adapter) = detail::parse_peft_config(read_json_object(config, 1U << 20), config.string());
    adapter.path = directory;
    const std::filesystem::path weights = directory / "adapter_model.safetensors";
    if (!std::filesystem::exists(weights, none) && std::filesystem::exists(directory / "adapter_model.bin", none)) {
      throw Error(concat(directory.string(),
                         ": adapter_model.bin is a pickle file, which can run code and is "
                         "not read here; save the adapter again with peft's safe_serialization=True"));
    }
    adapter.file_ = std::make_shared<const SafetensorsFile>(weights, verify);
    const auto& metadata = adapter.file_->metadata();
    if (const auto found = metadata.find(detail::base_key); found != metadata.end()) {
      adapter.base_fingerprint = found->second;
    }
    if (const auto found = metadata.find(detail::base_checksum_key); found != metadata.end()) {
      adapter.base_checksum = found->second;
    }
    adapter.check_tensors();
    if (adapter.file_->has_checksums()) {
      for (const std::string& name : adapter.file_->names()) (void)adapter.file_->verify(name);
    }
    return adapter;
  }

  /// The matrices by name; see lora_name().
  [[nodiscard]] TensorSource source() const {
    return [file = file_, stored = stored_](std::string_view name) {
      const auto found = stored->find(name);
      return found == stored->end() ? std::nullopt : file->find(found->second);
    };
  }
  /// Names of all matrices, as lora_name() gives them.
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, stored] : *stored_) names.push_back(name);
    return names;
  }

 private:
  static constexpr std::size_t most_matrices = 2 * 7 * 4096;  // of any model

  /// Every tensor is one half of a pair, of a module that has an adapter, with the rank that the config gives it, and
  /// no module lacks its pair up to the last layer that has one. The other dimension is the model's affair.
  void check_tensors() {
    const std::vector<std::string> all = file_->names();
    const std::string file = file_->path().string();
    if (all.size() > most_matrices)
      throw Error(concat(file, ": holds ", all.size(), " tensors, more than adapters have"));
    std::map<std::string, std::string, std::less<>> stored;
    Proj seen = Proj::none;
    for (const std::string& as_stored : all) {
      const std::string where = concat(file, ": the tensor '", detail::excerpt(as_stored), "'");
      const std::string name = detail::without_default(as_stored);
      const auto place = detail::lora_place(name);
      if (!place) refuse_tensor(where, as_stored);
      if (!stored.emplace(name, as_stored).second) throw Error(where + " is there twice, with and without '.default'");
      check_tensor(where, *place, file_->at(as_stored));
      seen = seen | place->proj;
      layers = std::max(layers, place->layer + 1);
    }
    for (const auto& [name, as_stored] : stored) {
      const detail::LoraPlace place = detail::lora_place(name).value();
      if (stored.contains(lora_name(place.layer, place.proj, place.matrix == 'A' ? 'B' : 'A'))) continue;
      throw Error(concat(file, ": the tensor '", detail::excerpt(as_stored), "' has no partner"));
    }
    const std::size_t expected = 2 * detail::adapted_modules(*this, layers);
    if (layers == 0 || stored.size() != expected) {
      throw Error(concat(file, ": holds ", stored.size(), " LoRA matrices, not the ", expected, " of ", layers,
                         " layers; some are missing"));
    }
    targets = seen;
    stored_ = std::make_shared<const std::map<std::string, std::string, std::less<>>>(std::move(stored));
  }
  [[noreturn]] static void refuse_tensor(const std::string& where, const std::string& name) {
    const char* what = " is not a LoRA matrix of a llama model";
    if (name.find(".lora_magnitude_vector") != std::string::npos)
      what = " is a magnitude of DoRA, which is not computed here";
    if (name.find(".modules_to_save.") != std::string::npos || name.find(".lora_") == std::string::npos) {
      what = " is a module that was trained whole (modules_to_save), which is not computed here";
    }
    throw Error(concat(where, what, detail::merge_cure));
  }
  void check_tensor(const std::string& where, const detail::LoraPlace& place, const TensorRef& tensor) const {
    if (!has_adapter(*this, place.layer, place.proj)) {
      throw Error(where + " is for a module that has no adapter by adapter_config.json (target_modules, " +
                  "exclude_modules, layers_to_transform)");
    }
    const int rank = rank_of(*this, place.layer, place.proj);
    const std::size_t rank_axis = place.matrix == 'A' ? 0 : 1;
    if (tensor.shape.size() != 2 || tensor.shape[rank_axis] != rank || tensor.shape[1 - rank_axis] <= 0) {
      throw Error(concat(where, " does not have the rank ", rank, " that adapter_config.json gives it"));
    }
    if (tensor.dtype != DType::f32 && tensor.dtype != DType::f16 && tensor.dtype != DType::bf16) {
      throw Error(concat(where, " holds ", name_of(tensor.dtype), ", not F32, F16 or BF16"));
    }
  }

  std::shared_ptr<const SafetensorsFile> file_;
  std::shared_ptr<const std::map<std::string, std::string, std::less<>>> stored_;  // names in the file, by lora_name()
};

/// The largest rank of a module that the adapter has; patterns of other modules do not count.
[[nodiscard]] inline int highest_rank(const PeftAdapter& adapter) {
  int highest = 0;
  for (int layer = 0; layer < adapter.layers; ++layer) {
    for (const Proj proj : all_projections) {
      if (has_adapter(adapter, layer, proj)) highest = std::max(highest, rank_of(adapter, layer, proj));
    }
  }
  return highest;
}

/// Throws Error (input) when the modules of a model of so many layers that have an adapter by adapter_config.json are
/// not those of the file: the adapter was made for another model.
inline void expect_layers(const PeftAdapter& adapter, int layers) {
  const bool fits = adapter.layers <= layers && detail::adapted_modules(adapter, layers) * 2 == adapter.names().size();
  if (fits) return;
  throw Error(
      concat(adapter.path.string(), " has adapters in ", adapter.layers, " layers, the model has ", layers, " layers"));
}

/// Throws Error (input) when the weights of the base, whose checksum() this is, are not those that the adapter was
/// trained on, although they begin alike. Nothing is compared where either is not known.
inline void expect_base_checksum(const PeftAdapter& adapter, const std::string& checksum) {
  if (adapter.base_checksum.empty() || checksum.empty() || adapter.base_checksum == checksum) return;
  throw Error(
      concat("the model's weights are not those that ", adapter.path.string(),
             " was trained on, although all tensors begin alike: the file is damaged, or was changed; fetch the "
             "model again, or give --any-base to use it all the same"));
}

/// A matrix to be written; name from lora_name(), the floats stay the caller's.
struct PeftTensor {
  std::string name;                 ///< as lora_name() gives it
  std::vector<std::int64_t> shape;  ///< A (R,K) or B (N,R)
  std::span<const float> data;      ///< as many as the shape says
};

/// Writes an adapter directory that peft loads, whole or not at all. A directory that holds an adapter and nothing else
/// is replaced. Throws Error when a matrix does not have the rank that the config gives its module, or a value is not
/// finite in `dtype` (f32, f16 or bf16).
inline void write_peft(const std::filesystem::path& target, const PeftConfig& config,
                       std::span<const PeftTensor> tensors, DType dtype = DType::f32) {
  QLORA_EXPECTS(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16, "an adapter cannot be written as ",
                name_of(dtype));
  std::vector<TensorInfo> plan;
  int layers = 0;
  for (const PeftTensor& tensor : tensors) {
    const auto place = detail::lora_place(tensor.name);
    QLORA_EXPECTS(place && has_adapter(config, place->layer, place->proj), "'", tensor.name,
                  "' is not a matrix of a target");
    const std::size_t rank_axis = place->matrix == 'A' ? 0 : 1;
    QLORA_EXPECTS(tensor.shape.size() == 2 && tensor.shape[rank_axis] == rank_of(config, place->layer, place->proj),
                  "'", tensor.name, "' does not have rank ", rank_of(config, place->layer, place->proj));
    const auto bytes = detail::checked_bytes(DType::f32, tensor.shape);
    QLORA_EXPECTS(bytes && *bytes == tensor.data.size_bytes(), "'", tensor.name, "' has ", tensor.data.size(),
                  " values, not those of its shape");
    plan.push_back({tensor.name, dtype, tensor.shape});
    layers = std::max(layers, place->layer + 1);
  }
  QLORA_EXPECTS(layers > 0 && tensors.size() == 2 * detail::adapted_modules(config, layers), tensors.size(),
                " matrices for ", layers, " layers");
  AtomicDirectory directory(target, {"adapter_config.json", "adapter_model.safetensors", file_sums_name});
  std::map<std::string, std::string> metadata{{"format", "pt"}};
  if (!config.base_fingerprint.empty()) metadata[detail::base_key] = config.base_fingerprint;
  if (!config.base_checksum.empty()) metadata[detail::base_checksum_key] = config.base_checksum;
  SafetensorsWriter writer(directory.temporary() / "adapter_model.safetensors", std::move(plan), metadata,
                           Checksums::stated);
  for (const PeftTensor& tensor : tensors) writer.write_floats(tensor.name, 0, tensor.data);
  writer.finish();
  write_file_atomically(directory.temporary() / "adapter_config.json", json_text(detail::peft_config_json(config)));
  write_file_sums(directory.temporary(), {"adapter_config.json"});
  directory.commit();
}

}  // namespace v0
}  // namespace qlora
