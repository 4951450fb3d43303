// qlora/fp8.hpp — e4m3, the 8-bit float of fp8 products: sign, 4 bits of exponent, 3 of fraction, no infinity.
// Numbers     to the nearest, ties to even; beyond 448 to 448 (NVIDIA's SATFINITE); NaN stays NaN
// Scales      a row is multiplied by 448 / (its largest magnitude) before it is rounded, its products by the inverse
// Reference   Micikevicius et al., "FP8 formats for deep learning" (2022); tests/fp8_test.cpp walks all 256 patterns
#pragma once

#include <bit>
#include <cstdint>

namespace qlora {
inline namespace v0 {
namespace fp8 {

/// The largest finite number.
inline constexpr float largest = 448.0F;
/// Rows whose largest magnitude is below it are zeros: the inverse of their scale would be beyond float.
inline constexpr float least_row = 0x1p-100F;

/// The number that a pattern of bits stands for; NaN for 0x7F and 0xFF.
[[nodiscard]] constexpr float decode(std::uint8_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80U) << 24;
  const std::uint32_t magnitude = bits & 0x7FU;
  if (magnitude == 0x7FU) return std::bit_cast<float>(sign | 0x7FC00000U);
  const float value = magnitude < 8 ? static_cast<float>(magnitude) * 0x1p-9F
                                    : std::bit_cast<float>((magnitude << 20) + (120U << 23));  // bias 7 -> 127
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
}

/// The nearest number of the format, as float.
[[nodiscard]] constexpr float rounded(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits & 0x80000000U;
  std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return value;  // NaN
  if (magnitude >= std::bit_cast<std::uint32_t>(largest)) {
    magnitude = std::bit_cast<std::uint32_t>(largest);
  } else if (magnitude < std::bit_cast<std::uint32_t>(0x1p-6F)) {
    // Subnormal: a float near 2^14 has a last place of 2^-9, so that the addition rounds.
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14F;
    magnitude = std::bit_cast<std::uint32_t>(shifted - 0x1p14F);
  } else {
    magnitude = (magnitude + 0x7FFFFU + ((magnitude >> 20) & 1U)) & 0xFFF00000U;
  }
  return std::bit_cast<float>(magnitude | sign);
}

/// What a row is stored with.
struct Scale {
  float scale = 0.0F;    ///< times a stored number: the number
  float inverse = 0.0F;  ///< times a number, rounded: the stored one
};
/// Of a row whose largest magnitude is `most`.
[[nodiscard]] constexpr Scale scale_of(float most) {
  if (most < least_row) return {};
  return {most / largest, largest / most};
}

}  // namespace fp8
}  // namespace v0
}  // namespace qlora
