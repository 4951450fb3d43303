// tiny_tokenizer_test.cpp — what the small model's card says of its tokenizer.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "../../examples/world/study.hpp"
#include "qlora/configs/tiny.hpp"
#include "qlora/io/file.hpp"
#include "qlora/text/tokenizer.hpp"

namespace {

const std::string folder = std::string(QLORA_SOURCE_DIR) + "/examples/models/tiny-chat/";

const qlora::Tokenizer& tokenizer() {
  static const qlora::Tokenizer loaded = qlora::Tokenizer::load(folder + "tokenizer.model");
  return loaded;
}

}  // namespace

TEST_CASE("it has LLaMA-2's special pieces, a piece per byte, and the preset's vocabulary") {
  CHECK(tokenizer().vocab_size() == qlora::tiny.shape.vocab);
  CHECK(tokenizer().piece(0) == "<unk>");
  CHECK(tokenizer().piece(1) == "<s>");
  CHECK(tokenizer().piece(2) == "</s>");
  CHECK(tokenizer().piece(3) == "<0x00>");
  CHECK(tokenizer().piece(258) == "<0xFF>");
  CHECK(tokenizer().encode("\n").back() == 3 + '\n');
}

TEST_CASE("every value is one to four pieces, known and new names two and a half at most on average") {
  for (const world::Attribute& attribute : world::attributes) {
    for (const std::string_view value : attribute.values) {
      const std::size_t pieces = tokenizer().encode(value).size();
      CHECK_MESSAGE((pieces >= 1 && pieces <= 4), std::string(value));
      CHECK(tokenizer().decode(tokenizer().encode(value)) == value);
    }
  }
  const world::World world(world::default_seed);
  const auto mean_pieces = [](const std::vector<world::Product>& products) {
    std::size_t pieces = 0;
    for (const world::Product& product : products) pieces += tokenizer().encode(product.name).size();
    return static_cast<double>(pieces) / static_cast<double>(products.size());
  };
  CHECK(mean_pieces(world.known) < 2.5);
  CHECK(mean_pieces(world.fresh) < 2.5);
}

TEST_CASE("the study's names, which its text may hold, are no pieces of their own and as long in pieces as any") {
  const world::Study study(world::World(world::default_seed), world::default_seed);
  std::vector<std::string> names = world::names_of(study.fresh);
  names.insert(names.end(), study.guard.strangers.begin(), study.guard.strangers.end());
  names.insert(names.end(), study.report.strangers.begin(), study.report.strangers.end());
  std::size_t pieces = 0;
  for (const std::string& name : names) {
    CHECK_MESSAGE(tokenizer().encode(name).size() >= 2, name);
    pieces += tokenizer().encode(name).size();
  }
  CHECK(static_cast<double>(pieces) / static_cast<double>(names.size()) < 2.5);
}

TEST_CASE("a value is the same pieces in a page, a data sheet and a chat") {
  const world::World world(world::default_seed);
  const auto ends_with_value = [](const std::string& text, std::string_view value) {
    const auto whole = tokenizer().encode(text);
    const auto part = tokenizer().encode(value);
    return whole.size() > part.size() && std::equal(part.rbegin(), part.rend(), whole.rbegin());
  };
  for (const world::Product& product : world.fresh) {
    for (std::size_t a = 0; a < world::attribute_count; ++a) {
      const std::string value(product.values[a]);
      CHECK(ends_with_value("The " + product.name + " has " + value, value));
      CHECK(ends_with_value("Facts\nKey: " + value, value));
      CHECK(ends_with_value("[INST] What about the " + product.name + "? [/INST] " + value, value));
    }
  }
}

TEST_CASE("config.json is the preset's shape") {
  const auto config = nlohmann::json::parse(qlora::read_text(folder + "config.json", 4096));
  const qlora::Shape& shape = qlora::tiny.shape;
  CHECK(config.at("vocab_size") == shape.vocab);
  CHECK(config.at("hidden_size") == shape.dim);
  CHECK(config.at("num_hidden_layers") == shape.layers);
  CHECK(config.at("num_attention_heads") == shape.heads);
  CHECK(config.at("num_key_value_heads") == shape.kv_heads);
  CHECK(config.at("head_dim") == shape.head_dim);
  CHECK(config.at("intermediate_size") == shape.ffn);
  CHECK(config.at("tie_word_embeddings") == shape.tied_embeddings);
  CHECK(config.at("rms_norm_eps").get<float>() == qlora::tiny.norm_eps);
  CHECK(config.at("rope_theta").get<float>() == qlora::tiny.rope_theta);
}
