// qlora/net/exchange.hpp — one HTTP request and its answer: headers, ranges, and a body that is handed on as it comes.
// Redirects and retries are up to the caller, which knows which host may see a token. Limits and guard: http.hpp.
// What may not change: no header goes to another address than the one given, and no body of a failure to the receiver.
#pragma once

#include <curl/curl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/net/http.hpp"
#include "qlora/net/shown.hpp"

namespace qlora {
inline namespace v0 {
namespace net {

/// An answer, or why there is none.
struct ExchangeAnswer {
  long status = 0;                             ///< of HTTP; 0: see failure
  std::map<std::string, std::string> headers;  ///< by name in lower case; the last of equal names
  std::string body;                            ///< of other statuses, or where nobody receives; at most 4 MiB
  std::string failure;                         ///< the connection failed or ended early, so that a repeat may succeed

  /// A header; empty where it is missing.
  [[nodiscard]] std::string header(const std::string& name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? std::string() : found->second;
  }
};

/// A request.
struct Exchange {
  std::string url;                   ///< http: or https:
  bool head = false;                 ///< HEAD instead of GET
  std::vector<std::string> headers;  ///< "Name: value", without line breaks
  std::string range;                 ///< "0-99"; empty: all
  std::string ca_file;               ///< certificates to trust instead of the system's; empty: the system's
  /// gets the body of an answer 200 or 206 in pieces, with its status and headers; false: no more of it
  std::function<bool(const ExchangeAnswer&, std::string_view)> on;
  std::string method{};               ///< "PUT", "POST" or "DELETE"; empty: GET, or HEAD
  std::span<const std::byte> body{};  ///< of PUT and POST; must outlive the exchange
  bool as_is = false;                 ///< "/../" of the address stays, which otherwise means the folder above
};

namespace detail {

/// What the callbacks of an exchange see.
struct ExchangeState {
  Transfer transfer;  // for the address guard, the request to stop, and lengths
  const Exchange* request = nullptr;
  ExchangeAnswer* answer = nullptr;
  bool ended = false;    // the receiver wants no more
  std::size_t sent = 0;  // bytes of the request's body
};

inline constexpr std::size_t max_exchange_body = std::size_t{4} << 20;

inline std::size_t on_exchange_body(char* data, std::size_t size, std::size_t count, void* user) noexcept {
  auto& state = *static_cast<ExchangeState*>(user);
  const std::string_view piece(data, size * count);
  try {
    const bool wanted = state.answer->status == 200 || state.answer->status == 206;
    if (wanted && state.request->on) {
      state.ended = !state.request->on(*state.answer, piece);
      return state.ended ? 0 : piece.size();
    }
    if (piece.size() > max_exchange_body - state.answer->body.size()) {
      state.transfer.refusal = "the body is larger than the limit";
      return 0;
    }
    state.answer->body += piece;
  } catch (...) {
    state.transfer.refusal = "out of memory";
    return 0;
  }
  return piece.size();
}

inline std::size_t on_exchange_header(char* data, std::size_t size, std::size_t count, void* user) noexcept {
  auto& state = *static_cast<ExchangeState*>(user);
  const std::size_t all = on_header(data, size, count, &state.transfer);
  if (all == 0) return 0;
  try {
    const std::string_view line(data, size * count);
    if (line.starts_with("HTTP/")) {
      state.answer->headers.clear();
      const std::size_t space = line.find(' ');
      state.answer->status = space == std::string_view::npos ? 0 : std::atol(std::string(line.substr(space)).c_str());
    }
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) return all;
    constexpr std::string_view blank = " \t\r\n";
    std::string_view value = line.substr(colon + 1);
    value.remove_prefix(std::min(value.find_first_not_of(blank), value.size()));
    value = value.substr(0, value.find_last_not_of(blank) + 1);
    state.answer->headers[low(line.substr(0, colon))] = value;
  } catch (...) {
    state.transfer.refusal = "out of memory";
    return 0;
  }
  return all;
}

inline std::size_t on_exchange_send(char* into, std::size_t size, std::size_t count, void* user) noexcept {
  auto& state = *static_cast<ExchangeState*>(user);
  const auto piece =
      state.request->body.subspan(state.sent).first(std::min(size * count, state.request->body.size() - state.sent));
  if (!piece.empty()) std::memcpy(into, piece.data(), piece.size());
  state.sent += piece.size();
  return piece.size();
}

/// libcurl sends a body again from its start where a connection that was kept turned out to be closed.
inline int on_exchange_seek(void* user, curl_off_t offset, int origin) noexcept {
  auto& state = *static_cast<ExchangeState*>(user);
  if (origin != SEEK_SET || offset < 0 || static_cast<std::uint64_t>(offset) > state.request->body.size())
    return CURL_SEEKFUNC_FAIL;
  state.sent = static_cast<std::size_t>(offset);
  return CURL_SEEKFUNC_OK;
}

}  // namespace detail

/// Connections that are kept between the exchanges of one thread.
class Connection {
 public:
  /// `options` says what may be reached and when to give up; of its times those to connect and of low speed count.
  explicit Connection(HttpOptions options) : options_(std::move(options)), curl_(nullptr, &curl_easy_cleanup) {
    static std::once_flag once;
    std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
    curl_.reset(curl_easy_init());
    if (!curl_) throw Error("libcurl does not start", ErrorKind::resource);
  }

  /// Sends a request. Throws Error: network (refused: an address that is not public, a certificate that is not trusted,
  /// a header that is no header), usage (an address that cannot be meant), interrupted (options.stop says so).
  [[nodiscard]] ExchangeAnswer exchange(const Exchange& request) {
    ExchangeAnswer answer;
    detail::ExchangeState state;
    state.transfer.options = &options_;
    state.request = &request;
    state.answer = &answer;
    CURL* curl = curl_.get();
    curl_easy_reset(curl);
    detail::set_up(curl, state.transfer, request.url, options_.connect_timeout);
    const auto free_list = [](curl_slist* list) { curl_slist_free_all(list); };
    std::unique_ptr<curl_slist, decltype(free_list)> headers(nullptr, free_list);
    for (const std::string& line : request.headers) headers.reset(curl_slist_append(headers.release(), line.c_str()));
    bool ok = true;
    const auto set = [&](CURLoption option, auto value) {
      ok = ok && curl_easy_setopt(curl, option, value) == CURLE_OK;
    };
    set(CURLOPT_FOLLOWLOCATION, 0L);
    set(CURLOPT_TIMEOUT_MS, 0L);
    set(CURLOPT_ACCEPT_ENCODING, static_cast<const char*>(nullptr));  // hashes and ranges are of the bytes as they are
    set(CURLOPT_BUFFERSIZE, 256L << 10);  // large bodies come in fewer pieces than by the 16 KiB of libcurl
    set(CURLOPT_UPLOAD_BUFFERSIZE, 512L << 10);
    set(CURLOPT_NOBODY, request.head ? 1L : 0L);
    set(CURLOPT_HTTPHEADER, headers.get());
    set(CURLOPT_WRITEFUNCTION, &detail::on_exchange_body);
    set(CURLOPT_WRITEDATA, &state);
    set(CURLOPT_HEADERFUNCTION, &detail::on_exchange_header);
    set(CURLOPT_HEADERDATA, &state);
    if (request.method == "PUT" || request.method == "POST") {
      set(CURLOPT_UPLOAD, 1L);
      set(CURLOPT_READFUNCTION, &detail::on_exchange_send);
      set(CURLOPT_READDATA, &state);
      set(CURLOPT_SEEKFUNCTION, &detail::on_exchange_seek);
      set(CURLOPT_SEEKDATA, &state);
      set(CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
    }
    if (!request.method.empty()) set(CURLOPT_CUSTOMREQUEST, request.method.c_str());
    if (request.as_is) set(CURLOPT_PATH_AS_IS, 1L);
    if (!request.range.empty()) set(CURLOPT_RANGE, request.range.c_str());
    if (!request.ca_file.empty()) set(CURLOPT_CAINFO, request.ca_file.c_str());
    if (!ok) throw Error("libcurl refuses an option; it needs version 7.85 or newer", ErrorKind::resource);
    perform(request, state);
    return answer;
  }

 private:
  void perform(const Exchange& request, detail::ExchangeState& state) {
    char message[CURL_ERROR_SIZE] = "";
    curl_easy_setopt(curl_.get(), CURLOPT_ERRORBUFFER, static_cast<char*>(message));
    const CURLcode code = curl_easy_perform(curl_.get());
    curl_easy_setopt(curl_.get(), CURLOPT_ERRORBUFFER, static_cast<char*>(nullptr));
    if (code == CURLE_OK || state.ended) return;
    const std::string source = shown_address(request.url);
    if (state.transfer.stopped) throw Error(source + ": stopped on request", ErrorKind::interrupted);
    if (state.transfer.refusal != nullptr)
      throw Error(concat(source, ": refused: ", state.transfer.refusal), ErrorKind::network);
    const std::string why = message[0] != '\0' ? message : curl_easy_strerror(code);
    if (code == CURLE_URL_MALFORMAT || code == CURLE_UNSUPPORTED_PROTOCOL)
      throw Error(concat(source, ": ", why), ErrorKind::usage);
    if (code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE || code == CURLE_SSL_CERTPROBLEM)
      throw Error(concat(source, ": ", why, "; SSL_CERT_FILE may name the certificates to trust"), ErrorKind::network);
    state.answer->status = 0;
    state.answer->failure = why;
  }

  HttpOptions options_;
  detail::Easy curl_;
};

}  // namespace net
}  // namespace v0
}  // namespace qlora
