// qlora/text/jinja_value.hpp — the values that a chat template computes with, by Jinja's rules (jinja.hpp).
// What may not change: what is computed otherwise than in Python is refused, never approximated.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {
namespace jinja {

struct Node;

/// Something that has no value; `name` says what was asked for.
struct Undefined {
  std::string name;  ///< for messages
};
/// Python's None.
struct None {};

/// A value of a template. Lists and maps are shared, as in Python.
class Value {
 public:
  using List = std::vector<Value>;                         ///< a list or a tuple
  using Map = std::vector<std::pair<std::string, Value>>;  ///< a dictionary with text as keys, in order

  /// Without a value.
  Value() : value_(Undefined{}) {}
  /// Without a value.
  Value(Undefined value) : value_(std::move(value)) {}  // NOLINT: converts like the types themselves
  /// Python's None.
  Value(None value) : value_(value) {}  // NOLINT
  /// A truth value.
  Value(bool value) : value_(value) {}  // NOLINT
  /// An integer.
  Value(std::int64_t value) : value_(value) {}  // NOLINT
  /// A fraction.
  Value(double value) : value_(value) {}  // NOLINT
  /// A text.
  Value(std::string value) : value_(std::move(value)) {}  // NOLINT
  /// A text.
  Value(const char* value) : value_(std::string(value)) {}  // NOLINT
  /// A list. Throws Error when it is too deep.
  Value(List value) {  // NOLINT
    for (const Value& entry : value) hold(entry);
    value_ = std::make_shared<List>(std::move(value));
  }
  /// A map. Throws Error when it is too deep.
  Value(Map value) {  // NOLINT
    for (const auto& [key, held] : value) hold(held);
    value_ = std::make_shared<Map>(std::move(value));
  }
  /// A macro: its statement in the template.
  explicit Value(const Node* macro) : value_(macro) {}

  /// A map whose members a template may set. No other value holds it, so that what a template makes cannot become
  /// deeper than max_depth, and so is destroyed without a deep recursion.
  [[nodiscard]] static Value name_space(Map members) {
    Value out(std::move(members));
    out.depth_ = max_depth;
    return out;
  }
  /// Whether it is a name_space.
  [[nodiscard]] bool is_name_space() const { return depth_ == max_depth && map() != nullptr; }
  /// Throws Error when the value is too deep, or too large, to be part of another one.
  void hold(const Value& part) {
    if (part.depth_ + 1 >= max_depth) throw Error("the chat template nests its values too deep");
    depth_ = std::max(depth_, part.depth_ + 1);
    weight_ += part.weight();
    spread_ += part.own();
    if (weight_ > max_weight) throw Error("the chat template makes a value of more than 128 MiB");
  }

  /// What it costs to read the value with all that is in it, in units of 64 bytes of text. Values may stand in another
  /// one many times, so that this can be more than the memory that they take.
  [[nodiscard]] std::int64_t weight() const {
    std::int64_t sum = own() + weight_;
    if (is_name_space()) {
      for (const auto& [key, held] : *map()) sum += held.weight();
    }
    return sum;
  }
  /// The same for a copy of it, which shares what a list or a map holds.
  [[nodiscard]] std::int64_t own() const {
    return 1 + (text() != nullptr ? static_cast<std::int64_t>(text()->size() / 64) : 0);
  }
  /// The same for copies of the parts of a list, the keys of a map, and the characters of a text.
  [[nodiscard]] std::int64_t spread() const {
    if (text() != nullptr) return static_cast<std::int64_t>(text()->size());
    return 1 + (map() != nullptr ? static_cast<std::int64_t>(map()->size()) : spread_);
  }

  /// The value as one of the types that it may have; null for another.
  template <class T>
  [[nodiscard]] const T* as() const {
    return std::get_if<T>(&value_);
  }
  [[nodiscard]] bool is_undefined() const { return as<Undefined>() != nullptr; }  ///< whether there is no value
  [[nodiscard]] bool is_none() const { return as<None>() != nullptr; }            ///< whether it is None
  [[nodiscard]] const std::string* text() const { return as<std::string>(); }     ///< null unless it is text
  /// Null unless it is a list.
  [[nodiscard]] List* list() const {
    const auto* found = as<std::shared_ptr<List>>();
    return found == nullptr ? nullptr : found->get();
  }
  /// Null unless it is a map.
  [[nodiscard]] Map* map() const {
    const auto* found = as<std::shared_ptr<Map>>();
    return found == nullptr ? nullptr : found->get();
  }
  /// Null unless it is a macro.
  [[nodiscard]] const Node* macro() const {
    const auto* found = as<const Node*>();
    return found == nullptr ? nullptr : *found;
  }
  /// A number as Python's bool, int and float mix; null unless it is one.
  [[nodiscard]] bool is_number() const {
    return as<bool>() != nullptr || as<std::int64_t>() != nullptr || as<double>() != nullptr;
  }
  /// Expects is_number().
  [[nodiscard]] double number() const {
    if (const bool* flag = as<bool>()) return *flag ? 1 : 0;
    if (const auto* integer = as<std::int64_t>()) return static_cast<double>(*integer);
    return *as<double>();
  }
  /// An integer or a bool as an integer. Throws Error for what is neither.
  [[nodiscard]] std::int64_t integer() const {
    if (const bool* flag = as<bool>()) return *flag ? 1 : 0;
    if (const auto* integer = as<std::int64_t>()) return *integer;
    throw Error(concat("the chat template takes ", kind(), " for an integer"));
  }

  /// What the value is, for messages.
  [[nodiscard]] std::string kind() const {
    if (const auto* undefined = as<Undefined>()) return "'" + undefined->name + "', which is not defined,";
    if (is_none()) return "None";
    if (text() != nullptr) return "text";
    if (list() != nullptr) return "a list";
    if (map() != nullptr) return "a map";
    return macro() != nullptr ? "a macro" : "a number";
  }

  /// Python's truth.
  [[nodiscard]] bool truth() const {
    if (is_undefined() || is_none()) return false;
    if (const std::string* string = text()) return !string->empty();
    if (const List* values = list()) return !values->empty();
    if (const Map* entries = map()) return !entries->empty();
    return is_number() ? number() != 0 : true;
  }

  /// Python's str(); nothing for what is not defined. Throws Error for lists, maps and fractions.
  [[nodiscard]] std::string str() const {
    if (is_undefined()) return {};
    if (is_none()) return "None";
    if (const bool* flag = as<bool>()) return *flag ? "True" : "False";
    if (const auto* integer = as<std::int64_t>()) return std::to_string(*integer);
    if (const std::string* string = text()) return *string;
    throw Error(concat("the chat template writes ", kind(), as<double>() != nullptr ? " with a fraction" : "",
                       " as text, which is not supported"));
  }

  /// The value under a key of a map; null where there is none.
  [[nodiscard]] const Value* find(std::string_view key) const {
    if (const Map* entries = map()) {
      for (const auto& [name, value] : *entries) {
        if (name == key) return &value;
      }
    }
    return nullptr;
  }

 private:
  std::variant<Undefined, None, bool, std::int64_t, double, std::string, std::shared_ptr<List>, std::shared_ptr<Map>,
               const Node*>
      value_;
  static constexpr int max_depth = 50;
  static constexpr std::int64_t max_weight = std::int64_t{1} << 21;
  int depth_ = 0;            // of lists and maps inside of one another
  std::int64_t weight_ = 0;  // of its parts
  std::int64_t spread_ = 0;  // their own
};

/// Python's ==.
[[nodiscard]] inline bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (a.text() != nullptr && b.text() != nullptr) return *a.text() == *b.text();
  if (a.list() != nullptr && b.list() != nullptr) {
    if (a.list()->size() != b.list()->size()) return false;
    for (std::size_t i = 0; i < a.list()->size(); ++i) {
      if (!equal((*a.list())[i], (*b.list())[i])) return false;
    }
    return true;
  }
  if (a.map() != nullptr && b.map() != nullptr) {
    if (a.map()->size() != b.map()->size()) return false;
    for (const auto& [key, value] : *a.map()) {
      const Value* other = b.find(key);
      if (other == nullptr || !equal(value, *other)) return false;
    }
    return true;
  }
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

/// Python's a < b for numbers and for texts. Throws Error for others.
[[nodiscard]] inline bool less(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return a.number() < b.number();
  if (a.text() != nullptr && b.text() != nullptr) return *a.text() < *b.text();  // UTF-8 sorts as code points do
  throw Error(concat("the chat template compares ", a.kind(), " with ", b.kind()));
}

/// Python's json.dumps(value, ensure_ascii=False).
[[nodiscard]] inline std::string json_text(const Value& value) {
  if (value.is_none()) return "null";
  if (const bool* flag = value.as<bool>()) return *flag ? "true" : "false";
  if (const std::string* text = value.text()) {
    std::string out = "\"";
    for (const char c : *text) {
      constexpr std::string_view digits = "0123456789abcdef", plain = "\"\\\n\r\t\b\f", escaped = "\"\\nrtbf";
      if (const std::size_t at = plain.find(c); at != std::string_view::npos) {
        (out += '\\') += escaped[at];
      } else if (static_cast<unsigned char>(c) < 0x20) {
        ((out += "\\u00") += digits[static_cast<unsigned char>(c) / 16]) += digits[static_cast<unsigned char>(c) % 16];
      } else {
        out += c;
      }
    }
    return out + '"';
  }
  if (const auto* list = value.list()) {
    std::string out = "[";
    for (const Value& entry : *list) out.append(out.size() > 1 ? ", " : "").append(json_text(entry));
    return out + ']';
  }
  if (const auto* map = value.map()) {
    std::string out = "{";
    for (const auto& [key, held] : *map) {
      out.append(out.size() > 1 ? ", " : "").append(json_text(key)).append(": ").append(json_text(held));
    }
    return out + '}';
  }
  return value.str();
}

/// Number of characters of UTF-8 text; bytes that are no UTF-8 count one by one.
[[nodiscard]] inline std::int64_t length(std::string_view text) {
  const auto inside = [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; };
  const auto count = std::count_if(text.begin(), text.end(), [&](char c) { return !inside(c); });
  return count + (!text.empty() && inside(text.front()) ? 1 : 0);
}

/// Texts with more characters are not taken apart.
inline constexpr std::size_t max_characters = 4'000'000;

/// Characters of UTF-8 text, as length() counts them. Throws Error for too many.
[[nodiscard]] inline std::vector<std::string_view> characters(std::string_view text) {
  if (text.size() > max_characters) throw Error("the chat template takes a text of more than 4 MB apart");
  std::vector<std::string_view> out;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t end = at + 1;
    while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) ++end;
    out.push_back(text.substr(at, end - at));
    at = end;
  }
  return out;
}

}  // namespace jinja
}  // namespace v0
}  // namespace qlora
