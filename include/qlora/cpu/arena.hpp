// qlora/cpu/arena.hpp — one block of memory, handed out once from front to back.
// What lives for a whole run is taken from arenas whose size the memory plan gives before the first step, so that
// nothing is allocated later and an out-of-memory in mid-run cannot happen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "qlora/error.hpp"
#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// Host memory for a whole run, taken at once and handed out from front to back. Used by one thread at a
/// time; what it has handed out is its takers'.
class Arena {
 public:
  /// Takes and zeroes that many bytes. Throws Error (resource) where there is no memory.
  explicit Arena(std::int64_t bytes) : size_(bytes) {
    const auto rounded = static_cast<std::size_t>(arena_bytes(bytes > 0 ? bytes : 1));
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(arena_alignment, rounded)));
    if (memory_ == nullptr) {
      throw Error(concat("no memory: ", bytes, " bytes are needed in one block"), ErrorKind::resource);
    }
    std::memset(memory_.get(), 0, rounded);
  }

  /// The next `count` elements, zeroed, aligned for vector registers.
  template <class T>
  [[nodiscard]] T* take(std::int64_t count) {
    const std::int64_t bytes = arena_bytes(count * static_cast<std::int64_t>(sizeof(T)));
    QLORA_EXPECTS(count >= 0 && used_ + bytes <= size_, "the arena has ", size_, " bytes, ", used_,
                  " are taken, the memory plan forgot ", bytes);
    std::byte* here = memory_.get() + used_;
    used_ += bytes;
    return reinterpret_cast<T*>(here);
  }

  /// Bytes in all.
  [[nodiscard]] std::int64_t size() const { return size_; }
  /// Bytes that were handed out.
  [[nodiscard]] std::int64_t used() const { return used_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::int64_t size_ = 0;
  std::int64_t used_ = 0;
};

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
