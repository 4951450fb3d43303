// qlora/web/tree.hpp — a page as the tree that browsers build (HTML5), by libgumbo.
// libgumbo has no limits of its own: memory and time are counted in its allocator, which leaves the parser when either
// is over, and all memory is freed at once, whatever the tree's depth. What may not change: no exception passes the
// parser's C frames, and no code here recurs over the tree.
#pragma once

#include <gumbo.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstddef>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/web/charset.hpp"

namespace qlora {
inline namespace v0 {
namespace web {

/// Limits of one extraction.
struct ExtractOptions {
  std::size_t max_bytes = std::size_t{8} << 20;  ///< of a page; what is beyond is left out
  double max_cpu_seconds = 2;  ///< of the calling thread; a page of more than 8 MiB may take as much more
};

namespace detail {

[[nodiscard]] inline double thread_cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Seconds of CPU that a page of that size may take.
[[nodiscard]] inline double cpu_limit(const ExtractOptions& options, std::size_t bytes) {
  return options.max_cpu_seconds * std::max(1.0, static_cast<double>(bytes) / (8 << 20));
}

/// Memory of one tree: size classes with free lists in large chunks.
class Arena {
 public:
  Arena(std::size_t max_bytes, double max_cpu_seconds)
      : max_bytes_(max_bytes), deadline_(thread_cpu_seconds() + max_cpu_seconds) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    for (void* chunk : chunks_) std::free(chunk);
  }

  /// Null when a limit is over or memory is out; then `refusal` says why.
  [[nodiscard]] void* allocate(std::size_t size) noexcept {
    if (++calls_ % 256 == 0 && thread_cpu_seconds() > deadline_) return refuse("the page takes too long to parse");
    const std::size_t kind = kind_of(size);
    if (kind == kinds) return large(size);
    if (free_[kind] == nullptr) {
      const std::size_t block = header + size_of(kind);
      if (left_ < block && !chunk(block)) return nullptr;
      auto* made = new (next_) Header{kind, nullptr};
      next_ += block;
      left_ -= block;
      return reinterpret_cast<std::byte*>(made) + header;
    }
    Header* taken = free_[kind];
    free_[kind] = taken->next;
    return reinterpret_cast<std::byte*>(taken) + header;
  }

  void release(void* memory) noexcept {
    if (memory == nullptr) return;
    auto* block = reinterpret_cast<Header*>(static_cast<std::byte*>(memory) - header);
    if (block->kind == kinds) return;  // large ones double as they grow: what stays is as much again
    block->next = free_[block->kind];
    free_[block->kind] = block;
  }

  std::jmp_buf out{};             ///< where allocate's caller goes on when there is no memory
  const char* refusal = nullptr;  ///< why

 private:
  struct alignas(16) Header {
    std::size_t kind;
    Header* next;
  };
  static constexpr std::size_t header = sizeof(Header);
  static constexpr std::size_t kinds = 32;  ///< 16 of 32-byte steps, then doubling
  static constexpr std::size_t chunk_bytes = std::size_t{256} << 10;

  [[nodiscard]] static constexpr std::size_t size_of(std::size_t kind) {
    return kind < 16 ? (kind + 1) * 32 : std::size_t{1024} << (kind - 16);
  }
  [[nodiscard]] static constexpr std::size_t kind_of(std::size_t size) {
    if (size <= 512) return size == 0 ? 0 : (size - 1) / 32;
    std::size_t kind = 16;
    while (kind < kinds && size_of(kind) < size) ++kind;
    return size > chunk_bytes / 4 ? kinds : kind;
  }
  [[nodiscard]] std::byte* raw(std::size_t bytes) noexcept {
    if (bytes > max_bytes_ - used_) return static_cast<std::byte*>(refuse("the page needs too much memory to parse"));
    auto* memory = static_cast<std::byte*>(std::malloc(bytes));
    if (memory == nullptr) return static_cast<std::byte*>(refuse("out of memory"));
    try {
      chunks_.push_back(memory);
    } catch (...) {
      std::free(memory);
      return static_cast<std::byte*>(refuse("out of memory"));
    }
    used_ += bytes;
    return memory;
  }
  [[nodiscard]] bool chunk(std::size_t least) noexcept {
    const std::size_t bytes = std::max(least, chunk_bytes);
    next_ = raw(bytes);
    left_ = next_ == nullptr ? 0 : bytes;
    return next_ != nullptr;
  }
  [[nodiscard]] void* large(std::size_t size) noexcept {
    if (size > max_bytes_) return refuse("the page needs too much memory to parse");
    std::byte* memory = raw(header + size);
    if (memory == nullptr) return nullptr;
    new (memory) Header{kinds, nullptr};
    return memory + header;
  }
  [[nodiscard]] void* refuse(const char* why) noexcept {
    refusal = why;
    return nullptr;
  }

  std::size_t max_bytes_;
  double deadline_;
  std::size_t used_ = 0;
  std::size_t calls_ = 0;
  std::array<Header*, kinds> free_{};
  std::byte* next_ = nullptr;
  std::size_t left_ = 0;
  std::vector<void*> chunks_;
};

/// Only C frames of the parser lie between setjmp and longjmp, and this function has no objects with destructors.
[[nodiscard]] inline const GumboOutput* run_gumbo(Arena& arena, const char* page, std::size_t size) {
  GumboOptions options = kGumboDefaultOptions;
  options.max_errors = 0;
  options.userdata = &arena;
  options.allocator = [](void* user, std::size_t bytes) -> void* {
    auto* own = static_cast<Arena*>(user);
    void* memory = own->allocate(bytes);
    if (memory == nullptr) std::longjmp(own->out, 1);
    return memory;
  };
  options.deallocator = [](void* user, void* memory) { static_cast<Arena*>(user)->release(memory); };
  if (setjmp(arena.out) != 0) return nullptr;
  return gumbo_parse_with_options(&options, page, size);
}

/// A parsed page; nodes live as long as it does.
class Tree {
 public:
  /// `page` is UTF-8 and must outlive the tree. Throws Error when a limit is over.
  Tree(std::string_view page, std::size_t max_memory, double max_cpu_seconds)
      : arena_(std::make_unique<Arena>(max_memory, max_cpu_seconds)) {
    const GumboOutput* output = run_gumbo(*arena_, page.data(), page.size());
    if (output == nullptr) throw Error(arena_->refusal);
    root_ = output->root;
  }
  [[nodiscard]] const GumboNode& root() const { return *root_; }

 private:
  std::unique_ptr<Arena> arena_;
  const GumboNode* root_ = nullptr;
};

}  // namespace detail

/// UTF-8 of the named character reference ("eacute", "notin"); empty if there is no such name. Case matters.
[[nodiscard]] inline std::string find_entity(std::string_view name) {
  if (name.empty() || name.size() > 40) return {};
  const std::string page = concat("<p>x&", name, ";");
  const detail::Tree tree(page, std::size_t{4} << 20, 1.0);
  const GumboNode* node = &tree.root();
  while (node->type == GUMBO_NODE_ELEMENT) {
    const GumboVector& children = node->v.element.children;
    if (children.length == 0) return {};
    node = static_cast<const GumboNode*>(children.data[children.length - 1]);
  }
  const std::string_view text = std::string_view(node->v.text.text).substr(1);
  // A name that only begins with a known one keeps its semicolon.
  return text.size() > 1 && text.ends_with(';') ? std::string() : std::string(text);
}

}  // namespace web
}  // namespace v0
}  // namespace qlora
