// web_server.hpp — the hostile web server of tests/net/server.py, or another one, as a child process, and requests
// without limits of time, so that a slow machine meets none.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <string>

#include "qlora/net/http.hpp"

/// It ends when its standard input closes, and is killed and reaped here.
class Server {
 public:
  explicit Server(const char* program = "tests/net/server.py", const std::string& argument = {}) {
    const std::string path = std::string(QLORA_SOURCE_DIR "/") + program;
    int in[2];
    int out[2];
    REQUIRE(::pipe2(in, O_CLOEXEC) == 0);
    REQUIRE(::pipe2(out, O_CLOEXEC) == 0);
    child_ = ::fork();
    REQUIRE(child_ >= 0);
    if (child_ == 0) {
      ::dup2(in[0], 0);
      ::dup2(out[1], 1);
      ::execlp("python3", "python3", path.c_str(), argument.c_str(), static_cast<char*>(nullptr));
      ::_exit(127);
    }
    ::close(in[0]);
    ::close(out[1]);
    input_ = in[1];
    std::string line;
    for (char c = 0; ::read(out[0], &c, 1) == 1 && c != '\n';) line += c;
    ::close(out[0]);
    REQUIRE(!line.empty());
    port = line;
  }
  Server(const Server&) = delete;
  ~Server() {
    ::close(input_);
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
  }
  std::string port;  ///< the first line that it prints

 private:
  pid_t child_ = -1;
  int input_ = -1;
};

inline std::string url(const std::string& path) {
  static const Server server;
  return "http://127.0.0.1:" + server.port + path;
}

inline qlora::net::HttpOptions patient() {
  qlora::net::HttpOptions options;
  options.connect_timeout = options.total_timeout = std::chrono::hours(1);
  options.low_speed_seconds = 3600;
  options.backoff = std::chrono::milliseconds(10);
  return options;
}

inline qlora::net::HttpOptions own() {
  qlora::net::HttpOptions options = patient();
  options.allow_private = true;
  return options;
}

inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// The body of /plain.
inline const std::string plain_body =
    "<html><head><title>Caf\xC3\xA9</title></head><body><p>Plain page.</p></body></html>";
