// qlora/text/step_windows.hpp — the windows of one training step, gathered from a data set: what Trainer::step takes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "qlora/text/dataset.hpp"
#include "qlora/train/batch.hpp"

namespace qlora {
inline namespace v0 {

/// Reuses its memory; the result of gather is valid until the next call.
class StepWindows {
 public:
  /// The windows with these numbers, concatenated in this order.
  [[nodiscard]] Windows gather(const TokenDataset& data, std::span<const std::uint32_t> numbers) {
    ids_.clear();
    labels_.clear();
    documents_.clear();
    for (const std::uint32_t number : numbers) {
      const DatasetWindow one = data.window(number);
      ids_.insert(ids_.end(), one.ids.begin(), one.ids.end());
      labels_.insert(labels_.end(), one.labels.begin(), one.labels.end());
      documents_.insert(documents_.end(), one.documents.begin(), one.documents.end());
    }
    return {data.seq(), ids_, labels_, documents_};
  }

 private:
  std::vector<std::int32_t> ids_;
  std::vector<std::int32_t> labels_;
  std::vector<std::int32_t> documents_;
};

}  // namespace v0
}  // namespace qlora
