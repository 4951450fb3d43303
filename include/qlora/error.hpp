// qlora/error.hpp — the one exception type of the library, and the check that throws it.
// The library never prints, exits or aborts; a program maps ErrorKind to its exit code.
#pragma once

#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

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
  explicit Error(const std::string& message, ErrorKind kind = ErrorKind::input)
      : std::runtime_error(message), kind_(kind) {}
  [[nodiscard]] ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

/// "a", 3, "b" -> "a3b", with whatever operator<< makes of each part.
template <class... Parts>
[[nodiscard]] std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
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
