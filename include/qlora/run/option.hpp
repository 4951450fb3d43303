// qlora/run/option.hpp — an option as data: name, member of a plain struct, range, unit, help. Command line, job file,
// documentation, echo and fingerprint are derived from tables of these, so each fact about an option stands once.
// Names are written as in a job file, "weight_decay"; on the command line that is "--weight-decay".
#pragma once

#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace qlora {
inline namespace v0 {
namespace run {

/// A size that a user writes with its unit; 0 is written "".
struct Bytes {
  std::int64_t count = 0;  ///< of bytes, 0 or more
  friend bool operator==(const Bytes&, const Bytes&) = default;
};

namespace detail {
struct Unit {
  std::string_view name;
  std::int64_t bytes;
};
inline constexpr std::array<Unit, 4> units{
    {{"GB", 1'000'000'000}, {"GiB", 1 << 30}, {"MB", 1'000'000}, {"MiB", 1 << 20}}};
}  // namespace detail

/// "24GB" or "24 GB" (10^9), "24GiB" (2^30), MB and MiB likewise, or a number of bytes of at least 1 MiB: a plain "24"
/// is a missing unit. "" is 0. Nothing for what is no size.
[[nodiscard]] inline std::optional<Bytes> parse_bytes(std::string_view text) {
  if (text.empty()) return Bytes{};
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || !(number > 0)) return std::nullopt;
  std::string_view unit = text.substr(static_cast<std::size_t>(end - text.data()));
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  double factor = unit.empty() || unit == "B" ? 1.0 : 0.0;
  for (const auto& known : detail::units) {
    if (unit == known.name) factor = static_cast<double>(known.bytes);
  }
  const double bytes = std::floor(number * factor);
  if (!(bytes >= double{1 << 20} && bytes < 9e18)) return std::nullopt;
  return Bytes{static_cast<std::int64_t>(bytes)};
}

/// The shortest form that parse_bytes reads as the same size.
[[nodiscard]] inline std::string text_of(Bytes size) {
  if (size.count == 0) return {};
  for (const auto& unit : detail::units) {
    if (size.count % unit.bytes == 0) return std::to_string(size.count / unit.bytes) + std::string(unit.name);
  }
  return std::to_string(size.count);
}

/// Both ends belong to the range; NaN lies in none.
struct Range {
  double low = -std::numeric_limits<double>::infinity();  ///< the least value
  double high = std::numeric_limits<double>::infinity();  ///< the greatest value
  /// Whether the value is in the range; false for NaN.
  [[nodiscard]] constexpr bool contains(double value) const { return value >= low && value <= high; }
};

/// How a user writes the values of an enum, by their number from 0. Specialised beside each enum.
template <class E>
inline constexpr std::array<std::string_view, 0> names_of{};

/// The text that a user writes for the value.
template <class E>
requires(names_of<E>.size() > 0) [[nodiscard]] constexpr std::string_view name_of(E value) {
  return names_of<E>[static_cast<std::size_t>(value)];
}

/// A member that is an enum, seen by the names of its values.
template <class S>
struct Choice {
  std::span<const std::string_view> names;  ///< texts of the values, by their number
  /// number of the value that the member has
  std::size_t (*get)(const S&);
  /// gives the member the value of that number
  void (*set)(S&, std::size_t);
};

/// A member that is written as text and is something else: read by `set`, which returns whether the text was of the
/// form, and shown by `get`.
template <class S>
struct Parsed {
  std::string_view form;  ///< what the text must be: "names of ..."
  /// the member as text
  std::string (*get)(const S&);
  /// reads a text into the member; false: it is of another form and changed nothing
  bool (*set)(S&, std::string_view);
};

namespace detail {
template <class S, class E, E S::*Pointer>
constexpr Choice<S> make_choice() {
  static_assert(names_of<E>.size() > 0, "give the enum its names_of");
  return {names_of<E>, [](const S& from) { return static_cast<std::size_t>(from.*Pointer); },
          [](S& into, std::size_t index) { into.*Pointer = static_cast<E>(index); }};
}
template <auto Pointer, class S, class E>
constexpr Choice<S> choice_of(E S::*) {
  return make_choice<S, E, Pointer>();
}
}  // namespace detail

/// choice<&Training::method>: an enum as the member of an option.
template <auto Pointer>
inline constexpr auto choice = detail::choice_of<Pointer>(Pointer);

/// How an option reaches its member of S.
template <class S>
using Member = std::variant<bool S::*, int S::*, std::int64_t S::*, double S::*, std::string S::*,
                            std::filesystem::path S::*, Bytes S::*, std::vector<std::string> S::*,
                            std::vector<std::filesystem::path> S::*, Choice<S>, Parsed<S>>;

/// What a user may write for an option.
enum class Kind : std::uint8_t {
  flag,     ///< true or false
  integer,  ///< a whole number
  number,   ///< any number
  text,     ///< a text, which may stand for something else: see Parsed
  choice,   ///< one of Option::choices()
  size,     ///< a size in bytes with its unit: see parse_bytes
  path,     ///< a file or folder
  texts,    ///< a list of texts
  paths     ///< a list of files and folders
};

/// One row of a table: an option by name, and the member of S that it fills.
template <class S>
struct Option {
  std::string_view name;        ///< snake_case: the key of the job file, and with dashes the option of the command line
  Member<S> member;             ///< what it fills
  std::string_view help;        ///< a phrase that begins with a capital, without a full stop
  Range range{};                ///< of numbers
  std::string_view unit{};      ///< of numbers, in the plural
  bool fingerprint = true;      ///< whether results depend on it
  bool omit_default = false;    ///< not in a fingerprint at its default: records that are older stay valid
  bool adapters_only = false;   ///< without a meaning where all weights are trained
  std::string_view old_name{};  ///< still accepted, with a note
  std::string_view on_the_line{};  ///< its name on the command line where that is another
  char letter = '\0';              ///< its short form there

  /// What its member takes.
  [[nodiscard]] constexpr Kind kind() const {
    constexpr std::array<Kind, std::variant_size_v<Member<S>>> kinds{
        Kind::flag, Kind::integer, Kind::integer, Kind::number, Kind::text, Kind::path,
        Kind::size, Kind::texts,   Kind::paths,   Kind::choice, Kind::text};
    return kinds[member.index()];
  }
  /// The values of a choice; empty for other kinds.
  [[nodiscard]] constexpr std::span<const std::string_view> choices() const {
    const auto* choice = std::get_if<Choice<S>>(&member);
    return choice == nullptr ? std::span<const std::string_view>{} : choice->names;
  }
};

/// "--weight-decay" for "weight_decay".
[[nodiscard]] inline std::string dashed(std::string_view name) {
  std::string text = "--";
  for (const char c : name) text += c == '_' ? '-' : c;
  return text;
}
/// The option's name on the command line, without the leading dashes.
template <class S>
[[nodiscard]] std::string line_name(const Option<S>& option) {
  return dashed(option.on_the_line.empty() ? option.name : option.on_the_line);
}

/// The options that fill an S: a specialisation has `title`, `section` (of the job file; empty: none), `verbs` and
/// `options`, an array of `Option<S>`. The initialisers of S are the defaults.
template <class S>
struct Table;

/// A group of options: a struct with a Table.
template <class S>
concept HasTable = requires {
  Table<S>::title;
  Table<S>::section;
  Table<S>::verbs;
  Table<S>::options;
};

/// An option's value in a form that every file format has.
using Value = std::variant<bool, std::int64_t, double, std::string, std::vector<std::string>>;

/// The value that the option's member of `from` has.
template <class S>
[[nodiscard]] Value value_of(const Option<S>& option, const S& from) {
  return std::visit(
      [&](const auto& member) -> Value {
        if constexpr (std::is_same_v<std::decay_t<decltype(member)>, Choice<S>>) {
          return std::string(member.names[member.get(from)]);
        } else if constexpr (std::is_same_v<std::decay_t<decltype(member)>, Parsed<S>>) {
          return member.get(from);
        } else {
          const auto& value = from.*member;
          using T = std::decay_t<decltype(value)>;
          if constexpr (std::is_same_v<T, int>) {
            return static_cast<std::int64_t>(value);
          } else if constexpr (std::is_same_v<T, std::filesystem::path>) {
            return value.string();
          } else if constexpr (std::is_same_v<T, Bytes>) {
            return text_of(value);
          } else if constexpr (std::is_same_v<T, std::vector<std::filesystem::path>>) {
            std::vector<std::string> texts;
            for (const auto& path : value) texts.push_back(path.string());
            return texts;
          } else {
            return value;
          }
        }
      },
      option.member);
}

/// A number without a needless exponent: "1000000000", "0.0002".
[[nodiscard]] inline std::string text_of(double number) {
  if (number == std::floor(number) && std::fabs(number) < 1e16) {
    return std::to_string(static_cast<std::int64_t>(number));
  }
  std::array<char, 32> text{};
  const bool plain = std::fabs(number) >= 1e-5;
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), number,
                                     plain ? std::chars_format::fixed : std::chars_format::general)
                           .ptr};
}

/// A value as the help shows it; a list by its items.
[[nodiscard]] inline std::string text_of(const Value& value) {
  return std::visit(
      [](const auto& held) -> std::string {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<T, bool>) {
          return held ? "true" : "false";
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          std::string all;
          for (const std::string& text : held) all += (all.empty() ? "" : " ") + text;
          return all;
        } else if constexpr (std::is_same_v<T, std::string>) {
          return held;
        } else {
          return text_of(static_cast<double>(held));
        }
      },
      value);
}

/// "from 1 to 1024", or what there is of it with its space before.
[[nodiscard]] inline std::string text_of(const Range& range) {
  const bool low = std::isfinite(range.low);
  const bool high = std::isfinite(range.high);
  if (low && high) return " from " + text_of(range.low) + " to " + text_of(range.high);
  if (low) return " of at least " + text_of(range.low);
  return high ? " of at most " + text_of(range.high) : std::string();
}

/// What a value must be: "must be a whole number from 1 to 1024".
template <class S>
[[nodiscard]] std::string requirement(const Option<S>& option) {
  if (const auto* parsed = std::get_if<Parsed<S>>(&option.member)) return "must be " + std::string(parsed->form);
  switch (option.kind()) {
    case Kind::flag:
      return "must be true or false";
    case Kind::integer:
      return "must be a whole number" + text_of(option.range);
    case Kind::number:
      return "must be a number" + text_of(option.range);
    case Kind::size:
      return "must be a size such as \"24GB\" or \"24GiB\"";
    case Kind::texts:
    case Kind::paths:
      return "must be a list of texts: [\"...\"]";
    case Kind::text:
    case Kind::path:
    case Kind::choice:
      break;
  }
  return "must be a text in quotes";
}

namespace detail {

/// Whether `value` was taken into `target`.
template <class T>
bool take(T& target, const Value& value, const Range& range) {
  if constexpr (std::is_same_v<T, bool>) {
    if (!std::holds_alternative<bool>(value)) return false;
    target = std::get<bool>(value);
  } else if constexpr (std::is_same_v<T, double>) {
    const bool whole = std::holds_alternative<std::int64_t>(value);
    if (!whole && !std::holds_alternative<double>(value)) return false;
    const double number = whole ? static_cast<double>(std::get<std::int64_t>(value)) : std::get<double>(value);
    if (!range.contains(number)) return false;
    target = number;
  } else if constexpr (std::is_integral_v<T>) {
    if (!std::holds_alternative<std::int64_t>(value)) return false;
    const std::int64_t number = std::get<std::int64_t>(value);
    if (!range.contains(static_cast<double>(number)) || !std::in_range<T>(number)) return false;
    target = static_cast<T>(number);
  } else if constexpr (std::is_same_v<T, Bytes>) {
    const auto* text = std::get_if<std::string>(&value);
    const auto size = text == nullptr ? std::nullopt : parse_bytes(*text);
    if (!size) return false;
    target = *size;
  } else if constexpr (std::is_same_v<T, std::string> || std::is_same_v<T, std::filesystem::path>) {
    if (!std::holds_alternative<std::string>(value)) return false;
    target = std::get<std::string>(value);
  } else {
    if (!std::holds_alternative<std::vector<std::string>>(value)) return false;
    const auto& texts = std::get<std::vector<std::string>>(value);
    target.assign(texts.begin(), texts.end());
  }
  return true;
}

}  // namespace detail

/// Puts a value into its member. Returns what is wrong with the value, which then changed nothing: "must be ..." or,
/// for a choice, "cannot be ...". Empty: nothing is.
template <class S>
[[nodiscard]] std::string assign(const Option<S>& option, S& into, const Value& value) {
  if (const auto* enumerated = std::get_if<Choice<S>>(&option.member)) {
    const auto* text = std::get_if<std::string>(&value);
    if (text == nullptr) return requirement(option);
    for (std::size_t i = 0; i < enumerated->names.size(); ++i) {
      if (enumerated->names[i] != *text) continue;
      enumerated->set(into, i);
      return {};
    }
    return "cannot be \"" + *text + "\"";
  }
  if (const auto* parsed = std::get_if<Parsed<S>>(&option.member)) {
    const auto* text = std::get_if<std::string>(&value);
    return text != nullptr && parsed->set(into, *text) ? std::string() : requirement(option);
  }
  const bool taken = std::visit(
      [&](const auto& member) {
        using T = std::decay_t<decltype(member)>;
        if constexpr (std::is_same_v<T, Choice<S>> || std::is_same_v<T, Parsed<S>>) {
          return false;
        } else {
          return detail::take(into.*member, value, option.range);
        }
      },
      option.member);
  return taken ? std::string() : requirement(option);
}

/// A word of the command line as the value of an option; nothing for what is none of this kind. Lists are of one word.
[[nodiscard]] inline std::optional<Value> parse_value(Kind kind, std::string_view word) {
  const auto read = [&](auto number) -> std::optional<Value> {
    const std::string_view digits = word.starts_with('+') ? word.substr(1) : word;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (error != std::errc{} || end != digits.data() + digits.size()) return std::nullopt;
    return number;
  };
  switch (kind) {
    case Kind::flag:
      if (word != "true" && word != "false") return std::nullopt;
      return word == "true";
    case Kind::integer:
      return read(std::int64_t{});
    case Kind::number:
      return read(double{});
    case Kind::texts:
    case Kind::paths:
      return std::vector<std::string>{std::string(word)};
    case Kind::text:
    case Kind::choice:
    case Kind::size:
    case Kind::path:
      break;
  }
  return std::string(word);
}

/// Copies one option's value, as where the command line goes before a job file.
template <class S>
void copy_option(const Option<S>& option, const S& from, S& into) {
  (void)assign(option, into, value_of(option, from));
}

namespace detail {

constexpr bool snake_case(std::string_view name) {
  for (const char c : name) {
    if ((c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_') return false;
  }
  return !name.empty() && name.front() != '_' && name.back() != '_';
}

/// Whether every number that a member of this kind may take lies in the range, or it is no number.
template <class S>
constexpr bool fits_range(const Option<S>& option) {
  const Range& range = option.range;
  if (std::holds_alternative<int S::*>(option.member)) {
    return range.low >= std::numeric_limits<int>::min() && range.high <= std::numeric_limits<int>::max() &&
           range.low <= range.high;
  }
  if (option.kind() == Kind::integer) {  // beyond 2^53 a double is not every whole number
    return range.low >= -9007199254740992.0 && range.high <= 9007199254740992.0 && range.low <= range.high;
  }
  if (option.kind() == Kind::number) return range.low <= range.high;
  return range.low == Range{}.low && range.high == Range{}.high && option.unit.empty();
}

}  // namespace detail

/// Whether a table can be meant: plain names that are used once, a range for every whole number, help that is a phrase.
/// For a static_assert beside the table.
template <class S>
consteval bool well_formed() {
  constexpr auto& options = Table<S>::options;
  for (std::size_t i = 0; i < options.size(); ++i) {
    const Option<S>& option = options[i];
    if (!detail::snake_case(option.name) || !detail::fits_range(option)) return false;
    if (!option.old_name.empty() && !detail::snake_case(option.old_name)) return false;
    if (option.help.empty() || option.help.front() < 'A' || option.help.front() > 'Z' || option.help.back() == '.')
      return false;
    for (std::size_t j = 0; j < options.size(); ++j) {
      if (i != j && (option.name == options[j].name || option.name == options[j].old_name)) return false;
      if (option.old_name == options[j].name) return false;
      if (i != j && !option.old_name.empty() && option.old_name == options[j].old_name) return false;
    }
  }
  return options.size() > 0;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
