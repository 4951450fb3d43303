// qlora/serve/openapi.hpp — the description of the server's routes, in OpenAPI 3.1.
// Reference: tests/serve/serve_test.cpp compares its paths with what the server answers, tests/serve/abuse_bodies.py its
// fields.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/io/json.hpp"
#include "qlora/serve/openai.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {
namespace detail {

/// A field of a body: its schema and, for readers, what it means.
[[nodiscard]] inline OrderedJson field(OrderedJson schema, std::string_view meaning = {}) {
  if (!meaning.empty()) schema["description"] = meaning;
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
[[nodiscard]] inline OrderedJson stops() {
  const OrderedJson text{{"type", "string"}, {"minLength", 1}, {"maxLength", 1000}};
  return {
      {"anyOf", OrderedJson::array({text, {{"type", "array"}, {"items", text}, {"maxItems", 4}}, {{"type", "null"}}})}};
}

/// What bodies of OpenAI's forms have in common.
[[nodiscard]] inline OrderedJson openai_fields() {
  constexpr std::int64_t most_tokens = 1 << 24;
  return {{"model", field(of_type("string"), "The base, an adapter, or ADAPTER@STRENGTH; without it the base")},
          {"max_tokens", whole(0, most_tokens)},
          {"temperature", number(0, 2)},
          {"top_p", number(0, 1, true)},
          {"top_k", whole(-1, most_tokens)},
          {"min_p", number(0, 1)},
          {"n", whole(1, most_choices)},
          {"stop", stops()},
          {"seed", of_type("integer")},
          {"stream", of_type("boolean")},
          {"stream_options",
           {{"type", OrderedJson::array({"object", "null"})}, {"properties", {{"include_usage", of_type("boolean")}}}}},
          {"frequency_penalty", number(-2, 2)},
          {"presence_penalty", number(-2, 2)},
          {"repetition_penalty", number(0, 2, true)},
          {"logit_bias",
           {{"type", OrderedJson::array({"object", "null"})},
            {"additionalProperties", {{"type", "number"}, {"minimum", -100}, {"maximum", 100}}}}}};
}
[[nodiscard]] inline OrderedJson object(OrderedJson properties, OrderedJson required) {
  return {{"type", "object"}, {"properties", std::move(properties)}, {"required", std::move(required)}};
}

[[nodiscard]] inline OrderedJson chat_body() {
  const OrderedJson part = object({{"type", {{"const", "text"}}}, {"text", {{"type", "string"}}}}, {"type", "text"});
  const OrderedJson content{
      {"anyOf", OrderedJson::array({{{"type", "string"}}, {{"type", "array"}, {"items", part}}})}};
  OrderedJson roles = OrderedJson::array({"system", "developer", "user", "assistant"});
  const OrderedJson message =
      object({{"role", {{"enum", std::move(roles)}}}, {"content", content}}, {"role", "content"});
  OrderedJson properties = openai_fields();
  properties["messages"] = {{"type", "array"}, {"minItems", 1}, {"items", message}};
  properties["max_completion_tokens"] = whole(1, 1 << 24);
  properties["max_tokens"] = whole(1, 1 << 24);
  properties["logprobs"] = of_type("boolean");
  properties["top_logprobs"] = whole(0, 20);
  return object(std::move(properties), OrderedJson::array({"messages"}));
}
[[nodiscard]] inline OrderedJson completion_body() {
  const OrderedJson ids{{"type", "array"}, {"items", {{"type", "integer"}, {"minimum", 0}}}, {"minItems", 1}};
  const OrderedJson text{{"type", "string"}};
  OrderedJson properties = openai_fields();
  properties["prompt"] = {
      {"anyOf",
       OrderedJson::array({text, ids, {{"type", "array"}, {"items", text}}, {{"type", "array"}, {"items", ids}}})}};
  properties["echo"] = of_type("boolean");
  properties["logprobs"] = whole(0, 5);
  return object(std::move(properties), OrderedJson::array({"prompt"}));
}
[[nodiscard]] inline OrderedJson generate_body(bool may_stream) {
  OrderedJson parameters{{"best_of", whole(1, 2)},
                         {"temperature", number(0, 100, true)},
                         {"repetition_penalty", number(0, 100, true)},
                         {"frequency_penalty", number(-2, 2)},
                         {"top_k", whole(1, 1 << 24)},
                         {"top_p", number(0, 1, true, true)},
                         {"do_sample", of_type("boolean")},
                         {"max_new_tokens", whole(1, 1 << 24)},
                         {"return_full_text", of_type("boolean")},
                         {"stop", stops()},
                         {"truncate", whole(1, 1 << 24)},
                         {"details", of_type("boolean")},
                         {"decoder_input_details", of_type("boolean")},
                         {"seed", whole(0, INT64_MAX)},
                         {"top_n_tokens", whole(0, 5)},
                         {"adapter_id", field(of_type("string"), "As `model` of the other bodies")}};
  OrderedJson properties{
      {"inputs", {{"type", "string"}, {"minLength", 1}}},
      {"parameters", {{"type", OrderedJson::array({"object", "null"})}, {"properties", std::move(parameters)}}}};
  if (may_stream) properties["stream"] = of_type("boolean");
  return object(std::move(properties), OrderedJson::array({"inputs"}));
}

[[nodiscard]] inline OrderedJson answers(std::string_view type, bool errors) {
  const OrderedJson error{{"content", {{"application/json", {{"schema", {{"type", "object"}}}}}}}};
  const auto described = [&](std::string_view text) {
    OrderedJson out = error;
    out["description"] = text;
    return out;
  };
  OrderedJson out = OrderedJson::object();
  OrderedJson content = OrderedJson::object();
  content[std::string(type)] = OrderedJson::object();
  if (type == "application/json" && errors) content["text/event-stream"] = OrderedJson::object();
  out["200"] = {{"description", "The answer"}, {"content", std::move(content)}};
  out["401"] = described("The key is missing or wrong");
  if (!errors) return out;
  out["400"] = described("The body is malformed, or a field has a value that it must not have");
  out["404"] = described("There is no model of that name");
  out["413"] = described("The body has more than 2 MiB");
  out["422"] = described("As 400, in the form of text-generation-inference");
  out["429"] = described("No room; try again after the seconds of Retry-After");
  out["500"] = described("The generation failed");
  out["503"] = described("The server is about to stop, or can run nothing any more");
  return out;
}

}  // namespace detail

/// The document of /openapi.json. `admin`: adapters can be loaded.
[[nodiscard]] inline OrderedJson openapi(std::string_view version, bool admin) {
  OrderedJson paths = OrderedJson::object();
  const auto get = [&](const char* path, const char* summary, const char* type = "application/json") {
    paths[path]["get"] = {{"summary", summary}, {"responses", detail::answers(type, false)}};
  };
  const auto post = [&](const char* path, const char* summary, OrderedJson body,
                        const char* type = "application/json") {
    paths[path]["post"] = {
        {"summary", summary},
        {"requestBody", {{"required", true}, {"content", {{"application/json", {{"schema", std::move(body)}}}}}}},
        {"responses", detail::answers(type, true)}};
  };
  get("/health", "Whether requests can be run");
  get("/ping", "The same, for SageMaker");
  get("/", "A page for browsers; for others as /info");
  get("/info", "The model and its limits");
  get("/metrics", "Counters, for Prometheus", "text/plain");
  get("/v1/models", "The names that `model` may have");
  get("/openapi.json", "This document");
  post("/v1/chat/completions", "Answer a conversation", detail::chat_body());
  post("/v1/completions", "Continue texts", detail::completion_body());
  post("/generate", "Continue a text", detail::generate_body(false));
  post("/generate_stream", "Continue a text, token by token", detail::generate_body(false), "text/event-stream");
  post("/", "Continue a text; the answer is a list of one", detail::generate_body(true));
  OrderedJson any{
      {"anyOf", OrderedJson::array({detail::generate_body(true), detail::chat_body(), detail::completion_body()})}};
  post("/invocations", "Any of these bodies, for SageMaker", std::move(any));
  OrderedJson compared = detail::openai_fields();
  for (const char* name : {"model", "n", "stream", "stream_options"}) compared.erase(name);
  compared["models"] = {{"type", "array"}, {"items", {{"type", "string"}}}, {"minItems", 1}, {"maxItems", 8}};
  compared["prompt"] = detail::completion_body()["properties"]["prompt"];
  compared["messages"] = detail::chat_body()["properties"]["messages"];
  compared["prompt"]["anyOf"].push_back({{"type", "null"}});  // one of the two is there
  compared["messages"]["type"] = OrderedJson::array({"array", "null"});
  post("/compare", "One prompt to several models, token by token, and where they part",
       detail::object(std::move(compared), OrderedJson::array({"models"})), "text/event-stream");
  if (admin) {
    const OrderedJson text{{"type", "string"}};
    post("/adapters", "Load an adapter from a folder of the server's machine",
         detail::object({{"name", text}, {"path", text}}, OrderedJson::array({"name", "path"})));
    post("/adapters/unload", "Forget an adapter; replies that use it go on",
         detail::object({{"name", text}}, OrderedJson::array({"name"})));
  }
  const OrderedJson key{{"type", "http"}, {"scheme", "bearer"}};
  return {{"openapi", "3.1.0"},
          {"info", {{"title", "qlora serve"}, {"version", version}}},
          {"components", {{"securitySchemes", {{"key", key}}}}},
          {"security", OrderedJson::array({OrderedJson::object(), {{"key", OrderedJson::array()}}})},
          {"paths", std::move(paths)}};
}

}  // namespace serve
}  // namespace v0
}  // namespace qlora
