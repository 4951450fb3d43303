// qlora/io/lock.hpp — one run per output directory.
// The kernel drops the lock when its holder ends, however it ends, so a stale lock file never blocks anybody. The file
// stays behind: removing it would let two runs lock two files of one name.
#pragma once

#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <span>
#include <string>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"

namespace qlora {
inline namespace v0 {

/// An exclusive lock on a file, held until destruction. Used by one thread at a time.
class RunLock {
 public:
  /// Throws Error (ErrorKind::resource) that names the holder when another process or object has the lock.
  explicit RunLock(const std::filesystem::path& path) : file_(opened(path)) {
    int result = 0;
    do {
      result = ::flock(file_.get(), LOCK_EX | LOCK_NB);
    } while (result != 0 && errno == EINTR);
    if (result != 0 && errno != EWOULDBLOCK) throw_errno("cannot lock", path, errno);
    if (result != 0) {
      std::string holder = read_text(path, 4096);
      while (!holder.empty() && holder.back() == '\n') holder.pop_back();
      throw Error(concat(path.string(), " is held by ", detail::excerpt(holder),
                         "; wait until that run ends, or choose another output directory"),
                  ErrorKind::resource);
    }
    std::array<char, 256> host{};
    if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '?';
    const std::string text = concat("process ", ::getpid(), " on ", host.data(), "\n");
    if (::ftruncate(file_.get(), 0) != 0) throw_errno("cannot write lock", path, errno);
    write_all(file_, path, 0, std::as_bytes(std::span(text)));
  }

 private:
  [[nodiscard]] static FileDescriptor opened(const std::filesystem::path& path) {
    try {
      return FileDescriptor::open("cannot open lock", path, O_RDWR | O_CREAT | O_NOFOLLOW, 0666);
    } catch (const SystemError& error) {
      refuse_place("cannot create", path, error.code());
    }
  }

  FileDescriptor file_;
};

}  // namespace v0
}  // namespace qlora
