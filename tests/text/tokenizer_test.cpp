// tokenizer_test.cpp — ids and texts against the Python package's on LLaMA-2's model (where that model is at hand) and
// against a plain second BPE on a small committed model; then models that lie, and models that are damaged.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/text/tokenizer.hpp"

#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "qlora/text/bpe.hpp"
#include "qlora/text/text_pieces.hpp"
#include "qlora/text/utf8.hpp"
#include "support/plain_bpe.hpp"

using qlora::DecodeFrom;
using qlora::Error;
using qlora::StreamDecoder;
using qlora::Tokenizer;
using test::plain_bpe;
using test::replaced;

namespace {

const std::string root = QLORA_SOURCE_DIR;

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file.good());
  return {std::istreambuf_iterator<char>(file), {}};
}

const std::string& small_model() {
  static const std::string bytes = read_bytes(root + "/tests/data/small_tokenizer.model");
  return bytes;
}

nlohmann::json golden() { return nlohmann::json::parse(read_bytes(root + "/tests/golden/tokenizer.json")); }

std::optional<Tokenizer> llama2() {
  const char* path = std::getenv("QLORA_LLAMA2_TOKENIZER");
  if (path == nullptr || *path == '\0') {
    MESSAGE("skipped: set QLORA_LLAMA2_TOKENIZER to LLaMA-2's tokenizer.model");
    return std::nullopt;
  }
  return Tokenizer::load(path);
}

/// Texts of letters, digits, spaces, controls, tags and characters of every UTF-8 length.
std::string random_text(std::mt19937& random) {
  static const std::vector<std::string> parts{"a",    "the",  " ",    "  ",    "\n",     "\t",     "7",
                                              "z",    "é",    "▁",    "数",    "🙂",   "\u200b", std::string(1, '\0'),
                                              "\x01", "<s>",  "</s>", "<unk>", "<0x41>", "[INST]", "<<SYS>>",
                                              "boat", "lamp", "<",    "s>"};
  std::string text;
  const auto count = random() % 24;
  for (unsigned i = 0; i < count; ++i) text += parts[random() % parts.size()];
  return text;
}

void check_stream(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  StreamDecoder stream(tokenizer);
  std::string text;
  for (const std::int32_t id : ids) {
    const std::string part = stream.push(id);
    CHECK(qlora::is_utf8(part));
    text += part;
  }
  CHECK(text + stream.finish() == tokenizer.decode(ids));
}

}  // namespace

TEST_CASE("LLaMA-2: texts give the Python package's ids and come back") {
  const auto tokenizer = llama2();
  if (!tokenizer) return;
  CHECK(tokenizer->vocab_size() == 32000);
  const auto cases = golden();
  REQUIRE(cases["texts"].size() >= 19);
  for (const auto& sample : cases["texts"]) {
    const auto text = sample["text"].get<std::string>();
    CAPTURE(text);
    const auto ids = tokenizer->encode(text);
    CHECK(ids == sample["ids"].get<std::vector<std::int32_t>>());
    CHECK(tokenizer->decode(ids) == sample["decoded"].get<std::string>());
    check_stream(*tokenizer, ids);
  }
}

TEST_CASE("LLaMA-2: no text becomes an id below 3") {
  const auto tokenizer = llama2();
  if (!tokenizer) return;
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    const std::string text = random_text(random);
    for (const std::int32_t id : tokenizer->encode(text)) REQUIRE_MESSAGE(id >= 3, text);
  }
}

TEST_CASE("the small model agrees with a plain BPE, comes back, and never speaks control ids") {
  const Tokenizer tokenizer = Tokenizer::parse(small_model());
  sentencepiece::SentencePieceProcessor library;
  REQUIRE(library.LoadFromSerializedProto(small_model()).ok());
  CHECK(tokenizer.vocab_size() == 400);
  CHECK(tokenizer.bos() == library.bos_id());
  CHECK(tokenizer.eos() == library.eos_id());
  CHECK(tokenizer.unk() == library.unk_id());
  CHECK(tokenizer.sha256() == "46e73765009a40fa17d09f8b466cb317fb69c7eb88c07dd6c0267655c983859b");  // by sha256sum
  std::mt19937 random(2);
  for (int round = 0; round < 3000; ++round) {
    const std::string text = random_text(random);
    CAPTURE(text);
    const auto ids = tokenizer.encode(text);
    REQUIRE(ids == plain_bpe(library, text));
    REQUIRE(tokenizer.decode(ids) ==
            replaced(text, "▁", " "));  // the library cannot tell its space symbol from a space
    for (const std::int32_t id : ids) REQUIRE(id >= 3);
    check_stream(tokenizer, ids);
  }
}

TEST_CASE("a long text, encoded in parts, has the ids that the library gives the whole") {
  std::mt19937 random(11);
  const auto made_of = [&](const std::vector<std::string>& parts, std::size_t bytes) {
    std::string text;
    while (text.size() < bytes) text += parts[random() % parts.size()];
    return text;
  };
  std::vector<std::string> letters;  // no space anywhere
  for (const char c : std::string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")) {
    letters.emplace_back(1, c);
  }
  const std::vector<std::string> cjk{"数", "学", "の", "本", "中", "国", "人", "é", "🙂", "。"};
  const std::vector<std::string> words{"the ", "lamp ", "boat\n", "  ", "▁", "\xE2\x96", "12", " a", "\t", "the", "x "};
  const std::vector<std::string> texts{
      made_of(letters, 150'000), made_of(cjk, 150'000),
      made_of(words, 150'000),   std::string(40'000, ' ') + made_of(words, 40'000),
      std::string(70'000, 'a'),  made_of({"a", "b"}, 100'000),
      std::string(70'000, '='),  made_of({"\u0d85", "\u0d9a", "\U0001F980", "a"}, 100'000)};
  const auto check = [&](const Tokenizer& tokenizer, const std::string& model) {
    sentencepiece::SentencePieceProcessor whole;
    REQUIRE(whole.LoadFromSerializedProto(model).ok());
    for (const std::string& text : texts) {
      CAPTURE(text.substr(0, 40));
      std::vector<int> ids;
      REQUIRE(whole.Encode(text, &ids).ok());
      CHECK(tokenizer.encode(text) == std::vector<std::int32_t>(ids.begin(), ids.end()));
    }
  };
  check(Tokenizer::parse(small_model()), small_model());
  if (const auto tokenizer = llama2()) check(*tokenizer, read_bytes(std::getenv("QLORA_LLAMA2_TOKENIZER")));
}

TEST_CASE("merges of random vocabularies, in short windows, are those of the whole text") {
  std::mt19937 random(7);
  std::size_t joined = 0;
  std::size_t all = 0;
  for (int round = 0; round < 300; ++round) {
    std::vector<std::string> pieces{"a", "b", "c"};
    qlora::MergeTable table(64);
    std::uint32_t rank = 0;
    for (auto count = 1 + random() % 12; count > 0; --count) {
      const std::size_t left = random() % pieces.size(), right = random() % pieces.size();
      const std::string made = pieces[left] + pieces[right];
      if (made.size() > 12 || std::find(pieces.begin(), pieces.end(), made) != pieces.end()) continue;
      table.set(static_cast<std::int32_t>(left), static_cast<std::int32_t>(right),
                random() % 2 == 0 ? rank : 100 - rank, static_cast<std::int32_t>(pieces.size()));
      pieces.push_back(made);
      ++rank;
    }
    qlora::BpeMerger merger(table);
    const auto encode = [&](std::string_view text, bool) {
      std::vector<std::int32_t> ids;
      merger.clear();
      for (const char c : text) merger.add(c - 'a');
      merger.merge(ids);
      return ids;
    };
    const auto bytes_before = [&](std::string_view text, std::int32_t id) -> std::optional<std::size_t> {
      const std::string& piece = pieces[static_cast<std::size_t>(id)];
      return text.ends_with(piece) ? std::optional(piece.size()) : std::nullopt;
    };
    for (int i = 0; i < 20; ++i) {
      std::string text;
      const auto letters = static_cast<std::size_t>(1 + i % 3);
      for (auto length = 200 + random() % 100; length > 0; --length) text += "abc"[random() % letters];
      CAPTURE(text);
      std::vector<std::int32_t> ids{-1};
      const bool done = qlora::detail::encode_in_windows(
          text, encode, bytes_before, ids, {.bytes = 30 + random() % 50, .dropped = 1 + random() % 20, .tries = 16});
      std::vector<std::int32_t> expected{-1};
      for (const std::int32_t id : encode(text, true)) expected.push_back(id);
      REQUIRE(ids == (done ? expected : std::vector<std::int32_t>{-1}));
      joined += done;
      ++all;
    }
  }
  CHECK(joined * 10 > all * 9);
}

TEST_CASE("any ids decode as the library decodes them") {
  const Tokenizer tokenizer = Tokenizer::parse(small_model());
  sentencepiece::SentencePieceProcessor library;
  REQUIRE(library.LoadFromSerializedProto(small_model()).ok());
  std::mt19937 random(3);
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::int32_t> ids(random() % 12);
    const unsigned range = round % 2 == 0 ? 400 : 259;  // every other time control and byte pieces only
    for (auto& id : ids) id = static_cast<std::int32_t>(random() % range);
    std::string expected;
    REQUIRE(library.Decode(ids, &expected).ok());
    CAPTURE(nlohmann::json(ids).dump());
    REQUIRE(tokenizer.decode(ids) == expected);
    check_stream(tokenizer, ids);
  }
}

TEST_CASE("decoding in the middle of a text keeps the space; a stream holds back half characters") {
  const Tokenizer tokenizer = Tokenizer::parse(small_model());
  const auto ids = tokenizer.encode("boat");
  CHECK(tokenizer.decode(ids) == "boat");
  CHECK(tokenizer.decode(ids, DecodeFrom::middle) == " boat");
  CHECK(tokenizer.decode(std::vector<std::int32_t>{}) == "");
  StreamDecoder stream(tokenizer, DecodeFrom::middle);
  const auto byte = [](int value) { return static_cast<std::int32_t>(3 + value); };
  CHECK(stream.push(byte(0xF0)) == "");
  CHECK(stream.push(byte(0x9F)) == "");
  CHECK(stream.push(byte(0x99)) == "");
  CHECK(stream.push(byte(0x82)) == "🙂");
  CHECK(stream.push(byte(0xE6)) == "");
  CHECK(stream.push(byte('A')) == "\uFFFDA");
  CHECK(stream.push(byte(0xE6)) == "");
  CHECK(stream.finish() == "\uFFFD");
  CHECK(stream.finish() == "");
}

TEST_CASE("ids outside the vocabulary are refused, and so are files that are no models") {
  const Tokenizer tokenizer = Tokenizer::parse(small_model());
  CHECK_THROWS_AS(static_cast<void>(tokenizer.piece(400)), Error);
  CHECK_THROWS_AS(static_cast<void>(tokenizer.piece(-1)), Error);
  CHECK_THROWS_AS(static_cast<void>(tokenizer.decode(std::vector<std::int32_t>{5, 400})), Error);
  CHECK_THROWS_AS(static_cast<void>(Tokenizer::load(root + "/tests/data/no_such.model")), Error);
  CHECK_THROWS_AS(static_cast<void>(Tokenizer::load(root + "/tests")), Error);
  CHECK_THROWS_AS(static_cast<void>(Tokenizer::parse("")), Error);
  CHECK_THROWS_AS(static_cast<void>(Tokenizer::parse("{\"model\": {}}")), Error);
}

TEST_CASE("every truncation is refused") {
  for (std::size_t length = 0; length < small_model().size(); ++length)
    REQUIRE_THROWS_AS(static_cast<void>(Tokenizer::parse(std::string_view(small_model()).substr(0, length))), Error);
}

TEST_CASE("1500 damaged models: refused with an error, or sound") {
  std::mt19937 random(4);
  int refused = 0;
  for (int round = 0; round < 1500; ++round) {
    std::string model = small_model();
    for (auto change = 1 + random() % 4; change > 0; --change) {
      const std::size_t at = random() % model.size();
      const auto kind = random() % 3;
      if (kind == 0) model[at] = static_cast<char>(random());
      if (kind == 1) model.erase(at, 1 + random() % 8);
      if (kind == 2) model.insert(at, 1 + random() % 8, static_cast<char>(random()));
    }
    std::optional<Tokenizer> tokenizer;
    try {
      tokenizer = Tokenizer::parse(model);
    } catch (const Error&) {
      ++refused;
      continue;
    }
    const std::string text = random_text(random);
    const auto ids = tokenizer->encode(text);
    for (const std::int32_t id : ids) REQUIRE(id >= 3);
    static_cast<void>(tokenizer->decode(ids));
  }
  CHECK(refused > 750);  // most damage must be seen; a changed letter in a piece cannot be
  CHECK(refused < 1500);
}

namespace {

// A second, independent writer of the format, to build models that lie in one place.
std::string varint(std::uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7U) out += static_cast<char>(0x80U | (value & 0x7FU));
  return out + static_cast<char>(value);
}
std::string number(unsigned field, std::uint64_t value) { return varint(field << 3U) + varint(value); }
std::string bytes(unsigned field, const std::string& value) {
  return varint((field << 3U) | 2U) + varint(value.size()) + value;
}
std::string piece(const std::string& text, unsigned kind = 1, const std::string& score = std::string(4, '\0')) {
  return bytes(1, bytes(1, text) + "\x15" + score + number(3, kind));
}

struct Model {
  std::vector<std::string> pieces;
  std::string trainer = number(3, 2) + number(35, 1);
  std::string normalizer = number(3, 1) + number(4, 0) + number(5, 1);
  std::string more;

  Model() : pieces{piece("<unk>", 2), piece("<s>", 3), piece("</s>", 3)} {
    constexpr const char* digits = "0123456789ABCDEF";
    for (unsigned b = 0; b < 256; ++b)
      pieces.push_back(piece(std::string("<0x") + digits[b / 16] + digits[b % 16] + ">", 6));
    pieces.push_back(piece("▁"));
    pieces.push_back(piece("a"));
  }
  [[nodiscard]] std::string all() const {
    std::string out;
    for (const auto& piece : pieces) out += piece;
    return out + bytes(2, trainer) + bytes(3, normalizer) + more;
  }
};

template <class Change>
std::string refusal(Change change) {
  Model model;
  change(model);
  try {
    static_cast<void>(Tokenizer::parse(model.all()));
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

bool refuses(const std::string& why, const std::string& message) {
  INFO(message);
  return message.find("refused: ") != std::string::npos && message.find(why) != std::string::npos;
}

}  // namespace

TEST_CASE("models that lie are refused, each with its reason") {
  CHECK(refusal([](Model&) {}) == "accepted");
  const auto trainer = [](std::string value) { return refusal([&](Model& m) { m.trainer += value; }); };
  const auto normalizer = [](std::string value) { return refusal([&](Model& m) { m.normalizer += value; }); };
  const auto extra = [](std::string value) { return refusal([&](Model& m) { m.pieces.push_back(value); }); };
  const auto at = [](std::size_t id, std::string value) { return refusal([&](Model& m) { m.pieces[id] = value; }); };

  CHECK(refuses("type is not BPE", trainer(number(3, 1))));
  CHECK(refuses("suffix", trainer(number(24, 1))));
  CHECK(refuses("no byte fallback", trainer(number(35, 0))));
  CHECK(refuses("are not 0, 1 and 2", trainer(number(41, 5))));
  CHECK(refuses("are not named", trainer(bytes(46, "a"))));
  CHECK(refuses("announces 9999", trainer(number(4, 9999))));
  CHECK(refuses("wire type", trainer(bytes(3, "x"))));
  CHECK(refuses("normalisation table", normalizer(bytes(2, "table"))));
  CHECK(refuses("normalisation rules", normalizer(bytes(6, "a\tb"))));
  CHECK(refuses("no space before", normalizer(number(3, 0))));
  CHECK(refuses("extra white space", normalizer(number(4, 1))));
  CHECK(refuses("does not escape", normalizer(number(5, 0))));
  CHECK(refuses("normalisation table", refusal([](Model& m) { m.more = bytes(5, bytes(2, "table")); })));
  CHECK(refuses("self-test", refusal([](Model& m) { m.more = bytes(4, "x"); })));
  CHECK(refuses("repeats a part", refusal([](Model& m) { m.more = bytes(3, ""); })));
  CHECK(refuses("wrong wire type", refusal([](Model& m) { m.more = number(2, 1); })));
  CHECK(refuses("not a protobuf", refusal([](Model& m) { m.more = "\x0B"; })));
  CHECK(refuses("middle of a field", refusal([](Model& m) { m.more = "\x0A\x05"; })));
  CHECK(refuses("middle of a field", refusal([](Model& m) { m.more = "\x0A" + varint(~std::uint64_t{0}); })));
  CHECK(refuses("longer than 64 bits", refusal([](Model& m) { m.more = "\x0A" + std::string(10, '\xFF'); })));
  CHECK(refuses("out of range", refusal([](Model& m) { m.more = std::string(2, '\0'); })));
  CHECK(refuses("the limit is 256", extra(piece(std::string(257, 'x')))));
  CHECK(refuses("not UTF-8", extra(piece("\xC3"))));
  CHECK(refuses("not UTF-8", extra(piece("\xED\xA0\x80"))));
  CHECK(refuses("NUL", extra(piece(std::string("x\0y", 3), 4))));
  CHECK(refuses("is empty", extra(piece(""))));
  CHECK(refuses("unknown type", extra(piece("xy", 7))));
  CHECK(refuses("unknown type", extra(piece("xy", 0))));
  CHECK(refuses("not a number", extra(piece("xy", 1, std::string("\0\0\xC0\x7F", 4)))));
  CHECK(refuses("repeats an earlier", extra(piece("a"))));
  CHECK(refuses("second unknown", extra(piece("<more>", 2))));
  // Both of these make texts that no one can encode: the library finds reserved names before the pieces of the text.
  CHECK(refuses("repeats an earlier", extra(piece("<s>"))));
  CHECK(refuses("control piece of one character", extra(piece("b", 3))));
  CHECK(refuses("not <0x00>", extra(piece("<0x-1>", 6))));
  CHECK(refuses("not <0x00>", at(3, piece("<0x0>", 6))));
  CHECK(refuses("255 byte pieces", at(3, piece("x"))));
  CHECK(refuses("piece 1 is not <s>", at(1, piece("<s>", 1))));
  CHECK(refuses("piece 0 is not <unk>", at(0, piece("<nope>", 2))));
  CHECK(refuses("between 259", refusal([](Model& m) { m.pieces.resize(100); })));
  CHECK(refuses("settings are missing", [] {
    try {
      std::string only_pieces;
      for (const auto& piece : Model().pieces) only_pieces += piece;
      static_cast<void>(Tokenizer::parse(only_pieces));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  }()));
}

TEST_CASE("what the refusal of control pieces prevents is real") {
  Model model;
  model.pieces.push_back(piece("b", 3));
  sentencepiece::SentencePieceProcessor library;
  REQUIRE(library.LoadFromSerializedProto(model.all()).ok());
  std::vector<int> ids;
  CHECK(library.Encode("a", &ids).ok());
  CHECK_FALSE(library.Encode("b", &ids).ok());
}

TEST_CASE("added pieces: user-defined ones match whole, control ones are never spelled by text") {
  Model model;
  model.pieces.push_back(piece("[PAD]", 3));
  model.pieces.push_back(piece("cat", 4));
  model.pieces.push_back(piece("aa", 5));  // unused: taken apart again
  const Tokenizer tokenizer = Tokenizer::parse(model.all());
  const auto byte = [](char c) { return 3 + static_cast<std::int32_t>(static_cast<unsigned char>(c)); };
  const std::int32_t space = 259, a = 260, cat = 262;
  CHECK(tokenizer.is_control(261));
  CHECK(tokenizer.encode("cataa") == std::vector<std::int32_t>{space, cat, a, a});
  CHECK(tokenizer.encode("[PAD]") ==
        std::vector<std::int32_t>{space, byte('['), byte('P'), byte('A'), byte('D'), byte(']')});
  CHECK(tokenizer.decode(std::vector<std::int32_t>{1, space, cat, 261, a, 2}) == "cata");
}

TEST_CASE("ids are the library's, whatever the pieces and the texts") {
  Model odd;  // scores that are equal, pieces of characters that are no pieces, symbols that the user defined
  const auto score = [](float value) {
    std::string four(4, '\0');
    std::memcpy(four.data(), &value, 4);
    return four;
  };
  for (const char* text :
       {"aa", "aaa", "▁▁", "▁a", "aéb", "aé", "éb", "🙂🙂", "a🙂", "\uFFFD\uFFFD", "数a", "a\n"})
    odd.pieces.push_back(piece(text, 1, score(static_cast<float>(odd.pieces.size() % 3))));
  for (const char* text : {"the", "them", "▁▁▁", "\t", "7", "é数", "[INST]", "a b", "\x01"})
    odd.pieces.push_back(piece(text, 4));
  odd.pieces.push_back(piece("[PAD]", 3));
  Model without_space;
  without_space.pieces.erase(without_space.pieces.end() - 2);
  without_space.pieces.push_back(piece("▁a"));
  const std::vector<std::string> more{"aé",   "éb",   "b",        "them",   "▁▁",     "[PAD]",  "\xE2\x96",
                                      "\xFF", "\xC3", "\u00a0",   "\u3000", "\u2028", "\u0085", "aaaa",
                                      "a b",  "é数",  "🙂🙂", "\uFFFD", "\r\n",   "\x7F"};
  std::vector<std::string> models{odd.all(), without_space.all(), small_model()};
  if (const auto tokenizer = llama2()) models.push_back(read_bytes(std::getenv("QLORA_LLAMA2_TOKENIZER")));
  std::mt19937 random(12);
  for (const std::string& model : models) {
    const Tokenizer tokenizer = Tokenizer::parse(model);
    sentencepiece::SentencePieceProcessor library;
    REQUIRE(library.LoadFromSerializedProto(model).ok());
    for (int round = 0; round < 500; ++round) {
      std::string text;
      for (auto count = random() % 8; count > 0; --count) text += random_text(random) + more[random() % more.size()];
      if (round % 100 == 0) {
        for (std::size_t size = text.size() + 1; text.size() < 40'000; size += 7)
          text += more[size % more.size()] + text.substr(0, 999);
      }
      std::vector<int> ids;
      REQUIRE(library.Encode(text, &ids).ok());
      REQUIRE_MESSAGE(tokenizer.encode(text) == ids, text);
    }
  }
}
