// qlora/cpu/embed.hpp — rows of the embedding table, forward and backward.
// Math       x_t = table_{ids_t};  gtable_{ids_t} += gx_t
// Shapes     table gtable (V,D) · ids (T) · x gx (T,D)
// Writes     x with = ; gtable with +=
// Split      forward by tokens; backward by columns, so that each element has one writer and tokens add in order
// Reference  complex step in tests/cpu/derivative_test.cpp; golden gradients
#pragma once

#include "qlora/cpu/gemm.hpp"
#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

template <class N, class S = typename N::S>
void embed(ThreadPool& pool, int tokens, int dim, const std::int32_t* ids, const S* table, Block<S> x) {
  for_ranges(pool, tokens, 64, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      row_array(x.row(t), dim) = row_array(table + std::int64_t{ids[t]} * dim, dim);
    }
  });
}

template <class N, class S = typename N::S>
void embed_backward(ThreadPool& pool, int tokens, int dim, const std::int32_t* ids, const S* gx, S* gtable) {
  for_ranges(pool, dim, 64, [&](std::int64_t first, std::int64_t last, int) {
    for (int t = 0; t < tokens; ++t) {
      row_array(gtable + std::int64_t{ids[t]} * dim + first, last - first) +=
          row_array(gx + std::int64_t{t} * dim + first, last - first);
    }
  });
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
