// qlora/error.hpp — the one exception type of the library, and the check that throws it.
// The library never prints, exits or aborts; a program maps ErrorKind to its exit code.
#pragma once

#include "qlora/compiler.hpp"

#include <array>
#include <cstddef>
#include <cstdio>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace qlora {
inline namespace v0 {

/// What went wrong, by who can mend it. The values are the exit codes of the `qlora` program.
enum class ErrorKind : int {
  unmet = 1,        ///< a requirement on what was measured does not hold
  usage = 2,        ///< a call or a command line that cannot be meant
  input = 3,        ///< a file, page or number that does not hold what it should
  resource = 4,     ///< memory, disk or a lock that is not to be had
  network = 5,      ///< a server that does not answer, or not with what was asked for
  interrupted = 6,  ///< stopped on request; the run can be resumed
};

/// Thrown by every part of the library. what() is one line: what, where, why and, where it is known, what to do next.
class Error : public std::runtime_error {
 public:
  /// `message` is one line, without the program's name.
  explicit Error(const std::string& message, ErrorKind kind = ErrorKind::input)
      : std::runtime_error(message), kind_(kind) {}
  /// What sort of mistake it is; a program's exit code.
  [[nodiscard]] ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

namespace detail {

// Messages are built in many places, and a stream in each would be a good part of the time that a trainer takes to
// compile. These write what operator<< of a new stream writes.
inline void append_number(std::string& out, long long number) { out += std::to_string(number); }
inline void append_number(std::string& out, unsigned long long number) { out += std::to_string(number); }
inline void append_number(std::string& out, double number) {
  std::array<char, 32> text{};
  out.append(text.data(), static_cast<std::size_t>(std::snprintf(text.data(), text.size(), "%g", number)));
}
template <class T>
void append_part(std::string& out, const T& part) {
  if constexpr (std::is_convertible_v<const T&, std::string_view>) {
    out += static_cast<std::string_view>(part);
  } else if constexpr (std::is_same_v<T, char> || std::is_same_v<T, signed char> || std::is_same_v<T, unsigned char>) {
    out += static_cast<char>(part);
  } else if constexpr (std::is_floating_point_v<T>) {
    append_number(out, static_cast<double>(part));
  } else if constexpr (std::is_integral_v<T> && std::is_signed_v<T>) {
    append_number(out, static_cast<long long>(part));
  } else if constexpr (std::is_integral_v<T>) {
    append_number(out, static_cast<unsigned long long>(part));
  } else {
    std::ostringstream text;
    text << part;
    out += text.str();
  }
}

}  // namespace detail

/// "a", 3, "b" -> "a3b", with whatever operator<< makes of each part.
template <class... Parts>
[[nodiscard]] std::string concat(const Parts&... parts) {
  std::string out;
  (detail::append_part(out, parts), ...);
  return out;
}

namespace detail {

[[noreturn]] inline void fail_expectation(const char* condition, const std::string& message,
                                          std::source_location where = std::source_location::current()) {
  const std::string_view path = where.file_name();
  const auto slash = path.find_last_of('/');
  throw Error(concat(message, " [", condition, " is false at ",
                     slash == std::string_view::npos ? path : path.substr(slash + 1), ":", where.line(), "]"));
}

/// Throws Error (usage), naming an option, when its value is not `good`.
template <class T>
void expect_option(bool good, std::string_view name, const T& value, std::string_view allowed) {
  if (!good) throw Error(concat(name, " is ", value, "; it must be ", allowed), ErrorKind::usage);
}

}  // namespace detail
}  // namespace v0
}  // namespace qlora

/// Checks what a caller passed in; throws qlora::Error with the given values. QLORA_EXPECTS(n > 0, "n is ", n).
#define QLORA_EXPECTS(condition, ...) \
  ((condition) ? void(0) : ::qlora::detail::fail_expectation(#condition, ::qlora::concat(__VA_ARGS__)))
