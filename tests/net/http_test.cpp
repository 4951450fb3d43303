// The HTTP client against a real server on the loopback interface (tests/net/server.py).
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/net/http.hpp"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <sys/resource.h>

#include "support/web_server.hpp"

namespace net = qlora::net;

namespace {

std::string refusal(const std::string& address, const net::HttpOptions& options) {
  try {
    (void)net::http_get(address, options);
  } catch (const qlora::Error& e) {
    return e.what();
  }
  return "accepted";
}

long peak_kib() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

}  // namespace

TEST_CASE("an answer has its address, its type and its body") {
  const net::HttpResponse response = net::http_get(url("/plain"), own());
  CHECK(response.body == plain_body);
  CHECK(response.content_type == "text/html; charset=utf-8");
  CHECK(response.url == url("/plain"));
  CHECK(has(net::http_get(url("/agent"), own()).body, "qlora/"));
}

TEST_CASE("compressed bodies are decoded; broken ones are refused") {
  CHECK(net::http_get(url("/gzip"), own()).body == plain_body);
  CHECK(net::http_get(url("/deflate"), own()).body == plain_body);
  CHECK(refusal(url("/notgzip"), own()) != "accepted");
}

TEST_CASE("redirects are followed up to ten") {
  CHECK(net::http_get(url("/hop?10"), own()).url == url("/hop?0"));
  CHECK(has(refusal(url("/hop?11"), own()), "redirect"));
  CHECK(has(refusal(url("/loop"), own()), "redirect"));
}

TEST_CASE("a redirect never leads to a file or another protocol") {
  for (const char* to : {"file:///etc/passwd", "gopher://127.0.0.1/", "ftp://127.0.0.1/x", "dict://127.0.0.1/"})
    CHECK(has(refusal(url(std::string("/to?") + to), own()), "rotocol"));
}

TEST_CASE("caps hold for decoded bytes, headers and time, and memory stays small") {
  const long before = peak_kib();
  CHECK(has(refusal(url("/bomb"), own()), "larger than the limit"));
  CHECK(has(refusal(url("/endless"), own()), "larger than the limit"));
  CHECK(peak_kib() - before < 64 * 1024);
  CHECK(has(refusal(url("/hugeheader"), own()), "header is larger"));
  CHECK(has(refusal(url("/longline"), own()), "line of the response header"));
  CHECK(has(refusal(url("/impossible"), own()), "Content-Length is no number"));
  for (const char* length : {"1e3", "85x", "-5", "0x55", "5,7", "99999999999999999999", ""}) {
    std::string seen;
    CHECK_MESSAGE(net::detail::has_impossible_length(std::string("content-length: ") + length + "\r\n", seen), length);
  }
  std::string seen;
  CHECK(!net::detail::has_impossible_length("Content-Length:\t085\r\n", seen));
  CHECK(!net::detail::has_impossible_length("Content-Length: 85, 85\r\n", seen));
  CHECK(!net::detail::has_impossible_length("X-Content-Length: none\r\n", seen));
  CHECK(net::detail::has_impossible_length("Content-Length: 84\r\n", seen));
  CHECK(!net::detail::has_impossible_length("HTTP/1.1 200 OK\r\n", seen));  // behind a redirect
  CHECK(!net::detail::has_impossible_length("Content-Length: 0\r\n", seen));
  net::HttpOptions hasty = own();
  hasty.total_timeout = std::chrono::milliseconds(700);
  CHECK(has(refusal(url("/slow"), hasty), "imed out"));
  net::HttpOptions impatient = own();
  impatient.low_speed_seconds = 2;
  CHECK(has(refusal(url("/slow"), impatient), "too slow"));
}

TEST_CASE("what is worth trying again is tried again, and no more often than said") {
  CHECK(net::http_get(url("/flaky"), own()).body == plain_body);
  CHECK(net::http_get(url("/count?/flaky"), own()).body == "3");
  CHECK(has(refusal(url("/down"), own()), "status 500"));
  CHECK(net::http_get(url("/count?/down"), own()).body == "4");
  CHECK(net::http_get(url("/limited"), own()).body == plain_body);
  CHECK(has(refusal(url("/limitedlong"), own()), "status 429 (1 try)"));
  CHECK(has(refusal(url("/missing"), own()), "status 404"));
  CHECK(has(refusal(url("/part"), own()), "status 206"));
  CHECK(refusal(url("/hangup"), own()) != "accepted");
  CHECK(has(refusal("http://127.0.0.1:1/", own()), "onnect"));
}

TEST_CASE("a body that ends too early is refused, not taken for the page") {
  CHECK(refusal(url("/truncated"), own()) != "accepted");
}

TEST_CASE("private addresses: 24 spellings, asked for or redirected to, are all refused") {
  const std::string port = url("").substr(url("").rfind(':'));
  const char* hosts[] = {
      "127.0.0.1",         "127.1",           "127.0.1",         "2130706433",  "0x7f000001",         "0x7f.1",
      "0177.0.0.1",        "017700000001",    "localhost",       "LOCALHOST",   "0x7f.0.0.1",         "0",
      "0.0.0.0",           "127.255.255.254", "[::1]",           "[::]",        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
      "[0:0:0:0:0:0:0:1]", "10.0.0.1",        "169.254.169.254", "192.168.0.1", "100.64.0.1",         "[fe80::1]"};
  net::HttpOptions guarded = patient();
  guarded.max_retries = 0;
  for (const char* host : hosts) {
    const std::string target = std::string("http://") + host + port + "/plain";
    INFO(target);
    const std::string message = refusal(target, guarded);
    CHECK(has(message, "not on the public internet"));
  }
  // By redirect: only this server's own socket is let through; the hop to port 9 meets the guard.
  guarded.also_allow = [&](const sockaddr* address, std::size_t) {
    return address->sa_family == AF_INET &&
           ntohs(reinterpret_cast<const sockaddr_in*>(address)->sin_port) == std::stoi(port.substr(1));
  };
  CHECK(net::http_get(url("/hop?2"), guarded).body == plain_body);
  for (const char* host : hosts) {
    const std::string message = refusal(url(std::string("/to?http://") + host + ":9/plain"), guarded);
    INFO(host);
    INFO(message);
    CHECK(has(message, "not on the public internet"));
  }
  CHECK(net::http_get(url("/plain"), own()).body == plain_body);
}

TEST_CASE("addresses are shown without their credentials") {
  using qlora::net::shown_address;
  CHECK(shown_address("https://ann:pw@example.org/a?x=1&token=abc#top") == "https://example.org/a?x=1&token=...#top");
  CHECK(shown_address("http://a@b@example.org?API_KEY=1") == "http://example.org?API_KEY=...");
  CHECK(shown_address("https://example.org/?author=3&key=4&monkey=5") ==
        "https://example.org/?author=3&key=...&monkey=5");
  CHECK(shown_address("https://bucket.example/x?X-Amz-Credential=a%2Fb&X-Amz-Signature=ff&Expires=9") ==
        "https://bucket.example/x?X-Amz-Credential=...&X-Amz-Signature=...&Expires=9");
  CHECK(shown_address("notes/a@b?token=1.txt") == "notes/a@b?token=1.txt");
  // Addresses that are refused are named in the error, too.
  CHECK(shown_address("ftp://ann:pw@example.org/a") == "ftp://example.org/a");
  CHECK(shown_address("s3+x://ann:pw@example.org/?sig=1") == "s3+x://example.org/?sig=...");
  CHECK(shown_address("http:/\\ann:pw@example.org/a") == "http:/\\example.org/a");
  CHECK(shown_address("HTTPS:ann:pw@example.org") == "HTTPS:example.org");
  CHECK(shown_address("http:///ann:pw@example.org") == "http:///example.org");
  CHECK(shown_address("file:///tmp/a@b") == "file:///tmp/a@b");
  CHECK(shown_address("C:a@b") == "C:a@b");
  CHECK(shown_address("https://example.org/@name/post?page=2") == "https://example.org/@name/post?page=2");
  const std::string port = url("/missing").substr(17);  // behind "http://127.0.0.1:"
  const std::string message = refusal("http://ann:pw@127.0.0.1:" + port + "?token=abc", own());
  CHECK(has(message, "404"));
  CHECK(!has(message, "pw"));
  CHECK(!has(message, "abc"));
}

TEST_CASE("spellings of one address are one") {
  using qlora::net::same_address;
  CHECK(same_address("HTTP://Example.org:80#top") == same_address("http://example.org/"));
  CHECK(same_address("https://example.org:443/a?b#c") == "https://example.org/a?b");
  CHECK(same_address("https://example.org/A") != same_address("https://example.org/a"));
}
