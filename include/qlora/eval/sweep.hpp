// qlora/eval/sweep.hpp — the axis of a varied setting.
#pragma once

#include <algorithm>
#include <span>

#include "qlora/eval/svg.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// Values that span a factor of eight or more get a logarithmic axis: ranks and document counts are mostly doubled.
[[nodiscard]] inline Scale sweep_scale(std::span<const double> values) {
  constexpr double wide = 8;
  if (values.size() < 3) return Scale::linear;
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  return *least > 0 && *most >= wide * *least ? Scale::logarithmic : Scale::linear;
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
