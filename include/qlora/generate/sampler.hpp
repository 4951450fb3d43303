// qlora/generate/sampler.hpp — the next token from logits: greedy, or temperature, top-k, top-p, min-p in that order.
// Randomness is counter-based: (seed, sequence, position) decides, so what else is generated at the same time does not.
#pragma once

#include <cstdint>
#include <span>

#include "qlora/draw.hpp"
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

/// What a backend draws a row by: the random number of (seed, sequence, position), ids below `among`.
[[nodiscard]] inline DrawRow draw_row(const Sampling& how, int among, std::uint32_t sequence, std::uint32_t position) {
  DrawRow row{
      .temperature = how.temperature, .top_p = how.top_p, .min_p = how.min_p, .top_k = how.top_k, .among = among};
  if (how.temperature != 0.0F) {
    row.random = philox({position, sequence, 0, use_word(RandomUse::sampling)}, how.seed)[0];
  }
  return row;
}

/// Draws an id from logits in host memory. `sequence` and `position` say what the random number is for.
[[nodiscard]] inline std::int32_t sample(std::span<const float> logits, const Sampling& how, std::uint32_t sequence,
                                         std::uint32_t position) {
  return draw(logits, draw_row(how, static_cast<int>(logits.size()), sequence, position));
}

}  // namespace v0
}  // namespace qlora
