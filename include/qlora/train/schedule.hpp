// qlora/train/schedule.hpp — learning rate over the steps of a run, as transformers' get_scheduler computes it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace qlora {
inline namespace v0 {

/// How the learning rate falls after the warmup.
enum class Schedule : std::uint8_t { linear, cosine, constant };

/// Learning rate of optimizer step `step` (from 0) of `total`: rises linearly over `warmup` steps, then falls to 0
/// linearly or along half a cosine, or stays.
[[nodiscard]] inline double learning_rate(Schedule schedule, double peak, int step, int warmup, int total) {
  if (step < warmup) return peak * step / std::max(1, warmup);
  if (schedule == Schedule::constant) return peak;
  const double left = std::max(0.0, static_cast<double>(total - step) / std::max(1, total - warmup));
  if (schedule == Schedule::linear) return peak * left;
  return peak * std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * (1.0 - left))));
}

}  // namespace v0
}  // namespace qlora
