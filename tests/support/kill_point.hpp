// kill_point.hpp — kills this process at a chosen one of its calls that change the disk; a write gets half of its bytes
// done first. Or changes one bit of a chosen write on its way to the disk. A loop over all calls meets each moment that
// matters, however fast the machine is. The definitions stand before the C library's for the whole executable,
// std::filesystem included; one file of it includes this.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace kill_point {

/// Calls that still return; the one after them kills. Negative: none does.
inline long calls_left = -1;

[[nodiscard]] inline bool reached() { return calls_left >= 0 && calls_left-- == 0; }
inline void die() { ::raise(SIGKILL); }

/// Writes that stay as they are; the one after them gets `flipped_bit` changed (modulo its size). Negative: none does.
inline long writes_left = -1;
inline size_t flipped_bit = 0;

inline long flipped_write(int file, const void* bytes, size_t size, off_t offset) {
  static char copy[1 << 20];
  if (size > sizeof copy) size = sizeof copy;  // a short write
  for (size_t i = 0; i < size; ++i) copy[i] = static_cast<const char*>(bytes)[i];
  const size_t bit = flipped_bit % (size * 8);
  copy[bit / 8] = static_cast<char>(copy[bit / 8] ^ (1 << bit % 8));
  return ::syscall(SYS_pwrite64, file, copy, size, offset);
}

}  // namespace kill_point

extern "C" {

ssize_t pwrite(int file, const void* bytes, size_t size, off_t offset) {
  if (kill_point::writes_left >= 0 && kill_point::writes_left-- == 0) {
    return kill_point::flipped_write(file, bytes, size, offset);
  }
  const bool last = kill_point::reached();
  const long put = ::syscall(SYS_pwrite64, file, bytes, last ? size / 2 : size, offset);
  if (last) kill_point::die();
  return put;
}
int fsync(int file) {
  if (kill_point::reached()) kill_point::die();
  return static_cast<int>(::syscall(SYS_fsync, file));
}
int renameat2(int from_in, const char* from, int to_in, const char* to, unsigned flags) noexcept {
  if (kill_point::reached()) kill_point::die();
  return static_cast<int>(::syscall(SYS_renameat2, from_in, from, to_in, to, flags));
}
int rename(const char* from, const char* to) noexcept { return ::renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
int mkdir(const char* path, mode_t mode) noexcept {
  if (kill_point::reached()) kill_point::die();
  return static_cast<int>(::syscall(SYS_mkdirat, AT_FDCWD, path, mode));
}
int unlinkat(int in, const char* path, int flags) noexcept {
  if (kill_point::reached()) kill_point::die();
  return static_cast<int>(::syscall(SYS_unlinkat, in, path, flags));
}

}  // extern "C"
