// qlora/run/json.hpp — the results of run/ as JSON, in the order in which a reader expects them, and back. The only place
// where their keys are written.
#pragma once

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "qlora/eval/examples.hpp"
#include "qlora/eval/metrics.hpp"
#include "qlora/eval/shares.hpp"
#include "qlora/run/settings.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// JSON whose keys keep their order.
using OrderedJson = nlohmann::ordered_json;

[[nodiscard]] inline OrderedJson to_json(const Settings& settings) {
  OrderedJson all = OrderedJson::object();
  for (const auto& [name, value] : settings) {
    std::visit([&, &key = name](const auto& one) { all[key] = one; }, value);
  }
  return all;
}

namespace detail {
/// What is not known is null.
[[nodiscard]] inline OrderedJson number_json(double value) {
  return std::isfinite(value) ? OrderedJson(value) : OrderedJson(nullptr);
}
[[nodiscard]] inline double number_at(const OrderedJson& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : std::numeric_limits<double>::quiet_NaN();
}
[[nodiscard]] inline int count_at(const OrderedJson& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<int>() : 0;
}
[[nodiscard]] inline const char* form_name(bool chat) { return chat ? "chat" : "completion"; }
template <class T, class ToJson>
[[nodiscard]] OrderedJson array_json(const std::vector<T>& values, const ToJson& json_of) {
  OrderedJson all = OrderedJson::array();
  for (const T& value : values) all.push_back(json_of(value));
  return all;
}
}  // namespace detail

// --- eval::Interval: {"n", "clusters", "value", "lower", "upper"} -------------------------------------------------------

[[nodiscard]] inline OrderedJson to_json(const eval::Interval& interval) {
  return {{"n", interval.n},
          {"clusters", interval.clusters},
          {"value", detail::number_json(interval.value)},
          {"lower", detail::number_json(interval.lower)},
          {"upper", detail::number_json(interval.upper)}};
}
[[nodiscard]] inline eval::Interval interval_from_json(const OrderedJson& json) {
  eval::Interval interval;
  interval.n = detail::count_at(json, "n");
  interval.clusters = detail::count_at(json, "clusters");
  interval.value = detail::number_at(json, "value");
  interval.lower = detail::number_at(json, "lower");
  interval.upper = detail::number_at(json, "upper");
  return interval;
}

// --- eval::Metrics: by name the fields of the main number, then the other numbers under their names ---------------------

[[nodiscard]] inline OrderedJson to_json(const eval::Metrics& metrics) {
  OrderedJson all = OrderedJson::object();
  for (const eval::Metric& metric : metrics) {
    OrderedJson& one = all[metric.name] = to_json(metric.numbers.front().second);
    for (std::size_t i = 1; i < metric.numbers.size(); ++i) {
      one[metric.numbers[i].first] = to_json(metric.numbers[i].second);
    }
  }
  return all;
}
/// The name of a main number is not in the JSON; it is "" here, and paths leave it out.
[[nodiscard]] inline eval::Metrics metrics_from_json(const OrderedJson& json) {
  eval::Metrics metrics;
  for (const auto& [name, numbers] : json.items()) {
    if (!numbers.is_object()) continue;
    eval::Metric metric{name, {{"", interval_from_json(numbers)}}};
    for (const auto& [number, value] : numbers.items()) {
      if (value.is_object()) metric.numbers.emplace_back(number, interval_from_json(value));
    }
    metrics.push_back(std::move(metric));
  }
  return metrics;
}

// --- eval::Shares: {"knowledge": {"maker": {"n", "value"}}} ---------------------------------------------------------------

[[nodiscard]] inline OrderedJson to_json(const eval::Shares& shares) {
  OrderedJson all = OrderedJson::object();
  for (const auto& [kind, groups] : shares) {
    for (const auto& [group, share] : groups) all[kind][group] = {{"n", share.n}, {"value", share.value}};
  }
  return all;
}

// --- eval::Examples: {"learned": {"count", "some": [...]}, "lost": ..., "invented": ...} ----------------------------------

[[nodiscard]] inline OrderedJson to_json(const eval::Example& example) {
  return {{"kind", eval::name_of(example.kind)},
          {"form", detail::form_name(example.chat)},
          {"prompt", example.prompt},
          {"expected", example.expected},
          {"before", example.before},
          {"after", example.after}};
}
[[nodiscard]] inline OrderedJson to_json(const eval::Examples& examples) {
  OrderedJson all = OrderedJson::object();
  for (const auto& [name, group] : examples) {
    all[name] = {{"count", group.count},
                 {"some", detail::array_json(group.some, [](const eval::Example& one) { return to_json(one); })}};
  }
  return all;
}

// --- eval::RequirementResult: {"requirement", "measured", "met"} ----------------------------------------------------------

[[nodiscard]] inline OrderedJson to_json(const eval::RequirementResult& result) {
  return {{"requirement", result.expression}, {"measured", detail::number_json(result.measured)}, {"met", result.met}};
}
[[nodiscard]] inline OrderedJson to_json(const std::vector<eval::RequirementResult>& results) {
  return detail::array_json(results, [](const eval::RequirementResult& one) { return to_json(one); });
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
