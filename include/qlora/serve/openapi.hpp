// qlora/serve/openapi.hpp — the description of the server's routes, in OpenAPI 3.1.
// Reference: tests/serve/serve_test.cpp compares its paths with what the server answers, tests/serve/abuse_bodies.py
// its fields, and schemathesis all of it (tests/interop/serving.sh).
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/io/json.hpp"
#include "qlora/serve/model.hpp"
#include "qlora/serve/models.hpp"
#include "qlora/serve/openai.hpp"
#include "qlora/serve/openapi_answers.hpp"
#include "qlora/serve/openapi_bodies.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {
namespace detail {

/// An answer of some types; an empty schema says nothing about its body.
struct DescribedAnswer {
  std::string_view type = "application/json";
  OrderedJson schema = OrderedJson::object();
};

/// Describes the routes of a server.
class Description {
 public:
  explicit Description(bool keyed) : keyed_(keyed) {}

  /// A route of GET. `error`: the schema of its errors. `key`: it needs the key that the server has.
  OrderedJson& get(const char* path, const char* summary, const std::vector<DescribedAnswer>& answers,
                   const char* error, bool key = true) {
    OrderedJson& out = paths_[path]["get"];
    out = {{"summary", summary}, {"responses", responses(answers)}};
    refuse(out, "503", "The server is about to stop, or can no longer run the model", error);
    secure(out, error, key);
    return out;
  }
  /// A route of POST with the further statuses that it has.
  OrderedJson& post(const char* path, const char* summary, OrderedJson body,
                    const std::vector<DescribedAnswer>& answers, const std::vector<std::string>& statuses,
                    const char* error) {
    OrderedJson& out = paths_[path]["post"];
    out = {{"summary", summary},
           {"requestBody", {{"required", true}, {"content", {{"application/json", {{"schema", std::move(body)}}}}}}},
           {"responses", responses(answers)}};
    const auto meaning = [](const std::string& status) -> const char* {
      return status == "400"   ? "The body is malformed, or a field has a value that it must not have"
             : status == "404" ? "There is no model of that name"
             : status == "413" ? "The body has more than 2 MiB"
             : status == "422" ? "A field has a value that it must not have"
             : status == "424" ? "The generation failed"
             : status == "429" ? "No room; try again after the seconds of Retry-After"
             : status == "500" ? "The generation failed"
                               : "The server is about to stop, or can no longer run the model";
    };
    for (const std::string& status : statuses) refuse(out, status, meaning(status), error);
    secure(out, error, true);
    return out;
  }
  /// Takes the paths.
  [[nodiscard]] OrderedJson take() { return std::move(paths_); }

 private:
  [[nodiscard]] static OrderedJson responses(const std::vector<DescribedAnswer>& answers) {
    OrderedJson content = OrderedJson::object();
    for (const DescribedAnswer& answer : answers) {
      content[std::string(answer.type)] =
          answer.schema.empty() ? OrderedJson::object() : OrderedJson{{"schema", answer.schema}};
    }
    return {{"200", {{"description", "The answer"}, {"content", std::move(content)}}}};
  }
  static void refuse(OrderedJson& route, const std::string& status, const char* meaning, const char* error) {
    const OrderedJson schema =
        error != nullptr ? schema_of(error)
                         : OrderedJson{{"anyOf", OrderedJson::array({schema_of("Error"), schema_of("TgiError")})}};
    OrderedJson& out = route["responses"][status];
    out = {{"description", meaning}, {"content", {{"application/json", {{"schema", schema}}}}}};
    if (status == "429" || status == "503") {
      out["headers"]["Retry-After"] = {{"required", true}, {"schema", {{"type", "integer"}, {"minimum", 1}}}};
    }
  }
  void secure(OrderedJson& route, const char* error, bool key) const {
    if (!keyed_) return;
    if (key) refuse(route, "401", "The key is missing or wrong", error);
    if (!key) route["security"] = OrderedJson::array();
  }

  bool keyed_;
  OrderedJson paths_ = OrderedJson::object();
};

}  // namespace detail

/// The document of /openapi.json. `keyed`: the server has a key. `admin`: adapters can be loaded. `probes`: how many
/// there are.
[[nodiscard]] inline OrderedJson openapi(const ServedModels& models, std::string_view version, bool keyed, bool admin,
                                         std::size_t probes = 0) {
  const ServedModel& model = models.first();  // its limits; other bases may have others
  using detail::schema_of;
  const auto json = [](const char* schema) -> std::vector<detail::DescribedAnswer> {
    return {{.schema = schema_of(schema)}};
  };
  const auto or_stream = [](const char* schema) -> std::vector<detail::DescribedAnswer> {
    return {{.schema = schema_of(schema)}, {.type = "text/event-stream"}};
  };
  const std::vector<detail::DescribedAnswer> stream{{.type = "text/event-stream"}};
  const std::vector<std::string> openai{"400", "404", "413", "429", "500", "503"};
  const std::vector<std::string> tgi{"400", "413", "422", "424", "429", "500", "503"};
  const std::vector<std::string> both{"400", "404", "413", "422", "424", "429", "500", "503"};
  detail::Description all(keyed);
  all.get("/health", "Whether requests can be run", json("Health"), "TgiError", false);
  all.get("/ping", "The same, for SageMaker", json("Health"), "TgiError");
  OrderedJson& front = all.get("/", "A page for browsers, without a key; for others as /info",
                               {{.schema = schema_of("Info")}, {.type = "text/html"}}, "TgiError");
  if (keyed) {
    front["security"] = OrderedJson::array({OrderedJson::object(), {{"key", OrderedJson::array()}}});
  }
  all.get("/info", "The model and its limits", json("Info"), "TgiError");
  all.get("/metrics", "Counters, for Prometheus", {{.type = "text/plain"}}, "Error");
  all.get("/v1/models", "The names that `model` may have", json("Models"), "Error");
  OrderedJson& one = all.get("/v1/models/{model}", "One of them", json("Model"), "Error");
  one["parameters"] = OrderedJson::array(
      {{{"name", "model"}, {"in", "path"}, {"required", true}, {"schema", {{"type", "string"}, {"minLength", 1}}}}});
  one["responses"]["404"] = {{"description", "There is no model of that name"},
                             {"content", {{"application/json", {{"schema", schema_of("Error")}}}}}};
  all.get("/openapi.json", "This document", {{.schema = {{"type", "object"}}}}, "Error");
  all.post("/v1/chat/completions", "Answer a conversation", detail::chat_body(model), or_stream("ChatCompletion"),
           openai, "Error");
  all.post("/v1/completions", "Continue texts", detail::completion_body(model), or_stream("Completion"), openai,
           "Error");
  all.post("/generate", "Continue a text", detail::generate_body(models, false), json("Generated"), tgi, "TgiError");
  all.post("/generate_stream", "Continue a text, token by token", detail::generate_body(models, false), stream, tgi,
           "TgiError");
  all.post("/", "Continue a text; the answer is a list of one", detail::generate_body(models, true),
           or_stream("GeneratedList"), tgi, "TgiError");
  const OrderedJson any = detail::any_of(OrderedJson::array(
      {detail::generate_body(models, true), detail::chat_body(model), detail::completion_body(model)}));
  const OrderedJson any_answer = detail::any_of(
      OrderedJson::array({schema_of("GeneratedList"), schema_of("ChatCompletion"), schema_of("Completion")}));
  all.post("/invocations", "Any of these bodies, for SageMaker", any,
           {{.schema = any_answer}, {.type = "text/event-stream"}}, both, nullptr);
  all.post("/compare", "One prompt to several models, token by token, and where they part",
           detail::compare_body(models), stream, openai, "Error");
  all.get("/probes", "Questions with known answers", json("Probes"), "Error");
  all.post("/probes", "Ask one of them; the reply is judged", detail::probe_body(models, probes), json("ProbeReply"),
           openai, "Error");
  if (admin) {
    const OrderedJson name{{"type", "string"}, {"minLength", 1}, {"maxLength", 100}, {"pattern", "^[-A-Za-z0-9_./]+$"}};
    all.post("/adapters", "Load an adapter from a folder of the server's machine",
             detail::object(
                 {{"name", name},
                  {"path", {{"type", "string"}, {"pattern", "^[^\\x00]+$"}}},
                  {"base", detail::field(detail::base_names(models), "That it was trained on; without it the first")}},
                 OrderedJson::array({"name", "path"})),
             json("Models"), {"400", "413", "500", "503"}, "Error");
    all.post("/adapters/unload", "Forget an adapter; replies that use it go on",
             detail::object({{"name", {{"type", "string"}}}}, OrderedJson::array({"name"})), json("Models"),
             {"400", "404", "413", "503"}, "Error");
  }
  OrderedJson components{{"schemas", detail::answer_schemas()}};
  OrderedJson out{{"openapi", "3.1.0"}, {"info", {{"title", "qlora serve"}, {"version", version}}}};
  if (keyed) {
    components["securitySchemes"] = {{"key", {{"type", "http"}, {"scheme", "bearer"}}}};
    out["security"] = OrderedJson::array({{{"key", OrderedJson::array()}}});
  }
  out["components"] = std::move(components);
  out["paths"] = all.take();
  return out;
}

}  // namespace serve
}  // namespace v0
}  // namespace qlora
