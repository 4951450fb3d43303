// qlora/run/start_ranks.hpp — starts this program once more for each GPU of the host, as torchrun would: the same
// command line, and rank, size and address in the environment. Waits for all of them.
#pragma once

#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "qlora/dist/sagemaker.hpp"
#include "qlora/error.hpp"
#include "qlora/run/progress.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// A port of this host that nobody uses now; 0: the system has none.
[[nodiscard]] inline int free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return 0;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  const bool bound = ::bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                     ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  ::close(fd);
  return bound ? ntohs(address.sin_port) : 0;
}

/// The arguments of this process.
[[nodiscard]] inline std::vector<std::string> own_arguments() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::string> arguments;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\0', at), text.size());
    arguments.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return arguments;
}

[[nodiscard]] inline std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

/// The environment of one rank.
[[nodiscard]] inline std::vector<std::string> rank_environment(int local, int gpus, const dist::Hosts& hosts,
                                                               int port) {
  const auto set = [](const char* name, const auto& value) { return concat(name, "=", value); };
  std::vector<std::string> result{set("RANK", hosts.index * gpus + local),
                                  set("WORLD_SIZE", hosts.count * gpus),
                                  set("LOCAL_RANK", local),
                                  set("LOCAL_WORLD_SIZE", gpus),
                                  set("MASTER_ADDR", hosts.first.empty() ? "127.0.0.1" : hosts.first),
                                  set("MASTER_PORT", port)};
  for (char** entry = ::environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const std::string_view name = text.substr(0, text.find('=') + 1);
    const auto same = [&](const std::string& made) { return std::string_view(made).starts_with(name); };
    if (std::none_of(result.begin(), result.begin() + 6, same)) result.emplace_back(text);
  }
  return result;
}

/// A process of ours and how it ended.
struct Child {
  pid_t pid = -1;
  int rank = 0;
  int status = 0;
  bool ended = false;
};

inline void signal_all(const std::vector<Child>& children, int number) {
  for (const Child& child : children) {
    if (!child.ended) (void)::kill(child.pid, number);
  }
}

/// Waits for all. Whoever fails has been noticed by the others, who end by themselves; what is left half a minute later
/// is ended. Returns the first that failed; null: none.
[[nodiscard]] inline const Child* wait_for_all(std::vector<Child>& children, const Progress& progress) {
  using Clock = std::chrono::steady_clock;
  const Child* first = nullptr;
  Clock::time_point failed{};
  bool told = false;
  while (std::any_of(children.begin(), children.end(), [](const Child& child) { return !child.ended; })) {
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, WNOHANG);
    for (Child& child : children) {
      if (pid <= 0 || child.pid != pid) continue;
      child.ended = true;
      child.status = status;
      if (status == 0 || first != nullptr) continue;
      first = &child;
      failed = Clock::now();
    }
    if (pid > 0) continue;
    if (pid < 0 && errno == ECHILD) break;
    if (progress.stop_requested() && !told) signal_all(children, SIGTERM);
    told = told || progress.stop_requested();
    if (first != nullptr && Clock::now() - failed > std::chrono::seconds(30)) signal_all(children, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return first;
}

}  // namespace detail

/// Starts `gpus` processes on this host, one of `hosts`, and waits for them. Ctrl-C and SIGTERM of this process are
/// passed on once. Throws Error of the kind of the first that failed, (resource) when it was killed.
inline void start_ranks(int gpus, const dist::Hosts& hosts, const Progress& progress) {
  std::vector<std::string> arguments = detail::own_arguments();
  QLORA_EXPECTS(!arguments.empty(), "the system does not tell this program's command line");
  // NCCL takes the port behind it (dist::meeting_point). Hosts must agree on one without talking.
  const int port = hosts.count > 1 ? 29500 : detail::free_port() - 1;
  if (port < 1) throw Error("there is no free port for the processes to meet at", ErrorKind::resource);
  std::vector<char*> argv = detail::pointers(arguments);
  std::vector<detail::Child> children;
  for (int local = 0; local < gpus; ++local) {
    std::vector<std::string> variables = detail::rank_environment(local, gpus, hosts, port);
    std::vector<char*> envp = detail::pointers(variables);
    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid == 0) {
      // A terminal's Ctrl-C is for the parent, who passes it on: two signals would end a rank at once.
      (void)::setpgid(0, 0);
      (void)::prctl(PR_SET_PDEATHSIG, SIGTERM);
      (void)::signal(SIGINT, SIG_DFL);
      (void)::signal(SIGTERM, SIG_DFL);
      if (::getppid() == parent) ::execve("/proc/self/exe", argv.data(), envp.data());
      ::_exit(4);
    }
    if (pid < 0) {
      detail::signal_all(children, SIGKILL);
      (void)detail::wait_for_all(children, progress);
      throw Error(concat("cannot start process ", local + 1, " of ", gpus), ErrorKind::resource);
    }
    children.push_back({pid, hosts.index * gpus + local});
  }
  const detail::Child* failed = detail::wait_for_all(children, progress);
  if (failed == nullptr) return;
  if (WIFEXITED(failed->status)) {
    const int code = WEXITSTATUS(failed->status);
    const bool known = code >= 1 && code <= 6;
    throw Error(
        concat("rank ", failed->rank, " ended with exit code ", code, "; what each rank did is in logs/ of --out"),
        known ? static_cast<ErrorKind>(code) : ErrorKind::resource);
  }
  throw Error(concat("rank ", failed->rank, " was killed by signal ", WTERMSIG(failed->status),
                     "; the same command resumes from the last checkpoint"),
              ErrorKind::resource);
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
