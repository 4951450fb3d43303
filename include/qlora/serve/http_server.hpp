// qlora/serve/http_server.hpp — the HTTP server, on Boost.Beast: bounded headers and bodies, a deadline for whatever a
// client has to do, answers in parts, clients that went away noticed, an end that lets answers finish.
// Each connection is a strand: what it reads, its handler and its writes never run at the same time.
#pragma once

#include <memory>

#include "qlora/run/prebuilt.hpp"
#include "qlora/serve/http.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// Throws Error (usage) as open_http_server() does, before anything else is done.
QLORA_STEP void check_http_options(const HttpOptions& options);

/// Listens. Throws Error: (usage) for a host that is no address of an interface, or that is reached from other machines
/// while there is neither a key nor trust_network; (resource) when the port cannot be had.
QLORA_STEP std::unique_ptr<HttpServer> open_http_server(const HttpOptions& options, HttpHandler handler);

}  // namespace serve
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <sys/resource.h>

#include <algorithm>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/serve/http_connection.hpp"
#include "qlora/serve/http_reading.hpp"
#include "qlora/serve/http_writing.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {
namespace detail {

/// Connections beyond the limit, so that requests for open_paths are answered.
inline constexpr int spare_connections = 32;

/// Room for this many connections in this process's file descriptors, of which it needs some for itself.
[[nodiscard]] inline int connections_allowed(int wanted) {
  constexpr rlim_t own = 64 + spare_connections;
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
  const rlim_t needed = static_cast<rlim_t>(wanted) + own;
  if (limit.rlim_cur < needed) {
    limit.rlim_cur = limit.rlim_max == RLIM_INFINITY ? needed : std::min(needed, limit.rlim_max);
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) (void)getrlimit(RLIMIT_NOFILE, &limit);
  }
  return static_cast<int>(
      std::min<rlim_t>(static_cast<rlim_t>(wanted), limit.rlim_cur - std::min(own, limit.rlim_cur / 2)));
}

/// Where to listen. Throws Error (usage).
[[nodiscard]] inline asio::ip::address address_of(const HttpOptions& options) {
  error_code failed;
  const auto address = asio::ip::make_address(options.host == "localhost" ? "127.0.0.1" : options.host, failed);
  if (failed) {
    throw Error(concat("--host is ", options.host, "; give an address of this machine, as 127.0.0.1 or 0.0.0.0"),
                ErrorKind::usage);
  }
  if (!address.is_loopback() && options.key.empty() && !options.trust_network) {
    throw Error(concat("--host ", options.host,
                       " is reached from other machines, and there is no key: give one with --key-file or in the "
                       "environment variable QLORA_API_KEY, or listen on 127.0.0.1"),
                ErrorKind::usage);
  }
  return address;
}

class BeastServer final : public HttpServer {
 public:
  BeastServer(const HttpOptions& options, HttpHandler handler)
      : server_{options, std::move(handler), KeyCheck(options.key)},
        io_(options.threads),
        acceptor_(asio::make_strand(io_)),
        pause_(acceptor_.get_executor()) {
    error_code failed;
    const auto address = address_of(options);
    server_.only_local = address.is_loopback() && options.key.empty();
    server_.options.limits.connections = connections_allowed(options.limits.connections);
    const tcp::endpoint where(address, static_cast<std::uint16_t>(options.port));
    const auto expect = [&](const char* what) {
      if (failed) {
        throw Error(concat("cannot ", what, " ", options.host, " port ", options.port, ": ", failed.message(),
                           "; choose another with --port, 0 for any that is free"),
                    ErrorKind::resource);
      }
    };
    acceptor_.open(where.protocol(), failed);
    expect("listen on");
    acceptor_.set_option(Acceptor::reuse_address(true), failed);
    acceptor_.bind(where, failed);
    expect("listen on");
    acceptor_.listen(asio::socket_base::max_listen_connections, failed);
    expect("listen on");
    port_ = acceptor_.local_endpoint().port();
    accept();
    for (int i = 0; i < options.threads; ++i) {
      threads_.emplace_back([this] { work(); });
    }
  }
  ~BeastServer() override { stop(std::chrono::milliseconds(0)); }

  [[nodiscard]] int port() const override { return port_; }
  [[nodiscard]] int connections() const override {
    const std::lock_guard lock(server_.mutex);
    return server_.open();
  }
  void stop(std::chrono::milliseconds patience) override {
    if (threads_.empty()) return;
    server_.stopping = true;
    asio::post(acceptor_.get_executor(), [this] {
      error_code ignored;
      acceptor_.close(ignored);
      pause_.cancel();
    });
    const auto each = [&](void (Connection::*use)()) {
      std::vector<std::shared_ptr<Connection>> all;
      {
        const std::lock_guard lock(server_.mutex);
        for (const auto& [key, connection] : server_.connections) all.push_back(connection.lock());
      }
      for (const auto& connection : all) {
        if (connection != nullptr) ((*connection).*use)();
      }
    };
    const auto wait = [&](std::chrono::milliseconds time) {
      std::unique_lock lock(server_.mutex);
      return server_.none_left.wait_for(lock, time, [&] { return server_.connections.empty(); });
    };
    each(&Connection::drain);
    if (!wait(patience)) {
      each(&Connection::close_soon);
      (void)wait(std::chrono::milliseconds(1000));
    }
    io_.stop();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    server_.over = true;
    server_.lane.clear();
  }

 private:
  using Acceptor = asio::basic_socket_acceptor<tcp, asio::strand<asio::io_context::executor_type>>;

  /// What a connection throws, for want of memory, ends that connection.
  void work() {
    for (;;) {
      try {
        io_.run();
        return;
      } catch (const std::exception&) {
        continue;
      }
    }
  }
  void accept() {
    acceptor_.async_accept(asio::make_strand(io_), [this](error_code failed, Socket socket) {
      if (server_.stopping || !acceptor_.is_open()) return;
      if (failed) {  // no file descriptor is free, say
        pause_.expires_after(std::chrono::milliseconds(100));
        pause_.async_wait([this](error_code stopped) {
          if (!stopped) accept();
        });
        return;
      }
      try {
        take(std::move(socket));
      } catch (const std::exception&) {  // no memory for one more
      }
      accept();
    });
  }
  void take(Socket socket) {
    error_code ignored;
    socket.set_option(tcp::no_delay(true), ignored);  // a token is sent when it is there
    std::shared_ptr<Connection> connection;
    std::vector<std::shared_ptr<Connection>> leaving;  // forgotten without the mutex, which their end needs
    {
      const std::lock_guard lock(server_.mutex);
      const int limit = server_.options.limits.connections;
      if (server_.open() >= limit) leaving = server_.make_room();
      if (const int open = server_.open(); open < limit + spare_connections) {
        connection = std::make_shared<Connection>(std::move(socket), server_, open >= limit);
        server_.connections.emplace(connection.get(), connection);
      }
    }
    for (const auto& other : leaving) other->leave();
    if (connection != nullptr) {
      connection->start();
      return;
    }
    constexpr std::string_view full =
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    socket.non_blocking(true, ignored);
    (void)socket.write_some(asio::buffer(full.data(), full.size()), ignored);
  }

  mutable Server server_;  // outlives what io_ still holds of connections
  asio::io_context io_;
  Acceptor acceptor_;  // a strand: it is not closed while it accepts
  Timer pause_;
  std::vector<std::thread> threads_;
  int port_ = 0;
};

}  // namespace detail

QLORA_STEP void check_http_options(const HttpOptions& options) { (void)detail::address_of(options); }

QLORA_STEP std::unique_ptr<HttpServer> open_http_server(const HttpOptions& options, HttpHandler handler) {
  return std::make_unique<detail::BeastServer>(options, std::move(handler));
}

}  // namespace serve
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
