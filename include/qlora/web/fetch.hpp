// qlora/web/fetch.hpp — pages from http, https and file: addresses and from local files, as UTF-8 with provenance.
// What may not change: every cap is counted here, on decoded bytes (libcurl's own size limit does not bound what a
// compressed body grows to); the address guard sees every socket of every redirect; one bad page is one bad result.
#pragma once

#include <curl/curl.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/web/address.hpp"
#include "qlora/web/charset.hpp"

namespace qlora {
inline namespace v0 {
namespace web {

/// Limits of a fetch. The total covers redirects, retries and waits: no URL takes longer.
struct FetchOptions {
  bool allow_private = false;  ///< reach private, loopback and link-local addresses, and use a proxy if one is set
  std::function<bool(const sockaddr*, std::size_t)> also_allow;  ///< addresses let through although not public
  std::size_t max_bytes = std::size_t{8} << 20;                  ///< of a decoded body
  std::size_t max_header_bytes = std::size_t{64} << 10;          ///< of one response
  std::chrono::milliseconds connect_timeout{10'000};
  std::chrono::milliseconds total_timeout{30'000};
  long low_speed_bytes = 1024;  ///< a body slower than this per second ...
  long low_speed_seconds = 15;  ///< ... for so long is given up
  long max_redirects = 10;
  int max_retries = 3;                                ///< after 429, 5xx and failed connections
  std::chrono::milliseconds backoff{500};             ///< doubles with each retry
  std::chrono::milliseconds max_retry_after{10'000};  ///< a server that asks for more is given up
  std::string user_agent = "qlora/0.1";
  std::function<bool()> stop;  ///< asked about once a second; true ends the fetch with ErrorKind::interrupted
};

/// A page that arrived.
struct Page {
  std::string source;        ///< as asked for
  std::string url;           ///< after redirects
  std::string content_type;  ///< without parameters, lower case; from the name or the bytes where no server said it
  std::string charset;       ///< that the bytes were read as
  std::string body;          ///< UTF-8
  std::string fetched_at;    ///< ISO 8601, UTC
};

/// What became of one address: a page, or why not.
struct FetchResult {
  std::string source;
  std::optional<Page> page;
  std::string error;
  ErrorKind kind = ErrorKind::network;
};

namespace detail {

using qlora::detail::concat;
using Clock = std::chrono::steady_clock;

[[nodiscard]] inline std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

[[nodiscard]] inline bool has_scheme(std::string_view source, std::string_view scheme) {
  return source.size() > scheme.size() && lower(source.substr(0, scheme.size())) == scheme;
}

/// Media type of text that we can use, judged by what was declared, else by the bytes; throws for all others.
[[nodiscard]] inline std::string text_type(const std::string& declared, std::string_view bytes,
                                           const std::string& source) {
  const auto refuse = [&](const std::string& what) {
    throw Error(concat(source, ": not a text page but ", what, "; only HTML, plain text and Markdown are read"));
  };
  if (const std::string binary = binary_format(bytes); !binary.empty()) refuse(binary);
  const std::string type = lower(trim(std::string_view(declared).substr(0, declared.find(';'))));
  if (type == "text/html" || type == "application/xhtml+xml" || type == "text/plain" || type == "text/markdown")
    return type;
  if (!type.empty() && type != "application/octet-stream" && type != "unknown/unknown") refuse(type);
  const std::string head = lower(bytes.substr(0, 1024));
  for (const char* mark : {"<!doctype html", "<html", "<head", "<body", "<title", "<h1", "<p>", "<div"})
    if (head.find(mark) != std::string::npos) return "text/html";
  return "text/plain";
}

[[nodiscard]] inline Page finish_page(const std::string& source, std::string url, const std::string& declared,
                                      std::string_view bytes) {
  if (trim(bytes).empty()) throw Error(source + ": the page is empty");
  Page page{.source = source,
            .url = std::move(url),
            .content_type = text_type(declared, bytes, source),
            .charset = {},
            .body = {},
            .fetched_at = utc_now()};
  Decoded decoded = decode_page(bytes, declared);
  page.charset = std::move(decoded.encoding);
  page.body = std::move(decoded.text);
  return page;
}

[[nodiscard]] inline Page read_local(const std::string& source, const std::filesystem::path& path,
                                     const FetchOptions& options) {
  std::error_code code;
  if (!std::filesystem::is_regular_file(path, code))
    throw Error(concat(source, ": no such file, or not a plain one (a web address begins with http:// or https://)"));
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(concat(source, ": cannot open: ", std::strerror(errno)));
  const auto size = std::filesystem::file_size(path, code);
  if (code || size > options.max_bytes) throw Error(concat(source, ": larger than ", options.max_bytes, " bytes"));
  std::string bytes(static_cast<std::size_t>(size), '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  bytes.resize(static_cast<std::size_t>(file.gcount()));
  const std::string extension = lower(path.extension().string());
  const std::string type = extension == ".html" || extension == ".htm" || extension == ".xhtml" ? "text/html"
                           : extension == ".md"                                                 ? "text/markdown"
                           : extension == ".txt"                                                ? "text/plain"
                                                                                                : "";
  return finish_page(source, source, type, bytes);
}

/// Local path of a file: address (no host or localhost), percent-decoded.
[[nodiscard]] inline std::filesystem::path file_url_path(const std::string& source) {
  std::string_view rest = std::string_view(source).substr(5);
  if (rest.starts_with("//")) {
    rest.remove_prefix(2);
    const std::string_view host = rest.substr(0, rest.find('/'));
    if (!host.empty() && lower(host) != "localhost")
      throw Error(source + ": a file: address cannot name another host", ErrorKind::usage);
    rest.remove_prefix(host.size());
  }
  const auto hex = [](char c) {
    return is_digit(c) ? c - '0' : lower(c) >= 'a' && lower(c) <= 'f' ? lower(c) - 'a' + 10 : -1;
  };
  std::string path;
  for (std::size_t i = 0; i < rest.size(); ++i) {
    if (rest[i] == '%' && i + 2 < rest.size() && hex(rest[i + 1]) >= 0 && hex(rest[i + 2]) >= 0) {
      path += static_cast<char>(hex(rest[i + 1]) * 16 + hex(rest[i + 2]));
      i += 2;
    } else {
      path += rest[i];
    }
  }
  if (path.empty() || path.find('\0') != std::string::npos)
    throw Error(source + ": not a usable file: address", ErrorKind::usage);
  return path;
}

/// What libcurl's callbacks see and leave behind. They are called from C and must not throw.
struct Transfer {
  const FetchOptions* options = nullptr;
  std::string body;
  std::size_t header_bytes = 0;
  std::string retry_after;
  const char* refusal = nullptr;  ///< why a callback ended the transfer
  bool stopped = false;
};

inline std::size_t on_body(char* data, std::size_t size, std::size_t count, void* user) noexcept {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::size_t n = size * count;
  if (n > transfer.options->max_bytes - transfer.body.size()) {
    transfer.refusal = "the page is larger than the limit";
    return 0;
  }
  try {
    transfer.body.append(data, n);
  } catch (...) {
    transfer.refusal = "out of memory";
    return 0;
  }
  return n;
}

inline std::size_t on_header(char* data, std::size_t size, std::size_t count, void* user) noexcept {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::string_view line(data, size * count);
  try {
    if (line.starts_with("HTTP/")) {
      transfer.header_bytes = 0;
      transfer.retry_after.clear();
    }
    transfer.header_bytes += line.size();
    if (line.size() < 256 && has_scheme(line, "retry-after:")) transfer.retry_after = trim(line.substr(12));
  } catch (...) {
    transfer.header_bytes = std::size_t(-1);
  }
  if (transfer.header_bytes <= transfer.options->max_header_bytes) return line.size();
  transfer.refusal = "the response header is larger than the limit";
  return 0;
}

inline curl_socket_t on_socket(void* user, curlsocktype, curl_sockaddr* address) noexcept {
  auto& transfer = *static_cast<Transfer*>(user);
  const FetchOptions& options = *transfer.options;
  bool allowed = options.allow_private || is_public_address(&address->addr, address->addrlen);
  try {
    allowed = allowed || (options.also_allow && options.also_allow(&address->addr, address->addrlen));
  } catch (...) {
    allowed = false;
  }
  if (!allowed) {
    transfer.refusal = "it is not on the public internet; pass --allow-private for your own servers";
    return CURL_SOCKET_BAD;
  }
  return ::socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

inline int on_progress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) noexcept {
  auto& transfer = *static_cast<Transfer*>(user);
  try {
    transfer.stopped = transfer.options->stop && transfer.options->stop();
  } catch (...) {
    transfer.stopped = true;
  }
  return transfer.stopped ? 1 : 0;
}

using Easy = std::unique_ptr<CURL, decltype(&curl_easy_cleanup)>;

inline void set_up(CURL* curl, Transfer& transfer, const std::string& url, std::chrono::milliseconds left) {
  const FetchOptions& o = *transfer.options;
  bool ok = true;
  const auto set = [&](CURLoption option, auto value) { ok = ok && curl_easy_setopt(curl, option, value) == CURLE_OK; };
  set(CURLOPT_URL, url.c_str());
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
  set(CURLOPT_FOLLOWLOCATION, 1L);
  set(CURLOPT_MAXREDIRS, o.max_redirects);
  set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(std::min(o.connect_timeout, left).count()));
  set(CURLOPT_TIMEOUT_MS, static_cast<long>(left.count()));
  set(CURLOPT_LOW_SPEED_LIMIT, o.low_speed_bytes);
  set(CURLOPT_LOW_SPEED_TIME, o.low_speed_seconds);
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_ACCEPT_ENCODING, "gzip, deflate");
  set(CURLOPT_USERAGENT, o.user_agent.c_str());
  set(CURLOPT_WRITEFUNCTION, &on_body);
  set(CURLOPT_WRITEDATA, &transfer);
  set(CURLOPT_HEADERFUNCTION, &on_header);
  set(CURLOPT_HEADERDATA, &transfer);
  set(CURLOPT_OPENSOCKETFUNCTION, &on_socket);
  set(CURLOPT_OPENSOCKETDATA, &transfer);
  set(CURLOPT_NOPROGRESS, 0L);
  set(CURLOPT_XFERINFOFUNCTION, &on_progress);
  set(CURLOPT_XFERINFODATA, &transfer);
  if (!o.allow_private) set(CURLOPT_NOPROXY, "*");  // behind a proxy the guard would see the proxy's address alone
  if (!ok) throw Error("libcurl refuses an option; it needs version 7.85 or newer", ErrorKind::resource);
}

/// Seconds of a Retry-After header; dates and nonsense count as absent. Nine digits at most, so nothing overflows.
[[nodiscard]] inline std::optional<std::chrono::seconds> retry_seconds(const std::string& text) {
  if (text.empty() || text.size() > 9 || !std::all_of(text.begin(), text.end(), is_digit)) return std::nullopt;
  return std::chrono::seconds(std::stol(text));
}

/// Sleeps, but looks at `stop` every 100 ms.
inline void wait(std::chrono::milliseconds time, const FetchOptions& options, const std::string& source) {
  const auto until = Clock::now() + time;
  while (Clock::now() < until) {
    if (options.stop && options.stop()) throw Error(source + ": stopped on request", ErrorKind::interrupted);
    std::this_thread::sleep_for(std::min<Clock::duration>(std::chrono::milliseconds(100), until - Clock::now()));
  }
}

/// One attempt; returns the page, or nothing if it is worth trying again (then `why` says what happened).
[[nodiscard]] inline std::optional<Page> attempt(CURL* curl, Transfer& transfer, const std::string& source,
                                                 std::string& why) {
  char message[CURL_ERROR_SIZE] = "";
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, static_cast<char*>(message));
  const CURLcode code = curl_easy_perform(curl);
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, static_cast<char*>(nullptr));
  if (transfer.stopped) throw Error(source + ": stopped on request", ErrorKind::interrupted);
  if (transfer.refusal != nullptr && code != CURLE_OK)
    throw Error(concat(source, ": refused: ", transfer.refusal), ErrorKind::network);
  if (code != CURLE_OK) {
    why = message[0] != '\0' ? message : curl_easy_strerror(code);
    if (code == CURLE_COULDNT_CONNECT || code == CURLE_GOT_NOTHING || code == CURLE_RECV_ERROR ||
        code == CURLE_SEND_ERROR)
      return std::nullopt;
    throw Error(concat(source, ": ", why), code == CURLE_URL_MALFORMAT ? ErrorKind::usage : ErrorKind::network);
  }
  long status = 0;
  const char* url = nullptr;
  const char* type = nullptr;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  curl_easy_getinfo(curl, CURLINFO_EFFECTIVE_URL, &url);
  curl_easy_getinfo(curl, CURLINFO_CONTENT_TYPE, &type);
  why = concat("the server answered with status ", status);
  if (status == 429 || status >= 500) return std::nullopt;
  if (status < 200 || status >= 300) throw Error(concat(source, ": ", why), ErrorKind::network);
  return finish_page(source, url != nullptr ? url : source, type != nullptr ? type : "", transfer.body);
}

[[nodiscard]] inline Page fetch_http(const std::string& source, const FetchOptions& options) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  const auto deadline = Clock::now() + options.total_timeout;
  const Easy curl(curl_easy_init(), &curl_easy_cleanup);
  if (!curl) throw Error("libcurl does not start", ErrorKind::resource);
  std::string why;
  for (int tries = 0;; ++tries) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) throw Error(concat(source, ": no time left after ", why), ErrorKind::network);
    Transfer transfer{
        .options = &options, .body = {}, .header_bytes = 0, .retry_after = {}, .refusal = nullptr, .stopped = false};
    curl_easy_reset(curl.get());
    set_up(curl.get(), transfer, source, left);
    if (auto page = attempt(curl.get(), transfer, source, why)) return *std::move(page);
    std::chrono::milliseconds pause = options.backoff * (1 << std::min(tries, 10));
    if (const auto asked = retry_seconds(transfer.retry_after))
      pause = std::max<std::chrono::milliseconds>(pause, *asked);
    if (tries >= options.max_retries || pause > options.max_retry_after || Clock::now() + pause > deadline)
      throw Error(concat(source, ": ", why, " (", tries + 1, tries == 0 ? " try)" : " tries)"), ErrorKind::network);
    wait(pause, options, source);
  }
}

}  // namespace detail

/// Fetches one page: an http:, https: or file: address or a local path. Throws Error: network (no answer, refused, over
/// a cap), input (not text, empty, no such file), usage (an address that cannot be meant), interrupted.
[[nodiscard]] inline Page fetch_page(const std::string& source, const FetchOptions& options = {}) {
  if (source.find_first_of(std::string_view("\0\r\n", 3)) != std::string::npos)
    throw Error("an address holds a line break or NUL", ErrorKind::usage);
  if (detail::has_scheme(source, "http://") || detail::has_scheme(source, "https://"))
    return detail::fetch_http(source, options);
  if (detail::has_scheme(source, "file:")) return detail::read_local(source, detail::file_url_path(source), options);
  if (source.find("://") != std::string::npos)
    throw Error(source + ": unknown kind of address; use http://, https://, file: or a path", ErrorKind::usage);
  return detail::read_local(source, source, options);
}

/// Fetches many, one after the other in the order given; a page that fails is a result with an error, and the rest go
/// on. Only a request to stop ends the batch (throws, ErrorKind::interrupted).
[[nodiscard]] inline std::vector<FetchResult> fetch_pages(
    std::span<const std::string> sources, const FetchOptions& options = {},
    const std::function<void(const FetchResult&)>& on_result = {}) {
  std::vector<FetchResult> results;
  for (const std::string& source : sources) {
    FetchResult result{.source = source, .page = std::nullopt, .error = {}, .kind = ErrorKind::network};
    try {
      result.page = fetch_page(source, options);
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::interrupted) throw;
      result.error = e.what();
      result.kind = e.kind();
    }
    results.push_back(std::move(result));
    if (on_result) on_result(results.back());
  }
  return results;
}

}  // namespace web
}  // namespace v0
}  // namespace qlora
