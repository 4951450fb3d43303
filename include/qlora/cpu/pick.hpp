// qlora/cpu/pick.hpp — the likeliest id of each row of logits.
// Math       id_t = the smallest v < among with z_tv = max_u<among z_tu
// Shapes     logits (T,V) · ids (T)
// Writes     ids with =
// Split      a row at a time
// Reference  pick_cases in tests/ops/loss.hpp
#pragma once

#include "qlora/cpu/gemm.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// ids (T) = the largest of the first `among` of each row of logits (T,V), the lowest id among equals.
template <class S>
void pick(ThreadPool& pool, int tokens, int vocab, int among, const S* logits, std::int32_t* ids) {
  QLORA_EXPECTS(among > 0 && among <= vocab, "pick: ", among, " of ", vocab, " logits");
  for_ranges(pool, tokens, 1, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const S* z = logits + t * vocab;
      std::int32_t best = 0;
      for (std::int32_t v = 1; v < among; ++v) {
        if (real_part(z[v]) > real_part(z[best])) best = v;
      }
      ids[t] = best;
    }
  });
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
