// The address guard: which addresses are on the public internet.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/net/address.hpp"

#include <arpa/inet.h>
#include <doctest/doctest.h>

namespace net = qlora::net;

TEST_CASE("the address classes of RFC 6890, edge by edge") {
  const auto v4 = [](const char* text) {
    in_addr a{};
    REQUIRE(::inet_pton(AF_INET, text, &a) == 1);
    return net::is_public_ipv4(ntohl(a.s_addr));
  };
  const auto v6 = [](const char* text) {
    std::array<std::uint8_t, 16> a{};
    REQUIRE(::inet_pton(AF_INET6, text, a.data()) == 1);
    return net::is_public_ipv6(a);
  };
  for (const char* inside :
       {"0.0.0.0",         "0.255.255.255",   "10.0.0.0",        "10.255.255.255", "100.64.0.0",  "100.127.255.255",
        "127.0.0.1",       "169.254.169.254", "172.16.0.0",      "172.31.255.255", "192.0.0.1",   "192.0.2.1",
        "192.168.255.255", "198.18.0.0",      "198.19.255.255",  "198.51.100.7",   "203.0.113.9", "224.0.0.1",
        "239.255.255.255", "240.0.0.1",       "255.255.255.255", "168.63.129.16"})
    CHECK_MESSAGE(!v4(inside), inside);
  for (const char* outside :
       {"1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
        "169.253.255.255", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "198.17.255.255",
        "198.20.0.0", "223.255.255.255", "8.8.8.8"})
    CHECK_MESSAGE(v4(outside), outside);
  for (const char* inside :
       {"::", "::1", "::ffff:8.8.8.8", "::8.8.8.8", "fc00::1", "fdff::1", "fe80::1", "fec0::1", "ff02::1", "2001::1",
        "2001:db8::1", "2002:7f00:1::", "64:ff9b::127.0.0.1", "64:ff9b:1::1", "100::1", "3fff::1"})
    CHECK_MESSAGE(!v6(inside), inside);
  for (const char* outside : {"2606:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "64:ff9b::8.8.8.8"})
    CHECK_MESSAGE(v6(outside), outside);
}
