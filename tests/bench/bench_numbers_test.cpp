// bench_numbers_test.cpp — numbers on a benchmark's command line: the whole text, in the range, or an error that names
// it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "../../bench/numbers.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>

using qlora::bench::number_of;

TEST_CASE("numbers are read whole") {
  CHECK(number_of<int>("--batch", "2", 1, 100) == 2);
  CHECK(number_of<int>("--recompute-layers", "-1", -1, 100) == -1);
  CHECK(number_of<std::int64_t>("--memory-cap", "141000000000", 0, INT64_MAX) == 141'000'000'000);
  CHECK(number_of<float>("--dropout", "0.25", 0, 1) == 0.25F);
}

TEST_CASE("what is no number, or not all of it, or out of range is refused by the option's name") {
  for (const std::string text : {"", " 2", "2 ", "2x", "2.5", "0x2", "+2", "two", "0", "101", "99999999999"}) {
    CAPTURE(text);
    CHECK_THROWS_WITH_AS((void)number_of<int>("--batch", text, 1, 100),
                         ("--batch is `" + text + "`, not a whole number from 1 to 100").c_str(), qlora::Error);
  }
  for (const char* text : {"nan", "-0.1", "1.5", "inf", "0.1f"}) {
    CAPTURE(text);
    CHECK_THROWS_AS((void)number_of<float>("--dropout", text, 0, 1), qlora::Error);
  }
}
