// regex_test.cpp — classes of characters against the package `tokenizers` (tests/data/make_regex_classes.py), over all
// characters; expressions that are refused since PCRE2 would read them otherwise.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/text/regex.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"

namespace {

std::string every_character() {
  std::string out;
  const auto byte = [&](unsigned value) { out += static_cast<char>(value); };
  for (unsigned c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    if (c < 0x80) {
      byte(c);
      continue;
    }
    const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    byte((0xFF00U >> (more + 1) & 0xFFU) | c >> (6 * more));
    for (int i = more - 1; i >= 0; --i) byte(0x80U | (c >> (6 * i) & 0x3FU));
  }
  return out;
}

struct Found {
  std::uint64_t runs = 0, characters = 0, hash = 14695981039346656037U;
};

Found found(const std::string& expression, const std::string& text) {
  Found out;
  const qlora::Regex regex(expression);
  regex.for_each_match(text, [&](std::size_t begin, std::size_t end) {
    ++out.runs;
    out.characters += static_cast<std::uint64_t>(std::count_if(
        text.begin() + static_cast<std::ptrdiff_t>(begin), text.begin() + static_cast<std::ptrdiff_t>(end),
        [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
    for (const std::size_t place : {begin, end}) out.hash = (out.hash ^ place) * 1099511628211U;
  });
  return out;
}

}  // namespace

TEST_CASE("classes have the characters that they have in the package tokenizers") {
  const std::string file = std::string(QLORA_SOURCE_DIR) + "/tests/data/regex_classes.json";
  const qlora::Json wanted = qlora::parse_json(qlora::read_text(file, std::size_t{1} << 20), file);
  REQUIRE(wanted.size() == 47);
  const std::string text = every_character();
  for (const auto& [expression, want] : wanted.items()) {
    CAPTURE(expression);
    const Found got = found(expression, text);
    CHECK(got.runs == want.at("runs").get<std::uint64_t>());
    CHECK(got.characters == want.at("characters").get<std::uint64_t>());
    CHECK(got.hash == want.at("hash").get<std::uint64_t>());
  }
}

TEST_CASE("^ and $ are the ends of lines") {
  const auto places = [](const char* expression, const std::string& text) {
    std::vector<std::size_t> out;
    const qlora::Regex regex(expression);
    regex.for_each_match(text, [&](std::size_t begin, std::size_t) { out.push_back(begin); });
    return out;
  };
  // As Split(Regex(...), "removed") of the package cuts the same text.
  CHECK(places("^.", "ab\n\ncd\n") == std::vector<std::size_t>{0, 4});
  CHECK(places(".$", "ab\n\ncd\n") == std::vector<std::size_t>{1, 5});
}

TEST_CASE("what PCRE2 would read otherwise is refused by name") {
  const auto refusal = [](const char* expression) -> std::string {
    try {
      qlora::Regex{expression};
    } catch (const qlora::Error& error) {
      return error.what();
    }
    return "accepted";
  };
  CHECK(refusal("a\\hb") == "the regular expression 'a\\hb': \\h is not supported");
  CHECK(refusal("\\bend") == "the regular expression '\\bend': \\b is not supported");
  CHECK(refusal("\\v+") == "the regular expression '\\v+': \\v is not supported");
  CHECK(refusal("[\\D]") == "the regular expression '[\\D]': \\D inside [] is not supported");
  CHECK(refusal("\\p{Greek}") == "the regular expression '\\p{Greek}': \\p{Greek} is not supported");
  CHECK(refusal("\\p{^L}") == "the regular expression '\\p{^L}': \\p{^L} is not supported");
  CHECK(refusal("\\p{Mn}") == "the regular expression '\\p{Mn}': \\p{Mn} is not supported");
  CHECK(refusal("\\pL") == "the regular expression '\\pL': \\pL is not supported");
  CHECK(refusal("\\p{L") == "the regular expression '\\p{L': \\p{L is not supported");
  CHECK(refusal("[[:alpha:]]") == "the regular expression '[[:alpha:]]': [ inside [] is not supported");
  CHECK(refusal("[a-z&&b]") == "the regular expression '[a-z&&b]': && inside [] is not supported");
  CHECK(refusal("[]a]") == "the regular expression '[]a]': an empty [] is not supported");
  CHECK(refusal("x{,2}") == "the regular expression 'x{,2}': {, without a least number is not supported");
  CHECK(refusal("\\s*$") == "the regular expression '\\s*$': a match without characters is not supported");
  CHECK(refusal("(?m).") == "the regular expression '(?m).': (?m) is not supported");
  CHECK(refusal("[\\]&\\[a]|\\t\\x{41}\\\\") == "accepted");
}

TEST_CASE("an expression that tries everything is an error, before it takes long") {
  const qlora::Regex doubling("(?:a|aa)+(?=b)|x");
  std::string text(5000, 'a');
  const auto search = [&] { doubling.for_each_match(text, [](std::size_t, std::size_t) {}); };
  CHECK_THROWS_WITH_AS(search(), doctest::Contains("takes too long on a text"), qlora::Error);
  text += "b";
  CHECK_NOTHROW(search());
}

TEST_CASE("a match may look at all of a long text") {
  const qlora::Regex lines("\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+|[^\\s]+");
  const std::string text = "a" + std::string(1'000'000, ' ') + "b";
  std::vector<std::size_t> ends;
  lines.for_each_match(text, [&](std::size_t, std::size_t end) { ends.push_back(end); });
  CHECK(ends == std::vector<std::size_t>{1, 1'000'000, 1'000'001, 1'000'002});
}
