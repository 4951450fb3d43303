// qlora/run/units.hpp — times and amounts of memory for readers.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>

namespace qlora {
inline namespace v0 {
namespace run {

/// "42 s", "3 min 10 s", "2 h 5 min".
[[nodiscard]] inline std::string duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto whole = static_cast<std::int64_t>(std::llround(std::min(seconds, 1e12)));
  if (whole < 60) return std::to_string(whole) + " s";
  if (whole < 3600) return std::to_string(whole / 60) + " min " + std::to_string(whole % 60) + " s";
  return std::to_string(whole / 3600) + " h " + std::to_string(whole % 3600 / 60) + " min";
}

/// "22.4 GB".
[[nodiscard]] inline std::string gigabytes(std::int64_t bytes) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), bytes < 100'000'000 ? "%.3f GB" : "%.1f GB",
                static_cast<double>(bytes) / 1e9);
  return text.data();
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
