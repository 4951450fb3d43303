// qlora/serve/http.hpp — HTTP as the program's own code sees it: requests that were read whole, and answers at once or
// in parts. No network library is in it: http_server.hpp is behind this interface and is compiled once.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qlora {
inline namespace v0 {
namespace serve {

/// Names and values of header fields.
using HttpFields = std::vector<std::pair<std::string, std::string>>;

/// A request that was read whole.
struct HttpRequest {
  std::string method;    ///< "GET"; HEAD is shown as GET, and its answer loses its body
  std::string path;      ///< of the target, without the query, as it was sent
  std::string query;     ///< behind "?"; empty where there is none
  HttpFields headers{};  ///< names in lower case
  std::string body{};    ///< as it was sent, chunks put together

  /// The value of the first header field of a name in lower case; empty where there is none.
  [[nodiscard]] std::string_view header(std::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (key == name) return value;
    }
    return {};
  }
};

/// Whether a client with this field "Accept" is a browser that wants a page.
[[nodiscard]] inline bool wants_page(std::string_view accept) {
  return accept.find("text/html") != std::string_view::npos;
}

/// An answer at once.
struct HttpReply {
  int status = 200;                       ///< of HTTP
  std::string type = "application/json";  ///< Content-Type
  std::string body{};                     ///< all of it
  HttpFields headers{};                   ///< beside type, length and connection
};

/// One request and its answer. Except for post() and client_left(), members are called by the handler, or by what
/// post() runs: no two of these run at the same time.
class Exchange {
 public:
  Exchange() = default;
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  virtual ~Exchange() = default;

  /// What was asked.
  [[nodiscard]] virtual const HttpRequest& request() const = 0;
  /// Answers at once. This or begin() comes first, and once; later calls of either do nothing.
  virtual void reply(HttpReply answer) = 0;
  /// Begins an answer in parts; the body of `answer` is its first part.
  virtual void begin(HttpReply answer) = 0;
  /// A part of it. A client that does not take parts for long, or lets too many wait, is disconnected.
  virtual void write(std::string_view part) = 0;
  /// Ends an answer in parts.
  virtual void end() = 0;
  /// Whether the answer is still awaited: it is not complete, and the client has not gone.
  [[nodiscard]] virtual bool open() const = 0;
  /// Whether the client has ended its side of the connection, or the server has: what the kernel knows at this moment,
  /// ahead of on_gone(), which waits for a thread of the server. Any thread may call it.
  [[nodiscard]] virtual bool client_left() const = 0;
  /// Called once, if the client goes before its answer is complete.
  virtual void on_gone(std::function<void()> use) = 0;
  /// Runs `use` soon, in turn with the handler. Any thread may call it.
  virtual void post(std::function<void()> use) = 0;
};

/// Answers a request, now or later: the exchange may be kept. Called by several threads at once. An
/// exchange that nobody keeps and nobody answered is answered with 500.
using HttpHandler = std::function<void(std::shared_ptr<Exchange>)>;

/// What a client may ask of a server.
struct HttpLimits {
  std::size_t header_bytes = std::size_t{16} << 10;   ///< request line and header fields
  std::size_t body_bytes = std::size_t{2} << 20;      ///< as in TGI
  std::size_t bodies_bytes = std::size_t{256} << 20;  ///< of all bodies at once; one of header_bytes is not counted
  std::size_t waiting_bytes = std::size_t{4} << 20;   ///< of an answer, that a client has not yet taken
  /// At once. One more takes the place of those that have kept the server waiting longest; where all are being answered
  /// it gets an answer of open_paths, or 503.
  int connections = 4096;
  std::chrono::milliseconds header_time{10000};  ///< from the first byte of a request to the last of its header
  std::chrono::milliseconds body_time{30000};    ///< for the whole body
  std::chrono::milliseconds idle_time{60000};    ///< between requests on one connection
  std::chrono::milliseconds write_time{30000};   ///< in which a client must take something of its answer
};

/// How a server listens.
struct HttpOptions {
  std::string host = "127.0.0.1";         ///< an address of this machine, or "localhost"
  int port = 8080;                        ///< 0: one that is free
  std::string key{};                      ///< that requests must show as "Authorization: Bearer KEY"; empty: none
  std::vector<std::string> open_paths{};  ///< that need no key
  std::vector<std::string> open_pages{};  ///< that a browser gets without one: pages in which no data is
  bool trust_network = false;             ///< listen beyond this machine without a key: somebody else checks who asks
  int threads = 3;                        ///< that read requests and run the handler; with bodies all but one do
  HttpLimits limits{};                    ///< for each client
  /// The answer that refuses a request for a path before the handler sees it.
  std::function<HttpReply(std::string_view path, int status, const std::string& message)> refusal{};
  /// Told of each answer when it begins. Called by several threads at once.
  std::function<void(std::string_view path, int status)> answered{};
};

/// A server that listens from its construction to its end.
class HttpServer {
 public:
  HttpServer() = default;
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  virtual ~HttpServer() = default;

  /// Where it listens.
  [[nodiscard]] virtual int port() const = 0;
  /// Open connections.
  [[nodiscard]] virtual int connections() const = 0;
  /// Takes no new connection or request, waits for answers to end, at most `patience`, then closes what is left. The
  /// handler is not called any more when this returns.
  virtual void stop(std::chrono::milliseconds patience) = 0;
};

}  // namespace serve
}  // namespace v0
}  // namespace qlora
