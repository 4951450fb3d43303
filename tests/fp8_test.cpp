// e4m3: every pattern against its definition, rounding against a search among all numbers of the format, and the rows
// and weights that the CPU's fp8 products read.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "qlora/cpu/fp8.hpp"
#include "qlora/gpu_storage.hpp"

using namespace qlora;

namespace {

/// The number of a pattern by its definition: (-1)^s 2^(e - 7) (1 + m / 8), with e = 0 2^-6 m / 8.
double defined(unsigned bits) {
  const double sign = (bits & 0x80U) != 0 ? -1.0 : 1.0;
  const int exponent = static_cast<int>((bits >> 3) & 15U);
  const double fraction = static_cast<double>(bits & 7U) / 8.0;
  return sign * (exponent == 0 ? std::ldexp(fraction, -6) : std::ldexp(1.0 + fraction, exponent - 7));
}

/// The nearest number, of two the one with an even pattern; by search.
double nearest(double value) {
  unsigned best = 0;
  for (unsigned bits = 1; bits < 0x7F; ++bits) {
    const double here = std::abs(defined(bits) - std::abs(value));
    const double before = std::abs(defined(best) - std::abs(value));
    if (here < before || (here == before && bits % 2 == 0)) best = bits;
  }
  return std::copysign(defined(best), value);
}

}  // namespace

TEST_CASE("patterns stand for the numbers of their definition") {
  for (unsigned bits = 0; bits < 256; ++bits) {
    const float value = fp8::decode(static_cast<std::uint8_t>(bits));
    CAPTURE(bits);
    if ((bits & 0x7FU) == 0x7FU) {
      CHECK(std::isnan(value));
    } else {
      CHECK(static_cast<double>(value) == defined(bits));
      CHECK(std::signbit(value) == (bits >= 0x80U));
      CHECK(fp8::rounded(value) == value);
    }
  }
}

TEST_CASE("rounding is to the nearest, ties to even") {
  std::vector<float> values{0.0F, 0x1p-10F, 0x1.8p-9F, 0x1.000002p-10F, 447.9F, 448.0F, 460.0F, 464.0F, 1e30F, 1e-30F};
  for (unsigned bits = 0; bits < 0x7E; ++bits) {  // the middles between neighbours, and what is just beside them
    const auto middle = static_cast<float>((defined(bits) + defined(bits + 1)) / 2);
    values.insert(values.end(), {middle, std::nextafter(middle, 0.0F), std::nextafter(middle, 500.0F)});
  }
  std::mt19937 random(7);
  std::uniform_real_distribution<float> exponent(-12.0F, 9.5F);
  for (int i = 0; i < 2000; ++i) values.push_back(std::exp2(exponent(random)));
  for (const float value : values) {
    CAPTURE(value);
    CHECK(static_cast<double>(fp8::rounded(value)) == nearest(static_cast<double>(value)));
    CHECK(fp8::rounded(-value) == -fp8::rounded(value));
  }
  CHECK(fp8::rounded(std::numeric_limits<float>::infinity()) == 448.0F);
  CHECK(std::isnan(fp8::rounded(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("cards before Hopper are refused by name") {
  for (const int capability : {90, 100, 120}) CHECK_NOTHROW(expect_fp8_card("a card", capability));
  for (const int capability : {80, 86, 89}) {  // Ada has e4m3, and cuBLASLt no scales for its rows
    const std::string own = "a card has 8." + std::to_string(capability % 10);
    CHECK_THROWS_WITH_AS(expect_fp8_card("a card", capability), doctest::Contains(own.c_str()), Error);
  }
}

TEST_CASE("rows are rounded with scales of their own") {
  cpu::ThreadPool pool(2);
  constexpr int rows = 5;
  constexpr int cols = 24;
  std::vector<float> x(rows * (cols + 3), 1e30F);  // what is between rows is not read
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  for (int t = 0; t < rows; ++t) {
    for (int i = 0; i < cols; ++i) {
      x[static_cast<std::size_t>(t * (cols + 3) + i)] = normal(random) * std::exp2(static_cast<float>(10 * t - 20));
    }
  }
  x[3] *= 100.0F;                                            // one number above the others of its row
  std::fill_n(x.begin() + 2 * (cols + 3), cols, 0.0F);       // a row of zeros
  std::fill_n(x.begin() + 4 * (cols + 3), cols, 0x1p-110F);  // numbers too small for a scale
  std::vector<float> out(rows * cols, -1.0F);
  cpu::round_rows_fp8(pool, rows, cols, {x.data(), cols + 3}, out.data());
  for (int t = 0; t < rows; ++t) {
    const float* from = x.data() + static_cast<std::ptrdiff_t>(t) * (cols + 3);
    double most = 0.0;
    for (int i = 0; i < cols; ++i) most = std::max(most, static_cast<double>(std::abs(from[i])));
    for (int i = 0; i < cols; ++i) {
      CAPTURE(t);
      CAPTURE(i);
      const auto value = static_cast<double>(out[static_cast<std::size_t>(t * cols + i)]);
      const double expected =
          t == 2 || t == 4 ? 0.0 : nearest(static_cast<double>(from[i]) / most * 448.0) * most / 448.0;
      CHECK(std::abs(value - expected) <= 1e-6 * most);
    }
  }
}
