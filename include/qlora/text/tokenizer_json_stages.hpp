// qlora/text/tokenizer_json_stages.hpp — the stages of a tokenizer.json as those of tokenizer_stages.hpp. One that is
// not there is refused by its name.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/json.hpp"
#include "qlora/text/tokenizer_stages.hpp"
#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {
namespace detail::stages {

[[noreturn]] inline void refuse(const std::string& where, std::string_view part, std::string_view what) {
  throw Error(concat(where, ": ", part, " ", what));
}
inline void flatten(const Json& value, const char* list, const std::string& where, int depth,
                    std::vector<Json>& steps) {
  if (!value.is_object() || depth > 8) throw Error(where + ": a stage is no object, or nested too deep");
  if (json_string(value, "type", where) != "Sequence") return steps.push_back(value);
  for (const Json& step : json_at(value, list, where)) flatten(step, list, where, depth + 1, steps);
}
/// A text that a stage adds. The package has no limit.
[[nodiscard]] inline std::string added_text(const Json& step, const char* key, const std::string& where) {
  std::string text = json_string(step, key, where);
  if (text.size() > 1024) refuse(where, key, "has more than 1,024 bytes");
  return text;
}
/// What Metaspace puts for a space: one character.
[[nodiscard]] inline std::string replacement(const Json& step, const std::string& where) {
  std::string mark = json_string_or(step, "replacement", where, "\xE2\x96\x81");
  if (mark.empty() || utf8_length(mark) != mark.size())
    refuse(where, "the replacement of Metaspace", "is not one character");
  return mark;
}
/// The steps of a stage: none, one, or those of a Sequence.
[[nodiscard]] inline std::vector<Json> steps_of(const Json& file, const char* key, const char* list,
                                                const std::string& where) {
  const Json* value = json_find(file, key);
  std::vector<Json> steps;
  if (value == nullptr) return steps;
  flatten(*value, list, where, 0, steps);
  if (steps.size() > 32) refuse(where, key, "has more than 32 steps");
  return steps;
}
[[nodiscard]] inline Behavior behavior(const std::string& name, const std::string& where) {
  static const std::map<std::string, Behavior> names{{"Removed", Behavior::removed},
                                                     {"Isolated", Behavior::isolated},
                                                     {"MergedWithPrevious", Behavior::merged_with_previous},
                                                     {"MergedWithNext", Behavior::merged_with_next},
                                                     {"Contiguous", Behavior::contiguous}};
  const auto found = names.find(name);
  if (found == names.end()) refuse(where, "the split behavior " + detail::excerpt(name), "is not known");
  return found->second;
}
[[nodiscard]] inline PrependScheme prepend_scheme(const Json& step, const std::string& where) {
  // Older files have add_prefix_space instead.
  const std::string name = json_string_or(step, "prepend_scheme", where,
                                          json_bool_or(step, "add_prefix_space", where, true) ? "always" : "never");
  if (name == "always") return PrependScheme::always;
  if (name == "first") return PrependScheme::first;
  if (name != "never") refuse(where, "the prepend_scheme " + detail::excerpt(name), "is not known");
  return PrependScheme::never;
}

#ifdef QLORA_WITH_UTF8PROC
/// A normaliser that needs Unicode's tables; nothing for others.
[[nodiscard]] inline std::optional<Normalizer> unicode_normalizer(const std::string& type,
                                                                  const std::string& /*where*/) {
  if (type == "NFC") return NormalForm::nfc;
  if (type == "NFD") return NormalForm::nfd;
  if (type == "NFKC") return NormalForm::nfkc;
  if (type == "NFKD") return NormalForm::nfkd;
  if (type == "Lowercase") return Lowercase{};
  return std::nullopt;
}
#else
[[nodiscard]] inline std::optional<Normalizer> unicode_normalizer(const std::string& type, const std::string& where) {
  if (type.starts_with("NF") || type == "Lowercase")
    refuse(where, "the normalizer " + type,
           "needs utf8proc, which this build lacks; install libutf8proc-dev and build again");
  return std::nullopt;
}
#endif

/// The normalisers of a tokenizer.json.
[[nodiscard]] inline std::vector<Normalizer> normalizers_of(const Json& file, const std::string& where) {
  std::vector<Normalizer> out;
  for (const Json& step : steps_of(file, "normalizer", "normalizers", where)) {
    const std::string type = json_string(step, "type", where);
    if (type == "Prepend") {
      out.emplace_back(Prepend{added_text(step, "prepend", where)});
    } else if (type == "Replace") {
      out.emplace_back(Replace{Pattern(json_at(step, "pattern", where), where), added_text(step, "content", where)});
    } else if (type == "Strip") {
      out.emplace_back(
          Strip{json_bool_or(step, "strip_left", where, false), json_bool_or(step, "strip_right", where, false)});
    } else if (auto made = unicode_normalizer(type, where)) {
      out.push_back(std::move(*made));
    } else {
      refuse(where, "the normalizer " + type,
             "is not supported; NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend and Replace are");
    }
  }
  return out;
}

/// The pre-tokenizers of a tokenizer.json; ByteLevel is the last.
[[nodiscard]] inline std::vector<PreTokenizer> pre_tokenizers_of(const Json& file, const std::string& where) {
  std::vector<PreTokenizer> out;
  bool byte_level = false;
  for (const Json& step : steps_of(file, "pre_tokenizer", "pretokenizers", where)) {
    const std::string type = json_string(step, "type", where);
    if (byte_level) refuse(where, "the pre-tokenizer " + type, "stands behind ByteLevel, which must be the last");
    if (type == "ByteLevel") {
      byte_level = true;
      ByteLevel bytes{json_bool_or(step, "add_prefix_space", where, true), {}};
      if (json_bool_or(step, "use_regex", where, true)) {
        bytes.words.emplace(
            Json{{"Regex", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"}}, where);
      }
      out.emplace_back(std::move(bytes));
    } else if (type == "Split") {
      out.emplace_back(Split{Pattern(json_at(step, "pattern", where), where),
                             behavior(json_string(step, "behavior", where), where),
                             json_bool_or(step, "invert", where, false)});
    } else if (type == "Digits") {
      const bool individual = json_bool_or(step, "individual_digits", where, false);
      // Here the package asks Rust, which knows numbers of Unicode 17.
      out.emplace_back(Split{Pattern(Json{{"Regex", R"([\p{N}\x{11de0}-\x{11de9}\x{16ff4}-\x{16ff6}])"}}, where),
                             individual ? Behavior::isolated : Behavior::contiguous});
    } else if (type == "Metaspace") {
      out.emplace_back(
          Metaspace{replacement(step, where), prepend_scheme(step, where), json_bool_or(step, "split", where, true)});
    } else {
      refuse(where, "the pre-tokenizer " + type, "is not supported; ByteLevel, Split, Digits and Metaspace are");
    }
  }
  return out;
}

}  // namespace detail::stages
}  // namespace v0
}  // namespace qlora
