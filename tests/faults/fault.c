/* fault.c — a library to preload: it fails the FAULT_AT-th call of FAULT_CALL (write, read, fsync, rename, open, close,
 * mkdir, list, stat, map) with FAULT_ERRNO. With FAULT_COUNT, a file, it fails none and writes there how many calls
 * there were. Calls on the standard streams do not count. A close that fails has closed, as Linux does it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;

static int fails(const char* call) {
  static const char* wanted;
  static long at = -1;
  if (wanted == NULL) {
    wanted = getenv("FAULT_CALL") != NULL ? getenv("FAULT_CALL") : "";
    at = getenv("FAULT_AT") != NULL ? atol(getenv("FAULT_AT")) : 0;
  }
  if (strcmp(call, wanted) != 0 || atomic_fetch_add(&calls, 1) + 1 != at) return 0;
  errno = getenv("FAULT_ERRNO") != NULL ? atoi(getenv("FAULT_ERRNO")) : EIO;
  return 1;
}

__attribute__((destructor)) static void tell(void) {
  const char* path = getenv("FAULT_COUNT");
  if (path == NULL) return;
  char text[32];
  const int size = snprintf(text, sizeof text, "%ld\n", (long)calls);
  const int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (file >= 0) (void)syscall(SYS_write, file, text, (size_t)size);
}

ssize_t write(int file, const void* bytes, size_t size) {
  return file > 2 && fails("write") ? -1 : syscall(SYS_write, file, bytes, size);
}
ssize_t pwrite(int file, const void* bytes, size_t size, off_t at) {
  return fails("write") ? -1 : syscall(SYS_pwrite64, file, bytes, size, at);
}
ssize_t pwrite64(int file, const void* bytes, size_t size, off_t at) { return pwrite(file, bytes, size, at); }
ssize_t writev(int file, const struct iovec* parts, int count) {
  return file > 2 && fails("write") ? -1 : syscall(SYS_writev, file, parts, count);
}
ssize_t read(int file, void* bytes, size_t size) {
  return file > 2 && fails("read") ? -1 : syscall(SYS_read, file, bytes, size);
}
ssize_t pread(int file, void* bytes, size_t size, off_t at) {
  return fails("read") ? -1 : syscall(SYS_pread64, file, bytes, size, at);
}
ssize_t pread64(int file, void* bytes, size_t size, off_t at) { return pread(file, bytes, size, at); }
int fsync(int file) { return fails("fsync") ? -1 : (int)syscall(SYS_fsync, file); }
int fallocate(int file, int mode, off_t at, off_t size) {
  return fails("write") ? -1 : (int)syscall(SYS_fallocate, file, mode, at, size);
}
int fallocate64(int file, int mode, off_t at, off_t size) { return fallocate(file, mode, at, size); }
int renameat2(int from_in, const char* from, int to_in, const char* to, unsigned flags) {
  return fails("rename") ? -1 : (int)syscall(SYS_renameat2, from_in, from, to_in, to, flags);
}
int rename(const char* from, const char* to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

static int opened(const char* path, int flags, mode_t mode) {
  return fails("open") ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
int open(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(more, mode_t) : 0;
  va_end(more);
  return opened(path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(more, mode_t) : 0;
  va_end(more);
  return opened(path, flags, mode);
}

int close(int file) {
  const int result = (int)syscall(SYS_close, file);
  return file > 2 && fails("close") ? -1 : result;
}
int mkdir(const char* path, mode_t mode) {
  return fails("mkdir") ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}
int stat(const char* restrict path, struct stat* restrict status) {
  return fails("stat") ? -1 : fstatat(AT_FDCWD, path, status, 0);
}
int stat64(const char* restrict path, struct stat64* restrict status) {
  return fails("stat") ? -1 : fstatat64(AT_FDCWD, path, status, 0);
}
int lstat(const char* restrict path, struct stat* restrict status) {
  return fails("stat") ? -1 : fstatat(AT_FDCWD, path, status, AT_SYMLINK_NOFOLLOW);
}
int fstat(int file, struct stat* status) { return fails("stat") ? -1 : fstatat(file, "", status, AT_EMPTY_PATH); }
void* mmap(void* where, size_t size, int protection, int flags, int file, off_t at) {
  return file >= 0 && fails("map") ? MAP_FAILED : (void*)syscall(SYS_mmap, where, size, protection, flags, file, at);
}
void* mmap64(void* where, size_t size, int protection, int flags, int file, off_t at) {
  return mmap(where, size, protection, flags, file, at);
}

static void* real(const char* name) { return dlsym(RTLD_NEXT, name); }
DIR* opendir(const char* path) {
  DIR* (*next)(const char*);
  *(void**)&next = real("opendir");
  return fails("list") ? NULL : next(path);
}
DIR* fdopendir(int file) {
  DIR* (*next)(int);
  *(void**)&next = real("fdopendir");
  return fails("list") ? NULL : next(file);
}
/* The end of a folder is NULL, too, without an errno. */
struct dirent* readdir(DIR* folder) {
  struct dirent* (*next)(DIR*);
  *(void**)&next = real("readdir");
  return fails("list") ? NULL : next(folder);
}
struct dirent64* readdir64(DIR* folder) {
  struct dirent64* (*next)(DIR*);
  *(void**)&next = real("readdir64");
  return fails("list") ? NULL : next(folder);
}
