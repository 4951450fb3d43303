// qlora/serve/routes.hpp — which request is answered by what. A path that is not in the list is answered with 404,
// whoever asks.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/probes.hpp"
#include "qlora/io/json.hpp"
#include "qlora/serve/compare.hpp"
#include "qlora/serve/compare_page.hpp"
#include "qlora/serve/fields.hpp"
#include "qlora/serve/http.hpp"
#include "qlora/serve/model.hpp"
#include "qlora/serve/models.hpp"
#include "qlora/serve/openai.hpp"
#include "qlora/serve/openapi.hpp"
#include "qlora/serve/probing.hpp"
#include "qlora/serve/tgi.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// Loads and unloads adapters while a model is served. Any thread may call it.
struct AdapterDoor {
  /// To a base, by its name. Throws Error.
  std::function<void(const std::string& base, const std::string& name, const std::filesystem::path& dir)> attach{};
  /// Throws Refused (404) for a name that is not there.
  std::function<void(const std::string& name)> detach{};
};

/// The paths that need no key.
[[nodiscard]] inline std::vector<std::string> open_paths() { return {"/health"}; }
/// The pages that a browser gets without one: they ask for it, and show what the other paths answer to it.
[[nodiscard]] inline std::vector<std::string> open_pages() { return {"/"}; }

/// Whether errors of a path are in TGI's form.
[[nodiscard]] inline bool is_tgi(std::string_view path) {
  for (const std::string_view mine :
       {"/", "/generate", "/generate_stream", "/invocations", "/ping", "/health", "/info"}) {
    if (path == mine) return true;
  }
  return false;
}

/// The form of a body that came to SageMaker's /invocations.
enum class BodyForm : std::uint8_t {
  chat,  ///< of OpenAI's conversations
  text,  ///< of OpenAI's completions
  tgi    ///< of text-generation-inference
};

/// By the field that each form needs. Throws Refused where none is there.
[[nodiscard]] inline BodyForm form_of(const Json& body) {
  if (json_find(body, "messages") != nullptr) return BodyForm::chat;
  if (json_find(body, "prompt") != nullptr) return BodyForm::text;
  if (json_find(body, "inputs") != nullptr) return BodyForm::tgi;
  throw Refused(422, "the body must have `inputs`, `messages` or `prompt`");
}

/// How / and /invocations answer a body in TGI's form.
inline constexpr TgiRoute invoked{.may_stream = true, .as_list = true, .full_text = true};

/// An error in the form of its path.
[[nodiscard]] inline HttpReply error_reply(std::string_view path, const Refused& error) {
  HttpReply reply{.status = error.status()};
  reply.body = json_body(is_tgi(path) ? tgi_error(error.status(), error.what())
                                      : openai_error(error.status(), error.what(), error.field(), error.code()));
  if (error.status() == 429 || error.status() == 503) reply.headers.emplace_back("Retry-After", "1");
  return reply;
}

/// What stands for %41 in a path. What is no such code stays.
[[nodiscard]] inline std::string percent_decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned byte = 0;
    const char* const code = text.data() + i + 1;
    if (text[i] == '%' && i + 2 < text.size() && std::from_chars(code, code + 2, byte, 16).ptr == code + 2) {
      out += static_cast<char>(byte);
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

/// Answers requests. Any number of threads may call it at once.
class Routes {
 public:
  /// `version`: of the program. `connections`: open ones, for the counters. `keyed`: the server has a key. An empty
  /// `door`: adapters stay as they are. `probes`: questions that variants can be asked.
  Routes(const ServedModels& models, std::string version, std::function<int()> connections, bool keyed,
         AdapterDoor door = {}, std::vector<eval::Item> probes = {})
      : models_(models),
        version_(std::move(version)),
        connections_(std::move(connections)),
        door_(std::move(door)),
        probes_(questions_of(std::move(probes))),
        probe_list_(json_body(probe_list(probes_))) {
    get("/health", [this](const auto& exchange) { health(*exchange); });
    get("/ping", [this](const auto& exchange) { health(*exchange); });
    get("/", [this](const auto& exchange) { front(*exchange); });
    get("/info", [this](const auto& exchange) { exchange->reply({.body = json_body(tgi_info(models_, version_))}); });
    get("/v1/models", [this](const auto& exchange) { exchange->reply({.body = json_body(openai_models(models_))}); });
    get("/v1/models/{model}", [this](const auto& exchange) {
      constexpr std::string_view before = "/v1/models/";
      exchange->reply(
          {.body = json_body(openai_model(models_, percent_decoded(exchange->request().path.substr(before.size()))))});
    });
    get("/openapi.json", [this, keyed](const auto& exchange) { exchange->reply({.body = description(keyed)}); });
    get("/metrics", [this](const auto& exchange) {
      SchedulerLoad load;  // of all bases
      int queued = 0;
      for (const ServedModel* model : models_.all()) {
        const SchedulerLoad its = model->service().load();
        load.running += its.running;
        load.waiting += its.waiting;
        load.slots += its.slots;
        load.cached_tokens += its.cached_tokens;
        load.most_tokens += its.most_tokens;
        queued += model->service().queued();
      }
      exchange->reply({.type = "text/plain; version=0.0.4; charset=utf-8",
                       .body = models_.first().metrics().text(load, queued, connections_())});
    });
    post("/", [this](const auto& exchange) { tgi(exchange, invoked); });
    post("/generate", [this](const auto& exchange) { tgi(exchange, {}); });
    post("/generate_stream", [this](const auto& exchange) { tgi(exchange, {.stream = true}); });
    post("/invocations", [this](const auto& exchange) { invoke(exchange); });
    post("/v1/chat/completions", [this](const auto& exchange) { openai(exchange, body_of(*exchange), true); });
    post("/v1/completions", [this](const auto& exchange) { openai(exchange, body_of(*exchange), false); });
    post("/compare", [this](const auto& exchange) { compare_variants(exchange, body_of(*exchange), models_); });
    get("/probes", [this](const auto& exchange) { exchange->reply({.body = probe_list_}); });
    post("/probes", [this](const auto& exchange) { ask_probe(exchange, body_of(*exchange), models_, probes_); });
    if (door_.attach) {
      post("/adapters", [this](const auto& exchange) { attach(*exchange); });
      post("/adapters/unload", [this](const auto& exchange) { detach(*exchange); });
    }
  }
  Routes(const Routes&) = delete;
  Routes& operator=(const Routes&) = delete;
  ~Routes() = default;

  /// Answers one request, now or later.
  void operator()(const std::shared_ptr<Exchange>& exchange) const {
    const HttpRequest& request = exchange->request();
    try {
      std::string allowed;
      if (const Answer* answer = find(request, allowed)) {
        (*answer)(exchange);
      } else if (allowed.empty()) {
        throw Refused(404, concat("there is no such path: ", qlora::detail::excerpt(request.path)));
      } else {
        HttpReply reply = error_reply(
            request.path, Refused(405, concat(request.method, " is not for this path; it takes ", allowed)));
        reply.headers.emplace_back("Allow", allowed);
        exchange->reply(std::move(reply));
      }
    } catch (const Refused& error) {
      exchange->reply(error_reply(error_path(request), error));
    } catch (const Error& error) {
      const int status = error.kind() == ErrorKind::usage || error.kind() == ErrorKind::input ? 400 : 500;
      exchange->reply(error_reply(error_path(request), Refused(status, error.what())));
    }
  }
  /// A path as counters name it: "other" where there is none.
  [[nodiscard]] std::string_view name_of(std::string_view path) const {
    for (const Route& route : routes_) {
      if (is_at(route, path)) return route.path;
    }
    return "other";
  }

 private:
  using Answer = std::function<void(const std::shared_ptr<Exchange>&)>;
  struct Route {
    std::string_view method, path;
    Answer answer;
  };

  void get(std::string_view path, Answer answer) { routes_.push_back({"GET", path, std::move(answer)}); }
  void post(std::string_view path, Answer answer) { routes_.push_back({"POST", path, std::move(answer)}); }
  /// Whether a path is a route's: the same, or for "/v1/models/{model}" anything in the place of the braces.
  [[nodiscard]] static bool is_at(const Route& route, std::string_view path) {
    const std::size_t brace = route.path.find('{');
    if (brace == std::string_view::npos) return route.path == path;
    return path.size() > brace && path.starts_with(route.path.substr(0, brace));
  }
  /// Null where no route takes the request; `allowed` then has the methods that its path takes.
  [[nodiscard]] const Answer* find(const HttpRequest& request, std::string& allowed) const {
    for (const Route& route : routes_) {
      if (!is_at(route, request.path)) continue;
      if (route.method == request.method) return &route.answer;
      allowed += (allowed.empty() ? "" : ", ") + std::string(route.method == "GET" ? "GET, HEAD" : route.method);
    }
    return nullptr;
  }
  /// A body of OpenAI's that came to /invocations gets OpenAI's errors.
  [[nodiscard]] static std::string error_path(const HttpRequest& request) {
    const bool other = request.path == "/invocations" && request.body.find("\"inputs\"") == std::string::npos;
    return other ? "/v1/completions" : request.path;
  }

  [[nodiscard]] Json body_of(const Exchange& exchange) const {
    return body_object(exchange.request().body, models_.most_values());
  }
  /// Written again only when adapters have come or gone: that takes a thread of the server 2 ms, another answer 0.05.
  [[nodiscard]] std::string description(bool keyed) const {
    const std::vector<std::string> names = models_.names();
    const std::lock_guard lock(described_mutex_);
    if (described_.empty() || names != described_names_) {
      described_ = json_body(openapi(models_, version_, keyed, door_.attach != nullptr, probes_.size()));
      described_names_ = names;
    }
    return described_;
  }
  void health(Exchange& exchange) const {
    if (const std::string why = models_.failure(); !why.empty()) throw Refused(503, why);
    exchange.reply({.body = "{\"status\":\"ok\"}"});
  }
  void front(Exchange& exchange) const {
    if (!wants_page(exchange.request().header("accept"))) {
      exchange.reply({.body = json_body(tgi_info(models_, version_)), .headers = {{"Vary", "Accept"}}});
      return;
    }
    exchange.reply({.type = "text/html; charset=utf-8",
                    .body = compare_page(),
                    .headers = {{"Vary", "Accept"}, {"Content-Security-Policy", std::string(compare_policy)}}});
  }
  void tgi(const std::shared_ptr<Exchange>& exchange, const TgiRoute& route) const {
    const Json body = body_of(*exchange);
    tgi_generate(exchange, body, route, models_.of_body(body));
  }
  void openai(const std::shared_ptr<Exchange>& exchange, const Json& body, bool chat) const {
    openai_generate(exchange, body, chat, models_.of_body(body));
  }
  /// SageMaker's one door: the body says which form it has.
  void invoke(const std::shared_ptr<Exchange>& exchange) const {
    const Json body = body_of(*exchange);
    const BodyForm form = form_of(body);
    if (form == BodyForm::tgi) {
      tgi_generate(exchange, body, invoked, models_.of_body(body));
    } else {
      openai(exchange, body, form == BodyForm::chat);
    }
  }
  void attach(Exchange& exchange) const {
    const Json body = body_of(exchange);
    const Fields fields(body, 400);
    const std::string name = fields.text("name").value_or("");
    const std::string path = fields.text("path").value_or("");
    const std::string base = fields.text("base").value_or(models_.first().names().base());
    const auto is_base = [&](const std::string& text) {
      return std::any_of(models_.all().begin(), models_.all().end(),
                         [&](const ServedModel* model) { return model->names().base() == text; });
    };
    if (!is_base(base)) fields.fail("base", "must be the name of a base");
    if (!is_name(name) || is_base(name)) {
      fields.fail("name", "must be letters, digits and any of -_./, and not the name of a base");
    }
    if (const ServedModel& other = models_.of(name); other.names().find(name) && other.names().base() != base) {
      fields.fail("name", concat("is an adapter of ", other.names().base()));
    }
    if (path.empty() || path.find('\0') != std::string::npos) {  // which no folder has in its name
      fields.fail("path", "must be the folder of an adapter on the server's machine");
    }
    try {
      door_.attach(base, name, path);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::usage && error.kind() != ErrorKind::input) throw;
      throw Refused(400, error.what(), "path");
    }
    exchange.reply({.body = json_body(openai_models(models_))});
  }
  void detach(Exchange& exchange) const {
    const Json body = body_of(exchange);
    const Fields fields(body, 400);
    const auto name = fields.text("name");
    if (!name) fields.fail("name", "must be the name of an adapter");
    door_.detach(*name);
    exchange.reply({.body = json_body(openai_models(models_))});
  }

  const ServedModels& models_;
  std::string version_;
  std::function<int()> connections_;
  AdapterDoor door_;
  std::vector<eval::Item> probes_;
  std::string probe_list_;
  std::vector<Route> routes_;
  mutable std::mutex described_mutex_;  // of what follows
  mutable std::vector<std::string> described_names_;
  mutable std::string described_;
};

}  // namespace serve
}  // namespace v0
}  // namespace qlora
