// qlora/serve/http_connection.hpp — a client of the HTTP server, and its exchange: what it is answered is written as fast
// as it takes it. What it sends is read in http_reading.hpp. Part of http_server.hpp.
// States     idle: between requests; reading: header and body; answering: until the answer is written; closing
// Order      a connection is a strand: reads, the handler, writes and timers never run at the same time
#pragma once

#include <array>
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
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

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
  std::unordered_map<const Connection*, std::weak_ptr<Connection>> connections{};

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
  Connection(Socket socket, Server& server)
      : socket_(std::move(socket)),
        server_(server),
        room_(server),
        deadline_(socket_.get_executor()),
        write_deadline_(socket_.get_executor()) {}
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() {
    const std::lock_guard lock(server_.mutex);
    server_.connections.erase(this);
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
  Server& server_;
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

inline void Connection::send_head(std::string_view path, const HttpReply& answer, bool in_parts) {
  if (server_.options.answered) server_.options.answered(path, answer.status);
  beast_http::response<beast_http::empty_body> head;
  head.version(11);
  head.result(static_cast<unsigned>(answer.status));
  head.set(beast_http::field::content_type, answer.type);
  head.set("X-Content-Type-Options", "nosniff");
  for (const auto& [name, value] : answer.headers) head.set(name, value);
  keep_alive_ = keep_alive_ && !server_.stopping;
  if (!in_parts) {
    head.set(beast_http::field::content_length, std::to_string(answer.body.size()));
  } else if (chunked_) {
    head.set(beast_http::field::transfer_encoding, "chunked");
  } else {
    keep_alive_ = false;  // the end of the connection is the end of the answer
  }
  head.set(beast_http::field::connection, keep_alive_ ? "keep-alive" : "close");
  std::ostringstream text;
  text << head.base();
  send(text.str());
  if (!in_parts && !head_) send(answer.body);
}

inline void Connection::send_part(std::string_view part) {
  if (head_) return;
  if (!chunked_) {
    send(part);
    return;
  }
  std::array<char, 24> size{};
  const int length = std::snprintf(size.data(), size.size(), "%zx\r\n", part.size());
  std::string chunk(size.data(), static_cast<std::size_t>(length));
  chunk += part;
  send(chunk += "\r\n");  // of no bytes: the last one
}

inline void Connection::send(std::string_view bytes) {
  if (!socket_.is_open()) return;
  if (waiting_.size() + sending_.size() - sent_ > server_.options.limits.waiting_bytes) {
    gone();
    return;
  }
  waiting_ += bytes;
  if (sending_.empty()) write_some();
}

inline void Connection::write_some() {
  if (sent_ == sending_.size()) {
    sending_ = std::exchange(waiting_, {});
    sent_ = 0;
    if (sending_.empty()) {
      disarm(write_deadline_);
      if (current_ == nullptr && state_ == State::answering) next();
      return;
    }
  }
  write_deadline_.expires_after(server_.options.limits.write_time);
  write_deadline_.async_wait([self = shared_from_this()](error_code stopped) {
    if (!stopped && self->write_deadline_.expiry() <= std::chrono::steady_clock::now()) self->gone();
  });
  socket_.async_write_some(asio::buffer(sending_.data() + sent_, sending_.size() - sent_),
                           [self = shared_from_this()](error_code failed, std::size_t size) {
                             if (failed) {
                               self->gone();
                               return;
                             }
                             self->sent_ += size;
                             self->write_some();
                           });
}

inline void Connection::complete() {
  current_ = nullptr;
  room_.give_back();
  if (socket_.is_open() && sending_.empty()) next();
}

inline void Connection::next() {
  if (!keep_alive_ || server_.stopping) {
    linger();
    return;
  }
  state_ = State::idle;
  arm(server_.options.limits.idle_time);
  if (reads_) {  // a request that was sent ahead is here: what watched the client during the answer may end
    error_code ignored;
    if (buffer_.size() > 0) socket_.cancel(ignored);
  } else if (buffer_.size() > 0) {
    read_header();
  } else {
    read_more();
  }
}

inline void Connection::gone() {
  const std::shared_ptr<ConnectionExchange> exchange = std::exchange(current_, nullptr);
  close();
  if (exchange != nullptr) exchange->lose();
}

inline void Connection::fail(const std::string& message) {
  const std::shared_ptr<ConnectionExchange> exchange = current_;
  if (exchange == nullptr) return;
  if (exchange->begun()) {
    gone();
  } else {
    exchange->answer_failed(server_.refusal(exchange->request().path, 500, message));
  }
}

/// Lets the client read the last answer before a reset for bytes that nobody read could take it away.
inline void Connection::linger() {
  state_ = State::closing;
  error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  if (ignored) {
    close();
    return;
  }
  arm(std::chrono::milliseconds(1000));
  if (!reads_) discard(std::size_t{1} << 20);
}
inline void Connection::discard(std::size_t left) {
  buffer_.clear();
  socket_.async_read_some(buffer_.prepare(4096),
                          [self = shared_from_this(), left](error_code failed, std::size_t size) {
                            if (failed || size >= left) {
                              self->close();
                            } else {
                              self->discard(left - size);
                            }
                          });
}
inline void Connection::close() {
  error_code ignored;
  deadline_.cancel();
  write_deadline_.cancel();
  socket_.close(ignored);
  room_.give_back();
  state_ = State::closing;
  if (const auto exchange = std::exchange(current_, nullptr)) exchange->lose();
}

}  // namespace detail
}  // namespace serve
}  // namespace v0
}  // namespace qlora
