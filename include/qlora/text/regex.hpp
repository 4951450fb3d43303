// qlora/text/regex.hpp — Unicode regular expressions of tokenizer files, by PCRE2.
// What may not change: matches are those of Oniguruma 6.9.10 (Unicode 16), by which the package `tokenizers` splits
// words. Where PCRE2 differs the expression is written out: \s is the property White_Space (PCRE2 has U+180E too), \w
// is Alphabetic, M, Nd and Pc, and letters, numbers and marks that came after Unicode 14 (PCRE2 10.42) are added.
#pragma once

/// PCRE2 on UTF-8; its header wants to know.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {

namespace detail::regex {

// Code points of the general categories L, N and M in Unicode 16 that are not in them in Unicode 14; none has left.
// Source: the Unicode Character Database, by Python's unicodedata (14.0) and unicodedata2 (16.0).
inline constexpr std::string_view new_letters =
    "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d65}"
    "\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}"
    "\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}"
    "\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}"
    "\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}"
    "\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}";
inline constexpr std::string_view new_numbers =
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}\\x{16130}-\\x{16139}"
    "\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}";
inline constexpr std::string_view new_marks =
    "\\x{897}\\x{cf3}\\x{ece}\\x{10d69}-\\x{10d6d}\\x{10efc}-\\x{10eff}\\x{11241}\\x{113b8}-\\x{113c0}\\x{113c2}"
    "\\x{113c5}\\x{113c7}-\\x{113ca}\\x{113cc}-\\x{113d0}\\x{113d2}\\x{113e1}-\\x{113e2}\\x{11f00}-\\x{11f01}"
    "\\x{11f03}\\x{11f34}-\\x{11f3a}\\x{11f3e}-\\x{11f42}\\x{11f5a}\\x{13440}\\x{13447}-\\x{13455}"
    "\\x{1611e}-\\x{1612f}\\x{1e08f}\\x{1e4ec}-\\x{1e4ef}\\x{1e5ee}-\\x{1e5ef}";
inline constexpr std::string_view white_space =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

/// What stands inside [] for the class of the escape sequence at the front of `text`; empty for other sequences.
/// `length` is how long the sequence is.
[[nodiscard]] inline std::string class_members(std::string_view text, std::size_t& length) {
  const char name = text.size() > 1 ? static_cast<char>(text[1] | 0x20) : ' ';  // in lower case
  length = 2;
  if (name == 's') return std::string(white_space);
  if (name == 'w') return concat("\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}", new_letters, new_numbers, new_marks);
  if (name != 'p') return {};
  length = 5;
  const std::string_view category = text.substr(2, 3);
  if (category == "{L}") return concat("\\p{L}", new_letters);
  if (category == "{N}") return concat("\\p{N}", new_numbers);
  if (category == "{M}") return concat("\\p{M}", new_marks);
  length = 2;
  return {};
}

/// The expression with these classes written out. Throws Error for the complement of one inside [].
[[nodiscard]] inline std::string translated(std::string_view expression) {
  std::string out;
  bool in_class = false;
  while (!expression.empty()) {
    std::size_t length = 1;
    if (expression.front() == '\\') {
      const std::string members = class_members(expression, length);
      const bool complement = expression.size() > 1 && expression[1] >= 'A' && expression[1] <= 'Z';
      if (members.empty()) {
        out += expression.substr(0, length);
      } else if (!in_class) {
        out += concat(complement ? "[^" : "[", members, "]");
      } else if (!complement) {
        out += members;
      } else if (members == white_space) {  // the gaps between white space
        out +=
            "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}"
            "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{d7ff}"
            "\\x{e000}-\\x{10ffff}";
      } else {
        throw Error(concat("the regular expression '", expression, "': ", expression.substr(0, length),
                           " inside [] is not supported"));
      }
    } else {
      if (expression.front() == '[' && !in_class) {
        in_class = true;
      } else if (expression.front() == ']' && in_class) {
        in_class = false;
      }
      out += expression.front();
    }
    expression.remove_prefix(std::min(length, expression.size()));
  }
  return out;
}

}  // namespace detail::regex

/// One compiled expression. Const calls are safe from many threads.
class Regex {
 public:
  /// Throws Error when the expression is not valid or longer than 4,096 bytes.
  explicit Regex(std::string_view expression) {
    if (expression.size() > 4096) throw Error("a regular expression is longer than 4,096 bytes");
    const std::string translated = detail::regex::translated(expression);
    int code = 0;
    std::size_t at = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &code, &at, nullptr));
    if (!code_) {
      std::array<PCRE2_UCHAR, 256> why{};
      pcre2_get_error_message(code, why.data(), why.size());
      throw Error(concat("the regular expression '", expression, "': ", reinterpret_cast<const char*>(why.data())));
    }
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // where it cannot, the interpreter runs
  }

  /// Calls use(begin, end) for each match that is not empty, in order. `text` must be UTF-8. Throws Error when the
  /// expression takes too many steps on this text.
  template <class Use>
  void for_each_match(std::string_view text, const Use& use) const {
    const std::unique_ptr<pcre2_match_data, Free> data{pcre2_match_data_create(1, nullptr)};
    const std::unique_ptr<pcre2_match_context, Free> limits{pcre2_match_context_create(nullptr)};
    pcre2_set_match_limit(limits.get(), 100'000'000);
    for (std::size_t from = 0; from < text.size();) {
      const int found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                    PCRE2_NO_UTF_CHECK, data.get(), limits.get());
      if (found == PCRE2_ERROR_NOMATCH) return;
      if (found < 0) throw Error("a regular expression of the tokenizer takes too long on a text");
      const std::size_t* range = pcre2_get_ovector_pointer(data.get());
      if (range[1] > range[0]) {
        use(range[0], range[1]);
        from = range[1];
      } else {  // an empty match: go on behind the next character
        from = range[1] + 1;
        while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xC0U) == 0x80U) ++from;
      }
    }
  }

 private:
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
    void operator()(pcre2_match_context* limits) const { pcre2_match_context_free(limits); }
  };

  std::unique_ptr<pcre2_code, Free> code_;
};

}  // namespace v0
}  // namespace qlora
