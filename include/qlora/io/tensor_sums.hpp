// qlora/io/tensor_sums.hpp — the checksums of a model's tensors, each computed once and, where the caller takes the
// tensors one after the other, by other threads before it is asked for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/io/checksum.hpp"

namespace qlora {
inline namespace v0 {
namespace detail {

/// Any number of threads may call it at once.
class TensorSums {
 public:
  /// `names`: the tensors in the order in which they will most likely be asked for. `verify` computes the checksum of
  /// one and throws Error where it is not the one that its file states; it is called by several threads at once.
  TensorSums(std::vector<std::string> names, std::function<Checksum(const std::string&)> verify)
      : verify_(std::move(verify)), names_(std::move(names)) {
    for (std::size_t i = 0; i < names_.size(); ++i) places_.emplace(names_[i], i);
    sums_.resize(names_.size());
  }

  /// The checksum of a tensor, which is computed if it is not known yet; the next `ahead` are begun. Throws as `verify`
  /// does, each time. Names that were not given have none.
  Checksum of(std::string_view name, int ahead) {
    const auto found = places_.find(name);
    if (found == places_.end()) return {};
    std::shared_future<Checksum> sum;
    {
      const std::lock_guard lock(mutex_);
      begin(found->second, std::launch::deferred);  // by the first thread that waits for it
      const std::size_t end = std::min(names_.size(), found->second + 1 + static_cast<std::size_t>(ahead));
      for (std::size_t i = found->second + 1; i < end; ++i) begin(i, std::launch::async | std::launch::deferred);
      sum = sums_[found->second];
    }
    return sum.get();
  }

  /// The checksum of a tensor that somebody has read, so that it is not read for it again.
  void know(std::string_view name, const Checksum& sum) {
    const auto found = places_.find(name);
    if (found == places_.end()) return;
    std::promise<Checksum> known;
    known.set_value(sum);
    const std::lock_guard lock(mutex_);
    if (!sums_[found->second].valid()) sums_[found->second] = known.get_future().share();
  }

 private:
  void begin(std::size_t place, std::launch policy) {
    if (sums_[place].valid()) return;
    sums_[place] = std::async(policy, verify_, std::cref(names_[place])).share();
  }

  std::function<Checksum(const std::string&)> verify_;
  std::vector<std::string> names_;
  std::map<std::string_view, std::size_t> places_;
  std::mutex mutex_;
  std::vector<std::shared_future<Checksum>> sums_;  // behind what they use: they end before it does
};

}  // namespace detail
}  // namespace v0
}  // namespace qlora
