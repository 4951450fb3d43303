// qlora/text/byte_level.hpp — GPT-2's names of bytes: each byte is written as one printable character in a vocabulary.
// Printable bytes of Latin-1 stand for themselves, the 68 others for U+0100 and on, in their order.
// Source: bytes_to_unicode in OpenAI's gpt-2/src/encoder.py.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {
namespace byte_level {

/// Whether the byte is written as the character of the same number.
[[nodiscard]] constexpr bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

/// By code point: the byte that it stands for, or -1. The last code point in use is U+0143.
inline constexpr std::array<int, 0x144> byte_of_code_point = [] {
  std::array<int, 0x144> table{};
  table.fill(-1);
  std::size_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) table[stands_for_itself(byte) ? byte : next++] = static_cast<int>(byte);
  return table;
}();

/// The bytes that a piece of a byte-level vocabulary stands for; nothing where a character stands for no byte.
[[nodiscard]] inline std::optional<std::string> bytes_of(std::string_view piece) {
  std::string bytes;
  while (!piece.empty()) {
    const std::size_t length = utf8_length(piece);
    if (length == 0 || length > 2) return std::nullopt;
    const auto first = static_cast<unsigned char>(piece[0]);
    const std::size_t point =
        length == 1 ? first : (first & 0x1FU) << 6U | (static_cast<unsigned char>(piece[1]) & 0x3FU);
    if (point >= byte_of_code_point.size() || byte_of_code_point[point] < 0) return std::nullopt;
    bytes += static_cast<char>(byte_of_code_point[point]);
    piece.remove_prefix(length);
  }
  return bytes;
}

}  // namespace byte_level
}  // namespace v0
}  // namespace qlora
