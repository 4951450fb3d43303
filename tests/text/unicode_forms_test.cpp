// unicode_forms_test.cpp — normal forms and lower case of all characters and of random sequences, against the package
// `tokenizers` (tests/data/make_unicode_forms.py).
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/text/unicode_forms.hpp"

#include <doctest/doctest.h>

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "qlora/io/json.hpp"
#include "qlora/io/sha256.hpp"

using qlora::Json;
using qlora::NormalForm;

namespace {

const Json& expected() {
  static const Json parsed = qlora::read_json_object(std::string(QLORA_SOURCE_DIR) + "/tests/data/unicode_forms.json");
  return parsed;
}

const std::map<std::string, std::function<std::string(std::string_view)>> forms{
    {"NFC", [](std::string_view text) { return qlora::normal_form(NormalForm::nfc, text); }},
    {"NFD", [](std::string_view text) { return qlora::normal_form(NormalForm::nfd, text); }},
    {"NFKC", [](std::string_view text) { return qlora::normal_form(NormalForm::nfkc, text); }},
    {"NFKD", [](std::string_view text) { return qlora::normal_form(NormalForm::nfkd, text); }},
    {"Lowercase", [](std::string_view text) { return qlora::lower_case(text); }}};

}  // namespace

TEST_CASE("every character becomes what the package makes of it") {
  std::string every;
  for (char32_t c = 1; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    qlora::detail::unicode::put(every, c);
    every += '\n';
  }
  // A line end is its own form, and has no marks here: the lines of the whole do not touch each other.
  for (const auto& [name, form] : forms) {
    if (name == "NFD" || name == "NFKC") continue;  // of the same tables; each takes a second
    CAPTURE(name);
    CHECK(qlora::sha256(form(every)) == expected().at(name).at("every").get<std::string>());
  }
}

TEST_CASE("sequences of letters and marks") {
  const auto& texts = expected().at("texts");
  REQUIRE(texts.size() == 300);
  for (const auto& [name, form] : forms) {
    CAPTURE(name);
    std::string joined, joined_expected;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const auto text = texts[i].get<std::string>(), wanted = expected().at(name).at("texts")[i].get<std::string>();
      CAPTURE(text);
      CHECK(form(text) == wanted);
      joined += text + "x\n";
      joined_expected += wanted + "x\n";
    }
    CHECK(form(joined) == joined_expected);
  }
}

TEST_CASE("parts of a text have the forms that they have in it") {
  for (const auto form : {NormalForm::nfc, NormalForm::nfd, NormalForm::nfkc, NormalForm::nfkd}) {
    for (const Json& value : expected().at("texts")) {
      const auto text = value.get<std::string>();
      CAPTURE(text);
      std::string whole;
      for (std::string_view rest = text; !rest.empty();) {
        const std::size_t length = qlora::normal_part(form, rest);
        REQUIRE(length > 0);
        whole += qlora::normal_form(form, rest.substr(0, length));
        rest.remove_prefix(length);
      }
      CHECK(whole == qlora::normal_form(form, text));
    }
  }
}

TEST_CASE("U+11A7 is no trailing consonant of Korean, U+11A8 is the first") {
  const std::string syllable = "\xEA\xB0\x80", before = "\xE1\x86\xA7", first = "\xE1\x86\xA8",
                    letters = "\xE1\x84\x80\xE1\x85\xA1";
  const auto nfc = [](const std::string& text) { return qlora::normal_form(NormalForm::nfc, text); };
  CHECK(nfc(syllable + before + first) == syllable + before + first);
  CHECK(nfc(letters + before) == syllable + before);
  CHECK(nfc(syllable + first) == "\xEA\xB0\x81");
  CHECK(nfc(letters + first + before) == "\xEA\xB0\x81" + before);
}

TEST_CASE("a letter with a million marks takes no more than their number") {
  // Out of order, and half of them composes with nothing: the square of the number would take hours.
  std::string text = "a", sorted = "a";
  for (int i = 0; i < 500'000; ++i) text += "\xCC\x81\xCC\xA3";  // U+0301 above, U+0323 below
  for (int i = 0; i < 500'000; ++i) sorted += "\xCC\xA3";
  for (int i = 0; i < 500'000; ++i) sorted += "\xCC\x81";
  CHECK((qlora::normal_form(NormalForm::nfd, text) == sorted));
  CHECK(qlora::normal_form(NormalForm::nfc, text).substr(0, 3) == "\xE1\xBA\xA1");  // U+1EA1
}
