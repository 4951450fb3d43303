// qlora/run/eval_json.hpp — settings and the results of evaluations as JSON, in the order in which a reader expects
// them, and back; and the checked readers that json.hpp uses as well.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "qlora/eval/results.hpp"
#include "qlora/io/json.hpp"
#include "qlora/run/settings.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// JSON whose keys keep their order.
using OrderedJson = nlohmann::ordered_json;

/// An object with the options by name, in the order of the settings.
[[nodiscard]] inline OrderedJson to_json(const Settings& settings) {
  OrderedJson all = OrderedJson::object();
  for (const auto& [name, value] : settings) {
    std::visit([&, &key = name](const auto& held) { all[key] = held; }, value);
  }
  return all;
}

namespace detail {
/// Texts that came from outside may not be UTF-8; JSON is.
inline constexpr auto replace_invalid = OrderedJson::error_handler_t::replace;

/// What is not known is null.
[[nodiscard]] inline OrderedJson number_json(double value) {
  return std::isfinite(value) ? OrderedJson(value) : OrderedJson(nullptr);
}
// What is read back is checked by type and range, and the message names the key: a result may come from a file that was
// damaged or written by hand.
[[noreturn]] inline void refuse_value(std::string_view key, std::string_view wanted, const OrderedJson& value) {
  const std::string shown = value.is_structured() ? value.type_name() : value.dump(-1, ' ', false, replace_invalid);
  throw Error(concat("\"", key, "\" is no ", wanted, " in the JSON of a result: ", qlora::detail::excerpt(shown)));
}
/// An object, or an array, by the name of what it is.
[[nodiscard]] inline const OrderedJson& object_of(const OrderedJson& value, std::string_view key) {
  if (!value.is_object()) refuse_value(key, "object", value);
  return value;
}
[[nodiscard]] inline const OrderedJson& array_of(const OrderedJson& value, std::string_view key) {
  if (!value.is_array()) refuse_value(key, "array", value);
  return value;
}
[[nodiscard]] inline std::string text_of(const OrderedJson& value, std::string_view key) {
  if (!value.is_string()) refuse_value(key, "text", value);
  return value.get<std::string>();
}
[[nodiscard]] inline bool flag_of(const OrderedJson& value, std::string_view key) {
  if (!value.is_boolean()) refuse_value(key, "true or false", value);
  return value.get<bool>();
}
/// A number, or null: not known.
[[nodiscard]] inline double number_of(const OrderedJson& value, std::string_view key) {
  if (value.is_null()) return std::numeric_limits<double>::quiet_NaN();
  if (!value.is_number()) refuse_value(key, "number", value);
  return value.get<double>();
}
[[nodiscard]] inline std::int64_t whole_of(const OrderedJson& value, std::string_view key,
                                           std::int64_t most = std::numeric_limits<std::int64_t>::max()) {
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<std::uint64_t>() <= static_cast<std::uint64_t>(most));
  if (!fits || value.get<std::int64_t>() < 0 || value.get<std::int64_t>() > most) {
    refuse_value(key, concat("whole number from 0 to ", most), value);
  }
  return value.get<std::int64_t>();
}
[[nodiscard]] inline std::vector<std::string> texts_of(const OrderedJson& value, std::string_view key) {
  std::vector<std::string> texts;
  for (const OrderedJson& entry : array_of(value, key)) texts.push_back(text_of(entry, key));
  return texts;
}

// Keys that may be absent, as in results of earlier versions.
[[nodiscard]] inline const OrderedJson* find_key(const OrderedJson& object, const char* key) {
  const auto found = object_of(object, concat("what holds ", key)).find(key);
  return found == object.end() ? nullptr : &*found;
}
[[nodiscard]] inline double number_at(const OrderedJson& object, const char* key) {
  const OrderedJson* found = find_key(object, key);
  return found == nullptr ? std::numeric_limits<double>::quiet_NaN() : number_of(*found, key);
}
[[nodiscard]] inline std::int64_t whole_at(const OrderedJson& object, const char* key) {
  const OrderedJson* found = find_key(object, key);
  return found == nullptr ? 0 : whole_of(*found, key);
}
[[nodiscard]] inline int count_at(const OrderedJson& object, const char* key) {
  const OrderedJson* found = find_key(object, key);
  return found == nullptr ? 0 : static_cast<int>(whole_of(*found, key, std::numeric_limits<int>::max()));
}
[[nodiscard]] inline std::string text_at(const OrderedJson& object, const char* key) {
  const OrderedJson* found = find_key(object, key);
  return found == nullptr ? std::string() : text_of(*found, key);
}
/// A value that must be there; throws Error without it.
[[nodiscard]] inline const OrderedJson& required(const OrderedJson& object, const char* key) {
  const OrderedJson* found = find_key(object, key);
  if (found == nullptr) throw Error(concat("the JSON of a result has no key \"", key, "\""));
  return *found;
}
[[nodiscard]] inline const OrderedJson& required_object(const OrderedJson& object, const char* key) {
  return object_of(required(object, key), key);
}
[[nodiscard]] inline const OrderedJson& required_array(const OrderedJson& object, const char* key) {
  return array_of(required(object, key), key);
}
[[nodiscard]] inline std::string required_text(const OrderedJson& object, const char* key) {
  return text_of(required(object, key), key);
}
/// Null where the key is not there: sections that a result may leave out.
[[nodiscard]] inline const OrderedJson* section(const OrderedJson& object, const char* key) {
  return find_key(object, key);
}
[[nodiscard]] inline const char* form_name(bool chat) { return chat ? "chat" : "completion"; }
template <class T, class ToJson>
[[nodiscard]] OrderedJson array_json(const std::vector<T>& values, const ToJson& json_of) {
  OrderedJson all = OrderedJson::array();
  for (const T& value : values) all.push_back(json_of(value));
  return all;
}
}  // namespace detail

/// A result as it is written to a file: indented, keys in their order, bytes that are not UTF-8 replaced.
[[nodiscard]] inline std::string file_text(const OrderedJson& json) {
  return json.dump(2, ' ', false, detail::replace_invalid) + "\n";
}

// --- eval::Interval: {"n", "clusters", "value", "lower", "upper"} ----------------------------------------------------

/// {"n", "clusters", "value", "lower", "upper"}; a number that is NaN is null.
[[nodiscard]] inline OrderedJson to_json(const eval::Interval& interval) {
  return {{"n", interval.n},
          {"clusters", interval.clusters},
          {"value", detail::number_json(interval.value)},
          {"lower", detail::number_json(interval.lower)},
          {"upper", detail::number_json(interval.upper)}};
}
/// The interval that to_json wrote; null is NaN.
[[nodiscard]] inline eval::Interval interval_from_json(const OrderedJson& json) {
  eval::Interval interval;
  interval.n = detail::count_at(json, "n");
  interval.clusters = detail::count_at(json, "clusters");
  interval.value = detail::number_at(json, "value");
  interval.lower = detail::number_at(json, "lower");
  interval.upper = detail::number_at(json, "upper");
  return interval;
}

// --- eval::Metrics: by name the fields of the main number, then the other numbers under their names ------------------

/// An object with the metrics by name, in their order: the fields of the main number, then the other numbers.
[[nodiscard]] inline OrderedJson to_json(const eval::Metrics& metrics) {
  OrderedJson all = OrderedJson::object();
  for (const eval::Metric& metric : metrics) {
    OrderedJson& entry = all[metric.name] = to_json(metric.numbers.front().second);
    for (std::size_t i = 1; i < metric.numbers.size(); ++i) {
      entry[metric.numbers[i].first] = to_json(metric.numbers[i].second);
    }
  }
  return all;
}
/// The name of a main number is not in the JSON; it is "" here, and paths leave it out.
[[nodiscard]] inline eval::Metrics metrics_from_json(const OrderedJson& json) {
  eval::Metrics metrics;
  for (const auto& [name, numbers] : detail::object_of(json, "metrics").items()) {
    if (!numbers.is_object()) continue;
    eval::Metric metric{name, {{"", interval_from_json(numbers)}}};
    for (const auto& [number, value] : numbers.items()) {
      if (value.is_object()) metric.numbers.emplace_back(number, interval_from_json(value));
    }
    metrics.push_back(std::move(metric));
  }
  return metrics;
}

// --- eval::Shares: {"knowledge": {"maker": {"n", "value"}}} ----------------------------------------------------------

/// {KIND: {RELATION or ENTITY: {"n", "value"}}}
[[nodiscard]] inline OrderedJson to_json(const eval::Shares& shares) {
  OrderedJson all = OrderedJson::object();
  for (const auto& [kind, groups] : shares) {
    for (const auto& [group, share] : groups) all[kind][group] = {{"n", share.n}, {"value", share.value}};
  }
  return all;
}

/// The shares that to_json wrote.
[[nodiscard]] inline eval::Shares shares_from_json(const OrderedJson& json) {
  eval::Shares shares;
  for (const auto& [kind, groups] : detail::object_of(json, "shares").items()) {
    for (const auto& [group, share] : detail::object_of(groups, kind).items()) {
      shares[kind][group] = {detail::count_at(share, "n"), detail::number_at(share, "value")};
    }
  }
  return shares;
}

// --- eval::Examples: {"learned": {"count", "some": [...]}, "lost": ..., "invented": ...} -----------------------------

/// {"kind", "form", "prompt", "expected", "before", "after"}
[[nodiscard]] inline OrderedJson to_json(const eval::Example& example) {
  return {{"kind", eval::name_of(example.kind)},
          {"form", detail::form_name(example.chat)},
          {"prompt", example.prompt},
          {"expected", example.expected},
          {"before", example.before},
          {"after", example.after}};
}
/// {"learned": {"count", "some": [EXAMPLE]}, "lost": ..., "invented": ...}
[[nodiscard]] inline OrderedJson to_json(const eval::Examples& examples) {
  OrderedJson all = OrderedJson::object();
  for (const auto& [name, group] : examples) {
    all[name] = {
        {"count", group.count},
        {"some", detail::array_json(group.some, [](const eval::Example& example) { return to_json(example); })}};
  }
  return all;
}

/// The examples that to_json wrote. Throws Error for a missing key or an unknown kind.
[[nodiscard]] inline eval::Examples examples_from_json(const OrderedJson& json) {
  eval::Examples examples;
  for (const auto& [name, group] : detail::object_of(json, "examples").items()) {
    eval::ExampleGroup& into = examples[name];
    into.count = static_cast<std::size_t>(detail::count_at(group, "count"));
    for (const OrderedJson& example : detail::required_array(group, "some")) {
      const std::string kind = detail::required_text(example, "kind");
      const auto found = std::find(eval::kind_names.begin(), eval::kind_names.end(), kind);
      if (found == eval::kind_names.end()) throw Error("no kind of probe is named \"" + kind + "\"");
      into.some.push_back({static_cast<eval::Kind>(found - eval::kind_names.begin()),
                           detail::required_text(example, "form") == "chat", detail::required_text(example, "prompt"),
                           detail::required_text(example, "expected"), detail::required_text(example, "before"),
                           detail::required_text(example, "after")});
    }
  }
  return examples;
}

// --- eval::RequirementResult: {"requirement", "measured", "met"} -----------------------------------------------------

/// {"requirement", "measured", "met"}; what could not be measured is null.
[[nodiscard]] inline OrderedJson to_json(const eval::RequirementResult& result) {
  return {{"requirement", result.expression}, {"measured", detail::number_json(result.measured)}, {"met", result.met}};
}
/// An array of the results, in their order.
[[nodiscard]] inline OrderedJson to_json(const std::vector<eval::RequirementResult>& results) {
  return detail::array_json(results, [](const eval::RequirementResult& requirement) { return to_json(requirement); });
}

/// The results that to_json wrote; null is NaN.
[[nodiscard]] inline std::vector<eval::RequirementResult> requirements_from_json(const OrderedJson& json) {
  std::vector<eval::RequirementResult> results;
  for (const OrderedJson& requirement : detail::array_of(json, "requirements")) {
    results.push_back({detail::required_text(requirement, "requirement"), detail::number_at(requirement, "measured"),
                       detail::flag_of(detail::required(requirement, "met"), "met")});
  }
  return results;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
