// qlora/cpu/adamw8bit.hpp — AdamW whose two moments are kept in 8 bits.
// Math       as cpu/adamw.hpp, with m = M c(m), v = V c(v) on entry, where c is the code's value and M, V are a block's
//            absmax; afterwards M = max |m|, V = max v over the block, codes of m / M and v / V
// Shapes     p g (count) float; codes (count); absmax (count / 256, rounded up)
// Writes     p and both moments in place
// Numbers    the step uses the moments before they are rounded; negative m stays negative (nf4.hpp); a block of zeros
//            keeps the codes of 0. Decay comes before the step, as in torch (bitsandbytes: after it).
// Reference  Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2022);
//            tests/cpu/adamw8bit_test.cpp against AdamW
#pragma once

#include <algorithm>
#include <cmath>

#include "qlora/cpu/threads.hpp"
#include "qlora/nf4.hpp"
#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// `clip` multiplies the gradient.
inline void adamw8bit(ThreadPool& pool, std::int64_t count, const AdamW& rule, double clip, const float* g, float* p,
                      const Moments8bit& m, const Moments8bit& v) {
  const auto scale = static_cast<float>(clip);
  const auto keep = static_cast<float>(1.0 - static_cast<double>(rule.lr) * static_cast<double>(rule.weight_decay));
  const double bias1 = 1.0 - std::pow(static_cast<double>(rule.beta1), rule.step);
  const double bias2 = 1.0 - std::pow(static_cast<double>(rule.beta2), rule.step);
  const auto step_size = static_cast<float>(static_cast<double>(rule.lr) / bias1);
  const auto root_bias2 = static_cast<float>(1.0 / std::sqrt(bias2));
  const float grad1 = scale * (1.0F - rule.beta1);
  const float grad2 = scale * scale * (1.0F - rule.beta2);
  for_ranges(pool, count, moment_block, [&](std::int64_t first, std::int64_t last, int) {
    const std::int64_t block = first / moment_block;
    float moment[moment_block];
    float square[moment_block];
    float largest = 0.0F;
    float largest_square = 0.0F;
    for (std::int64_t i = first; i < last; ++i) {
      float& moment_i = moment[i - first];
      float& square_i = square[i - first];
      moment_i = nf4::dynamic8[m.codes[i]] * m.absmax[block] * rule.beta1 + g[i] * grad1;
      square_i = nf4::dynamic8_unsigned[v.codes[i]] * v.absmax[block] * rule.beta2 + g[i] * g[i] * grad2;
      largest = std::max(largest, std::fabs(moment_i));
      largest_square = std::max(largest_square, square_i);
      p[i] = p[i] * keep - moment_i * step_size / (std::sqrt(square_i) * root_bias2 + rule.eps);
    }
    m.absmax[block] = largest;
    v.absmax[block] = largest_square;
    for (std::int64_t i = first; i < last; ++i) {
      const float moment_i = largest > 0.0F ? moment[i - first] / largest : 0.0F;
      const float square_i = largest_square > 0.0F ? square[i - first] / largest_square : 0.0F;
      m.codes[i] = nf4::encode8_signed(moment_i);
      v.codes[i] = nf4::nearest8(nf4::dynamic8_unsigned, square_i);
    }
  });
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
