// qlora/text/unicode_forms.hpp — normal forms and lower case of Unicode, by utf8proc.
// What may not change: texts are those of the package `tokenizers`, which has normal forms of Unicode 9 and lower case
// of
// Unicode 17. Characters that came later compose with nothing there, and decompose into nothing.
// Reference: tests/text/unicode_forms_test.cpp, texts of the package.
#pragma once

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/sentencepiece_scan.hpp"

namespace qlora {
inline namespace v0 {

/// Normal forms of Unicode (Standard Annex 15).
enum class NormalForm { nfc, nfd, nfkc, nfkd };

namespace detail::unicode {

struct CodePoints {
  char32_t first, last;
};

// Code points up to Unicode 18 that have a combining class, decompose, or compose, and did not in Unicode 9. And
// U+11A7, one before the first trailing consonant of Korean, which utf8proc 2.8 takes for one and loses.
inline constexpr std::array later{
    CodePoints{0x558, 0x558},     CodePoints{0x58B, 0x58C},     CodePoints{0x5C8, 0x5C9},
    CodePoints{0x7FD, 0x7FD},     CodePoints{0x897, 0x89F},     CodePoints{0x8CA, 0x8D3},
    CodePoints{0x9FE, 0x9FE},     CodePoints{0xC3C, 0xC3C},     CodePoints{0xD3B, 0xD3C},
    CodePoints{0xEBA, 0xEBA},     CodePoints{0x11A7, 0x11A7},   CodePoints{0x1715, 0x1715},
    CodePoints{0x1ABF, 0x1AF0},   CodePoints{0x1DF6, 0x1DFA},   CodePoints{0x209D, 0x209F},
    CodePoints{0x32FF, 0x32FF},   CodePoints{0xA7F1, 0xA7F4},   CodePoints{0xA82C, 0xA82C},
    CodePoints{0xAB69, 0xAB69},   CodePoints{0x105C9, 0x105C9}, CodePoints{0x105D2, 0x105D2},
    CodePoints{0x105DA, 0x105DA}, CodePoints{0x105E4, 0x105E4}, CodePoints{0x10781, 0x10785},
    CodePoints{0x10787, 0x107B0}, CodePoints{0x107B2, 0x107BF}, CodePoints{0x10D24, 0x10D27},
    CodePoints{0x10D69, 0x10D6D}, CodePoints{0x10EAB, 0x10EAC}, CodePoints{0x10ECB, 0x10ECF},
    CodePoints{0x10EF0, 0x10EFB}, CodePoints{0x10EFD, 0x10EFF}, CodePoints{0x10F46, 0x10F50},
    CodePoints{0x10F82, 0x10F85}, CodePoints{0x11070, 0x11070}, CodePoints{0x1133B, 0x1133B},
    CodePoints{0x11382, 0x11385}, CodePoints{0x1138B, 0x1138B}, CodePoints{0x1138E, 0x1138E},
    CodePoints{0x11390, 0x11391}, CodePoints{0x113B8, 0x113B8}, CodePoints{0x113BB, 0x113BB},
    CodePoints{0x113C2, 0x113C2}, CodePoints{0x113C5, 0x113C5}, CodePoints{0x113C7, 0x113C9},
    CodePoints{0x113CE, 0x113D0}, CodePoints{0x1145E, 0x1145E}, CodePoints{0x11839, 0x1183A},
    CodePoints{0x11930, 0x11930}, CodePoints{0x11935, 0x11935}, CodePoints{0x11938, 0x11938},
    CodePoints{0x1193D, 0x1193E}, CodePoints{0x11943, 0x11943}, CodePoints{0x119E0, 0x119E0},
    CodePoints{0x11A34, 0x11A34}, CodePoints{0x11A47, 0x11A47}, CodePoints{0x11A99, 0x11A99},
    CodePoints{0x11D42, 0x11D42}, CodePoints{0x11D44, 0x11D45}, CodePoints{0x11D97, 0x11D97},
    CodePoints{0x11F41, 0x11F42}, CodePoints{0x1611E, 0x16129}, CodePoints{0x1612F, 0x1612F},
    CodePoints{0x16D63, 0x16D63}, CodePoints{0x16D67, 0x16D6A}, CodePoints{0x16FF0, 0x16FF1},
    CodePoints{0x1B123, 0x1B126}, CodePoints{0x1CCD6, 0x1CCF9}, CodePoints{0x1D127, 0x1D128},
    CodePoints{0x1D250, 0x1D252}, CodePoints{0x1D25B, 0x1D25C}, CodePoints{0x1D25F, 0x1D25F},
    CodePoints{0x1D280, 0x1D281}, CodePoints{0x1D6A6, 0x1D6A6}, CodePoints{0x1DF95, 0x1DF95},
    CodePoints{0x1DFCD, 0x1DFFF}, CodePoints{0x1E030, 0x1E06D}, CodePoints{0x1E08F, 0x1E08F},
    CodePoints{0x1E130, 0x1E136}, CodePoints{0x1E2AE, 0x1E2AE}, CodePoints{0x1E2EC, 0x1E2EF},
    CodePoints{0x1E4EC, 0x1E4EF}, CodePoints{0x1E5EE, 0x1E5EF}, CodePoints{0x1E6E3, 0x1E6E3},
    CodePoints{0x1E6E6, 0x1E6E6}, CodePoints{0x1E6EE, 0x1E6EF}, CodePoints{0x1E6F5, 0x1E6F5},
    CodePoints{0x1F16C, 0x1F16C}, CodePoints{0x1FBF0, 0x1FBF9}};

[[nodiscard]] inline bool is_later(char32_t c) {
  if (c < later.front().first) return false;
  const auto* found =
      std::partition_point(later.begin(), later.end(), [&](const CodePoints& range) { return range.last < c; });
  return found != later.end() && found->first <= c;
}

/// The code point at the front of UTF-8 text that is not empty, which is taken off.
[[nodiscard]] inline char32_t take(std::string_view& text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const std::size_t length = byte(0) < 0x80U ? 1 : byte(0) < 0xE0U ? 2 : byte(0) < 0xF0U ? 3 : 4;
  char32_t value = length == 1 ? byte(0) : byte(0) & (0xFFU >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) value = value << 6U | (byte(i) & 0x3FU);
  text.remove_prefix(length);
  return value;
}
inline void put(std::string& out, char32_t c) {
  const auto byte = [&](char32_t value) { out += static_cast<char>(value); };
  if (c < 0x80) return byte(c);
  if (c < 0x800) {
    byte(0xC0U | c >> 6U);
  } else {
    if (c < 0x10000) {
      byte(0xE0U | c >> 12U);
    } else {
      byte(0xF0U | c >> 18U);
      byte(0x80U | (c >> 12U & 0x3FU));
    }
    byte(0x80U | (c >> 6U & 0x3FU));
  }
  byte(0x80U | (c & 0x3FU));
}

/// Puts characters into a normal form, part by part.
class Normalizer {
 public:
  explicit Normalizer(NormalForm form)
      : composes_(form == NormalForm::nfc || form == NormalForm::nfkc),
        options_(form == NormalForm::nfkc || form == NormalForm::nfkd ? UTF8PROC_STABLE | UTF8PROC_COMPAT
                                                                      : UTF8PROC_STABLE) {}

  /// Appends the form of `text`, which must be UTF-8.
  void append(std::string_view text, std::string& out) {
    while (!text.empty()) {
      const std::string_view before = text;
      const char32_t c = take(text);
      if (is_later(c)) {
        flush(out);
        out += before.substr(0, before.size() - text.size());
      } else {
        decompose(c);
      }
    }
    flush(out);
  }

 private:
  struct Character {
    utf8proc_int32_t point;
    utf8proc_propval_t combining_class;
    std::size_t place;  ///< among those held: characters of one class keep their order
  };
  void decompose(char32_t c) {
    // No character decomposes into more than 18, U+FDFA does.
    std::array<utf8proc_int32_t, 32> parts{};
    int boundary = 0;
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts.data(), parts.size(),
                                static_cast<utf8proc_option_t>(options_ | UTF8PROC_DECOMPOSE), &boundary);
    if (count < 0 || count > static_cast<utf8proc_ssize_t>(parts.size())) throw Error("utf8proc cannot decompose text");
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i)
      held_.push_back({parts[i], utf8proc_get_property(parts[i])->combining_class, held_.size()});
  }
  void flush(std::string& out) {
    // Not utf8proc_decompose(), which takes the square of the marks on one letter to order them.
    for (auto begin = held_.begin(); begin != held_.end();) {
      const auto is_starter = [](const Character& c) { return c.combining_class == 0; };
      begin = std::find_if_not(begin, held_.end(), is_starter);
      const auto end = std::find_if(begin, held_.end(), is_starter);
      // Not std::stable_sort, which warns with clang 19 and libstdc++ 12.
      std::sort(begin, end, [](const Character& a, const Character& b) {
        return std::tie(a.combining_class, a.place) < std::tie(b.combining_class, b.place);
      });
      begin = end;
    }
    points_.clear();
    for (const Character& c : held_) points_.push_back(c.point);
    held_.clear();
    auto count = static_cast<utf8proc_ssize_t>(points_.size());
    if (composes_)
      count =
          utf8proc_normalize_utf32(points_.data(), count, static_cast<utf8proc_option_t>(options_ | UTF8PROC_COMPOSE));
    if (count < 0) throw Error("utf8proc cannot compose text");
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) put(out, static_cast<char32_t>(points_[i]));
  }

  bool composes_;
  int options_;
  std::vector<Character> held_;
  std::vector<utf8proc_int32_t> points_;
};

/// Whether the character may begin a part of a text in a normal form.
[[nodiscard]] inline bool is_starter(char32_t c) {
  return is_later(c) || utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class == 0;
}

[[nodiscard]] inline bool is_ascii(char c) { return static_cast<unsigned char>(c) < 0x80U; }

}  // namespace detail::unicode

/// A normal form of UTF-8 text. O(n log n).
[[nodiscard]] inline std::string normal_form(NormalForm form, std::string_view text) {
  using detail::unicode::is_ascii;
  detail::unicode::Normalizer normalizer(form);
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    // ASCII is its own form, but its last character may have marks.
    auto end = std::find_if_not(text.begin(), text.end(), is_ascii);
    if (end != text.begin() && end != text.end()) --end;
    out.append(text.begin(), end);
    text.remove_prefix(static_cast<std::size_t>(end - text.begin()));
    if (text.empty()) break;
    end = std::find_if(text.begin() + 1, text.end(), is_ascii);
    normalizer.append(text.substr(0, static_cast<std::size_t>(end - text.begin())), out);
    text.remove_prefix(static_cast<std::size_t>(end - text.begin()));
  }
  return out;
}

/// Bytes of the shortest part at the front of `text`, which is not empty, whose form does not depend on what follows.
[[nodiscard]] inline std::size_t normal_part(NormalForm form, std::string_view text) {
  std::string_view rest = text;
  (void)detail::unicode::take(rest);
  while (!rest.empty()) {
    const std::size_t here = text.size() - rest.size();
    const std::string_view before = rest;
    const bool starts = detail::unicode::is_starter(detail::unicode::take(rest));
    const std::string_view character = before.substr(0, before.size() - rest.size());
    if (starts && normal_form(form, text.substr(0, here + character.size())) ==
                      normal_form(form, text.substr(0, here)) + normal_form(form, character))
      return here;
  }
  return text.size();
}

/// UTF-8 text in lower case, character by character.
[[nodiscard]] inline std::string lower_case(std::string_view text) {
  struct Range {
    char32_t first, last;
    int step;
  };
  // What came with Unicode 16 and 17, which utf8proc may not have.
  static constexpr std::array newer{Range{0x1C89, 0x1C89, 1},      Range{0xA7CB, 0xA7CB, 0x264 - 0xA7CB},
                                    Range{0xA7CC, 0xA7CC, 1},      Range{0xA7CE, 0xA7CE, 1},
                                    Range{0xA7D2, 0xA7D2, 1},      Range{0xA7D4, 0xA7D4, 1},
                                    Range{0xA7DA, 0xA7DA, 1},      Range{0xA7DC, 0xA7DC, 0x19B - 0xA7DC},
                                    Range{0x10D50, 0x10D65, 0x20}, Range{0x16EA0, 0x16EB8, 0x1B}};
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const char32_t c = detail::unicode::take(text);
    const auto* found = std::find_if(newer.begin(), newer.end(),
                                     [&](const Range& range) { return c >= range.first && c <= range.last; });
    if (c < 0x80) {
      out += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    } else if (c == 0x130) {
      out += "i\xCC\x87";  // the only one that becomes two
    } else if (found != newer.end()) {
      detail::unicode::put(out, static_cast<char32_t>(static_cast<int>(c) + found->step));
    } else {
      detail::unicode::put(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
    }
  }
  return out;
}

}  // namespace v0
}  // namespace qlora
