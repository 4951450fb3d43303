// qlora/io/directory.hpp — a directory that appears under its name complete and durable, or not at all.
#pragma once

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

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

/// Makes a directory and its parents.
inline void make_directories(const std::filesystem::path& path) {
  std::error_code code;
  std::filesystem::create_directories(path, code);
  if (code) throw_errno("cannot create directory", path, code.value());
}

/// Collects files under temporary() and gives them their directory's name in one step. Every file must be durable when
/// commit() is called (AtomicFile::commit, SafetensorsWriter::finish). Without commit() nothing is left behind.
class AtomicDirectory {
 public:
  /// The target may not exist, or be an empty directory, or hold nothing but the names in `replaceable`, which are
  /// then exchanged for the new ones. Anything else is refused, so that no foreign file is deleted.
  explicit AtomicDirectory(const std::filesystem::path& target,
                           std::initializer_list<std::string_view> replaceable = {})
      : AtomicDirectory(target, temporary_beside(without_slash(target)), replaceable) {}

  /// The same, with the temporary's name given.
  AtomicDirectory(const std::filesystem::path& target, const std::filesystem::path& temporary,
                  std::initializer_list<std::string_view> replaceable = {})
      : target_(without_slash(target)), temporary_(temporary) {
    std::error_code code;
    const auto status = std::filesystem::symlink_status(target_, code);
    replaces_ = std::filesystem::exists(status);
    if (replaces_ && !std::filesystem::is_directory(status)) {
      throw Error(concat(target_.string(), ": exists and is not a directory"), ErrorKind::usage);
    }
    if (replaces_) {
      for (const auto& entry : std::filesystem::directory_iterator(target_)) {
        const std::string name = entry.path().filename().string();
        if (std::find(replaceable.begin(), replaceable.end(), name) == replaceable.end()) {
          throw Error(
              concat(target_.string(), ": exists and holds ", name, "; choose another directory or remove it first"),
              ErrorKind::usage);
        }
      }
    }
    if (!target_.parent_path().empty()) make_directories(target_.parent_path());
    std::filesystem::remove_all(temporary_, code);  // left by a dead process of the same number
    if (!std::filesystem::create_directory(temporary_, code)) {
      throw_errno("cannot create directory", temporary_, code ? code.value() : EEXIST);
    }
  }
  /// `other` may only be destroyed afterwards.
  AtomicDirectory(AtomicDirectory&& other) noexcept
      : target_(std::move(other.target_)),
        temporary_(std::exchange(other.temporary_, {})),
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
  [[nodiscard]] static std::filesystem::path without_slash(const std::filesystem::path& path) {
    return path.filename().empty() ? path.parent_path() : path;
  }

  std::filesystem::path target_;
  std::filesystem::path temporary_;  // empty once renamed or moved from
  bool replaces_ = false;
};

}  // namespace v0
}  // namespace qlora
