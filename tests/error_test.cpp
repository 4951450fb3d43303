// error_test.cpp — the text of messages: what a stream makes of each part.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/error.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <filesystem>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>

using namespace qlora;

namespace {

template <class... Parts>
std::string streamed(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
void check(const Parts&... parts) {
  CHECK(concat(parts...) == streamed(parts...));
}

}  // namespace

TEST_CASE("parts of a message are written as a stream writes them") {
  const char* pointer = "pointer";
  check("literal", std::string("string"), std::string_view("view"), pointer, 'c');
  check(true, false, static_cast<signed char>('s'), static_cast<unsigned char>('u'));
  check(0, -1, std::numeric_limits<int>::min(), std::numeric_limits<std::int64_t>::min(), std::size_t{0},
        std::numeric_limits<std::uint64_t>::max(), std::int16_t{-300}, std::uint16_t{65535});
  for (const double number : {0.0, -0.0, 1.0, -1.5, 0.1, 1e-5, 1e-4, 123456.0, 1234567.0, 1e21, 5e-324,
                              std::numeric_limits<double>::max(), std::numeric_limits<double>::infinity()}) {
    check(number, ' ', static_cast<float>(number));
  }
  CHECK(concat(std::numeric_limits<double>::quiet_NaN()) == streamed(std::numeric_limits<double>::quiet_NaN()));
  // A stream writes a path in quotes: a message takes its string.
  static_assert(!std::is_constructible_v<MessagePart, std::filesystem::path>);
  CHECK(concat().empty());
}

TEST_CASE("a failed expectation names the condition, the values and the place") {
  const int n = -3;
  try {
    QLORA_EXPECTS(n > 0, "n is ", n);
    FAIL("did not throw");
  } catch (const Error& error) {
    const std::string text = error.what();
    CHECK(text.starts_with("n is -3 [n > 0 is false at error_test.cpp:"));
    CHECK(error.kind() == ErrorKind::input);
  }
}
