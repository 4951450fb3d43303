// qlora/text/jinja_functions.hpp — the filters, tests and methods that chat templates use, as Jinja and Python have
// them. One that is not here is refused by its name when a template gets to it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/jinja_value.hpp"
#include "qlora/text/white_space.hpp"

namespace qlora {
inline namespace v0 {
namespace jinja {

/// What a filter, a test, a method or a function is called with.
struct Arguments {
  std::vector<Value> values;                           ///< by position
  std::vector<std::pair<std::string, Value>> names{};  ///< by name

  /// The argument at a position or of a name; null where it is not given.
  [[nodiscard]] const Value* get(std::size_t position, std::string_view name = {}) const {
    if (position < values.size()) return &values[position];
    for (const auto& [key, value] : names) {
      if (key == name) return &value;
    }
    return nullptr;
  }
  /// Text at a position. Throws Error for what is none.
  [[nodiscard]] const std::string& text(std::size_t position) const {
    const Value* value = get(position);
    if (value == nullptr || value->text() == nullptr)
      throw Error("the chat template calls a function of text with something else");
    return *value->text();
  }
};

namespace detail {

[[noreturn]] inline void refuse_call(std::string_view what, std::string_view name, const Value& value) {
  throw Error(concat("the chat template applies the ", what, " '", name, "' to ", value.kind(),
                     " in a way that is not supported"));
}

[[nodiscard]] inline bool is_ascii(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80; });
}
/// Upper and lower case of ASCII. Throws Error for other text, whose case needs Unicode's tables.
[[nodiscard]] inline std::string cased(std::string_view name, const std::string& text) {
  if (!is_ascii(text)) throw Error(concat("the chat template applies '", name, "' to text that is not ASCII"));
  std::string out = text;
  bool first = true;
  for (char& c : out) {
    const bool lower = c >= 'a' && c <= 'z', upper = c >= 'A' && c <= 'Z';
    const bool raise = name == "upper" || (first && name != "lower");
    if (lower && raise) c = static_cast<char>(c - 32);
    if (upper && !raise) c = static_cast<char>(c + 32);
    first = name == "title" && !lower && !upper;
  }
  return out;
}
/// str.strip, lstrip and rstrip; `set` holds the characters that go, null: white space.
[[nodiscard]] inline std::string trimmed(std::string_view text, const Value* set, bool left, bool right) {
  if (set == nullptr || set->is_none()) {
    if (left) text = ::qlora::detail::left_stripped(text);
    return std::string(right ? ::qlora::detail::right_stripped(text) : text);
  }
  if (set->text() == nullptr) throw Error("the chat template strips something that is no text");
  const std::vector<std::string_view> all = characters(text), drop = characters(*set->text());
  if (drop.size() > 1000) throw Error("the chat template strips more than 1,000 characters");
  const auto goes = [&](std::string_view c) { return std::find(drop.begin(), drop.end(), c) != drop.end(); };
  std::size_t begin = 0, end = all.size();
  while (left && begin < end && goes(all[begin])) ++begin;
  while (right && begin < end && goes(all[end - 1])) --end;
  std::string out;
  for (std::size_t i = begin; i < end; ++i) out += all[i];
  return out;
}
inline void expect_size(std::size_t bytes) {
  if (bytes > std::size_t{1} << 26U) throw Error("the chat template makes a text of more than 64 MiB");
}
inline void expect_parts(std::size_t parts) {
  if (parts > 1'000'000) throw Error("the chat template takes a text apart into more than 1,000,000 parts");
}
/// str.replace(from, to, count); a negative count: all.
[[nodiscard]] inline std::string replaced(std::string_view text, const std::string& from, const std::string& to,
                                          std::int64_t count = -1) {
  if (from.empty()) throw Error("the chat template replaces empty text");
  std::string out;
  for (std::size_t at = text.find(from); at != std::string_view::npos && count != 0; at = text.find(from), --count) {
    out.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
    expect_size(out.size());
  }
  return out.append(text);
}
/// str.split(separator, count); null or None: at white space.
[[nodiscard]] inline Value::List split(std::string_view text, const Value* separator, std::int64_t count = -1) {
  Value::List out;
  if (separator == nullptr || separator->is_none()) {
    if (count >= 0) throw Error("the chat template splits at white space in a way that is not supported");
    for (text = ::qlora::detail::stripped(text); !text.empty(); text = ::qlora::detail::left_stripped(text)) {
      std::size_t end = 0;
      while (end < text.size() && ::qlora::detail::space_length(text.substr(end)) == 0) ++end;
      out.emplace_back(std::string(text.substr(0, end)));
      expect_parts(out.size());
      text.remove_prefix(end);
    }
    return out;
  }
  if (separator->text() == nullptr || separator->text()->empty())
    throw Error("the chat template splits at something that is no text");
  const std::string& by = *separator->text();
  for (std::size_t at = text.find(by); at != std::string_view::npos && count != 0; at = text.find(by), --count) {
    out.emplace_back(std::string(text.substr(0, at)));
    expect_parts(out.size());
    text.remove_prefix(at + by.size());
  }
  out.emplace_back(std::string(text));
  return out;
}

}  // namespace detail

/// What a loop runs over: the values of a list, the keys of a map, the characters of a text, nothing of what is not
/// defined. Throws Error for others.
[[nodiscard]] inline Value::List elements(const Value& value) {
  if (const auto* list = value.list()) return *list;
  Value::List out;
  if (const auto* map = value.map()) {
    for (const auto& [key, held] : *map) out.emplace_back(key);
  } else if (const std::string* text = value.text()) {
    detail::expect_parts(text->size());
    for (const std::string_view character : characters(*text)) out.emplace_back(std::string(character));
  } else if (!value.is_undefined()) {
    throw Error(concat("the chat template loops over ", value.kind()));
  }
  return out;
}

/// Whether `value is name` holds. Throws Error for tests that are not known.
[[nodiscard]] inline bool test(std::string_view name, const Value& value, const Arguments& arguments) {
  if (name == "defined") return !value.is_undefined();
  if (name == "undefined") return value.is_undefined();
  if (name == "none") return value.is_none();
  if (name == "string") return value.text() != nullptr;
  if (name == "mapping") return value.map() != nullptr;
  if (name == "sequence" || name == "iterable") {
    if (value.is_undefined()) return true;
    return value.text() != nullptr || value.list() != nullptr || value.map() != nullptr;
  }
  if (name == "boolean") return value.as<bool>() != nullptr;
  if (name == "number") return value.is_number();
  if (name == "integer") return value.as<std::int64_t>() != nullptr;
  if (name == "true" || name == "false") return value.as<bool>() != nullptr && *value.as<bool>() == (name == "true");
  if (name == "even" || name == "odd") return (value.integer() % 2 != 0) == (name == "odd");
  const Value* other = arguments.get(0);
  if (other != nullptr) {
    if (name == "equalto" || name == "eq" || name == "==") return equal(value, *other);
    if (name == "ne" || name == "!=") return !equal(value, *other);
    if (name == "in") {
      if (other->text() != nullptr && value.text() != nullptr)
        return other->text()->find(*value.text()) != std::string::npos;
      const Value::List all = elements(*other);
      return std::any_of(all.begin(), all.end(), [&](const Value& entry) { return equal(entry, value); });
    }
    if (name == "divisibleby" && other->integer() != 0) return value.integer() % other->integer() == 0;
  }
  throw Error(concat("the chat template has the test '", name, "', which is not supported"));
}

namespace detail {

/// selectattr, rejectattr, select, reject and map.
[[nodiscard]] inline Value chosen(std::string_view name, const Value& value, const Arguments& arguments) {
  Value::List out;
  const auto attribute_of = [&](const Value& entry, const std::string& attribute) {
    const Value* found = entry.find(attribute);
    return found == nullptr ? Value(Undefined{attribute}) : *found;
  };
  if (name == "map") {
    const Value* attribute = arguments.get(arguments.values.size(), "attribute");
    if (attribute == nullptr || attribute->text() == nullptr || arguments.names.size() != 1)
      refuse_call("filter", name, value);
    for (const Value& element : elements(value)) out.push_back(attribute_of(element, *attribute->text()));
    return out;
  }
  const bool by_attribute = name.ends_with("attr");
  const std::size_t behind = by_attribute ? 1 : 0;
  const bool wanted = name.starts_with("select");
  Arguments rest;
  for (std::size_t i = behind + 1; i < arguments.values.size(); ++i) rest.values.push_back(arguments.values[i]);
  for (const Value& element : elements(value)) {
    const Value tested = by_attribute ? attribute_of(element, arguments.text(0)) : element;
    const bool holds = arguments.values.size() > behind ? test(arguments.text(behind), tested, rest) : tested.truth();
    if (holds == wanted) out.push_back(element);
  }
  return out;
}

[[nodiscard]] inline Value list_filter(std::string_view name, const Value& value, const Arguments& arguments) {
  if (name == "length" || name == "count") {
    if (value.text() != nullptr) return length(*value.text());
    if (value.list() != nullptr) return static_cast<std::int64_t>(value.list()->size());
  }
  if ((name == "first" || name == "last") && value.list() != nullptr && !value.list()->empty())
    return name == "first" ? value.list()->front() : value.list()->back();
  Value::List all = elements(value);
  if (name == "length" || name == "count") return static_cast<std::int64_t>(all.size());
  if (name == "list") return all;
  if (name == "first" || name == "last") {
    if (all.empty()) return Undefined{"an element of an empty list"};
    return name == "first" ? all.front() : all.back();
  }
  if (name == "reverse") {
    std::reverse(all.begin(), all.end());
    if (value.text() == nullptr) return all;
    std::string text;
    for (const Value& entry : all) text += entry.str();
    return text;
  }
  const Value* between = arguments.get(0, "d");
  std::string out;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i > 0 && between != nullptr) out += between->str();
    out += all[i].str();
    expect_size(out.size());
  }
  return out;  // join
}

}  // namespace detail

/// `value | name(arguments)`. Throws Error for filters that are not known, and for arguments that are not supported.
[[nodiscard]] inline Value filter(std::string_view name, const Value& value, const Arguments& arguments) {
  if (name == "default" || name == "d") {
    const Value* flag = arguments.get(1, "boolean");
    const Value* other = arguments.get(0, "default_value");
    if (!value.is_undefined() && (flag == nullptr || !flag->truth() || value.truth())) return value;
    return other == nullptr ? Value("") : *other;
  }
  if (name == "tojson") {
    for (const auto& [key, held] : arguments.names) {
      if (key != "ensure_ascii" || held.truth()) detail::refuse_call("filter", name, value);
    }
    if (!arguments.values.empty() || value.is_undefined()) detail::refuse_call("filter", name, value);
    return json_text(value);
  }
  if (name == "trim") return detail::trimmed(value.str(), arguments.get(0, "chars"), true, true);
  if (name == "upper" || name == "lower" || name == "title" || name == "capitalize")
    return detail::cased(name, value.str());
  if (name == "replace" && arguments.values.size() == 2)
    return detail::replaced(value.str(), arguments.text(0), arguments.text(1));
  if (name == "string" || name == "safe") return value.str();
  if (name == "int" && value.is_number() && value.as<double>() == nullptr) return value.integer();
  if (name == "items" && value.map() != nullptr) {
    Value::List out;
    for (const auto& [key, held] : *value.map()) out.emplace_back(Value::List{key, held});
    return out;
  }
  for (const char* known : {"length", "count", "list", "first", "last", "reverse", "join"}) {
    const bool more = name == "join" ? !arguments.names.empty() : !arguments.values.empty() || !arguments.names.empty();
    if (name == known && !more) return detail::list_filter(name, value, arguments);
  }
  for (const char* known : {"selectattr", "rejectattr", "select", "reject", "map"}) {
    if (name == known) return detail::chosen(name, value, arguments);
  }
  throw Error(concat("the chat template has the filter '", name, "', which is not supported"));
}

/// `value.name(arguments)` of a text or a map. Throws Error for methods that are not known.
[[nodiscard]] inline Value method(const Value& value, std::string_view name, const Arguments& arguments) {
  if (!arguments.names.empty()) detail::refuse_call("method", name, value);
  if (const std::string* text = value.text()) {
    if (name == "strip" || name == "lstrip" || name == "rstrip")
      return detail::trimmed(*text, arguments.get(0), name != "rstrip", name != "lstrip");
    if (name == "startswith") return text->starts_with(arguments.text(0));
    if (name == "endswith") return text->ends_with(arguments.text(0));
    if (name == "upper" || name == "lower" || name == "title" || name == "capitalize")
      return detail::cased(name, *text);
    const Value* last = arguments.get(name == "replace" ? 2 : 1);
    const std::int64_t count = last == nullptr ? -1 : last->integer();
    if (name == "replace") return detail::replaced(*text, arguments.text(0), arguments.text(1), count);
    if (name == "split") return detail::split(*text, arguments.get(0), count);
    if (name == "find" && arguments.values.size() == 1) {
      const std::size_t at = text->find(arguments.text(0));
      if (at == std::string::npos) return std::int64_t{-1};
      return length(std::string_view(*text).substr(0, at));
    }
  } else if (const auto* map = value.map()) {
    if (name == "items") return filter("items", value, {});
    if (name == "get") {
      const Value* found = value.find(arguments.text(0));
      const Value* other = arguments.get(1);
      return found != nullptr ? *found : other != nullptr ? *other : Value(None{});
    }
    if (name == "keys" || name == "values") {
      Value::List out;
      for (const auto& [key, held] : *map) out.push_back(name == "keys" ? Value(key) : held);
      return out;
    }
  }
  throw Error(concat("the chat template calls '", name, "' of ", value.kind(), ", which is not supported"));
}

}  // namespace jinja
}  // namespace v0
}  // namespace qlora
