// qlora/text/white_space.hpp — white space as Python's str.strip() sees it, by which chat forms are defined.
#pragma once

#include <cstddef>
#include <string_view>

namespace qlora {
inline namespace v0 {
namespace detail {

/// Length of the white space character at the front of UTF-8 text, 0 when there is none. The set is that of Python's
/// str.strip(), which Meta's code uses.
[[nodiscard]] inline std::size_t space_length(std::string_view text) {
  if (text.empty()) return 0;
  const auto first = static_cast<unsigned char>(text[0]);
  if ((first >= 0x09 && first <= 0x0D) || (first >= 0x1C && first <= 0x20)) return 1;
  if (text.starts_with("\xC2\x85") || text.starts_with("\xC2\xA0")) return 2;
  constexpr std::string_view quads = "\xE2\x80";  // U+2000..200A, 2028, 2029, 202F
  if (text.size() >= 3 && text.starts_with(quads)) {
    const auto last = static_cast<unsigned char>(text[2]);
    return (last >= 0x80 && last <= 0x8A) || last == 0xA8 || last == 0xA9 || last == 0xAF ? 3 : 0;
  }
  for (const std::string_view space : {"\xE1\x9A\x80", "\xE2\x81\x9F", "\xE3\x80\x80"})  // U+1680, 205F, 3000
    if (text.starts_with(space)) return 3;
  return 0;
}

/// Without white space at the front.
[[nodiscard]] inline std::string_view left_stripped(std::string_view text) {
  while (const std::size_t length = space_length(text)) text.remove_prefix(length);
  return text;
}

/// Without white space at the end.
[[nodiscard]] inline std::string_view right_stripped(std::string_view text) {
  for (bool again = true; again;) {
    again = false;
    for (std::size_t length = 1; length <= 3 && length <= text.size() && !again; ++length)
      if (space_length(text.substr(text.size() - length)) == length) {
        text.remove_suffix(length);
        again = true;
      }
  }
  return text;
}

/// Without white space at both ends.
[[nodiscard]] inline std::string_view stripped(std::string_view text) { return right_stripped(left_stripped(text)); }

}  // namespace detail
}  // namespace v0
}  // namespace qlora
