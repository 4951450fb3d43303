// qlora/serve/openapi_answers.hpp — JSON Schemas of what the routes answer. Streams are described by their type alone.
// Reference: tests/interop/serving/described.py compares answers with these.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "qlora/io/json.hpp"
#include "qlora/serve/openai.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {
namespace detail {

/// An object all of whose fields are always there.
[[nodiscard]] inline OrderedJson whole_object(OrderedJson properties) {
  OrderedJson required = OrderedJson::array();
  for (const auto& [name, schema] : properties.items()) required.push_back(name);
  return {{"type", "object"}, {"properties", std::move(properties)}, {"required", std::move(required)}};
}
[[nodiscard]] inline OrderedJson list_of(OrderedJson items) { return {{"type", "array"}, {"items", std::move(items)}}; }
[[nodiscard]] inline OrderedJson schema_of(std::string_view name) {
  return {{"$ref", "#/components/schemas/" + std::string(name)}};
}

/// The schemas of "components".
[[nodiscard]] inline OrderedJson answer_schemas() {
  const OrderedJson text{{"type", "string"}};
  const OrderedJson text_or_null{{"type", OrderedJson::array({"string", "null"})}};
  const OrderedJson count{{"type", "integer"}, {"minimum", 0}};
  const OrderedJson logprob{{"type", "number"}, {"maximum", 0}};
  const OrderedJson logprob_or_null{{"type", OrderedJson::array({"number", "null"})}, {"maximum", 0}};
  const auto or_null = [](OrderedJson schema) -> OrderedJson {
    return {{"anyOf", OrderedJson::array({std::move(schema), {{"type", "null"}}})}};
  };
  const auto always = [](const char* value) -> OrderedJson { return {{"const", value}}; };
  const auto one_of = [](OrderedJson values) -> OrderedJson { return {{"enum", std::move(values)}}; };

  OrderedJson out = OrderedJson::object();
  out["Error"] = whole_object(
      {{"error", whole_object({{"message", text}, {"type", text}, {"param", text_or_null}, {"code", text_or_null}})}});
  out["TgiError"] = whole_object({{"error", text}, {"error_type", text}});
  out["Health"] = whole_object({{"status", always("ok")}});
  out["Model"] = whole_object({{"id", text},
                               {"object", always("model")},
                               {"created", count},
                               {"owned_by", text},
                               {"root", text},
                               {"parent", text_or_null},
                               {"max_model_len", count}});
  out["Models"] = whole_object({{"object", always("list")}, {"data", list_of(schema_of("Model"))}});
  out["Info"] = whole_object({{"model_id", text},
                              {"model_sha", text},
                              {"adapters", list_of(text)},
                              {"max_concurrent_requests", count},
                              {"max_best_of", count},
                              {"max_stop_sequences", count},
                              {"max_input_length", count},
                              {"max_input_tokens", count},
                              {"max_total_tokens", count},
                              {"router", text},
                              {"version", text}});
  const OrderedJson usage = whole_object({{"prompt_tokens", count},
                                          {"completion_tokens", count},
                                          {"total_tokens", count},
                                          {"prompt_tokens_details", whole_object({{"cached_tokens", count}})}});
  const OrderedJson reason = one_of(OrderedJson::array({"stop", "length"}));
  const auto answer = [&](const char* kind, OrderedJson choice) {
    choice["index"] = count;
    choice["finish_reason"] = reason;
    return whole_object({{"id", text},
                         {"object", always(kind)},
                         {"created", count},
                         {"model", text},
                         {"system_fingerprint", text},
                         {"choices", list_of(whole_object(std::move(choice)))},
                         {"usage", usage}});
  };
  const OrderedJson likely{{"token", text},
                           {"logprob", logprob},
                           {"bytes", list_of({{"type", "integer"}, {"minimum", 0}, {"maximum", 255}})}};
  OrderedJson token = likely;
  token["top_logprobs"] = list_of(whole_object(likely));
  const OrderedJson kl{{"type", OrderedJson::array({"number", "null"})}, {"minimum", 0}};
  OrderedJson chat_token = whole_object(token);
  chat_token["properties"]["kl"] = kl;
  OrderedJson text_logprobs =
      whole_object({{"tokens", list_of(text)},
                    {"token_logprobs", list_of(logprob_or_null)},
                    {"top_logprobs", list_of(or_null({{"type", "object"}, {"additionalProperties", logprob}}))},
                    {"text_offset", list_of(count)}});
  text_logprobs["properties"]["kl"] = list_of(kl);
  out["ChatCompletion"] = answer(
      "chat.completion",
      {{"message", whole_object({{"role", always("assistant")}, {"content", text}, {"refusal", text_or_null}})},
       {"logprobs", or_null(whole_object({{"content", list_of(std::move(chat_token))}, {"refusal", text_or_null}}))}});
  out["Completion"] = answer("text_completion", {{"text", text}, {"logprobs", or_null(std::move(text_logprobs))}});
  const OrderedJson tgi_token =
      whole_object({{"id", count}, {"text", text}, {"logprob", logprob}, {"special", {{"type", "boolean"}}}});
  OrderedJson details =
      whole_object({{"finish_reason", one_of(OrderedJson::array({"length", "eos_token", "stop_sequence"}))},
                    {"generated_tokens", count},
                    {"seed", {{"type", OrderedJson::array({"integer", "null"})}, {"minimum", 0}}},
                    {"prefill", list_of(whole_object({{"id", count}, {"text", text}, {"logprob", logprob_or_null}}))},
                    {"tokens", list_of(tgi_token)}});
  details["properties"]["top_tokens"] = list_of(list_of(tgi_token));
  details["properties"]["best_of_sequences"] = list_of({{"type", "object"}});
  out["Generated"] = whole_object({{"generated_text", text}});
  out["Generated"]["properties"]["details"] = std::move(details);
  const OrderedJson turn = whole_object({{"role", text}, {"content", text}});
  out["Probes"] =
      whole_object({{"data", list_of(whole_object({{"probe", count},
                                                   {"kind", text},
                                                   {"form", one_of(OrderedJson::array({"chat", "completion"}))},
                                                   {"prompt", text},
                                                   {"history", list_of(turn)},
                                                   {"expects", list_of(text)}}))}});
  const OrderedJson yes_or_no{{"type", "boolean"}};
  out["ProbeReply"] =
      whole_object({{"probe", count}, {"model", text}, {"text", text}, {"right", yes_or_no}, {"twin", yes_or_no}});
  out["GeneratedList"] = list_of(schema_of("Generated"));
  out["GeneratedList"]["minItems"] = 1;
  out["GeneratedList"]["maxItems"] = 1;
  return out;
}

}  // namespace detail
}  // namespace serve
}  // namespace v0
}  // namespace qlora
