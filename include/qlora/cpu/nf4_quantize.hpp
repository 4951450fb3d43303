// qlora/cpu/nf4_quantize.hpp — quantize to NF4, block by block. Needs no Eigen, so that files can be quantized
// without.
// Math       absmax_b = max |w| over a block of 64; code = NF4(w * (1 / absmax_b)); double quantization stores
//            (absmax - offset) in 8 bits per block with one float per 256, offset = mean(absmax), summed as torch does
// Shapes     w (elements) float, flattened (out, in); codes, absmax, absmax8, nested as in Nf4Layout
// Writes     all outputs with =
// Numbers    bit-equal to bitsandbytes (but for blocks of zeros, where it divides 0 by 0: here code 7, value 0)
// Reference  tests/cpu/nf4_test.cpp against golden results
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>

#include "qlora/cpu/threads.hpp"
#include "qlora/nf4.hpp"
#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

namespace detail {

/// torch.mean of float on a GPU, to the bit: up to 512 threads with four partial sums each, whose sums meet first at
/// distances from half the threads down to 32, then 1 to 16, times 1/n. The number of threads and what each reads
/// depend on n alone. (Very long sums torch spreads over as many blocks of threads as the device has; here the order
/// stays that of one block.)
[[nodiscard]] inline float mean_as_torch(const float* values, std::int64_t n) {
  const bool by_four = n > 128;  // each thread reads four neighbours; else neighbours go to neighbouring threads
  std::int64_t threads = 1;
  while (threads < 512 && 2 * threads <= (by_four ? n / 4 : n)) threads *= 2;
  std::array<std::array<float, 512>, 4> sums{};
  const std::int64_t tail = by_four ? n - n % 4 : n;
  for (std::int64_t i = 0; i < tail; ++i) {
    const std::int64_t lane = by_four ? i % 4 : i / threads % 4;
    const std::int64_t thread = by_four ? i / 4 % threads : i % threads;
    sums[static_cast<std::size_t>(lane)][static_cast<std::size_t>(thread)] += values[i];
  }
  for (std::int64_t i = tail; i < n; ++i) sums[0][static_cast<std::size_t>(i - tail)] += values[i];
  std::array<float, 512>& sum = sums[0];
  for (std::size_t thread = 0; thread < sum.size(); ++thread) {
    for (std::size_t lane = 1; lane < 4; ++lane) sum[thread] += sums[lane][thread];
  }
  auto width = static_cast<std::size_t>(threads);
  for (; width > 32; width /= 2) {
    for (std::size_t i = 0; i < width / 2; ++i) sum[i] += sum[i + width / 2];
  }
  for (std::size_t distance = 1; distance < width; distance *= 2) {
    for (std::size_t i = 0; i + distance < width; i += 2 * distance) sum[i] += sum[i + distance];
  }
  return nf4::rounded_product(sum[0], 1.0F / static_cast<float>(n));
}

inline void double_quantize(const float* absmax, std::int64_t blocks, const Quant& quant, const Nf4Target& to) {
  const float offset = mean_as_torch(absmax, blocks);
  *to.offset = offset;
  for (std::int64_t first = 0; first < blocks; first += quant.nested_block) {
    const std::int64_t last = std::min<std::int64_t>(first + quant.nested_block, blocks);
    float largest = 0.0F;
    for (std::int64_t b = first; b < last; ++b) largest = std::max(largest, std::fabs(absmax[b] - offset));
    to.nested[first / quant.nested_block] = largest;
    const float inverse = largest > 0.0F ? 1.0F / largest : 0.0F;
    for (std::int64_t b = first; b < last; ++b) {
      to.absmax8[b] = nf4::encode8(nf4::rounded_product(absmax[b] - offset, inverse));
    }
  }
}

}  // namespace detail

/// Quantizes a flattened matrix.
inline void quantize_nf4(ThreadPool& pool, std::span<const float> w, const Quant& quant, const Nf4Target& to) {
  const auto elements = static_cast<std::int64_t>(w.size());
  const Nf4Layout layout = Nf4Layout::of(elements, quant);
  const auto value = [&](std::int64_t i) { return w[static_cast<std::size_t>(i)]; };
  for_ranges(pool, layout.blocks, 1024, [&](std::int64_t first_block, std::int64_t last_block, int) {
    for (std::int64_t b = first_block; b < last_block; ++b) {
      const std::int64_t first = b * quant.block;
      const std::int64_t last = std::min<std::int64_t>(first + quant.block, elements);
      float largest = 0.0F;
      for (std::int64_t i = first; i < last; ++i) largest = std::max(largest, std::fabs(value(i)));
      to.absmax[b] = largest;
      const float inverse = 1.0F / largest;  // infinite for a block of zeros: 0 * inf is NaN, and NaN encodes as zero
      for (std::int64_t i = first; i < last; i += 2) {
        const unsigned high = nf4::encode(value(i) * inverse);
        const unsigned low = i + 1 < last ? nf4::encode(value(i + 1) * inverse) : 0U;
        to.codes[i / 2] = static_cast<std::uint8_t>((high << 4) | low);
      }
    }
  });
  if (to.absmax8 != nullptr) detail::double_quantize(to.absmax, layout.blocks, quant, to);
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
