// qlora/cpu/bias.hpp — adds a bias to every row.
// Math       y += b
// Shapes     y (T,N) · b (N)
// Writes     y, in place
// Reference  tests/ops/rows.hpp; golden logits of models with biases
#pragma once

#include "qlora/cpu/gemm.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// y (rows, N) += bias (N).
template <class N, class S = typename N::S>
void add_bias(ThreadPool& pool, int rows, int columns, const S* bias, S* y) {
  for_ranges(pool, rows, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t row = first; row < last; ++row) {
      S* here = y + row * columns;
      for (int i = 0; i < columns; ++i) here[i] = N::stored(here[i] + bias[i]);
    }
  });
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
