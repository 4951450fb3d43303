// qlora/io/utc_time.hpp — the time of day as written into records.
#pragma once

#include <ctime>
#include <string>

namespace qlora {
inline namespace v0 {

/// The time now, ISO 8601 to the second, UTC: "2026-01-31T12:00:00Z".
[[nodiscard]] inline std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

}  // namespace v0
}  // namespace qlora
