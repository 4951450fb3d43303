// qlora/model/access.hpp — who uses what at the moment: flags that refuse a use which would be a data race. Nothing
// here waits: a call that comes at the wrong time is a mistake of the program and throws.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {

/// Any number of readers, or one writer. Any number of threads at once.
class AccessGate {
 public:
  /// Nobody reads or writes.
  AccessGate() = default;
  AccessGate(const AccessGate&) = delete;
  AccessGate& operator=(const AccessGate&) = delete;

  /// Begins to read, unless somebody writes.
  [[nodiscard]] bool try_read() noexcept {
    int users = users_.load(std::memory_order_relaxed);
    while (users >= 0) {
      if (users_.compare_exchange_weak(users, users + 1, std::memory_order_acquire, std::memory_order_relaxed)) {
        return true;
      }
    }
    return false;
  }
  /// Begins to write, unless somebody reads or writes.
  [[nodiscard]] bool try_write() noexcept {
    int nobody = 0;
    return users_.compare_exchange_strong(nobody, -1, std::memory_order_acquire, std::memory_order_relaxed);
  }
  /// Ends what try_read() began.
  void end_read() noexcept { users_.fetch_sub(1, std::memory_order_release); }
  /// Ends what try_write() began.
  void end_write() noexcept {
    writes_.fetch_add(1, std::memory_order_relaxed);
    users_.store(0, std::memory_order_release);
  }
  /// How often it was written, for readers.
  [[nodiscard]] std::uint64_t writes() const noexcept { return writes_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int> users_{0};  ///< readers; -1: a writer
  std::atomic<std::uint64_t> writes_{0};
};

/// Reads what a gate guards, for as long as it lives; of one thread. Throws Error (usage) while somebody writes.
class Reading {
 public:
  /// Begins to read.
  explicit Reading(AccessGate& gate) : gate_(&gate) {
    if (gate.try_read()) return;
    throw Error(
        "these adapters are being written, by a training step or because they are loaded: generate and score "
        "between steps",
        ErrorKind::usage);
  }
  /// Takes over.
  Reading(Reading&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
  Reading& operator=(Reading&&) = delete;
  ~Reading() {
    if (gate_ != nullptr) gate_->end_read();
  }

 private:
  AccessGate* gate_;
};

/// Writes what a gate guards, for as long as it lives; of one thread. Throws Error (usage) while somebody else reads or
/// writes.
class Writing {
 public:
  /// Begins to write.
  explicit Writing(AccessGate& gate) : gate_(gate) {
    if (gate.try_write()) return;
    throw Error("these adapters are in use, by a generator, a scorer or a training step: change them when that is over",
                ErrorKind::usage);
  }
  Writing(const Writing&) = delete;
  Writing& operator=(const Writing&) = delete;
  ~Writing() { gate_.end_write(); }

 private:
  AccessGate& gate_;
};

}  // namespace v0
}  // namespace qlora
