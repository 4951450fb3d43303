// qlora/generate/scheduler.hpp — many requests side by side on one model: continuous batching. A request takes a slot
// as soon as one is free, its prompt is read in pieces beside the decoding of others, and the slot of a request that is
// over goes to the next one, which keeps what the slot still holds of its prompt's beginning.
// All share a pass through the network, whatever adapters they have: rows of it have adapters of their own.
// What may not change: the ids of a reply depend on its request, not on what else runs. With DecodeLimits::one_order
// that holds to the bit: newest tokens and pieces of prompts then have passes of their own, a piece has two tokens or
// more, and what a later prompt takes over was read as a prompt, too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/generate/decoder.hpp"
#include "qlora/generate/request.hpp"
#include "qlora/generate/sampler.hpp"
#include "qlora/model/context.hpp"

namespace qlora {
inline namespace v0 {

namespace detail {

/// Changes logits as the rules say.
inline void apply_rules(const LogitRules& rules, std::span<const std::int32_t> prompt,
                        std::span<const std::int32_t> reply, std::span<float> logits) {
  const auto inside = [&](std::int32_t id) { return static_cast<std::size_t>(id) < logits.size(); };
  for (const LogitBias& item : rules.bias) {
    if (inside(item.id)) logits[static_cast<std::size_t>(item.id)] += item.bias;
  }
  std::vector<std::int32_t> ids;
  if (rules.repetition_penalty != 1.0F) {
    ids.assign(prompt.begin(), prompt.end());
    ids.insert(ids.end(), reply.begin(), reply.end());
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    for (const std::int32_t id : ids) {
      if (!inside(id)) continue;
      float& logit = logits[static_cast<std::size_t>(id)];
      const float changed = logit > 0.0F ? logit / rules.repetition_penalty : logit * rules.repetition_penalty;
      constexpr float most = std::numeric_limits<float>::max();  // infinite logits have no differences
      logit = std::clamp(changed, -most, most);
    }
  }
  if (rules.frequency_penalty == 0.0F && rules.presence_penalty == 0.0F) return;
  ids.assign(reply.begin(), reply.end());
  std::sort(ids.begin(), ids.end());
  for (std::size_t first = 0; first < ids.size();) {
    std::size_t last = first;
    while (last < ids.size() && ids[last] == ids[first]) ++last;
    if (inside(ids[first])) {
      logits[static_cast<std::size_t>(ids[first])] -=
          rules.presence_penalty + rules.frequency_penalty * static_cast<float>(last - first);
    }
    first = last;
  }
}

/// A token with its log-probability and the `count` likeliest, the lowest id first among equals; -1: the id alone.
[[nodiscard]] inline DrawnToken described(std::int32_t id, std::span<const float> logits, int count) {
  DrawnToken drawn{.token = {.id = id}};
  if (count < 0) return drawn;
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - static_cast<double>(most));
  const double log_sum = static_cast<double>(most) + std::log(sum);
  const auto of = [&](std::int32_t which) {
    return TokenLogprob{which,
                        static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(which)]) - log_sum)};
  };
  drawn.token = of(id);
  const auto kept = std::min(static_cast<std::size_t>(count), logits.size());
  std::vector<std::int32_t> order(kept == 0 ? 0 : logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(),
                    [&](std::int32_t a, std::int32_t b) {
                      const float x = logits[static_cast<std::size_t>(a)];
                      const float y = logits[static_cast<std::size_t>(b)];
                      return x > y || (x == y && a < b);
                    });
  for (std::size_t i = 0; i < kept; ++i) drawn.top.push_back(of(order[i]));
  return drawn;
}

/// KL(p || q) in nats of the distributions that two rows of logits stand for.
[[nodiscard]] inline float divergence(std::span<const float> p, std::span<const float> q) {
  const auto log_sum = [](std::span<const float> row) {
    const auto most = static_cast<double>(*std::max_element(row.begin(), row.end()));
    double sum = 0.0;
    for (const float logit : row) sum += std::exp(static_cast<double>(logit) - most);
    return most + std::log(sum);
  };
  const double of_p = log_sum(p);
  const double of_q = log_sum(q);
  double sum = 0.0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double log_p = static_cast<double>(p[i]) - of_p;
    sum += std::exp(log_p) * (log_p - (static_cast<double>(q[i]) - of_q));
  }
  return static_cast<float>(std::max(sum, 0.0));  // what is below 0 is rounding
}

}  // namespace detail

/// The scheduler of a model, for one Code. Used by one thread at a time.
template <Code K, class B>
class Scheduler final : public BatchSession {
 public:
  /// Takes its memory now: limits.sequences slots of limits.length tokens. The context outlives the scheduler, and no
  /// other call runs in it while step() does. Throws Error (resource) where there is too little memory.
  Scheduler(Context<K, B>& context, const DecodeLimits& limits)
      : context_(context), decoder_(context, limits), slots_(static_cast<std::size_t>(limits.sequences)) {}
  /// The same in a context of its own.
  Scheduler(std::unique_ptr<Context<K, B>> made, const DecodeLimits& limits)
      : made_(std::move(made)),
        context_(*made_),
        decoder_(context_, limits),
        slots_(static_cast<std::size_t>(limits.sequences)) {}

  [[nodiscard]] int context() const override { return decoder_.limits().length; }

  [[nodiscard]] Ticket submit(Request request) override {
    request.check();
    const auto tokens = static_cast<std::int64_t>(request.prompt.size());
    const std::int64_t needed = tokens + (request.max_new_tokens > 0 ? 1 : 0);
    if (needed > decoder_.limits().length) {
      throw Error(concat("a prompt of ", tokens, " tokens; the context holds ", decoder_.limits().length,
                         ", one token of the reply included"),
                  ErrorKind::usage);
    }
    for (const std::int32_t id : request.prompt) {
      if (id < 0 || id >= decoder_.vocab()) {
        throw Error(concat("token id ", id, " is outside 0 to ", decoder_.vocab() - 1), ErrorKind::usage);
      }
    }
    if (request.prompt_logprobs && !decoder_.limits().all_logits) {
      throw Error("this scheduler has no room for the log-probabilities of prompts", ErrorKind::usage);
    }
    const auto adapters = [&](const Variant& variant) {
      return variant.adapter.empty() ? Context<K, B>::base() : context_.choice(variant.adapter, variant.scale);
    };
    std::unique_ptr<Work> follower;
    if (request.against) {
      if (slots_.size() < 2) {
        throw Error("a request that is compared with another variant takes two slots; there is one", ErrorKind::usage);
      }
      follower = std::make_unique<Work>(
          Work{.ticket = tickets_ + 1, .request = {.prompt = request.prompt}, .adapters = adapters(*request.against)});
    }
    Adapters its = adapters(request.variant);
    waiting_.push_back(std::make_unique<Work>(Work{.ticket = ++tickets_,
                                                   .request = std::move(request),
                                                   .adapters = std::move(its),
                                                   .follower = std::move(follower)}));
    return tickets_;
  }

  void cancel(Ticket ticket) override {
    std::erase_if(waiting_, [&](const auto& work) { return work->ticket == ticket; });
    std::erase_if(running_, [&](const auto& work) {
      if (work->ticket != ticket) return false;
      leave(*work);
      return true;
    });
  }

  bool step(const std::function<void(const Progressed&)>& sink) override {
    while (!waiting_.empty() && running_.size() + (waiting_.front()->follower ? 2 : 1) <= slots_.size()) {
      std::unique_ptr<Work> work = std::move(waiting_.front());
      waiting_.pop_front();
      std::unique_ptr<Work> follower = std::move(work->follower);
      admit(*work);
      if (follower != nullptr) {
        follower->other = work.get();
        work->other = follower.get();
        admit(*follower);
      }
      running_.push_back(std::move(work));
      if (follower != nullptr) running_.push_back(std::move(follower));
    }
    // Those who wait for the logits of every token have a pass of their own.
    for (auto& work : running_) work->stepped = false;
    std::vector<Progressed> news;
    for (std::size_t i = 0; i < running_.size(); ++i) {
      if (running_[i]->stepped || !running_[i]->row.empty()) continue;
      const bool alone = reads_all(*running_[i]);
      gather(i, alone);
      pass(alone, news);
    }
    std::erase_if(running_, [&](const auto& work) {
      if (work->finish == Finish::running) return false;
      leave(*work);
      return true;
    });
    for (const Progressed& item : news) sink(item);
    return !running_.empty() || !waiting_.empty();
  }

  [[nodiscard]] SchedulerLoad load() const override {
    const auto is_request = [](const auto& work) { return !follows(*work); };
    SchedulerLoad load{.running = static_cast<int>(std::count_if(running_.begin(), running_.end(), is_request)),
                       .waiting = static_cast<int>(waiting_.size()),
                       .slots = static_cast<int>(slots_.size())};
    for (const auto& work : running_) load.cached_tokens += decoder_.length(work->slot);
    load.most_tokens = static_cast<std::int64_t>(slots_.size()) * decoder_.limits().length;
    return load;
  }

 private:
  using Adapters = typename Context<K, B>::Adapters;
  using Version = typename Context<K, B>::Version;
  using Addition = typename Decoder<K, B>::Addition;

  /// What a slot holds, for a later prompt that begins alike.
  struct Slot {
    Version version{};
    std::vector<std::int32_t> ids{};
    std::size_t read = 0;  ///< of ids: those that came in pieces of prompts, which are the first ones
    bool taken = false;
    std::uint64_t last_use = 0;
  };
  /// A request on its way.
  struct Work {
    Ticket ticket = 0;
    Request request{};
    Adapters adapters{};
    Version version{};
    int slot = -1;
    int cached = 0;
    std::size_t read = 0;               ///< tokens of the prompt that the decoder has
    std::vector<std::int32_t> reply{};  ///< the newest is not in the decoder
    std::vector<DrawnToken> prompt{};   ///< with prompt_logprobs, as far as it is read
    Finish finish = Finish::running;
    bool stepped = false;
    std::size_t piece = 0;  ///< in one order: tokens that it brings to the pass
    int place = 0;          ///< of its version among those of the pass
    /// Of a request with `against`, before it runs: the same prompt for that variant, which then reads what this draws
    /// and draws nothing itself.
    std::unique_ptr<Work> follower{};
    Work* other = nullptr;     ///< the follower while both run, and of it the request that it follows
    std::vector<float> row{};  ///< logits of the next token, until `other` has its own: neither goes on meanwhile
  };

  /// Whether it is a follower.
  [[nodiscard]] static bool follows(const Work& work) { return work.other != nullptr && !work.request.against; }

  [[nodiscard]] static bool reads_all(const Work& work) {
    return work.request.prompt_logprobs && work.read < work.request.prompt.size();
  }
  /// Whether its tokens are drawn from logits on the host.
  [[nodiscard]] static bool draws_here(const Work& work) {
    return work.request.logprobs >= 0 || work.request.rules.any() || work.other != nullptr;
  }
  /// Whether it brings a piece of its prompt that has more than one token.
  [[nodiscard]] static bool reads(const Work& work) { return work.read + 1 < work.request.prompt.size(); }

  /// Gives a request the free slot that holds most of its prompt, of several the one that was not used longest.
  void admit(Work& work) {
    const UsingAdapters<K, B> applied(context_, work.adapters);
    const auto entry = context_.enter();
    work.version = context_.version();
    const std::vector<std::int32_t>& prompt = work.request.prompt;
    std::size_t best = slots_.size();
    std::size_t most = 0;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      const Slot& slot = slots_[i];
      if (slot.taken) continue;
      std::size_t same = 0;
      // The last token is always read again: its logits are needed. Log-probabilities need all of them.
      if (slot.version == work.version && !work.request.prompt_logprobs) {
        const auto ends = std::mismatch(slot.ids.begin(), slot.ids.end(), prompt.begin(), prompt.end() - 1);
        same = static_cast<std::size_t>(ends.first - slot.ids.begin());
        if (decoder_.limits().one_order) {
          same = std::min({same, slot.read, std::max<std::size_t>(prompt.size(), 2) - 2});
        }
      }
      if (best == slots_.size() || same > most || (same == most && slot.last_use < slots_[best].last_use)) {
        best = i;
        most = same;
      }
    }
    Slot& slot = slots_[best];
    slot.taken = true;
    slot.version = work.version;
    slot.ids.resize(most);
    slot.read = std::min(slot.read, most);
    decoder_.truncate(static_cast<int>(best), static_cast<int>(most));
    work.slot = static_cast<int>(best);
    work.read = most;
    work.cached = static_cast<int>(most);
  }
  void leave(const Work& work) {
    Slot& slot = slots_[static_cast<std::size_t>(work.slot)];
    slot.taken = false;
    slot.last_use = ++uses_;
  }

  /// Those that run in one pass from running_[from] on into batch_, the same adapters side by side.
  void gather(std::size_t from, bool alone) {
    batch_.clear();
    versions_.clear();
    const bool one_order = decoder_.limits().one_order;
    const bool reading = reads(*running_[from]);
    std::size_t room = static_cast<std::size_t>(decoder_.limits().step_tokens);
    for (std::size_t j = from; j < running_.size(); ++j) {
      Work& work = *running_[j];
      if (work.stepped || !work.row.empty() || reads_all(work) != alone) continue;
      if (one_order) {
        if (reads(work) != reading) continue;
        if (reading && room < 3) {  // its turn is the next step
          work.stepped = true;
          continue;
        }
        work.piece = piece_of(work, room);
        room -= work.piece;
      }
      auto known = std::find(versions_.begin(), versions_.end(), work.version);
      if (known == versions_.end()) {
        if (versions_.size() == std::size_t{most_row_adapters}) continue;
        known = versions_.insert(known, work.version);
      }
      work.place = static_cast<int>(known - versions_.begin());
      const auto before = [](int place, const Work* other) { return place < other->place; };
      batch_.insert(std::upper_bound(batch_.begin(), batch_.end(), work.place, before), &work);
      work.stepped = true;
      if (alone) break;
    }
  }

  /// In one order: the tokens that a request brings to a pass which has room for `most`. No single token of a prompt is
  /// left for the next piece, so a piece has three or more, or two that are the last.
  [[nodiscard]] static std::size_t piece_of(const Work& work, std::size_t most) {
    if (work.read == work.request.prompt.size()) return 1;
    const std::size_t rest = work.request.prompt.size() - work.read;
    const std::size_t count = std::min(rest, most);
    return rest == count + 1 ? count - 1 : count;
  }

  /// One pass for batch_: every request brings its newest token, or the next piece of its prompt.
  void pass(bool all, std::vector<Progressed>& news) {
    const bool mixes = versions_.size() > 1;
    const UsingAdapters<K, B> applied(context_, batch_.front()->adapters);
    choices_.clear();
    applied_.clear();
    applied_.reserve(batch_.size());  // additions point into it
    for (const Work* work : batch_) {
      choices_.push_back(&work->adapters);
      applied_.push_back(context_.applied(work->adapters));
    }
    const auto entry = context_.enter(choices_);
    int left = decoder_.limits().step_tokens - static_cast<int>(batch_.size());
    additions_.clear();
    draws_.clear();
    bool all_greedy = true;
    bool needs_logits = false;
    const int among = limit_of(*batch_.front());
    for (Work* work : batch_) {
      std::span<const std::int32_t> ids;
      if (work->read < work->request.prompt.size()) {
        const auto rest = work->request.prompt.size() - work->read;
        const auto count =
            decoder_.limits().one_order ? work->piece : std::min(rest, static_cast<std::size_t>(1 + left));
        left -= static_cast<int>(count) - 1;
        ids = std::span<const std::int32_t>(work->request.prompt).subspan(work->read, count);
      } else {
        ids = std::span<const std::int32_t>(work->reply).last(1);
      }
      additions_.push_back({work->slot, ids, mixes ? &applied_[additions_.size()] : nullptr});
      const Request& request = work->request;
      all_greedy = all_greedy && request.sampling.temperature == 0.0F && limit_of(*work) == among;
      needs_logits = needs_logits || draws_here(*work);
      draws_.push_back(draw_row(request.sampling, limit_of(*work), 0, static_cast<std::uint32_t>(work->reply.size())));
    }
    std::span<const std::int32_t> picked;
    std::span<const float> logits;
    if (all) {
      logits = decoder_.extend_all(additions_);
    } else if (needs_logits && decoder_.limits().one_order) {  // who draws for a request does not depend on the others
      picked = decoder_.extend_drawn(additions_, draws_);
      logits = decoder_.logits_of_picked();
    } else if (needs_logits) {
      logits = decoder_.extend(additions_);
    } else if (all_greedy) {
      picked = decoder_.extend_greedy(additions_, among);
    } else {
      picked = decoder_.extend_drawn(additions_, draws_);
    }
    const auto vocab = static_cast<std::size_t>(decoder_.vocab());
    for (std::size_t i = 0; i < batch_.size(); ++i) {
      Work& work = *batch_[i];
      const std::span<const std::int32_t> ids = additions_[i].ids;
      std::vector<std::int32_t>& held = slots_[static_cast<std::size_t>(work.slot)].ids;
      held.insert(held.end(), ids.begin(), ids.end());
      if (all) describe_prompt(work, ids, logits);
      if (work.read < work.request.prompt.size()) {
        Slot& slot = slots_[static_cast<std::size_t>(work.slot)];
        if (reads(work)) slot.read = held.size();
        work.read += ids.size();
      }
      if (work.read < work.request.prompt.size()) continue;
      const auto row = all ? logits.last(vocab) : logits.empty() ? logits : logits.subspan(i * vocab, vocab);
      if (work.other == nullptr) {
        news.push_back(draw(work, row, picked.empty() || draws_here(work) ? -1 : picked[i]));
        continue;
      }
      work.row.assign(row.begin(), row.end());
      if (!work.other->row.empty()) news.push_back(draw_compared(follows(work) ? *work.other : work));
    }
  }
  /// The next token of a request whose follower has read as much.
  [[nodiscard]] Progressed draw_compared(Work& work) {
    Work& follower = *work.other;
    const auto among = static_cast<std::size_t>(limit_of(work));
    const float kl = detail::divergence(std::span(work.row).first(among), std::span(follower.row).first(among));
    Progressed progressed = draw(work, work.row, -1);
    for (DrawnToken& token : progressed.tokens) token.kl = kl;
    if (progressed.finish == Finish::stop) progressed.stop.kl = kl;
    follower.reply = work.reply;
    follower.finish = work.finish;
    work.row.clear();
    follower.row.clear();
    return progressed;
  }
  [[nodiscard]] int limit_of(const Work& work) const {
    return work.request.among > 0 ? std::min(work.request.among, decoder_.vocab()) : decoder_.vocab();
  }

  /// The tokens behind those of `ids`, and for a first piece the first one.
  void describe_prompt(Work& work, std::span<const std::int32_t> ids, std::span<const float> logits) {
    const std::vector<std::int32_t>& prompt = work.request.prompt;
    const auto vocab = static_cast<std::size_t>(decoder_.vocab());
    if (work.read == 0) work.prompt.push_back({.token = {.id = prompt.front()}});
    for (std::size_t i = 0; i < ids.size() && work.read + i + 1 < prompt.size(); ++i) {
      work.prompt.push_back(detail::described(prompt[work.read + i + 1], logits.subspan(i * vocab, vocab),
                                              std::max(work.request.logprobs, 0)));
    }
  }

  /// The next token from the logits behind the newest one, or as the backend has picked it.
  [[nodiscard]] Progressed draw(Work& work, std::span<const float> row, std::int32_t picked) {
    const Request& request = work.request;
    Progressed progressed{.ticket = work.ticket, .prompt_cached = work.cached};
    progressed.prompt = std::exchange(work.prompt, {});
    if (request.max_new_tokens > 0) {
      std::int32_t id = picked;
      if (picked < 0) {
        std::span<const float> among = row.first(static_cast<std::size_t>(limit_of(work)));
        if (request.rules.any()) {
          changed_.assign(among.begin(), among.end());
          detail::apply_rules(request.rules, request.prompt, work.reply, changed_);
          among = changed_;
        }
        id = sample(among, request.sampling, 0, static_cast<std::uint32_t>(work.reply.size()));
      }
      if (std::find(request.stop_ids.begin(), request.stop_ids.end(), id) != request.stop_ids.end()) {
        work.finish = Finish::stop;
        progressed.stop = detail::described(id, row, request.logprobs);
      } else {
        work.reply.push_back(id);
        progressed.tokens.push_back(detail::described(id, row, request.logprobs));
      }
    }
    const bool full = decoder_.length(work.slot) >= decoder_.limits().length;
    if (work.finish == Finish::running && (full || static_cast<int>(work.reply.size()) >= request.max_new_tokens)) {
      work.finish = Finish::length;
    }
    progressed.finish = work.finish;
    return progressed;
  }

  std::unique_ptr<Context<K, B>> made_;  // null: the context is another's
  Context<K, B>& context_;
  Decoder<K, B> decoder_;
  std::vector<Slot> slots_;
  std::deque<std::unique_ptr<Work>> waiting_;
  std::vector<std::unique_ptr<Work>> running_;
  std::vector<Work*> batch_;  // of the pass that runs
  std::vector<Version> versions_;
  std::vector<const Adapters*> choices_;
  std::vector<AppliedAdapters<B>> applied_;
  std::vector<Addition> additions_;
  std::vector<DrawRow> draws_;
  std::vector<float> changed_;
  Ticket tickets_ = 0;
  std::uint64_t uses_ = 0;
};

}  // namespace v0
}  // namespace qlora
