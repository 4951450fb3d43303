// qlora/text/step_windows.hpp — the windows of one training step, gathered from packed documents: what Trainer::step
// takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "qlora/text/dataset.hpp"
#include "qlora/text/packing.hpp"
#include "qlora/train/batch.hpp"

namespace qlora {
inline namespace v0 {

/// Reuses its memory; the result of gather is valid until the next call. Used by one thread at a time.
class StepWindows {
 public:
  /// The windows with these numbers, concatenated in this order.
  [[nodiscard]] Windows gather(const TokenDataset& data, std::span<const std::uint32_t> numbers) {
    clear();
    for (const std::uint32_t number : numbers) {
      const DatasetWindow read = data.window(number);
      append(read.ids, read.labels, read.documents);
    }
    return {data.seq(), ids_, labels_, documents_};
  }
  /// The same from windows that were never written to a data set.
  [[nodiscard]] Windows gather(const PackedWindows& data, std::span<const std::uint32_t> numbers) {
    clear();
    const auto seq = static_cast<std::size_t>(data.seq);
    for (const std::uint32_t number : numbers) {
      const auto window = [&](const std::vector<std::int32_t>& from) {
        return std::span(from).subspan(number * seq, seq);
      };
      append(window(data.ids), window(data.labels), window(data.documents));
    }
    return {data.seq, ids_, labels_, documents_};
  }

 private:
  using Column = std::span<const std::int32_t>;

  void clear() {
    ids_.clear();
    labels_.clear();
    documents_.clear();
  }
  void append(Column ids, Column labels, Column documents) {
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    labels_.insert(labels_.end(), labels.begin(), labels.end());
    documents_.insert(documents_.end(), documents.begin(), documents.end());
  }

  std::vector<std::int32_t> ids_;
  std::vector<std::int32_t> labels_;
  std::vector<std::int32_t> documents_;
};

}  // namespace v0
}  // namespace qlora
