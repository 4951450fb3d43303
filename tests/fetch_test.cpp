// Fetching, against a real server on the loopback interface (tests/web/server.py), and the address guard.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/web/fetch.hpp"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "qlora/web/pages.hpp"

namespace web = qlora::web;

namespace {

/// The server as a child process; it ends when its standard input closes, and is killed and reaped here.
class Server {
 public:
  Server() {
    int in[2];
    int out[2];
    REQUIRE(::pipe2(in, O_CLOEXEC) == 0);
    REQUIRE(::pipe2(out, O_CLOEXEC) == 0);
    child_ = ::fork();
    REQUIRE(child_ >= 0);
    if (child_ == 0) {
      ::dup2(in[0], 0);
      ::dup2(out[1], 1);
      ::execlp("python3", "python3", QLORA_SOURCE_DIR "/tests/web/server.py", static_cast<char*>(nullptr));
      ::_exit(127);
    }
    ::close(in[0]);
    ::close(out[1]);
    input_ = in[1];
    std::string line;
    for (char c = 0; ::read(out[0], &c, 1) == 1 && c != '\n';) line += c;
    ::close(out[0]);
    REQUIRE(!line.empty());
    port = line;
  }
  Server(const Server&) = delete;
  ~Server() {
    ::close(input_);
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
  }
  std::string port;

 private:
  pid_t child_ = -1;
  int input_ = -1;
};

std::string url(const std::string& path) {
  static const Server server;
  return "http://127.0.0.1:" + server.port + path;
}

/// Without limits of time, so that a slow machine meets none.
web::FetchOptions patient() {
  web::FetchOptions options;
  options.connect_timeout = options.total_timeout = std::chrono::hours(1);
  options.low_speed_seconds = 3600;
  options.backoff = std::chrono::milliseconds(10);
  return options;
}

web::FetchOptions own() {
  web::FetchOptions options = patient();
  options.allow_private = true;
  return options;
}

std::string refusal(const std::string& source, const web::FetchOptions& options) {
  try {
    (void)web::fetch_page(source, options);
  } catch (const qlora::Error& e) {
    return e.what();
  }
  return "accepted";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

long peak_kib() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

const std::string plain_body = "<html><head><title>Caf\xC3\xA9</title></head><body><p>Plain page.</p></body></html>";

}  // namespace

TEST_CASE("a page arrives with its provenance") {
  const web::Page page = web::fetch_page(url("/plain"), own());
  CHECK(page.body == plain_body);
  CHECK(page.content_type == "text/html");
  CHECK(page.charset == "UTF-8");
  CHECK(page.url == url("/plain"));
  CHECK(page.fetched_at.size() == 20);
  CHECK(page.fetched_at.back() == 'Z');
  CHECK(has(web::fetch_page(url("/agent"), own()).body, "qlora/"));
}

TEST_CASE("compressed bodies are decoded; broken ones are refused") {
  CHECK(web::fetch_page(url("/gzip"), own()).body == plain_body);
  CHECK(web::fetch_page(url("/deflate"), own()).body == plain_body);
  CHECK(refusal(url("/notgzip"), own()) != "accepted");
}

TEST_CASE("redirects are followed up to ten") {
  CHECK(web::fetch_page(url("/hop?10"), own()).url == url("/hop?0"));
  CHECK(has(refusal(url("/hop?11"), own()), "redirect"));
  CHECK(has(refusal(url("/loop"), own()), "redirect"));
}

TEST_CASE("a redirect never leads to a file or another protocol") {
  for (const char* to : {"file:///etc/passwd", "gopher://127.0.0.1/", "ftp://127.0.0.1/x", "dict://127.0.0.1/"})
    CHECK(has(refusal(url(std::string("/to?") + to), own()), "rotocol"));
  for (const char* direct : {"gopher://example.org/", "ftp://example.org/", "scp://example.org/x"})
    CHECK(has(refusal(direct, own()), "unknown kind"));
}

TEST_CASE("caps hold for decoded bytes, headers and time, and memory stays small") {
  const long before = peak_kib();
  CHECK(has(refusal(url("/bomb"), own()), "larger than the limit"));
  CHECK(has(refusal(url("/endless"), own()), "larger than the limit"));
  CHECK(peak_kib() - before < 64 * 1024);
  CHECK(has(refusal(url("/hugeheader"), own()), "header is larger"));
  web::FetchOptions hasty = own();
  hasty.total_timeout = std::chrono::milliseconds(700);
  CHECK(has(refusal(url("/slow"), hasty), "imed out"));
  web::FetchOptions impatient = own();
  impatient.low_speed_seconds = 2;
  CHECK(has(refusal(url("/slow"), impatient), "too slow"));
}

TEST_CASE("what is worth trying again is tried again, and no more often than said") {
  CHECK(web::fetch_page(url("/flaky"), own()).body == plain_body);
  CHECK(web::fetch_page(url("/count?/flaky"), own()).body == "3");
  CHECK(has(refusal(url("/down"), own()), "status 500"));
  CHECK(web::fetch_page(url("/count?/down"), own()).body == "4");
  CHECK(web::fetch_page(url("/limited"), own()).body == plain_body);
  CHECK(has(refusal(url("/limitedlong"), own()), "status 429 (1 try)"));
  CHECK(has(refusal(url("/missing"), own()), "status 404"));
  CHECK(refusal(url("/hangup"), own()) != "accepted");
  CHECK(has(refusal("http://127.0.0.1:1/", own()), "onnect"));
}

TEST_CASE("a request to stop ends the batch") {
  web::FetchOptions options = own();
  options.stop = [] { return true; };
  const std::vector<std::string> sources{url("/slow")};
  try {
    (void)web::fetch_pages(sources, options);
    FAIL("went on");
  } catch (const qlora::Error& e) {
    CHECK(e.kind() == qlora::ErrorKind::interrupted);
  }
}

TEST_CASE("bytes become UTF-8 whatever the label says") {
  CHECK(web::fetch_page(url("/latin1"), own()).body ==
        "<p>Stra\xC3\x9F"
        "e, caf\xC3\xA9</p>");
  CHECK(web::fetch_page(url("/sjis"), own()).body == "<p>\xE6\x97\xA5\xE6\x9C\xAC</p>");
  CHECK(has(web::fetch_page(url("/metacharset"), own()).body, "\xD0\x9C\xD0\xB8\xD1\x80"));
  using namespace std::string_view_literals;
  CHECK(web::decode_page("\xFF\xFEh\0i\0"sv, "text/html").text == "hi");
  CHECK(web::decode_page("\xFE\xFF\x20\xAC"sv, "").text == "\xE2\x82\xAC");
  CHECK(web::decode_page("\x93q\x94 \x80", "").text == "\xE2\x80\x9Cq\xE2\x80\x9D \xE2\x82\xAC");
  CHECK(web::decode_page("\xEF\xBB\xBFx", "text/html; charset=\"utf-8\"").text == "x");
  CHECK(web::decode_page("a\0b"sv, "").text == "ab");
  CHECK(web::decode_page("x", "text/html; charset=../../etc//IGNORE").encoding == "UTF-8");
  std::string all;
  for (int i = 0; i < 256; ++i) all += std::string(3, static_cast<char>(i));
  for (const char* name :
       {"utf-8", "latin1", "shift_jis", "gb18030", "big5", "euc-kr", "iso-2022-jp", "utf-16be", "koi8-r", "euc-jp",
        "macintosh", "windows-1255", "windows-874", "iso-8859-16", "ibm866", "none-such"}) {
    const web::Decoded d = web::decode_page(all, std::string("text/html; charset=") + name);
    CHECK(!d.text.empty());
    CHECK(qlora::find_invalid_utf8(d.text) == std::string::npos);
  }
}

TEST_CASE("what is not text is refused by name") {
  CHECK(has(refusal(url("/png"), own()), "PNG image"));
  CHECK(has(refusal(url("/pdf"), own()), "application/pdf"));
  CHECK(has(refusal(url("/nul"), own()), "binary data"));
  CHECK(has(refusal(url("/empty"), own()), "empty"));
  CHECK(web::fetch_page(url("/untyped"), own()).content_type == "text/html");
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
  web::FetchOptions guarded = patient();
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
  CHECK(web::fetch_page(url("/hop?2"), guarded).body == plain_body);
  for (const char* host : hosts) {
    const std::string message = refusal(url(std::string("/to?http://") + host + ":9/plain"), guarded);
    INFO(host);
    INFO(message);
    CHECK(has(message, "not on the public internet"));
  }
  CHECK(web::fetch_page(url("/plain"), own()).body == plain_body);
}

TEST_CASE("the address classes of RFC 6890, edge by edge") {
  const auto v4 = [](const char* text) {
    in_addr a{};
    REQUIRE(::inet_pton(AF_INET, text, &a) == 1);
    return web::is_public_ipv4(ntohl(a.s_addr));
  };
  const auto v6 = [](const char* text) {
    std::array<std::uint8_t, 16> a{};
    REQUIRE(::inet_pton(AF_INET6, text, a.data()) == 1);
    return web::is_public_ipv6(a);
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

TEST_CASE("local files and file: addresses") {
  const auto folder = std::filesystem::temp_directory_path() / ("qlora_fetch_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "a page.html") << plain_body;
  std::ofstream(folder / "n.txt") << "note";
  CHECK(web::fetch_page((folder / "a page.html").string()).body == plain_body);
  CHECK(web::fetch_page("file://" + folder.string() + "/a%20page.html").content_type == "text/html");
  CHECK(web::fetch_page((folder / "n.txt").string()).content_type == "text/plain");
  CHECK(has(refusal("file://example.org/etc/passwd", {}), "another host"));
  CHECK(has(refusal((folder / "none.html").string(), {}), "no such file"));
  CHECK(has(refusal(folder.string(), {}), "no such file"));
  std::filesystem::remove_all(folder);
}

TEST_CASE("one bad page never fails the batch") {
  const std::vector<std::string> sources{url("/plain"), url("/missing"), "ftp://x.org/",
                                         url("/bomb"),  "http://",       url("/gzip")};
  std::size_t seen = 0;
  const auto results =
      web::fetch_pages(sources, own(), [&](const web::FetchResult& r) { CHECK(r.source == sources[seen++]); });
  REQUIRE(results.size() == 6);
  CHECK(seen == 6);
  for (const std::size_t good : {0U, 5U}) CHECK(results[good].page.has_value());
  for (const std::size_t bad : {1U, 2U, 3U, 4U}) {
    CHECK(!results[bad].page.has_value());
    CHECK(!results[bad].error.empty());
  }
}

TEST_CASE("sources of every kind become documents; the bad ones become reasons") {
  const auto folder = std::filesystem::temp_directory_path() / ("qlora_load_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "n.md") << "# Note";
  std::ofstream(folder / "d.jsonl") << "{\"text\":\"one\"}\n{\"text\":\"two\"}\n";
  std::ofstream(folder / "bad.jsonl") << "{\n";
  std::vector<std::string> sources{url("/plain"), url("/missing"), (folder / "n.md").string(),
                                   (folder / "d.jsonl").string(), (folder / "bad.jsonl").string()};
  for (const char* n : {"1", "2", "3"}) {
    std::ofstream(folder / (std::string(n) + ".html")) << "<p>Call us today.</p><p>Fact " << n << ".</p>";
    sources.push_back((folder / (std::string(n) + ".html")).string());
  }
  web::LoadOptions options;
  options.fetch = own();
  std::vector<std::string> told;
  const web::LoadResult loaded =
      web::load_documents(sources, options, [&](const std::string& s, const std::string&) { told.push_back(s); });
  CHECK(told == sources);
  REQUIRE(loaded.documents.size() == 7);
  CHECK(loaded.documents[0].text == "Plain page.");
  CHECK(loaded.documents[0].title == "Caf\xC3\xA9");
  CHECK(loaded.documents[0].source == url("/plain"));
  CHECK(loaded.documents[0].sha256 == qlora::sha256("Plain page."));
  CHECK(loaded.documents[1].text == "# Note");
  CHECK(loaded.documents[3].text == "two");
  CHECK(loaded.documents[6].text == "Fact 3.");
  CHECK(loaded.shared_lines == 3);
  REQUIRE(loaded.failures.size() == 2);
  CHECK(has(loaded.failures[0].error, "404"));
  CHECK(has(loaded.failures[1].error, "bad.jsonl:1"));
  options.form = web::TextForm::article;
  const web::LoadResult plain = web::load_documents(std::span(sources).first(1), options);
  CHECK(plain.documents.at(0).text == "Caf\xC3\xA9Plain page.");
  std::filesystem::remove_all(folder);
}
