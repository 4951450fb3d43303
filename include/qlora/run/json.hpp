// qlora/run/json.hpp — the results of run/ as JSON, in the order in which a reader expects them, and back: those of the
// steps here, those of evaluations in eval_json.hpp. The only two places where their keys are written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/run/comparison.hpp"
#include "qlora/run/eval_json.hpp"
#include "qlora/run/steps.hpp"
#include "qlora/run/train_request.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

// --- FetchResult: {"documents": [{"source", "title", "bytes", "sha256"}], ..., "failed": [{"source", "error"}]} ------
// "unknown_encoding" of a document, and "repeated", formed like "failed", are there when they are not empty.

/// The documents without their texts, the sources that failed, and the counts.
[[nodiscard]] inline OrderedJson to_json(const FetchResult& result) {
  const auto failures = [](const std::vector<FetchFailure>& all) {
    return detail::array_json(all, [](const FetchFailure& failure) {
      return OrderedJson{{"source", failure.source}, {"error", failure.error}};
    });
  };
  const auto document = [](const FetchedDocument& fetched) {
    OrderedJson json{
        {"source", fetched.source}, {"title", fetched.title}, {"bytes", fetched.bytes}, {"sha256", fetched.sha256}};
    if (!fetched.unknown_encoding.empty()) json["unknown_encoding"] = fetched.unknown_encoding;
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
  for (const OrderedJson& item : items("documents")) {
    result.documents.push_back({detail::text_at(item, "source"), detail::text_at(item, "title"),
                                detail::whole_at(item, "bytes"), detail::text_at(item, "sha256"),
                                item.contains("unknown_encoding") ? detail::text_at(item, "unknown_encoding") : ""});
  }
  result.bytes = detail::whole_at(json, "bytes");
  result.shared_lines_removed = detail::whole_at(json, "shared_lines_removed");
  for (const OrderedJson& item : items("failed")) {
    result.failed.push_back({detail::text_at(item, "source"), detail::text_at(item, "error")});
  }
  for (const OrderedJson& item : items("repeated")) {
    result.repeated.push_back({detail::text_at(item, "source"), detail::text_at(item, "error")});
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

/// The members of a MergeCertificate under their names.
[[nodiscard]] inline OrderedJson to_json(const MergeCertificate& certificate) {
  OrderedJson merged = OrderedJson::array();
  for (const MergeDifference& difference : certificate.merged) {
    merged.push_back({{"onto", difference.onto},
                      {"largest_logit_difference", difference.largest_logit},
                      {"mean_logit_difference", difference.mean_logit},
                      {"kl", difference.kl},
                      {"top1_agreement", difference.agreement},
                      {"perplexity", difference.perplexity}});
  }
  return {{"written", certificate.written},
          {"windows", certificate.windows},
          {"tokens", certificate.tokens},
          {"perplexity", certificate.perplexity},
          {"merged", std::move(merged)}};
}
/// The members of a MergeResult under their names.
[[nodiscard]] inline OrderedJson to_json(const MergeResult& result) {
  OrderedJson json{{"tensors", result.tensors},
                   {"changed", result.changed},
                   {"parameters", result.parameters},
                   {"dtype", result.dtype},
                   {"path", result.path.string()}};
  if (result.certificate) json["certificate"] = to_json(*result.certificate);
  return json;
}
/// The result that to_json wrote; what is missing is empty or 0.
[[nodiscard]] inline MergeResult merge_result_from_json(const OrderedJson& json) {
  MergeResult result;
  result.tensors = detail::whole_at(json, "tensors");
  result.changed = detail::whole_at(json, "changed");
  result.parameters = detail::whole_at(json, "parameters");
  result.dtype = detail::text_at(json, "dtype");
  result.path = detail::text_at(json, "path");
  if (!json.contains("certificate")) return result;
  const OrderedJson& written = json["certificate"];
  MergeCertificate& certificate = result.certificate.emplace();
  certificate.written = detail::text_at(written, "written");
  certificate.windows = detail::count_at(written, "windows");
  certificate.tokens = detail::whole_at(written, "tokens");
  certificate.perplexity = detail::number_at(written, "perplexity");
  if (!written.contains("merged") || !written["merged"].is_array()) return result;
  for (const OrderedJson& item : written["merged"]) {
    certificate.merged.push_back({.onto = detail::text_at(item, "onto"),
                                  .largest_logit = detail::number_at(item, "largest_logit_difference"),
                                  .mean_logit = detail::number_at(item, "mean_logit_difference"),
                                  .kl = detail::number_at(item, "kl"),
                                  .agreement = detail::number_at(item, "top1_agreement"),
                                  .perplexity = detail::number_at(item, "perplexity")});
  }
  return result;
}

// --- QuantizeResult: its members -------------------------------------------------------------------------------------

/// The members of a QuantizeResult under their names.
[[nodiscard]] inline OrderedJson to_json(const QuantizeResult& result) {
  return {{"tensors", result.tensors},
          {"quantized", result.quantized},
          {"double_quant", result.double_quant},
          {"path", result.path.string()}};
}

// --- PullResult and AcceptResult: their members ----------------------------------------------------------------------

/// The members of a PullResult under their names.
[[nodiscard]] inline OrderedJson to_json(const PullResult& result) {
  return {{"model", result.model},       {"commit", result.commit},         {"files", result.files},
          {"bytes", result.bytes},       {"downloaded", result.downloaded}, {"legal", result.legal},
          {"path", result.path.string()}};
}
/// The members of an AcceptResult under their names.
[[nodiscard]] inline OrderedJson to_json(const AcceptResult& result) {
  return {{"model", result.model},
          {"commit", result.commit},
          {"licence", result.licence},
          {"page", result.page},
          {"accepted_at", result.accepted_at},
          {"legal", result.legal},
          {"record", result.record.string()}};
}

// --- ExportResult: its members ---------------------------------------------------------------------------------------

/// The members of an ExportResult under their names.
[[nodiscard]] inline OrderedJson to_json(const ExportResult& result) {
  return {{"tensors", result.tensors}, {"bytes", result.bytes}, {"path", result.path.string()}};
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
  OrderedJson entry = OrderedJson::object();
  if (!variant.reference.empty()) entry["reference"] = variant.reference;
  entry["figures"] = to_json(variant.metrics);
  entry["by_relation"] = to_json(variant.by_relation);
  entry["by_entity"] = to_json(variant.by_entity);
  return entry;
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
  return array_json(comparison.answers, [](const Exchange& exchange) { return to_json(exchange); });
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
  for (const OrderedJson& entry : detail::required_array(json, "answers")) {
    Exchange& exchange = comparison.answers.emplace_back();
    exchange.chat = detail::required_text(entry, "form") == "chat";
    exchange.prompt = detail::required_text(entry, "prompt");
    for (const auto& [model, answer] : detail::required_object(entry, "answers").items()) {
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
