// qlora/io/peft_targets.hpp — which modules of a model have adapters, as an adapter_config.json says it:
// target_modules (names, names within a layer, a regular expression, "all-linear"), exclude_modules and
// layers_to_transform.
// What may not change: has() says of each projection what peft's check_target_module_exists says of it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/config.hpp"
#include "qlora/error.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/name_pattern.hpp"
#include "qlora/model/names.hpp"

namespace qlora {
inline namespace v0 {

/// "layers.3.self_attn.q_proj": how a pattern names one module exactly.
[[nodiscard]] inline std::string module_name(int layer, Proj proj) {
  return concat("layers.", layer, ".", name_of(proj));
}

/// Some projections of some layers.
struct ModuleSet {
  Proj everywhere = Proj::none;    ///< in each layer
  std::map<int, Proj> in_layer{};  ///< in single layers, by their number
  std::string expression{};        ///< a regular expression of whole names; empty: the other two say it

  /// Whether the set has that projection. Throws Error for an expression that is not understood.
  [[nodiscard]] bool has(int layer, Proj proj) const {
    if (!expression.empty())
      return NamePattern(expression, "target_modules").matches("model." + module_name(layer, proj));
    const auto found = in_layer.find(layer);
    return contains(everywhere, proj) || (found != in_layer.end() && contains(found->second, proj));
  }
  /// Whether it has nothing.
  [[nodiscard]] bool empty() const { return everywhere == Proj::none && in_layer.empty() && expression.empty(); }

  friend bool operator==(const ModuleSet&, const ModuleSet&) = default;
};

/// Modules with adapters, where these are not some projections of every layer.
struct PeftTargets {
  ModuleSet targets{};        ///< empty: PeftConfig::targets in every layer
  ModuleSet excluded{};       ///< of the targets those without an adapter
  std::vector<int> layers{};  ///< the layers that may have some; empty: all

  friend bool operator==(const PeftTargets&, const PeftTargets&) = default;
};

namespace detail {

inline constexpr int max_adapted_layers = 1'000'000;  // of any name; a model has fewer

/// "q_proj" of "self_attn.q_proj": how target_modules names a projection.
[[nodiscard]] inline std::string_view short_name(Proj proj) {
  const std::string_view name = name_of(proj);
  return name.substr(name.find('.') + 1);
}

/// A layer's number from its digits.
[[nodiscard]] inline std::optional<int> layer_number(std::string_view digits) {
  if (digits.empty() || digits.size() > 6 || digits.find_first_not_of("0123456789") != std::string_view::npos ||
      (digits.size() > 1 && digits[0] == '0')) {
    return std::nullopt;
  }
  int number = 0;
  for (const char c : digits) number = number * 10 + (c - '0');
  return number;
}

/// What an entry of a list names: a projection, with its layer where the entry has that. A name fits a module that it
/// is equal to, or that ends with a dot and it.
[[nodiscard, gnu::cold]] inline std::optional<std::pair<std::optional<int>, Proj>> named_module(
    std::string_view entry) {
  for (const Proj proj : all_projections) {
    if (entry == short_name(proj) || entry == name_of(proj)) return std::pair(std::optional<int>(), proj);
    const std::string end = concat(".", name_of(proj));
    if (!entry.ends_with(end)) continue;
    entry.remove_suffix(end.size());
    for (const std::string_view begin : {"model.layers.", "layers.", ""}) {
      if (!entry.starts_with(begin)) continue;
      if (const auto layer = layer_number(entry.substr(begin.size()))) return std::pair(layer, proj);
    }
    return std::nullopt;
  }
  return std::nullopt;
}

inline void add_module(ModuleSet& set, const std::pair<std::optional<int>, Proj>& named) {
  Proj& into = named.first ? set.in_layer.try_emplace(*named.first, Proj::none).first->second : set.everywhere;
  into = into | named.second;
}

[[nodiscard, gnu::cold]] inline ModuleSet parse_targets(const Json& value, std::string_view where) {
  ModuleSet set;
  if (value.is_string()) {
    if (value == "all-linear") return {.everywhere = Proj::all};
    set.expression = value.get<std::string>();
    (void)NamePattern(set.expression, concat(where, ": target_modules"));
    return set;
  }
  if (!value.is_array() || value.empty()) {
    throw Error(
        concat(where, ": target_modules must be a list of module names, a regular expression or \"all-linear\""));
  }
  for (const Json& entry : value) {
    const auto named = named_module(entry.is_string() ? entry.get<std::string>() : std::string());
    if (!named) {
      throw Error(
          concat(where, ": target_modules names ", excerpt(entry.dump()),
                 ", which is none of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, alone or as ",
                 "layers.3.self_attn.q_proj; adapters of other modules are not computed here"));
    }
    add_module(set, *named);
  }
  return set;
}

/// Names that are none of the seven projections exclude nothing that could have an adapter here.
[[nodiscard, gnu::cold]] inline ModuleSet parse_excluded(const Json& value, std::string_view where) {
  ModuleSet set;
  if (value.is_string()) {
    set.expression = value.get<std::string>();
    (void)NamePattern(set.expression, concat(where, ": exclude_modules"));
    return set;
  }
  if (!value.is_array()) throw Error(concat(where, ": exclude_modules must be a list of names or an expression"));
  for (const Json& entry : value) {
    if (!entry.is_string()) throw Error(concat(where, ": exclude_modules holds ", excerpt(entry.dump())));
    if (const auto named = named_module(entry.get<std::string>())) add_module(set, *named);
  }
  return set;
}

[[nodiscard, gnu::cold]] inline std::vector<int> parse_layers(const Json& config, std::string_view where) {
  const Json* value = json_find(config, "layers_to_transform");
  if (value == nullptr || (value->is_array() && value->empty())) return {};
  if (const Json* pattern = json_find(config, "layers_pattern")) {
    const bool usual = *pattern == "layers" || *pattern == Json::array({"layers"}) || pattern->empty();
    if (!usual) {
      throw Error(concat(where, ": layers_pattern is ", excerpt(pattern->dump()), "; the layers are in 'layers' here"));
    }
  }
  std::vector<int> layers;
  const auto add = [&](const Json& entry) {
    layers.push_back(static_cast<int>(checked_int(entry, "layers_to_transform", where, 0, max_adapted_layers - 1)));
  };
  if (value->is_array()) {
    for (const Json& entry : *value) add(entry);
  } else {
    add(*value);
  }
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return layers;
}

/// The three keys together.
[[nodiscard, gnu::cold]] inline PeftTargets parse_peft_targets(const Json& config, std::string_view where) {
  PeftTargets out;
  out.targets = parse_targets(json_at(config, "target_modules", where), where);
  if (const Json* excluded = json_find(config, "exclude_modules")) out.excluded = parse_excluded(*excluded, where);
  out.layers = parse_layers(config, where);
  if (!out.layers.empty() && (!out.targets.expression.empty() || !out.targets.in_layer.empty())) {
    throw Error(concat(where, ": layers_to_transform stands beside target_modules that name layers themselves; ",
                       "leave it out"));
  }
  return out;
}

/// A set as peft writes it: a list of names, or the expression.
[[nodiscard, gnu::cold]] inline Json module_set_json(const ModuleSet& set) {
  if (!set.expression.empty()) return set.expression;
  Json names = Json::array();
  for (const Proj proj : all_projections) {
    if (contains(set.everywhere, proj)) names.push_back(std::string(short_name(proj)));
  }
  for (const auto& [layer, projections] : set.in_layer) {
    for (const Proj proj : all_projections) {
      if (contains(projections, proj)) names.push_back(module_name(layer, proj));
    }
  }
  return names;
}

}  // namespace detail
}  // namespace v0
}  // namespace qlora
