// qlora/run/json.hpp — the results of run/ as JSON, in the order in which a reader expects them, and back. The only
// place where their keys are written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "qlora/eval/results.hpp"
#include "qlora/io/json.hpp"
#include "qlora/run/comparison.hpp"
#include "qlora/run/settings.hpp"
#include "qlora/run/steps.hpp"
#include "qlora/run/train_request.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// JSON whose keys keep their order.
using OrderedJson = nlohmann::ordered_json;

/// An object with the options by name, in the order of the settings.
[[nodiscard]] inline OrderedJson to_json(const Settings& settings) {
  OrderedJson all = OrderedJson::object();
  for (const auto& [name, value] : settings) {
    std::visit([&, &key = name](const auto& one) { all[key] = one; }, value);
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
  for (const OrderedJson& one : array_of(value, key)) texts.push_back(text_of(one, key));
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
    all[name] = {{"count", group.count},
                 {"some", detail::array_json(group.some, [](const eval::Example& one) { return to_json(one); })}};
  }
  return all;
}

/// The examples that to_json wrote. Throws Error for a missing key or an unknown kind.
[[nodiscard]] inline eval::Examples examples_from_json(const OrderedJson& json) {
  eval::Examples examples;
  for (const auto& [name, group] : detail::object_of(json, "examples").items()) {
    eval::ExampleGroup& into = examples[name];
    into.count = static_cast<std::size_t>(detail::count_at(group, "count"));
    for (const OrderedJson& one : detail::required_array(group, "some")) {
      const std::string kind = detail::required_text(one, "kind");
      const auto found = std::find(eval::kind_names.begin(), eval::kind_names.end(), kind);
      if (found == eval::kind_names.end()) throw Error("no kind of probe is named \"" + kind + "\"");
      into.some.push_back({static_cast<eval::Kind>(found - eval::kind_names.begin()),
                           detail::required_text(one, "form") == "chat", detail::required_text(one, "prompt"),
                           detail::required_text(one, "expected"), detail::required_text(one, "before"),
                           detail::required_text(one, "after")});
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
  return detail::array_json(results, [](const eval::RequirementResult& one) { return to_json(one); });
}

/// The results that to_json wrote; null is NaN.
[[nodiscard]] inline std::vector<eval::RequirementResult> requirements_from_json(const OrderedJson& json) {
  std::vector<eval::RequirementResult> results;
  for (const OrderedJson& one : detail::array_of(json, "requirements")) {
    results.push_back({detail::required_text(one, "requirement"), detail::number_at(one, "measured"),
                       detail::flag_of(detail::required(one, "met"), "met")});
  }
  return results;
}

// --- FetchResult: {"documents": [{"source", "title", "bytes", "sha256"}], ..., "failed": [{"source", "error"}]} ------
// "unknown_encoding" of a document, and "repeated", formed like "failed", are there when they are not empty.

/// The documents without their texts, the sources that failed, and the counts.
[[nodiscard]] inline OrderedJson to_json(const FetchResult& result) {
  const auto failures = [](const std::vector<FetchFailure>& all) {
    return detail::array_json(all, [](const FetchFailure& one) {
      return OrderedJson{{"source", one.source}, {"error", one.error}};
    });
  };
  const auto document = [](const FetchedDocument& one) {
    OrderedJson json{{"source", one.source}, {"title", one.title}, {"bytes", one.bytes}, {"sha256", one.sha256}};
    if (!one.unknown_encoding.empty()) json["unknown_encoding"] = one.unknown_encoding;
    return json;
  };
  OrderedJson json{{"documents", detail::array_json(result.documents, document)},
                   {"bytes", result.bytes},
                   {"shared_lines_removed", result.shared_lines_removed},
                   {"failed", failures(result.failed)}};
  if (!result.repeated.empty()) json["repeated"] = failures(result.repeated);
  return json;
}
/// The result that to_json wrote; what is missing is empty or 0.
[[nodiscard]] inline FetchResult fetch_result_from_json(const OrderedJson& json) {
  FetchResult result;
  const OrderedJson none = OrderedJson::array();
  const auto items = [&](const char* key) -> const OrderedJson& {
    const OrderedJson* found = detail::find_key(json, key);
    return found == nullptr ? none : detail::array_of(*found, key);
  };
  for (const OrderedJson& one : items("documents")) {
    result.documents.push_back({detail::text_at(one, "source"), detail::text_at(one, "title"),
                                detail::whole_at(one, "bytes"), detail::text_at(one, "sha256"),
                                one.contains("unknown_encoding") ? detail::text_at(one, "unknown_encoding") : ""});
  }
  result.bytes = detail::whole_at(json, "bytes");
  result.shared_lines_removed = detail::whole_at(json, "shared_lines_removed");
  for (const OrderedJson& one : items("failed")) {
    result.failed.push_back({detail::text_at(one, "source"), detail::text_at(one, "error")});
  }
  for (const OrderedJson& one : items("repeated")) {
    result.repeated.push_back({detail::text_at(one, "source"), detail::text_at(one, "error")});
  }
  return result;
}

// --- PackResult: its members -----------------------------------------------------------------------------------------

/// The members of a PackResult under their names.
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
/// The result that to_json wrote; what is missing is empty or 0.
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

// --- MergeResult: its members ----------------------------------------------------------------------------------------

/// The members of a MergeResult under their names.
[[nodiscard]] inline OrderedJson to_json(const MergeResult& result) {
  return {{"tensors", result.tensors},
          {"changed", result.changed},
          {"parameters", result.parameters},
          {"dtype", result.dtype},
          {"path", result.path.string()}};
}
/// The result that to_json wrote; what is missing is empty or 0.
[[nodiscard]] inline MergeResult merge_result_from_json(const OrderedJson& json) {
  MergeResult result;
  result.tensors = detail::whole_at(json, "tensors");
  result.changed = detail::whole_at(json, "changed");
  result.parameters = detail::whole_at(json, "parameters");
  result.dtype = detail::text_at(json, "dtype");
  result.path = detail::text_at(json, "path");
  return result;
}

// --- RecallResult: its members ---------------------------------------------------------------------------------------

/// The members of a RecallResult under their names.
[[nodiscard]] inline OrderedJson to_json(const RecallResult& result) {
  return {{"documents", result.documents},
          {"chats", result.chats},
          {"left_out", result.left_out},
          {"out", result.out.string()}};
}

// --- PlanResult: {"bytes": {PURPOSE: ...}, "total", "device", ..., "advice": {"largest_batches", "recommended"}} -----

/// {"largest_batches", "recommended"}: batches by the name of the recomputation; no recommended run is null.
[[nodiscard]] inline OrderedJson to_json(const PlanAdvice& advice) {
  OrderedJson batches = OrderedJson::object();
  for (std::size_t i = 0; i < recompute_names.size(); ++i) {
    batches[std::string(recompute_names[i])] = advice.largest_batches[i];
  }
  OrderedJson all = OrderedJson::object();
  all["largest_batches"] = batches;
  all["recommended"] = nullptr;
  if (!advice.recommended) return all;
  all["recommended"] = {{"batch", advice.recommended->batch},
                        {"recompute", recompute_name(advice.recommended->recompute)},
                        {"recompute_layers", advice.recommended->recompute_layers},
                        {"total", advice.total}};
  return all;
}

/// Bytes by purpose and in all, and what fits the device; "advice" for GPUs alone.
[[nodiscard]] inline OrderedJson to_json(const PlanResult& result) {
  OrderedJson bytes = OrderedJson::object();
  for (std::size_t i = 0; i < purpose_count; ++i) bytes[std::string(purpose_names[i])] = result.bytes.bytes[i];
  OrderedJson all{{"bytes", bytes},          {"total", result.bytes.total()},
                  {"device", result.device}, {"device_bytes", result.device_bytes},
                  {"fits", result.fits()},   {"largest_batch", result.largest_batch}};
  if (result.advice) all["advice"] = to_json(*result.advice);
  return all;
}

// --- run::Comparison: {"answers": [{"form", "prompt", "answers": {MODEL: TEXT}}], "variants": {NAME: {"reference",
// "figures", "by_relation", "by_entity"}}}, and with probes "tuned", "examples" and "requirements" --------------------

/// {"form", "prompt", "answers": {MODEL: TEXT}}
[[nodiscard]] inline OrderedJson to_json(const Exchange& exchange) {
  OrderedJson answers = OrderedJson::object();
  for (const auto& [model, answer] : exchange.answers) answers[model] = answer;
  return {{"form", detail::form_name(exchange.chat)}, {"prompt", exchange.prompt}, {"answers", answers}};
}
/// {"reference", "figures", "by_relation", "by_entity"}, the first only where there is one.
[[nodiscard]] inline OrderedJson to_json(const VariantResult& variant) {
  OrderedJson one = OrderedJson::object();
  if (!variant.reference.empty()) one["reference"] = variant.reference;
  one["figures"] = to_json(variant.metrics);
  one["by_relation"] = to_json(variant.by_relation);
  one["by_entity"] = to_json(variant.by_entity);
  return one;
}
/// The result that to_json wrote. Throws Error where a key but "reference" is missing.
[[nodiscard]] inline VariantResult variant_from_json(const OrderedJson& json) {
  VariantResult variant;
  if (detail::section(json, "reference") != nullptr) variant.reference = detail::required_text(json, "reference");
  variant.metrics = metrics_from_json(detail::required(json, "figures"));
  variant.by_relation = shares_from_json(detail::required(json, "by_relation"));
  variant.by_entity = shares_from_json(detail::required(json, "by_entity"));
  return variant;
}

namespace detail {
[[nodiscard]] inline OrderedJson answers_json(const Comparison& comparison) {
  return array_json(comparison.answers, [](const Exchange& one) { return to_json(one); });
}
[[nodiscard]] inline OrderedJson variants_json(const Comparison& comparison) {
  OrderedJson all = OrderedJson::object();
  for (const auto& [name, variant] : comparison.variants) all[name] = to_json(variant);
  return all;
}
inline void add_judgement(const Comparison& comparison, OrderedJson& json) {
  if (!comparison.examples.empty()) json["examples"] = to_json(comparison.examples);
  if (comparison.requirements) json["requirements"] = to_json(*comparison.requirements);
}
}  // namespace detail

/// {"answers", "variants"}, and with probes "tuned", "examples" and "requirements".
[[nodiscard]] inline OrderedJson to_json(const Comparison& comparison) {
  OrderedJson json{{"answers", detail::answers_json(comparison)}, {"variants", detail::variants_json(comparison)}};
  if (!comparison.tuned.empty()) json["tuned"] = comparison.tuned;
  detail::add_judgement(comparison, json);
  return json;
}
/// The comparison that to_json wrote. Throws Error where "answers" or "variants" is missing.
[[nodiscard]] inline Comparison comparison_from_json(const OrderedJson& json) {
  Comparison comparison;
  for (const OrderedJson& one : detail::required_array(json, "answers")) {
    Exchange& exchange = comparison.answers.emplace_back();
    exchange.chat = detail::required_text(one, "form") == "chat";
    exchange.prompt = detail::required_text(one, "prompt");
    for (const auto& [model, answer] : detail::required_object(one, "answers").items()) {
      exchange.answers[model] = detail::text_of(answer, model);
    }
  }
  for (const auto& [name, variant] : detail::required_object(json, "variants").items()) {
    comparison.variants[name] = variant_from_json(variant);
  }
  if (detail::section(json, "tuned") != nullptr) comparison.tuned = detail::required_text(json, "tuned");
  if (const OrderedJson* examples = detail::section(json, "examples")) {
    comparison.examples = examples_from_json(*examples);
  }
  if (const OrderedJson* requirements = detail::section(json, "requirements")) {
    comparison.requirements = requirements_from_json(*requirements);
  }
  return comparison;
}

// --- TrainResult: its members; "adapter" or "model" is the directory of what was trained -----------------------------

/// The members of a TrainResult under their names; `trained` is "adapter" or "model".
[[nodiscard]] inline OrderedJson to_json(const TrainResult& result) {
  return {{"steps", result.steps},
          {"stopped_at", result.stopped_at},
          {"resumed_after", result.resumed_after},
          {"windows", result.windows},
          {"first_loss", result.first_loss},
          {"last_loss", result.last_loss},
          {"tok_per_s", result.tok_per_s},
          {"method", name_of(result.method)},
          {"trained_parameters", result.trained_parameters},
          {"device", name_of(result.device)},
          {"about", result.about},
          {"memory_bytes", result.memory_bytes},
          {result.method == Method::full ? "model" : "adapter", result.trained.string()}};
}
/// The result that to_json wrote; what is missing is empty or 0.
[[nodiscard]] inline TrainResult train_result_from_json(const OrderedJson& json) {
  TrainResult result;
  result.steps = detail::count_at(json, "steps");
  result.stopped_at = detail::count_at(json, "stopped_at");
  result.resumed_after = detail::count_at(json, "resumed_after");
  result.windows = static_cast<std::size_t>(detail::whole_at(json, "windows"));
  result.first_loss = detail::number_at(json, "first_loss");
  result.last_loss = detail::number_at(json, "last_loss");
  result.tok_per_s = detail::number_at(json, "tok_per_s");
  result.method = detail::text_at(json, "method") == name_of(Method::full) ? Method::full : Method::qlora;
  result.trained_parameters = detail::whole_at(json, "trained_parameters");
  result.device = detail::text_at(json, "device") == name_of(Device::cuda) ? Device::cuda : Device::cpu;
  result.about = detail::text_at(json, "about");
  result.memory_bytes = detail::whole_at(json, "memory_bytes");
  result.trained = detail::text_at(json, result.method == Method::full ? "model" : "adapter");
  return result;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
