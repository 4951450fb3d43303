// qlora/generate/request.hpp — what a server asks of a scheduler, and what it gets back: token ids in, token ids out.
// No template and no text: tokenizers, stop strings and wire formats are above it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/generate/sampler.hpp"

namespace qlora {
inline namespace v0 {

/// Which model answers: the base with an adapter of a name at a strength.
struct Variant {
  std::string adapter{};  ///< empty: none, and the model is its base to the bit
  float scale = 1.0F;     ///< times as strong as it was trained; of no meaning without an adapter

  friend bool operator==(const Variant&, const Variant&) = default;
};

/// A number added to the logit of an id.
struct LogitBias {
  std::int32_t id = 0;  ///< 0 or more; ids beyond the vocabulary are ignored
  float bias = 0.0F;    ///< -100 to 100
};

/// What changes logits before a token is drawn, in this order: biases, then penalties.
struct LogitRules {
  std::vector<LogitBias> bias{};    ///< added to logits
  float repetition_penalty = 1.0F;  ///< divides positive and multiplies negative logits of ids that prompt or reply
                                    ///< have; Keskar et al., "CTRL" (2019)
  float frequency_penalty = 0.0F;   ///< taken from the logit of an id for each time that the reply has it
  float presence_penalty = 0.0F;    ///< taken from the logit of an id that the reply has

  /// Whether there is anything to change.
  [[nodiscard]] bool any() const {
    return repetition_penalty != 1.0F || frequency_penalty != 0.0F || presence_penalty != 0.0F || !bias.empty();
  }
  /// Throws Error (usage) for a value outside its range, NaN included.
  void check() const {
    detail::expect_option(repetition_penalty > 0.0F && repetition_penalty <= 100.0F, "repetition_penalty",
                          repetition_penalty, "above 0 and at most 100");
    detail::expect_option(frequency_penalty >= -100.0F && frequency_penalty <= 100.0F, "frequency_penalty",
                          frequency_penalty, "-100 to 100");
    detail::expect_option(presence_penalty >= -100.0F && presence_penalty <= 100.0F, "presence_penalty",
                          presence_penalty, "-100 to 100");
    for (const LogitBias& item : bias) {
      detail::expect_option(item.id >= 0, "the id of a logit_bias", item.id, "0 or more");
      detail::expect_option(item.bias >= -100.0F && item.bias <= 100.0F, "logit_bias", item.bias, "-100 to 100");
    }
  }
};

/// One continuation that is asked for.
struct Request {
  std::vector<std::int32_t> prompt{};    ///< ids, at least one
  Variant variant{};                     ///< who answers
  int max_new_tokens = 200;              ///< 1 or more, or 0 with prompt_logprobs; also ends where the context is full
  Sampling sampling{};                   ///< how each token is drawn
  LogitRules rules{};                    ///< what changes logits before that
  std::vector<std::int32_t> stop_ids{};  ///< the reply ends before these
  int among = 0;                         ///< only ids below it are drawn; 0: all
  int logprobs = -1;                     ///< log-probabilities of drawn tokens and of so many likeliest; -1: none
  std::optional<Variant> against{};      ///< also find DrawnToken::kl; takes a second slot
  bool prompt_logprobs = false;          ///< the same for the tokens of the prompt, of which the first has none

  /// Throws Error (usage) for a value outside its range.
  void check() const {
    detail::expect_option(!prompt.empty(), "the prompt", "empty", "1 token or more");
    detail::expect_option(max_new_tokens > 0 || (max_new_tokens == 0 && prompt_logprobs), "max_new_tokens",
                          max_new_tokens, "1 or more");
    detail::expect_option(!against || !prompt_logprobs, "prompt_logprobs", "set", "not set with `against`");
    detail::expect_option(among >= 0, "among", among, "0 (all) or more");
    detail::expect_option(logprobs >= -1 && logprobs <= most_logprobs, "logprobs", logprobs, "-1 (none) to 100");
    sampling.check();
    rules.check();
  }

  static constexpr int most_logprobs = 100;  ///< of one token
};

/// A token with its natural-log probability under the model, before temperature and penalties.
struct TokenLogprob {
  std::int32_t id = 0;   ///< the token
  float logprob = 0.0F;  ///< 0 when none were asked for
};

/// A token of a reply or of a prompt.
struct DrawnToken {
  TokenLogprob token{};             ///< which, and how likely it was
  std::vector<TokenLogprob> top{};  ///< the likeliest in its place, most likely first; as many as were asked for
  /// KL(the request's variant || Request::against) of the distributions of this token, in nats, before temperature and
  /// penalties; nothing where none was asked for.
  std::optional<float> kl{};
};

/// Why a reply is over.
enum class Finish : std::uint8_t {
  running,  ///< it is not
  stop,     ///< a stop token came, which is not part of the reply
  length    ///< max_new_tokens were drawn, or the context is full
};

/// Names a request for as long as it is not over. Never 0, and never used twice.
using Ticket = std::uint64_t;

/// What one step did to one request.
struct Progressed {
  Ticket ticket = 0;  ///< of submit()
  std::vector<DrawnToken>
      prompt{};  ///< with prompt_logprobs, once: every token of the prompt, the first without a value
  std::vector<DrawnToken> tokens{};  ///< new tokens of the reply: none while the prompt is read
  DrawnToken stop{};                 ///< of Finish::stop: the token that ended the reply, which is not part of it
  Finish finish = Finish::running;   ///< other than running: the request is over
  int prompt_cached = 0;             ///< tokens of the prompt that were found in the cache
};

/// How busy a scheduler is.
struct SchedulerLoad {
  int running = 0;                 ///< requests in the batch
  int waiting = 0;                 ///< requests for which there is no room yet
  int slots = 0;                   ///< requests that can run at once
  std::int64_t cached_tokens = 0;  ///< whose keys and values are held for running requests
  std::int64_t most_tokens = 0;    ///< that there is room for
};

/// Runs many requests side by side on one model. Used by one thread at a time.
class BatchSession {
 public:
  BatchSession() = default;
  BatchSession(const BatchSession&) = delete;
  BatchSession& operator=(const BatchSession&) = delete;
  virtual ~BatchSession() = default;

  /// Tokens that prompt and reply have together at most.
  [[nodiscard]] virtual int context() const = 0;
  /// Takes a request; it begins in a later step(), in the order of submission. Throws Error (usage) when it is
  /// malformed, when its prompt does not fit into the context, or when no adapter has that name.
  [[nodiscard]] virtual Ticket submit(Request request) = 0;
  /// Forgets a request and frees its room at once; one that is over is left alone.
  virtual void cancel(Ticket ticket) = 0;
  /// Reads pieces of prompts and draws the next token of running requests. Calls `sink` for each request that has
  /// something new. Returns whether there is more to do.
  virtual bool step(const std::function<void(const Progressed&)>& sink) = 0;
  /// What runs and waits now.
  [[nodiscard]] virtual SchedulerLoad load() const = 0;
};

}  // namespace v0
}  // namespace qlora
