// qlora/cpu/rope.hpp — rotary embedding of queries and keys, in place, and the tables it reads.
// Math       (x_i, x_{i+E/2}) turned by direction * position * f_i, half-split as in LLaMA; f as in qlora/rope.hpp
// Shapes     qkv (T,(H+2K)E) · position (T) · f (E/2) · cosine sine (positions, E/2)
// Writes     the H + K first heads of qkv, in place
// Reference  complex step in tests/cpu/derivative_test.cpp; golden logits
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include "qlora/cpu/gemm.hpp"
#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// Fills cos and sin (positions, E/2) for half-split rotary embedding, both times `attention`.
template <class S>
void rope_table(int positions, std::span<const float> frequencies, float attention, S* cosine, S* sine) {
  const auto half = static_cast<std::int64_t>(frequencies.size());
  const auto times = static_cast<double>(attention);
  for (std::int64_t i = 0; i < half; ++i) {
    // The reference multiplies in float, so that rounding is part of what the model computes.
    const float frequency = frequencies[static_cast<std::size_t>(i)];
    for (int p = 0; p < positions; ++p) {
      const double angle = static_cast<double>(static_cast<float>(p) * frequency);
      cosine[p * half + i] = S(std::cos(angle) * times);
      sine[p * half + i] = S(std::sin(angle) * times);
    }
  }
}

/// Turns queries and keys of `tokens` rows; `position[t]` picks the table row. direction -1 is the backward pass.
template <class N, class S = typename N::S>
void rope(ThreadPool& pool, int tokens, const AttentionShape& shape, const S* cosine, const S* sine,
          const std::int32_t* position, int direction, S* qkv) {
  const int half = shape.head_dim / 2;
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const auto c = row_array(cosine + std::int64_t{position[t]} * half, half);
      const auto s = row_array(sine + std::int64_t{position[t]} * half, half);
      const S sign = S(static_cast<float>(direction));
      for (int head = 0; head < shape.heads + shape.kv_heads; ++head) {
        S* low = qkv + t * shape.width() + std::int64_t{head} * shape.head_dim;
        S* high = low + half;
        for (int i = 0; i < half; ++i) {
          const S a = low[i];
          const S b = high[i];
          low[i] = N::stored(a * c[i] - b * s[i] * sign);
          high[i] = N::stored(b * c[i] + a * s[i] * sign);
        }
      }
    }
  });
}

#ifdef QLORA_INSTANCE  // numbers.hpp
QLORA_INSTANCE void rope<Numbers<float>>(ThreadPool&, int, const AttentionShape&, const float*, const float*,
                                         const std::int32_t*, int, float*);
#endif

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
