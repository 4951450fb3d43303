// qlora/cpu/norm.hpp — RMS normalisation with the residual addition before it, forward and backward.
// Math       s = h + delta;  r = 1 / sqrt(mean(s^2) + eps);  y = s r w
//            gs = r w gy - s r^3 / D * sum_j(w_j gy_j s_j);  gw = sum_t gy s r
// Shapes     h delta s y gy gs (T,D) · w gw (D) · inv_rms (T), saved for backward
// Writes     s y inv_rms with = ; gs with = or += (accumulate) ; gw with +=
// Split      32 tokens a tile; gw by tiles of 64 columns, each over all tokens in order
// Reference  complex step in tests/derivative_test.cpp; golden hidden states
#pragma once

#include "qlora/cpu/numbers.hpp"
#include "qlora/cpu/threads.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// `delta` and `s` may both be null: then h itself is normalised.
template <class N, class S = typename N::S>
void rmsnorm(ThreadPool& pool, int tokens, int dim, S eps, const S* h, const S* delta, const S* w, S* s, S* y,
             S* inv_rms) {
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const S* row = h + t * dim;
      if (delta != nullptr) {
        row_array(s + t * dim, dim) = row_array(row, dim) + row_array(delta + t * dim, dim);
        N::store(s + t * dim, dim);
        row = s + t * dim;
      }
      const auto x = row_array(row, dim);
      using std::sqrt;
      const S inverse = S(1) / sqrt((x * x).sum() / S(static_cast<float>(dim)) + eps);
      inv_rms[t] = inverse;
      row_array(y + t * dim, dim) = x * inverse * row_array(w, dim);
      N::store(y + t * dim, dim);
    }
  });
}

/// `gw` may be null (frozen norm weights).
template <class N, class S = typename N::S>
void rmsnorm_backward(ThreadPool& pool, int tokens, int dim, const S* gy, const S* s, const S* inv_rms, const S* w,
                      bool accumulate, S* gs, S* gw) {
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const auto x = row_array(s + t * dim, dim);
      const auto g = row_array(gy + t * dim, dim);
      const auto weight = row_array(w, dim);
      const S r = inv_rms[t];
      const S pull = (weight * g * x).sum() * r * r * r / S(static_cast<float>(dim));
      auto out = row_array(gs + t * dim, dim);
      if (accumulate) {
        out += g * weight * r - x * pull;
      } else {
        out = g * weight * r - x * pull;
      }
      N::store(gs + t * dim, dim);
    }
  });
  if (gw == nullptr) return;
  for_ranges(pool, dim, 64, [&](std::int64_t first, std::int64_t last, int) {
    const std::int64_t count = last - first;
    for (int t = 0; t < tokens; ++t) {
      const std::int64_t at = std::int64_t{t} * dim + first;
      row_array(gw + first, count) += row_array(gy + at, count) * row_array(s + at, count) * inv_rms[t];
    }
  });
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
