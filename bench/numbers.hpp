// bench/numbers.hpp — numbers on a benchmark's command line. A truncated or out-of-range number is an error, so that
// a benchmark never measures another setting than the one given.
#pragma once

#include <charconv>
#include <string_view>
#include <system_error>
#include <type_traits>

#include "qlora/error.hpp"

namespace qlora::bench {

/// The whole text as a number from `low` to `high`. Throws Error (usage) that names the option.
template <class Number>
[[nodiscard]] Number number_of(std::string_view option, std::string_view text, std::type_identity_t<Number> low,
                               std::type_identity_t<Number> high) {
  Number value{};
  const char* const last = text.data() + text.size();
  const auto [end, problem] = std::from_chars(text.data(), last, value);
  if (problem == std::errc{} && end == last && value >= low && value <= high) return value;  // NaN is in no range
  throw Error(concat(option, " is `", text, "`, not a ", std::is_integral_v<Number> ? "whole number" : "number",
                     " from ", low, " to ", high),
              ErrorKind::usage);
}

}  // namespace qlora::bench
