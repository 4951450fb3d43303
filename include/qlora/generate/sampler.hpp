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

/// Draws an id. `sequence` and `position` say what the random number is for.
[[nodiscard]] inline std::int32_t sample(std::span<const float> logits, const Sampling& how, std::uint32_t sequence,
                                         std::uint32_t position) {
  if (how.temperature == 0.0F) return argmax(logits);
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto larger = [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)];
    const float y = logits[static_cast<std::size_t>(b)];
    return x > y || (x == y && a < b);
  };
  std::size_t count = order.size();
  if (how.top_k > 0) count = std::min(count, static_cast<std::size_t>(how.top_k));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), larger);
  std::vector<double> weight(count);
  const double top = static_cast<double>(logits[static_cast<std::size_t>(order[0])]);
  for (std::size_t i = 0; i < count; ++i) {
    const double z = static_cast<double>(logits[static_cast<std::size_t>(order[i])]);
    weight[i] = std::exp((z - top) / static_cast<double>(how.temperature));
  }
  const double all = std::accumulate(weight.begin(), weight.end(), 0.0);
  // The smallest set of most likely tokens whose probability reaches top_p.
  double kept = 0.0;
  std::size_t size = 0;
  while (size < count && (size == 0 || kept < static_cast<double>(how.top_p) * all)) {
    if (weight[size] < static_cast<double>(how.min_p)) break;  // the likeliest has weight 1
    kept += weight[size++];
  }
  const auto words = philox({position, sequence, 0, use_word(RandomUse::sampling)}, how.seed);
  double left = (static_cast<double>(words[0]) + 0.5) * 0x1p-32 * kept;
  for (std::size_t i = 0; i + 1 < size; ++i) {
    left -= weight[i];
    if (left < 0.0) return order[i];
  }
  return order[size - 1];
}

}  // namespace v0
}  // namespace qlora
