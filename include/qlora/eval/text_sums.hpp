// qlora/eval/text_sums.hpp — the loss on texts and the KL divergence from another model on them, from rows of logits.
// Math       loss = -sum_t log q(x_t | x_<t),  KL = sum_t KL(p(. | x_<t) || q(. | x_<t)), p the reference, q the model
// Numbers    each row's terms in double; a text's terms are added in the order of its tokens, whatever the threads
// Threads    rows are kept until they are worth the threads: with 49,152 logits a row takes a core a millisecond, more
//            than a GPU needs for the token.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <system_error>
#include <thread>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/item_results.hpp"
#include "qlora/generate/scorer.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// A model's logits at every predicted token of the texts in a list of items: the reference of KL divergence.
/// Holds tokens x vocabulary floats: 4 GB for 32,000 tokens of LLaMA-2.
struct TextReference {
  std::vector<std::vector<float>> logits;  ///< by item, row after row; empty for questions
};

namespace detail {

/// run(i) for each i below `count`, by `threads` threads, the caller among them. run must not throw.
template <class Run>
void for_each_by(std::size_t count, std::size_t threads, const Run& run) {
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) run(i);
  };
  std::vector<std::thread> others;
  try {
    while (others.size() + 1 < std::min(threads, count)) others.emplace_back(work);
  } catch (const std::system_error&) {  // fewer threads do it
  }
  work();
  for (std::thread& thread : others) thread.join();
}

/// Adds up loss and KL divergence of texts, row by row. For one measurement, of one thread.
class TextSums {
 public:
  /// Adds to results.loss, .tokens and, with `against`, .kl, which are there for each item. `record` receives the rows.
  /// Both outlive it. `threads`: how many may add; 0 takes one per core.
  TextSums(ItemResults& results, TextReference* record, const TextReference* against, int threads = 0)
      : results_(results),
        record_(record),
        against_(against),
        threads_(threads > 0 ? static_cast<std::size_t>(threads)
                             : std::max<std::size_t>(1, std::thread::hardware_concurrency())) {}

  /// The next predicted token of an item: its id, and the logits (V) that predict it.
  void add(std::size_t item, std::int32_t id, std::span<const float> logits) {
    if (record_ != nullptr) {
      std::vector<float>& rows = record_->logits[item];
      rows.insert(rows.end(), logits.begin(), logits.end());
    }
    const std::size_t at = static_cast<std::size_t>(results_.tokens[item]) * logits.size();
    results_.tokens[item] += 1.0;
    if (against_ != nullptr) {
      const std::size_t there = against_->logits[item].size();
      QLORA_EXPECTS(at + logits.size() <= there, "the reference has ", there, " logits of item ", item);
    }
    rows_.insert(rows_.end(), logits.begin(), logits.end());
    waiting_.push_back({item, static_cast<std::size_t>(id), at});
    if (rows_.size() >= worth_threads && waiting_.size() >= 2 * threads_) finish();
  }
  /// What is still to be added. To be called behind the last row.
  void finish() {
    if (waiting_.empty()) return;
    const std::size_t vocab = rows_.size() / waiting_.size();
    for_each_by(waiting_.size(), rows_.size() < worth_threads ? 1 : threads_, [&](std::size_t i) {
      Waiting& row = waiting_[i];
      const auto logits = std::span<const float>(rows_).subspan(i * vocab, vocab);
      row.loss = log_sum_exp(logits) - static_cast<double>(logits[row.id]);
      if (against_ == nullptr) return;
      row.kl = kl_divergence(std::span<const float>(against_->logits[row.item]).subspan(row.at, vocab), logits);
    });
    for (const Waiting& row : waiting_) {
      results_.loss[row.item] += row.loss;
      if (against_ != nullptr) results_.kl[row.item] += row.kl;
    }
    rows_.clear();
    waiting_.clear();
  }

 private:
  /// Logits that take longer than to start threads: some milliseconds.
  static constexpr std::size_t worth_threads = std::size_t{1} << 20;

  struct Waiting {
    std::size_t item;
    std::size_t id;
    std::size_t at;  // where the reference's row begins
    double loss = 0.0;
    double kl = 0.0;
  };

  ItemResults& results_;
  TextReference* record_;
  const TextReference* against_;
  std::size_t threads_;
  std::vector<float> rows_;
  std::vector<Waiting> waiting_;
};

}  // namespace detail
}  // namespace eval
}  // namespace v0
}  // namespace qlora
