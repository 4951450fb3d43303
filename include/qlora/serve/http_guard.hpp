// qlora/serve/http_guard.hpp — who may ask: the key of a request, and the names by which a page of another site would
// ask.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/io/sha256.hpp"
#include "qlora/serve/http.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {
namespace detail {

[[nodiscard]] inline std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

/// Whether a request shows the key. Digests are compared, all of their bytes, so that the time tells nothing.
class KeyCheck {
 public:
  explicit KeyCheck(const std::string& key) : digest_(key.empty() ? std::string() : sha256(key)) {}
  [[nodiscard]] bool needed() const { return !digest_.empty(); }
  [[nodiscard]] bool shown(std::string_view authorization) const {
    constexpr std::string_view scheme = "bearer ";
    if (lower(authorization.substr(0, scheme.size())) != scheme) return false;
    const std::string other = sha256(authorization.substr(scheme.size()));
    unsigned difference = 0;
    for (std::size_t i = 0; i < digest_.size(); ++i) {
      difference |= static_cast<unsigned>(static_cast<unsigned char>(digest_[i] ^ other[i]));
    }
    return difference == 0;
  }

 private:
  std::string digest_;
};

/// Whether a request needs no key. `reads`: it is a GET or a HEAD.
[[nodiscard]] inline bool is_open(const HttpOptions& options, bool reads, std::string_view path,
                                  std::string_view accept) {
  const auto is_in = [&](const std::vector<std::string>& all) {
    return std::find(all.begin(), all.end(), path) != all.end();
  };
  return is_in(options.open_paths) || (reads && wants_page(accept) && is_in(options.open_pages));
}

/// The name of a host header or an origin, without scheme and port: "[::1]", "localhost".
[[nodiscard]] inline std::string_view host_name(std::string_view text) {
  if (const std::size_t scheme = text.find("://"); scheme != std::string_view::npos) text.remove_prefix(scheme + 3);
  if (text.starts_with('[')) return text.substr(0, std::min(text.find(']'), text.size() - 1) + 1);
  return text.substr(0, std::min(text.find(':'), text.size()));
}
/// Addresses must be written out: "127.example.org" is a name that anybody may own and let point here.
[[nodiscard]] inline bool names_this_machine(std::string_view host) {
  if (lower(host) == "localhost" || host == "[::1]") return true;
  in_addr address{};
  return ::inet_pton(AF_INET, std::string(host).c_str(), &address) == 1 && (ntohl(address.s_addr) >> 24U) == 127;
}

}  // namespace detail
}  // namespace serve
}  // namespace v0
}  // namespace qlora
