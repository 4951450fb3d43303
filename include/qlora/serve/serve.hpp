// qlora/serve/serve.hpp — a model directory served over HTTP until it is told to stop. Needs Boost.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "qlora/run/options.hpp"
#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/steps.hpp"
#include "qlora/serve/bases.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// What is served, and where.
struct ServeRequest {
  std::vector<ServedBase> bases{};  ///< the first answers who names none; empty: HF_MODEL_ID, else /opt/ml/model
  run::Base weights{};              ///< how they are held
  run::DeviceRequest device{};      ///< where to run
  bool any_base = false;            ///< take adapters that were trained on other weights
  run::ChatChoice chat{};           ///< the form of conversations, if not the model's own
  run::Serving serving{};           ///< address, limits, key
  std::string version{};            ///< of the program, for /info
};

/// Serves until progress asks to stop, then lets replies end for 25 seconds at most: a container has 30 between SIGTERM
/// and SIGKILL. `listening` is called with the address once requests are taken. Throws Error: (usage) for an address
/// that needs a key and has none and for names that cannot be, (input) for a model or an adapter that cannot be used,
/// (resource) for too little memory, a port that is taken, and when a step fails while it serves.
QLORA_STEP void serve_model(const ServeRequest& request, run::Progress& progress,
                            const std::function<void(const std::string& address)>& listening);

}  // namespace serve
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>
#include <variant>

#include "qlora/error.hpp"
#include "qlora/eval/probes.hpp"
#include "qlora/io/file.hpp"
#include "qlora/run/engine.hpp"
#include "qlora/serve/fields.hpp"
#include "qlora/serve/http.hpp"
#include "qlora/serve/http_server.hpp"
#include "qlora/serve/metrics.hpp"
#include "qlora/serve/model.hpp"
#include "qlora/serve/models.hpp"
#include "qlora/serve/routes.hpp"
#include "qlora/serve/service.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {
namespace detail {

/// A number of tokens from the environment; 0 where there is none.
[[nodiscard]] inline int tokens_of_environment(const char* name) {
  const std::string text = environment(name);
  if (text.empty()) return 0;
  const auto value = run::parse_value(run::Kind::integer, text);
  const auto* number = value ? std::get_if<std::int64_t>(&*value) : nullptr;
  if (number == nullptr || *number < 1 || *number > (1 << 24)) {
    throw Error(concat("the environment variable ", name, " is \"", qlora::detail::excerpt(text),
                       "\"; it must be a number of tokens"),
                ErrorKind::usage);
  }
  return static_cast<int>(*number);
}

[[nodiscard]] inline std::string key_of(const run::Serving& serving) {
  const bool file = !serving.key_file.empty();
  constexpr std::size_t longest = 4096;
  std::string key = file ? read_text(serving.key_file, longest) : environment("QLORA_API_KEY");
  key = key.substr(0, key.find_first_of("\r\n"));
  const bool printable = std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (file ? key.empty() || !printable : !printable) {
    throw Error(concat(file ? serving.key_file.string() : std::string("QLORA_API_KEY"),
                       " must hold a key on its first line: printable characters without spaces"),
                ErrorKind::usage);
  }
  return key;
}

/// Tokens of prompts and of all; what is 0 is the model's.
[[nodiscard]] inline ServedLimits limits_of(ServedLimits asked, int model_context) {
  const int total = asked.total > 0 ? asked.total : model_context;
  if (total > model_context) {
    throw Error(concat("a context of ", total, " tokens; the model reads ", model_context), ErrorKind::usage);
  }
  if (asked.input >= total) {
    throw Error(concat("MAX_INPUT_LENGTH is ", asked.input, "; it must be less than the context of ", total),
                ErrorKind::usage);
  }
  return {.input = asked.input > 0 ? asked.input : total - 1, .total = total};
}

/// A base that is served, in the order in which its parts end.
struct RunningBase {
  std::unique_ptr<run::Engine> engine{};
  std::unique_ptr<Service> service{};
  std::unique_ptr<ServedModel> model{};
};

/// A server and what it needs, in the order in which they end.
class Served {
 public:
  Served(const ServeRequest& request, run::Progress& progress)
      : asked_(named_bases(request.bases.empty() ? std::vector<ServedBase>(1) : request.bases)) {
    check_names(asked_);
    const HttpOptions http = http_options(request, progress);
    check_http_options(http);
    const ServedLimits asked{
        .input = tokens_of_environment("MAX_INPUT_LENGTH"),
        .total = request.serving.context > 0 ? request.serving.context : tokens_of_environment("MAX_TOTAL_TOKENS")};
    std::vector<eval::Item> probes = eval::read_items(request.serving.probes);
    // All weights first: what requests get is left by them.
    for (const ServedBase& base : asked_) load(base, request, progress);
    std::vector<const ServedModel*> models;
    for (std::size_t i = 0; i < bases_.size(); ++i) {
      open(asked_[i], bases_[i], asked, request, progress);
      models.push_back(bases_[i].model.get());
    }
    models_ = std::make_unique<ServedModels>(std::move(models));
    routes_ = std::make_unique<Routes>(
        *models_, request.version, [this] { return connections(); }, !http.key.empty(), door(request),
        std::move(probes));
    server_ = open_http_server(http, [this](const std::shared_ptr<Exchange>& exchange) { (*routes_)(exchange); });
    listening_ = server_.get();
  }
  Served(const Served&) = delete;
  Served& operator=(const Served&) = delete;
  ~Served() { stop(std::chrono::milliseconds(0)); }

  [[nodiscard]] int port() const { return server_->port(); }
  [[nodiscard]] std::string failure() const { return models_->failure(); }
  /// Exchanges do not outlive their server: the service, which keeps some, stops before it goes.
  void stop(std::chrono::milliseconds patience) {
    if (server_ != nullptr) server_->stop(patience);
    for (const RunningBase& base : bases_) {
      if (base.service != nullptr) base.service->stop();
    }
  }

 private:
  void load(const ServedBase& base, const ServeRequest& request, run::Progress& progress) {
    run::EngineOptions options{.base = request.weights.base,
                               .adapters = base.adapters,
                               .any_base = request.any_base,
                               .device = request.device,
                               .chat = request.chat};
    constexpr int admin_rank = 64;
    if (request.serving.admin) options.capacity = {.rank = admin_rank, .targets = Proj::all};
    progress.say(concat("loading ", base.dir.string()));
    bases_.push_back({.engine = std::make_unique<run::Engine>(base.dir, options)});
    run::say_note(bases_.back().engine->model(), progress);
  }
  void open(const ServedBase& base, RunningBase& running, const ServedLimits& asked, const ServeRequest& request,
            run::Progress& progress) {
    run::Engine& engine = *running.engine;
    const ServedLimits limits = limits_of(asked, engine.model().max_positions);
    const int slots = request.serving.slots;
    running.service = std::make_unique<Service>(
        engine.open_batch(
            {.sequences = slots, .length = limits.total, .all_logits = true, .one_order = !request.device.fast},
            request.serving.kv_memory.count),
        request.serving.queue, metrics_);
    std::vector<std::string> names;
    for (const run::NamedAdapter& adapter : base.adapters) names.push_back(adapter.name);
    running.model = std::make_unique<ServedModel>(
        engine.files(), std::make_shared<Names>(base.name, names, base.unnamed), limits, *running.service, metrics_);
    if (const int there = running.service->load().slots; there < slots) {
      progress.say(
          concat("memory is left for ", there, there == 1 ? " request" : " requests", " at once to ", base.name));
    }
  }
  [[nodiscard]] int connections() const {
    const HttpServer* server = listening_;
    return server == nullptr ? 0 : server->connections();
  }

  [[nodiscard]] AdapterDoor door(const ServeRequest& request) {
    if (!request.serving.admin) return {};
    const auto has = [](const RunningBase& base, const std::string& name) {
      const std::vector<std::string> all = base.model->names().adapters();
      return std::find(all.begin(), all.end(), name) != all.end();
    };
    return {.attach =
                [this](const std::string& base, const std::string& name, const std::filesystem::path& path) {
                  const std::lock_guard lock(adapters_);
                  for (const RunningBase& running : bases_) {
                    if (running.model->names().base() != base) continue;
                    running.engine->attach(name, path);
                    running.model->names().set(name, true);
                  }
                },
            .detach =
                [this, has](const std::string& name) {
                  const std::lock_guard lock(adapters_);
                  for (const RunningBase& running : bases_) {
                    if (!has(running, name)) continue;
                    running.model->names().set(name, false);
                    running.engine->detach(name);
                    return;
                  }
                  throw Refused(404, concat("there is no adapter ", name), "name", "model_not_found");
                }};
  }
  [[nodiscard]] HttpOptions http_options(const ServeRequest& request, run::Progress& progress) {
    const run::Serving& serving = request.serving;
    HttpOptions options{.host = serving.host,
                        .port = serving.port,
                        .key = key_of(serving),
                        .open_paths = open_paths(),
                        .open_pages = open_pages()};
    if (asked_.front().container && options.key.empty()) {
      options.host = "0.0.0.0";
      options.trust_network = true;
      progress.say("a model of a SageMaker container: requests of the platform are taken without a key");
    }
    options.limits.header_time = std::chrono::seconds(serving.timeout);
    options.limits.body_time = 3 * options.limits.header_time;
    options.limits.write_time = 3 * options.limits.header_time;
    options.limits.idle_time = 6 * options.limits.header_time;
    options.refusal = [](std::string_view path, int status, const std::string& message) {
      return error_reply(path, Refused(status, message));
    };
    options.answered = [this](std::string_view path, int status) { metrics_.answered(routes_->name_of(path), status); };
    return options;
  }

  std::vector<ServedBase> asked_;  // with names
  Metrics metrics_;
  std::mutex adapters_;                                // one is loaded at a time
  std::unique_ptr<HttpServer> server_;                 // outlives the exchanges of those below
  std::atomic<const HttpServer*> listening_{nullptr};  // for its own threads, which ask before server_ is there
  std::vector<RunningBase> bases_;
  std::unique_ptr<ServedModels> models_;
  std::unique_ptr<Routes> routes_;
};

}  // namespace detail

QLORA_STEP void serve_model(const ServeRequest& request, run::Progress& progress,
                            const std::function<void(const std::string& address)>& listening) {
  detail::Served served(request, progress);
  const std::string& host = request.serving.host;
  listening(concat("http://", host.find(':') == std::string::npos ? host : "[" + host + "]", ":", served.port()));
  while (!progress.stop_requested() && served.failure().empty()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  const std::string failure = served.failure();
  if (failure.empty()) progress.say("stopping; replies may end");
  constexpr std::chrono::seconds patience{25};
  served.stop(failure.empty() ? patience : std::chrono::seconds(1));
  if (!failure.empty()) throw Error("a step failed, and nothing can be run any more: " + failure, ErrorKind::resource);
}

}  // namespace serve
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
