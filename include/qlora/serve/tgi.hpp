// qlora/serve/tgi.hpp — the wire format of Hugging Face's text-generation-inference: /generate, /generate_stream, /,
// /info, and SageMaker's /invocations, with its defaults, its checks and its error messages.
// Difference: there is no typical_p, watermark and grammar, which are refused by name.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/io/json.hpp"
#include "qlora/serve/fields.hpp"
#include "qlora/serve/generation.hpp"
#include "qlora/serve/http.hpp"
#include "qlora/serve/model.hpp"
#include "qlora/serve/models.hpp"
#include "qlora/serve/openai.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// A body, read.
struct TgiRequest {
  std::vector<ReplyPlan> plans{};       ///< as many as best_of
  std::string inputs{};                 ///< the prompt
  std::int64_t prompt_tokens = 0;       ///< of it, the begin mark included
  std::optional<std::uint64_t> seed{};  ///< of replies that are drawn by chance
  bool stream = false;                  ///< the answer is a stream of events
  bool details = false;                 ///< the answer has tokens
  bool prefill = false;                 ///< details have the tokens of the prompt
  bool full_text = false;               ///< the inputs stand before the text
  int top_tokens = 0;                   ///< likeliest tokens in each place
  bool as_list = false;                 ///< the answer is a list of one
};

/// An error in TGI's form.
[[nodiscard]] inline OrderedJson tgi_error(int status, const std::string& message) {
  const char* type = status == 429                    ? "overloaded"
                     : status == 424                  ? "generation"
                     : status >= 500                  ? "incomplete_generation"
                     : status == 401 || status == 403 ? "authentication"
                     : status == 404 || status == 405 ? "not_found"
                                                      : "validation";
  return {{"error", message}, {"error_type", type}};
}

/// The answer of /info.
[[nodiscard]] inline OrderedJson tgi_info(const ServedModels& models, std::string_view version) {
  const ServedModel& model = models.first();
  std::vector<std::string> others = models.names();
  others.erase(others.begin());
  return {{"model_id", model.names().base()},
          {"model_sha", model.fingerprint()},
          {"model_pipeline_tag", nullptr},
          {"adapters", others},
          {"max_concurrent_requests", model.service().most()},
          {"max_best_of", 2},
          {"max_stop_sequences", 4},
          {"max_input_length", model.limits().input},
          {"max_input_tokens", model.limits().input},
          {"max_total_tokens", model.limits().total},
          {"router", "qlora"},
          {"version", version}};
}

namespace detail {

inline constexpr int tgi_status = 422;

/// Reads {"inputs", "parameters", "stream"}.
class TgiReader {
 public:
  TgiReader(const Json& body, const ServedModel& model) : body_(body, tgi_status), model_(model) {}

  /// `full_text`: what return_full_text is where it is not given.
  [[nodiscard]] TgiRequest read(bool full_text) {
    const auto inputs = body_.text("inputs");
    if (!inputs) refuse("inputs", "`inputs` must be a string");
    if (inputs->empty()) refuse("inputs", "`inputs` cannot be empty");
    out_.inputs = *inputs;
    out_.stream = body_.boolean("stream", false);
    static const Json none = Json::object();
    const Json* given = body_.object("parameters");
    const Fields parameters(given == nullptr ? none : *given, tgi_status);
    for (const char* name : {"typical_p", "watermark", "response_format", "tools"}) parameters.unsupported(name);
    for (const std::string_view name : constraints) {
      parameters.unsupported(name);
      body_.unsupported(name);
    }
    out_.full_text = parameters.boolean("return_full_text", full_text);
    out_.prefill = parameters.boolean("decoder_input_details", false);
    out_.details = parameters.boolean("details", false) || out_.prefill;
    if (out_.prefill && out_.stream)
      refuse("stream", "`decoder_input_details` == true is not supported when streaming tokens");
    Request request = model_.request(read_prompt(parameters), false, read_variant(parameters));
    out_.prompt_tokens = static_cast<std::int64_t>(request.prompt.size());
    read_length(parameters, request);
    const bool sampling = read_sampling(parameters, request);
    out_.top_tokens =
        static_cast<int>(ranged(parameters, "top_n_tokens", 0, 5, "`top_n_tokens` must be >= 0 and <= 5").value_or(0));
    const std::int64_t best_of = read_best_of(parameters, sampling);
    if (out_.details || out_.stream || best_of > 1) request.logprobs = out_.top_tokens;
    request.prompt_logprobs = out_.prefill;
    const std::vector<std::string> stops = parameters.texts("stop", 4);
    const auto seed = parameters.integer("seed", 0, INT64_MAX);
    const std::uint64_t word = seed ? static_cast<std::uint64_t>(*seed) : random_word();
    if (sampling) out_.seed = word;
    for (std::int64_t i = 0; i < best_of; ++i) {
      out_.plans.push_back({.request = request, .stops = stops, .include_stop = true});
      out_.plans.back().request.sampling.seed = seed_of(word, static_cast<std::size_t>(i));
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] static void refuse(const char* field, const std::string& message) {
    throw Refused(tgi_status, message, field);
  }
  [[nodiscard]] static std::optional<std::int64_t> ranged(const Fields& fields, const char* name, std::int64_t low,
                                                          std::int64_t high, const std::string& message) {
    const Json* value = fields.find(name);
    if (value == nullptr) return std::nullopt;
    if (!Fields::whole(*value, INT64_MIN, INT64_MAX)) refuse(name, concat("`", name, "` must be a whole number"));
    if (!Fields::whole(*value, low, high)) refuse(name, concat(message, ". Given: ", value->dump()));
    return value->get<std::int64_t>();
  }
  [[nodiscard]] Variant read_variant(const Fields& parameters) const {
    const auto name = parameters.text("adapter_id");
    if (!name) return model_.names().unnamed();
    const auto variant = model_.names().find(*name);
    if (!variant)
      refuse("adapter_id",
             concat("`adapter_id` is ", qlora::detail::excerpt(*name), ", which this server does not have"));
    return *variant;
  }
  [[nodiscard]] std::vector<std::int32_t> read_prompt(const Fields& parameters) {
    std::vector<std::int32_t> ids = model_.text_ids(out_.inputs, tgi_status, "inputs");
    const int most = model_.limits().input;
    const auto truncate = ranged(parameters, "truncate", 1, most,
                                 concat("`truncate` must be strictly positive and less than ", most + 1));
    if (truncate && ids.size() > static_cast<std::size_t>(*truncate)) {
      ids.erase(ids.begin(), ids.end() - static_cast<std::ptrdiff_t>(*truncate));
    }
    if (ids.size() > static_cast<std::size_t>(most)) {
      refuse("inputs", concat("`inputs` must have less than ", most, " tokens. Given: ", ids.size()));
    }
    return ids;
  }
  void read_length(const Fields& parameters, Request& request) const {
    constexpr std::int64_t otherwise = 100;
    const auto wanted = ranged(parameters, "max_new_tokens", 1, 1 << 24, "`max_new_tokens` must be strictly positive");
    const std::int64_t room = model_.limits().total - static_cast<std::int64_t>(request.prompt.size());
    if (wanted && *wanted > room) {
      refuse("max_new_tokens",
             concat("`inputs` tokens + `max_new_tokens` must be <= ", model_.limits().total,
                    ". Given: ", request.prompt.size(), " `inputs` tokens and ", *wanted, " `max_new_tokens`"));
    }
    request.max_new_tokens = static_cast<int>(std::min(wanted.value_or(otherwise), room));
  }
  /// Whether tokens are drawn by chance: asked for, or wanted by a value that changes chances.
  [[nodiscard]] static bool read_sampling(const Fields& parameters, Request& request) {
    const auto number = [&](const char* name, const Limits& range, const char* message) -> std::optional<float> {
      const Json* value = parameters.find(name);
      if (value == nullptr) return std::nullopt;
      const double given = value->is_number() ? value->get<double>() : std::nan("");
      const bool above = range.low_open ? given > range.low : given >= range.low;
      const bool below = range.high_open ? given < range.high : given <= range.high;
      if (!(above && below)) refuse(name, message);
      return float_in(given, range);
    };
    constexpr double most = 100.0;
    const auto temperature = number("temperature", {.low = 0.0, .high = most, .low_open = true},
                                    "`temperature` must be strictly positive and at most 100");
    const auto top_p = number("top_p", {.low = 0.0, .high = 1.0, .low_open = true, .high_open = true},
                              "`top_p` must be > 0.0 and < 1.0");
    const auto repetition = number("repetition_penalty", {.low = 0.0, .high = most, .low_open = true},
                                   "`repetition_penalty` must be strictly positive and at most 100");
    const auto frequency = number("frequency_penalty", {-2.0, 2.0}, "`frequency_penalty` must be >= -2.0 and <= 2.0");
    const auto top_k = ranged(parameters, "top_k", 1, 1 << 24, "`top_k` must be strictly positive");
    request.rules.repetition_penalty = repetition.value_or(1.0F);
    request.rules.frequency_penalty = frequency.value_or(0.0F);
    const bool sampling =
        parameters.boolean("do_sample", false) || (temperature && *temperature != 1.0F) || top_p || top_k;
    if (!sampling) return false;
    request.sampling.temperature = temperature.value_or(1.0F);
    request.sampling.top_p = top_p.value_or(1.0F);
    request.sampling.top_k = static_cast<int>(top_k.value_or(0));
    return true;
  }
  [[nodiscard]] std::int64_t read_best_of(const Fields& parameters, bool sampling) const {
    const std::int64_t best_of = ranged(parameters, "best_of", 1, 2, "`best_of` must be > 0 and <= 2").value_or(1);
    if (best_of == 1) return 1;
    if (!sampling) refuse("best_of", "you must use sampling when `best_of` is > 1");
    if (parameters.has("seed")) refuse("best_of", "`seed` must not be set when `best_of` > 1");
    if (out_.stream) refuse("best_of", "`best_of` != 1 is not supported when streaming tokens");
    return best_of;
  }

  Fields body_;
  const ServedModel& model_;
  TgiRequest out_;
};

}  // namespace detail

/// Answers one body.
class TgiGeneration final : public Generation {
 public:
  /// `request` as read from the body.
  TgiGeneration(std::shared_ptr<Exchange> exchange, const ServedModel& served, TgiRequest request)
      : Generation(std::move(exchange), served), request_(std::move(request)), tokens_(request_.plans.size()) {}

  /// Takes the plans of the request and starts. Throws Refused (429).
  void run() { start(std::exchange(request_.plans, {})); }

 private:
  void progressed(std::size_t which) override {
    ReplyState& reply = replies()[which];
    reply.fresh.clear();  // in reply.text, too
    std::vector<TextToken> fresh = std::exchange(reply.tokens, {});
    if (!request_.stream) {
      for (TextToken& token : fresh) tokens_[which].push_back(std::move(token));
      return;
    }
    if (!streams_) {
      streams_ = true;
      exchange().begin({.type = "text/event-stream; charset=utf-8", .headers = {{"Cache-Control", "no-cache"}}});
    }
    const bool over = reply.end != ReplyEnd::running;
    const bool end_token = reply.end == ReplyEnd::stop_token;
    for (std::size_t i = 0; i < fresh.size(); ++i) {
      send(described(fresh[i]), fresh[i].drawn.top, over && !end_token && i + 1 == fresh.size());
    }
    if (end_token) send(the_end(reply), reply.stop.top, true);
  }
  void finished() override {
    if (request_.stream) {
      exchange().end();
      return;
    }
    std::size_t best = 0;
    for (std::size_t i = 1; i < replies().size(); ++i) {
      if (mean(i) > mean(best)) best = i;
    }
    OrderedJson answer{{"generated_text", text(best)}};
    if (request_.details) {
      answer["details"] = details(best);
      if (replies().size() > 1) {
        OrderedJson others = OrderedJson::array();
        for (std::size_t i = 0; i < replies().size(); ++i) {
          if (i == best) continue;
          OrderedJson other{{"generated_text", text(i)}};
          other.update(details(i));
          others.push_back(std::move(other));
        }
        answer["details"]["best_of_sequences"] = std::move(others);
      }
    }
    HttpReply reply{.body = json_body(request_.as_list ? OrderedJson::array({answer}) : answer)};
    const auto time = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - began_);
    reply.headers = {{"x-prompt-tokens", std::to_string(request_.prompt_tokens)},
                     {"x-generated-tokens", std::to_string(generated(best))},
                     {"x-total-time", std::to_string(time.count())}};
    exchange().reply(std::move(reply));
  }
  void failed(int status, const std::string& message) override {
    status = status < 500 ? detail::tgi_status : 424;
    const std::string error = json_body(tgi_error(status, message));
    if (streams_) {
      exchange().write(concat("data:", error, "\n\n"));
      exchange().end();
    } else {
      exchange().reply({.status = status, .body = error});
    }
  }

  [[nodiscard]] std::string text(std::size_t which) {
    return (request_.full_text ? request_.inputs : std::string()) + replies()[which].text;
  }
  /// Tokens of a reply, the end token with it, as TGI counts.
  [[nodiscard]] int generated(std::size_t which) {
    const ReplyState& reply = replies()[which];
    return reply.drawn + (reply.end == ReplyEnd::stop_token ? 1 : 0);
  }
  [[nodiscard]] double mean(std::size_t which) const {
    double sum = 0.0;
    for (const TextToken& token : tokens_[which]) sum += static_cast<double>(token.drawn.token.logprob);
    return tokens_[which].empty() ? 0.0 : sum / static_cast<double>(tokens_[which].size());
  }
  [[nodiscard]] static const char* reason(ReplyEnd end) {
    return end == ReplyEnd::length ? "length" : end == ReplyEnd::stop_string ? "stop_sequence" : "eos_token";
  }
  [[nodiscard]] OrderedJson described(const TextToken& token) const {
    const std::int32_t id = token.drawn.token.id;
    const bool special = id < model().tokenizer().vocab_size() && model().tokenizer().is_control(id);
    return {{"id", id},
            {"text", special ? model().token_text(id) : token.text},
            {"logprob", json_logprob(token.drawn.token.logprob)},
            {"special", special}};
  }
  [[nodiscard]] OrderedJson the_end(const ReplyState& reply) const {
    const TokenLogprob& token = reply.stop.token;
    return {{"id", token.id},
            {"text", model().token_text(token.id)},
            {"logprob", json_logprob(token.logprob)},
            {"special", true}};
  }
  [[nodiscard]] OrderedJson likeliest(const std::vector<TokenLogprob>& top) const {
    OrderedJson out = OrderedJson::array();
    for (const TokenLogprob& token : top) {
      const bool special = token.id < model().tokenizer().vocab_size() && model().tokenizer().is_control(token.id);
      out.push_back({{"id", token.id},
                     {"text", model().token_text(token.id)},
                     {"logprob", json_logprob(token.logprob)},
                     {"special", special}});
    }
    return out;
  }
  [[nodiscard]] OrderedJson details(std::size_t which) {
    const ReplyState& reply = replies()[which];
    OrderedJson prefill = OrderedJson::array();
    for (std::size_t i = 0; i < reply.prompt.size() && request_.prefill; ++i) {
      const TokenLogprob& token = reply.prompt[i].token;
      prefill.push_back({{"id", token.id},
                         {"text", model().token_text(token.id)},
                         {"logprob", i == 0 ? OrderedJson() : OrderedJson(json_logprob(token.logprob))}});
    }
    OrderedJson tokens = OrderedJson::array();
    OrderedJson tops = OrderedJson::array();
    for (const TextToken& token : tokens_[which]) {
      tokens.push_back(described(token));
      tops.push_back(likeliest(token.drawn.top));
    }
    if (reply.end == ReplyEnd::stop_token) {
      tokens.push_back(the_end(reply));
      tops.push_back(likeliest(reply.stop.top));
    }
    OrderedJson out{{"finish_reason", reason(reply.end)},
                    {"generated_tokens", generated(which)},
                    {"seed", seed(which)},
                    {"prefill", std::move(prefill)},
                    {"tokens", std::move(tokens)}};
    if (request_.top_tokens > 0) out["top_tokens"] = std::move(tops);
    return out;
  }
  [[nodiscard]] OrderedJson seed(std::size_t which) const {
    return request_.seed ? OrderedJson(seed_of(*request_.seed, which)) : OrderedJson();
  }
  void send(OrderedJson token, const std::vector<TokenLogprob>& top, bool last) {
    OrderedJson event{{"index", ++sent_}, {"token", std::move(token)}};
    if (request_.top_tokens > 0) event["top_tokens"] = likeliest(top);
    event["generated_text"] = last ? OrderedJson(text(0)) : OrderedJson();
    event["details"] = nullptr;
    if (last) {
      event["details"] = {{"finish_reason", reason(replies()[0].end)},
                          {"generated_tokens", generated(0)},
                          {"seed", seed(0)},
                          {"input_length", request_.prompt_tokens}};
    }
    exchange().write(concat("data:", json_body(event), "\n\n"));
  }

  TgiRequest request_;
  std::vector<std::vector<TextToken>> tokens_;
  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  int sent_ = 0;
  bool streams_ = false;
};

/// How a route of TGI answers.
struct TgiRoute {
  bool stream = false;      ///< whatever the body says
  bool may_stream = false;  ///< if the body says so
  bool as_list = false;     ///< an answer at once is a list of one
  bool full_text = false;   ///< return_full_text where it is not given
};

/// Reads a body of /generate and the routes like it. Throws Refused.
[[nodiscard]] inline TgiRequest tgi_request(const Json& body, const TgiRoute& route, const ServedModel& model) {
  Json asked = body;
  asked["stream"] = route.stream || (route.may_stream && Fields(body, detail::tgi_status).boolean("stream", false));
  TgiRequest request = detail::TgiReader(asked, model).read(route.full_text);
  request.as_list = route.as_list;
  return request;
}

/// Answers a body of /generate and the routes like it. Throws Refused.
inline void tgi_generate(std::shared_ptr<Exchange> exchange, const Json& body, const TgiRoute& route,
                         const ServedModel& model) {
  std::make_shared<TgiGeneration>(std::move(exchange), model, tgi_request(body, route, model))->run();
}

}  // namespace serve
}  // namespace v0
}  // namespace qlora
