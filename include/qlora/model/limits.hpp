// qlora/model/limits.hpp — what a model cannot be trained with, whatever the memory: a LoRA rank above its narrowest
// layer, windows longer than it reads. One text for all that ask: training, plans, and the checks of a job.
#pragma once

#include <algorithm>
#include <string_view>

#include "qlora/config.hpp"
#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {

/// Throws Error (usage) unless every layer of this static shape can have adapters of config.lora.rank.
[[gnu::cold]] inline void expect_rank(const Config& config) {
  if (rule::rank_fits_every_target(config)) return;
  const Shape& s = config.shape;
  throw Error(
      concat("LoRA rank ", config.lora.rank, " is outside 1 to ", std::min({s.dim, s.ffn, s.heads * s.head_dim}),
             ", the input width of this model's narrowest layer"),
      ErrorKind::usage);
}

/// Throws Error (input) for windows of `seq` tokens that are longer than the model's context; `limited_by` is the key
/// of config.json that says so.
inline void expect_length(int seq, int max_positions, std::string_view limited_by = "max_position_embeddings") {
  if (seq <= max_positions) return;
  throw Error(concat("windows of ", seq, " tokens; the model was made for ", max_positions, " (", limited_by,
                     "); pack with a smaller --seq"));
}

}  // namespace v0
}  // namespace qlora
