// qlora/cpu/swiglu.hpp — the gated activation of the feed-forward block, forward and backward.
// Math       y = silu(g) u,  silu(g) = g / (1 + e^-g);   gu = gy silu(g);  gg = gy u sig(g) (1 + g (1 - sig(g)))
// Shapes     gate_up ggate_up (T,2F): gate in the first F columns, up in the last · y gy (T,F)
// Writes     all outputs with = ; ggate_up may not alias gate_up
// Reference  complex step in tests/derivative_test.cpp; golden gradients
#pragma once

#include "qlora/cpu/numbers.hpp"
#include "qlora/cpu/threads.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

template <class N, class S = typename N::S>
void swiglu(ThreadPool& pool, int tokens, int ffn, const S* gate_up, S* y) {
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const auto gate = row_array(gate_up + t * 2 * ffn, ffn);
      const auto up = row_array(gate_up + t * 2 * ffn + ffn, ffn);
      row_array(y + t * ffn, ffn) = gate * up / (S(1) + (-gate).exp());
      N::store(y + t * ffn, ffn);
    }
  });
}

template <class N, class S = typename N::S>
void swiglu_backward(ThreadPool& pool, int tokens, int ffn, const S* gy, const S* gate_up, S* ggate_up) {
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const auto gate = row_array(gate_up + t * 2 * ffn, ffn);
      const auto up = row_array(gate_up + t * 2 * ffn + ffn, ffn);
      const auto g = row_array(gy + t * ffn, ffn);
      auto ggate = row_array(ggate_up + t * 2 * ffn, ffn);
      auto gup = row_array(ggate_up + t * 2 * ffn + ffn, ffn);
      ggate = S(1) / (S(1) + (-gate).exp());  // sigmoid, kept here until both results are made from it
      gup = g * gate * ggate;
      ggate = g * up * ggate * (S(1) + gate * (S(1) - ggate));
      N::store(ggate_up + t * 2 * ffn, 2 * ffn);
    }
  });
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
