// served.hpp — `qlora serve` with the repository's chat model, as a process. QLORA_PROGRAM is the built program.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <string>
#include <utility>

#include "support/http_client.hpp"
#include "support/scratch.hpp"

namespace test {

inline const std::string served_model = std::string(QLORA_SOURCE_DIR) + "/examples/models/tiny-chat";

/// The program at work. `arguments`: as a shell reads them.
class Server {
 public:
  Server(const Scratch& scratch, const std::string& arguments, const std::string& environment = {}) {
    std::array<int, 2> pipe{};
    REQUIRE(::pipe2(pipe.data(), O_CLOEXEC) == 0);
    const std::string line = environment + " exec '" QLORA_PROGRAM "' serve -q --port 0 --threads 1 " + arguments +
                             " 2>'" + (scratch / "serve.err").string() + "'";
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe[1], STDOUT_FILENO);
    std::string shell = "sh", option = "-c", text = line;
    std::array<char*, 4> words{shell.data(), option.data(), text.data(), nullptr};
    REQUIRE(posix_spawn(&process_, "/bin/sh", &actions, nullptr, words.data(), environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
    ::close(pipe[1]);
    std::string said;
    char byte = 0;
    while (said.find('\n') == std::string::npos && ::read(pipe[0], &byte, 1) == 1) said += byte;
    ::close(pipe[0]);
    INFO(contents(scratch / "serve.err"));
    REQUIRE(said.starts_with("listening on http://"));
    port_ = std::atoi(said.substr(said.rfind(':') + 1).c_str());
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  ~Server() {
    if (process_ > 0) (void)stop();
  }

  [[nodiscard]] Client client() const { return Client(port_); }
  [[nodiscard]] Answer post(const std::string& path, const std::string& body) const {
    return client().ask("POST", path, body);
  }
  /// The value of a counter; -1 where it is not there.
  [[nodiscard]] double counter(const std::string& name) const {
    const std::string all = client().ask("GET", "/metrics").body;
    const std::size_t at = all.find("\n" + name + " ");
    return at == std::string::npos ? -1.0 : std::strtod(all.c_str() + at + 1 + name.size(), nullptr);
  }
  void signal() const { ::kill(process_, SIGTERM); }
  /// Its exit code; -1 where it cannot be had. Nothing is checked here: the last server ends behind all cases.
  int wait() {
    int status = 0;
    if (::waitpid(std::exchange(process_, 0), &status, 0) <= 0) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  int stop() {
    signal();
    return wait();
  }

 private:
  pid_t process_ = 0;
  int port_ = 0;
};

}  // namespace test
