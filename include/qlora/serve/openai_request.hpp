// qlora/serve/openai_request.hpp — bodies of OpenAI's chat and text completions, read and checked.
// What this server cannot do is refused by the field's name; fields that change nothing, and unknown ones, are ignored.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/generate/request.hpp"
#include "qlora/io/json.hpp"
#include "qlora/serve/fields.hpp"
#include "qlora/serve/generation.hpp"
#include "qlora/serve/model.hpp"
#include "qlora/text/message.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// Stop strings of one body at most. OpenAI takes 4; tasks of lm-eval send more.
inline constexpr std::size_t most_stops = 16;
/// Ids of a logit_bias at most.
inline constexpr std::size_t most_biases = 1024;

/// A body, read.
struct OpenAiRequest {
  bool chat = false;                ///< a conversation; else a text
  std::string model{};              ///< as the answer names it
  std::vector<ReplyPlan> plans{};   ///< in the order of the choices
  std::size_t n = 1;                ///< choices of a prompt
  std::int64_t prompt_tokens = 0;   ///< of all prompts
  bool stream = false;              ///< the answer is a stream of events
  bool usage = false;               ///< a stream ends with its numbers
  int top_logprobs = -1;            ///< of each token; -1: no log-probabilities
  bool kl = false;                  ///< and of each token the divergence from the variant that `against` names
  std::vector<std::string> echo{};  ///< prompts that stand before their replies; empty: they do not
};

namespace detail {

/// Text of a message: a string, or parts of which each is a text.
[[nodiscard]] inline std::string content_text(const Json* content, const std::string& field) {
  const auto refuse = [&](const char* what) {
    throw Refused(400, concat("`", field, "` ", what), field, "invalid_value");
  };
  if (content == nullptr) refuse("is missing");
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) refuse("must be a string or a list of parts");
  std::string out;
  for (const Json& part : *content) {
    if (!part.is_object()) refuse("must be a list of objects");
    const Json* type = json_find(part, "type");
    const Json* text = json_find(part, "text");
    if (type == nullptr || *type != "text" || text == nullptr || !text->is_string()) {
      refuse("has a part that is not of type \"text\"; this server reads text alone");
    }
    out += text->get<std::string>();
  }
  return out;
}

}  // namespace detail

/// The turns of a conversation, of which there are at most as many as tokens. "developer" is another name of "system".
/// Throws Refused.
[[nodiscard]] inline std::vector<Message> messages_of(const Fields& body, int most, int status = 400) {
  const Json* list = body.find("messages");
  if (list == nullptr || !list->is_array() || list->empty()) body.fail("messages", "must be a list of messages");
  if (list->size() > static_cast<std::size_t>(most)) {
    body.fail("messages", concat("is a list of ", list->size(), " messages, more than ", most, " tokens can have"));
  }
  std::vector<Message> out;
  for (std::size_t i = 0; i < list->size(); ++i) {
    const Json& item = (*list)[i];
    const std::string name = concat("messages[", i, "]");
    if (!item.is_object()) throw Refused(status, concat("`", name, "` must be an object"), name, "invalid_value");
    const Fields fields(item, status, name + ".");
    std::string role = fields.text("role").value_or("");
    if (role == "developer") role = "system";
    if (role != "system" && role != "user" && role != "assistant") {
      fields.fail("role", "must be system, user or assistant; this server calls no tools");
    }
    fields.unsupported("tool_calls");
    fields.unsupported("function_call");
    out.push_back({std::move(role), detail::content_text(fields.find("content"), name + ".content")});
  }
  return out;
}

/// Who answers, by the field "model"; without one Names::unnamed. Throws Refused (404) for a name that is not known.
[[nodiscard]] inline Variant variant_of(const std::optional<std::string>& name, const ServedModel& model) {
  if (!name) return model.names().unnamed();
  if (const auto variant = model.names().find(*name)) return *variant;
  throw Refused(
      404, concat("The model `", qlora::detail::excerpt(*name), "` does not exist; /v1/models lists those that do"),
      "model", "model_not_found");
}

namespace detail {

/// Reads what both kinds of body have.
class OpenAiReader {
 public:
  OpenAiReader(const Json& body, bool chat, const ServedModel& model) : body_(body, 400), model_(model) {
    out_.chat = chat;
  }

  [[nodiscard]] OpenAiRequest read() {
    refuse_what_is_not_there();
    const auto name = body_.text("model");
    const Variant variant = variant_of(name, model_);
    out_.model = name.value_or(variant.adapter.empty() ? model_.names().base() : variant.adapter);
    out_.n = static_cast<std::size_t>(body_.integer("n", 1, most_choices).value_or(1));
    out_.stream = body_.boolean("stream", false);
    if (const Json* options = body_.object("stream_options")) {
      if (!out_.stream) body_.fail("stream_options", "is for streams: set `stream` to true, or leave it out");
      out_.usage = Fields(*options, 400, "stream_options.").boolean("include_usage", false);
    }
    read_logprobs();
    const bool echo = !out_.chat && body_.boolean("echo", false);
    const std::optional<Variant> against = read_against(echo);
    std::vector<std::vector<std::int32_t>> prompts = read_prompts(echo);
    if (static_cast<std::int64_t>(prompts.size() * out_.n) > most_choices) {
      body_.fail("n", concat("times the number of prompts is ", prompts.size() * out_.n, "; at most ", most_choices));
    }
    const std::vector<std::string> stops = body_.texts("stop", most_stops);
    const std::uint64_t seed = read_seed();
    for (std::vector<std::int32_t>& prompt : prompts) {
      out_.prompt_tokens += static_cast<std::int64_t>(prompt.size());
      Request request = model_.request(std::move(prompt), out_.chat, variant);
      request.max_new_tokens = read_length(request, echo);
      read_sampling(request);
      request.logprobs = out_.top_logprobs;
      request.against = against;
      request.prompt_logprobs = echo && (out_.top_logprobs >= 0 || request.max_new_tokens == 0);
      for (std::size_t i = 0; i < out_.n; ++i) {
        ReplyPlan plan{.request = request, .stops = stops, .chat = out_.chat};
        plan.request.sampling.seed = seed_of(seed, i);
        if (out_.chat) {
          for (std::string& end : turn_ends(model_.tokenizer(), model_.chat())) plan.stops.push_back(std::move(end));
        }
        out_.plans.push_back(std::move(plan));
      }
    }
    return std::move(out_);
  }

 private:
  void refuse_what_is_not_there() const {
    if (out_.chat) {
      for (const char* name : {"tools", "functions", "audio", "prediction", "web_search_options"}) {
        body_.unsupported(name);
      }
      body_.unsupported("tool_choice", "none");
      body_.unsupported("function_call", "none");
      body_.unsupported("modalities", Json::array({"text"}));
    } else {
      body_.unsupported("suffix", "");
      const auto best_of = body_.integer("best_of", 1, most_choices);
      if (best_of && *best_of != body_.integer("n", 1, most_choices).value_or(1)) {
        body_.fail("best_of", "is supported where it equals `n` only: all replies are given");
      }
    }
    for (const std::string_view name : constraints) body_.unsupported(name);
    if (const Json* format = body_.object("response_format")) {
      const Json* type = json_find(*format, "type");
      if (type == nullptr || *type != "text")
        body_.fail("response_format", "must be of type \"text\"; no other is supported");
    }
  }
  void read_logprobs() {
    constexpr std::int64_t most_of_chat = 20, most_of_text = 5;
    if (out_.chat) {
      const auto top = body_.integer("top_logprobs", 0, most_of_chat);
      const bool wanted = body_.boolean("logprobs", false);
      if (top && !wanted) body_.fail("top_logprobs", "needs `logprobs` to be true");
      if (wanted) out_.top_logprobs = static_cast<int>(top.value_or(0));
    } else if (const auto top = body_.integer("logprobs", 0, most_of_text)) {
      out_.top_logprobs = static_cast<int>(*top);
    }
  }
  /// The variant that each token's distribution is compared with.
  [[nodiscard]] std::optional<Variant> read_against(bool echo) {
    const auto name = body_.text("against");
    if (!name) return std::nullopt;
    std::optional<Variant> variant = model_.names().find(*name);
    if (!variant) {
      body_.fail("against", concat("is ", qlora::detail::excerpt(*name), ", which is neither ", model_.names().base(),
                                   " nor an adapter of it"));
    }
    if (out_.top_logprobs < 0) body_.fail("against", "needs `logprobs`, of which its values are part");
    if (echo) body_.fail("against", "is not for `echo`");
    if (!model_.compares()) body_.fail("against", "needs a server that runs two requests at once; this one runs one");
    out_.kl = true;
    return variant;
  }
  [[nodiscard]] std::vector<std::vector<std::int32_t>> read_prompts(bool echo) {
    std::vector<std::vector<std::int32_t>> out;
    if (out_.chat) {
      out.push_back(model_.chat_ids(messages_of(body_, model_.limits().total), 400, "messages"));
      return out;
    }
    const Json* prompt = body_.find("prompt");
    if (prompt == nullptr) body_.fail("prompt", "is missing");
    const auto add = [&](const Json& item) {
      if (item.is_string()) {
        out.push_back(model_.text_ids(item.get<std::string>(), 400, "prompt"));
      } else {
        out.push_back(ids_of(item));
      }
      if (out.back().empty()) body_.fail("prompt", "is empty");
      if (echo) {
        out_.echo.push_back(item.is_string() ? item.get<std::string>()
                                             : model_.tokenizer().decode(out.back(), DecodeFrom::start));
      }
    };
    const bool several = prompt->is_array() && !prompt->empty() && !prompt->front().is_number();
    if (!several) {
      add(*prompt);
      return out;
    }
    if (static_cast<std::int64_t>(prompt->size()) > most_choices) {
      body_.fail("prompt", concat("is a list of ", prompt->size(), " prompts; at most ", most_choices));
    }
    for (const Json& item : *prompt) add(item);
    return out;
  }
  [[nodiscard]] std::vector<std::int32_t> ids_of(const Json& list) const {
    if (!list.is_array()) body_.fail("prompt", "must be a string, a list of token ids, or a list of these");
    if (static_cast<std::int64_t>(list.size()) > model_.limits().total) {
      body_.fail("prompt", concat("has ", list.size(), " tokens, more than ", model_.limits().total));
    }
    std::vector<std::int32_t> out;
    for (const Json& id : list) {
      if (!Fields::whole(id, 0, model_.tokenizer().vocab_size() - 1)) {
        body_.fail("prompt", concat("has a token id that is not from 0 to ", model_.tokenizer().vocab_size() - 1));
      }
      out.push_back(id.get<std::int32_t>());
    }
    return out;
  }
  /// Tokens of the reply. A chat without a limit may fill the context, a text has 16 tokens, as at OpenAI.
  [[nodiscard]] int read_length(const Request& request, bool echo) const {
    constexpr std::int64_t most = 1 << 24, of_text = 16;
    const std::int64_t least = echo ? 0 : 1;
    std::optional<std::int64_t> wanted = body_.integer("max_tokens", least, most);
    if (out_.chat) {
      if (const auto newer = body_.integer("max_completion_tokens", least, most)) wanted = newer;
    }
    const auto tokens = static_cast<std::int64_t>(request.prompt.size());
    const std::int64_t needed = tokens + wanted.value_or(out_.chat ? 1 : of_text);
    const bool prompt_fits = tokens <= model_.limits().input;
    if (!prompt_fits || needed > model_.limits().total) {
      throw Refused(
          400,
          concat("This model's maximum context length is ", model_.limits().total, " tokens, ", model_.limits().input,
                 " of them for the prompt. However, you requested ", needed, " tokens (", tokens, " in the ",
                 out_.chat ? "messages" : "prompt", ", ", needed - tokens, " in the completion)."),
          prompt_fits ? "max_tokens"
          : out_.chat ? "messages"
                      : "prompt",
          "context_length_exceeded");
    }
    if (!wanted && out_.chat) return request.max_new_tokens;
    return static_cast<int>(wanted.value_or(of_text));
  }
  void read_sampling(Request& request) const {
    const auto get = [&](std::string_view key, const Limits& range, double otherwise) {
      return float_in(body_.number(key, range).value_or(otherwise), range);
    };
    request.sampling.temperature = get("temperature", {0.0, 2.0}, 1.0);
    request.sampling.top_p = get("top_p", {.low = 0.0, .high = 1.0, .low_open = true}, 1.0);
    request.sampling.top_k = static_cast<int>(body_.integer("top_k", -1, 1 << 24).value_or(0));
    if (request.sampling.top_k < 0) request.sampling.top_k = 0;  // vLLM's way to say that there is none
    request.sampling.min_p = get("min_p", {0.0, 1.0}, 0.0);
    request.rules.frequency_penalty = get("frequency_penalty", {-2.0, 2.0}, 0.0);
    request.rules.presence_penalty = get("presence_penalty", {-2.0, 2.0}, 0.0);
    request.rules.repetition_penalty = get("repetition_penalty", {.low = 0.0, .high = 2.0, .low_open = true}, 1.0);
    read_biases(request);
  }
  void read_biases(Request& request) const {
    const Json* biases = body_.object("logit_bias");
    if (biases == nullptr) return;
    if (biases->size() > most_biases) {
      body_.fail("logit_bias", concat("has ", biases->size(), " ids; at most ", most_biases));
    }
    const Fields values(*biases, 400, "logit_bias.");
    for (const auto& [key, value] : biases->items()) {
      LogitBias bias;
      const char* const last = key.data() + key.size();
      const auto [end, error] = std::from_chars(key.data(), last, bias.id);
      if (error != std::errc{} || end != last || bias.id < 0 || bias.id >= model_.tokenizer().vocab_size()) {
        body_.fail("logit_bias", concat("has the key '", qlora::detail::excerpt(key),
                                        "', which is no token id from 0 to ", model_.tokenizer().vocab_size() - 1));
      }
      bias.bias = static_cast<float>(values.number(key, {-100.0, 100.0}).value_or(0.0));
      request.rules.bias.push_back(bias);
    }
  }
  [[nodiscard]] std::uint64_t read_seed() const {
    const auto seed = body_.integer("seed", INT64_MIN, INT64_MAX);
    return seed ? static_cast<std::uint64_t>(*seed) : random_word();
  }

  Fields body_;
  const ServedModel& model_;
  OpenAiRequest out_;
};

}  // namespace detail

/// Reads the body of /v1/chat/completions (`chat`) or /v1/completions. Throws Refused.
[[nodiscard]] inline OpenAiRequest openai_request(const Json& body, bool chat, const ServedModel& model) {
  return detail::OpenAiReader(body, chat, model).read();
}

}  // namespace serve
}  // namespace v0
}  // namespace qlora
