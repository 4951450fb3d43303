// qlora/nf4.hpp — NF4, the 4-bit NormalFloat of QLoRA: codebook, decision thresholds, 8-bit code of the scales,
// layout.
// Layout      element 2j of the flattened matrix in the high nibble of byte j, element 2j+1 in the low one;
//             one absmax per 64 elements; with double quantization (absmax - offset) in 8 bits, one float per 256.
// Numbers     a value's bits must be those of bitsandbytes: no contraction to fused multiply-add (see mul, add).
// Reference   Dettmers et al., "QLoRA" (2023), appendix E; thresholds and binary search as in bitsandbytes' kernels;
//             tests/cpu/nf4_test.cpp against golden results.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "qlora/config.hpp"

namespace qlora {
inline namespace v0 {
namespace nf4 {

/// Quantiles of the normal distribution, scaled to [-1, 1], with an exact zero.
inline constexpr std::array<float, 16> codebook{
    -1.0F,
    -0.6961928009986877F,
    -0.5250730514526367F,
    -0.39491748809814453F,
    -0.28444138169288635F,
    -0.18477343022823334F,
    -0.09105003625154495F,
    0.0F,
    0.07958029955625534F,
    0.16093020141124725F,
    0.24611230194568634F,
    0.33791524171829224F,
    0.44070982933044434F,
    0.5626170039176941F,
    0.7229568362236023F,
    1.0F,
};

/// A value strictly above threshold[i] has a code above i. These are bitsandbytes' literals, which are not all the
/// midpoints of the codebook to the last bit.
inline constexpr std::array<float, 15> thresholds{
    -0.8480964004993439F,  -0.6106329262256622F,   -0.4599952697753906F, -0.33967943489551544F, -0.23460740596055984F,
    -0.13791173323988914F, -0.045525018125772476F, 0.03979014977812767F, 0.1202552504837513F,   0.2035212516784668F,
    0.2920137718319893F,   0.3893125355243683F,    0.5016634166240692F,  0.6427869200706482F,   0.8614784181118011F,
};

/// Code of a value already divided by its block's absmax. NaN (a block of zeros) gets code 7, whose value is 0.
[[nodiscard]] constexpr std::uint8_t encode(float normalized) {
  if (normalized != normalized) return 7;
  unsigned code = 0;
  for (const float threshold : thresholds) code += normalized > threshold ? 1U : 0U;
  return static_cast<std::uint8_t>(code);
}

namespace detail {
// torch.linspace in float: the step is rounded to float, the points are a fused start + i * step, mirrored at the
// middle.
constexpr float linspace_point(float first, float last, int count, int i) {
  const double step = static_cast<double>((last - first) / static_cast<float>(count - 1));
  return i < count / 2 ? static_cast<float>(static_cast<double>(first) + step * i)
                       : static_cast<float>(static_cast<double>(last) - step * (count - 1 - i));
}
// Seven decades of 2^i (signed) or 2^(i+1) values each, rising; in the signed form their negatives; and 0 and 1. Each
// goes to its place at once: sorting them would cost every program that includes this some compile time.
template <bool Signed>
constexpr std::array<float, 256> make_dynamic8() {
  std::array<float, 256> map{};
  constexpr std::size_t zero = Signed ? 127 : 0;
  std::size_t filled = 0;
  constexpr std::array<float, 7> decades{1e-6F, 1e-5F, 1e-4F, 1e-3F, 1e-2F, 1e-1F, 1.0F};
  for (int exponent = 0; exponent < 7; ++exponent) {
    const int count = (1 << (Signed ? exponent : exponent + 1)) + 1;
    float point = linspace_point(0.1F, 1.0F, count, 0);
    for (int i = 0; i + 1 < count; ++i) {
      const float next = linspace_point(0.1F, 1.0F, count, i + 1);
      const float value = decades[static_cast<std::size_t>(exponent)] * ((point + next) / 2.0F);
      point = next;
      ++filled;
      map[zero + filled] = value;
      if (Signed) map[zero - filled] = -value;
    }
  }
  map[zero + filled + 1] = 1.0F;
  return map;
}
}  // namespace detail

/// The signed 8-bit "dynamic tree" code: 7 decades, the more fraction bits the larger the value.
/// Source: Dettmers, "8-bit approximations for parallelism in deep learning" (2015).
inline constexpr std::array<float, 256> dynamic8 = detail::make_dynamic8<true>();
/// Its unsigned form, with one more fraction bit: what bitsandbytes' create_dynamic_map(signed=False) makes for second
/// moments.
inline constexpr std::array<float, 256> dynamic8_unsigned = detail::make_dynamic8<false>();

/// Code of the value in `map` nearest to x, by bitsandbytes' binary search. Its end conditions decide ties, so they are
/// kept.
[[nodiscard]] constexpr std::uint8_t nearest8(const std::array<float, 256>& map, float x) {
  int pivot = 127;
  int upper_pivot = 255;
  int lower_pivot = 0;
  float lower = map[0];
  float upper = map[255];
  float value = map[127];
  for (int step = 64; step > 0; step >>= 1) {
    if (x > value) {
      lower_pivot = pivot;
      lower = value;
      pivot += step;
    } else {
      upper_pivot = pivot;
      upper = value;
      pivot -= step;
    }
    value = map[static_cast<std::size_t>(pivot)];
  }
  if (x > value) return static_cast<std::uint8_t>(x > (upper + value) * 0.5F ? upper_pivot : pivot);
  return static_cast<std::uint8_t>(x < (lower + value) * 0.5F ? lower_pivot : pivot);
}
/// Code of a value in [-1, 1].
[[nodiscard]] constexpr std::uint8_t encode8(float x) { return nearest8(dynamic8, x); }

/// The signed code of 0; codes below it are negative.
inline constexpr std::uint8_t dynamic8_zero = 127;
static_assert(dynamic8[dynamic8_zero] == 0.0F && dynamic8_unsigned[0] == 0.0F);
/// Code of a first moment: a negative value stays negative, however small, as in bitsandbytes' optimizers.
[[nodiscard]] constexpr std::uint8_t encode8_signed(float x) {
  const std::uint8_t code = encode8(x);
  return x < 0.0F && code >= dynamic8_zero ? static_cast<std::uint8_t>(dynamic8_zero - 1) : code;
}

/// a * b rounded to float before anything is done with it, whatever -ffp-contract says.
[[nodiscard]] inline float rounded_product(float a, float b) {
  float product = a * b;
#if defined(__GNUC__) && defined(__SSE2__)
  asm("" : "+x"(product));
#elif defined(__GNUC__)
  asm("" : "+r"(product));
#endif
  return product;
}

}  // namespace nf4

/// Sizes of one quantized matrix, in elements of each stored array.
struct Nf4Layout {
  std::int64_t elements = 0;    ///< of the matrix
  std::int64_t code_bytes = 0;  ///< two codes a byte
  std::int64_t blocks = 0;      ///< one absmax each
  std::int64_t nested = 0;      ///< one nested absmax each; 0 without double quantization

  /// Sizes for a matrix of that many elements; the last blocks may be partly filled.
  [[nodiscard]] static constexpr Nf4Layout of(std::int64_t elements, const Quant& quant) {
    Nf4Layout layout;
    layout.elements = elements;
    layout.code_bytes = (elements + 1) / 2;
    layout.blocks = (elements + quant.block - 1) / quant.block;
    layout.nested = quant.double_quant ? (layout.blocks + quant.nested_block - 1) / quant.nested_block : 0;
    return layout;
  }
  /// Bytes of everything that stands for the scales (the offset included).
  [[nodiscard]] constexpr std::int64_t scale_bytes() const { return nested > 0 ? blocks + 4 * nested + 4 : 4 * blocks; }
};

}  // namespace v0
}  // namespace qlora
