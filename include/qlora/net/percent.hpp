// qlora/net/percent.hpp — text inside addresses, percent-encoded as in RFC 3986.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace qlora {
inline namespace v0 {
namespace net {

/// Percent-encodes all but letters, digits, "-._~" and what is in `kept`; digits above 9 are capitals.
[[nodiscard]] inline std::string percent_encoded(std::string_view text, std::string_view kept) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       std::string_view("-._~").find(c) != std::string_view::npos;
    if (plain || kept.find(c) != std::string_view::npos)
      out += c;
    else
      out.append({'%', digits[byte >> 4U], digits[byte & 15U]});
  }
  return out;
}

/// The text behind a percent-encoded one. "%" without two hexadecimal digits behind it, and "+", stay as they are.
[[nodiscard]] inline std::string percent_decoded(std::string_view text) {
  const auto value = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool coded = text[i] == '%' && text.size() - i > 2 && value(text[i + 1]) >= 0 && value(text[i + 2]) >= 0;
    out += coded ? static_cast<char>(value(text[i + 1]) * 16 + value(text[i + 2])) : text[i];
    if (coded) i += 2;
  }
  return out;
}

}  // namespace net
}  // namespace v0
}  // namespace qlora
