// qlora/text/jinja_time.hpp — the time of day that a chat template may ask for: strftime_now(format), which the package
// transformers adds to Jinja.
// Reference: tests/text/chat_test.cpp, texts of that package at a fixed time.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <string>
#include <string_view>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {
namespace jinja {

/// A time of day, as from Python's datetime.now().
struct Moment {
  std::tm time{};        ///< year to second, without a time zone
  int microseconds = 0;  ///< 0 to 999,999
};

/// Seconds since 1970 as a moment in UTC.
[[nodiscard]] inline Moment utc_moment(std::int64_t seconds) {
  const auto time = static_cast<std::time_t>(seconds);
  Moment out;
  if (gmtime_r(&time, &out.time) == nullptr || out.time.tm_year > 9999 - 1900)
    throw Error(concat("there is no date ", seconds, " seconds after 1970"));
  return out;
}

/// Now, in local time. Where the environment has SOURCE_DATE_EPOCH, a number of seconds since 1970, it is that time in
/// UTC, so that what was made can be made again (reproducible-builds.org). Throws Error when that is no such number.
[[nodiscard]] inline Moment now() {
  if (const char* fixed = std::getenv("SOURCE_DATE_EPOCH")) {
    const std::string_view text = fixed;
    if (text.empty() || text.size() > 12 || text.find_first_not_of("0123456789") != std::string_view::npos)
      throw Error("SOURCE_DATE_EPOCH in the environment is no number of seconds since 1970");
    return utc_moment(std::stoll(fixed));
  }
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  const auto microseconds = std::chrono::duration_cast<std::chrono::microseconds>(since).count();
  const auto time = static_cast<std::time_t>(microseconds / 1'000'000);
  Moment out;
  if (localtime_r(&time, &out.time) == nullptr) throw Error("the system's clock has no date");
  out.microseconds = static_cast<int>(microseconds % 1'000'000);
  return out;
}

/// Python's datetime.strftime for a time without a zone: %f are microseconds, %z, %:z and %Z nothing, the rest is C's.
/// Throws Error for a format or a text of more than 4,096 bytes.
[[nodiscard]] inline std::string time_text(std::string_view format, const Moment& moment) {
  constexpr std::size_t limit = 4096;
  if (format.size() > limit || format.find('\0') != std::string_view::npos)
    throw Error("the chat template asks for the time in a format that is too long or no text");
  std::string c_format;
  for (std::size_t i = 0; i < format.size(); ++i) {
    const std::string_view rest = format.substr(i);
    if (rest.starts_with("%f")) {
      const std::string digits = std::to_string(1'000'000 + moment.microseconds);
      c_format += digits.substr(1);
      ++i;
    } else if (rest.starts_with("%z") || rest.starts_with("%Z")) {
      ++i;
    } else if (rest.starts_with("%:z")) {
      i += 2;
    } else if (rest.starts_with('%') && rest.size() > 1) {
      c_format += rest.substr(0, 2);
      ++i;
    } else {
      c_format += format[i];
    }
  }
  c_format += '.';  // a text may be empty, and strftime says 0 for one that is too long
  std::array<char, limit> text{};
  // The format is the template's: the program never sets a locale, and the buffer bounds what a width may ask for.
  const std::size_t length = std::strftime(text.data(), text.size(), c_format.c_str(), &moment.time);
  if (length == 0) throw Error("the chat template asks for the time as more than 4,096 bytes");
  return {text.data(), length - 1};
}

}  // namespace jinja
}  // namespace v0
}  // namespace qlora
