// qlora/serve/fields.hpp — the fields of a request's JSON, each checked for type and range, and the error that names
// one.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/json.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// A request that is refused: the wire formats write it in their ways.
class Refused : public std::runtime_error {
 public:
  /// `field`: the one that is wrong; empty: the whole.
  Refused(int status, const std::string& message, std::string field = {}, std::string code = {})
      : std::runtime_error(message), status_(status), field_(std::move(field)), code_(std::move(code)) {}
  /// Of HTTP.
  [[nodiscard]] int status() const { return status_; }
  /// The field that is wrong; empty where it is none.
  [[nodiscard]] const std::string& field() const { return field_; }
  /// For programs, "model_not_found"; may be empty.
  [[nodiscard]] const std::string& code() const { return code_; }

 private:
  int status_;
  std::string field_, code_;
};

/// A number of a request, and its ends. Both belong to it, unless it is open there.
struct Limits {
  double low = 0.0;        ///< the least
  double high = 0.0;       ///< the greatest
  bool low_open = false;   ///< only what is greater
  bool high_open = false;  ///< only what is smaller
};

/// A number that is in a range, as the nearest float that is in it too and is not subnormal at an open end: 1e-50 of
/// the numbers above 0 does not become 0, which is none of them.
[[nodiscard]] inline float float_in(double number, const Limits& range) {
  constexpr float least = std::numeric_limits<float>::min();
  const auto low = static_cast<float>(range.low);
  const auto high = static_cast<float>(range.high);
  const auto out = static_cast<float>(number);
  if (range.low_open && !(out > low + least)) return std::nextafter(low + least, high);
  if (range.high_open && !(out < high)) return std::nextafter(high, low);
  return out;
}

/// The fields of a JSON object. An absent field and null are the same. Unknown fields are ignored, as by the servers
/// whose formats these are.
class Fields {
 public:
  /// `status`: of the refusals. `in`: what stands before the names of fields, "parameters.". The object must live as
  /// long as this.
  Fields(const Json& object, int status, std::string in = {}) : object_(&object), status_(status), in_(std::move(in)) {}

  /// The value, or null where there is none.
  [[nodiscard]] const Json* find(std::string_view key) const { return json_find(*object_, key); }
  /// Whether there is one.
  [[nodiscard]] bool has(std::string_view key) const { return find(key) != nullptr; }

  /// A number in its range.
  [[nodiscard]] std::optional<double> number(std::string_view key, const Limits& range) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    const double number = value->is_number() ? value->get<double>() : std::nan("");
    const bool above = range.low_open ? number > range.low : number >= range.low;
    const bool below = range.high_open ? number < range.high : number <= range.high;
    if (!(above && below)) {  // a NaN is neither
      fail(key, concat("must be a number ", range.low_open ? "above " : "from ", range.low,
                       range.high_open  ? " and below "
                       : range.low_open ? " and at most "
                                        : " to ",
                       range.high));
    }
    return number;
  }
  /// A whole number from `low` to `high`.
  [[nodiscard]] std::optional<std::int64_t> integer(std::string_view key, std::int64_t low, std::int64_t high) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!whole(*value, low, high)) fail(key, concat("must be a whole number from ", low, " to ", high));
    return value->get<std::int64_t>();
  }
  /// True or false.
  [[nodiscard]] bool boolean(std::string_view key, bool otherwise) const {
    const Json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) fail(key, "must be true or false");
    return value->get<bool>();
  }
  /// A text.
  [[nodiscard]] std::optional<std::string> text(std::string_view key) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) fail(key, "must be a string");
    return value->get<std::string>();
  }
  /// An object; null where there is none.
  [[nodiscard]] const Json* object(std::string_view key) const {
    const Json* value = find(key);
    if (value != nullptr && !value->is_object()) fail(key, "must be an object");
    return value;
  }
  /// One text or a list of at most `most` texts, of which none is empty or has more than 1,000 characters.
  [[nodiscard]] std::vector<std::string> texts(std::string_view key, std::size_t most) const {
    const Json* value = find(key);
    if (value == nullptr) return {};
    constexpr std::size_t longest = 1000;
    std::vector<std::string> out;
    const auto add = [&](const Json& item) {
      if (!item.is_string()) fail(key, "must be a string or a list of strings");
      out.push_back(item.get<std::string>());
      const auto characters = static_cast<std::size_t>(std::count_if(  // of UTF-8, which parse_json() has checked
          out.back().begin(), out.back().end(),
          [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
      if (characters == 0 || characters > longest) {
        fail(key, concat("has a string of ", characters, " characters; there must be from 1 to ", longest));
      }
    };
    if (!value->is_array()) {
      add(*value);
      return out;
    }
    if (value->size() > most) fail(key, concat("supports up to ", most, " strings. Given: ", value->size()));
    for (const Json& item : *value) add(item);
    return out;
  }
  /// Refuses a field that is there and asks for something, saying why: null, false, an empty list or object, and
  /// `harmless` ask for nothing.
  void unsupported(std::string_view key, const Json& harmless = nullptr) const {
    const Json* value = find(key);
    if (value == nullptr || *value == harmless || (value->is_structured() && value->empty()) || *value == false) return;
    throw Refused(status_, concat("`", in_, key, "` is not supported by this server"), in_ + std::string(key),
                  "unsupported_parameter");
  }
  /// Refuses, naming a field.
  [[noreturn]] void fail(std::string_view key, std::string_view what) const {
    throw Refused(status_, concat("`", in_, key, "` ", what), in_ + std::string(key), "invalid_value");
  }
  /// Whether a value is a whole number in a range. 16.0 is one, as in JSON Schema.
  [[nodiscard]] static bool whole(const Json& value, std::int64_t low, std::int64_t high) {
    if (value.is_number_float()) {
      const double number = value.get<double>();
      if (std::trunc(number) != number || number <= -0x1p63 || number >= 0x1p63) return false;
      return static_cast<std::int64_t>(number) >= low && static_cast<std::int64_t>(number) <= high;
    }
    if (!value.is_number_integer()) return false;
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t{INT64_MAX}) return false;
    const std::int64_t number = value.get<std::int64_t>();
    return number >= low && number <= high;
  }

 private:
  const Json* object_;
  int status_;
  std::string in_;
};

/// The names by which TGI, vLLM, SGLang and llama.cpp take grammars, schemas and expressions that a reply must follow,
/// beside OpenAI's response_format. A server that ignored them would answer with what nobody asked for.
inline constexpr std::array<std::string_view, 13> constraints{
    "grammar",        "regex",        "ebnf",          "json_schema",    "structural_tag",     "structured_outputs",
    "guided_json",    "guided_regex", "guided_choice", "guided_grammar", "guided_json_object", "guided_decoding",
    "response_schema"};

/// A body as a JSON object: at most 32 levels deep, no key twice, with at most that many values. Throws Refused (400).
[[nodiscard]] inline Json body_object(std::string_view body, std::size_t most_values) {
  constexpr int deepest = 32;
  try {
    Json value = parse_json(body, "the body", deepest, most_values);
    if (!value.is_object()) throw Error("the body: not a JSON object");
    return value;
  } catch (const Error& error) {
    throw Refused(400, error.what(), {}, "invalid_json");
  }
}

/// An answer's text. Bytes that are not UTF-8, which no text here should have, become U+FFFD.
template <class AnyJson>
[[nodiscard]] std::string json_body(const AnyJson& value) {
  return value.dump(-1, ' ', false, AnyJson::error_handler_t::replace);
}

/// A log-probability in JSON: not below -9999.
[[nodiscard]] inline double json_logprob(float value) { return value >= -9999.0F ? shortest_decimal(value) : -9999.0; }

}  // namespace serve
}  // namespace v0
}  // namespace qlora
