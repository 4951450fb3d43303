// http_client.hpp — a client over a plain socket of this machine, which says byte by byte what it means to say.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace test {

/// A client gives up on a server that says nothing for so long.
inline constexpr int client_patience_ms = 60000;

/// What a server answered.
struct Answer {
  int status = 0;  ///< 0: none, the connection ended
  std::string head;
  std::string body;  ///< chunks put together
  bool whole = false;

  /// The value of a header field; empty where there is none.
  [[nodiscard]] std::string field(std::string_view name) const {
    const std::string wanted = "\r\n" + std::string(name) + ": ";
    const std::size_t at = head.find(wanted);
    if (at == std::string::npos) return {};
    const std::size_t begin = at + wanted.size();
    return head.substr(begin, head.find("\r\n", begin) - begin);
  }
};

class Client {
 public:
  explicit Client(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in where{};
    where.sin_family = AF_INET;
    where.sin_port = htons(static_cast<std::uint16_t>(port));
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (socket_ < 0 || ::connect(socket_, reinterpret_cast<const sockaddr*>(&where), sizeof where) != 0) {
      throw std::runtime_error("cannot connect");
    }
  }
  Client(Client&& other) noexcept : socket_(std::exchange(other.socket_, -1)), held_(std::move(other.held_)) {}
  Client& operator=(Client&&) = delete;
  ~Client() { hang_up(); }

  void hang_up() {
    if (socket_ >= 0) ::close(std::exchange(socket_, -1));
  }
  /// Says that nothing more comes, and waits until the server's kernel knows.
  void finish() {
    ::shutdown(socket_, SHUT_WR);
    tcp_info info{};
    for (socklen_t size = sizeof info; ::getsockopt(socket_, IPPROTO_TCP, TCP_INFO, &info, &size) == 0;) {
      if (info.tcpi_state != TCP_ESTABLISHED && info.tcpi_state != TCP_FIN_WAIT1) return;
      ::usleep(100);
    }
  }
  /// False: the server has closed the connection.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent < 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
    return true;
  }
  /// Bytes that are there, at most as many; empty: the connection ended.
  std::string receive(std::size_t most = 65536) {
    if (!held_.empty()) return std::exchange(held_, {});
    pollfd waits{socket_, POLLIN, 0};
    if (::poll(&waits, 1, client_patience_ms) <= 0) throw std::runtime_error("the server says nothing");
    std::string bytes(most, '\0');
    const ssize_t got = ::recv(socket_, bytes.data(), bytes.size(), 0);
    bytes.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    return bytes;
  }
  /// Everything up to a text, which is part of it; what the connection still gave where the text does not come.
  std::string until(std::string_view text) {
    std::string all;
    for (;;) {
      const std::size_t at = all.find(text);
      if (at != std::string::npos) {
        held_ = all.substr(at + text.size());
        return all.substr(0, at + text.size());
      }
      const std::string more = receive();
      if (more.empty()) return all;
      all += more;
    }
  }
  /// Everything up to the end of the connection.
  std::string rest() {
    std::string all;
    for (;;) {
      const std::string more = receive();
      if (more.empty()) return all;
      all += more;
    }
  }
  Answer answer(bool head_only = false) {
    Answer out;
    out.head = until("\r\n\r\n");
    if (!out.head.starts_with("HTTP/1.1 ") || out.head.size() < 12) return out;
    out.status = std::atoi(out.head.c_str() + 9);
    if (head_only) {
      out.whole = true;
    } else if (out.field("Transfer-Encoding") == "chunked") {
      for (;;) {
        const std::string size_line = until("\r\n");
        if (!size_line.ends_with("\r\n")) return out;
        const std::size_t size = std::strtoul(size_line.c_str(), nullptr, 16);
        const std::string chunk = exactly(size + 2);
        if (chunk.size() != size + 2) return out;
        out.body += chunk.substr(0, size);
        if (size == 0) break;
      }
      out.whole = true;
    } else if (!out.field("Content-Length").empty()) {
      const std::size_t size = std::strtoul(out.field("Content-Length").c_str(), nullptr, 10);
      out.body = exactly(size);
      out.whole = out.body.size() == size;
    } else {
      out.body = rest();
      out.whole = true;
    }
    return out;
  }
  /// `headers`: lines with their ends.
  Answer ask(std::string_view method, std::string_view path, std::string_view body = {},
             std::string_view headers = {}) {
    std::string text = std::string(method) + " " + std::string(path) + " HTTP/1.1\r\nHost: localhost\r\n";
    if (!body.empty()) text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
    send(text + std::string(headers) + "\r\n" + std::string(body));
    return answer(method == "HEAD");
  }

 private:
  std::string exactly(std::size_t size) {
    std::string all;
    while (all.size() < size) {
      const std::string more = receive();
      if (more.empty()) return all;
      all += more;
    }
    held_ = all.substr(size);
    all.resize(size);
    return all;
  }

  int socket_;
  std::string held_;
};

}  // namespace test
