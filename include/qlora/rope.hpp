// qlora/rope.hpp — the frequencies of rotary embedding, and how a model scales them to read longer texts.
// Math       f_i = theta^(-2i/E), i < E/2; pairs turn by position * f_i, and cos and sin are multiplied by `attention`
//   linear   f_i / factor
//   llama3   f_i where 2 pi / f_i < old / high; f_i / factor where it is > old / low; between them a blend by
//            (old f_i / 2 pi - low) / (high - low)
//   yarn     a blend of f_i / factor and f_i by a ramp over i between the pairs that turn fast and slow times in the
//            old context (arXiv 2309.00071)
// Numbers    float, as transformers holds them: at position p the angle's error is p times their rounding
// Reference  tests/model/families_test.cpp, logits of transformers
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

namespace qlora {
inline namespace v0 {

/// How the frequencies are scaled.
enum class RopeKind : std::uint8_t { none, linear, llama3, yarn };

/// A scaling of rotary embedding. Members that the kind does not use have no meaning.
struct RopeScaling {
  RopeKind kind = RopeKind::none;  ///< none: the frequencies stay as they are
  float factor = 1.0F;             ///< how much longer texts become
  int old_positions = 0;           ///< tokens of the context that the model was first trained for; llama3, yarn
  float low = 1.0F;                ///< llama3: turns in the old context at and below which frequencies are divided
  float high = 4.0F;               ///< llama3: turns at and above which frequencies stay
  float fast = 32.0F;              ///< yarn: turns in the old context at and above which frequencies stay
  float slow = 1.0F;               ///< yarn: turns at and below which they are divided
  bool whole_pairs = true;         ///< yarn: the ramp begins and ends at whole pairs
  float attention = 1.0F;          ///< what cos and sin are multiplied by
  friend constexpr bool operator==(const RopeScaling&, const RopeScaling&) = default;
};

namespace detail {

/// The pair that turns `turns` times in the old context; YaRN's formula.
[[nodiscard]] inline double yarn_pair(double turns, int head_dim, double theta, int old_positions) {
  return head_dim * std::log(old_positions / (turns * 2.0 * std::numbers::pi)) / (2.0 * std::log(theta));
}

}  // namespace detail

/// The E/2 frequencies in radians per position.
[[nodiscard]] inline std::vector<float> rope_frequencies(double theta, const RopeScaling& scaling, int head_dim) {
  std::vector<float> all;
  const double factor = static_cast<double>(scaling.factor);
  double first = 0.0;  // of yarn's ramp
  double last = 0.0;
  if (scaling.kind == RopeKind::yarn) {
    first = detail::yarn_pair(static_cast<double>(scaling.fast), head_dim, theta, scaling.old_positions);
    last = detail::yarn_pair(static_cast<double>(scaling.slow), head_dim, theta, scaling.old_positions);
    if (scaling.whole_pairs) {
      first = std::floor(first);
      last = std::ceil(last);
    }
    first = std::max(first, 0.0);
    last = std::min(last, head_dim - 1.0);
    if (first == last) last += 0.001;  // as the reference does, so that the ramp has a slope
  }
  for (int i = 0; i < head_dim / 2; ++i) {
    // The reference holds this in float, and what follows starts from it.
    const auto plain = static_cast<float>(1.0 / std::pow(theta, 2.0 * i / head_dim));
    const auto f = static_cast<double>(plain);
    double scaled = f;
    if (scaling.kind == RopeKind::linear) {
      scaled = f / factor;
    } else if (scaling.kind == RopeKind::llama3) {
      const double turns = scaling.old_positions * f / (2.0 * std::numbers::pi);
      const double low = static_cast<double>(scaling.low);
      const double high = static_cast<double>(scaling.high);
      const double kept = turns < low ? 0.0 : turns > high ? 1.0 : (turns - low) / (high - low);
      scaled = (1.0 - kept) * f / factor + kept * f;
    } else if (scaling.kind == RopeKind::yarn) {
      const double divided = std::clamp((i - first) / (last - first), 0.0, 1.0);
      scaled = divided * f / factor + (1.0 - divided) * f;
    }
    all.push_back(static_cast<float>(scaled));
  }
  return all;
}

}  // namespace v0
}  // namespace qlora
