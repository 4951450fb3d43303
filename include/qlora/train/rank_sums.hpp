// qlora/train/rank_sums.hpp — the gradients of a step that several ranks share, and the part of the sum that each
// keeps.
// Micro-batch m of a step is made by rank m % N. Its gradient, made from zero, is cut into shards, one per rank; each
// rank gets its shard of every micro-batch and adds them in the order of the micro-batches. So the sum has the bits of
// one process that adds the gradients of whole micro-batches, whatever N is. A rank then updates its shard with its
// share of AdamW's state, and the ranks send each other what is updated: a reduce-scatter and an all-gather, of which
// the first has its sums in order. The norm is made of sums of tiles, no shard begins within one, and every rank adds
// all of them in order.
// Cost       per micro-batch and rank (N-1)/N gradients are sent and received, per step (N-1)/N parameters
// Reference  tests/dist/mpi_trainer_test.cpp: one, two and four ranks
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "qlora/backend.hpp"
#include "qlora/comm.hpp"
#include "qlora/model/plan.hpp"

namespace qlora {
inline namespace v0 {
namespace detail {

/// A backend that measures which algorithms are fast, and thereby chooses the order of sums: ranks, and a resumed run,
/// must use the same ones.
template <class B>
concept ChoosesAlgorithms = requires(B& b, const std::string& text) {
  { b.algorithms() } -> std::convertible_to<std::string>;
  b.load_algorithms(text);
};

/// One rank's part of the sums. Used by one thread at a time.
template <class B>
class RankSums {
 public:
  using Param = typename B::Param;

  /// Takes memory as the plan of `ranks` says. All three outlive it. `message`: as message_numbers, which is the most.
  RankSums(Comm& comm, B& b, typename B::Arena& arena, const TrainedLayout& layout,
           std::int64_t message = std::numeric_limits<std::int64_t>::max())
      : comm_(comm),
        b_(b),
        shards_(trained_shards(layout, comm.size())),
        message_(std::min(message, message_numbers(shards_))),
        sum_(arena.template take<Param>(shards_.largest())) {
    for (int peer = 1; peer < comm.size(); ++peer) received_.push_back(arena.template take<Param>(message_));
    micro_ = arena.template take<StepScalars>(most_micro_batches);
  }

  [[nodiscard]] Comm& comm() const { return comm_; }
  [[nodiscard]] const Shards& shards() const { return shards_; }
  /// First number of this rank's shard, and how many it has.
  [[nodiscard]] std::int64_t first() const { return shards_.first(comm_.rank()); }
  [[nodiscard]] std::int64_t count() const { return shards_.size(comm_.rank()); }
  /// The sum (count()) of the step so far.
  [[nodiscard]] const Param* sum() const { return sum_; }

  /// Begins a step of that many micro-batches.
  void begin(int micro_batches) {
    micro_batches_ = micro_batches;
    QLORA_EXPECTS(rounds() <= most_micro_batches, "a step of ", micro_batches, " micro-batches on ", comm_.size(),
                  " ranks; each can have ", most_micro_batches);
    b_.zero(sum_, count());
    for (int round = 0; round < rounds(); ++round) b_.zero(micro_ + round);
  }
  /// Micro-batches that rank 0 has.
  [[nodiscard]] int rounds() const { return (micro_batches_ + comm_.size() - 1) / comm_.size(); }
  /// This rank's micro-batch of a round; it may lie beyond the last one of the step.
  [[nodiscard]] int micro_batch(int round) const { return round * comm_.size() + comm_.rank(); }
  /// Where the loss of a round's micro-batch goes; zero before.
  [[nodiscard]] StepScalars* scalars(int round) const { return micro_ + round; }

  /// Adds the gradients of a round's micro-batches: this rank's, if it has one, and what the others send.
  void add(int round, const Param* gradient) {
    const int active = std::min(comm_.size(), micro_batches_ - round * comm_.size());
    const int rank = comm_.rank();
    for (std::int64_t at = 0; at < shards_.largest(); at += message_) {
      const auto left = [&](int peer) { return std::clamp<std::int64_t>(shards_.size(peer) - at, 0, message_); };
      const std::int64_t own = left(rank);
      pieces_.clear();
      for (int peer = 0; peer < comm_.size(); ++peer) {
        if (peer == rank) continue;
        const std::span<const Param> send(gradient + shards_.first(peer) + at,
                                          static_cast<std::size_t>(rank < active ? left(peer) : 0));
        const std::span<Param> receive(buffer_of(peer), static_cast<std::size_t>(peer < active ? own : 0));
        pieces_.push_back({peer, std::as_bytes(send), std::as_writable_bytes(receive)});
      }
      comm_.exchange(pieces_);
      for (int peer = 0; peer < active && own > 0; ++peer) {
        b_.add(own, peer == rank ? gradient + first() + at : buffer_of(peer), sum_ + at);
      }
    }
  }

  /// The loss of all micro-batches, summed in their order, and the fault of the lowest rank that has one.
  [[nodiscard]] StepScalars gather(std::uint32_t fault) {
    std::vector<double> mine(static_cast<std::size_t>(rounds()) + 1);
    for (int round = 0; round < rounds(); ++round) {
      mine[static_cast<std::size_t>(round)] = b_.read(micro_ + round).loss;
    }
    mine.back() = static_cast<double>(fault);
    std::vector<double> all(mine.size() * static_cast<std::size_t>(comm_.size()));
    comm_.gather_bytes(mine.data(), mine.size() * sizeof(double), all.data());
    const auto of = [&](int rank, int entry) {
      return all[static_cast<std::size_t>(rank) * mine.size() + static_cast<std::size_t>(entry)];
    };
    StepScalars result;
    for (int m = 0; m < micro_batches_; ++m) result.loss += of(m % comm_.size(), m / comm_.size());
    for (int rank = comm_.size() - 1; rank >= 0; --rank) {
      if (of(rank, rounds()) != 0.0) result.fault = static_cast<std::uint32_t>(of(rank, rounds()));
    }
    return result;
  }

  /// Norm and clipping factor of the whole sum, into the scalars of every rank. partial: one double a tile of all.
  void norm(double* partial, float max_norm, StepScalars* scalars) {
    if (count() > 0) b_.norm_tiles(count(), sum_, partial + first() / norm_tile);
    all_gather(comm_, partial, Shards{norm_partials(shards_.count), comm_.size(), 1});
    comm_.wait();
    b_.norm_total(shards_.count, partial, max_norm, scalars);
  }

  /// `whole` (all numbers) = the sums of all ranks.
  void collect(Param* whole) {
    b_.copy(count(), sum_, whole + first());
    all_gather(comm_, whole, shards_);
    comm_.wait();
  }
  /// `whole` = the shards of something of which each rank has its own; `per_number` of `shards()` stand for one of
  /// these.
  void collect(const Param* own, std::int64_t numbers, std::int64_t per_number, Param* whole) {
    const Shards parts{numbers, comm_.size(), norm_tile / per_number};
    b_.copy(parts.size(comm_.rank()), own, whole + parts.first(comm_.rank()));
    all_gather(comm_, whole, parts);
    comm_.wait();
  }

 private:
  [[nodiscard]] Param* buffer_of(int peer) const {
    return received_[static_cast<std::size_t>(peer < comm_.rank() ? peer : peer - 1)];
  }

  Comm& comm_;
  B& b_;
  Shards shards_;
  std::int64_t message_;
  Param* sum_;
  std::vector<Param*> received_;
  StepScalars* micro_ = nullptr;
  int micro_batches_ = 0;
  std::vector<Piece> pieces_;
};

}  // namespace detail
}  // namespace v0
}  // namespace qlora
