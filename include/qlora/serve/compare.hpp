// qlora/serve/compare.hpp — one prompt to several models or variants at once, and where they part.
//   {"prompt": "..."} or {"messages": [...]}, "models": ["base", "tuned", "tuned@0.5"], "max_tokens", ...
// The answer is a stream of events, as tokens come:
//   {"event":"token","model":1,"index":3,"id":412,"text":" boat","logprob":-0.2,"kl":0.31}
//   {"event":"parted","index":4}   once: the first place where not all variants have the same token
//   {"event":"end","model":0,"finish_reason":"stop","text":"...","tokens":17}
//   {"event":"done","parted":4}    null: all replies are the same
// `kl` is KL(this variant || the first one) behind the same words, those of this variant's own reply, in nats; the
// first one, and variants of another base, have none.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "qlora/io/json.hpp"
#include "qlora/serve/fields.hpp"
#include "qlora/serve/generation.hpp"
#include "qlora/serve/http.hpp"
#include "qlora/serve/model.hpp"
#include "qlora/serve/models.hpp"
#include "qlora/serve/openai.hpp"
#include "qlora/serve/openai_request.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// Variants in one comparison at most.
inline constexpr std::size_t most_compared = 8;

/// Answers one body.
class Comparing final : public Generation {
 public:
  /// For that many variants, whose plans are given to start().
  Comparing(std::shared_ptr<Exchange> exchange, const ServedModel& served, std::size_t variants)
      : Generation(std::move(exchange), served), ids_(variants) {}

 private:
  void progressed(std::size_t which) override {
    begin();
    ReplyState& reply = replies()[which];
    reply.fresh.clear();
    for (TextToken& token : std::exchange(reply.tokens, {})) {
      const std::int32_t id = token.drawn.token.id;
      ids_[which].push_back(id);
      send({{"event", "token"},
            {"model", which},
            {"index", ids_[which].size() - 1},
            {"id", id},
            {"text", token.text},
            {"logprob", json_logprob(token.drawn.token.logprob)},
            {"kl", json_kl(token.drawn.kl)}});
    }
    if (reply.end != ReplyEnd::running) {
      send({{"event", "end"},
            {"model", which},
            {"finish_reason", reply.end == ReplyEnd::length ? "length" : "stop"},
            {"text", reply.text},
            {"tokens", reply.drawn}});
    }
    find_parting();
  }
  void finished() override {
    send({{"event", "done"}, {"parted", parted_ ? OrderedJson(*parted_) : OrderedJson()}});
    exchange().end();
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

  void begin() {
    if (std::exchange(streams_, true)) return;
    exchange().begin({.type = "text/event-stream; charset=utf-8", .headers = {{"Cache-Control", "no-cache"}}});
  }
  void send(const OrderedJson& event) { exchange().write(sse(json_body(event))); }
  /// The first place in which two replies differ, or one has ended and another has not: known as soon as two of them
  /// show it, whatever the others still write.
  void find_parting() {
    if (parted_) return;
    std::size_t least = SIZE_MAX;
    for (std::size_t a = 0; a < ids_.size(); ++a) {
      for (std::size_t b = 0; b < a; ++b) {
        const auto ends = std::mismatch(ids_[a].begin(), ids_[a].end(), ids_[b].begin(), ids_[b].end());
        const auto at = static_cast<std::size_t>(ends.first - ids_[a].begin());
        const bool a_done = at == ids_[a].size();
        const bool b_done = at == ids_[b].size();
        const bool differ = !a_done && !b_done;
        const bool shorter = (a_done && !b_done && replies()[a].end != ReplyEnd::running) ||
                             (b_done && !a_done && replies()[b].end != ReplyEnd::running);
        if (differ || shorter) least = std::min(least, at);
      }
    }
    // An earlier place may still come: where a reply that is behind will differ.
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      if (replies()[i].end == ReplyEnd::running && ids_[i].size() < least) return;
    }
    if (least == SIZE_MAX) return;
    parted_ = least;
    send({{"event", "parted"}, {"index", least}});
  }

  std::vector<std::vector<std::int32_t>> ids_;
  std::optional<std::size_t> parted_;
  bool streams_ = false;
};

/// Reads a body of /compare: a reply for each variant. Throws Refused.
[[nodiscard]] inline std::vector<ReplyPlan> compared_plans(const Json& body, const ServedModels& models) {
  const Fields fields(body, 400);
  const Json* names = fields.find("models");
  if (names == nullptr || !names->is_array() || names->empty() || names->size() > most_compared) {
    fields.fail("models", concat("must be a list of 1 to ", most_compared, " names of models"));
  }
  if (fields.has("prompt") && fields.has("messages"))
    fields.fail("prompt", "and `messages` are both there; give one of them");
  Json asked = body;
  asked["n"] = 1;
  asked["logprobs"] = nullptr;
  asked["top_logprobs"] = nullptr;
  asked["stream"] = false;
  asked["stream_options"] = nullptr;
  asked["echo"] = nullptr;
  asked["against"] = nullptr;
  const bool kl = fields.boolean("kl", true);
  if (!fields.has("seed")) asked["seed"] = static_cast<std::int64_t>(random_word() >> 1U);  // the same for all
  std::vector<ReplyPlan> plans;
  for (const Json& name : *names) {
    if (!name.is_string()) fields.fail("models", "must be a list of names");
    asked["model"] = name;
    const ServedModel& model = models.of_body(asked);
    if (!plans.empty() && model.vocabulary() != plans.front().model->vocabulary()) {
      fields.fail("models", "have different tokenizers, so that their tokens cannot be compared");
    }
    OpenAiRequest request = openai_request(asked, fields.has("messages"), model);
    if (request.plans.size() != 1) fields.fail("prompt", "must be one prompt");
    request.plans[0].request.logprobs = 0;
    if (kl && !plans.empty() && plans.front().model == &model && model.compares()) {
      request.plans[0].request.against = plans.front().request.variant;
    }
    request.plans[0].model = &model;
    plans.push_back(std::move(request.plans[0]));
  }
  return plans;
}

/// Answers a body of /compare. Throws Refused.
inline void compare_variants(std::shared_ptr<Exchange> exchange, const Json& body, const ServedModels& models) {
  std::vector<ReplyPlan> plans = compared_plans(body, models);
  const std::size_t variants = plans.size();
  std::make_shared<Comparing>(std::move(exchange), models.first(), variants)->start(std::move(plans));
}

}  // namespace serve
}  // namespace v0
}  // namespace qlora
