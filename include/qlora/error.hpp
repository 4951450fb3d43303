// qlora/error.hpp — the one exception type of the library, and the check that throws it.
// The library never prints, exits or aborts; a program maps ErrorKind to its exit code.
#pragma once

#include "qlora/compiler.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace qlora {
inline namespace v0 {

/// What went wrong, by who can fix it. The values are the exit codes of the `qlora` program.
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

/// A part of a message: text, a character or a number. Refers to text that must outlive it. Messages are built in many
/// places, so this is no template: a function for each list of types would be a good part of the time that a trainer
/// takes to compile.
class MessagePart {
 public:
  /// Text as it is.
  template <class T>
  requires std::is_convertible_v<const T&, std::string_view> MessagePart(const T& text)  // NOLINT: is a message
      : kind_(Kind::text), text_(static_cast<std::string_view>(text)) {}
  /// A character.
  MessagePart(char c) : kind_(Kind::character), character_(c) {}  // NOLINT
  /// Bytes are characters, as operator<< has them.
  MessagePart(signed char c) : MessagePart(static_cast<char>(c)) {}  // NOLINT
  /// Bytes are characters, as operator<< has them.
  MessagePart(unsigned char c) : MessagePart(static_cast<char>(c)) {}  // NOLINT
  /// 1 or 0.
  MessagePart(bool number) : MessagePart(static_cast<long long>(number)) {}  // NOLINT
  /// Decimal.
  MessagePart(short number) : MessagePart(static_cast<long long>(number)) {}  // NOLINT
  /// Decimal.
  MessagePart(unsigned short number) : MessagePart(static_cast<long long>(number)) {}  // NOLINT
  /// Decimal.
  MessagePart(int number) : MessagePart(static_cast<long long>(number)) {}  // NOLINT
  /// Decimal.
  MessagePart(unsigned number) : MessagePart(static_cast<long long>(number)) {}  // NOLINT
  /// Decimal.
  MessagePart(long number) : MessagePart(static_cast<long long>(number)) {}  // NOLINT
  /// Decimal.
  MessagePart(unsigned long number) : MessagePart(static_cast<unsigned long long>(number)) {}  // NOLINT
  /// Decimal.
  MessagePart(long long number) : kind_(Kind::integer), integer_(number) {}  // NOLINT
  /// Decimal.
  MessagePart(unsigned long long number) : kind_(Kind::natural), natural_(number) {}  // NOLINT
  /// Six significant digits, as operator<< of a new stream writes.
  MessagePart(double number) : kind_(Kind::real), real_(number) {}  // NOLINT

  /// Adds it to a message.
  [[gnu::cold]] void append_to(std::string& out) const {
    switch (kind_) {
      case Kind::text:
        out += text_;
        return;
      case Kind::character:
        out += character_;
        return;
      case Kind::integer:
        out += std::to_string(integer_);
        return;
      case Kind::natural:
        out += std::to_string(natural_);
        return;
      case Kind::real: {
        std::array<char, 32> text{};
        out.append(text.data(), static_cast<std::size_t>(std::snprintf(text.data(), text.size(), "%g", real_)));
        return;
      }
    }
  }

 private:
  enum class Kind : std::uint8_t { text, character, integer, natural, real };
  Kind kind_;
  union {
    std::string_view text_;
    char character_;
    long long integer_;
    unsigned long long natural_;
    double real_;
  };
};

/// {"a", 3, "b"} -> "a3b".
[[nodiscard, gnu::cold]] inline std::string concat(std::initializer_list<MessagePart> parts) {
  std::string out;
  for (const MessagePart& part : parts) part.append_to(out);
  return out;
}
/// "a", 3, "b" -> "a3b", each part as operator<< of a new stream writes it.
template <class... Parts>
[[nodiscard, gnu::always_inline]] inline std::string concat(const Parts&... parts) {
  return concat({MessagePart(parts)...});
}

namespace detail {

[[noreturn, gnu::cold]] inline void fail_expectation(const char* condition, const std::string& message,
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
