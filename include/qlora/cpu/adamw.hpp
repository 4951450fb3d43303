// qlora/cpu/adamw.hpp — the norm of the gradient, and AdamW with the clip folded in.
// Math       m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  p -= lr d p
//            p -= lr / (1-b1^t) m / (sqrt(v / (1-b2^t)) + eps)
//            with g already times min(1, max_norm / (norm + 1e-6))
// Shapes     p g m v (count), all parameters one after another
// Writes     p m v in place
// Numbers    partial sums of 16,384 squares in double, added in order: same bits for any thread count
// Reference  torch.optim.AdamW and clip_grad_norm_ as the Hugging Face Trainer calls them; golden training runs
#pragma once

#include <cmath>

#include "qlora/cpu/numbers.hpp"
#include "qlora/cpu/threads.hpp"
#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {

namespace cpu {

/// to (count) += from (count).
template <class S>
void add(ThreadPool& pool, std::int64_t count, const S* from, S* to) {
  for_ranges(pool, count, norm_tile, [&](std::int64_t first, std::int64_t last, int) {
    row_array(to + first, last - first) += row_array(from + first, last - first);
  });
}

/// partial (norm_partials(count)) = the sum of squares of each tile.
template <class S>
void norm_tiles(ThreadPool& pool, std::int64_t count, const S* g, double* partial) {
  for_ranges(pool, count, norm_tile, [&](std::int64_t first, std::int64_t last, int) {
    double sum = 0;
    for (std::int64_t i = first; i < last; ++i) {
      const auto value = static_cast<double>(real_part(g[i]));
      sum += value * value;
    }
    partial[first / norm_tile] = sum;
  });
}
/// The root of the sum of all tiles.
[[nodiscard]] inline double norm_total(std::int64_t count, const double* partial) {
  double sum = 0;
  for (std::int64_t i = 0; i < norm_partials(count); ++i) sum += partial[i];
  return std::sqrt(sum);
}
/// sqrt(sum g^2). Not finite if any g is not.
template <class S>
[[nodiscard]] double gradient_norm(ThreadPool& pool, std::int64_t count, const S* g, double* partial) {
  norm_tiles(pool, count, g, partial);
  return norm_total(count, partial);
}

/// `clip` is the factor that brings the gradient's norm down to the limit.
template <class S>
void adamw(ThreadPool& pool, std::int64_t count, const AdamW& rule, double clip, const S* g, S* p, S* m, S* v) {
  const auto bias1 = 1.0 - std::pow(static_cast<double>(rule.beta1), rule.step);
  const auto bias2 = 1.0 - std::pow(static_cast<double>(rule.beta2), rule.step);
  const S beta1 = S(rule.beta1);
  const S beta2 = S(rule.beta2);
  const S scale = S(clip);
  const S keep = S(1.0 - static_cast<double>(rule.lr) * static_cast<double>(rule.weight_decay));
  const S step_size = S(static_cast<double>(rule.lr) / bias1);
  const S root_bias2 = S(1.0 / std::sqrt(bias2));
  const S eps = S(rule.eps);
  for_ranges(pool, count, norm_tile, [&](std::int64_t first, std::int64_t last, int) {
    const std::int64_t n = last - first;
    const auto grad = row_array(g + first, n);
    auto moment = row_array(m + first, n);
    auto square = row_array(v + first, n);
    auto param = row_array(p + first, n);
    moment = moment * beta1 + grad * (scale * (S(1) - beta1));
    square = square * beta2 + grad * grad * (scale * scale * (S(1) - beta2));
    param = param * keep - moment * step_size / (square.sqrt() * root_bias2 + eps);
  });
}

#ifdef QLORA_INSTANCE  // numbers.hpp
QLORA_INSTANCE void adamw<float>(ThreadPool&, std::int64_t, const AdamW&, double, const float*, float*, float*, float*);
#endif

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
