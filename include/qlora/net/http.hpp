// qlora/net/http.hpp — an HTTP client over libcurl: limits, redirects, retries, and a guard of addresses.
// What may not change: every cap is counted here, on decoded bytes (libcurl's own size limit does not bound what a
// compressed body grows to); the address guard sees every socket of every redirect.
#pragma once

#include <curl/curl.h>
#include <strings.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "qlora/error.hpp"
#include "qlora/net/address.hpp"
#include "qlora/net/shown.hpp"

namespace qlora {
inline namespace v0 {
namespace net {

/// Limits of a request. The total covers redirects, retries and waits: no URL takes longer.
struct HttpOptions {
  bool allow_private = false;  ///< reach private, loopback and link-local addresses, and use a proxy if one is set
  std::function<bool(const sockaddr*, std::size_t)> also_allow;  ///< addresses let through although not public
  std::size_t max_bytes = std::size_t{8} << 20;                  ///< of a decoded body
  std::size_t max_header_bytes = std::size_t{64} << 10;          ///< of one response
  std::chrono::milliseconds connect_timeout{10'000};             ///< to be connected with the server
  std::chrono::milliseconds total_timeout{30'000};    ///< for the whole fetch, redirects and retries included
  long low_speed_bytes = 1024;                        ///< a body slower than this per second ...
  long low_speed_seconds = 15;                        ///< ... for so long is given up
  long max_redirects = 10;                            ///< a chain longer than this is an error
  int max_retries = 3;                                ///< after 429, 5xx and failed connections
  std::chrono::milliseconds backoff{500};             ///< doubles with each retry
  std::chrono::milliseconds max_retry_after{10'000};  ///< a server that asks for more is given up
  std::string user_agent = "qlora/0.1";               ///< header User-Agent
  std::function<bool()> stop;  ///< asked about once a second; true ends the fetch with ErrorKind::interrupted
};

/// An answer with a status of success.
struct HttpResponse {
  std::string url;           ///< after redirects, without credentials
  std::string content_type;  ///< as the server said it; empty: it did not
  std::string body;          ///< decoded
};

namespace detail {

using Clock = std::chrono::steady_clock;

/// Seconds of a header line "Retry-After: N"; other headers, dates and nonsense are none. At most nine digits, so
/// nothing overflows.
[[nodiscard]] inline std::optional<std::chrono::seconds> retry_after(std::string_view line) {
  constexpr std::string_view name = "retry-after:";
  if (line.size() < name.size() || ::strncasecmp(line.data(), name.data(), name.size()) != 0) return std::nullopt;
  line.remove_prefix(name.size());
  constexpr std::string_view space = " \t\r\n";
  line.remove_prefix(std::min(line.find_first_not_of(space), line.size()));
  line = line.substr(0, line.find_last_not_of(space) + 1);
  if (line.empty() || line.size() > 9 || line.find_first_not_of("0123456789") != line.npos) return std::nullopt;
  return std::chrono::seconds(std::stol(std::string(line)));
}

/// Whether a header line is a Content-Length that is no number of bytes, or another than `seen` of the same response
/// (RFC 9110, 8.6: one number, or the same one several times). curl would read what it can of it, and a part of the
/// page. Notes the number in `seen`.
[[nodiscard]] inline bool has_impossible_length(std::string_view line, std::string& seen) {
  constexpr std::string_view name = "content-length:";
  if (line.starts_with("HTTP/")) seen.clear();
  if (line.size() < name.size() || ::strncasecmp(line.data(), name.data(), name.size()) != 0) return false;
  line.remove_prefix(name.size());
  for (bool more = true; more;) {
    const std::size_t comma = line.find(',');
    std::string_view value = line.substr(0, comma);
    more = comma != std::string_view::npos;
    if (more) line.remove_prefix(comma + 1);
    constexpr std::string_view blank = " \t\r\n";
    value.remove_prefix(std::min(value.find_first_not_of(blank), value.size()));
    value = value.substr(0, value.find_last_not_of(blank) + 1);
    if (value.empty() || value.find_first_not_of("0123456789") != std::string_view::npos) return true;
    value.remove_prefix(std::min(value.find_first_not_of('0'), value.size() - 1));
    if (value.size() > 18 || (!seen.empty() && value != seen)) return true;
    seen = value;
  }
  return false;
}

/// What libcurl's callbacks see and leave behind. They are called from C and must not throw.
struct Transfer {
  const HttpOptions* options = nullptr;
  std::string body;
  std::size_t header_bytes = 0;
  std::string length;  ///< that the response states
  std::optional<std::chrono::seconds> retry_after;
  const char* refusal = nullptr;  ///< why a callback ended the transfer
  bool stopped = false;
};

inline std::size_t on_body(char* data, std::size_t size, std::size_t count, void* user) noexcept {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::size_t n = size * count;
  if (n > transfer.options->max_bytes - transfer.body.size()) {
    transfer.refusal = "the body is larger than the limit";
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
      transfer.retry_after.reset();
    }
    transfer.header_bytes += line.size();
    if (const auto seconds = retry_after(line)) transfer.retry_after = seconds;
    if (has_impossible_length(line, transfer.length)) {
      transfer.refusal = "its Content-Length is no number of bytes";
      return 0;
    }
  } catch (...) {
    transfer.header_bytes = std::size_t(-1);
  }
  if (transfer.header_bytes <= transfer.options->max_header_bytes) return line.size();
  transfer.refusal = "the response header is larger than the limit";
  return 0;
}

inline curl_socket_t on_socket(void* user, curlsocktype, curl_sockaddr* address) noexcept {
  auto& transfer = *static_cast<Transfer*>(user);
  const HttpOptions& options = *transfer.options;
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
  const HttpOptions& o = *transfer.options;
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

/// Sleeps, but looks at `stop` every 100 ms.
inline void wait(std::chrono::milliseconds time, const HttpOptions& options, const std::string& source) {
  const auto until = Clock::now() + time;
  while (Clock::now() < until) {
    if (options.stop && options.stop()) throw Error(source + ": stopped on request", ErrorKind::interrupted);
    std::this_thread::sleep_for(std::min<Clock::duration>(std::chrono::milliseconds(100), until - Clock::now()));
  }
}

/// One attempt; returns the answer, or nothing if it is worth trying again (then `why` says what happened).
[[nodiscard]] inline std::optional<HttpResponse> attempt(CURL* curl, Transfer& transfer, const std::string& source,
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
    if (code == CURLE_OUT_OF_MEMORY) why = "a line of the response header is longer than libcurl reads (100 KiB)";
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
  if (status < 200 || status >= 300 || status == 206)  // a part, which was not asked for
    throw Error(concat(source, ": ", why), ErrorKind::network);
  return HttpResponse{.url = url != nullptr ? shown_address(url) : source,
                      .content_type = type != nullptr ? type : "",
                      .body = std::move(transfer.body)};
}

}  // namespace detail

/// GET of an http: or https: address; messages name it without its credentials. Throws Error: network (no answer, a
/// status of failure, refused, over a cap),
/// usage (an address that cannot be meant), interrupted.
[[nodiscard]] inline HttpResponse http_get(const std::string& address, const HttpOptions& options = {}) {
  const std::string source = shown_address(address);  // for messages
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  const auto deadline = detail::Clock::now() + options.total_timeout;
  const detail::Easy curl(curl_easy_init(), &curl_easy_cleanup);
  if (!curl) throw Error("libcurl does not start", ErrorKind::resource);
  std::string why;
  for (int tries = 0;; ++tries) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - detail::Clock::now());
    if (left.count() <= 0) throw Error(concat(source, ": no time left after ", why), ErrorKind::network);
    detail::Transfer transfer{.options = &options,
                              .body = {},
                              .header_bytes = 0,
                              .length = {},
                              .retry_after = std::nullopt,
                              .refusal = nullptr,
                              .stopped = false};
    curl_easy_reset(curl.get());
    detail::set_up(curl.get(), transfer, address, left);
    if (auto response = detail::attempt(curl.get(), transfer, source, why)) return *std::move(response);
    std::chrono::milliseconds pause = options.backoff * (1 << std::min(tries, 10));
    if (transfer.retry_after) pause = std::max<std::chrono::milliseconds>(pause, *transfer.retry_after);
    if (tries >= options.max_retries || pause > options.max_retry_after || detail::Clock::now() + pause > deadline)
      throw Error(concat(source, ": ", why, " (", tries + 1, tries == 0 ? " try)" : " tries)"), ErrorKind::network);
    detail::wait(pause, options, source);
  }
}

}  // namespace net
}  // namespace v0
}  // namespace qlora
