// qlora/train/parameter_groups.hpp — parts of what is trained that have a learning rate or a weight decay of their own:
//   options.groups = {{.part = "lora_B", .lr_scale = 16.0F}, {.part = "layers.0.", .lr_scale = 0.0F}};
// makes it LoRA+ and keeps the first layer as it is: the last group that has a part of a parameter's name decides.
// As the parameter groups of torch.optim. LoRA+ is of Hayou et al., "LoRA+: Efficient Low Rank Adaptation of Large
// Models" (2024).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {

/// Parameters whose names contain `part`. The last group that contains a parameter decides for it.
struct ParameterGroup {
  std::string part;                     ///< of names such as "model.layers.3.mlp.up_proj.lora_B.weight"; not empty
  float lr_scale = 1.0F;                ///< times the learning rate of a step; 0 or more
  std::optional<float> weight_decay{};  ///< in place of TrainOptions::weight_decay, for norm weights too; 0 or more
};

namespace detail {

/// A trained matrix in the array of all that is trained.
struct TrainedSpan {
  std::string name;
  std::int64_t first = 0;  ///< of its numbers
  bool decays = true;      ///< where no group says otherwise
};

/// Neighbouring numbers with one rule.
struct RuleRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
  float lr_scale = 1.0F;
  float weight_decay = 0.0F;
};

/// Throws Error (usage) for a value outside its range.
[[gnu::cold]] inline void check_groups(const std::vector<ParameterGroup>& groups) {
  for (const ParameterGroup& group : groups) {
    const std::string what = concat(" of the parameter group '", group.part, "'");
    expect_option(!group.part.empty(), "part of a parameter group", "''", "part of a name");
    expect_option(std::isfinite(group.lr_scale) && group.lr_scale >= 0.0F, "lr_scale" + what, group.lr_scale,
                  "0 or more, and finite");
    const float decay = group.weight_decay.value_or(0.0F);
    expect_option(std::isfinite(decay) && decay >= 0.0F, "weight_decay" + what, decay, "0 or more, and finite");
  }
}

/// The rules of all `total` numbers, in their order; each span reaches to the next. `spans` begin at rising numbers.
/// Throws Error (usage) for a group without a parameter.
[[nodiscard, gnu::cold]] inline std::vector<RuleRange> rule_ranges(const std::vector<TrainedSpan>& spans,
                                                                   std::int64_t total,
                                                                   const std::vector<ParameterGroup>& groups,
                                                                   float weight_decay) {
  std::vector<char> used(groups.size());
  std::vector<RuleRange> ranges;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const std::int64_t end = i + 1 < spans.size() ? spans[i + 1].first : total;
    QLORA_EXPECTS(spans[i].first < end, spans[i].name, " begins at ", spans[i].first, " of ", end);
    RuleRange range{spans[i].first, end - spans[i].first, 1.0F, spans[i].decays ? weight_decay : 0.0F};
    for (std::size_t g = 0; g < groups.size(); ++g) {
      if (spans[i].name.find(groups[g].part) == std::string::npos) continue;
      used[g] = 1;
      range.lr_scale = groups[g].lr_scale;
      range.weight_decay = groups[g].weight_decay.value_or(spans[i].decays ? weight_decay : 0.0F);
    }
    if (!ranges.empty() && ranges.back().lr_scale == range.lr_scale &&
        ranges.back().weight_decay == range.weight_decay) {
      ranges.back().count += range.count;
    } else {
      ranges.push_back(range);
    }
  }
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (used[g] != 0) continue;
    throw Error(concat("the parameter group '", groups[g].part, "' is empty: nothing that is trained has it in its ",
                       "name, the first of them is ", spans.empty() ? "" : spans.front().name),
                ErrorKind::usage);
  }
  return ranges;
}

/// Throws Error (usage) when moments in 8 bits, which share a scale in blocks, would have blocks with two rules.
inline void expect_whole_blocks(const std::vector<RuleRange>& ranges) {
  for (const RuleRange& range : ranges) {
    if (range.first % moment_block == 0) continue;
    throw Error(concat("moments in 8 bits come in blocks of ", moment_block,
                       " numbers, and these parameter groups begin within one; leave adamw8bit or the groups out"),
                ErrorKind::usage);
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace qlora
