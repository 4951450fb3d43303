// qlora/serve/http_writing.hpp — what a client of the HTTP server is answered, written as fast as it takes it, and the
// ends of its connection. Part of http_server.hpp; the other half is http_reading.hpp.
#pragma once

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/field.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/write.hpp>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/serve/http.hpp"
#include "qlora/serve/http_connection.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {
namespace detail {

inline void Connection::send_head(std::string_view path, const HttpReply& answer, bool in_parts) {
  if (server_.options.answered) server_.options.answered(path, answer.status);
  beast_http::response<beast_http::empty_body> head;
  head.version(11);
  head.result(static_cast<unsigned>(answer.status));
  head.set(beast_http::field::content_type, answer.type);
  head.set("X-Content-Type-Options", "nosniff");
  for (const auto& [name, value] : answer.headers) head.set(name, value);
  keep_alive_ = keep_alive_ && !server_.stopping && !spare_;
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
  wait();
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
  wait();
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
  {
    const std::lock_guard lock(open_mutex_);
    open_ = false;
    socket_.close(ignored);
  }
  room_.give_back();
  state_ = State::closing;
  if (const auto exchange = std::exchange(current_, nullptr)) exchange->lose();
}

}  // namespace detail
}  // namespace serve
}  // namespace v0
}  // namespace qlora
