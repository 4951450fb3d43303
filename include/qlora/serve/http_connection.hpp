// qlora/serve/http_connection.hpp — a client of the HTTP server, and its exchange: what it is answered is written in
// http_writing.hpp, what it sends is read in http_reading.hpp. Part of http_server.hpp.
// States     idle: between requests; reading: header and body; answering: until the answer is written; closing
// Order      a connection is a strand: reads, the handler, writes and timers never run at the same time
#pragma once

#include <poll.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "qlora/serve/http.hpp"
#include "qlora/serve/http_guard.hpp"
#include "qlora/serve/http_lane.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {
namespace detail {

namespace asio = boost::asio;
namespace beast_http = boost::beast::http;
using boost::system::error_code;
using tcp = asio::ip::tcp;
using Socket = asio::basic_stream_socket<tcp, asio::strand<asio::io_context::executor_type>>;
using Timer = asio::basic_waitable_timer<std::chrono::steady_clock, asio::wait_traits<std::chrono::steady_clock>,
                                         asio::strand<asio::io_context::executor_type>>;

class Connection;

/// What all connections have in common.
struct Server {
  HttpOptions options;
  HttpHandler handler;
  KeyCheck key;
  bool only_local = false;  ///< without a key and for this machine: pages of other sites in its browser are kept out
  std::atomic<bool> stopping{false};
  std::atomic<bool> over{false};           ///< its threads have ended
  std::atomic<std::size_t> body_bytes{0};  ///< that bodies take, or may yet take

  BodyLane lane{options.threads};

  std::mutex mutex{};  // of what follows
  std::condition_variable none_left{};
  std::unordered_map<Connection*, std::weak_ptr<Connection>> connections{};
  std::size_t leaving = 0;  ///< of connections, told to make room

  /// Connections that take room. Needs the mutex.
  [[nodiscard]] int open() const { return static_cast<int>(connections.size() - leaving); }
  /// Chooses connections to make room for new ones: those that have waited longest for what their clients have to send,
  /// several at once, so that a flood of clients does not have them searched for each of it; none where all are being
  /// answered. Needs the mutex; they are to be told without it.
  [[nodiscard]] std::vector<std::shared_ptr<Connection>> make_room();

  [[nodiscard]] HttpReply refusal(std::string_view path, int status, const std::string& message) const {
    if (options.refusal) return options.refusal(path, status, message);
    return {status, "text/plain; charset=utf-8", message + "\n", {}};
  }
};

/// A connection's part of the memory that all bodies may take.
class BodyRoom {
 public:
  explicit BodyRoom(Server& server) : server_(server) {}
  BodyRoom(const BodyRoom&) = delete;
  BodyRoom& operator=(const BodyRoom&) = delete;
  ~BodyRoom() { give_back(); }
  /// False: there is not so much.
  [[nodiscard]] bool take(std::size_t bytes) {
    give_back();
    if (bytes <= server_.options.limits.header_bytes) return true;
    taken_ = bytes;
    if (server_.body_bytes.fetch_add(bytes) + bytes <= server_.options.limits.bodies_bytes) return true;
    give_back();
    return false;
  }
  void give_back() { server_.body_bytes -= std::exchange(taken_, 0); }

 private:
  Server& server_;
  std::size_t taken_ = 0;
};

class ConnectionExchange;

/// One client. Lives as long as something waits for it.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  /// A `spare` one is beyond the limit, for open_paths.
  Connection(Socket socket, Server& server, bool spare)
      : socket_(std::move(socket)),
        descriptor_(socket_.native_handle()),
        server_(server),
        spare_(spare),
        room_(server),
        deadline_(socket_.get_executor()),
        write_deadline_(socket_.get_executor()) {}
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() {
    const std::lock_guard lock(server_.mutex);
    server_.connections.erase(this);
    if (leaving_) --server_.leaving;
    if (server_.connections.empty()) server_.none_left.notify_all();
  }

  void start() {
    asio::post(socket_.get_executor(), [self = shared_from_this()] {
      self->arm(self->server_.options.limits.header_time);
      self->read_more();
    });
  }
  /// The server stops: closes where no request is under way.
  void drain() {
    asio::post(socket_.get_executor(), [self = shared_from_this()] {
      if (self->state_ == State::idle) self->close();
    });
  }
  void close_soon() {
    asio::post(socket_.get_executor(), [self = shared_from_this()] { self->close(); });
  }
  /// Ends, to make room, unless what it waited for has come meanwhile.
  void leave() {
    asio::post(socket_.get_executor(), [self = shared_from_this()] {
      if (self->waits_since_ != not_waiting) {
        self->close();
        return;
      }
      const std::lock_guard lock(self->server_.mutex);
      if (std::exchange(self->leaving_, false)) --self->server_.leaving;
    });
  }
  /// When it began to wait for its client, by the steady clock; not_waiting: it does not. Any thread may ask.
  [[nodiscard]] std::int64_t waits_since() const { return waits_since_; }
  /// Marks it as one that makes room. Needs the server's mutex.
  void choose() {
    leaving_ = true;
    ++server_.leaving;
  }
  /// Whether it is marked so. Needs the server's mutex.
  [[nodiscard]] bool leaves() const { return leaving_; }
  static constexpr std::int64_t not_waiting = std::numeric_limits<std::int64_t>::max();

  /// Whether the connection has ended, at the client's side or here. Any thread may ask.
  [[nodiscard]] bool left() const {
    const std::lock_guard lock(open_mutex_);
    if (!open_) return true;
    pollfd look{.fd = descriptor_, .events = POLLRDHUP, .revents = 0};
    return ::poll(&look, 1, 0) > 0;
  }

  // What an exchange uses, on the strand.
  void send_head(std::string_view path, const HttpReply& answer, bool in_parts);
  void send(std::string_view bytes);
  void send_part(std::string_view part);
  /// The answer is complete; what of it waits is still sent.
  void complete();
  template <class Use>
  void post(Use use) {
    asio::post(socket_.get_executor(), std::move(use));
  }
  /// What answers has thrown: the request ends with 500, or, where its answer has begun, with the connection.
  void fail(const std::string& message);

 private:
  enum class State : std::uint8_t { idle, reading, answering, closing };

  void arm(std::chrono::milliseconds time) {
    deadline_.expires_after(time);
    deadline_.async_wait([self = shared_from_this()](error_code stopped) {
      if (!stopped && self->deadline_.expiry() <= std::chrono::steady_clock::now()) self->close();
    });
  }
  /// Of a timer that has run out and whose handler waits for its turn, cancel() alone would be too late.
  static void disarm(Timer& timer) { timer.expires_at(std::chrono::steady_clock::time_point::max()); }
  /// From now on the client keeps the server waiting.
  void wait() { waits_since_ = std::chrono::steady_clock::now().time_since_epoch().count(); }

  /// Reads while no request is being read: the beginning of the next, or, during an answer, whether the client goes.
  void read_more() {
    if (reads_ || !socket_.is_open()) return;
    reads_ = true;
    socket_.async_read_some(buffer_.prepare(4096), [self = shared_from_this()](error_code failed, std::size_t size) {
      self->reads_ = false;
      self->buffer_.commit(failed ? 0 : size);
      self->got(failed);
    });
  }
  void got(error_code failed);
  void read_header();
  void got_header(error_code failed);
  void read_body();
  void got_body(error_code failed);
  void answer();
  void handle(const std::shared_ptr<Exchange>& exchange);
  /// Refuses a request that was not read whole; the connection ends.
  void refuse(int status, const std::string& message);
  void next();
  void write_some();
  void gone();
  void linger();
  void discard(std::size_t left);
  void close();

  Socket socket_;
  const int descriptor_;           // of socket_, while open_
  mutable std::mutex open_mutex_;  // of open_: a number that was closed may be another socket's
  bool open_ = true;
  Server& server_;
  std::atomic<std::int64_t> waits_since_{std::chrono::steady_clock::now().time_since_epoch().count()};
  bool leaving_ = false;  // of the server's mutex
  const bool spare_;
  BodyRoom room_;
  Timer deadline_, write_deadline_;
  boost::beast::flat_buffer buffer_;
  std::optional<beast_http::request_parser<beast_http::string_body>> parser_;
  std::shared_ptr<ConnectionExchange> current_;
  State state_ = State::idle;
  bool reads_ = false;       // read_more() is under way
  bool keep_alive_ = false;  // of the request that is answered
  bool chunked_ = false;     // HTTP/1.1
  bool head_ = false;        // the answer has no body
  std::string sending_, waiting_;
  std::size_t sent_ = 0;  // of sending_
};

class ConnectionExchange final : public Exchange, public std::enable_shared_from_this<ConnectionExchange> {
 public:
  ConnectionExchange(std::shared_ptr<Connection> connection, HttpRequest request)
      : connection_(std::move(connection)), request_(std::move(request)) {}
  ~ConnectionExchange() override = default;

  [[nodiscard]] const HttpRequest& request() const override { return request_; }
  void reply(HttpReply answer) override {
    if (!open() || begun_) return;
    begun_ = true;
    connection_->send_head(request_.path, answer, false);
    finish();
  }
  void begin(HttpReply answer) override {
    if (!open() || begun_) return;
    begun_ = true;
    connection_->send_head(request_.path, answer, true);
    if (open() && !answer.body.empty()) connection_->send_part(answer.body);
  }
  void write(std::string_view part) override {
    if (open() && begun_ && !part.empty()) connection_->send_part(part);
  }
  void end() override {
    if (!open() || !begun_) return;
    connection_->send_part({});
    if (open()) finish();
  }
  [[nodiscard]] bool open() const override { return !over_; }
  [[nodiscard]] bool client_left() const override { return connection_->left(); }
  void on_gone(std::function<void()> use) override {
    if (open()) gone_ = std::move(use);
  }
  void post(std::function<void()> use) override {
    connection_->post([self = shared_from_this(), use = std::move(use)] {
      try {
        use();
      } catch (const std::exception& error) {
        self->connection_->fail(error.what());
      }
    });
  }

  /// The client has gone.
  void lose() {
    if (std::exchange(over_, true)) return;
    if (const auto use = std::exchange(gone_, nullptr)) use();
  }
  [[nodiscard]] bool begun() const { return begun_; }
  /// Answers for a handler that has failed, which is told as if the client had gone.
  void answer_failed(HttpReply answer) {
    const auto use = std::exchange(gone_, nullptr);
    reply(std::move(answer));
    if (use) use();
  }

 private:
  void finish() {
    over_ = true;
    gone_ = nullptr;
    connection_->complete();
  }

  std::shared_ptr<Connection> connection_;
  HttpRequest request_;
  std::function<void()> gone_;
  bool begun_ = false;
  bool over_ = false;
};

inline std::vector<std::shared_ptr<Connection>> Server::make_room() {
  std::vector<std::pair<std::int64_t, Connection*>> waiting;  // whose destructors wait for the mutex
  for (const auto& [connection, weak] : connections) {
    const std::int64_t since = connection->waits_since();
    if (since != Connection::not_waiting && !connection->leaves()) waiting.emplace_back(since, connection);
  }
  constexpr int part = 64;  // of all connections
  const auto most = static_cast<std::size_t>(std::max(1, options.limits.connections / part));
  const std::size_t count = std::min(most, waiting.size());
  std::nth_element(waiting.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(count), waiting.end());
  std::vector<std::shared_ptr<Connection>> chosen;
  for (std::size_t i = 0; i < count; ++i) {
    std::shared_ptr<Connection> connection = connections[waiting[i].second].lock();
    if (connection == nullptr) continue;  // it ends now
    connection->choose();
    chosen.push_back(std::move(connection));
  }
  return chosen;
}

/// What a handler gets: the exchange, and an answer if nobody gives one.
[[nodiscard]] inline std::shared_ptr<Exchange> answered_at_last(const std::shared_ptr<ConnectionExchange>& exchange,
                                                                const Server& server) {
  return {exchange.get(), [exchange, &server](Exchange*) {
            if (server.over) return;
            exchange->post([exchange, &server] {
              if (!exchange->open()) return;
              if (exchange->begun()) {
                exchange->end();
              } else {
                exchange->reply(server.refusal(exchange->request().path, 500, "the request was not answered"));
              }
            });
          }};
}

}  // namespace detail
}  // namespace serve
}  // namespace v0
}  // namespace qlora
