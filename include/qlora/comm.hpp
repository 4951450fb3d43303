// qlora/comm.hpp — processes that train one model together, as the trainer sees them: ranks that send each other pieces
// of the backend's memory and values of the host. A process alone has no Comm, and the trainer takes one branch a step.
// The interface is virtual and not a template parameter: it is called a few times in a micro-batch, and a parameter
// would compile each trainer once more for every form of it.
// Forms      dist/mpi.hpp for the host's memory, cuda/comm/nccl.hpp for a GPU's
// Order      no form adds anything up: what is summed over ranks is sent, and added by the receiver in an order that
//            does not depend on the number of ranks (train/shards.hpp)
// Failure    a rank that waits asks the watch, which throws when another rank is gone. After that the Comm is
//            not used again
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {

/// What one rank sends to another, and receives from it. Memory is the backend's; either part may be empty.
struct Piece {
  int peer = 0;                       ///< the other rank
  std::span<const std::byte> send{};  ///< what it receives from this one
  std::span<std::byte> receive{};     ///< room for what it sends, as many bytes as it sends
};

/// Ranks that call the same members in the same order. Used by one thread at a time.
class Comm {
 public:
  /// Called now and then while something is waited for, with the seconds since that began. Throws Error to give up.
  using Watch = std::function<void(double seconds)>;

  Comm(const Comm&) = delete;
  Comm& operator=(const Comm&) = delete;
  virtual ~Comm() = default;

  /// This process's number, from 0.
  [[nodiscard]] int rank() const { return rank_; }
  /// Number of processes.
  [[nodiscard]] int size() const { return size_; }

  /// Sends and receives these pieces, at most one for each other rank. Ops of the backend that come later see what was
  /// received; the host sees it after wait().
  virtual void exchange(const std::vector<Piece>& pieces) = 0;
  /// Waits for the exchanges before it.
  virtual void wait() = 0;
  /// `all` (size() * bytes) gets what every rank gives, in their order; each gives `bytes` at `mine`. Host memory.
  /// Waits.
  virtual void gather_bytes(const void* mine, std::size_t bytes, void* all) = 0;
  /// Gives up: whatever hangs in a call is let go, and no rank is waited for when this is destroyed.
  virtual void abort() noexcept = 0;

  /// One value of each rank.
  template <class T>
  [[nodiscard]] std::vector<T> gather(const T& mine) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> all(static_cast<std::size_t>(size_));
    gather_bytes(&mine, sizeof(T), all.data());
    return all;
  }
  /// Rank 0's text; the argument of the others is not looked at.
  [[nodiscard]] std::string broadcast(std::string text) {
    const std::vector<std::uint64_t> sizes = gather(std::uint64_t{text.size()});
    text.resize(static_cast<std::size_t>(sizes[0]));
    std::string all(text.size() * static_cast<std::size_t>(size_), ' ');
    if (!all.empty()) gather_bytes(text.data(), text.size(), all.data());
    all.resize(text.size());
    return all;
  }
  /// Returns when all ranks have called it.
  void barrier() { (void)gather(char{0}); }

  /// Replaces the watch; empty: everything is waited for as long as it takes.
  void set_watch(Watch watch) { watch_ = std::move(watch); }

 protected:
  /// Rank `rank`, from 0, of `size`.
  Comm(int rank, int size) : rank_(rank), size_(size) {
    QLORA_EXPECTS(size >= 1 && rank >= 0 && rank < size, "rank ", rank, " of ", size);
  }
  /// Empty, or what to call now and then while waiting: detail::wait_for() of comm_wait.hpp does.
  [[nodiscard]] const Watch& watch() const { return watch_; }

 private:
  int rank_;
  int size_;
  Watch watch_;
};

/// `count` numbers cut into one part per rank, at multiples of `unit`: rank r has [first(r), first(r + 1)). The first
/// ranks have as many as one another, the last ones may have fewer or none.
struct Shards {
  std::int64_t count = 0;  ///< numbers in all
  int ranks = 1;           ///< parts
  std::int64_t unit = 1;   ///< no part begins within one

  /// Numbers of the largest part, that of rank 0.
  [[nodiscard]] constexpr std::int64_t largest() const {
    const std::int64_t units = (count + unit - 1) / unit;
    return std::min(count, (units + ranks - 1) / ranks * unit);
  }
  /// Where a rank's part begins; of `ranks`, the end of all.
  [[nodiscard]] constexpr std::int64_t first(int rank) const {
    const std::int64_t units = (count + unit - 1) / unit;
    return std::min(count, rank * ((units + ranks - 1) / ranks) * unit);
  }
  /// Numbers of a rank's part.
  [[nodiscard]] constexpr std::int64_t size(int rank) const { return first(rank + 1) - first(rank); }
};

/// Every rank has written its own part of `data`; afterwards each has all of it. Backend memory.
template <class T>
void all_gather(Comm& comm, T* data, const Shards& shards) {
  const auto part = [&](int rank) {
    return std::span<T>(data + shards.first(rank), static_cast<std::size_t>(shards.size(rank)));
  };
  std::vector<Piece> pieces;
  for (int peer = 0; peer < comm.size(); ++peer) {
    if (peer == comm.rank()) continue;
    pieces.push_back({peer, std::as_bytes(part(comm.rank())), std::as_writable_bytes(part(peer))});
  }
  comm.exchange(pieces);
}

}  // namespace v0
}  // namespace qlora
