// qlora/cpu/norm.hpp — RMS normalisation, forward and backward.
// Math       r = 1 / sqrt(mean(x^2) + eps);  y = x r w
//            gx = r w gy - x r^3 / D * sum_j(w_j gy_j x_j);  gw = sum_t gy x r
// Shapes     x y gy gx (T,D) · w gw (D) · inv_rms (T), saved for backward
// Writes     y inv_rms with = ; gx with = or += (accumulate) ; gw with +=
// Split      32 tokens a tile; gw by tiles of 64 columns, each over all tokens in order
// Reference  complex step in tests/cpu/derivative_test.cpp; golden hidden states
#pragma once

#include "qlora/cpu/numbers.hpp"
#include "qlora/cpu/threads.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

template <class N, class S = typename N::S>
void rmsnorm(ThreadPool& pool, int tokens, int dim, S eps, Block<const S> x, const S* w, Block<S> y, S* inv_rms) {
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const auto row = row_array(x.row(t), dim);
      using std::sqrt;
      const S inverse = S(1) / sqrt((row * row).sum() / S(static_cast<float>(dim)) + eps);
      inv_rms[t] = inverse;
      row_array(y.row(t), dim) = row * inverse * row_array(w, dim);
      N::store(y.row(t), dim);
    }
  });
}

/// `gw` may be null (frozen norm weights).
template <class N, class S = typename N::S>
void rmsnorm_backward(ThreadPool& pool, int tokens, int dim, Block<const S> gy, Block<const S> x, const S* inv_rms,
                      const S* w, bool accumulate, Block<S> gx, S* gw) {
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const auto row = row_array(x.row(t), dim);
      const auto g = row_array(gy.row(t), dim);
      const auto weight = row_array(w, dim);
      const S r = inv_rms[t];
      const S pull = (weight * g * row).sum() * r * r * r / S(static_cast<float>(dim));
      auto out = row_array(gx.row(t), dim);
      if (accumulate) {
        out += g * weight * r - row * pull;
      } else {
        out = g * weight * r - row * pull;
      }
      N::store(gx.row(t), dim);
    }
  });
  if (gw == nullptr) return;
  for_ranges(pool, dim, 64, [&](std::int64_t first, std::int64_t last, int) {
    const std::int64_t count = last - first;
    for (int t = 0; t < tokens; ++t) {
      row_array(gw + first, count) +=
          row_array(gy.row(t) + first, count) * row_array(x.row(t) + first, count) * inv_rms[t];
    }
  });
}

#ifdef QLORA_INSTANCE  // numbers.hpp
QLORA_INSTANCE void rmsnorm<Numbers<float>>(ThreadPool&, int, int, float, Block<const float>, const float*,
                                            Block<float>, float*);
QLORA_INSTANCE void rmsnorm_backward<Numbers<float>>(ThreadPool&, int, int, Block<const float>, Block<const float>,
                                                     const float*, const float*, bool, Block<float>, float*);
#endif

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
