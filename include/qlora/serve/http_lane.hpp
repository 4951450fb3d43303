// qlora/serve/http_lane.hpp — which requests of the HTTP server may keep a thread. Part of http_server.hpp.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <mutex>
#include <utility>

namespace qlora {
inline namespace v0 {
namespace serve {
namespace detail {

/// The way to the handler of requests that have a body: it may take long to read one. Of the server's threads one is
/// left for the others, so that /health is answered whatever else is asked.
class BodyLane {
 public:
  /// The turn of one that runs; its end lets the next one run.
  class Turn {
   public:
    explicit Turn(BodyLane& lane) : lane_(lane) {}
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() { lane_.leave(); }

   private:
    BodyLane& lane_;
  };

  explicit BodyLane(int threads) : free_(std::max(1, threads - 1)) {}
  /// Whether one more may run now. If not, `later` is called when it may.
  [[nodiscard]] bool enter(std::function<void()> later) {
    const std::lock_guard lock(mutex_);
    if (free_ > 0) {
      --free_;
      return true;
    }
    waiting_.push_back(std::move(later));
    return false;
  }
  /// Forgets who waits.
  void clear() {
    std::deque<std::function<void()>> all;
    const std::lock_guard lock(mutex_);
    all.swap(waiting_);
  }

 private:
  void leave() {
    std::function<void()> next;
    {
      const std::lock_guard lock(mutex_);
      if (waiting_.empty()) {
        ++free_;
        return;
      }
      next = std::move(waiting_.front());
      waiting_.pop_front();
    }
    next();
  }

  std::mutex mutex_;
  int free_;
  std::deque<std::function<void()>> waiting_;
};

}  // namespace detail
}  // namespace serve
}  // namespace v0
}  // namespace qlora
