// qlora/run/json.hpp — the results of run/ as JSON, in the order in which a reader expects them, and back. The only place
// where their keys are written.
#pragma once

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>

#include "qlora/eval/figures.hpp"
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

// --- eval::Figures: by name the fields of the main number, then the other numbers under their names ---------------------

[[nodiscard]] inline OrderedJson to_json(const eval::Figures& figures) {
  OrderedJson all = OrderedJson::object();
  for (const eval::Figure& figure : figures) {
    OrderedJson& one = all[figure.name] = to_json(figure.numbers.front().second);
    for (std::size_t i = 1; i < figure.numbers.size(); ++i) {
      one[figure.numbers[i].first] = to_json(figure.numbers[i].second);
    }
  }
  return all;
}
/// The name of a main number is not in the JSON; it is "" here, and paths leave it out.
[[nodiscard]] inline eval::Figures figures_from_json(const OrderedJson& json) {
  eval::Figures figures;
  for (const auto& [name, numbers] : json.items()) {
    if (!numbers.is_object()) continue;
    eval::Figure figure{name, {{"", interval_from_json(numbers)}}};
    for (const auto& [number, value] : numbers.items()) {
      if (value.is_object()) figure.numbers.emplace_back(number, interval_from_json(value));
    }
    figures.push_back(std::move(figure));
  }
  return figures;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
