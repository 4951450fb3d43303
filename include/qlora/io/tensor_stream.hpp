// qlora/io/tensor_stream.hpp — tensors that have to be read, in the order in which a model takes them: while some are
// used the next ones are read.
// Memory     tensors are read in batches of 128 MiB, or of one tensor that is larger; there are three batches at most,
//            the one that is taken from and two ahead. What was taken belongs to who took it.
// Order      a request behind the newest batch, or one for what was taken already, is read by itself
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {
namespace detail {

/// Any number of threads may call it at once.
class TensorStream {
 public:
  /// Reads tensors together, into memory that they keep. Called by several threads at once.
  using Read = std::function<std::vector<TensorRef>(std::span<const std::string> names)>;

  /// `names` in the order in which they will most likely be asked for, `bytes_of` one of them.
  TensorStream(std::vector<std::string> names, const std::function<std::uint64_t(const std::string&)>& bytes_of,
               Read read)
      : read_(std::move(read)), names_(std::move(names)) {
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < names_.size(); ++i) {
      const std::uint64_t own = bytes_of(names_[i]);
      if (i == 0 || bytes + own > batch_bytes) {
        batches_.push_back({.begin = i, .end = i, .untaken = {}, .read = {}});
        bytes = 0;
      }
      bytes += own;
      ++batches_.back().end;
      places_.emplace(names_[i], batches_.size() - 1);
    }
  }

  /// A tensor that is there; with `ahead` it is taken from its batch, and the next ones are begun. Throws as `read`
  /// does, for any tensor of that batch.
  [[nodiscard]] TensorRef get(std::string_view name, bool ahead) {
    const auto place = places_.find(name);
    if (ahead && place != places_.end()) {
      if (std::optional<TensorRef> tensor = take(place->second, name)) return *std::move(tensor);
    }
    return read_(std::array{std::string(name)}).front();
  }

 private:
  static constexpr std::uint64_t batch_bytes = std::uint64_t{128} << 20;
  static constexpr std::size_t batches_ahead = 2;

  struct Batch {
    std::size_t begin;  // of its names
    std::size_t end;
    std::map<std::string_view, TensorRef> untaken;
    std::shared_future<void> read;  // behind what it fills; not valid: not begun
  };

  /// Nothing where it was taken before, or its batch has gone by.
  std::optional<TensorRef> take(std::size_t number, std::string_view name) {
    std::shared_future<void> read;
    {
      const std::lock_guard lock(mutex_);
      if (number < front_) return std::nullopt;
      for (; front_ < number; ++front_) batches_[front_].untaken.clear();
      const std::size_t end = std::min(batches_.size(), number + 1 + batches_ahead);
      for (begun_ = std::max(begun_, number); begun_ < end; ++begun_) {
        batches_[begun_].read =
            std::async(std::launch::async | std::launch::deferred, [this, n = begun_] { fill(n); }).share();
      }
      read = batches_[number].read;
    }
    read.get();
    const std::lock_guard lock(mutex_);
    const auto found = batches_[number].untaken.extract(name);
    return found.empty() ? std::nullopt : std::optional(std::move(found.mapped()));
  }

  void fill(std::size_t number) {
    Batch& batch = batches_[number];
    const auto names = std::span(names_).subspan(batch.begin, batch.end - batch.begin);
    std::vector<TensorRef> tensors = read_(names);
    const std::lock_guard lock(mutex_);
    if (number < front_) return;
    for (std::size_t i = 0; i < names.size(); ++i) batch.untaken.emplace(names[i], std::move(tensors[i]));
  }

  Read read_;
  std::vector<std::string> names_;
  std::map<std::string_view, std::size_t> places_;  // the batches of names
  std::mutex mutex_;                                // of what follows
  std::size_t front_ = 0;                           // the batch that is taken from
  std::size_t begun_ = 0;                           // batches that were begun
  std::vector<Batch> batches_;                      // behind what they use: they end before it does
};

}  // namespace detail
}  // namespace v0
}  // namespace qlora
