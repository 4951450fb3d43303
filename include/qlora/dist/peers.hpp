// qlora/dist/peers.hpp — who the other ranks are, and whether they are still there: the watch of a Comm.
// A rank that ends is noticed at once by those on its own host, who hold a descriptor of its process; ranks of other
// hosts are told by the launcher, which sends SIGTERM to all when one fails. A rank that hangs is noticed by the time
// that it takes.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/comm.hpp"
#include "qlora/io/file.hpp"

namespace qlora {
inline namespace v0 {
namespace dist {

/// A process as the others know it; sent as bytes.
struct PeerId {
  std::array<char, 64> host{};      ///< name of its host, cut to 63 characters
  std::array<char, 128> machine{};  ///< equal where process numbers mean the same: one boot, one namespace
  std::int64_t pid = 0;             ///< its process number there

  /// This process.
  [[nodiscard]] static PeerId mine() {
    PeerId id{.pid = ::getpid()};
    (void)::gethostname(id.host.data(), id.host.size() - 1);
    std::array<char, 64> space{};  // boot_id has 36 characters, and no size that a reader of whole files would see
    const FileDescriptor boot(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
    const bool known = boot.get() >= 0 && ::read(boot.get(), space.data(), space.size() - 1) > 0;
    std::string where = known ? space.data() : id.host.data();
    space = {};
    (void)::readlink("/proc/self/ns/pid", space.data(), space.size() - 1);
    where += space.data();
    std::copy_n(where.begin(), std::min(where.size(), id.machine.size() - 1), id.machine.begin());
    return id;
  }
};

/// Watches the other ranks of a Comm. Made by all ranks at the same time; the Comm must not call it after it is gone.
class Peers {
 public:
  /// `stop_requested`: whether this process was asked to end; may be empty.
  Peers(Comm& comm, std::function<bool()> stop_requested)
      : rank_(comm.rank()), stop_requested_(std::move(stop_requested)), ids_(comm.gather(PeerId::mine())) {
    for (int peer = 0; peer < comm.size(); ++peer) {
      const PeerId& id = at(peer);
      if (peer == rank_ || id.machine != at(rank_).machine) continue;
      const long fd = ::syscall(SYS_pidfd_open, static_cast<pid_t>(id.pid), 0U);
      processes_.push_back({peer, FileDescriptor(static_cast<int>(fd))});
    }
  }

  /// Ranks that run on this rank's host, this one included.
  [[nodiscard]] int on_this_host() const { return static_cast<int>(processes_.size()) + 1; }
  /// "rank 1 (process 4711 on gpu03)".
  [[nodiscard]] std::string name(int rank) const {
    return concat("rank ", rank, " (process ", at(rank).pid, " on ", at(rank).host.data(), ")");
  }
  /// What is being done, for messages: "in step 7".
  void set_doing(std::string doing) { doing_ = std::move(doing); }
  /// Seconds that the others may take from now on; infinity: as long as they like.
  void set_patience(double seconds) { patience_ = seconds; }

  /// The watch: throws Error (resource) when a rank has ended, when all together take too long, and when this process
  /// was asked to end and no answer comes that would let it end in order.
  void operator()(double waited) {
    if (const int rank = ended(); rank >= 0) {
      // It may have ended well, after it sent what is waited for.
      if (gone_since_ < 0.0 || waited < gone_since_) gone_since_ = waited;
      if (waited - gone_since_ > after_end) {
        throw Error(concat(name(rank), " has ended", doing_, "; ", name(rank_),
                           " cannot go on without it. The same command resumes from the last checkpoint, with as many "
                           "ranks as are left"),
                    ErrorKind::resource);
      }
    }
    if (waited > patience_) {
      throw Error(concat(name(rank_), " has had no answer from the other ranks for ", static_cast<int>(waited), " s",
                         doing_, "; one of them hangs. The same command resumes from the last checkpoint"),
                  ErrorKind::resource);
    }
    if (waited > after_signal && stop_requested_ && stop_requested_()) {
      throw Error(concat(name(rank_), " was told to stop, and the other ranks do not answer", doing_,
                         "; the same command resumes from the last checkpoint"),
                  ErrorKind::resource);
    }
  }

 private:
  struct Process {
    int rank = 0;
    FileDescriptor fd;
  };
  static constexpr double after_end = 0.25;     ///< seconds
  static constexpr double after_signal = 10.0;  ///< seconds; torchrun and Slurm kill 30 s after SIGTERM

  [[nodiscard]] const PeerId& at(int rank) const { return ids_[static_cast<std::size_t>(rank)]; }
  /// The first rank of this host whose process has ended; -1: none that is known of.
  [[nodiscard]] int ended() const {
    for (const Process& process : processes_) {
      if (process.fd.get() < 0) {  // an old kernel
        if (::kill(static_cast<pid_t>(at(process.rank).pid), 0) != 0 && errno == ESRCH) return process.rank;
        continue;
      }
      pollfd readable{process.fd.get(), POLLIN, 0};
      if (::poll(&readable, 1, 0) > 0) return process.rank;
    }
    return -1;
  }

  int rank_;
  std::function<bool()> stop_requested_;
  std::vector<PeerId> ids_;
  std::vector<Process> processes_;
  std::string doing_;
  double patience_ = std::numeric_limits<double>::infinity();
  double gone_since_ = -1.0;
};

}  // namespace dist
}  // namespace v0
}  // namespace qlora
