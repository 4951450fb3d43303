// qlora/io/json.hpp — JSON from untrusted files: a strict parser, and getters whose errors name file and key.
// Why a guard before the parser: nlohmann keeps the last of two equal keys silently, takes a NUL byte for the end of
// the text, skips a byte order mark, and nests without limit. All four let two readers see two different documents.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"

namespace qlora {
inline namespace v0 {

/// A value whose objects have their keys sorted.
using Json = nlohmann::json;

namespace detail {

/// At most 160 printable bytes of a text that came from outside, for an error message.
[[nodiscard]] inline std::string excerpt(std::string_view text) {
  constexpr std::size_t limit = 160;
  std::string out;
  for (const char c : text.substr(0, limit)) out += (c >= ' ' && c <= '~') ? c : '?';
  return text.size() > limit ? out + "..." : out;
}

/// What all readers of JSON here refuse before the parser sees the text.
inline void refuse_odd_json_bytes(std::string_view text, std::string_view what) {
  if (text.find('\0') != std::string_view::npos) throw Error(concat(what, ": a NUL byte is not JSON"));
  if (text.starts_with("\xEF\xBB\xBF")) throw Error(concat(what, ": starts with a byte order mark; remove it"));
}

/// The events of a parse. Derived handlers override what they allow; parse errors become qlora::Error here.
class JsonHandler : public nlohmann::json_sax<Json> {
 public:
  explicit JsonHandler(std::string_view what) : what_(what) {}
  bool parse_error(std::size_t position, const std::string& token, const Json::exception& problem) override {
    const std::string_view text = problem.what();
    const auto bracket = text.find("] ");  // after "[json.exception.parse_error.101] "
    throw Error(concat(what_, ": not valid JSON at byte ", position, " near '", excerpt(token), "'", place(), ": ",
                       excerpt(bracket == std::string_view::npos ? text : text.substr(bracket + 2))));
  }
  bool binary(binary_t& /*value*/) override { fail("binary values are not JSON"); }

 protected:
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw Error(concat(what_, ": ", parts...));
  }
  /// For messages: where in the value this is; may be empty.
  [[nodiscard]] virtual std::string place() const { return {}; }

 private:
  std::string_view what_;
};

/// Checks nesting, the number of values, and repeated keys, keeps nothing.
class JsonGuard final : public JsonHandler {
 public:
  JsonGuard(std::string_view what, int max_depth, std::size_t max_values)
      : JsonHandler(what), max_depth_(max_depth), max_values_(max_values) {}
  bool null() override { return count(); }
  bool boolean(bool /*value*/) override { return count(); }
  bool number_integer(number_integer_t /*value*/) override { return count(); }
  bool number_unsigned(number_unsigned_t /*value*/) override { return count(); }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override { return count(); }
  bool string(string_t& /*value*/) override { return count(); }
  bool start_object(std::size_t /*elements*/) override { return open(); }
  bool start_array(std::size_t /*elements*/) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (!keys_.back().insert(name).second) fail("the key '", excerpt(name), "' stands twice in one object");
    last_key_ = name;
    return true;
  }

 protected:
  [[nodiscard]] std::string place() const override {
    return last_key_.empty() ? std::string() : concat(" after the key '", excerpt(last_key_), "'");
  }

 private:
  bool count() {
    if (++values_ > max_values_) fail("has more than ", max_values_, " values", place());
    return true;
  }
  bool open() {
    if (static_cast<int>(keys_.size()) >= max_depth_) fail("nested deeper than ", max_depth_, " levels", place());
    keys_.emplace_back();
    return count();
  }
  bool close() {
    keys_.pop_back();
    return true;
  }
  int max_depth_;
  std::size_t max_values_;
  std::size_t values_ = 0;
  std::vector<std::set<std::string>> keys_;  // of every open object; an array holds an empty set
  std::string last_key_;                     // the newest of all objects
};

}  // namespace detail

/// Parses a JSON text. `what` (a file name) starts every message. Throws Error for malformed text or UTF-8, repeated
/// keys, nesting beyond max_depth, more than max_values values (each takes 16 bytes or more, and "1," two in the text),
/// NUL bytes, and anything after the value.
[[nodiscard]] inline Json parse_json(std::string_view text, std::string_view what, int max_depth = 64,
                                     std::size_t max_values = SIZE_MAX) {
  detail::refuse_odd_json_bytes(text, what);
  detail::JsonGuard guard(what, max_depth, max_values);
  Json::sax_parse(text.begin(), text.end(), &guard);
  return Json::parse(text.begin(), text.end());
}

/// Reads and parses a JSON file whose top is an object.
[[nodiscard]] inline Json read_json_object(const std::filesystem::path& path, std::size_t max_bytes = 64U << 20) {
  const std::string text = read_text(path, max_bytes);
  refuse_lfs_pointer(text, path.string());
  Json value = parse_json(text, path.string());
  if (!value.is_object()) throw Error(concat(path.string(), ": holds no JSON object"));
  return value;
}

/// Calls use(object, "FILE:LINE") for each line of a JSON Lines file that is not blank; each must be an object.
template <class Use>
void for_each_json_line(const std::filesystem::path& path, const Use& use, std::size_t max_bytes = 64U << 20) {
  const std::string text = read_text(path, max_bytes);
  refuse_lfs_pointer(text, path.string());
  int number = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = concat(path.string(), ":", number);
    const Json object = parse_json(line, where);
    if (!object.is_object()) throw Error(where + ": not a JSON object");
    use(object, where);
  }
}

// --- getters: `where` is the file, the key is named with it; an absent key and null are the same ------------------

/// The value of a key, or nullptr when it is absent or null.
[[nodiscard]] inline const Json* json_find(const Json& object, std::string_view key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}
/// The value of a key that must be there. A copy: of a reference that comes out of a call with temporaries, and a key
/// is one, g++ 13 says that it may dangle (-Wdangling-reference).
[[nodiscard]] inline Json json_at(const Json& object, std::string_view key, std::string_view where) {
  const Json* value = json_find(object, key);
  if (value == nullptr) throw Error(concat(where, ": the key '", key, "' is missing"));
  return *value;
}

namespace detail {

[[nodiscard]] inline std::int64_t checked_int(const Json& value, std::string_view key, std::string_view where,
                                              std::int64_t min, std::int64_t max) {
  // A number above the signed range is stored unsigned; it is out of every range here.
  const bool fits = value.is_number_integer() &&
                    !(value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t{INT64_MAX});
  if (!fits || value.get<std::int64_t>() < min || value.get<std::int64_t>() > max) {
    throw Error(
        concat(where, ": '", key, "' must be an integer from ", min, " to ", max, ", not ", excerpt(value.dump())));
  }
  return value.get<std::int64_t>();
}
[[nodiscard]] inline double checked_number(const Json& value, std::string_view key, std::string_view where, double min,
                                           double max) {
  const double number = value.is_number() ? value.get<double>() : std::nan("");
  if (!(number >= min && number <= max)) {  // a NaN is in no range
    throw Error(
        concat(where, ": '", key, "' must be a number from ", min, " to ", max, ", not ", excerpt(value.dump())));
  }
  return number;
}

}  // namespace detail

/// An integer in [min, max]; floats are refused, also 1e3.
[[nodiscard]] inline std::int64_t json_int(const Json& object, std::string_view key, std::string_view where,
                                           std::int64_t min, std::int64_t max) {
  return detail::checked_int(json_at(object, key, where), key, where, min, max);
}
/// A whole number in [min, max], or `otherwise` where the key is absent. Throws Error for what is neither.
[[nodiscard]] inline std::int64_t json_int_or(const Json& object, std::string_view key, std::string_view where,
                                              std::int64_t min, std::int64_t max, std::int64_t otherwise) {
  const Json* value = json_find(object, key);
  return value == nullptr ? otherwise : detail::checked_int(*value, key, where, min, max);
}
/// A number in [min, max].
[[nodiscard]] inline double json_number(const Json& object, std::string_view key, std::string_view where, double min,
                                        double max) {
  return detail::checked_number(json_at(object, key, where), key, where, min, max);
}
/// A number in [min, max], or `otherwise` where the key is absent. Throws Error for what is neither.
[[nodiscard]] inline double json_number_or(const Json& object, std::string_view key, std::string_view where, double min,
                                           double max, double otherwise) {
  const Json* value = json_find(object, key);
  return value == nullptr ? otherwise : detail::checked_number(*value, key, where, min, max);
}
/// True or false, or `otherwise` where the key is absent. Throws Error for another type.
[[nodiscard]] inline bool json_bool_or(const Json& object, std::string_view key, std::string_view where,
                                       bool otherwise) {
  const Json* value = json_find(object, key);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) throw Error(concat(where, ": '", key, "' must be true or false"));
  return value->get<bool>();
}
/// A string, or `otherwise` where the key is absent. Throws Error for another type.
[[nodiscard]] inline std::string json_string_or(const Json& object, std::string_view key, std::string_view where,
                                                std::string_view otherwise) {
  const Json* value = json_find(object, key);
  if (value == nullptr) return std::string(otherwise);
  if (!value->is_string()) throw Error(concat(where, ": '", key, "' must be a string"));
  return value->get<std::string>();
}
/// A string. Throws Error where the key is absent or of another type.
[[nodiscard]] inline std::string json_string(const Json& object, std::string_view key, std::string_view where) {
  (void)json_at(object, key, where);
  return json_string_or(object, key, where, "");
}

/// The shortest decimal that means this float, as the double that JSON prints: 1e-05, not 9.99999974738e-06.
[[nodiscard]] inline double shortest_decimal(float value) {
  std::array<char, 32> text{};
  const auto result = std::to_chars(text.data(), text.data() + text.size() - 1, value);
  double number = 0;
  std::from_chars(text.data(), result.ptr, number);
  return number;
}

/// Text of a value as it is written to disk: indented, keys sorted, a line end. Throws Error for invalid UTF-8.
[[nodiscard]] inline std::string json_text(const Json& value, int indent = 2) {
  try {
    return value.dump(indent) + "\n";
  } catch (const Json::exception&) {
    throw Error("a text that goes into a JSON file is not valid UTF-8");
  }
}

}  // namespace v0
}  // namespace qlora
