// qlora/cpu/swiglu.hpp — the gated activation of the feed-forward block, forward and backward.
// Math       y = silu(g) u,  silu(g) = g / (1 + e^-g);   gu = gy silu(g);  gg = gy u sig(g) (1 + g (1 - sig(g)))
// Shapes     gate_up ggate_up (T,2F): gate in the first F columns, up in the last · y gy (T,F)
// Writes     all outputs with = ; ggate_up may be gate_up
// Reference  complex step in tests/cpu/derivative_test.cpp; golden gradients
#pragma once

#include <algorithm>

#include "qlora/cpu/numbers.hpp"
#include "qlora/cpu/threads.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

template <class N, class S = typename N::S>
void swiglu(ThreadPool& pool, int tokens, int ffn, const S* gate_up, Block<S> y) {
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const auto gate = row_array(gate_up + t * 2 * ffn, ffn);
      const auto up = row_array(gate_up + t * 2 * ffn + ffn, ffn);
      row_array(y.row(t), ffn) = gate * up / (S(1) + (-gate).exp());
      N::store(y.row(t), ffn);
    }
  });
}

/// Columns of a piece of the backward pass; it lives on the stack.
inline constexpr int swiglu_piece = 256;

template <class N, class S = typename N::S>
void swiglu_backward(ThreadPool& pool, int tokens, int ffn, Block<const S> gy, const S* gate_up, S* ggate_up) {
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const S* g = gy.row(t);
      const S* gate = gate_up + t * 2 * ffn;
      S* out = ggate_up + t * 2 * ffn;
      for (int column = 0; column < ffn;
           column += swiglu_piece) {  // in pieces, which leave in the place they came from
        using Piece = Eigen::Array<S, 1, Eigen::Dynamic, Eigen::RowMajor, 1, swiglu_piece>;
        const int count = std::min(swiglu_piece, ffn - column);
        const Piece x = row_array(gate + column, count);
        const Piece u = row_array(gate + ffn + column, count);
        const Piece sigmoid = S(1) / (S(1) + (-x).exp());
        const auto gradient = row_array(g + column, count);
        row_array(out + ffn + column, count) = gradient * x * sigmoid;
        row_array(out + column, count) = gradient * u * sigmoid * (S(1) + x * (S(1) - sigmoid));
      }
      N::store(ggate_up + t * 2 * ffn, 2 * ffn);
    }
  });
}

#ifdef QLORA_INSTANCE  // numbers.hpp
QLORA_INSTANCE void swiglu<Numbers<float>>(ThreadPool&, int, int, const float*, Block<float>);
QLORA_INSTANCE void swiglu_backward<Numbers<float>>(ThreadPool&, int, int, Block<const float>, const float*, float*);
#endif

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
