// qlora/io/file.hpp — files: mapped for reading, whole or not at all for writing.
// What may not change: the order write, fsync, rename, fsync of the directory. After a crash or a power cut a reader
// finds the old file or the new one, never a part. A failed fsync is final: the kernel may have dropped the dirty
// pages, so a second fsync that succeeds would prove nothing.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {

/// Throws Error "WHAT PATH: errno text"; a full disk or an exhausted table is ErrorKind::resource, the rest is input.
[[noreturn]] inline void throw_errno(std::string_view what, const std::filesystem::path& path, int code) {
  const bool scarce = code == ENOSPC || code == EDQUOT || code == EFBIG || code == ENOMEM || code == EMFILE ||
                      code == ENFILE || code == EIO || code == EROFS;
  throw Error(concat(what, " ", path.string(), ": ", std::generic_category().message(code)),
              scarce ? ErrorKind::resource : ErrorKind::input);
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

/// ".NAME.tmp-PID-N" next to path: a name that this process has not used and that a stale-file sweep can recognise.
[[nodiscard]] inline std::filesystem::path temporary_beside(const std::filesystem::path& path) {
  static std::atomic<unsigned> counter{0};
  return path.parent_path() / concat(".", path.filename().string(), ".tmp-", ::getpid(), "-", counter.fetch_add(1));
}

/// A file that appears under its name complete and durable, or not at all. Without commit() it leaves nothing behind.
class AtomicFile {
 public:
  /// Opens a temporary file beside `path`. Throws Error when it cannot, and (resource) where a folder or device has the
  /// name.
  explicit AtomicFile(std::filesystem::path path) : path_(std::move(path)), temporary_(temporary_beside(path_)) {
    std::error_code missing;
    const std::filesystem::file_status old = std::filesystem::status(path_, missing);
    if (std::filesystem::exists(old) && !std::filesystem::is_regular_file(old)) {  // a device would be replaced
      throw Error(concat("cannot create ", path_.string(), ": a folder or device of that name exists"),
                  ErrorKind::resource);
    }
    while (::access(temporary_.c_str(), F_OK) == 0) temporary_ = temporary_beside(path_);  // left by a dead namesake
    file_ = FileDescriptor::open("cannot create", temporary_, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
  }
  /// `other` may only be destroyed afterwards.
  AtomicFile(AtomicFile&& other) noexcept
      : path_(std::move(other.path_)), temporary_(std::exchange(other.temporary_, {})), file_(std::move(other.file_)) {}
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
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes) { write_all(file_, path_, offset, bytes); }

  /// Makes the contents durable and gives them their name, replacing what had it.
  void commit() {
    sync_file(file_, path_);
    if (::close(file_.release()) != 0) throw_errno("cannot close", path_, errno);
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) throw_errno("cannot rename to", path_, errno);
    temporary_.clear();
    sync_directory(path_.parent_path());
  }
  /// The name that commit() gives it.
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty once renamed or moved from
  FileDescriptor file_;
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
