// bench/random_weights.hpp — weights of a model's exact shape without its files.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "qlora/llama2.hpp"

namespace qlora::bench {

/// Weights N(0, 0.02) in float16. All tensors share one pool of random numbers, since speed depends only on their
/// distribution.
class RandomWeights {
 public:
  explicit RandomWeights(const Shape& shape) : shape_(shape) {
    std::int64_t largest = std::int64_t{shape.vocab} * shape.dim;
    for (const Proj proj : all_projections) {
      largest = std::max(largest, std::int64_t{rows_of(shape, proj)} * cols_of(shape, proj));
    }
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0F, 0.02F);
    std::vector<std::uint16_t> some(1 << 16);
    for (std::uint16_t& value : some) value = to_f16(normal(random));
    pool_.resize(static_cast<std::size_t>(largest));
    std::uint64_t state = 1;
    for (std::uint16_t& value : pool_) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;  // Knuth's MMIX
      value = some[state >> 48];
    }
    ones_.assign(static_cast<std::size_t>(shape.dim), 1.0F);
  }
  [[nodiscard]] TensorSource source() const {
    return [this](std::string_view name) -> std::optional<TensorRef> {
      TensorRef tensor;
      if (name.ends_with("norm.weight")) {
        tensor.shape = {shape_.dim};
        tensor.bytes = std::as_bytes(std::span(ones_));
        return tensor;
      }
      tensor.dtype = DType::f16;
      tensor.shape = {shape_.vocab, shape_.dim};
      for (const Proj proj : all_projections) {
        if (name.ends_with(std::string(name_of(proj)) + ".weight")) {
          tensor.shape = {rows_of(shape_, proj), cols_of(shape_, proj)};
        }
      }
      tensor.bytes = std::as_bytes(std::span(pool_).first(static_cast<std::size_t>(tensor.size())));
      return tensor;
    };
  }

 private:
  Shape shape_;
  std::vector<std::uint16_t> pool_;
  std::vector<float> ones_;
};

}  // namespace qlora::bench
