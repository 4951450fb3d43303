// qlora/model/init.hpp — random weights for a model that is trained from scratch, or measured without a checkpoint.
// Normal with standard deviation 0.02 as transformers initialises LLaMA, norms 1; values depend on seed, tensor and
// index alone. Projections into the residual stream are scaled by 1/sqrt(2 layers), as in GPT-2.
#pragma once

#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "qlora/config.hpp"
#include "qlora/model/names.hpp"
#include "qlora/rng.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {

namespace detail {

[[nodiscard]] constexpr std::uint32_t name_hash(std::string_view name) {  // FNV-1a
  std::uint32_t hash = 2166136261U;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619U;
  return hash;
}

/// Standard normal numbers in pairs (Box-Muller).
inline void fill_normal(std::string_view name, std::uint64_t seed, float deviation, std::vector<float>& out) {
  for (std::size_t i = 0; i < out.size(); i += 2) {
    const auto words = philox({static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(i >> 32), name_hash(name),
                               use_word(RandomUse::weight_init)},
                              seed);
    const float radius = std::sqrt(-2.0F * std::log(1.0F - unit_float(words[0]))) * deviation;
    const float angle = 2.0F * std::numbers::pi_v<float> * unit_float(words[1]);
    out[i] = radius * std::cos(angle);
    if (i + 1 < out.size()) out[i + 1] = radius * std::sin(angle);
  }
}

}  // namespace detail

/// Random weights of a shape, one tensor at a time. Used by one thread at a time.
struct RandomTensors {
  Shape shape;                ///< of the model
  std::uint64_t seed = 0;     ///< of the numbers
  std::vector<float> values;  ///< of the tensor that was made last

  /// The tensor of that name, made anew, or nothing where the shape has no such tensor. Its bytes live until the next
  /// call.
  std::optional<TensorRef> operator()(std::string_view name) {
    const auto ends_with = [&](std::string_view tail) { return name.ends_with(tail); };
    TensorRef tensor;
    float deviation = 0.02F;
    if (ends_with("norm.weight")) {
      tensor.shape = {shape.dim};
      deviation = 0.0F;
    } else if (name == tensor_name::embedding || name == tensor_name::head) {
      tensor.shape = {shape.vocab, shape.dim};
    } else {
      for (const Proj proj : all_projections) {
        if (!ends_with(std::string(name_of(proj)) + ".weight")) continue;
        tensor.shape = {rows_of(shape, proj), cols_of(shape, proj)};
        if (proj == Proj::o || proj == Proj::down) deviation /= std::sqrt(2.0F * static_cast<float>(shape.layers));
      }
      if (tensor.shape.empty()) return std::nullopt;
    }
    values.assign(static_cast<std::size_t>(tensor.size()), 1.0F);
    if (deviation > 0.0F) detail::fill_normal(name, seed, deviation, values);
    tensor.bytes = std::as_bytes(std::span<const float>(values.data(), values.size()));
    return tensor;
  }
};

/// A source of random weights for this shape. Each call makes the tensor anew and holds only the last one.
[[nodiscard]] inline TensorSource random_weights(const Shape& shape, std::uint64_t seed) {
  return RandomTensors{shape, seed, {}};
}

}  // namespace v0
}  // namespace qlora
