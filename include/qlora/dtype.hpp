// qlora/dtype.hpp — element types of stored tensors, and exact conversions between float, bfloat16 and IEEE half.
// Numbers: round to nearest, ties to even, as the hardware and torch do; NaN stays NaN; overflow goes to infinity.
// Reference: tests/dtype_test.cpp walks all 65,536 patterns of both 16-bit types against Eigen's own conversions.
#pragma once

#include "qlora/compiler.hpp"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace qlora {
inline namespace v0 {

/// Element types that the file formats here use. Names in files are those of the safetensors format.
enum class DType : std::uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u8, boolean };

/// Bytes of one element.
[[nodiscard]] constexpr std::size_t size_of(DType type) {
  switch (type) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
    case DType::i16:
      return 2;
    case DType::i8:
    case DType::u8:
    case DType::boolean:
      return 1;
  }
  return 0;
}

/// Name in a safetensors header: "F32", "BF16", "I64", "BOOL".
[[nodiscard]] constexpr std::string_view name_of(DType type) {
  switch (type) {
    case DType::f64:
      return "F64";
    case DType::f32:
      return "F32";
    case DType::f16:
      return "F16";
    case DType::bf16:
      return "BF16";
    case DType::i64:
      return "I64";
    case DType::i32:
      return "I32";
    case DType::i16:
      return "I16";
    case DType::i8:
      return "I8";
    case DType::u8:
      return "U8";
    case DType::boolean:
      return "BOOL";
  }
  return "?";
}

/// float -> bfloat16 bits.
[[nodiscard]] constexpr std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);  // keep NaN a NaN
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

/// bfloat16 bits -> float, exact.
[[nodiscard]] constexpr float from_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// A bfloat16 number in memory; arithmetic is done in float.
struct bf16 {
  std::uint16_t bits = 0;  ///< sign, 8 bits of exponent, 7 of fraction
  constexpr bf16() = default;
  /// Rounds to nearest, ties to even.
  explicit constexpr bf16(float value) : bits(to_bf16(value)) {}
  /// The same number, exact.
  explicit constexpr operator float() const { return from_bf16(bits); }
};

/// float -> IEEE binary16 bits.
[[nodiscard]] constexpr std::uint16_t to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return static_cast<std::uint16_t>(sign | 0x7e00U);   // NaN
  if (magnitude >= 0x47800000U) return static_cast<std::uint16_t>(sign | 0x7c00U);  // 65536 and above
  if (magnitude < 0x38800000U) {                                                    // below 2^-14: subnormal half
    // Adding 0.5 makes the float's last place equal to the half's (2^-24), so the addition rounds for us.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000U));
  }
  const std::uint32_t rebiased = magnitude - 0x38000000U;  // exponent bias 127 -> 15
  return static_cast<std::uint16_t>(sign | ((rebiased + 0xfffU + ((rebiased >> 13) & 1U)) >> 13));
}

/// IEEE binary16 bits -> float, exact.
[[nodiscard]] constexpr float from_f16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t magnitude = bits & 0x7fffU;
  if (magnitude >= 0x7c00U) return std::bit_cast<float>(sign | 0x7f800000U | ((magnitude & 0x3ffU) << 13));
  if (magnitude < 0x400U) {  // zero and subnormals: magnitude * 2^-24, exact in float
    const float value = static_cast<float>(magnitude) * 0x1p-24F;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000U));
}

/// The nearest value that the 16-bit type holds, as float. Types of 32 bits and more leave the value alone.
[[nodiscard]] constexpr float rounded_to(DType type, float value) {
  if (type == DType::f16) return from_f16(to_f16(value));
  if (type == DType::bf16) return from_bf16(to_bf16(value));
  return value;
}

}  // namespace v0
}  // namespace qlora
