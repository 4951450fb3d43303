// qlora/draw.hpp — draws an id from a row of logits in host memory: what the backends' op `draw` must do.
// Math       as DrawRow says; from the likeliest down, the first id with which the share of the kept reaches the random
//            number. Of equal logits the lower id is the likelier
// Numbers    logits in float, weights added in double
// Reference  tests/generate/sampler_test.cpp: against sorting everything
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {

/// The id of the largest logit, the lowest id among equals.
[[nodiscard]] inline std::int32_t argmax(std::span<const float> logits) {
  std::size_t most = 0;
  for (std::size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[most]) most = i;
  }
  return static_cast<std::int32_t>(most);
}

namespace detail {

/// Below this exp_of_negative gives the least normal number.
inline constexpr float least_exponent = -87.0F;

/// exp(x) for x from least_exponent to 0, within 3 units in the last place. Arithmetic alone, so that a compiler makes
/// vectors of it. Polynomial and splitting of ln 2 are those of Cephes' expf (Moshier).
[[nodiscard, gnu::always_inline]] inline float exp_in_range(float x) {
  const auto power = static_cast<std::int32_t>(x * 1.44269504088896341F - 0.5F);  // to the nearest, since x <= 0
  const auto whole = static_cast<float>(power);
  const float r = (x - whole * 0.693359375F) + whole * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  return p * std::bit_cast<float>((power + 127) << 23);
}
/// exp_in_range for all x up to 0, -infinity too.
[[nodiscard]] inline float exp_of_negative(float x) { return exp_in_range(x < least_exponent ? least_exponent : x); }

/// The largest of some numbers; -infinity where there are none.
[[nodiscard]] inline float largest_of(std::span<const float> values) {
  constexpr std::size_t lanes = 32;
  std::array<float, lanes> most;
  most.fill(-std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + lanes <= values.size(); i += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      most[lane] = values[i + lane] > most[lane] ? values[i + lane] : most[lane];
    }
  }
  for (; i < values.size(); ++i) most[0] = std::max(most[0], values[i]);
  for (const float value : most) most[0] = std::max(most[0], value);
  return most[0];
}

/// The sum of exp((value - largest) * inverse), in an order that depends on the count alone.
[[nodiscard]] inline double sum_of_weights(std::span<const float> values, float largest, float inverse) {
  constexpr std::size_t lanes = 32;
  std::array<double, lanes> sums{};
  std::size_t i = 0;
  std::array<float, lanes> weights;
  for (; i + lanes <= values.size(); i += lanes) {
    const float* const block = values.data() + i;
    // Loops of their own: with the limit or the conversion in the loop of the exponential, g++ makes no vectors of it.
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      const float x = (block[lane] - largest) * inverse;
      weights[lane] = x < least_exponent ? least_exponent : x;
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) weights[lane] = exp_in_range(weights[lane]);
    for (std::size_t lane = 0; lane < lanes; ++lane) sums[lane] += static_cast<double>(weights[lane]);
  }
  for (; i < values.size(); ++i) sums[0] += static_cast<double>(exp_of_negative((values[i] - largest) * inverse));
  double all = 0.0;
  for (const double sum : sums) all += sum;
  return all;
}

/// What may be drawn.
struct Candidate {
  std::int32_t id;
  float logit;
  double weight;  // of the likeliest id 1
};
/// From the likeliest to the least likely, the lowest id first among equals.
[[nodiscard]] inline bool more_likely(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

struct Reached {
  std::size_t count;  ///< of the candidates, at least one
  double weight;      ///< of all of them
};
/// Puts the likeliest of `count` candidates in front, the least likely of them last: as few as have weights of `target`
/// together, all where that is not reached. By partitions, as Hoare's FIND: a flat distribution has tens of thousands
/// of candidates, and sorting them takes milliseconds.
[[nodiscard]] inline Reached reach(Candidate* candidates, std::size_t count, double target) {
  double before = 0.0;  // weight of those in front of first
  std::size_t first = 0;
  std::size_t last = count;
  while (last - first > 32) {
    Candidate& a = candidates[first];
    Candidate& b = candidates[first + (last - first) / 2];
    Candidate& pivot = candidates[last - 1];  // the second of the three
    if (more_likely(b, a)) std::swap(a, b);
    if (more_likely(pivot, a)) std::swap(a, pivot);
    if (more_likely(b, pivot)) std::swap(b, pivot);
    double weight = 0.0;
    std::size_t middle = first;
    for (std::size_t i = first; i + 1 < last; ++i) {
      if (!more_likely(candidates[i], pivot)) continue;
      weight += candidates[i].weight;
      std::swap(candidates[middle++], candidates[i]);
    }
    if (before + weight >= target) {
      last = middle;
      continue;
    }
    before += weight + pivot.weight;
    std::swap(candidates[middle], pivot);
    first = middle + 1;
    if (before >= target || first == last) return {first, before};
  }
  std::sort(candidates + first, candidates + last, more_likely);
  for (; first < last; ++first) {
    before += candidates[first].weight;
    if (before >= target) return {first + 1, before};
  }
  return {last, before};
}

}  // namespace detail

/// Draws an id of one row. Reads all logits twice, and puts in order only what can be drawn: of 32,000 ids a few are
/// likely.
[[nodiscard]] inline std::int32_t draw(std::span<const float> logits, const DrawRow& how) {
  if (how.temperature == 0.0F) return argmax(logits);
  const float largest = detail::largest_of(logits);
  const double inverse = 1.0 / static_cast<double>(how.temperature);
  // Weights are no numbers where a temperature is so small that its inverse is no float, or a penalty made a logit
  // infinite; what is drawn then is the likeliest.
  if (inverse > static_cast<double>(std::numeric_limits<float>::max()) || !std::isfinite(largest)) {
    return argmax(logits);
  }
  /// Of the likeliest id 1.
  const auto weight_of = [&](float logit) {
    return std::exp((static_cast<double>(logit) - static_cast<double>(largest)) * inverse);
  };
  std::vector<detail::Candidate> candidates;
  const auto add = [&](std::size_t id) {
    candidates.push_back({static_cast<std::int32_t>(id), logits[id], weight_of(logits[id])});
  };
  const double share = static_cast<double>(how.top_p);
  const bool keeps_all = share >= 1.0 && how.min_p == 0.0F;
  const double random = (static_cast<double>(how.random) + 0.5) * 0x1p-32;
  double all = 0.0;
  if (how.top_k > 0 && static_cast<std::size_t>(how.top_k) < logits.size()) {
    for (std::size_t i = 0; i < logits.size(); ++i)
      candidates.push_back({static_cast<std::int32_t>(i), logits[i], 1.0});
    // With weights of 1 the likeliest top_k are in front.
    candidates.resize(detail::reach(candidates.data(), candidates.size(), static_cast<double>(how.top_k)).count);
    for (detail::Candidate& candidate : candidates) all += candidate.weight = weight_of(candidate.logit);
  } else {
    all = detail::sum_of_weights(logits, largest, static_cast<float>(inverse));
    // What is left out cannot be drawn: all ids below this together have less than is left beyond top_p, or where all
    // ids are kept beyond the random number. Half of it, since sum and logarithm round.
    const double beyond = 1.0 - (keeps_all ? random : share);
    const double least = std::max(beyond, 0x1p-34) * all / static_cast<double>(logits.size());
    const auto cut =
        static_cast<float>(static_cast<double>(largest) + static_cast<double>(how.temperature) * std::log(0.5 * least));
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] >= cut) add(i);
    }
  }
  if (candidates.empty()) return argmax(logits);  // logits that are no numbers
  // The smallest set of likeliest ids whose probability reaches top_p, less those that min_p leaves out.
  detail::Candidate* const set = candidates.data();
  std::size_t count = candidates.size();
  double kept = all;
  if (!keeps_all) {
    detail::Reached reached = detail::reach(set, count, share * all);
    const auto minimum = static_cast<double>(how.min_p);
    if (minimum > 0.0) {
      count = 0;
      for (std::size_t i = 0; i < reached.count; ++i) {
        if (set[i].weight >= minimum) std::swap(set[i], set[count++]);
      }
      reached = detail::reach(set, count, std::numeric_limits<double>::infinity());
    }
    count = reached.count;
    kept = reached.weight;
  }
  return set[detail::reach(set, count, random * kept).count - 1].id;
}

}  // namespace v0
}  // namespace qlora
