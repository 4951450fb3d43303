// qlora/generate/sampler.hpp — the next token from logits: greedy, or temperature, top-k, top-p and min-p in that order.
// Randomness is counter-based: (seed, sequence, position) decides, so what else is generated at the same time does not.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/rng.hpp"

namespace qlora {
inline namespace v0 {

/// temperature 0, the default, is greedy; top_k 0 and top_p 1 are off.
struct Sampling {
  float temperature = 0.0F;  ///< divides the logits, 0 to 100
  float top_p = 0.9F;  ///< the smallest set of likeliest ids with this probability is drawn from; above 0, at most 1
  int top_k = 0;       ///< at most this many ids are drawn from
  float min_p = 0.0F;  ///< ids less likely than this times the likeliest are not drawn; 0 is off
  std::uint64_t seed = 0;  ///< the same seed draws the same ids

  /// Throws Error (usage) for a value outside its range, NaN included.
  void check() const {
    detail::expect_option(temperature >= 0.0F && temperature <= 100.0F, "temperature", temperature, "0 to 100");
    detail::expect_option(top_p > 0.0F && top_p <= 1.0F, "top_p", top_p, "above 0 and at most 1");
    detail::expect_option(top_k >= 0, "top_k", top_k, "0 (off) or more");
    detail::expect_option(min_p >= 0.0F && min_p <= 1.0F, "min_p", min_p, "0 to 1");
  }
};
/// Always the likeliest id.
inline constexpr Sampling greedy{.temperature = 0.0F, .top_p = 1.0F};

/// The id of the largest logit, the lowest id among equals.
[[nodiscard]] inline std::int32_t argmax(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Draws an id. `sequence` and `position` say what the random number is for. Sorts only as far as it must: of 32,000
/// ids a few are likely.
[[nodiscard]] inline std::int32_t sample(std::span<const float> logits, const Sampling& how, std::uint32_t sequence,
                                         std::uint32_t position) {
  if (how.temperature == 0.0F) return argmax(logits);
  const auto less_likely = [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)];
    const float y = logits[static_cast<std::size_t>(b)];
    return x < y || (x == y && a > b);
  };
  std::vector<std::int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  if (how.top_k > 0 && static_cast<std::size_t>(how.top_k) < ids.size()) {
    std::nth_element(ids.begin(), ids.begin() + how.top_k, ids.end(),
                     [&](std::int32_t a, std::int32_t b) { return less_likely(b, a); });
    ids.resize(static_cast<std::size_t>(how.top_k));
    std::sort(ids.begin(), ids.end());  // so that sums are in one order
  }
  const double top = static_cast<double>(logits[static_cast<std::size_t>(argmax(logits))]);
  std::vector<double> weights(logits.size());  // by id; the likeliest has 1
  double all = 0.0;
  for (const std::int32_t id : ids) {
    const auto i = static_cast<std::size_t>(id);
    weights[i] = std::exp((static_cast<double>(logits[i]) - top) / static_cast<double>(how.temperature));
    all += weights[i];
  }
  // What is left out here cannot be drawn: ids below min_p, and ids so unlikely that all such ids together have less
  // than top_p leaves.
  const double share = static_cast<double>(how.top_p);
  const double least = std::max(static_cast<double>(how.min_p), (1.0 - share) * all / static_cast<double>(ids.size()));
  std::erase_if(ids, [&](std::int32_t id) { return weights[static_cast<std::size_t>(id)] < least; });
  std::make_heap(ids.begin(), ids.end(), less_likely);
  std::vector<std::int32_t> order;  // the likeliest ids, as far as they were asked for
  const auto weight_of = [&](std::size_t rank) {
    while (order.size() <= rank) {
      std::pop_heap(ids.begin(), ids.end(), less_likely);
      order.push_back(ids.back());
      ids.pop_back();
    }
    return weights[static_cast<std::size_t>(order[rank])];
  };
  // The smallest set of likeliest ids whose probability reaches top_p; all of them need not be put in order.
  const std::size_t count = ids.size();
  double kept = 0.0;
  std::size_t size = 0;
  if (share >= 1.0 && how.min_p == 0.0F) {
    kept = all;
    size = count;
  } else {
    while (size < count && (size == 0 || kept < share * all)) kept += weight_of(size++);
  }
  const auto words = philox({position, sequence, 0, use_word(RandomUse::sampling)}, how.seed);
  double left = (static_cast<double>(words[0]) + 0.5) * 0x1p-32 * kept;
  std::size_t rank = 0;
  for (; rank + 1 < size; ++rank) {
    left -= weight_of(rank);
    if (left < 0.0) break;
  }
  (void)weight_of(rank);
  return order[rank];
}

}  // namespace v0
}  // namespace qlora
