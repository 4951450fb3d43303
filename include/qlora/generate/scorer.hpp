// qlora/generate/scorer.hpp — Scorer<C, B>: how likely a model finds tokens that it is shown: log-likelihoods of
// continuations, and distributions at every token of a text, for its loss and for KL divergence from another model.
// Math       log p(c | q) = sum_i log softmax(z_i)[c_i], in nats; z_i the logits behind q and c_1 ... c_{i-1}
// Numbers    logits as the network gives them; log-sum-exp and sums in double
// Cost       a question's tokens once, whatever the number of its candidates: the cache is cut back between them
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <utility>

#include "qlora/generate/decoder.hpp"
#include "qlora/model/model.hpp"

namespace qlora {
inline namespace v0 {

/// log sum_v exp(z_v).
[[nodiscard]] inline double log_sum_exp(std::span<const float> logits) {
  const auto most = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0.0;
  for (const float z : logits) sum += std::exp(static_cast<double>(z) - most);
  return most + std::log(sum);
}

/// KL(p || q) in nats, p and q given as logits of one size. Not negative but for rounding.
[[nodiscard]] inline double kl_divergence(std::span<const float> p, std::span<const float> q) {
  QLORA_EXPECTS(p.size() == q.size() && !p.empty(), "distributions over ", p.size(), " and ", q.size(), " tokens");
  const double log_p = log_sum_exp(p);
  const double log_q = log_sum_exp(q);
  double sum = 0.0;
  for (std::size_t v = 0; v < p.size(); ++v) {
    const double of_p = static_cast<double>(p[v]) - log_p;
    sum += std::exp(of_p) * (of_p - (static_cast<double>(q[v]) - log_q));
  }
  return sum;
}

/// A prompt and what may come behind it. Neither the prompt nor a candidate is empty.
struct Continuations {
  std::vector<std::int32_t> prompt;                   ///< ids as the model reads them, the begin mark included
  std::vector<std::vector<std::int32_t>> candidates;  ///< ids that may follow
};

/// Called for each token of a text but its first, in order: index of the text, position of the token (from 1), and the
/// logits (V) that predict it, which are good until the call returns. Returning false ends the reading.
using OnPrediction = std::function<bool(std::size_t text, std::size_t position, std::span<const float> logits)>;

/// Likelihoods of continuations and logits of texts, for one Code. See Scorer.
template <Code K, class B>
class ScorerCore {
 public:
  /// With the stated room. The context outlives the core.
  ScorerCore(Context<K, B>& context, DecodeLimits stated)
      : context_(context), room_(context, (stated.all_logits = true, stated)) {}
  /// With as much room as calls need.
  explicit ScorerCore(Context<K, B>& context) : context_(context), room_(context) {}

  /// log p(candidate | prompt) for each candidate of each question.
  std::vector<std::vector<double>> score(std::span<const Continuations> questions) {
    const auto entry = context_.enter();
    std::vector<std::vector<double>> results(questions.size());
    if (questions.empty()) return results;
    make_room(questions);
    const auto step = static_cast<std::size_t>(decoder_->limits().step_tokens);
    for (std::size_t first = 0; first < questions.size();) {
      std::size_t count = 0;
      for (std::size_t tokens = 0; first + count < questions.size() && count < slots(); ++count) {
        tokens += checked(questions[first + count]);
        if (count > 0 && tokens > step) break;
      }
      score_group(&questions[first], count, &results[first]);
      first += count;
    }
    return results;
  }

  /// Reads all texts. A text of one token predicts nothing.
  void read(std::span<const std::vector<std::int32_t>> texts, const OnPrediction& use) {
    const auto entry = context_.enter();
    if (texts.empty()) return;
    std::size_t longest = 0;
    std::size_t all = 0;
    for (const auto& text : texts) {
      longest = std::max(longest, text.size());
      all += text.size();
    }
    decoder_ = &room_.of(texts.size(), static_cast<std::int64_t>(longest), static_cast<std::int64_t>(all), 1, true);
    const auto step = static_cast<std::size_t>(decoder_->limits().step_tokens);
    for (std::size_t first = 0; first < texts.size();) {
      std::size_t count = 0;
      for (std::size_t tokens = 0; first + count < texts.size() && count < slots(); ++count) {
        QLORA_EXPECTS(!texts[first + count].empty(), "text ", first + count, " is empty");
        tokens += texts[first + count].size();
        if (count > 0 && tokens > step) break;
      }
      if (!read_group(texts, first, count, use)) return;
      first += count;
    }
  }

  /// Bytes of backend memory that its room takes now.
  [[nodiscard]] std::int64_t bytes_used() const { return room_.bytes_used(); }

 private:
  using Addition = typename Decoder<K, B>::Addition;

  /// A decoder for these questions; a candidate goes in one piece.
  void make_room(std::span<const Continuations> questions) {
    std::size_t length = 0;
    std::size_t tokens = 0;
    std::size_t step = 0;
    for (const Continuations& question : questions) {
      std::size_t longest = 0;
      for (const auto& candidate : question.candidates) longest = std::max(longest, candidate.size());
      length = std::max(length, question.prompt.size() + longest);
      tokens += question.prompt.size() + longest;
      step = std::max(step, longest);
    }
    decoder_ = &room_.of(questions.size(), static_cast<std::int64_t>(length), static_cast<std::int64_t>(tokens),
                         static_cast<std::int64_t>(step), true);
  }
  [[nodiscard]] std::size_t vocab() const { return static_cast<std::size_t>(decoder_->vocab()); }
  [[nodiscard]] std::size_t slots() const { return static_cast<std::size_t>(decoder_->limits().sequences); }
  /// Tokens of the prompt.
  static std::size_t checked(const Continuations& question) {
    QLORA_EXPECTS(!question.prompt.empty(), "a prompt is empty");
    for (const auto& candidate : question.candidates) QLORA_EXPECTS(!candidate.empty(), "a candidate is empty");
    return question.prompt.size();
  }
  [[nodiscard]] static double log_probability(std::span<const float> logits, std::int32_t id) {
    QLORA_EXPECTS(id >= 0 && static_cast<std::size_t>(id) < logits.size(), "token id ", id, " is outside 0 to ",
                  logits.size() - 1);
    return static_cast<double>(logits[static_cast<std::size_t>(id)]) - log_sum_exp(logits);
  }

  /// Prompts into the slots 0, 1, ...; the logits behind each stand in behind_ then. A prompt that is longer than a
  /// step is alone and goes in pieces.
  void read_prompts(const Continuations* questions, std::size_t count) {
    additions_.clear();
    for (std::size_t i = 0; i < count; ++i) {
      decoder_->clear(static_cast<int>(i));
      additions_.push_back({static_cast<int>(i), questions[i].prompt});
    }
    const auto step = static_cast<std::size_t>(decoder_->limits().step_tokens);
    while (additions_[0].ids.size() > step) {
      const Addition piece{0, additions_[0].ids.first(step)};
      additions_[0].ids = additions_[0].ids.subspan(step);
      (void)decoder_->extend(std::span(&piece, 1));
    }
    const std::span<const float> logits = decoder_->extend(additions_);
    behind_.assign(logits.begin(), logits.end());
  }

  /// Questions that the slots hold at once, and the results of each.
  void score_group(const Continuations* questions, std::size_t count, std::vector<double>* results) {
    read_prompts(questions, count);
    std::size_t most = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const Continuations& question = questions[i];
      most = std::max(most, question.candidates.size());
      for (const auto& candidate : question.candidates) {
        results[i].push_back(log_probability({behind_.data() + i * vocab(), vocab()}, candidate[0]));
      }
    }
    for (std::size_t c = 0; c < most; ++c) {
      for (std::size_t first = 0; first < count;) first = score_candidates(questions, count, c, first, results);
    }
  }
  /// The c-th candidates of the questions from `first` on, as many as a step holds; what follows their first tokens is
  /// added to the results. Returns the question to go on with.
  std::size_t score_candidates(const Continuations* questions, std::size_t count, std::size_t c, std::size_t first,
                               std::vector<double>* results) {
    additions_.clear();
    std::size_t tokens = 0;
    std::size_t i = first;
    for (; i < count; ++i) {
      if (c >= questions[i].candidates.size() || questions[i].candidates[c].size() < 2) continue;
      const std::span<const std::int32_t> seen(questions[i].candidates[c]);
      const std::size_t more = seen.size() - 1;  // nothing is asked behind the last one
      QLORA_EXPECTS(more <= static_cast<std::size_t>(decoder_->limits().step_tokens), "a candidate of ", seen.size(),
                    " tokens; a step has ", decoder_->limits().step_tokens);
      if (tokens + more > static_cast<std::size_t>(decoder_->limits().step_tokens)) break;
      tokens += more;
      additions_.push_back({static_cast<int>(i), seen.first(more)});
    }
    if (additions_.empty()) return i;
    std::span<const float> logits = decoder_->extend_all(additions_);
    for (const Addition& addition : additions_) {
      const auto at = static_cast<std::size_t>(addition.slot);
      const std::vector<std::int32_t>& candidate = questions[at].candidates[c];
      for (std::size_t t = 1; t < candidate.size(); ++t) {
        results[at][c] += log_probability(logits.first(vocab()), candidate[t]);
        logits = logits.subspan(vocab());
      }
      decoder_->truncate(addition.slot, static_cast<int>(questions[at].prompt.size()));
    }
    return i;
  }

  bool read_group(std::span<const std::vector<std::int32_t>> texts, std::size_t first, std::size_t count,
                  const OnPrediction& use) {
    const auto step = static_cast<std::size_t>(decoder_->limits().step_tokens);
    for (std::size_t i = 0; i < count; ++i) decoder_->clear(static_cast<int>(i));
    const std::size_t longest = count == 1 ? texts[first].size() : step;
    for (std::size_t done = 0; done < longest; done += step) {  // one round, or the pieces of a long text
      additions_.clear();
      for (std::size_t i = 0; i < count; ++i) {
        const std::span<const std::int32_t> ids(texts[first + i]);
        additions_.push_back({static_cast<int>(i), ids.subspan(done, std::min(step, ids.size() - done))});
      }
      std::span<const float> logits = decoder_->extend_all(additions_);
      for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t t = 0; t < additions_[i].ids.size(); ++t) {
          const std::size_t next = done + t + 1;
          if (next < texts[first + i].size() && !use(first + i, next, logits.first(vocab()))) return false;
          logits = logits.subspan(vocab());
        }
      }
    }
    return true;
  }

  Context<K, B>& context_;
  DecoderRoom<K, B> room_;
  Decoder<K, B>* decoder_ = nullptr;  // of the call that runs
  std::vector<Addition> additions_;
  std::vector<float> behind_;
};

/// Scores with a model. Used by one thread at a time; many of them, each with a context of its own, run at once on one
/// model.
template <Config C, class B>
requires RunsOn<C, B>
class Scorer {
 public:
  /// In a new context of the model, which context() gives. The room follows the calls (DecoderRoom).
  explicit Scorer(const Model<C, B>& model);
  /// With stated room, taken now, in a new context.
  Scorer(const Model<C, B>& model, const DecodeLimits& limits);
  /// In a context of the model that outlives the scorer.
  explicit Scorer(Context<code_of(C), B>& context);
  /// With stated room, in such a context.
  Scorer(Context<code_of(C), B>& context, const DecodeLimits& limits);

  /// Which adapters it applies, and how strongly.
  [[nodiscard]] Context<code_of(C), B>& context() { return *context_; }
  /// Bytes of backend memory that its room takes now; decode_bytes() of what was stated, or of what calls have needed.
  [[nodiscard]] std::int64_t bytes_used() const { return core_->bytes_used(); }

  /// log p(candidate | prompt) in nats, for each candidate of each question. Throws Error when something is empty, has
  /// an id outside the vocabulary, or is longer than the limits.
  std::vector<std::vector<double>> score(std::span<const Continuations> questions);
  /// The logits at every token of all texts, see OnPrediction.
  void read(std::span<const std::vector<std::int32_t>> texts, const OnPrediction& use);

 private:
  std::unique_ptr<Context<code_of(C), B>> made_;  // null: the context is another's
  Context<code_of(C), B>* context_;
  std::unique_ptr<ScorerCore<code_of(C), B>> core_;
};

// Outside the class, and so not inline: see Model.
template <Config C, class B>
requires RunsOn<C, B> Scorer<C, B>::Scorer(const Model<C, B>& model)
    : made_(model.make_context()),
      context_(made_.get()),
      core_(std::make_unique<ScorerCore<code_of(C), B>>(*context_)) {}

template <Config C, class B>
requires RunsOn<C, B> Scorer<C, B>::Scorer(Context<code_of(C), B>& context)
    : context_(&context), core_(std::make_unique<ScorerCore<code_of(C), B>>(context)) {}

template <Config C, class B>
requires RunsOn<C, B> Scorer<C, B>::Scorer(const Model<C, B>& model, const DecodeLimits& limits)
    : made_(model.make_context()),
      context_(made_.get()),
      core_(std::make_unique<ScorerCore<code_of(C), B>>(*context_, limits)) {}

template <Config C, class B>
requires RunsOn<C, B> Scorer<C, B>::Scorer(Context<code_of(C), B>& context, const DecodeLimits& limits)
    : context_(&context), core_(std::make_unique<ScorerCore<code_of(C), B>>(context, limits)) {}

template <Config C, class B>
requires RunsOn<C, B> std::vector<std::vector<double>> Scorer<C, B>::score(std::span<const Continuations> questions) {
  return core_->score(questions);
}

template <Config C, class B>
requires RunsOn<C, B>
void Scorer<C, B>::read(std::span<const std::vector<std::int32_t>> texts, const OnPrediction& use) {
  core_->read(texts, use);
}

}  // namespace v0
}  // namespace qlora
