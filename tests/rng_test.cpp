// Philox against Random123's published answers, dropout masks against a second implementation, epoch orders as
// permutations.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/rng.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "qlora/cpu/linear.hpp"

using namespace qlora;

TEST_CASE("Philox4x32-10: the known answers of Random123") {
  CHECK(philox({0, 0, 0, 0}, 0) == PhiloxCounter{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U});
  constexpr std::uint32_t ones = 0xffffffffU;
  CHECK(philox({ones, ones, ones, ones}, ~std::uint64_t{0}) ==
        PhiloxCounter{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU});
  CHECK(philox({0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U}, 0x299f31d0a4093822U) ==
        PhiloxCounter{0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U});
}

TEST_CASE("unit_float stays below 1 and reaches both ends") {
  CHECK(unit_float(0) == 0.0F);
  CHECK(unit_float(0xffffffffU) == 1.0F - 0x1p-24F);
  CHECK(unit_float(0x80000000U) == 0.5F);
}

TEST_CASE("dropout words: where each counter word goes") {
  // Made with a few lines of Python: a mask must be the same in every backend and in every later version.
  struct Row {
    DropoutSite site;
    std::uint32_t token;
    std::uint32_t octet;
    PhiloxCounter words;
  };
  const Row rows[] = {
      {{42, 0, 0, 0, 0}, 0, 0, {0x97907da9U, 0xecba94eaU, 0x07dea2c9U, 0x1d9cc73dU}},
      {{42, 0, 0, 0, 0}, 0, 1, {0xf7bc4fb8U, 0x146515f0U, 0xdf9e59b1U, 0xbf35da17U}},
      {{42, 7, 3, 2, 100}, 5, 31, {0x569dea5aU, 0xe5dbb52bU, 0x6a566dc9U, 0xa267823bU}},
      {{0x123456789abcdef0U, 159, 79, 3, 4096}, 4095, 1375, {0x9eaef650U, 0x75e9ced6U, 0xb37752c0U, 0xceb668fbU}},
      {{0, 2147483648U, 31, 1, 0}, 1048576, 0, {0x84d3c28aU, 0x8f814b03U, 0x63631131U, 0x6dbf999eU}},
  };
  for (const Row& row : rows) {
    CHECK(dropout_words(row.site, row.token, row.octet) == row.words);
    DropoutSite site = row.site;
    for (const std::uint32_t column : {0U, 1U, 6U, 7U}) {
      const std::uint32_t word = row.words[column / 2];
      const std::uint32_t bits = column % 2 == 0 ? word & 0xffffU : word >> 16;
      site.threshold = bits;
      CHECK(dropout_keeps(site, row.token, row.octet * 8 + column));
      site.threshold = bits + 1;
      CHECK_FALSE(dropout_keeps(site, row.token, row.octet * 8 + column));
    }
  }
}

TEST_CASE("dropout rates") {
  CHECK(dropout_rate(0.0F).threshold == 0);
  CHECK(dropout_rate(0.0F).keep_scale == 1.0F);
  CHECK(dropout_rate(0.5F).threshold == 32768);
  CHECK(dropout_rate(0.5F).keep_scale == 2.0F);
  CHECK(dropout_rate(0.1F).threshold == 6554);
  CHECK(std::isfinite(dropout_rate(std::nextafter(1.0F, 0.0F)).keep_scale));
}

TEST_CASE("the row loop of the CPU backend makes the masks of dropout_keeps") {
  for (const float p : {0.05F, 0.5F, 0.999F}) {
    DropoutSite site = dropout_rate(p);
    site.seed = 0xfedcba9876543210U;
    site.step = 12;
    site.layer = 5;
    site.group = 3;
    site.first_token = 1000;
    for (const int columns : {1, 2, 7, 8, 9, 127, 128, 129, 176, 704}) {
      for (const std::uint32_t token : {0U, 1U, 77U}) {
        int next = 0;
        bool equal = true;
        cpu::detail::for_dropout_row<double>(site, token, columns, [&](int column, double factor) {
          const bool keeps = dropout_keeps(site, token, static_cast<std::uint32_t>(column));
          equal &= column == next++ && factor == (keeps ? static_cast<double>(site.keep_scale) : 0.0);
        });
        CHECK(equal);
        CHECK(next == columns);
      }
    }
  }
}

TEST_CASE("masks drop their share, and differ wherever anything differs") {
  constexpr std::uint32_t tokens = 500;
  constexpr std::uint32_t columns = 800;
  const auto mask = [](const DropoutSite& site) {
    std::vector<bool> kept;
    for (std::uint32_t t = 0; t < tokens; ++t) {
      for (std::uint32_t c = 0; c < columns; ++c) kept.push_back(dropout_keeps(site, t, c));
    }
    return kept;
  };
  constexpr double count = double{tokens} * columns;
  const auto five_sigma = [](double p) { return 5.0 * std::sqrt(count * p * (1.0 - p)); };
  DropoutSite base = dropout_rate(0.1F);
  base.seed = 42;
  const std::vector<bool> first = mask(base);
  const double p = static_cast<double>(base.threshold) / 65536.0;
  CHECK(std::abs(static_cast<double>(std::count(first.begin(), first.end(), false)) - count * p) < five_sigma(p));
  std::vector<DropoutSite> others(5, base);
  others[0].seed = 43;
  others[1].step = 1;
  others[2].layer = 1;
  others[3].group = 1;
  others[4].first_token = tokens;
  for (const DropoutSite& site : others) {  // independent masks drop the same element with probability p^2
    const std::vector<bool> other = mask(site);
    double both = 0;
    for (std::size_t i = 0; i < other.size(); ++i) both += !first[i] && !other[i] ? 1 : 0;
    CHECK(std::abs(both - count * p * p) < five_sigma(p * p));
  }
}

TEST_CASE("the token index runs on over micro-batches") {
  DropoutSite whole = dropout_rate(0.3F);
  DropoutSite second = whole;
  second.first_token = 64;
  for (std::uint32_t t = 0; t < 64; ++t) {
    for (std::uint32_t c = 0; c < 16; ++c) CHECK(dropout_keeps(whole, 64 + t, c) == dropout_keeps(second, t, c));
  }
}

TEST_CASE("epoch orders are permutations, each epoch and seed its own") {
  for (const std::uint32_t count : {1U, 2U, 3U, 100U, 40000U}) {
    std::vector<std::uint32_t> order = epoch_order(count, 42, 3);
    CHECK(order == epoch_order(count, 42, 3));
    std::sort(order.begin(), order.end());
    bool whole = order.size() == count;
    for (std::uint32_t i = 0; whole && i < count; ++i) whole = order[i] == i;
    CHECK(whole);
  }
  const std::set<std::vector<std::uint32_t>> distinct{epoch_order(100, 42, 0), epoch_order(100, 42, 1),
                                                      epoch_order(100, 43, 0)};
  CHECK(distinct.size() == 3);
}

TEST_CASE("every order is equally likely") {
  constexpr int epochs = 48000;
  std::vector<int> seen(24, 0);
  for (std::uint32_t epoch = 0; epoch < epochs; ++epoch) {
    const std::vector<std::uint32_t> order = epoch_order(4, 7, epoch);
    std::size_t rank = 0;  // of the permutation among all 24
    for (std::size_t i = 0; i < 4; ++i) {
      std::size_t smaller = 0;
      for (std::size_t j = i + 1; j < 4; ++j) smaller += order[j] < order[i] ? 1U : 0U;
      rank = rank * (4 - i) + smaller;
    }
    ++seen[rank];
  }
  double chi_squared = 0;
  for (const int times : seen) chi_squared += (times - 2000.0) * (times - 2000.0) / 2000.0;
  CHECK(chi_squared < 62.0);  // 23 degrees of freedom: exceeded with probability 2e-5
}
