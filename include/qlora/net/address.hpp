// qlora/net/address.hpp — which network addresses are on the public internet.
// A guard against addresses and redirects that point into the machine or its network (server-side request forgery).
// It judges the address a socket is about to connect to, so spellings, redirects and DNS answers cannot go round it.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace qlora {
inline namespace v0 {
namespace net {

/// True for globally reachable IPv4 unicast: nothing of the IANA special-purpose registry (RFC 6890), no multicast
/// (224/4), no 240/4, and not 168.63.129.16, the one cloud metadata host with a public number.
[[nodiscard]] constexpr bool is_public_ipv4(std::uint32_t address) noexcept {
  struct Block {
    std::uint32_t base;
    unsigned bits;
  };
  constexpr std::array<Block, 16> special{{{0x00000000, 8},    // this network
                                           {0x0A000000, 8},    // private
                                           {0x64400000, 10},   // carrier-grade NAT
                                           {0x7F000000, 8},    // loopback
                                           {0xA83F8110, 32},   // Azure metadata
                                           {0xA9FE0000, 16},   // link-local, cloud metadata
                                           {0xAC100000, 12},   // private
                                           {0xC0000000, 24},   // IETF protocol assignments
                                           {0xC0000200, 24},   // documentation
                                           {0xC0586300, 24},   // 6to4 relays
                                           {0xC0A80000, 16},   // private
                                           {0xC6120000, 15},   // benchmarking
                                           {0xC6336400, 24},   // documentation
                                           {0xCB007100, 24},   // documentation
                                           {0xE0000000, 4},    // multicast
                                           {0xF0000000, 4}}};  // reserved, broadcast
  for (const Block& block : special)
    if (((address ^ block.base) >> (32 - block.bits)) == 0) return false;
  return true;
}

/// True for global unicast IPv6 (2000::/3 without its special blocks), and for NAT64 (64:ff9b::/96) of public IPv4.
/// Mapped, compatible and 6to4 forms are refused whatever they hold: a public host has a plain address.
[[nodiscard]] constexpr bool is_public_ipv6(const std::array<std::uint8_t, 16>& a) noexcept {
  const auto word = [&](std::size_t i) { return static_cast<std::uint32_t>(a[2 * i] << 8 | a[2 * i + 1]); };
  if (word(0) == 0x64 && word(1) == 0xFF9B && (word(2) | word(3) | word(4) | word(5)) == 0)
    return is_public_ipv4(word(6) << 16 | word(7));
  if ((word(0) & 0xE000U) != 0x2000) return false;
  if (word(0) == 0x2001 && word(1) < 0x200) return false;   // 2001::/23: Teredo, ORCHID and others
  if (word(0) == 0x2001 && word(1) == 0xDB8) return false;  // documentation
  if (word(0) == 0x2002) return false;                      // 6to4
  return !(word(0) == 0x3FFF && word(1) < 0x1000);          // documentation
}

/// The same for an address as connect(2) gets it; families other than IPv4 and IPv6 are never public.
[[nodiscard]] inline bool is_public_address(const sockaddr* address, std::size_t length) noexcept {
  if (address->sa_family == AF_INET && length >= sizeof(sockaddr_in)) {
    sockaddr_in in{};
    std::memcpy(&in, address, sizeof in);
    return is_public_ipv4(ntohl(in.sin_addr.s_addr));
  }
  if (address->sa_family == AF_INET6 && length >= sizeof(sockaddr_in6)) {
    sockaddr_in6 in{};
    std::memcpy(&in, address, sizeof in);
    std::array<std::uint8_t, 16> bytes{};
    std::memcpy(bytes.data(), &in.sin6_addr, bytes.size());
    return is_public_ipv6(bytes);
  }
  return false;
}

}  // namespace net
}  // namespace v0
}  // namespace qlora
