// qlora/text/regex_classes.hpp — a regular expression of Oniguruma's as one that PCRE2 understands in the same way.
// What may not change: matches are those of Oniguruma 6.9.10 (Unicode 16), by which the package `tokenizers` splits
// words. Classes of characters are written out where PCRE2 has others: it may be older (10.42 has Unicode 14), \s has
// U+180E too, \w all numbers. What means something else in PCRE2 and is not translated is refused; but with (?i)
// Oniguruma takes ss for ß, PCRE2 does not.
// Reference: tests/text/regex_test.cpp, what the package finds among all characters.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {
namespace detail::regex {

/// A general category of characters, and those that Unicode 16 has in it and Unicode 14 has not, for inside [].
struct Category {
  std::string_view name;
  std::string_view added;
};
/// Source: the Unicode Character Database, by Python's unicodedata (14.0) and unicodedata2 (16.0). Missing are Mn,
/// which a character has left, and C with Cn, of which each version has others.
inline constexpr std::array categories{
    Category{"Lu", "\\x{1c89}\\x{a7cb}-\\x{a7cc}\\x{a7da}\\x{a7dc}\\x{10d50}-\\x{10d65}"},
    Category{"Ll", "\\x{1c8a}\\x{a7cd}\\x{a7db}\\x{10d70}-\\x{10d85}\\x{1df25}-\\x{1df2a}"},
    Category{"Lt", ""},
    Category{"Lm", "\\x{10d4e}\\x{10d6f}\\x{16d40}-\\x{16d42}\\x{16d6b}-\\x{16d6c}\\x{1e030}-\\x{1e06d}\\x{1e4eb}"},
    Category{"Lo",
             "\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d4d}\\x{10d4f}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}"
             "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}"
             "\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}"
             "\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}\\x{16d43}-\\x{16d6a}\\x{18cff}"
             "\\x{1b132}\\x{1b155}\\x{1e4d0}-\\x{1e4ea}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}"
             "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"},
    Category{"Mc",
             "\\x{cf3}\\x{113b8}-\\x{113ba}\\x{113c2}\\x{113c5}\\x{113c7}-\\x{113ca}\\x{113cc}-\\x{113cd}\\x{113cf}"
             "\\x{1171e}\\x{11f03}\\x{11f34}-\\x{11f35}\\x{11f3e}-\\x{11f3f}\\x{11f41}\\x{1612a}-\\x{1612c}"},
    Category{"Me", ""},
    Category{"Nd",
             "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"
             "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1e4f0}-\\x{1e4f9}"
             "\\x{1e5f1}-\\x{1e5fa}"},
    Category{"Nl", ""},
    Category{"No", "\\x{1d2c0}-\\x{1d2d3}"},
    Category{"Pc", ""},
    Category{"Pd", "\\x{10d6e}"},
    Category{"Ps", ""},
    Category{"Pe", ""},
    Category{"Pi", ""},
    Category{"Pf", ""},
    Category{"Po",
             "\\x{1b4e}-\\x{1b4f}\\x{1b7f}\\x{113d4}-\\x{113d5}\\x{113d7}-\\x{113d8}\\x{11b00}-\\x{11b09}\\x{11be1}"
             "\\x{11f43}-\\x{11f4f}\\x{16d6d}-\\x{16d6f}\\x{1e5ff}"},
    Category{"Sm", "\\x{10d8e}-\\x{10d8f}"},
    Category{"Sc", ""},
    Category{"Sk", ""},
    Category{"So",
             "\\x{2427}-\\x{2429}\\x{2ffc}-\\x{2fff}\\x{31e4}-\\x{31e5}\\x{31ef}\\x{1cc00}-\\x{1ccef}"
             "\\x{1cd00}-\\x{1ceb3}\\x{1f6dc}\\x{1f774}-\\x{1f776}\\x{1f77b}-\\x{1f77f}\\x{1f7d9}"
             "\\x{1f8b2}-\\x{1f8bb}\\x{1f8c0}-\\x{1f8c1}\\x{1fa75}-\\x{1fa77}\\x{1fa87}-\\x{1fa89}\\x{1fa8f}"
             "\\x{1faad}-\\x{1faaf}\\x{1fabb}-\\x{1fabf}\\x{1fac6}\\x{1face}-\\x{1facf}\\x{1fada}-\\x{1fadc}"
             "\\x{1fadf}\\x{1fae8}-\\x{1fae9}\\x{1faf7}-\\x{1faf8}\\x{1fbcb}-\\x{1fbef}"},
    Category{"Zs", ""},
    Category{"Zl", ""},
    Category{"Zp", ""},
    Category{"Cc", ""},
    Category{"Cf", "\\x{13439}-\\x{1343f}"},
};
/// The category M, with what Mn has got since Unicode 14.
inline constexpr std::string_view marks =
    "\\p{M}\\x{897}\\x{cf3}\\x{ece}\\x{10d69}-\\x{10d6d}\\x{10efc}-\\x{10eff}\\x{11241}\\x{113b8}-\\x{113c0}"
    "\\x{113c2}\\x{113c5}\\x{113c7}-\\x{113ca}\\x{113cc}-\\x{113d0}\\x{113d2}\\x{113e1}-\\x{113e2}"
    "\\x{11f00}-\\x{11f01}\\x{11f03}\\x{11f34}-\\x{11f3a}\\x{11f3e}-\\x{11f42}\\x{11f5a}\\x{13440}"
    "\\x{13447}-\\x{13455}\\x{1611e}-\\x{1612f}\\x{1e08f}\\x{1e4ec}-\\x{1e4ef}\\x{1e5ee}-\\x{1e5ef}";
/// The script alone, without what other scripts share with it.
inline constexpr std::string_view han = "\\p{sc:Han}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}";
inline constexpr std::string_view white_space =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
/// What lies between white space.
inline constexpr std::string_view no_white_space =
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{d7ff}\\x{e000}-\\x{10ffff}";
/// Numbers that Oniguruma's \w has, though they are no digits.
inline constexpr std::string_view latin1_numbers = "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";

/// What stands inside [] for a property: a general category, all that begin with a letter, or Han; empty for others.
[[nodiscard]] inline std::string property_members(std::string_view name) {
  if (name == "M") return std::string(marks);
  if (name == "Han") return std::string(han);
  std::string out;
  if (name == "C") return out;
  for (const Category& category : categories) {
    if (category.name == name || category.name.substr(0, 1) == name) {
      out += concat("\\p{", category.name, "}", category.added);
    }
  }
  return out;
}

/// An escape sequence: what stands for it inside [], empty where it is no class.
struct Escape {
  std::string members;
  bool complement = false;
  std::size_t length = 2;
};

[[noreturn]] inline void refuse(std::string_view expression, std::string_view what) {
  throw Error(concat("the regular expression '", expression, "': ", what, " is not supported"));
}

/// Reads the escape sequence at the front of `text`, which is the rest of the expression.
[[nodiscard]] inline Escape escape_of(std::string_view text, std::string_view expression) {
  constexpr std::string_view same = "nrtfaexAz";  // letters that mean the same in both
  const char letter = text.size() > 1 ? text[1] : '\0';
  Escape out;
  out.complement = letter >= 'A' && letter <= 'Z';
  const char lower = out.complement ? static_cast<char>(letter | 0x20) : letter;
  std::string_view sequence = text.substr(0, 2);
  if (lower == 's') {
    out.members = white_space;
  } else if (lower == 'd') {
    out.members = property_members("Nd");
  } else if (lower == 'w') {
    out.members =
        concat("\\p{Alphabetic}\\p{Pc}", property_members("L"), marks, property_members("Nd"), latin1_numbers);
  } else if (lower == 'p') {
    out.length = std::min(text.find('}'), text.size() - 1) + 1;
    sequence = text.substr(0, out.length);
    if (sequence.size() > 3 && sequence[2] == '{') {
      out.members = property_members(sequence.substr(3, sequence.size() - 4));
    }
    if (out.members.empty()) refuse(expression, sequence);
  } else if (lower >= 'a' && lower <= 'z' && same.find(letter) == std::string_view::npos) {
    refuse(expression, sequence);
  }
  return out;
}

/// Whether a group is of a kind that both know.
[[nodiscard]] inline bool is_group(std::string_view text) {
  constexpr std::array kinds{"(?:", "(?i:", "(?i)", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
  return std::any_of(kinds.begin(), kinds.end(), [&](std::string_view kind) { return text.starts_with(kind); });
}

/// The expression for PCRE2. Throws Error for what means something else there.
[[nodiscard]] inline std::string translated(std::string_view expression) {
  std::string out;
  bool in_class = false;
  for (std::string_view rest = expression; !rest.empty();) {
    std::size_t length = 1;
    if (rest.front() == '\\') {
      const Escape escape = escape_of(rest, expression);
      length = std::min(escape.length, rest.size());
      if (escape.members.empty()) {
        out += rest.substr(0, length);
      } else if (!in_class) {
        out += concat(escape.complement ? "[^" : "[", escape.members, "]");
      } else if (!escape.complement) {
        out += escape.members;
      } else if (escape.members == white_space) {
        out += no_white_space;
      } else {
        refuse(expression, concat(rest.substr(0, length), " inside []"));
      }
    } else {
      if (in_class && rest.front() == '[') refuse(expression, "[ inside []");
      if (in_class && rest.starts_with("&&")) refuse(expression, "&& inside []");
      if (!in_class && (rest.starts_with("[]") || rest.starts_with("[^]"))) refuse(expression, "an empty []");
      if (!in_class && rest.starts_with("{,")) refuse(expression, "{, without a least number");
      if (!in_class && rest.starts_with("(?") && !is_group(rest)) refuse(expression, rest.substr(0, 4));
      if (rest.front() == '[') in_class = true;
      if (rest.front() == ']') in_class = false;
      out += rest.front();
    }
    rest.remove_prefix(length);
  }
  return out;
}

}  // namespace detail::regex
}  // namespace v0
}  // namespace qlora
