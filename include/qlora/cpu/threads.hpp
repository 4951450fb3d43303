// qlora/cpu/threads.hpp — a pool that runs numbered tiles of work, and nothing else.
// Job        the only parallelism of the CPU backend. Work is cut into tiles by its own sizes, never by the number of
//            threads, and each tile writes its own part of the output: the bits are the same for any thread count.
// Needs      tile functions must not throw and must not call the pool again.
// Why own    Eigen's OpenMP path splits the reduction (other bits for another thread count) and allocates per product.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// Threads that wait for tiles. Used by one thread at a time.
class ThreadPool {
 public:
  /// `threads` includes the caller; 0 takes one per core.
  explicit ThreadPool(int threads = 0) {
    QLORA_EXPECTS(threads >= 0 && threads <= 1024, "threads is ", threads);
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    count_ = threads > 0 ? threads : (cores > 0 ? cores : 1);
    try {
      for (int worker = 1; worker < count_; ++worker) {
        workers_.emplace_back([this, worker] { serve(worker); });
      }
    } catch (const std::system_error& error) {
      stop();
      throw Error(concat("cannot start thread ", workers_.size() + 2, " of ", count_, ": ", error.what()),
                  ErrorKind::resource);
    }
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() { stop(); }

  /// Threads that may run tiles at once; worker indices are below it.
  [[nodiscard]] int size() const { return count_; }

  /// Calls run(tile, worker) for every tile in [0, tiles); returns when all are done. No allocation.
  template <class Run>
  void for_tiles(int tiles, Run&& run) {
    static_assert(std::is_invocable_v<Run&, int, int>);
    if (count_ == 1 || tiles <= 1) {
      for (int tile = 0; tile < tiles; ++tile) run(tile, 0);
      return;
    }
    using Plain = std::remove_reference_t<Run>;
    call_ = [](const void* context, int tile, int worker) {
      (*static_cast<Plain*>(const_cast<void*>(context)))(tile, worker);
    };
    context_ = std::addressof(run);
    tiles_ = tiles;
    next_.store(0, std::memory_order_relaxed);
    joined_.store(open, std::memory_order_release);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    work(0);
    // All tiles are taken. Only workers that have some are waited for: on a busy machine the others may not run for
    // milliseconds, longer than most calls take.
    std::uint32_t left = joined_.fetch_and(~open, std::memory_order_acq_rel) & ~open;
    for (; left != 0; left = joined_.load(std::memory_order_acquire)) joined_.wait(left, std::memory_order_acquire);
  }

 private:
  void stop() {
    stopping_.store(true, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  void work(int worker) {
    for (int tile = next_.fetch_add(1, std::memory_order_relaxed); tile < tiles_;
         tile = next_.fetch_add(1, std::memory_order_relaxed)) {
      call_(context_, tile, worker);
    }
  }
  void serve(int worker) {
    std::uint32_t seen = 0;
    for (;;) {
      epoch_.wait(seen, std::memory_order_acquire);
      seen = epoch_.load(std::memory_order_acquire);
      if (stopping_.load(std::memory_order_relaxed)) return;
      std::uint32_t joined = joined_.load(std::memory_order_acquire);
      while ((joined & open) != 0 &&
             !joined_.compare_exchange_weak(joined, joined + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      }
      if ((joined & open) == 0) continue;  // too late for this call
      work(worker);
      // While the call is open nobody waits; when it is closed, the last worker wakes the caller.
      if (joined_.fetch_sub(1, std::memory_order_acq_rel) == 1) joined_.notify_one();
    }
  }

  /// In joined_: there may be tiles left. The bits below count the workers in this call, which is not over, and whose
  /// tiles and function stay, until none is left.
  static constexpr std::uint32_t open = 1U << 16;

  int count_ = 1;
  std::vector<std::thread> workers_;
  void (*call_)(const void*, int, int) = nullptr;
  const void* context_ = nullptr;
  int tiles_ = 0;
  std::atomic<std::uint32_t> epoch_{0};
  std::atomic<int> next_{0};
  std::atomic<std::uint32_t> joined_{0};
  std::atomic<bool> stopping_{false};
};

/// Cuts [0, count) into tiles of `tile` elements; calls run(first, last, worker) for each.
template <class Run>
void for_ranges(ThreadPool& pool, std::int64_t count, std::int64_t tile, Run&& run) {
  const std::int64_t tiles = (count + tile - 1) / tile;
  pool.for_tiles(static_cast<int>(tiles), [&](int index, int worker) {
    const std::int64_t first = index * tile;
    run(first, first + tile < count ? first + tile : count, worker);
  });
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
