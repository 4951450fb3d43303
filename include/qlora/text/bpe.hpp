// qlora/text/bpe.hpp — byte-pair encoding of one word: symbols are merged by rank, lowest first, leftmost on a tie.
// The order of merges is that of the Rust package `tokenizers`, stale queue entries included, because two merges may
// make the same piece and the result then depends on it.
// Reference: tests/text/tokenizer_json_test.cpp, ids of that package.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {

/// Finds pieces by a view of their text.
struct TextHash {
  using is_transparent = void;  ///< asks the container for lookups by view
  /// The hash of the bytes.
  [[nodiscard]] std::size_t operator()(std::string_view text) const noexcept {
    return std::hash<std::string_view>{}(text);
  }
};
/// Ids of pieces by their text.
using PieceIds = std::unordered_map<std::string, std::int32_t, TextHash, std::equal_to<>>;

/// From a pair of ids to the piece that they make. A flat table, since each symbol of a text is looked up in it.
class MergeTable {
 public:
  /// One merge.
  struct Entry {
    std::uint64_t pair = empty;  ///< both ids
    std::uint32_t rank = 0;      ///< position in the list of merges
    std::int32_t made = -1;      ///< id of the piece
  };

  /// Room for this many merges; more of them are not expected.
  explicit MergeTable(std::size_t merges = 0) : slots_(std::bit_ceil(2 * merges + 2)) {}

  /// A pair that is there gets the new rank, as in a map that is filled in file order.
  void set(std::int32_t left, std::int32_t right, std::uint32_t rank, std::int32_t made) {
    Entry& entry = slots_[slot_of(key(left, right))];
    entry = {key(left, right), rank, made};
  }
  /// The merge of the pair, or null.
  [[nodiscard]] const Entry* find(std::int32_t left, std::int32_t right) const {
    const Entry& entry = slots_[slot_of(key(left, right))];
    return entry.pair == empty ? nullptr : &entry;
  }

 private:
  static constexpr std::uint64_t empty = ~std::uint64_t{0};  // ids are not negative, so no pair has this key
  [[nodiscard]] static std::uint64_t key(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32U | static_cast<std::uint32_t>(right);
  }
  [[nodiscard]] std::size_t slot_of(std::uint64_t pair) const {  // the pair's slot, or the free one where it belongs
    const std::size_t mask = slots_.size() - 1;
    auto slot = static_cast<std::size_t>((pair * 0x9E3779B97F4A7C15U) >> 20U) & mask;
    while (slots_[slot].pair != empty && slots_[slot].pair != pair) slot = (slot + 1) & mask;
    return slot;
  }

  std::vector<Entry> slots_;
};

/// Merges the symbols of one word. Keeps its buffers between words; one object serves one thread.
class BpeMerger {
 public:
  /// The table must live as long as the merger.
  explicit BpeMerger(const MergeTable& merges) : merges_(&merges) {}

  /// Begins a word.
  void clear() { symbols_.clear(); }
  /// Appends a symbol of the word.
  void add(std::int32_t id) { symbols_.push_back({id, -1, -1}); }
  /// Whether the word has no symbols yet.
  [[nodiscard]] bool is_empty() const { return symbols_.empty(); }
  /// The symbol that was added last; expects one.
  [[nodiscard]] std::int32_t last() const { return symbols_.back().id; }

  /// Merges what was added, and appends the ids to `out`. O(n log n) in the symbols of the word.
  void merge(std::vector<std::int32_t>& out) {
    const auto count = static_cast<std::int32_t>(symbols_.size());
    queue_.clear();
    for (std::int32_t i = 0; i < count; ++i) {
      symbols_[static_cast<std::size_t>(i)].previous = i - 1;
      symbols_[static_cast<std::size_t>(i)].next = i + 1 < count ? i + 1 : -1;
      if (i + 1 < count) offer(i);
    }
    std::make_heap(queue_.begin(), queue_.end());
    while (!queue_.empty()) {
      std::pop_heap(queue_.begin(), queue_.end());
      const Candidate top = queue_.back();
      queue_.pop_back();
      Symbol& left = symbols_[static_cast<std::size_t>(top.position)];
      if (left.id < 0 || left.next < 0) continue;  // merged away, or the last one
      Symbol& right = symbols_[static_cast<std::size_t>(left.next)];
      const MergeTable::Entry* merge = merges_->find(left.id, right.id);
      if (merge == nullptr || merge->made != top.made) continue;  // the pair has changed
      left.id = top.made;
      right.id = -1;
      left.next = right.next;
      if (left.next >= 0) symbols_[static_cast<std::size_t>(left.next)].previous = top.position;
      if (left.previous >= 0) push(left.previous);
      if (left.next >= 0) push(top.position);
    }
    for (const Symbol& symbol : symbols_) {
      if (symbol.id >= 0) out.push_back(symbol.id);
    }
  }

 private:
  struct Symbol {
    std::int32_t id;  // negative once it is part of the symbol to its left
    std::int32_t previous;
    std::int32_t next;
  };
  struct Candidate {
    std::uint32_t rank;
    std::int32_t position;
    std::int32_t made;
    friend bool operator<(const Candidate& a, const Candidate& b) {  // the heap's top is the largest
      return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
    }
  };

  bool offer(std::int32_t position) {
    const Symbol& left = symbols_[static_cast<std::size_t>(position)];
    const MergeTable::Entry* merge = merges_->find(left.id, symbols_[static_cast<std::size_t>(left.next)].id);
    if (merge == nullptr) return false;
    queue_.push_back({merge->rank, position, merge->made});
    return true;
  }
  void push(std::int32_t position) {
    if (offer(position)) std::push_heap(queue_.begin(), queue_.end());
  }

  const MergeTable* merges_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> queue_;
};

}  // namespace v0
}  // namespace qlora
