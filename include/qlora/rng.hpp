// qlora/rng.hpp — Philox4x32-10, the counter-based generator behind every random choice here.
// A random number is a function of (seed, where it is used), never of what was drawn before: dropout masks are computed
// again in the backward pass instead of being stored, a resumed run needs no generator state, and the split of a step
// into micro-batches, threads or devices changes nothing.
// Reference: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011); known answers in tests/rng_test.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace qlora {
inline namespace v0 {

/// 128 bits: the counter that goes in, or the random bits that come out.
using PhiloxCounter = std::array<std::uint32_t, 4>;

/// Ten rounds of Philox4x32: 128 random bits for a counter under a key.
[[nodiscard]] constexpr PhiloxCounter philox(PhiloxCounter counter, std::uint64_t key) {
  auto key0 = static_cast<std::uint32_t>(key);
  auto key1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * counter[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(product0)};
    key0 += 0x9E3779B9U;
    key1 += 0xBB67AE85U;
  }
  return counter;
}

/// What a random number is for. It stands in the top byte of the counter's last word, so uses never meet.
enum class RandomUse : std::uint32_t {
  dropout = 1,
  adapter_init = 2,
  weight_init = 3,
  order = 4,
  sampling = 5,
  resampling = 6,  ///< of the bootstrap
  low_rank = 7     ///< the first subspace of cpu/low_rank.hpp
};

/// Last word of a counter: the use in the top 8 bits, the lower 24 of `low` below.
[[nodiscard]] constexpr std::uint32_t use_word(RandomUse use, std::uint32_t low = 0) {
  return (static_cast<std::uint32_t>(use) << 24) | (low & 0x00FFFFFFU);
}

/// 32 random bits -> float in [0, 1), multiples of 2^-24.
[[nodiscard]] constexpr float unit_float(std::uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24F; }

/// Where dropout is applied: the input of one linear group of one layer in one optimizer step.
/// The token index counts through the whole optimizer step, so that the split into micro-batches does not show.
struct DropoutSite {
  std::uint64_t seed = 0;         ///< of the training run
  std::uint32_t step = 0;         ///< optimizer step, from 0
  std::uint32_t layer = 0;        ///< decoder block, from 0
  std::uint32_t group = 0;        ///< 0 qkv, 1 o, 2 gate|up, 3 down
  std::uint32_t first_token = 0;  ///< index in the optimizer step of row 0
  std::uint32_t threshold = 0;    ///< dropped when the element's 16 bits are below it; 0 is no dropout
  float keep_scale = 1.0F;        ///< 1 / (share of elements kept)
};

/// p -> threshold on 16 bits, and the scale that keeps the expectation for that very threshold.
[[nodiscard]] constexpr DropoutSite dropout_rate(float p) {
  DropoutSite site;
  site.threshold = std::min(static_cast<std::uint32_t>(p * 65536.0F + 0.5F), 65535U);  // some are always kept
  site.keep_scale = 65536.0F / (65536.0F - static_cast<float>(site.threshold));
  return site;
}

/// The eight 16-bit numbers of columns 8*octet ... 8*octet+7 of a token, packed low half first.
[[nodiscard]] constexpr PhiloxCounter dropout_words(const DropoutSite& site, std::uint32_t token, std::uint32_t octet) {
  return philox(
      {octet, site.first_token + token, site.step, use_word(RandomUse::dropout, (site.layer << 2) | site.group)},
      site.seed);
}

/// Whether column `column` of row `token` is kept.
[[nodiscard]] constexpr bool dropout_keeps(const DropoutSite& site, std::uint32_t token, std::uint32_t column) {
  const std::uint32_t word = dropout_words(site, token, column / 8)[(column % 8) / 2];
  return ((column % 2 == 0 ? word : word >> 16) & 0xFFFFU) >= site.threshold;
}

/// The order in which an epoch visits its `count` windows: a permutation that depends on seed and epoch alone.
[[nodiscard]] inline std::vector<std::uint32_t> epoch_order(std::uint32_t count, std::uint64_t seed,
                                                            std::uint32_t epoch) {
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0U);
  for (std::uint32_t i = count; i > 1; --i) {  // Fisher-Yates; 32 bits scaled down: bias below i / 2^32
    const auto words = philox({i, epoch, 0, use_word(RandomUse::order)}, seed);
    const auto bound = static_cast<std::uint64_t>(i);
    const auto pick = static_cast<std::uint32_t>((words[0] * bound) >> 32);
    std::swap(order[i - 1], order[pick]);
  }
  return order;
}

}  // namespace v0
}  // namespace qlora
