// qlora/text/utf8.hpp — which bytes are well-formed UTF-8 (Unicode table 3-7): no overlong forms, no surrogates,
// nothing cut short.
#pragma once

#include <cstddef>
#include <string_view>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {

/// Bytes of the character at the front of `text`; 0 where there is none.
[[nodiscard]] inline std::size_t utf8_length(std::string_view text) noexcept {
  if (text.empty()) return 0;
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = at(0);
  if (lead < 0x80) return 1;
  const std::size_t n = lead >= 0xC2 && lead <= 0xDF   ? 2U
                        : (lead & 0xF0U) == 0xE0       ? 3U
                        : lead >= 0xF0 && lead <= 0xF4 ? 4U
                                                       : 0U;
  if (n == 0 || text.size() < n) return 0;
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (at(1) < low || at(1) > high) return 0;
  for (std::size_t i = 2; i < n; ++i)
    if ((at(i) & 0xC0U) != 0x80) return 0;
  return n;
}

/// Offset of the first byte that is not part of well-formed UTF-8; npos if all of it is.
[[nodiscard]] inline std::size_t find_invalid_utf8(std::string_view text) noexcept {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t n = utf8_length(text.substr(i));
    if (n == 0) return i;
    i += n;
  }
  return std::string_view::npos;
}

/// Whether the whole text is well-formed UTF-8.
[[nodiscard]] inline bool is_utf8(std::string_view text) noexcept {
  return find_invalid_utf8(text) == std::string_view::npos;
}

/// Throws Error (input) that names the first byte of `text` that is not UTF-8, counted from 1. `where`: what the text
/// is, or its file and line.
inline void check_utf8(std::string_view text, std::string_view where) {
  const std::size_t bad = find_invalid_utf8(text);
  if (bad == std::string_view::npos) return;
  throw Error(
      concat(where, ": byte ", bad + 1, " is not valid UTF-8; convert the text (iconv -t utf-8) and try again"));
}

}  // namespace v0
}  // namespace qlora
