// qlora/io/directory.hpp — a directory that appears under its name complete and durable, or not at all; room on the
// disk, and what killed writers left.
#pragma once

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"

namespace qlora {
inline namespace v0 {

/// Throws Error (ErrorKind::resource) when the file system of `directory` has less than `bytes` to give.
inline void expect_free_space(const std::filesystem::path& directory, std::uint64_t bytes) {
  struct statvfs status {};
  if (::statvfs(directory.c_str(), &status) != 0) throw_errno("cannot ask for free space at", directory, errno);
  const std::uint64_t free = std::uint64_t{status.f_bavail} * status.f_frsize;
  if (free < bytes) {
    throw Error(concat(directory.string(), ": ", bytes, " bytes are needed, ", free,
                       " are free; make room or choose another place"),
                ErrorKind::resource);
  }
}

/// Makes a directory and its parents. Throws Error (resource) where that cannot be.
inline void make_directories(const std::filesystem::path& path) {
  std::error_code code;
  std::filesystem::create_directories(path, code);
  if (code) refuse_place("cannot create directory", path, code.value());
}

/// "dir/", "dir" and a symbolic link to it are one directory, and its temporary name lies beside it.
[[nodiscard]] inline std::filesystem::path directory_itself(const std::filesystem::path& path) {
  return behind_links(path.filename().empty() ? path.parent_path() : path);
}

/// Removes what killed writers left in a directory and below it, the largest first: half a model must not be why the
/// next run finds the disk full. Errors are ignored; what another process is writing stays.
inline void remove_stale_temporaries(const std::filesystem::path& root) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  std::vector<std::pair<std::uintmax_t, fs::path>> stale;
  for (fs::recursive_directory_iterator at(root, ignored), end; at != end && !ignored; at.increment(ignored)) {
    if (!is_temporary_name(at->path().filename().string())) continue;
    const bool folder = at->is_directory(ignored) && !at->is_symlink(ignored);
    if (folder) at.disable_recursion_pending();
    if (is_in_use(at->path())) continue;
    std::uintmax_t bytes = 0;
    std::error_code unreadable;
    if (!folder) bytes = at->file_size(unreadable);
    if (folder) {
      for (fs::recursive_directory_iterator in(at->path(), unreadable); in != end && !unreadable;
           in.increment(unreadable)) {
        if (in->is_regular_file(unreadable)) bytes += in->file_size(unreadable);
      }
    }
    stale.emplace_back(bytes, at->path());
  }
  std::sort(stale.rbegin(), stale.rend());
  for (const auto& [bytes, path] : stale) fs::remove_all(path, ignored);
}

/// Collects files under temporary() and gives them their directory's name in one step. Every file must be durable when
/// commit() is called (AtomicFile::commit, SafetensorsWriter::finish). Without commit() nothing is left behind.
/// A symbolic link of the target's name stays, and what it points to is replaced. Used by one thread at a time.
class AtomicDirectory {
 public:
  /// The target may not exist, or be an empty directory, or hold nothing but the names in `replaceable`, which are
  /// then exchanged for the new ones. Anything else is refused, so that no foreign file is deleted.
  explicit AtomicDirectory(const std::filesystem::path& target,
                           std::initializer_list<std::string_view> replaceable = {})
      : AtomicDirectory(target, temporary_beside(directory_itself(target)), replaceable) {}

  /// The same, with the temporary's name given.
  AtomicDirectory(const std::filesystem::path& target, const std::filesystem::path& temporary,
                  std::initializer_list<std::string_view> replaceable = {})
      : AtomicDirectory(target, temporary, [replaceable](std::string_view name) {
          return std::find(replaceable.begin(), replaceable.end(), name) != replaceable.end();
        }) {}

  /// The same, with a function that tells which names may be replaced; it is called before this returns.
  AtomicDirectory(const std::filesystem::path& target, const std::filesystem::path& temporary,
                  const std::function<bool(std::string_view)>& replaceable)
      : target_(directory_itself(target)), temporary_(temporary) {
    std::error_code code;
    const auto status = std::filesystem::symlink_status(target_, code);
    replaces_ = std::filesystem::exists(status);
    if (replaces_ && !std::filesystem::is_directory(status)) {
      throw Error(concat(target_.string(), ": exists and is not a directory"), ErrorKind::usage);
    }
    if (replaces_) {
      for (const auto& entry : std::filesystem::directory_iterator(target_)) {
        const std::string name = entry.path().filename().string();
        if (!replaceable(name)) {
          throw Error(
              concat(target_.string(), ": exists and holds ", name, "; choose another directory or remove it first"),
              ErrorKind::usage);
        }
      }
    }
    if (!target_.parent_path().empty()) make_directories(target_.parent_path());
    refuse_second_writer();
    std::filesystem::remove_all(temporary_, code);  // left by a dead process of the same number
    if (!std::filesystem::create_directory(temporary_, code)) {
      refuse_place("cannot create directory", target_, code ? code.value() : EEXIST);
    }
    lock_ = FileDescriptor::open("cannot open directory", temporary_, O_RDONLY | O_DIRECTORY);
    lock_temporary(lock_);
  }
  /// `other` may only be destroyed afterwards.
  AtomicDirectory(AtomicDirectory&& other) noexcept
      : target_(std::move(other.target_)),
        temporary_(std::exchange(other.temporary_, {})),
        lock_(std::move(other.lock_)),
        replaces_(other.replaces_) {}
  AtomicDirectory& operator=(AtomicDirectory&&) = delete;
  ~AtomicDirectory() {
    std::error_code ignored;
    if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
  }

  /// Where files are written until commit().
  [[nodiscard]] const std::filesystem::path& temporary() const { return temporary_; }
  /// The name that commit() gives it.
  [[nodiscard]] const std::filesystem::path& target() const { return target_; }

  /// Makes the directory durable and gives it its name.
  void commit() {
    sync_directory(temporary_);
    // With a directory in the way the two exchange names, so that at no time the name means nothing.
    const int result = replaces_ ? ::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE)
                                 : ::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(), 0);
    if (result != 0) throw_errno("cannot rename to", target_, errno);
    const std::filesystem::path left = std::exchange(temporary_, {});
    sync_directory(target_.parent_path());
    std::error_code ignored;
    if (replaces_) std::filesystem::remove_all(left, ignored);
  }

 private:
  /// Removes what a killed writer of the same target left. Throws Error (resource) when one still writes.
  void refuse_second_writer() const {
    std::error_code ignored;
    const std::filesystem::path folder = target_.has_parent_path() ? target_.parent_path() : ".";
    std::vector<std::filesystem::path> stale;
    for (std::filesystem::directory_iterator at(folder, ignored), end; at != end && !ignored; at.increment(ignored)) {
      if (is_temporary_name(at->path().filename().string(), target_.filename().string())) stale.push_back(at->path());
    }
    for (const std::filesystem::path& path : stale) {
      if (is_in_use(path)) {
        throw Error(concat(target_.string(), " is being written by another process, in ", path.string(),
                           "; wait until it ends, or choose another directory"),
                    ErrorKind::resource);
      }
      std::filesystem::remove_all(path, ignored);
    }
  }

  std::filesystem::path target_;
  std::filesystem::path temporary_;  // empty once renamed or moved from
  FileDescriptor lock_;              // of the temporary: its writer lives
  bool replaces_ = false;
};

}  // namespace v0
}  // namespace qlora
