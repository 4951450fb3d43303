// qlora/cuda/linear/lora_a_plan.hpp — how products with a narrow side (adapter columns) are split to fill the GPU.
// Math       `tiles` blocks do not fill a GPU with hundreds of slots, so the sum is split too: `count` blocks per tile,
//            `steps` each
// Numbers    a split and its order depend on shapes, GPU and workspace only, so the bits do too
// Reference  tests/cuda/lora_a_plan_test.cpp
#pragma once

#include <cstdint>

namespace qlora {
inline namespace v0 {
namespace cuda {

/// Widest product that one launch of the lora_a kernels computes; wider ones are split.
inline constexpr int most_narrow = 192;

/// Adapter columns split into `count` tiles of `width` 64, 128 or 192.
struct NarrowTiles {
  int width = 0;
  int count = 0;
};
[[nodiscard]] constexpr NarrowTiles narrow_tiles(int columns) {
  const int count = (columns + most_narrow - 1) / most_narrow;
  const int each = (columns + count - 1) / count;
  return {(each + 63) / 64 * 64, count};
}

struct SumSplit {
  int count = 1;  ///< parts of the sum, none of them empty
  int steps = 0;  ///< per part; the last may have fewer
};
/// The split that finishes first. `places` blocks run at the same time; a block of a split sum costs `extra` additional
/// steps, for partial sums that are written and read again; at most `most` parts fit the workspace.
[[nodiscard]] constexpr SumSplit split_sum(int tiles, int steps, int places, std::int64_t most, int extra) {
  constexpr int limit = 16;
  SumSplit best{1, steps};
  std::int64_t least = 0;
  for (int count = 1; count <= limit && count <= steps && (count == 1 || count <= most); ++count) {
    const int each = (steps + count - 1) / count;
    const std::int64_t waves = (std::int64_t{tiles} * count + places - 1) / places;
    const std::int64_t time = waves * (each + (count == 1 ? 1 : extra));
    if (count == 1 || time < least) {
      least = time;
      best = {(steps + each - 1) / each, each};
    }
  }
  return best;
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
