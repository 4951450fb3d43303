// qlora/serve/openai.hpp — OpenAI's wire format: models, chat completions and text completions, at once and as streams.
// Reference: tests/serve/serve_test.cpp, and the Python package openai in docs/serving.md.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
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
#include "qlora/serve/openai_request.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// JSON whose keys stay in the order in which they were written.
using OrderedJson = nlohmann::ordered_json;

/// A divergence in nats; null where there is none.
[[nodiscard]] inline OrderedJson json_kl(const std::optional<float>& value) {
  return value ? OrderedJson(shortest_decimal(*value)) : OrderedJson();
}

/// An error in OpenAI's form.
[[nodiscard]] inline OrderedJson openai_error(int status, const std::string& message, const std::string& field,
                                              const std::string& code) {
  const char* type = status == 401   ? "authentication_error"
                     : status == 429 ? "rate_limit_error"
                     : status >= 500 ? "server_error"
                                     : "invalid_request_error";
  const auto or_null = [](const std::string& text) { return text.empty() ? OrderedJson() : OrderedJson(text); };
  return {{"error", {{"message", message}, {"type", type}, {"param", or_null(field)}, {"code", or_null(code)}}}};
}

namespace detail {

[[nodiscard]] inline OrderedJson named_model(const ServedModel& model, const std::string& name, bool base) {
  return {{"id", name},
          {"object", "model"},
          {"created", model.started()},
          {"owned_by", "qlora"},
          {"root", model.names().base()},
          {"parent", base ? OrderedJson() : OrderedJson(model.names().base())},
          {"max_model_len", model.limits().total}};
}

}  // namespace detail

/// The answer of /v1/models/NAME. Throws Refused (404) for a name that is not known.
[[nodiscard]] inline OrderedJson openai_model(const ServedModels& models, const std::string& name) {
  const ServedModel& model = models.of(name);
  return detail::named_model(model, name, variant_of(name, model).adapter.empty());
}

/// The answer of /v1/models: each base, then its adapters.
[[nodiscard]] inline OrderedJson openai_models(const ServedModels& models) {
  OrderedJson data = OrderedJson::array();
  for (const ServedModel* model : models.all()) {
    data.push_back(detail::named_model(*model, model->names().base(), true));
    for (const std::string& name : model->names().adapters()) data.push_back(detail::named_model(*model, name, false));
  }
  return {{"object", "list"}, {"data", std::move(data)}};
}

namespace detail {

[[nodiscard]] inline std::string answer_id(std::string_view prefix) {
  std::array<char, 40> text{};
  const int size =
      std::snprintf(text.data(), text.size(), "%016llx%08llx", static_cast<unsigned long long>(random_word()),
                    static_cast<unsigned long long>(random_word() & 0xFFFFFFFFU));
  return std::string(prefix) + std::string(text.data(), static_cast<std::size_t>(size));
}

}  // namespace detail

/// Answers one body.
class OpenAiGeneration final : public Generation {
 public:
  /// `request` as openai_request() reads it.
  OpenAiGeneration(std::shared_ptr<Exchange> exchange, const ServedModel& served, OpenAiRequest request)
      : Generation(std::move(exchange), served),
        request_(std::move(request)),
        id_(detail::answer_id(request_.chat ? "chatcmpl-" : "cmpl-")),
        begun_(request_.plans.size(), false),
        choices_(request_.plans.size()) {}

  /// Takes the plans of the request and starts. Throws Refused (429).
  void run() { start(std::exchange(request_.plans, {})); }

 private:
  /// What a choice has, beside what is still to come.
  struct Choice {
    std::string text{};
    OrderedJson tokens = OrderedJson::array();    ///< of a chat
    OrderedJson names = OrderedJson::array();     ///< of a text
    OrderedJson logprobs = OrderedJson::array();  ///< of a text
    OrderedJson tops = OrderedJson::array();      ///< of a text
    OrderedJson offsets = OrderedJson::array();   ///< of a text
    OrderedJson kl = OrderedJson::array();        ///< of a text
  };

  void progressed(std::size_t which) override {
    ReplyState& reply = replies()[which];
    const bool first = !begun_[which];
    begun_[which] = true;
    Choice& choice = choices_[which];
    if (first && !request_.echo.empty()) {
      if (request_.top_logprobs >= 0) add_prompt(choice, reply);
      choice.text += request_.echo[which / request_.n];
    }
    const std::size_t before = request_.echo.empty() ? 0 : request_.echo[which / request_.n].size();
    if (request_.top_logprobs >= 0) {
      for (const TextToken& token : reply.tokens) add_token(choice, token.drawn, before + token.at);
    }
    reply.tokens.clear();
    choice.text += std::exchange(reply.fresh, {});
    if (!request_.stream) return;
    if (!streams_) {
      streams_ = true;
      exchange().begin({.type = "text/event-stream; charset=utf-8", .headers = {{"Cache-Control", "no-cache"}}});
    }
    if (first && request_.chat) {
      send(which, {{"role", "assistant"}, {"content", ""}}, nullptr, nullptr);
    }
    const OrderedJson logprobs = take_logprobs(choice);
    const OrderedJson end = end_of(reply);
    std::string text = std::exchange(choice.text, {});
    // A chat's end has a chunk of its own, without content.
    if (!text.empty() || !logprobs.is_null()) {
      send(which, text, logprobs, request_.chat ? OrderedJson() : end);
      if (!request_.chat) return;
    }
    if (!end.is_null()) send(which, request_.chat ? OrderedJson::object() : OrderedJson(""), nullptr, end);
  }
  void finished() override {
    if (request_.stream) {
      if (request_.usage) {
        OrderedJson chunk = head(true);
        chunk["choices"] = OrderedJson::array();
        chunk["usage"] = usage();
        exchange().write(sse(json_body(chunk)));
      }
      exchange().write(sse("[DONE]"));
      exchange().end();
      return;
    }
    OrderedJson choices = OrderedJson::array();
    for (std::size_t i = 0; i < choices_.size(); ++i) {
      OrderedJson choice{{"index", i}};
      if (request_.chat) {
        choice["message"] = {{"role", "assistant"}, {"content", std::move(choices_[i].text)}, {"refusal", nullptr}};
      } else {
        choice["text"] = std::move(choices_[i].text);
      }
      choice["logprobs"] = take_logprobs(choices_[i]);
      choice["finish_reason"] = end_of(replies()[i]);
      choices.push_back(std::move(choice));
    }
    OrderedJson answer = head(false);
    answer["choices"] = std::move(choices);
    answer["usage"] = usage();
    exchange().reply({.body = json_body(answer)});
  }
  void failed(int status, const std::string& message) override {
    const std::string error = json_body(openai_error(status, message, {}, "generation_failed"));
    if (streams_) {
      exchange().write(sse(error));
      exchange().end();
    } else {
      exchange().reply({.status = status, .body = error});
    }
  }

  [[nodiscard]] OrderedJson head(bool chunk) const {
    const char* object = !request_.chat ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
    return {{"id", id_},
            {"object", object},
            {"created", created_},
            {"model", request_.model},
            {"system_fingerprint", "fp_" + model().fingerprint().substr(0, 10)}};
  }
  /// `content`: of a chat a delta, or the text of one; of a text its part.
  void send(std::size_t which, OrderedJson content, const OrderedJson& logprobs, const OrderedJson& end) {
    OrderedJson choice{{"index", which}};
    if (!request_.chat) {
      choice["text"] = std::move(content);
    } else if (content.is_object()) {
      choice["delta"] = std::move(content);
    } else {
      choice["delta"] = {{"content", std::move(content)}};
    }
    choice["logprobs"] = logprobs;
    choice["finish_reason"] = end;
    OrderedJson chunk = head(true);
    chunk["choices"] = OrderedJson::array({std::move(choice)});
    if (request_.usage) chunk["usage"] = nullptr;
    exchange().write(sse(json_body(chunk)));
  }
  [[nodiscard]] static OrderedJson end_of(const ReplyState& reply) {
    if (reply.end == ReplyEnd::running) return nullptr;
    return reply.end == ReplyEnd::length ? "length" : "stop";
  }
  [[nodiscard]] OrderedJson usage() {
    std::int64_t drawn = 0;
    std::int64_t cached = 0;
    for (const ReplyState& reply : replies()) {
      drawn += reply.drawn;
      cached += reply.cached;
    }
    return {{"prompt_tokens", request_.prompt_tokens},
            {"completion_tokens", drawn},
            {"total_tokens", request_.prompt_tokens + drawn},
            {"prompt_tokens_details", {{"cached_tokens", std::min(cached, request_.prompt_tokens)}}}};
  }

  void add_prompt(Choice& choice, const ReplyState& reply) {
    std::size_t at = 0;
    for (std::size_t i = 0; i < reply.prompt.size(); ++i) {
      const DrawnToken& token = reply.prompt[i];
      add_token(choice, token, at);
      at += model().tokenizer().surface(token.token.id).size();
      if (i > 0) continue;
      choice.logprobs.back() = nullptr;  // nothing is before it
      choice.tops.back() = nullptr;
    }
  }
  void add_token(Choice& choice, const DrawnToken& token, std::size_t at) {
    if (request_.chat) {
      OrderedJson item = described(token.token);
      OrderedJson top = OrderedJson::array();
      for (const TokenLogprob& other : token.top) top.push_back(described(other));
      item["top_logprobs"] = std::move(top);
      if (request_.kl) item["kl"] = json_kl(token.kl);
      choice.tokens.push_back(std::move(item));
      return;
    }
    choice.names.push_back(model().token_text(token.token.id));
    choice.logprobs.push_back(json_logprob(token.token.logprob));
    OrderedJson top = OrderedJson::object();
    // By text: where two tokens have the same, the likelier one. The token itself is always there.
    for (const TokenLogprob& other : token.top) top.emplace(model().token_text(other.id), json_logprob(other.logprob));
    if (!token.top.empty()) top.emplace(model().token_text(token.token.id), json_logprob(token.token.logprob));
    choice.tops.push_back(std::move(top));
    choice.offsets.push_back(at);
    if (request_.kl) choice.kl.push_back(json_kl(token.kl));
  }
  [[nodiscard]] OrderedJson described(const TokenLogprob& token) const {
    OrderedJson bytes = OrderedJson::array();
    for (const char c : model().tokenizer().surface(token.id)) bytes.push_back(static_cast<unsigned char>(c));
    return {
        {"token", model().token_text(token.id)}, {"logprob", json_logprob(token.logprob)}, {"bytes", std::move(bytes)}};
  }
  [[nodiscard]] OrderedJson take_logprobs(Choice& choice) const {
    if (request_.top_logprobs < 0) return nullptr;
    if (request_.chat) {
      if (request_.stream && choice.tokens.empty()) return nullptr;
      return {{"content", std::exchange(choice.tokens, OrderedJson::array())}, {"refusal", nullptr}};
    }
    if (request_.stream && choice.names.empty()) return nullptr;
    OrderedJson out{{"tokens", std::exchange(choice.names, OrderedJson::array())},
                    {"token_logprobs", std::exchange(choice.logprobs, OrderedJson::array())},
                    {"top_logprobs", std::exchange(choice.tops, OrderedJson::array())},
                    {"text_offset", std::exchange(choice.offsets, OrderedJson::array())}};
    if (request_.kl) out["kl"] = std::exchange(choice.kl, OrderedJson::array());
    return out;
  }

  OpenAiRequest request_;
  std::string id_;
  std::int64_t created_ =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::vector<bool> begun_;
  std::vector<Choice> choices_;
  bool streams_ = false;
};

/// Answers /v1/chat/completions (`chat`) or /v1/completions with this body. Throws Refused.
inline void openai_generate(std::shared_ptr<Exchange> exchange, const Json& body, bool chat, const ServedModel& model) {
  std::make_shared<OpenAiGeneration>(std::move(exchange), model, openai_request(body, chat, model))->run();
}

}  // namespace serve
}  // namespace v0
}  // namespace qlora
