// tokenizer_conversion_test.cpp — tokenizer.json files that are made of a tokenizer.model, against those that the
// package transformers makes of the same directory (tests/data/make_conversions.py), and their ids.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/text/tokenizer_conversion.hpp"

#include <doctest/doctest.h>
#include <sentencepiece_processor.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "qlora/io/sha256.hpp"
#include "qlora/text/gguf_vocab.hpp"
#include "qlora/text/tokenizer.hpp"
#include "qlora/text/tokenizer_directory.hpp"
#include "support/scratch.hpp"

using qlora::ChatText;
using qlora::Error;
using qlora::Json;
using qlora::Tokenizer;
using Ordered = nlohmann::ordered_json;

namespace {

const std::string data = std::string(QLORA_SOURCE_DIR) + "/tests/data/";

Ordered read(const std::string& name) { return Ordered::parse(qlora::read_text(data + name, std::size_t{1} << 26)); }
const std::string& small_model() {
  static const std::string bytes = qlora::read_text(data + "small_tokenizer.model", std::size_t{1} << 20);
  return bytes;
}

/// A directory with small_tokenizer.model and these files.
void fill(const test::Scratch& dir, const Ordered& files) {
  std::ofstream(dir / "tokenizer.model", std::ios::binary) << small_model();
  for (const auto& [name, value] : files.items()) std::ofstream(dir / name) << value.dump();
}

std::string refusal(const Ordered& decoder) {
  const test::Scratch dir;
  fill(dir, {{"tokenizer_config.json", {{"added_tokens_decoder", decoder}}}});
  try {
    (void)Tokenizer::load(dir / "tokenizer.model");
  } catch (const Error& error) {
    CHECK(error.kind() == qlora::ErrorKind::input);
    CHECK(qlora::tokenizer_files_beside(dir / "").empty());
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("a converted tokenizer.model is the file of the package, to the byte") {
  const Ordered kinds = read("tokenizers.json");
  CHECK(qlora::tokenizer_json_of(small_model()) == kinds.at("llama2_prepend").at("file").dump(2));
  CHECK(qlora::tokenizer_json_of(small_model(), {.legacy = false, .added = {}}) ==
        kinds.at("metaspace_first").at("file").dump(2));
}

TEST_CASE("LLaMA-2's tokenizer.model becomes the file that transformers 4.57.6 saves") {
  const char* path = std::getenv("QLORA_LLAMA2_TOKENIZER");
  if (path == nullptr || *path == '\0') {
    MESSAGE("skipped: set QLORA_LLAMA2_TOKENIZER to LLaMA-2's tokenizer.model");
    return;
  }
  CHECK(qlora::sha256(qlora::tokenizer_json_of(qlora::read_text(path, std::size_t{1} << 26))) ==
        "b6fa577798fdc9a20c4502fc9f9931cce13f1c6c8c7a4ac617924affc12cb3c3");
}

TEST_CASE("a vocabulary of which almost every piece is made in many ways is refused before it takes gigabytes") {
  std::vector<qlora::sentencepiece_scan::Piece> pieces;
  for (const char letter : {'a', 'b'}) {
    for (std::size_t size = 1; size <= 256; ++size) pieces.push_back({.text = std::string(size, letter)});
  }
  // Each letter gives 1 + 2 + ... + 255 pairs.
  CHECK(qlora::detail::conversion::merges_of(pieces, 255 * 256).size() == 255 * 256);
  CHECK_THROWS_WITH_AS((void)qlora::detail::conversion::merges_of(pieces, 255 * 256 - 1),
                       doctest::Contains("more than 65279 pairs of pieces"), Error);
}

TEST_CASE("a directory without a tokenizer.json is what the package makes of it") {
  const Ordered kinds = read("tokenizers.json"), cases = read("conversions.json");
  for (const auto& [name, expected] : cases.items()) {
    CAPTURE(name);
    const test::Scratch dir;
    fill(dir, expected.at("files"));
    const auto made = qlora::converted_tokenizer(dir / "");
    REQUIRE(made);
    Ordered whole = expected.at("saved");
    whole["model"] = kinds.at("llama2_prepend").at("file").at("model");
    CHECK((made->json() == whole.dump(2)));

    // What is written beside a copy is read instead of the tokenizer.model, and gives the same ids.
    const bool adds = name.starts_with("added") || name == "a piece" || name == "older";
    CHECK(made->adds == adds);
    const auto beside = qlora::tokenizer_files_beside(dir / "");
    const bool is_written =
        adds || name == "no configuration" || name == "legacy" || name == "no begin" || name == "end";
    REQUIRE(beside.contains("tokenizer.json") == is_written);
    CHECK(beside.contains("tokenizer_config.json") == (name == "no configuration"));
    const Tokenizer base = Tokenizer::load(qlora::tokenizer_file(dir / ""));
    for (const auto& [file, text] : beside) std::ofstream(dir / file) << text;
    const Tokenizer copy = Tokenizer::load(qlora::tokenizer_file(dir / ""));
    CHECK(base.eos() == expected.at("eos").get<int>());
    CHECK(copy.eos() == expected.at("eos").get<int>());
    CHECK(copy.unk() == 0);
    if (is_written) {
      CHECK(qlora::tokenizer_file(dir / "").filename() == "tokenizer.json");
      CHECK(copy.bos() == (name == "no begin" ? -1 : 1));
    }
    for (const auto& said : expected.at("texts")) {
      const auto text = said.at("text").get<std::string>();
      CAPTURE(text);
      const auto ids = said.at("ids").get<std::vector<std::int32_t>>();
      if (is_written) CHECK(copy.encode_marked({.text = text, .content = {}, .replies = {}}).ids == ids);
      CHECK(base.encode(text) == copy.encode(text));
      CHECK(base.encode_marked({.text = text, .content = {}, .replies = {}}).ids ==
            copy.encode_marked({.text = text, .content = {}, .replies = {}}).ids);
    }
  }
}

TEST_CASE("directories that are left as they are") {
  const auto beside = [](const Ordered& files) {
    const test::Scratch dir;
    fill(dir, files);
    return qlora::tokenizer_files_beside(dir / "").size();
  };
  CHECK(beside(Ordered::object()) == 2);
  CHECK(beside({{"tokenizer_config.json", {{"tokenizer_class", "LlamaTokenizerFast"}}}}) == 1);
  CHECK(beside({{"tokenizer_config.json", {{"tokenizer_class", "CodeLlamaTokenizer"}}}}) == 0);
  CHECK(beside({{"tokenizer_config.json", {{"bos_token", "<begin>"}}}}) == 0);
  CHECK(beside({{"tokenizer_config.json", {{"legacy", "yes"}}}}) == 0);
  CHECK(beside({{"tokenizer.json", Ordered::object()}}) == 0);
  const test::Scratch damaged;
  std::ofstream(damaged / "tokenizer.model") << small_model().substr(0, 1000);
  CHECK(qlora::tokenizer_files_beside(damaged / "").empty());
  CHECK(qlora::tokenizer_files_beside(damaged / "nowhere").empty());
}

TEST_CASE("an older directory of a byte-level tokenizer says how to get a tokenizer.json") {
  const test::Scratch dir;
  std::ofstream(dir / "vocab.json") << "{}";
  CHECK_THROWS_WITH_AS(static_cast<void>(Tokenizer::load(qlora::tokenizer_file(dir / ""))),
                       doctest::Contains("vocab.json and merges.txt alone; make a tokenizer.json"), Error);
}

TEST_CASE("added tokens that contradict the tokenizer.model are refused") {
  const Ordered token{{"content", "<|x|>"}};
  CHECK(refusal({{"401", token}}).find("the added token 401 '<|x|>' is no piece") != std::string::npos);
  CHECK(refusal({{"300", token}}).find("the added token 300") != std::string::npos);
  CHECK(refusal({{"-1", token}}).find("which is no id") != std::string::npos);
  CHECK(refusal({{"400", "<|x|>"}}).find("which is no id") != std::string::npos);
  CHECK(refusal({{"99999999", token}}).find("which is no id") != std::string::npos);
  CHECK(refusal(Ordered::array()).find("added_tokens_decoder is no object") != std::string::npos);
  CHECK(refusal({{"400", token}}) == "accepted");
}

namespace {

/// Values of a directory with a kind of tests/data/tokenizers.json, changed.
template <class Change>
qlora::gguf::Values gguf_values(const Ordered& kind, const Change& change, int vocab) {
  const test::Scratch dir;
  Ordered file = kind.at("file");
  change(file);
  std::ofstream(dir / "tokenizer.json") << file.dump();
  std::ofstream(dir / "tokenizer_config.json") << Ordered{{"eos_token", kind.at("eos")}, {"chat_template", "{{ x }}"}};
  return qlora::gguf::tokenizer_values(dir / "", vocab);
}

}  // namespace

TEST_CASE("a tokenizer.model in a GGUF file: its pieces, scores and kinds, and padding") {
  const test::Scratch dir;
  fill(dir, Ordered::object());
  const qlora::gguf::Values values = qlora::gguf::tokenizer_values(dir / "", 403);
  sentencepiece::SentencePieceProcessor library;
  REQUIRE(library.LoadFromSerializedProto(small_model()).ok());
  const auto& texts = std::get<std::vector<std::string>>(values.at("tokenizer.ggml.tokens"));
  const auto& types = std::get<std::vector<std::int32_t>>(values.at("tokenizer.ggml.token_type"));
  const auto& scores = std::get<std::vector<float>>(values.at("tokenizer.ggml.scores"));
  REQUIRE((texts.size() == 403 && types.size() == 403 && scores.size() == 403));
  for (int id = 0; id < library.GetPieceSize(); ++id) {
    const auto at = static_cast<std::size_t>(id);
    CHECK(texts[at] == library.IdToPiece(id));
    CHECK(scores[at] == library.GetScore(id));
    CHECK(types[at] == (library.IsUnknown(id) ? 2 : library.IsControl(id) ? 3 : library.IsByte(id) ? 6 : 1));
  }
  CHECK(texts[402] == "[PAD402]");
  CHECK(types[402] == 5);
  CHECK(std::get<std::string>(values.at("tokenizer.ggml.model")) == "llama");
  CHECK(std::get<std::uint32_t>(values.at("tokenizer.ggml.eos_token_id")) == 2);
  CHECK(std::get<bool>(values.at("tokenizer.ggml.add_bos_token")));
  CHECK_FALSE(values.contains("tokenizer.chat_template"));
  CHECK_THROWS_WITH_AS((void)qlora::gguf::tokenizer_values(dir / "", 399),
                       "the tokenizer's id 399 is beyond vocab_size 399", Error);
}

TEST_CASE("a tokenizer.json in a GGUF file: how words are split has a name, or the file is refused") {
  const Ordered kinds = read("tokenizers.json");
  const auto as_it_is = [](Ordered&) {};
  for (const auto& [kind, split] : {std::pair("gpt2", "gpt-2"), std::pair("digits", "smollm"),
                                    std::pair("llama3", "llama-bpe"), std::pair("nfc", "qwen2")}) {
    CAPTURE(kind);
    const Ordered& model = kinds.at(kind).at("file").at("model");
    const auto set = [&](Ordered& file) { file["model"]["ignore_merges"] = std::string(kind) == "llama3"; };
    const auto values = gguf_values(kinds.at(kind), set, 2000);
    CHECK(std::get<std::string>(values.at("tokenizer.ggml.model")) == "gpt2");
    CHECK(std::get<std::string>(values.at("tokenizer.ggml.pre")) == split);
    CHECK(std::get<std::string>(values.at("tokenizer.chat_template")) == "{{ x }}");
    const auto& merges = std::get<std::vector<std::string>>(values.at("tokenizer.ggml.merges"));
    REQUIRE(merges.size() == model.at("merges").size());
    const Ordered& last = model.at("merges").back();
    CHECK(merges.back() ==
          (last.is_string() ? last.get<std::string>() : last[0].get<std::string>() + " " + last[1].get<std::string>()));
    for (const Ordered& token : kinds.at(kind).at("file").at("added_tokens")) {
      const auto id = token.at("id").get<std::size_t>();
      CHECK(std::get<std::vector<std::string>>(values.at("tokenizer.ggml.tokens"))[id] ==
            token.at("content").get<std::string>());
      CHECK(std::get<std::vector<std::int32_t>>(values.at("tokenizer.ggml.token_type"))[id] ==
            (token.at("special") ? 3 : 4));
    }
    const auto refused = [&](auto change) {
      CHECK_THROWS_WITH_AS((void)gguf_values(kinds.at(kind), change, 2000), doctest::Contains("llama.cpp has no name"),
                           Error);
    };
    refused([&](Ordered& file) { file["model"]["ignore_merges"] = std::string(kind) != "llama3"; });
    refused([&](Ordered& file) {
      set(file);
      file["normalizer"] = {{"type", "Lowercase"}};
    });
    refused([&](Ordered& file) {
      set(file);
      file["pre_tokenizer"] = {
          {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
    });
  }
  const auto values = gguf_values(kinds.at("llama2_prepend"), as_it_is, 400);
  CHECK(std::get<std::string>(values.at("tokenizer.ggml.model")) == "llama");
  CHECK(std::get<bool>(values.at("tokenizer.ggml.add_space_prefix")));
  CHECK_THROWS_WITH_AS((void)gguf_values(kinds.at("metaspace_never"), as_it_is, 400),
                       doctest::Contains("Metaspace cannot be written"), Error);
  const auto unprefixed = [](Ordered& file) { file["pre_tokenizer"]["prepend_scheme"] = "never"; };
  const auto bare = gguf_values(kinds.at("metaspace_first"), unprefixed, 400);
  CHECK_FALSE(std::get<bool>(bare.at("tokenizer.ggml.add_space_prefix")));
  // Scores in the order of the tokenizer.model that the file was made of.
  const auto& scores = std::get<std::vector<float>>(values.at("tokenizer.ggml.scores"));
  const auto& texts = std::get<std::vector<std::string>>(values.at("tokenizer.ggml.tokens"));
  sentencepiece::SentencePieceProcessor library;
  REQUIRE(library.LoadFromSerializedProto(small_model()).ok());
  int compared = 0;
  for (int id = 259; id + 1 < library.GetPieceSize(); ++id) {
    const auto at = static_cast<std::size_t>(id);
    if (scores[at] == 0 || scores[at + 1] == 0) continue;  // characters, which nothing makes
    CHECK(texts[at] == library.IdToPiece(id));
    CHECK((scores[at] > scores[at + 1]) == (library.GetScore(id) > library.GetScore(id + 1)));
    ++compared;
  }
  CHECK(compared > 50);
}
