// signal_at.cpp — raises a signal in a program when it writes a given text, or has given a directory a name with that
// text, so that a test interrupts, stops or kills it at a step and not after a time. Loaded with LD_PRELOAD; the
// environment names the text (SIGNAL_AT_TEXT) and the signal's number (SIGNAL_AT). It stands before the calls that
// metrics.jsonl, the lines on stderr and finished directories go through.
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace {

void look_at(const void* bytes, std::size_t size) {
  static std::atomic<bool> done = false;
  const char* text = std::getenv("SIGNAL_AT_TEXT");
  const char* signal = std::getenv("SIGNAL_AT");
  if (text == nullptr || signal == nullptr) return;
  if (std::string_view(static_cast<const char*>(bytes), size).find(text) == std::string_view::npos) return;
  if (!done.exchange(true)) ::raise(std::atoi(signal));
}

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ssize_t pwrite(int file, const void* bytes, size_t size, off_t offset) {
  static const auto original = next<decltype(::pwrite)>("pwrite");
  const ssize_t put = original(file, bytes, size, offset);
  look_at(bytes, size);
  return put;
}

int renameat2(int from_in, const char* from, int to_in, const char* to, unsigned flags) noexcept {
  static const auto original = next<int(int, const char*, int, const char*, unsigned)>("renameat2");
  const int result = original(from_in, from, to_in, to, flags);
  if (result == 0) look_at(to, std::strlen(to));
  return result;
}

size_t fwrite(const void* bytes, size_t size, size_t count, FILE* file) {
  static const auto original = next<decltype(::fwrite)>("fwrite");
  const size_t put = original(bytes, size, count, file);
  look_at(bytes, size * count);
  return put;
}

}  // extern "C"
