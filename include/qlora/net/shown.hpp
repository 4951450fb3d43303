// qlora/net/shown.hpp — addresses as they may be stored and printed: without passwords, and one form for one page.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>

namespace qlora {
inline namespace v0 {
namespace net {
namespace detail {

[[nodiscard]] inline std::string low(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  return out;
}

/// Parts of names of query parameters whose values are credentials.
inline constexpr std::array<std::string_view, 15> secret_words = {
    "token",    "secret",  "passw",      "pwd",       "apikey",     "api_key",   "api-key", "oauth",
    "authoriz", "session", "credential", "signature", "access_key", "accesskey", "jwt"};
inline constexpr std::array<std::string_view, 6> secret_names = {"key", "sig", "sid", "pass", "auth", "hmac"};

[[nodiscard]] inline bool is_secret_name(std::string_view raw) {
  const std::string name = low(raw);
  return std::find(secret_names.begin(), secret_names.end(), name) != secret_names.end() ||
         std::any_of(secret_words.begin(), secret_words.end(),
                     [&](std::string_view word) { return name.find(word) != std::string::npos; });
}

}  // namespace detail

namespace detail {

/// Bytes of "https://" or another scheme at the front of an address. Behind "http:" and "https:" slashes may be missing
/// or be backslashes, as browsers allow. 0: it is a path.
[[nodiscard]] inline std::size_t scheme_length(std::string_view address) {
  std::size_t end = 0;
  const auto is_of_scheme = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+' || c == '-' || c == '.';
  };
  const std::string start = low(address.substr(0, 32));
  while (end < start.size() && is_of_scheme(start[end])) ++end;
  if (end == 0 || end == start.size() || start[end] != ':') return 0;
  const std::string_view kind = std::string_view(start).substr(0, end++);
  if (kind == "file" || (kind != "http" && kind != "https" && address.substr(end, 2) != "//")) return 0;
  return std::min(address.find_first_not_of("/\\", end), address.size());
}

}  // namespace detail

/// An address without user and password, and with "..." for the values of query parameters that are credentials by
/// their names. A path, and a file: address, are returned as they are.
[[nodiscard]] inline std::string shown_address(std::string_view address) {
  const std::size_t scheme = detail::scheme_length(address);
  if (scheme == 0) return std::string(address);
  std::string out(address.substr(0, scheme));
  address.remove_prefix(scheme);
  const std::size_t host_end = std::min(address.find_first_of("/?#\\"), address.size());
  const std::size_t at = address.substr(0, host_end).rfind('@');
  out +=
      address.substr(at == std::string_view::npos ? 0 : at + 1, host_end - (at == std::string_view::npos ? 0 : at + 1));
  address.remove_prefix(host_end);
  // A fragment may hold credentials in the same form.
  const std::size_t query = std::min(address.find_first_of("?#"), address.size());
  out += address.substr(0, query);
  address.remove_prefix(query);
  while (!address.empty()) {
    const std::size_t end = std::min(address.find_first_of("&;?#", 1), address.size());
    const std::string_view part = address.substr(0, end);  // with the sign before it
    const std::size_t equals = part.find('=');
    if (equals != std::string_view::npos && detail::is_secret_name(part.substr(1, equals - 1)))
      out.append(part.substr(0, equals + 1)) += "...";
    else
      out += part;
    address.remove_prefix(end);
  }
  return out;
}

/// One form for the spellings of one address: scheme and host in lower case, no default port, no fragment, "/" for an
/// empty path.
[[nodiscard]] inline std::string same_address(std::string_view address) {
  const std::size_t scheme = address.find("://");
  if (scheme == std::string_view::npos) return std::string(address);
  address = address.substr(0, address.find('#'));
  const std::size_t start = scheme + 3;
  const std::size_t end = std::min(address.find_first_of("/?", start), address.size());
  std::string out = detail::low(address.substr(0, end));
  for (const auto& [kind, port] : {std::array<std::string_view, 2>{"http://", ":80"}, {"https://", ":443"}})
    if (out.starts_with(kind) && out.ends_with(port)) out.resize(out.size() - port.size());
  if (end == address.size() || address[end] == '?') out += '/';
  return out.append(address.substr(end));
}

}  // namespace net
}  // namespace v0
}  // namespace qlora
