// qlora/serve/http_reading.hpp — what a client of the HTTP server sends, read within limits and deadlines, and who may
// ask. Part of http_server.hpp; the other half is http_writing.hpp.
#pragma once

#include <algorithm>
#include <boost/asio/error.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/field.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/verb.hpp>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/error.hpp"
#include "qlora/serve/http_connection.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {
namespace detail {

inline void Connection::got(error_code failed) {
  switch (state_) {
    case State::idle:
      if (failed && (failed != asio::error::operation_aborted || !socket_.is_open() || buffer_.size() == 0)) {
        close();
      } else {
        read_header();
      }
      return;
    case State::answering: {
      if (failed) {
        gone();
        return;
      }
      // Requests that are sent ahead are kept; a client that sends more than that is no longer watched.
      if (buffer_.size() < server_.options.limits.header_bytes) read_more();
      return;
    }
    case State::closing:
      if (failed) {
        close();
      } else {
        discard(std::size_t{1} << 20);
      }
      return;
    case State::reading:
      return;
  }
}

inline void Connection::read_header() {
  state_ = State::reading;
  wait();
  arm(server_.options.limits.header_time);
  parser_.emplace();
  parser_->header_limit(static_cast<std::uint32_t>(server_.options.limits.header_bytes));
  parser_->body_limit(server_.options.limits.body_bytes);
  beast_http::async_read_header(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](error_code failed, std::size_t) { self->got_header(failed); });
}

inline void Connection::got_header(error_code failed) {
  using beast_http::error;
  if (!socket_.is_open()) return;
  if (failed == error::header_limit) {
    refuse(431, concat("the header has more than ", server_.options.limits.header_bytes, " bytes"));
  } else if (failed == error::body_limit) {
    refuse(413, concat("the body has more than ", server_.options.limits.body_bytes, " bytes"));
  } else if (failed == error::end_of_stream || failed == error::partial_message) {
    close();
  } else if (failed.category() == make_error_code(error::bad_method).category()) {
    refuse(400, "this is not HTTP: " + failed.message());
  } else if (failed) {
    close();
  } else {
    const auto& request = parser_->get();
    const auto target = std::string_view(request.target().data(), request.target().size());
    const std::string_view path = target.substr(0, target.find('?'));
    const bool reads = request.method() == beast_http::verb::get || request.method() == beast_http::verb::head;
    const auto value = [&](beast_http::field name) {
      const auto found = request[name];
      return std::string_view(found.data(), found.size());
    };
    if (request.count(beast_http::field::content_length) > 0 &&
        request.count(beast_http::field::transfer_encoding) > 0) {
      refuse(400, "a request has Content-Length or Transfer-Encoding, not both");
    } else if (spare_ && !is_open(server_.options, reads, path, {})) {
      refuse(503, "the server has as many connections as it may have; try again later");
    } else if (server_.key.needed() && !is_open(server_.options, reads, path, value(beast_http::field::accept)) &&
               !server_.key.shown(value(beast_http::field::authorization))) {
      refuse(401, "a key is needed: send it as \"Authorization: Bearer KEY\"");
    } else if (server_.only_local && ((!value(beast_http::field::host).empty() &&
                                       !names_this_machine(host_name(value(beast_http::field::host)))) ||
                                      (!value(beast_http::field::origin).empty() &&
                                       !names_this_machine(host_name(value(beast_http::field::origin)))))) {
      refuse(403, "this server has no key and answers this machine only, not pages of other sites");
    } else if (!room_.take(!parser_->chunked() ? static_cast<std::size_t>(parser_->content_length().value_or(0))
                                               : server_.options.limits.body_bytes)) {
      refuse(503, "there is no room for so large a body beside those that others send; try again later");
    } else if (lower(value(beast_http::field::expect)) == "100-continue" && !parser_->is_done()) {
      send("HTTP/1.1 100 Continue\r\n\r\n");
      read_body();
    } else {
      read_body();
    }
  }
}

inline void Connection::read_body() {
  arm(server_.options.limits.body_time);
  beast_http::async_read(socket_, buffer_, *parser_,
                         [self = shared_from_this()](error_code failed, std::size_t) { self->got_body(failed); });
}

inline void Connection::got_body(error_code failed) {
  if (!socket_.is_open()) return;
  if (failed == beast_http::error::body_limit) {
    refuse(413, concat("the body has more than ", server_.options.limits.body_bytes, " bytes"));
  } else if (failed && failed.category() == make_error_code(beast_http::error::bad_method).category() &&
             failed != beast_http::error::partial_message) {
    refuse(400, "the body is malformed: " + failed.message());
  } else if (failed) {
    close();
  } else {
    answer();
  }
}

inline void Connection::answer() {
  disarm(deadline_);
  state_ = State::answering;
  waits_since_ = not_waiting;
  auto message = parser_->release();
  parser_.reset();
  keep_alive_ = message.keep_alive();
  chunked_ = message.version() >= 11;
  head_ = message.method() == beast_http::verb::head;
  const std::string target(message.target());
  const std::size_t mark = std::min(target.find('?'), target.size());
  HttpRequest request{.method = head_ ? "GET" : std::string(message.method_string()),
                      .path = target.substr(0, mark),
                      .query = target.substr(std::min(mark + 1, target.size())),
                      .body = std::move(message.body())};
  for (const auto& field : message.base()) {
    request.headers.emplace_back(lower({field.name_string().data(), field.name_string().size()}),
                                 std::string(field.value()));
  }
  current_ = std::make_shared<ConnectionExchange>(shared_from_this(), std::move(request));
  const std::shared_ptr<Exchange> shown = answered_at_last(current_, server_);
  read_more();
  if (shown->request().body.empty()) {
    handle(shown);
    return;
  }
  const auto in_lane = [self = shared_from_this(), shown] {
    const BodyLane::Turn turn(self->server_.lane);
    self->handle(shown);
  };
  if (server_.lane.enter([self = shared_from_this(), in_lane] { self->post(in_lane); })) in_lane();
}

inline void Connection::handle(const std::shared_ptr<Exchange>& exchange) {
  if (!exchange->open()) return;  // the client has gone while it waited
  const std::string path = exchange->request().path;
  if (server_.stopping) {
    HttpReply busy = server_.refusal(path, 503, "the server is about to stop");
    busy.headers.emplace_back("Retry-After", "1");
    exchange->reply(std::move(busy));
    return;
  }
  try {
    server_.handler(exchange);
  } catch (const std::exception& error) {
    fail(error.what());
  }
}

inline void Connection::refuse(int status, const std::string& message) {
  disarm(deadline_);
  room_.give_back();
  std::string path;
  if (parser_.has_value()) {
    const std::string target(parser_->get().target());
    path = target.substr(0, target.find('?'));
    head_ = parser_->get().method() == beast_http::verb::head;
  }
  state_ = State::answering;
  waits_since_ = not_waiting;
  keep_alive_ = false;
  chunked_ = false;
  HttpReply reply = server_.refusal(path, status, message);
  if (status == 401) reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  send_head(path, reply, false);
}

}  // namespace detail
}  // namespace serve
}  // namespace v0
}  // namespace qlora
