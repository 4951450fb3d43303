// 16-bit floats: every pattern and the rounding of many floats, against Eigen's conversions.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/dtype.hpp"

#include <doctest/doctest.h>

#include <Eigen/Core>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

using namespace qlora;

namespace {

/// Same bits, or both NaN.
bool same(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}
float eigen_bf16(float value) { return static_cast<float>(static_cast<Eigen::bfloat16>(value)); }
float eigen_f16(float value) { return static_cast<float>(static_cast<Eigen::half>(value)); }

bool rounds_as_eigen(float value) {
  return same(from_bf16(to_bf16(value)), eigen_bf16(value)) && same(from_f16(to_f16(value)), eigen_f16(value)) &&
         same(rounded_to(DType::bf16, value), eigen_bf16(value)) &&
         same(rounded_to(DType::f16, value), eigen_f16(value)) && same(rounded_to(DType::f32, value), value);
}

}  // namespace

TEST_CASE("all 65,536 patterns widen as in Eigen and come back") {
  int wrong = 0;
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const float wide_bf16 = from_bf16(bits);
    const float wide_f16 = from_f16(bits);
    wrong += same(wide_bf16, static_cast<float>(Eigen::numext::bit_cast<Eigen::bfloat16>(bits))) ? 0 : 1;
    wrong += same(wide_f16, static_cast<float>(Eigen::numext::bit_cast<Eigen::half>(bits))) ? 0 : 1;
    wrong += std::isnan(wide_bf16) ? !std::isnan(from_bf16(to_bf16(wide_bf16))) : to_bf16(wide_bf16) != bits;
    wrong += std::isnan(wide_f16) ? !std::isnan(from_f16(to_f16(wide_f16))) : to_f16(wide_f16) != bits;
  }
  CHECK(wrong == 0);
}

TEST_CASE("rounding: between all neighbours, at random, and at the edges") {
  int wrong = 0;
  for (std::uint32_t i = 0; i < 0x7c00U; ++i) {  // the tie between two neighbouring halves, and both sides of it
    const float low = from_f16(static_cast<std::uint16_t>(i));
    const float next = i + 1 == 0x7c00U ? 65536.0F : from_f16(static_cast<std::uint16_t>(i + 1));
    const float tie = low + (next - low) / 2.0F;
    for (const float value : {std::nextafter(tie, 0.0F), tie, std::nextafter(tie, 1e9F)}) {
      wrong += rounds_as_eigen(value) && rounds_as_eigen(-value) ? 0 : 1;
    }
  }
  for (std::uint32_t i = 0; i < 0x7f80U; ++i) {  // likewise for bfloat16
    for (const std::uint32_t low : {0x7fffU, 0x8000U, 0x8001U}) {
      const auto value = std::bit_cast<float>((i << 16) | low);
      wrong += rounds_as_eigen(value) && rounds_as_eigen(-value) ? 0 : 1;
    }
  }
  std::mt19937 random(7);
  for (int i = 0; i < 2'000'000; ++i)
    wrong += rounds_as_eigen(std::bit_cast<float>(static_cast<std::uint32_t>(random()))) ? 0 : 1;
  using Limits = std::numeric_limits<float>;
  for (const float value : {0.0F, Limits::denorm_min(), Limits::min(), Limits::max(), Limits::infinity(), 65504.0F,
                            65519.996F, 65520.0F, 65536.0F, 0x1p-24F, 0x1p-25F, 0x1.000002p-25F, Limits::quiet_NaN()}) {
    wrong += rounds_as_eigen(value) && rounds_as_eigen(-value) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("a NaN whose payload is in the low bits alone stays a NaN") {
  const auto nan = std::bit_cast<float>(0x7f800001U);
  CHECK(std::isnan(from_bf16(to_bf16(nan))));
  CHECK(std::isnan(from_f16(to_f16(nan))));
}

TEST_CASE("sizes and names are those of safetensors") {
  CHECK(size_of(DType::f64) == 8);
  CHECK(size_of(DType::bf16) == 2);
  CHECK(size_of(DType::boolean) == 1);
  CHECK(name_of(DType::bf16) == "BF16");
  CHECK(name_of(DType::i64) == "I64");
  CHECK(name_of(DType::boolean) == "BOOL");
}
