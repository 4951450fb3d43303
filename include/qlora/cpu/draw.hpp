// qlora/cpu/draw.hpp — an id of each row of logits, drawn at random as the row says.
// Math       as draw.hpp says
// Shapes     logits (T,V) · rows (T) · ids (T)
// Writes     ids with =
// Split      rows
// Reference  draw_cases in tests/ops/loss.hpp
#pragma once

#include <span>
#include <type_traits>
#include <vector>

#include "qlora/cpu/gemm.hpp"
#include "qlora/draw.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// ids (T), drawn from logits (T,V) as rows (T) say.
template <class S>
void draw(ThreadPool& pool, int tokens, int vocab, const S* logits, const DrawRow* rows, std::int32_t* ids) {
  for_ranges(pool, tokens, 1, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const S* z = logits + t * vocab;
      const int among = rows[t].among;
      QLORA_EXPECTS(among > 0 && among <= vocab, "draw: ", among, " of ", vocab, " logits");
      if constexpr (std::is_same_v<S, float>) {
        ids[t] = qlora::draw(std::span<const float>(z, static_cast<std::size_t>(among)), rows[t]);
      } else {
        std::vector<float> row;
        for (int v = 0; v < among; ++v) row.push_back(static_cast<float>(real_part(z[v])));
        ids[t] = qlora::draw(std::span<const float>(row.data(), row.size()), rows[t]);
      }
    }
  });
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
