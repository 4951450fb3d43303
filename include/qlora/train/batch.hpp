// qlora/train/batch.hpp — windows of tokens as a dataset holds them, and as the network wants them.
// Labels are aligned with ids: labels[t] says whether token t is to be predicted (from the tokens before it), -100 that
// it is not. A document's first token has nothing before it and is never predicted.
#pragma once

#include <span>
#include <vector>

#include "qlora/label.hpp"
#include "qlora/model/network.hpp"
#include "qlora/rng.hpp"

namespace qlora {
inline namespace v0 {

/// Whole windows of `seq` tokens one after another, (N x seq) each. `documents` may be empty: one document a window.
struct Windows {
  int seq = 0;                              ///< S, tokens in a window
  std::span<const std::int32_t> ids;        ///< (N,S)
  std::span<const std::int32_t> labels;     ///< (N,S), aligned with ids; ignored_label where nothing is predicted
  std::span<const std::int32_t> documents;  ///< (N,S), or empty; attention stays inside equal numbers

  /// N, the number of windows.
  [[nodiscard]] int count() const { return seq > 0 ? static_cast<int>(ids.size()) / seq : 0; }
  /// Windows [first, first + windows), which must be there. The spans are those of this one.
  [[nodiscard]] Windows slice(int first, int windows) const {
    const auto at = static_cast<std::size_t>(first) * static_cast<std::size_t>(seq);
    const auto size = static_cast<std::size_t>(windows) * static_cast<std::size_t>(seq);
    return {seq, ids.subspan(at, size), labels.subspan(at, size),
            documents.empty() ? documents : documents.subspan(at, size)};
  }
  /// Throws Error unless the parts agree in size and every id is below `vocab`.
  void check(int vocab) const {
    QLORA_EXPECTS(seq > 0 && !ids.empty() && ids.size() % static_cast<std::size_t>(seq) == 0, ids.size(),
                  " ids are no whole windows of ", seq);
    QLORA_EXPECTS(labels.size() == ids.size() && (documents.empty() || documents.size() == ids.size()), ids.size(),
                  " ids, ", labels.size(), " labels, ", documents.size(), " document numbers");
    for (const std::int32_t id : ids)
      QLORA_EXPECTS(id >= 0 && id < vocab, "token id ", id, " is outside 0 to ", vocab - 1);
    for (const std::int32_t label : labels) {
      QLORA_EXPECTS(label == ignored_label || (label >= 0 && label < vocab), "label ", label, " is outside 0 to ",
                    vocab - 1);
    }
  }
};

/// Turns windows into positions, targets and document segments; its memory is taken once. Used by one thread at a
/// time.
class BatchBuilder {
 public:
  /// Room for micro-batches of that many tokens.
  explicit BatchBuilder(std::size_t tokens) {
    positions_.reserve(tokens);
    targets_.reserve(tokens);
    labelled_.reserve(tokens);
    ends_.resize(tokens);
    segments_.reserve(tokens);
  }

  /// The batch's arrays live until the next call.
  [[nodiscard]] TokenBatch build(const Windows& windows) {
    positions_.clear();
    targets_.clear();
    segments_.clear();
    labelled_.clear();
    const auto seq = static_cast<std::size_t>(windows.seq);
    for (std::size_t t = 0; t < windows.ids.size(); ++t) {
      if (starts_segment(windows, t, seq)) {
        if (!segments_.empty()) segments_.back().last = static_cast<int>(t);
        segments_.push_back({static_cast<int>(t), 0});
      }
      positions_.push_back(static_cast<std::int32_t>(t) - segments_.back().first);
      const bool predicts =
          t + 1 < windows.ids.size() && !starts_segment(windows, t + 1, seq) && windows.labels[t + 1] != ignored_label;
      targets_.push_back(predicts ? windows.labels[t + 1] : -1);
      if (predicts) labelled_.push_back(static_cast<std::int32_t>(t));
    }
    segments_.back().last = static_cast<int>(windows.ids.size());
    ends_.resize(windows.ids.size());
    int longest = 0;
    for (const Segment& piece : segments_) {
      std::fill(ends_.begin() + piece.first, ends_.begin() + piece.last, piece.last);
      longest = std::max(longest, piece.last - piece.first);
    }
    return {.tokens = static_cast<int>(windows.ids.size()),
            .ids = windows.ids.data(),
            .positions = positions_.data(),
            .ends = ends_.data(),
            .targets = targets_.data(),
            .labelled = labelled_.data(),
            .labelled_count = static_cast<int>(labelled_.size()),
            .longest = longest,
            .segments = {segments_.data(), segments_.size()}};
  }

  /// Tokens that have a label and, in the same document, a token before them.
  [[nodiscard]] static std::int64_t count_labelled(const Windows& windows) {
    std::int64_t count = 0;
    const auto seq = static_cast<std::size_t>(windows.seq);
    for (std::size_t t = 1; t < windows.ids.size(); ++t) {
      count += !starts_segment(windows, t, seq) && windows.labels[t] != ignored_label ? 1 : 0;
    }
    return count;
  }

 private:
  [[nodiscard]] static bool starts_segment(const Windows& windows, std::size_t t, std::size_t seq) {
    return t % seq == 0 || (!windows.documents.empty() && windows.documents[t] != windows.documents[t - 1]);
  }

  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> targets_;
  std::vector<std::int32_t> ends_;
  std::vector<std::int32_t> labelled_;
  std::vector<Segment> segments_;
};

/// Which windows a step trains on: a pure function of the step, so that a resumed run needs nothing but its number.
/// Every epoch visits each window once, in its own order; the last step of an epoch may be smaller.
/// Const members may be called by any number of threads at once.
class DataOrder {
 public:
  /// `windows` of the data set, `per_step` of them in an optimizer step.
  DataOrder(int windows, int per_step, std::uint64_t seed) : windows_(windows), per_step_(per_step), seed_(seed) {
    QLORA_EXPECTS(windows > 0 && per_step > 0, windows, " windows, ", per_step, " a step");
  }
  /// Optimizer steps of an epoch, a smaller last one included.
  [[nodiscard]] int steps_per_epoch() const { return (windows_ + per_step_ - 1) / per_step_; }
  /// Window numbers of optimizer step `step`, from 0.
  [[nodiscard]] std::span<const std::uint32_t> step(int step) {
    const int epoch = step / steps_per_epoch();
    if (epoch != epoch_) {
      order_ = epoch_order(static_cast<std::uint32_t>(windows_), seed_, static_cast<std::uint32_t>(epoch));
      epoch_ = epoch;
    }
    const int first = (step % steps_per_epoch()) * per_step_;
    return {order_.data() + first, static_cast<std::size_t>(std::min(per_step_, windows_ - first))};
  }

 private:
  int windows_;
  int per_step_;
  std::uint64_t seed_;
  int epoch_ = -1;
  std::vector<std::uint32_t> order_;
};

}  // namespace v0
}  // namespace qlora
