// qlora/run/json.hpp — the results of run/ as JSON, in the order in which a reader expects them, and back. The only place
// where their keys are written.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "qlora/eval/examples.hpp"
#include "qlora/eval/metrics.hpp"
#include "qlora/eval/shares.hpp"
#include "qlora/run/settings.hpp"
#include "qlora/run/steps.hpp"

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
[[nodiscard]] inline std::int64_t whole_at(const OrderedJson& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<std::int64_t>() : 0;
}
[[nodiscard]] inline std::string text_at(const OrderedJson& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
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

// --- FetchResult: {"documents": [{"source", "title", "bytes", "sha256"}], ..., "failed": [{"source", "error"}]} -----------

[[nodiscard]] inline OrderedJson to_json(const FetchResult& result) {
  return {{"documents", detail::array_json(result.documents,
                                           [](const FetchedDocument& one) {
                                             return OrderedJson{{"source", one.source},
                                                                {"title", one.title},
                                                                {"bytes", one.bytes},
                                                                {"sha256", one.sha256}};
                                           })},
          {"bytes", result.bytes},
          {"shared_lines_removed", result.shared_lines_removed},
          {"failed", detail::array_json(result.failed, [](const FetchFailure& one) {
             return OrderedJson{{"source", one.source}, {"error", one.error}};
           })}};
}
[[nodiscard]] inline FetchResult fetch_result_from_json(const OrderedJson& json) {
  FetchResult result;
  const auto items = [&](const char* key) { return json.value(key, OrderedJson::array()); };
  for (const OrderedJson& one : items("documents")) {
    result.documents.push_back({detail::text_at(one, "source"), detail::text_at(one, "title"),
                                detail::whole_at(one, "bytes"), detail::text_at(one, "sha256")});
  }
  result.bytes = detail::whole_at(json, "bytes");
  result.shared_lines_removed = detail::whole_at(json, "shared_lines_removed");
  for (const OrderedJson& one : items("failed")) {
    result.failed.push_back({detail::text_at(one, "source"), detail::text_at(one, "error")});
  }
  return result;
}

// --- PackResult: its members ----------------------------------------------------------------------------------------------

[[nodiscard]] inline OrderedJson to_json(const PackResult& result) {
  return {{"documents", result.documents},
          {"replayed", result.replayed},
          {"skipped_documents", result.skipped_documents},
          {"cut_documents", result.cut_documents},
          {"windows", result.windows},
          {"seq", result.seq},
          {"tokens", result.tokens},
          {"labelled", result.labelled},
          {"padding", result.padding},
          {"dropped_tokens", result.dropped_tokens},
          {"path", result.path.string()}};
}
[[nodiscard]] inline PackResult pack_result_from_json(const OrderedJson& json) {
  PackResult result;
  result.documents = detail::whole_at(json, "documents");
  result.replayed = detail::whole_at(json, "replayed");
  result.skipped_documents = detail::whole_at(json, "skipped_documents");
  result.cut_documents = detail::whole_at(json, "cut_documents");
  result.windows = detail::whole_at(json, "windows");
  result.seq = detail::count_at(json, "seq");
  result.tokens = detail::whole_at(json, "tokens");
  result.labelled = detail::whole_at(json, "labelled");
  result.padding = detail::whole_at(json, "padding");
  result.dropped_tokens = detail::whole_at(json, "dropped_tokens");
  result.path = detail::text_at(json, "path");
  return result;
}

// --- MergeResult: its members ---------------------------------------------------------------------------------------------

[[nodiscard]] inline OrderedJson to_json(const MergeResult& result) {
  return {{"tensors", result.tensors},
          {"changed", result.changed},
          {"parameters", result.parameters},
          {"dtype", result.dtype},
          {"path", result.path.string()}};
}
[[nodiscard]] inline MergeResult merge_result_from_json(const OrderedJson& json) {
  MergeResult result;
  result.tensors = detail::whole_at(json, "tensors");
  result.changed = detail::whole_at(json, "changed");
  result.parameters = detail::whole_at(json, "parameters");
  result.dtype = detail::text_at(json, "dtype");
  result.path = detail::text_at(json, "path");
  return result;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
