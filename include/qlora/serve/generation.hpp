// qlora/serve/generation.hpp — replies on their way from the service to an exchange: tokens become text, stop strings
// end a reply, a client that goes ends all of its replies. The wire formats derive from Generation and write what
// comes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/generate/request.hpp"
#include "qlora/serve/fields.hpp"
#include "qlora/serve/http.hpp"
#include "qlora/serve/model.hpp"
#include "qlora/serve/service.hpp"
#include "qlora/serve/text_stream.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// Why a reply is over.
enum class ReplyEnd : std::uint8_t {
  running,      ///< it is not
  stop_token,   ///< the model ended it
  stop_string,  ///< a stop string came
  length        ///< it is as long as it may be
};

/// What is asked for one reply.
struct ReplyPlan {
  Request request{};                   ///< what the service gets
  std::vector<std::string> stops{};    ///< texts that end it
  bool include_stop = false;           ///< a stop string is part of the text
  bool chat = false;                   ///< decoded as the beginning of a text, not as what follows one
  const ServedModel* model = nullptr;  ///< that is asked; null: the generation's
};

/// A token of a reply that is on its way to the client.
struct TextToken {
  DrawnToken drawn{};  ///< as it was drawn
  std::size_t at = 0;  ///< where its text begins in the reply, in bytes
  std::string text{};  ///< that it completed when it came: not always its own
};

/// One reply as far as it has come.
struct ReplyState {
  TextStream stream;                 ///< ids to text
  std::string text{};                ///< final so far
  std::string fresh{};               ///< of text, what the format has not yet taken
  std::deque<TextToken> waiting{};   ///< tokens whose text is held back
  std::vector<TextToken> tokens{};   ///< those that the format has not yet taken; their text is final
  std::vector<DrawnToken> prompt{};  ///< with prompt_logprobs
  DrawnToken stop{};                 ///< the token that ended it, of no meaning where another thing did
  int drawn = 0;                     ///< tokens in all
  int cached = 0;                    ///< tokens of the prompt that the cache had
  ReplyEnd end = ReplyEnd::running;  ///< why it is over
};

/// Replies to one exchange. All members run in turn with the exchange's handler.
class Generation : public std::enable_shared_from_this<Generation> {
 public:
  /// The model outlives this.
  Generation(std::shared_ptr<Exchange> exchange, const ServedModel& model)
      : exchange_(std::move(exchange)), model_(model) {}
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;
  virtual ~Generation() = default;

  /// Hands the requests in. Throws Refused (429) when there is no room for all of them.
  void start(std::vector<ReplyPlan> plans) {
    std::vector<std::vector<Request>> requests;  // by part
    for (ReplyPlan& plan : plans) {
      const ServedModel& asked = plan.model != nullptr ? *plan.model : model_;
      std::size_t part = 0;
      while (part < parts_.size() && parts_[part].model != &asked) ++part;
      if (part == parts_.size()) {
        parts_.push_back({&asked, {}, {}});
        requests.emplace_back();
      }
      places_.push_back({part, parts_[part].replies.size()});
      parts_[part].replies.push_back(replies_.size());
      replies_.push_back({.stream = TextStream(asked.tokenizer(), plan.chat ? DecodeFrom::start : DecodeFrom::middle,
                                               std::move(plan.stops), plan.include_stop)});
      requests[part].push_back(std::move(plan.request));
    }
    left_ = replies_.size();
    for (std::size_t part = 0; part < parts_.size(); ++part) submit(part, std::move(requests[part]));
    exchange_->on_gone([self = shared_from_this()] { self->give_up(); });
  }

 protected:
  /// A reply has something new: text in `fresh`, or tokens, or its end.
  virtual void progressed(std::size_t which) = 0;
  /// All replies are over.
  virtual void finished() = 0;
  /// The requests failed; nothing comes any more.
  virtual void failed(int status, const std::string& message) = 0;

  /// Where the answer goes.
  [[nodiscard]] Exchange& exchange() { return *exchange_; }
  /// The model that is asked.
  [[nodiscard]] const ServedModel& model() const { return model_; }
  /// In the order of the plans.
  [[nodiscard]] std::vector<ReplyState>& replies() { return replies_; }

 private:
  void take(const Update& update) {
    if (over_) return;
    if (!update.error.empty()) {
      give_up();
      failed(update.kind == ErrorKind::usage || update.kind == ErrorKind::input ? 400 : 500, update.error);
      return;
    }
    ReplyState& reply = replies_[update.which];
    if (reply.end != ReplyEnd::running) return;  // a stop string ended it
    const Progressed& news = update.progressed;
    for (const DrawnToken& token : news.prompt) reply.prompt.push_back(token);
    reply.cached = news.prompt_cached;
    for (const DrawnToken& token : news.tokens) {
      const std::size_t at = reply.stream.decoded();
      ++reply.drawn;
      std::string text = reply.stream.push(token.token.id);
      reply.fresh += text;
      reply.text += text;
      reply.waiting.push_back({token, at, std::move(text)});
      if (reply.stream.stopped()) {
        reply.end = ReplyEnd::stop_string;
        if (news.finish == Finish::running) {
          const Place& place = places_[update.which];
          parts_[place.part].model->service().cancel(*parts_[place.part].group, place.index);
        }
        break;
      }
    }
    if (reply.end == ReplyEnd::running && news.finish != Finish::running) {
      reply.end = news.finish == Finish::stop ? ReplyEnd::stop_token : ReplyEnd::length;
      reply.stop = news.stop;
      const std::string rest = reply.stream.finish();
      reply.fresh += rest;
      reply.text += rest;
      if (!reply.waiting.empty()) reply.waiting.back().text += rest;
      if (reply.waiting.empty() && !reply.tokens.empty()) reply.tokens.back().text += rest;
    }
    // Tokens go with their text: those of a stop string that is cut never do.
    const bool whole = reply.end == ReplyEnd::stop_token || reply.end == ReplyEnd::length;
    while (!reply.waiting.empty() && (whole || reply.waiting.front().at < reply.text.size())) {
      reply.tokens.push_back(std::move(reply.waiting.front()));
      reply.waiting.pop_front();
    }
    progressed(update.which);
    if (reply.end != ReplyEnd::running && --left_ == 0 && !over_) {
      over_ = true;
      finished();
    }
  }
  /// Hands one model's requests in.
  void submit(std::size_t part, std::vector<Request> requests) {
    Service& service = parts_[part].model->service();
    const std::size_t count = requests.size();
    parts_[part].group = service.submit(
        std::move(requests),
        [self = shared_from_this(), part](Update update) {
          self->exchange_->post([self, part, update = std::move(update)]() mutable {
            update.which = self->parts_[part].replies[update.which];
            self->take(update);
          });
        },
        [exchange = exchange_] { return exchange->client_left(); });
    if (parts_[part].group) return;
    give_up();  // what other models got already
    if (const std::string why = service.failure(); !why.empty()) throw Refused(503, why, {}, "unavailable");
    throw Refused(429, concat("no room for ", count, count == 1 ? " request" : " requests", " more; try again later"),
                  {}, "overloaded");
  }
  void give_up() {
    if (std::exchange(over_, true)) return;
    for (const Part& part : parts_) {
      if (part.group) part.model->service().cancel(*part.group);
    }
  }

  /// The requests that one model gets.
  struct Part {
    const ServedModel* model;
    std::vector<std::size_t> replies;  ///< by their number among those of the model
    std::optional<GroupId> group;
  };
  /// Where a reply's request is.
  struct Place {
    std::size_t part, index;
  };

  std::shared_ptr<Exchange> exchange_;
  const ServedModel& model_;
  std::vector<ReplyState> replies_;
  std::vector<Part> parts_;
  std::vector<Place> places_;  // by reply
  std::size_t left_ = 0;
  bool over_ = false;
};

/// An event of a stream, in the form of HTML's server-sent events.
[[nodiscard]] inline std::string sse(std::string_view data) { return concat("data: ", data, "\n\n"); }

}  // namespace serve
}  // namespace v0
}  // namespace qlora
