// qlora/model/names.hpp — names of a model's tensors, as Hugging Face and PEFT write them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "qlora/config.hpp"

namespace qlora {
inline namespace v0 {

/// A layer has two norms; each is named by the block whose input it makes.
enum class NormBefore : std::uint8_t { attention, feed_forward };

/// Tensors of a LLaMA model in Hugging Face's directory format.
namespace tensor_name {

inline constexpr std::string_view embedding = "model.embed_tokens.weight";  ///< (V,D)
inline constexpr std::string_view final_norm = "model.norm.weight";         ///< (D)
inline constexpr std::string_view head = "lm_head.weight";                  ///< (V,D)
inline constexpr std::string_view layers = "model.layers.";                 ///< followed by the layer's number

/// What all tensors of one layer begin with.
[[nodiscard, gnu::cold]] inline std::string layer(int index) {
  return std::string(layers) + std::to_string(index) + ".";
}
/// A layer's norm. (D)
[[nodiscard, gnu::cold]] inline std::string norm(int index, NormBefore block) {
  return layer(index) + (block == NormBefore::attention ? "input_layernorm.weight" : "post_attention_layernorm.weight");
}
/// The module of one projection, without ".weight".
[[nodiscard, gnu::cold]] inline std::string module(int index, Proj proj) {
  return layer(index) + std::string(name_of(proj));
}
/// The weight of one projection: (out, in).
[[nodiscard, gnu::cold]] inline std::string weight(int index, Proj proj) { return module(index, proj) + ".weight"; }
/// The bias of one projection: (out).
[[nodiscard, gnu::cold]] inline std::string bias(int index, Proj proj) { return module(index, proj) + ".bias"; }

}  // namespace tensor_name

}  // namespace v0
}  // namespace qlora
