// qlora/serve/openapi_bodies.hpp — JSON Schemas of the bodies that the routes take, with the limits of the model that
// is served. Rules about several fields at once are in the fields' descriptions: no schema says that a prompt and its
// reply have 512 tokens together.
// Reference: tests/interop/serving/described.py sends what these schemas allow, and what they do not.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/io/json.hpp"
#include "qlora/serve/compare.hpp"
#include "qlora/serve/model.hpp"
#include "qlora/serve/models.hpp"
#include "qlora/serve/openai.hpp"
#include "qlora/serve/openai_request.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {
namespace detail {

/// A field of a body: its schema and, for readers, what it means.
[[nodiscard]] inline OrderedJson field(OrderedJson schema, std::string_view meaning) {
  schema["description"] = meaning;
  return schema;
}
[[nodiscard]] inline OrderedJson number(double low, double high, bool low_open = false, bool high_open = false) {
  OrderedJson out{{"type", OrderedJson::array({"number", "null"})}};
  out[low_open ? "exclusiveMinimum" : "minimum"] = low;
  out[high_open ? "exclusiveMaximum" : "maximum"] = high;
  return out;
}
[[nodiscard]] inline OrderedJson whole(std::int64_t low, std::int64_t high) {
  return {{"type", OrderedJson::array({"integer", "null"})}, {"minimum", low}, {"maximum", high}};
}
[[nodiscard]] inline OrderedJson of_type(std::string_view type) {
  return {{"type", OrderedJson::array({std::string(type), "null"})}};
}
[[nodiscard]] inline OrderedJson stops(std::size_t most) {
  const OrderedJson text{{"type", "string"}, {"minLength", 1}, {"maxLength", 1000}};
  return {{"anyOf",
           OrderedJson::array({text, {{"type", "array"}, {"items", text}, {"maxItems", most}}, {{"type", "null"}}})}};
}
[[nodiscard]] inline OrderedJson object(OrderedJson properties, OrderedJson required) {
  return {{"type", "object"}, {"properties", std::move(properties)}, {"required", std::move(required)}};
}
[[nodiscard]] inline OrderedJson any_of(OrderedJson schemas) { return {{"anyOf", std::move(schemas)}}; }

/// An expression for the decimal numbers from 0 to `most`: its digits, or fewer, or the same up to a smaller one.
[[nodiscard]] inline std::string up_to(std::int64_t most) {
  const std::string digits = std::to_string(most);
  const auto any = [](std::size_t count) { return count == 0 ? std::string() : concat("[0-9]{", count, "}"); };
  std::string out = "^(" + digits + "|0";
  for (std::size_t length = 1; length < digits.size(); ++length) out += "|[1-9]" + any(length - 1);
  for (std::size_t at = 0; at < digits.size(); ++at) {
    const char least = at == 0 ? '1' : '0';
    if (digits[at] <= least) continue;
    out += "|" + digits.substr(0, at) + "[" + least + "-" + static_cast<char>(digits[at] - 1) + "]" +
           any(digits.size() - at - 1);
  }
  return out + ")$";
}

/// What bodies of OpenAI's forms have in common. `least`: tokens of a reply.
[[nodiscard]] inline OrderedJson openai_fields(const ServedModel& model, std::int64_t least) {
  constexpr std::int64_t any_top_k = 1 << 24;
  const std::int64_t last_id = model.tokenizer().vocab_size() - 1;
  return {{"model", field(of_type("string"), "The base, an adapter, or ADAPTER@STRENGTH; without it the base")},
          {"max_tokens", field(whole(least, model.limits().total - 1),
                               concat("With the tokens of a prompt ", model.limits().total, " at most"))},
          {"temperature", number(0, 2)},
          {"top_p", number(0, 1, true)},
          {"top_k", whole(-1, any_top_k)},
          {"min_p", number(0, 1)},
          {"n", field(whole(1, most_choices), concat("Times the number of prompts ", most_choices, " at most"))},
          {"stop", stops(most_stops)},
          {"seed", whole(INT64_MIN, INT64_MAX)},
          {"stream", of_type("boolean")},
          {"stream_options",
           {{"type", OrderedJson::array({"object", "null"})},
            {"properties", {{"include_usage", of_type("boolean")}}},
            {"description", "Only where `stream` is true"}}},
          {"frequency_penalty", number(-2, 2)},
          {"presence_penalty", number(-2, 2)},
          {"repetition_penalty", number(0, 2, true)},
          {"against", field(of_type("string"),
                            "A variant of the same base: `logprobs` then say at each token the divergence of the two "
                            "variants' distributions, in nats, as `kl`")},
          {"logit_bias",
           {{"type", OrderedJson::array({"object", "null"})},
            {"maxProperties", most_biases},
            {"propertyNames", {{"pattern", up_to(last_id)}}},
            {"additionalProperties", number(-100, 100)}}}};
}

[[nodiscard]] inline OrderedJson messages() {
  const OrderedJson text{{"type", "string"}};
  const OrderedJson part =
      object({{"type", {{"const", "text"}}}, {"text", text}}, OrderedJson::array({"type", "text"}));
  const OrderedJson content = any_of(OrderedJson::array({text, {{"type", "array"}, {"items", part}}}));
  const OrderedJson roles = OrderedJson::array({"system", "developer", "user", "assistant"});
  const OrderedJson message =
      object({{"role", {{"enum", roles}}}, {"content", content}}, OrderedJson::array({"role", "content"}));
  return {{"type", "array"},
          {"minItems", 1},
          {"items", message},
          {"description",
           "As the model's chat form has it, mostly: a system message first, if any, then turns of user "
           "and assistant. No text spells a mark of the form"}};
}
[[nodiscard]] inline OrderedJson chat_body(const ServedModel& model) {
  OrderedJson properties = openai_fields(model, 1);
  properties["messages"] = messages();
  properties["max_completion_tokens"] = properties["max_tokens"];
  properties["logprobs"] = of_type("boolean");
  properties["top_logprobs"] = field(whole(0, 20), "Only where `logprobs` is true");
  return object(std::move(properties), OrderedJson::array({"messages"}));
}
[[nodiscard]] inline OrderedJson list_of_some(const OrderedJson& of, std::int64_t most) {
  return {{"type", "array"}, {"items", of}, {"minItems", 1}, {"maxItems", most}};
}
/// A prompt as token ids.
[[nodiscard]] inline OrderedJson prompt_ids(const ServedModel& model) {
  const OrderedJson id{{"type", "integer"}, {"minimum", 0}, {"maximum", model.tokenizer().vocab_size() - 1}};
  return list_of_some(id, model.limits().input);
}
[[nodiscard]] inline OrderedJson completion_body(const ServedModel& model) {
  const OrderedJson text{{"type", "string"}};
  const OrderedJson ids = prompt_ids(model);
  const OrderedJson any = any_of(OrderedJson::array({text, ids}));
  OrderedJson properties = openai_fields(model, 0);
  properties["prompt"] = any_of(OrderedJson::array({text, ids, list_of_some(any, most_choices)}));
  properties["max_tokens"]["description"] =
      concat("0 only with `echo`. With the tokens of a prompt ", model.limits().total, " at most");
  properties["echo"] = of_type("boolean");
  properties["logprobs"] = whole(0, 5);
  return object(std::move(properties), OrderedJson::array({"prompt"}));
}
/// Names of those who may answer: the base, adapters, and adapters at a strength.
[[nodiscard]] inline OrderedJson variant_names(const ServedModels& models) {
  OrderedJson names = models.names();
  std::string any;
  for (const ServedModel* model : models.all()) {
    for (const std::string& name : model->names().adapters()) {
      any += any.empty() ? "" : "|";
      for (const char c : name) any += c == '.' ? "\\." : std::string(1, c);
    }
  }
  for (const std::string_view name : names_of_none) names.push_back(name);
  OrderedJson out = OrderedJson::array({{{"enum", std::move(names)}}});
  if (!any.empty()) {
    out.push_back(
        {{"type", "string"}, {"pattern", "^(" + any + ")@-?(16|1[0-5](\\.[0-9]{1,9})?|[0-9](\\.[0-9]{1,9})?)$"}});
  }
  return any_of(std::move(out));
}
[[nodiscard]] inline OrderedJson base_names(const ServedModels& models) {
  OrderedJson names = OrderedJson::array();
  for (const ServedModel* model : models.all()) names.push_back(model->names().base());
  return any_of(OrderedJson::array({{{"enum", std::move(names)}}, {{"type", "null"}}}));
}
[[nodiscard]] inline OrderedJson compare_body(const ServedModels& models) {
  const ServedModel& model = models.first();
  const OrderedJson null{{"type", "null"}};
  OrderedJson properties = openai_fields(model, 1);
  for (const char* name : {"model", "n", "stream", "stream_options", "against"}) properties.erase(name);
  properties["models"] = {
      {"type", "array"}, {"items", variant_names(models)}, {"minItems", 1}, {"maxItems", most_compared}};
  properties["kl"] = field(of_type("boolean"), "Whether tokens have their divergence from the first variant; true");
  const OrderedJson text{{"type", "string"}};
  const OrderedJson ids = prompt_ids(model);
  const OrderedJson one = list_of_some(any_of(OrderedJson::array({text, ids})), 1);
  properties["prompt"] = any_of(OrderedJson::array({text, ids, one, null}));
  properties["messages"] = messages();
  properties["messages"]["type"] = OrderedJson::array({"array", "null"});
  OrderedJson out = object(std::move(properties), OrderedJson::array({"models"}));
  const auto with = [&](const char* name) -> OrderedJson {
    return {{"properties", {{name, {{"not", null}}}}}, {"required", OrderedJson::array({name})}};
  };
  out["oneOf"] = OrderedJson::array({with("prompt"), with("messages")});
  return out;
}
[[nodiscard]] inline OrderedJson probe_body(const ServedModels& models, std::size_t probes) {
  OrderedJson number{{"type", "integer"}, {"minimum", 0}, {"maximum", std::max<std::size_t>(probes, 1) - 1}};
  return object({{"probe", field(std::move(number), "By its number in the list; there may be none")},
                 {"model", any_of(OrderedJson::array({variant_names(models), {{"type", "null"}}}))}},
                OrderedJson::array({"probe"}));
}
[[nodiscard]] inline OrderedJson generate_body(const ServedModels& models, bool may_stream) {
  const ServedModel& model = models.first();
  const std::int64_t total = model.limits().total;
  OrderedJson parameters{
      {"best_of", field(whole(1, 2), "2 only where tokens are drawn by chance, without `seed` and `stream`")},
      {"temperature", number(0, 100, true)},
      {"repetition_penalty", number(0, 100, true)},
      {"frequency_penalty", number(-2, 2)},
      {"top_k", whole(1, 1 << 24)},
      {"top_p", number(0, 1, true, true)},
      {"do_sample", of_type("boolean")},
      {"max_new_tokens", field(whole(1, total - 1), concat("With the tokens of `inputs` ", total, " at most"))},
      {"return_full_text", of_type("boolean")},
      {"stop", stops(4)},
      {"truncate", whole(1, model.limits().input)},
      {"details", of_type("boolean")},
      {"decoder_input_details", field(of_type("boolean"), "Not in a stream")},
      {"seed", whole(0, INT64_MAX)},
      {"top_n_tokens", whole(0, 5)},
      {"adapter_id", field(any_of(OrderedJson::array({variant_names(models), {{"type", "null"}}})),
                           "As `model` of the other bodies")}};
  OrderedJson properties{
      {"inputs", {{"type", "string"}, {"minLength", 1}}},
      {"parameters", {{"type", OrderedJson::array({"object", "null"})}, {"properties", std::move(parameters)}}}};
  if (may_stream) properties["stream"] = of_type("boolean");
  return object(std::move(properties), OrderedJson::array({"inputs"}));
}

}  // namespace detail
}  // namespace serve
}  // namespace v0
}  // namespace qlora
