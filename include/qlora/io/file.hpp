// qlora/io/file.hpp — files: mapped for reading, whole or not at all for writing.
// What may not change: the order write, fsync, rename, fsync of the directory. After a crash or a power cut a reader
// finds the old file or the new one, never a part. A failed fsync is final: the kernel may have dropped the dirty
// pages, so a second fsync that succeeds would prove nothing.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/checksum.hpp"

namespace qlora {
inline namespace v0 {

/// Whether this errno is the system's: a full disk, an exhausted table, a device that fails.
[[nodiscard]] inline bool is_scarcity(int code) {
  return code == ENOSPC || code == EDQUOT || code == EFBIG || code == ENOMEM || code == EMFILE || code == ENFILE ||
         code == EIO || code == EROFS;
}

/// An error that a system call reported.
class SystemError : public Error {
 public:
  /// From an errno; the kind is resource where is_scarcity, else input.
  SystemError(const std::string& message, int code)
      : Error(message, is_scarcity(code) ? ErrorKind::resource : ErrorKind::input), code_(code) {}
  /// The errno.
  [[nodiscard]] int code() const noexcept { return code_; }

 private:
  int code_;
};

/// Throws SystemError "WHAT PATH: errno text"; its kind is resource where is_scarcity, else input.
[[noreturn]] inline void throw_errno(std::string_view what, const std::filesystem::path& path, int code) {
  throw SystemError(concat(what, " ", path.string(), ": ", std::generic_category().message(code)), code);
}

/// Throws Error (resource): nothing can be created at `path`, whatever is to be written there.
[[noreturn]] inline void refuse_place(std::string_view what, const std::filesystem::path& path, int code) {
  throw Error(concat(what, " ", path.string(), ": ", std::generic_category().message(code), "; choose another place"),
              ErrorKind::resource);
}

/// An open file descriptor, closed by the destructor.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  /// Takes over an open descriptor; -1: none.
  explicit FileDescriptor(int fd) : fd_(fd) {}
  /// `other` has none afterwards.
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  /// The two exchange their descriptors.
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }

  /// Opens a file, again after EINTR, always with O_CLOEXEC. Throws Error that says `what` it tried.
  [[nodiscard]] static FileDescriptor open(std::string_view what, const std::filesystem::path& path, int flags,
                                           mode_t mode = 0) {
    int fd = -1;
    do {
      fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) throw_errno(what, path, errno);
    return FileDescriptor(fd);
  }
  /// The descriptor, still owned by this; -1: none.
  [[nodiscard]] int get() const { return fd_; }
  /// Gives up ownership: the caller closes it.
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

/// Opens a regular file for reading and tells its size; directories, devices and pipes are refused.
[[nodiscard]] inline FileDescriptor open_regular(const std::filesystem::path& path, std::size_t& size) {
  FileDescriptor file = FileDescriptor::open("cannot read", path, O_RDONLY | O_NONBLOCK);  // a pipe must not block
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) throw_errno("cannot read", path, errno);
  if (!S_ISREG(status.st_mode)) throw Error(concat("cannot read ", path.string(), ": not a regular file"));
  size = static_cast<std::size_t>(status.st_size);
  return file;
}

/// A whole file mapped read-only. Movable; the bytes keep their address. A file that another process shortens while it
/// is mapped raises SIGBUS on access, so writers here replace files and never shorten them.
class MappedFile {
 public:
  MappedFile() = default;
  /// Maps a regular file. Throws Error when it cannot be read.
  explicit MappedFile(const std::filesystem::path& path) {
    const FileDescriptor file = open_regular(path, size_);
    if (size_ == 0) return;  // mmap refuses length 0
    data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      throw_errno("cannot map", path, errno);
    }
  }
  /// `other` is empty afterwards.
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  /// The two exchange their files.
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }

  /// The contents; empty for an empty file. Valid as long as this.
  [[nodiscard]] std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Says that these mapped bytes are read next: their pages are mapped, and read where they are not in memory, in one
/// call instead of a fault for every few of them. Only speed depends on it; kernels before 5.14 do not know the
/// request.
inline void expect_pages(std::span<const std::byte> bytes) {
#ifdef MADV_POPULATE_READ
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<std::uintptr_t>(bytes.data()) / page * page;
  const auto last = reinterpret_cast<std::uintptr_t>(bytes.data()) + bytes.size();
  if (last > first) (void)::madvise(reinterpret_cast<void*>(first), last - first, MADV_POPULATE_READ);
#else
  (void)bytes;
#endif
}

/// The whole file as a string. Throws Error when it is longer than max_bytes: nothing is allocated before the check.
[[nodiscard]] inline std::string read_text(const std::filesystem::path& path, std::size_t max_bytes) {
  std::size_t size = 0;
  const FileDescriptor file = open_regular(path, size);
  if (size > max_bytes) {
    throw Error(concat(path.string(), " holds ", size, " bytes, more than the ", max_bytes, " it may have"));
  }
  std::string text(size, '\0');
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(file.get(), text.data() + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno("cannot read", path, errno);
    if (got == 0) break;  // shortened meanwhile: what is there is the text
    done += static_cast<std::size_t>(got);
  }
  text.resize(done);
  return text;
}

/// Throws Error when the bytes are those of a Git LFS pointer, which stands where the file itself was not fetched.
inline void refuse_lfs_pointer(std::string_view text, std::string_view what) {
  if (!text.starts_with("version https://git-lfs.github.com/spec/")) return;
  throw Error(concat(what, ": is a Git LFS pointer, not the file; fetch it with `git lfs pull`"));
}

/// Writes all bytes at a file offset, through short writes and EINTR.
inline void write_all(const FileDescriptor& file, const std::filesystem::path& path, std::uint64_t offset,
                      std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw_errno("cannot write", path, errno);
    if (put == 0) throw_errno("cannot write", path, ENOSPC);
    offset += static_cast<std::uint64_t>(put);
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
}

/// Reads bytes from a file offset on, through short reads and EINTR. False: the file ends before.
[[nodiscard]] inline bool read_at(const FileDescriptor& file, const std::filesystem::path& path, std::uint64_t offset,
                                  std::span<std::byte> into) {
  while (!into.empty()) {
    const ssize_t got = ::pread(file.get(), into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno("cannot read back", path, errno);
    if (got == 0) return false;
    offset += static_cast<std::uint64_t>(got);
    into = into.subspan(static_cast<std::size_t>(got));
  }
  return true;
}

/// The same as refuse_lfs_pointer, of a file that is not what it must be.
inline void refuse_lfs_pointer_in(const std::filesystem::path& path) {
  std::size_t size = 0;
  const FileDescriptor file = open_regular(path, size);
  std::string begin(std::min<std::size_t>(size, 64), '\0');
  if (read_at(file, path, 0, std::as_writable_bytes(std::span(begin)))) refuse_lfs_pointer(begin, path.string());
}

/// Writes all bytes to a pipe or a device, through short writes and EINTR.
inline void write_stream(const FileDescriptor& file, const std::filesystem::path& path,
                         std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(file.get(), bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw_errno("cannot write", path, errno);
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
}

/// fsync, once; see the head of this file.
inline void sync_file(const FileDescriptor& file, const std::filesystem::path& path) {
  if (::fsync(file.get()) != 0) throw_errno("cannot make durable", path, errno);
}

/// Makes the names in a directory durable. File systems that cannot sync directories answer EINVAL; they are let be.
inline void sync_directory(const std::filesystem::path& path) {
  const std::filesystem::path here = path.empty() ? "." : path;
  const FileDescriptor file = FileDescriptor::open("cannot open directory", here, O_RDONLY | O_DIRECTORY);
  if (::fsync(file.get()) != 0 && errno != EINVAL) throw_errno("cannot make durable", here, errno);
}

/// ".NAME.tmp-PID-N" next to path: a name that this process has not used and that remove_stale recognises.
[[nodiscard]] inline std::filesystem::path temporary_beside(const std::filesystem::path& path) {
  static std::atomic<unsigned> counter{0};
  return path.parent_path() / concat(".", path.filename().string(), ".tmp-", ::getpid(), "-", counter.fetch_add(1));
}
/// Whether this is a name that temporary_beside gives, for files of this name or, if it is empty, of any.
[[nodiscard]] inline bool is_temporary_name(std::string_view name, std::string_view of = {}) {
  const std::size_t mark = name.rfind(".tmp-");
  if (!name.starts_with('.') || mark == std::string_view::npos || mark < 2) return false;
  const std::string_view numbers = name.substr(mark + 5);
  const std::size_t dash = numbers.find('-');
  return (of.empty() || name.substr(1, mark - 1) == of) && dash != std::string_view::npos && dash > 0 &&
         dash + 1 < numbers.size() && numbers.find_first_not_of("0123456789-") == std::string_view::npos &&
         numbers.find('-', dash + 1) == std::string_view::npos;
}

/// Locks what has just been made under a temporary name, so that others see that its writer lives. The kernel drops the
/// lock when the writer ends, however it ends. File systems without locks are let be.
inline void lock_temporary(const FileDescriptor& file) { (void)::flock(file.get(), LOCK_EX | LOCK_NB); }

/// Whether the process that made this temporary file or directory still writes it.
[[nodiscard]] inline bool is_in_use(const std::filesystem::path& temporary) {
  const int fd = ::open(temporary.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return errno != ENOENT;  // what cannot be looked at is let be
  const FileDescriptor file(fd);
  return ::flock(file.get(), LOCK_EX | LOCK_NB) != 0;
}

namespace detail {

/// The pieces that were written to a file, each with the sum of what was in memory.
class WrittenPieces {
 public:
  /// Called by any thread.
  void add(std::uint64_t offset, std::span<const std::byte> bytes) {
    if (bytes.empty()) return;
    const Checksum sum = checksum(bytes);
    const std::uint64_t end = offset + bytes.size();
    const std::lock_guard lock(mutex_);
    auto at = pieces_.lower_bound(offset);
    if (at != pieces_.begin() && std::prev(at)->second.end > offset) --at;
    while (at != pieces_.end() && at->first < end) at = pieces_.erase(at);  // written over
    pieces_[offset] = {end, sum};
  }

  /// Reads every piece back, from the disk and not from memory where the system can tell the difference. Throws Error
  /// (resource) naming `path` when one is not what was written. The file is durable already.
  void verify(const FileDescriptor& file, const std::filesystem::path& path) const {
    (void)::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
    std::vector<std::byte> buffer(std::size_t{1} << 20);
    for (const auto& [begin, piece] : pieces_) {
      RunningChecksum sum;
      for (std::uint64_t offset = begin; offset < piece.end;) {
        const auto wanted = static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), piece.end - offset));
        if (!read_at(file, path, offset, std::span(buffer).first(wanted))) refuse(path, offset);
        sum.update(std::span(buffer).first(wanted));
        offset += wanted;
      }
      if (sum.value() != piece.sum) refuse(path, begin);
    }
  }

 private:
  struct Piece {
    std::uint64_t end = 0;
    Checksum sum;
  };
  [[noreturn]] static void refuse(const std::filesystem::path& path, std::uint64_t offset) {
    throw Error(concat(path.string(), ": what was read back from byte ", offset,
                       " on is not what was written; the memory or the disk of this machine is faulty"),
                ErrorKind::resource);
  }

  std::mutex mutex_;
  std::map<std::uint64_t, Piece> pieces_;  // by their offset, without overlap
};

}  // namespace detail

/// Where a path leads: the target of symbolic links, which may not exist yet.
[[nodiscard]] inline std::filesystem::path behind_links(std::filesystem::path path) {
  std::error_code code;
  for (int links = 0; links < 40 && std::filesystem::is_symlink(path, code); ++links) {
    const std::filesystem::path target = std::filesystem::read_symlink(path, code);
    path = target.is_absolute() ? target : path.parent_path() / target;
  }
  return path;
}

/// A file that appears under its name complete, durable and compared with what was in memory, or not at all. Without
/// commit() it leaves nothing behind, and what a killed namesake left goes when the next one is made.
/// A symbolic link of that name stays, and what it points to is replaced.
class AtomicFile {
 public:
  /// Opens a temporary file beside `path`. Throws Error when it cannot, and (resource) where a folder or device has the
  /// name.
  explicit AtomicFile(const std::filesystem::path& path)
      : path_(behind_links(path)), temporary_(temporary_beside(path_)) {
    std::error_code missing;
    const std::filesystem::file_status old = std::filesystem::status(path_, missing);
    if (std::filesystem::exists(old) && !std::filesystem::is_regular_file(old)) {  // a device would be replaced
      throw Error(concat("cannot create ", path_.string(), ": a folder or device of that name exists"),
                  ErrorKind::resource);
    }
    while (::access(temporary_.c_str(), F_OK) == 0) temporary_ = temporary_beside(path_);  // left by a dead namesake
    remove_stale();
    try {
      file_ = FileDescriptor::open("cannot create", temporary_, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
    } catch (const SystemError& error) {
      refuse_place("cannot create", path_, error.code());
    }
    lock_temporary(file_);
  }
  /// `other` may only be destroyed afterwards.
  AtomicFile(AtomicFile&& other) noexcept
      : path_(std::move(other.path_)),
        temporary_(std::exchange(other.temporary_, {})),
        file_(std::move(other.file_)),
        pieces_(std::move(other.pieces_)) {}
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile() {
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
  }

  /// Gives the file its final size before anything is written, so that a full disk shows now and not at the end.
  void reserve(std::uint64_t bytes) {
    if (bytes == 0) return;
    int result = 0;
    do {
      result = ::fallocate(file_.get(), 0, 0, static_cast<off_t>(bytes));
    } while (result != 0 && errno == EINTR);
    if (result == 0) return;
    if (errno != EOPNOTSUPP) throw_errno(concat("cannot reserve ", bytes, " bytes for"), path_, errno);
    if (::ftruncate(file_.get(), static_cast<off_t>(bytes)) != 0) throw_errno("cannot resize", path_, errno);
  }
  /// Writes bytes at an offset; parts may come in any order. Throws Error when the system cannot write them.
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
    pieces_->add(offset, bytes);
    write_all(file_, path_, offset, bytes);
  }

  /// Checksum of bytes that were written, as the system gives them back. They all have been.
  [[nodiscard]] Checksum checksum_of(std::uint64_t offset, std::uint64_t size) const {
    RunningChecksum sum;
    std::vector<std::byte> buffer(std::size_t{1} << 20);
    for (const std::uint64_t end = offset + size; offset < end;) {
      const auto piece = std::span(buffer).first(static_cast<std::size_t>(std::min(end - offset, buffer.size())));
      QLORA_EXPECTS(read_at(file_, path_, offset, piece), path_.string(), " has no byte ", offset);
      sum.update(piece);
      offset += piece.size();
    }
    return sum.value();
  }

  /// Makes the contents durable, reads them back, and gives them their name, replacing what had it.
  void commit() {
    sync_file(file_, path_);
    pieces_->verify(file_, path_);
    if (::close(file_.release()) != 0) throw_errno("cannot close", path_, errno);
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) throw_errno("cannot rename to", path_, errno);
    temporary_.clear();
    sync_directory(path_.parent_path());
  }
  /// The name that commit() gives it.
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  void remove_stale() const {
    std::error_code ignored;
    const std::filesystem::path folder = path_.has_parent_path() ? path_.parent_path() : ".";
    const std::string name = path_.filename().string();
    std::vector<std::filesystem::path> stale;
    for (std::filesystem::directory_iterator at(folder, ignored), end; at != end; at.increment(ignored)) {
      if (is_temporary_name(at->path().filename().string(), name) && at->is_regular_file(ignored) &&
          !is_in_use(at->path())) {
        stale.push_back(at->path());
      }
      if (ignored) break;
    }
    for (const std::filesystem::path& path : stale) ::unlink(path.c_str());
  }

  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty once renamed or moved from
  FileDescriptor file_;
  std::unique_ptr<detail::WrittenPieces> pieces_ = std::make_unique<detail::WrittenPieces>();
};

/// Replaces a file by these bytes, whole or not at all.
inline void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  AtomicFile file(path);
  file.write_at(0, bytes);
  file.commit();
}
/// Replaces a file by this text, whole or not at all.
inline void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  write_file_atomically(path, std::as_bytes(std::span(text)));
}

}  // namespace v0
}  // namespace qlora
