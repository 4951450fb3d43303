// qlora/run/merge_certificate.hpp — how far merged models are from the model with its adapter, on texts that this one
// writes itself.
// Math       per token: the largest and the mean difference of a logit, KL(adapter || merged) in nats, whether both
//            have the same likeliest token; perplexity exp(mean of -log p(next token)) of either
// Memory     the logits of all windows in float, and one model at a time
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/run/session.hpp"
#include "qlora/run/steps.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Sums over the tokens of all windows, between logits of one model and those of another. Used by one thread at a time.
class MergeDistance {
 public:
  /// The logits (V) of the model with its adapter and of the merged one that predict `next`.
  void add(std::span<const float> live, std::span<const float> merged, std::int32_t next) {
    QLORA_EXPECTS(live.size() == merged.size(), "logits of ", live.size(), " and ", merged.size(), " pieces");
    const double all_live = log_sum(live), all_merged = log_sum(merged);
    double kl = 0, sum = 0;
    for (std::size_t i = 0; i < live.size(); ++i) {
      const double difference = static_cast<double>(live[i]) - static_cast<double>(merged[i]);
      largest_ = std::max(largest_, std::fabs(difference));
      sum += std::fabs(difference);
      const double log_p = static_cast<double>(live[i]) - all_live;
      kl += std::exp(log_p) * (difference - all_live + all_merged);
    }
    const auto best = [](std::span<const float> logits) {
      return std::max_element(logits.begin(), logits.end()) - logits.begin();
    };
    ++tokens_;
    mean_ += sum / static_cast<double>(live.size());
    kl_ += kl;
    agreed_ += best(live) == best(merged) ? 1 : 0;
    loss_ += all_merged - static_cast<double>(merged[static_cast<std::size_t>(next)]);
  }
  /// The means and extremes of all tokens that were added.
  [[nodiscard]] MergeDifference of(std::string onto) const {
    const auto n = static_cast<double>(tokens_);
    return {.onto = std::move(onto),
            .largest_logit = largest_,
            .mean_logit = mean_ / n,
            .kl = kl_ / n,
            .agreement = static_cast<double>(agreed_) / n,
            .perplexity = std::exp(loss_ / n)};
  }

  /// log of the sum of exp of all.
  [[nodiscard]] static double log_sum(std::span<const float> logits) {
    const double largest = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
    return largest + std::log(sum);
  }

 private:
  std::int64_t tokens_ = 0;
  std::int64_t agreed_ = 0;
  double largest_ = 0, mean_ = 0, kl_ = 0, loss_ = 0;
};

/// What the model with its adapter wrote and thought.
struct MergeProbes {
  std::vector<std::vector<std::int32_t>> windows;  ///< token ids
  std::vector<std::size_t> begins;                 ///< of each window in `logits`
  std::vector<std::vector<float>> logits;          ///< that predict each token of all windows but their first (V)
  double loss = 0;                                 ///< the sum of -log p of these tokens, nats

  /// exp of the mean loss: how many tokens the model is in doubt between.
  [[nodiscard]] double perplexity() const { return std::exp(loss / static_cast<double>(logits.size())); }

  /// Windows of `length` tokens that the session's model writes at temperature 1 behind `begin`, and their logits.
  /// Only ids below `among` are drawn.
  [[nodiscard]] static MergeProbes of(Session& session, std::int32_t begin, int windows, int length, int among) {
    MergeProbes probes;
    const std::vector<std::vector<std::int32_t>> prompts(static_cast<std::size_t>(windows), {begin});
    const GenerateOptions options{
        .max_new_tokens = length - 1, .sampling = {.temperature = 1.0F}, .stop_ids = {}, .among = among};
    for (const Generated& written : session.generate(prompts, options, {})) {
      std::vector<std::int32_t>& window = probes.windows.emplace_back(1, begin);
      window.insert(window.end(), written.ids.begin(), written.ids.end());
    }
    std::size_t tokens = 0;
    for (const auto& window : probes.windows) {
      probes.begins.push_back(tokens);
      tokens += window.size() - 1;
    }
    if (tokens == 0) throw Error("the model's context has no room for a window of two tokens");
    probes.logits.resize(tokens);
    session.read(probes.windows, [&](std::size_t text, std::size_t position, std::span<const float> row) {
      probes.logits[probes.begins[text] + position - 1].assign(row.begin(), row.end());
      const auto next = static_cast<std::size_t>(probes.windows[text][position]);
      probes.loss += MergeDistance::log_sum(row) - static_cast<double>(row[next]);
      return true;
    });
    return probes;
  }
  /// How far a merged model is from these; `onto`: the weights that it was merged onto.
  [[nodiscard]] MergeDifference difference(Session& session, std::string onto) const {
    MergeDistance sums;
    session.read(windows, [&](std::size_t text, std::size_t position, std::span<const float> merged) {
      sums.add(logits[begins[text] + position - 1], merged, windows[text][position]);
      return true;
    });
    return sums.of(std::move(onto));
  }
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
