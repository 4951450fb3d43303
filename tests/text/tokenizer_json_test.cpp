// tokenizer_json_test.cpp — ids and texts against the package `tokenizers` (tests/data/make_tokenizers.py), for each
// kind of tokenizer.json; then files that ask for what is not there, contradict themselves, or are damaged.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/text/tokenizer_json.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>

#include "qlora/text/prompt.hpp"
#include "qlora/text/tokenizer.hpp"
#include "support/scratch.hpp"

using qlora::Error;
using qlora::Json;
using qlora::JsonTokenizer;
using qlora::SpecialTokens;
using qlora::Tokenizer;

namespace {

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file.good());
  return {std::istreambuf_iterator<char>(file), {}};
}

const std::string data = std::string(QLORA_SOURCE_DIR) + "/tests/data/";

const Json& kinds() {
  static const Json parsed = Json::parse(read_bytes(data + "tokenizers.json"));
  return parsed;
}

/// Whether this build reads the kind. Without PCRE2 those that split words by a regular expression are refused, without
/// utf8proc those that have normal forms.
bool can_read(const std::string& name) {
  const char* lacks = nullptr;
#ifndef QLORA_WITH_UTF8PROC
  if (name.starts_with("nf")) lacks = "utf8proc";
#endif
#ifndef QLORA_WITH_PCRE2
  if (!name.starts_with("metaspace") && name != "llama2_prepend") lacks = "PCRE2";
#endif
  if (lacks == nullptr) return true;
  const std::string file = kinds().at(name).at("file").dump();
  CHECK_THROWS_WITH_AS(JsonTokenizer(file, name, ""), doctest::Contains(lacks), Error);
  return false;
}

/// The message with which a changed file of this kind is refused.
std::string refusal(const std::string& kind, const std::function<void(Json&)>& change) {
  Json file = kinds().at(kind).at("file");
  change(file);
  try {
    const JsonTokenizer tokenizer(file.dump(), "tokenizer.json", "");
  } catch (const Error& error) {
    CHECK(error.kind() == qlora::ErrorKind::input);
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("ids and decoded texts are those of the package") {
  for (const auto& [name, kind] : kinds().items()) {
    CAPTURE(name);
    if (!can_read(name)) continue;
    const test::Scratch dir;
    std::ofstream(dir / "tokenizer.json") << kind.at("file").dump();
    std::ofstream(dir / "tokenizer_config.json") << Json{{"eos_token", kind.at("eos")}}.dump();
    const Tokenizer whole = Tokenizer::load(qlora::tokenizer_file(dir / ""));
    const JsonTokenizer tokenizer(kind.at("file").dump(), name, "");
    CHECK(whole.piece(whole.eos()) == kind.at("eos").get<std::string>());
    CHECK(whole.is_control(whole.eos()));
    std::size_t compared = 0;
    for (const Json& expected : kind.at("cases")) {
      const auto text = expected.at("text").get<std::string>();
      CAPTURE(text);
      const auto ids = expected.at("as_text").get<std::vector<std::int32_t>>();
      REQUIRE(whole.encode(text) == ids);
      REQUIRE(tokenizer.encode(text, SpecialTokens::parsed) == expected.at("parsed").get<std::vector<std::int32_t>>());
      REQUIRE(whole.decode(ids) == expected.at("decoded").get<std::string>());
      std::string streamed;
      qlora::StreamDecoder decoder(whole);
      for (const std::int32_t id : ids) streamed += decoder.push(id);
      REQUIRE(streamed + decoder.finish() == expected.at("decoded").get<std::string>());
      ++compared;
    }
    CHECK(compared == 61);
  }
}

TEST_CASE("ids behind normalisers begin where the package says") {
  std::size_t compared = 0, exact = 0, all = 0;
  for (const auto& [name, kind] : kinds().items()) {
    CAPTURE(name);
    if (!name.starts_with("nf") || !can_read(name)) continue;
    const JsonTokenizer tokenizer(kind.at("file").dump(), name, "");
    for (const Json& expected : kind.at("cases")) {
      const auto text = expected.at("text").get<std::string>();
      CAPTURE(text);
      const qlora::MarkedIds marked = tokenizer.encode_marked({.text = text, .content = {}, .replies = {}});
      REQUIRE(marked.ids == expected.at("parsed").get<std::vector<std::int32_t>>());
      // Within a letter and its marks the package tells some apart, which is of no use to labels: there the letter is
      // meant. No part of a normal form reaches over ASCII.
      std::vector<std::size_t> characters;
      for (std::size_t at = 0; at < text.size(); ++at) {
        if ((static_cast<unsigned char>(text[at]) & 0xC0U) != 0x80U) characters.push_back(at);
      }
      characters.push_back(text.size());
      REQUIRE(marked.begins.size() == expected.at("begins").size());
      for (std::size_t i = 0; i < marked.begins.size(); ++i) {
        const auto theirs = expected.at("begins")[i].get<std::size_t>();
        const auto ours = static_cast<std::size_t>(
            std::upper_bound(characters.begin(), characters.end(), marked.begins[i]) - characters.begin() - 1);
        CAPTURE(i);
        REQUIRE(ours <= theirs);
        for (std::size_t at = ours + 1; at <= theirs; ++at) {
          const char inside = text[characters[at]];
          REQUIRE((inside < 0 || (inside >= '0' && inside <= '9')));  // numbers are replaced in these files
        }
        exact += ours == theirs ? 1 : 0;
        ++all;
      }
      ++compared;
    }
  }
#if defined(QLORA_WITH_PCRE2) && defined(QLORA_WITH_UTF8PROC)
  CHECK(compared == 4 * 61);
  CHECK(exact >= all * 19 / 20);
#endif
}

TEST_CASE("a token that is a word of its own stands beside no letter and no digit, other numbers do not matter") {
  if (!can_read("added")) return;
  const JsonTokenizer tokenizer(kinds().at("added").at("file").dump(), "added", "");
  const auto finds = [&](const std::string& text) {
    const std::vector<std::int32_t> ids = tokenizer.encode(text);
    return std::find(ids.begin(), ids.end(), 402) != ids.end();
  };
  // What the package (0.22.2 and 0.23.3) finds: U+1D2C0 and U+00BD are numbers, U+0663 is a digit.
  CHECK(
      finds("\xF0\x9D\x8B\x80"
            "boat"));
  CHECK(finds("boat\xC2\xBD"));
  CHECK(
      finds("\xC2\xB2"
            "boat"));
  CHECK_FALSE(
      finds("\xD9\xA3"
            "boat"));
  CHECK_FALSE(finds("boat\xE2\x80\x8D"));
  CHECK_FALSE(finds("boats"));
}

TEST_CASE("digits are the numbers of Unicode 17") {
  if (!can_read("digits")) return;
  Json file = kinds().at("digits").at("file");
  auto& steps = file["pre_tokenizer"]["pretokenizers"];
  // x goes with the character behind it, unless that is a word of its own.
  const Json split{{"type", "Split"}, {"pattern", {{"Regex", "x."}}}, {"behavior", "Removed"}, {"invert", false}};
  steps.insert(steps.begin() + 1, split);
  const JsonTokenizer tokenizer(file.dump(), "digits", "");
  // What the package (0.22.2 and 0.23.3) keeps: U+11DE0 and U+16FF6 came with Unicode 17, U+4E00 is a letter.
  CHECK_FALSE(tokenizer.encode("x\xF0\x91\xB7\xA0").empty());
  CHECK_FALSE(tokenizer.encode("x\xF0\x96\xBF\xB6").empty());
  CHECK_FALSE(tokenizer.encode("x7").empty());
  CHECK(tokenizer.encode("x\xE4\xB8\x80").empty());
}

TEST_CASE("a converted tokenizer.model gives the ids of sentencepiece") {
  const Tokenizer model = Tokenizer::load(data + "small_tokenizer.model");
  const JsonTokenizer json(kinds().at("llama2_prepend").at("file").dump(), "converted", "</s>");
  for (const Json& expected : kinds().at("llama2_prepend").at("cases")) {
    const auto text = expected.at("text").get<std::string>();
    CAPTURE(text);
    CHECK(json.encode(text) == model.encode(text));
  }
  CHECK(json.special_ids().bos == model.bos());
  CHECK(json.special_ids().eos == model.eos());
  CHECK(json.special_ids().unk == model.unk());
}

TEST_CASE("bytes that are no UTF-8") {
  if (!can_read("gpt2")) return;
  const JsonTokenizer tokenizer(kinds().at("gpt2").at("file").dump(), "gpt2", "");
  CHECK(tokenizer.encode("a\xFFz") == tokenizer.encode("a\xEF\xBF\xBDz"));
}

TEST_CASE("what has no piece in a byte-level vocabulary gives no id, and what follows keeps its place") {
  if (!can_read("holes")) return;
  const JsonTokenizer tokenizer(kinds().at("holes").at("file").dump(), "holes", "");
  const std::string text = "\x04 boat\x13 bo\x16oats\x06";
  const qlora::MarkedIds marked = tokenizer.encode_marked({.text = text, .content = {}, .replies = {}});
  CHECK(marked.ids == tokenizer.encode(text));
  std::size_t at = 0;  // the next byte that has a piece
  for (std::size_t i = 0; i < marked.ids.size(); ++i) {
    while (text[at] < ' ') ++at;
    CHECK(marked.begins[i] == at);
    for (const char c : tokenizer.surface(marked.ids[i])) {
      while (text[at] < ' ') ++at;
      CHECK(text[at++] == c);
    }
  }
  CHECK(at == text.size() - 1);
  CHECK(tokenizer.encode_marked({.text = "\x04", .content = {}, .replies = {}}).ids.empty());
}

TEST_CASE("byte-level pieces join to characters, and each longest invalid part is one U+FFFD") {
  if (!can_read("gpt2")) return;
  const test::Scratch dir;
  std::ofstream(dir / "tokenizer.json") << kinds().at("gpt2").at("file").dump();
  std::ofstream(dir / "tokenizer_config.json") << R"({"eos_token": {"content": "<|end|>"}})";
  const Tokenizer tokenizer = Tokenizer::load(dir / "tokenizer.json");
  const auto decoded = [&](std::string_view bytes) {
    std::vector<std::int32_t> ids;
    for (const char byte : bytes) {
      for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
        if (tokenizer.surface(id) == std::string(1, byte)) ids.push_back(id);
      }
    }
    REQUIRE(ids.size() == bytes.size());
    return tokenizer.decode(ids);
  };
  // Expected: Python's bytes.decode("utf-8", "replace"), which follows the same rule (Unicode Standard 3.9, D93b).
  CHECK(decoded("\xE4\xBD\xA0") == "\xE4\xBD\xA0");
  CHECK(decoded("\xE4\xBD") == "\xEF\xBF\xBD");
  CHECK(decoded("\xE4\xBDz") == "\xEF\xBF\xBDz");
  CHECK(decoded("\xF0\x9F\x99") == "\xEF\xBF\xBD");
  CHECK(decoded("\xFF\xFE") == "\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(decoded("\xED\xA0\x80") == "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST_CASE("documents have the begin token that the post-processor adds, and no other") {
  if (!can_read("gpt2")) return;
  const auto document = [](const char* name) {
    const test::Scratch dir;
    std::ofstream(dir / "tokenizer.json") << kinds().at(name).at("file").dump();
    std::ofstream(dir / "tokenizer_config.json") << R"({"eos_token": "<|end|>"})";
    const Tokenizer tokenizer = Tokenizer::load(dir / "tokenizer.json");
    CHECK(qlora::text_document(tokenizer, "").ids.empty());
    std::vector<std::string> pieces;
    for (const std::int32_t id : qlora::text_document(tokenizer, "a").ids) pieces.push_back(tokenizer.piece(id));
    CHECK_THROWS_WITH_AS(
        static_cast<void>(qlora::chat_tokens(tokenizer, std::vector<qlora::Message>{{"user", "[INST]"}})),
        doctest::Contains(tokenizer.bos() < 0 ? "no begin token" : "[INST]"), Error);
    return pieces;
  };
  CHECK(document("llama3") == std::vector<std::string>{"<|begin|>", "a", "<|end|>"});
  CHECK(document("gpt2") == std::vector<std::string>{"a", "<|end|>"});
}

TEST_CASE("a file that asks for what is not there is refused by its name") {
  const auto contains = [](const std::string& message, const char* part) {
    CAPTURE(message);
    CHECK(message.find(part) != std::string::npos);
  };
  const char* const llama = "llama2_prepend";
  contains(refusal(llama, [](Json& f) { f["model"]["type"] = "Unigram"; }), "the model Unigram is not supported");
  contains(refusal(llama, [](Json& f) { f["model"]["dropout"] = 0.1; }), "dropout makes the ids random");
  contains(refusal(llama, [](Json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }), "end_of_word_suffix is not");
  contains(refusal(llama, [](Json& f) { f["normalizer"] = {{"type", "Nmt"}}; }), "the normalizer Nmt is not supported");
  contains(refusal(llama, [](Json& f) { f["pre_tokenizer"] = {{"type", "Whitespace"}}; }), "pre-tokenizer Whitespace");
  for (const char* mark :
       {"", "__", "\xE2\x96\x81\xE2\x96\x81"}) {  // the package reads one character; an empty one never ends
    contains(refusal("metaspace_first", [&](Json& f) { f["pre_tokenizer"]["replacement"] = mark; }),
             "is not one character");
    contains(refusal(llama,
                     [&](Json& f) {
                       f["decoder"] = {{"type", "Metaspace"}, {"replacement", mark}};
                     }),
             "is not one character");
  }
  contains(refusal(llama, [](Json& f) { f["normalizer"]["normalizers"][0]["prepend"] = std::string(1025, 'a'); }),
           "more than 1,024");
  contains(refusal(llama, [](Json& f) { f["normalizer"]["normalizers"][1]["content"] = std::string(1025, 'a'); }),
           "more than 1,024");
  contains(refusal(llama, [](Json& f) { f["post_processor"] = {{"type", "BertProcessing"}}; }), "BertProcessing");
  contains(refusal(llama, [](Json& f) { f["decoder"] = {{"type", "WordPiece"}}; }), "the decoder WordPiece");
  contains(refusal(llama, [](Json& f) { f["decoder"] = {{"type", "ByteLevel"}}; }), "does not fit the encoder");
  contains(refusal(llama, [](Json& f) { f["model"]["vocab"].erase("<0x41>"); }), "the piece <0x41> is missing");
  contains(refusal(llama, [](Json& f) { f["model"]["vocab"]["x y"] = 7; }), "two pieces have the id 7");
  contains(refusal(llama, [](Json& f) { f["model"]["vocab"]["x y"] = -1; }), "must be an integer from 0");
  contains(refusal(llama, [](Json& f) { f["model"]["merges"].push_back("nothing here either"); }), "is not two pieces");
  contains(refusal(llama, [](Json& f) { f["model"]["merges"].push_back({"no", "such piece"}); }), "is no piece");
  contains(refusal(llama, [](Json& f) { f["added_tokens"][0]["id"] = 1; }), "the added token 1 is the piece 0");
  contains(refusal(llama, [](Json& f) { f["added_tokens"][0]["content"] = ""; }), "has no text");
  contains(refusal(llama, [](Json& f) { f.erase("model"); }), "the key 'model' is missing");
  contains(refusal(llama,
                   [](Json& f) {
                     f["model"]["byte_fallback"] = false;
                     f["model"].erase("unk_token");
                   }),
           "so text would be lost");
  CHECK(refusal(llama, [](Json&) {}) == "accepted");
  if (!can_read("gpt2")) return;
  contains(refusal("gpt2", [](Json& f) { f["model"]["vocab"].erase("A"); }), "no piece stands for the byte 65");
  contains(refusal("holes", [](Json& f) { f["model"]["vocab"].erase("\xC3\xB0"); }), "the byte 240");
  contains(refusal("gpt2",
                   [](Json& f) {
                     f["pre_tokenizer"]["pretokenizers"].push_back({{"type", "Digits"}});
                   }),
           "stands behind ByteLevel");
  contains(refusal("llama3",
                   [](Json& f) {
                     f["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", "(unclosed"}};
                   }),
           "(unclosed");
}

TEST_CASE("normalizers that make texts of texts are stopped") {
  Json file = kinds().at("llama2_prepend").at("file");
  auto& steps = file["normalizer"]["normalizers"];
  for (int i = 0; i < 8; ++i)
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(1000, 'a')}});
  const JsonTokenizer tokenizer(file.dump(), "grows", "");
  CHECK_THROWS_WITH_AS(static_cast<void>(tokenizer.encode("a")), doctest::Contains("16 times as long"), Error);
  CHECK_NOTHROW(static_cast<void>(tokenizer.encode("b")));
}

TEST_CASE("a tokenizer.json without its tokenizer_config.json does not say what ends a text") {
  const test::Scratch dir;
  std::ofstream(dir / "tokenizer.json") << kinds().at("llama2_prepend").at("file").dump();
  CHECK_THROWS_WITH_AS(static_cast<void>(Tokenizer::load(dir / "tokenizer.json")), doctest::Contains("eos_token"),
                       Error);
  std::ofstream(dir / "tokenizer_config.json") << R"({"eos_token": "<nowhere>"})";
  CHECK_THROWS_WITH_AS(static_cast<void>(Tokenizer::load(dir / "tokenizer.json")),
                       doctest::Contains("holds no token '<nowhere>'"), Error);
}

TEST_CASE("damaged files are read or refused") {
  std::mt19937 random(1);
  int accepted = 0, refused = 0;
  for (const auto& [name, kind] : kinds().items()) {
    if (!can_read(name)) continue;
    const std::string whole = kind.at("file").dump();
    for (int i = 0; i < 40; ++i) {
      std::string bytes = whole;
      for (int n = 0; n <= i % 3; ++n) {
        const std::size_t at = random() % bytes.size();
        switch (random() % 4) {
          case 0:
            bytes[at] = static_cast<char>(random());
            break;
          case 1:
            bytes.erase(at, random() % 20);
            break;
          case 2:
            bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 20));
            break;
          default:
            bytes[at] = "0123456789[]{}\",:\\"[random() % 18];
        }
      }
      try {
        const JsonTokenizer tokenizer(bytes, name, "");
        for (const std::int32_t id : tokenizer.encode("The boat \n 12 <s> \xC3\xA9\xFF")) {
          REQUIRE(id >= 0);
          REQUIRE(id < tokenizer.vocab_size());
        }
        ++accepted;
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  CHECK(accepted > 0);
  CHECK(refused > 20);
}
