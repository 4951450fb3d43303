// qlora/net/s3.hpp — requests to S3 and to the stores that speak like it: signed, repeated while a failure passes.
// Repeats    429, 500, 502, 503, 504, SlowDown, RequestTimeout, connections that break: six tries in all, each after a
//            random part of a time that doubles; a try that brought bytes starts the count anew
// Corrected  the clock (from the header Date), the region (x-amz-bucket-region), credentials that expired: once each
// What may not change: a request goes to the store alone, redirects are not followed; no message holds a secret.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <exception>
#include <functional>
#include <mutex>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/net/aws_credentials.hpp"
#include "qlora/net/aws_profile.hpp"
#include "qlora/net/aws_signature.hpp"
#include "qlora/net/exchange.hpp"
#include "qlora/net/s3_address.hpp"
#include "qlora/net/xml.hpp"

namespace qlora {
inline namespace v0 {
namespace net {

/// How objects come and go.
struct S3Options {
  int connections = 8;                          ///< at a time
  std::int64_t part_bytes = 16 << 20;           ///< of a part of an object; 5 MiB at least, see part_bytes_of
  int tries = 6;                                ///< of a request without any progress
  std::chrono::milliseconds backoff{100};       ///< bounds the wait before the second try; doubles with each
  std::chrono::milliseconds most_wait{20'000};  ///< bounds every wait
  long low_speed_seconds = 30;                  ///< a connection below a KiB/s for so long is given up
  std::function<bool()> stop;                   ///< true ends requests with ErrorKind::interrupted; any thread asks
};

/// A request.
struct S3Request {
  std::string method = "GET";          ///< or "HEAD", "PUT", "POST", "DELETE"
  S3Address address;                   ///< of an object; with an empty key of a bucket
  QueryParts query{};                  ///< not encoded
  std::vector<std::string> headers{};  ///< "name: value", in lower case, signed
  std::span<const std::byte> body{};   ///< of PUT and POST
  std::string body_sha256{};           ///< of the body, 64 digits; empty: it is computed
  std::int64_t begin = 0;              ///< of the bytes that are asked for
  std::int64_t end = -1;               ///< behind the last of them; below 0: all
  bool whole = false;                  ///< that range is all of the object: asked for without one where it can be
  std::string accepted{};              ///< codes of failure that the caller looks at itself, with blanks between them
  std::function<void(std::string_view)> receive{};  ///< gets the bytes in order, each once; may throw
  long low_speed_seconds = 0;                       ///< instead of the options'; 0: theirs
};

/// The 256 bits of nothing.
inline constexpr const char* sha256_of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

namespace detail {

/// The code of an answer of failure; empty where it has none, as that to HEAD.
[[nodiscard]] inline std::string error_code(const ExchangeAnswer& answer, std::string_view where,
                                            std::string* message = nullptr) {
  if (answer.body.find("<Error") == std::string::npos) return {};
  const XmlElement root = parse_xml(answer.body, where);
  if (message != nullptr) *message = root.text_of("Message");
  return root.name == "Error" ? root.text_of("Code") : std::string();
}

[[nodiscard]] inline bool is_passing_status(long status) {
  return status == 0 || status == 408 || status == 429 || status == 500 || status == 502 || status == 503 ||
         status == 504;
}

[[nodiscard]] inline bool is_passing_code(std::string_view code) {
  return code == "SlowDown" || code == "RequestTimeout" || code == "InternalError" || code == "ServiceUnavailable" ||
         code == "Throttling" || code == "ThrottlingException" || code == "RequestLimitExceeded" ||
         code == "BandwidthLimitExceeded" || code == "OperationAborted" || code == "XAmzContentSHA256Mismatch" ||
         code == "BadDigest";
}

}  // namespace detail

/// A store as the environment names it. Any number of threads may use it, each with a connection of its own.
class S3 {
 public:
  /// Asks nobody yet: credentials are looked for by the first request.
  explicit S3(AwsPlace place, S3Options options = {})
      : place_(std::move(place)), options_(std::move(options)), region_(place_.region), chain_(place_, options_.stop) {}
  S3(const S3&) = delete;
  S3& operator=(const S3&) = delete;

  /// As they were given.
  [[nodiscard]] const S3Options& options() const { return options_; }
  /// Where the store is, for messages.
  [[nodiscard]] std::string endpoint() const {
    return place_.s3_endpoint.empty() ? "Amazon S3, region " + region() : shown_address(place_.s3_endpoint);
  }
  /// A connection for one thread.
  [[nodiscard]] Connection connect(long low_speed_seconds = 0) const {
    HttpOptions options;
    options.allow_private = true;  // endpoints inside one's own network are common, and are the user's own choice
    options.low_speed_seconds = low_speed_seconds > 0 ? low_speed_seconds : options_.low_speed_seconds;
    options.stop = options_.stop;
    return Connection(std::move(options));
  }

  /// Sends a request until it is answered with success, 404 of HEAD included. Throws Error: (input) for what is not
  /// there or may not be reached with these credentials, naming their source; (network) for a store that does not
  /// answer, or with what no repeat will change; (interrupted).
  ExchangeAnswer request(Connection& connection, const S3Request& request) {
    const std::string where = request.address.text();
    Corrections corrections;
    std::int64_t received = 0;
    int tries = 0;
    for (int requests = 1;; ++requests) {
      const AwsCredentials credentials = chain_.get();
      const std::int64_t before = received;
      ExchangeAnswer answer = send(connection, request, credentials, received);
      if (answer.failure.empty() && is_success(answer, request)) return answer;
      std::string message;
      const std::string code = detail::error_code(answer, where, &message);
      if (!code.empty() && concat(" ", request.accepted, " ").find(concat(" ", code, " ")) != std::string::npos)
        return answer;
      if (corrected(answer, code, credentials, corrections)) continue;
      if (!detail::is_passing_status(answer.status) && !detail::is_passing_code(code) && !is_success_status(answer))
        refuse(answer, code, message, request, credentials);
      tries = received > before && requests < 200 ? 1 : tries + 1;
      if (tries >= options_.tries)
        throw Error(concat(where, ": ", what_happened(answer, code), " (", tries, " tries); the store is ", endpoint()),
                    ErrorKind::network);
      wait(tries, where);
    }
  }

  /// Sends a request once, though asked to stop, and lets failures be: it cleans up. Whether it was answered with
  /// success.
  bool try_once(const S3Request& request) noexcept {
    try {
      HttpOptions options;
      options.allow_private = true;
      Connection connection(options);
      std::int64_t received = 0;
      return is_success(send(connection, request, chain_.get(), received), request);
    } catch (...) {
      return false;
    }
  }

 private:
  struct Corrections {
    bool clock = false, region = false, credentials = false;
  };

  [[nodiscard]] std::string region() const {
    const std::lock_guard lock(mutex_);
    return region_;
  }

  static bool is_success_status(const ExchangeAnswer& answer) { return answer.status >= 200 && answer.status < 300; }
  /// A multipart upload that is completed may fail behind a status of success.
  static bool is_success(const ExchangeAnswer& answer, const S3Request& request) {
    if (request.method == "HEAD" && answer.status == 404) return true;
    if (request.method == "DELETE" && answer.status == 404) return true;
    return is_success_status(answer) && !(request.method == "POST" && has_error(answer));
  }
  static bool has_error(const ExchangeAnswer& answer) { return answer.body.find("<Error") != std::string::npos; }
  static std::string what_happened(const ExchangeAnswer& answer, const std::string& code) {
    if (!answer.failure.empty()) return answer.failure;
    return concat("status ", answer.status, code.empty() ? "" : " ", ::qlora::detail::excerpt(code));
  }

  ExchangeAnswer send(Connection& connection, const S3Request& request, const AwsCredentials& credentials,
                      std::int64_t& received) {
    const std::string region_now = region();
    const auto [base, path] = place_of(request.address, region_now);
    Exchange exchange;
    exchange.url = canonical_url(base, path, request.query);
    exchange.head = request.method == "HEAD";
    if (!exchange.head && request.method != "GET") exchange.method = request.method;
    exchange.headers = request.headers;
    std::string hash = request.body_sha256;
    if (hash.empty()) hash = request.body.empty() ? std::string(sha256_of_nothing) : sha256(request.body);
    exchange.headers.push_back("x-amz-content-sha256: " + hash);
    if (!credentials.token.empty()) exchange.headers.push_back("x-amz-security-token: " + credentials.token);
    exchange.ca_file = place_.ca_file;
    exchange.as_is = true;  // a key may hold "..", and is signed with it
    exchange.body = request.body;
    exchange.headers.push_back("x-amz-date: " + amz_date(std::time(nullptr) + skew_.load()));
    exchange.headers.push_back(aws_authorization(request.method, exchange.url, exchange.headers,
                                                 {region_now, "s3", credentials.key_id, credentials.secret}));
    const std::int64_t begin = request.begin + received;
    const bool part = request.end >= 0 && !(request.whole && begin == 0);
    if (part) exchange.range = concat(begin, "-", request.end - 1);
    std::exception_ptr error;  // none may pass through libcurl
    std::string odd;
    if (request.receive) {
      exchange.on = [&](const ExchangeAnswer& head, std::string_view bytes) {
        const std::string range = concat("bytes ", exchange.range, "/");
        if (part && !head.header("content-range").starts_with(range))  // some stores answer 200 to a range
          odd = "the store answers with other bytes than were asked for";
        else if (request.end >= 0 && static_cast<std::int64_t>(bytes.size()) > request.end - request.begin - received)
          odd = "the store sends more bytes than were asked for";
        if (!odd.empty()) return false;
        try {
          request.receive(bytes);
        } catch (...) {
          error = std::current_exception();
          return false;
        }
        received += static_cast<std::int64_t>(bytes.size());
        return true;
      };
    }
    ExchangeAnswer answer = request.low_speed_seconds > 0 ? connect(request.low_speed_seconds).exchange(exchange)
                                                          : connection.exchange(exchange);
    if (error) std::rethrow_exception(error);
    if (answer.failure.empty()) answer.failure = odd;
    const bool cut = request.receive && request.end >= 0 && is_success_status(answer) && answer.failure.empty() &&
                     received != request.end - request.begin;
    if (cut) answer.failure = "the answer ends before its bytes do";
    return answer;
  }

  /// "https://host", and the path of a bucket's object.
  [[nodiscard]] std::pair<std::string, std::string> place_of(const S3Address& address,
                                                             const std::string& region_now) const {
    const std::string amazon = concat("s3.", region_now, ".amazonaws.com", region_now.starts_with("cn-") ? ".cn" : "");
    std::string base = place_.s3_endpoint.empty() ? "https://" + amazon : place_.s3_endpoint;
    // A wildcard certificate covers no bucket with a dot.
    if (place_.path_style || address.bucket.find('.') != std::string::npos)
      return {base, concat("/", address.bucket, "/", address.key)};
    base.insert(base.find("://") + 3, address.bucket + ".");
    return {base, "/" + address.key};
  }

  /// Whether something was mended, so that the request is sent again at once.
  bool corrected(const ExchangeAnswer& answer, const std::string& code, const AwsCredentials& used,
                 Corrections& corrections) {
    const bool refused = answer.status == 403 || answer.status == 400;
    if (refused && !corrections.clock &&
        (code.empty() || code == "RequestTimeTooSkewed" || code == "AccessDenied" || code == "RequestExpired" ||
         code == "SignatureDoesNotMatch")) {
      corrections.clock = true;
      const std::time_t theirs = ::curl_getdate(answer.header("date").c_str(), nullptr);
      const std::time_t off = theirs - (std::time(nullptr) + skew_.load());
      if (theirs > 0 && (off > 60 || off < -60)) {
        skew_ += off;
        return true;
      }
    }
    const std::string home = answer.header("x-amz-bucket-region");
    if (!home.empty() && (refused || answer.status == 301 || answer.status == 307) && !corrections.region) {
      corrections.region = true;
      const std::lock_guard lock(mutex_);
      const bool other = home != region_ && home.size() < 64 &&
                         home.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string::npos;
      if (other) region_ = home;
      if (other) return true;
    }
    if (refused && !corrections.credentials && (code == "ExpiredToken" || code == "TokenRefreshRequired")) {
      corrections.credentials = true;
      return chain_.renew(used);
    }
    return false;
  }

  [[noreturn]] void refuse(const ExchangeAnswer& answer, const std::string& code, const std::string& message,
                           const S3Request& request, const AwsCredentials& credentials) const {
    const std::string where = request.address.text();
    const std::string shown = code.empty() ? concat("status ", answer.status) : ::qlora::detail::excerpt(code);
    if (code == "NoSuchBucket")
      throw Error(concat(where, ": there is no bucket '", request.address.bucket, "'; the store is ", endpoint()));
    if (code == "NoSuchKey" || answer.status == 404)
      throw Error(concat(where, ": there is no such object (", shown, "); the store is ", endpoint()));
    if (code == "InvalidAccessKeyId" || code == "SignatureDoesNotMatch" || code == "InvalidToken" ||
        code == "ExpiredToken" || code == "AuthorizationHeaderMalformed" || code == "MissingSecurityHeader")
      throw Error(concat(where, ": the store, ", endpoint(), ", does not take the credentials of ", credentials.source,
                         " (", shown, ")"));
    if (answer.status == 401 || answer.status == 403)
      throw Error(concat(where, ": the credentials of ", credentials.source, " may not ", request.method, " this (",
                         shown, "); the store is ", endpoint()));
    if (answer.status == 412) throw Error(where + ": was replaced while it was read; start again", ErrorKind::network);
    throw Error(concat(where, ": ", shown, message.empty() ? "" : ": ", ::qlora::detail::excerpt(message),
                       "; the store is ", endpoint()),
                ErrorKind::network);
  }

  /// A random time, so that many clients do not come back at once.
  void wait(int tries, const std::string& where) const {
    static thread_local std::minstd_rand random(std::random_device{}());
    const auto bound = std::min(options_.backoff * (1 << std::min(tries - 1, 16)), options_.most_wait);
    const auto pause = std::chrono::milliseconds(std::uniform_int_distribution<std::int64_t>(
        bound.count() / 4, std::max<std::int64_t>(bound.count(), 1))(random));
    const auto until = std::chrono::steady_clock::now() + pause;
    while (std::chrono::steady_clock::now() < until) {
      if (options_.stop && options_.stop()) throw Error(where + ": stopped on request", ErrorKind::interrupted);
      std::this_thread::sleep_for(std::min<std::chrono::steady_clock::duration>(
          std::chrono::milliseconds(20), until - std::chrono::steady_clock::now()));
    }
  }

  AwsPlace place_;
  S3Options options_;
  std::atomic<std::time_t> skew_ = 0;  // seconds that the store's clock is ahead of ours
  mutable std::mutex mutex_;           // of what follows
  std::string region_;
  AwsCredentialChain chain_;
};

}  // namespace net
}  // namespace v0
}  // namespace qlora
