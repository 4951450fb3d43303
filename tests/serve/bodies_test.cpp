// bodies_test.cpp — bodies of every form, changed at random places, under the sanitizers; tests/fuzz does it for as
// long as one likes.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <random>
#include <string>

#include "support/served_bodies.hpp"

TEST_CASE("bodies are taken, and with any change taken or refused") {
  const test::ServedBodies bodies;
  for (std::size_t i = 0; i < test::good_bodies.size(); ++i) {
    INFO(test::good_bodies[i]);
    CHECK(bodies.takes(i, test::good_bodies[i]));
    CHECK(bodies.takes(i, test::good_bodies[i] + " \n"));
    CHECK(!bodies.takes(i, test::good_bodies[i] + "x"));
    CHECK(!bodies.takes(i, test::good_bodies[(i + 3) % 7].substr(1)));
  }
  // Pieces that change what a number, a text or the structure is, more often than any byte does.
  constexpr std::array<const char*, 20> pieces{
      "-",         "1e308",      "1e-45", "0",       ".5",      "99999999999999999999",
      "null",      "true",       "[",     "]",       "{",       "}",
      ",",         ":",          "\"",    "\\u0000", "\\ud800", "\xC3",
      "\"n\":16,", "\"a\":[[[[["};
  std::mt19937 random(11);
  const auto below = [&](std::size_t bound) { return random() % bound; };
  std::size_t taken = 0;
  constexpr std::size_t rounds = 2100;
  for (std::size_t i = 0; i < rounds; ++i) {
    std::string body = test::good_bodies[i % test::good_bodies.size()];
    for (std::size_t change = 0; change <= i % 3; ++change) {
      const std::size_t at = below(body.size());
      switch (below(5)) {
        case 0:
          body[at] = static_cast<char>(body[at] ^ (1 << below(8)));
          break;
        case 1:
          body.erase(at, 1 + below(6));
          break;
        case 2:
          body.insert(at, body.substr(below(body.size()), below(24)));
          break;
        case 3:
          body.insert(at, pieces[below(pieces.size())]);
          break;
        default: {  // a number or a word gives way to another
          const std::size_t colon = body.find(':', at);
          const std::size_t end = colon == std::string::npos ? colon : body.find_first_of(",}]", colon);
          if (end != std::string::npos) body.replace(colon + 1, end - colon - 1, pieces[below(8)]);
        }
      }
      if (body.empty()) body = "{";
    }
    INFO(body);
    const std::size_t path = i % test::good_bodies.size();
    bool took = false;
    CHECK_NOTHROW(took = bodies.takes(path, body));
    taken += took ? 1 : 0;
  }
  CHECK(taken > rounds / 20);
  CHECK(taken < rounds);
}
