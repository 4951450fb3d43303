// gguf_test.cpp — GGUF files: bytes of the Python package gguf, and what becomes of a model's and an adapter's tensors.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/gguf.hpp"

#include <doctest/doctest.h>

#include <cstring>
#include <limits>
#include <map>

#include "qlora/io/gguf_model.hpp"
#include "qlora/io/sha256.hpp"
#include "support/merge_cases.hpp"

using namespace merge_cases;

namespace {

const Scratch scratch("gguf_test");

/// Tensors of a file by their names, in float; only float32 and float16.
std::map<std::string, std::vector<float>> tensors_of(const fs::path& path, std::string& head) {
  const std::string bytes = read_text(path, std::size_t{1} << 26);
  std::size_t at = 0;
  const auto number = [&]<class Number>(Number value) {
    std::memcpy(&value, bytes.data() + at, sizeof value);
    at += sizeof value;
    return value;
  };
  const auto text = [&] {
    const auto size = static_cast<std::size_t>(number(std::uint64_t{}));
    at += size;
    return bytes.substr(at - size, size);
  };
  CHECK(bytes.substr(0, 4) == "GGUF");
  at = 4;
  CHECK(number(std::uint32_t{}) == 3);
  const auto tensors = number(std::uint64_t{}), values = number(std::uint64_t{});
  for (std::uint64_t i = 0; i < values; ++i) {
    head += text() + '=';
    const auto type = number(std::uint32_t{});
    REQUIRE((type == 4 || type == 6 || type == 8));
    if (type == 4) head += std::to_string(number(std::uint32_t{}));
    if (type == 6) head += std::to_string(number(float{}));
    if (type == 8) head += text();
    head += '\n';
  }
  struct Place {
    std::string name;
    std::size_t size, begin;
    bool half;
  };
  std::vector<Place> places;
  for (std::uint64_t i = 0; i < tensors; ++i) {
    Place place{text(), 1, 0, false};
    for (auto dims = number(std::uint32_t{}); dims > 0; --dims) place.size *= number(std::uint64_t{});
    place.half = number(std::uint32_t{}) == 1;
    place.begin = number(std::uint64_t{});
    places.push_back(place);
  }
  const std::size_t data = (at + 31) / 32 * 32;
  std::map<std::string, std::vector<float>> out;
  for (const Place& place : places) {
    at = data + place.begin;
    for (std::size_t i = 0; i < place.size; ++i)
      out[place.name].push_back(place.half ? from_f16(number(std::uint16_t{})) : number(float{}));
  }
  return out;
}

std::vector<float> floats(const TensorRef& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.size()));
  read_floats(tensor, 0, values);
  return values;
}

/// Rows of heads of `size` rows as llama.cpp wants them: halves of a head become neighbours.
std::vector<float> interleaved(const std::vector<float>& values, int size, int columns) {
  std::vector<float> out;
  const int rows = static_cast<int>(values.size()) / columns;
  for (int head = 0; head < rows / size; ++head) {
    for (int pair = 0; pair < size / 2; ++pair) {
      for (const int row : {head * size + pair, head * size + size / 2 + pair})
        out.insert(out.end(), values.begin() + row * columns, values.begin() + (row + 1) * columns);
    }
  }
  return out;
}

}  // namespace

TEST_CASE("a file of each kind of value and tensor is the package's, to the byte") {
  std::vector<float> values;
  for (int i = 0; i < 64; ++i) values.push_back(static_cast<float>(i * 37 % 101 - 50) / 17.0F);
  using gguf::Type;
  gguf::Writer writer(scratch.path / "all.gguf",
                      {{"general.architecture", std::string("llama")},
                       {"k.bool", true},
                       {"k.floats", std::vector<float>{0.5F, -2.0F}},
                       {"k.ints", std::vector<std::int32_t>{1, -2, 3}},
                       {"k.number", 0.25F},
                       {"k.text", std::string("▁é")},
                       {"k.texts", std::vector<std::string>{"a", "", "bc"}},
                       {"k.unsigned", 4'000'000'000U}},
                      {{"f32", Type::f32, {2, 3}},
                       {"f16", Type::f16, {5}},
                       {"q8_0", Type::q8_0, {2, 32}},
                       {"q4_0", Type::q4_0, {2, 32}}});
  const std::span<const float> all(values);
  writer.append(3, all.first(32));
  writer.append(0, all.first(6));
  writer.append(1, all.first(5));
  writer.append(2, all);
  CHECK_THROWS_WITH_AS(writer.finish(), doctest::Contains("tensor 'q4_0' has 18 of its 36 bytes"), Error);
  writer.append(3, all.last(32));
  CHECK_THROWS_AS(writer.append(3, all.last(32)), Error);
  writer.finish();
  // GGUFWriter and quants.quantize of gguf 0.19 with the same values.
  CHECK(sha256(read_text(scratch.path / "all.gguf", 10'000)) ==
        "b5c6baf197d2f58d8cf1c8b0c4e8f5f60957fa280bcef8fdbcb898f79f761643");
}

TEST_CASE("values that a type does not hold are refused by the tensor's name") {
  std::string out;
  const auto refused = [&](float value, gguf::Type type) {
    std::vector<float> block(32, 1.0F);
    block[7] = value;
    CHECK_THROWS_WITH_AS(gguf::encode(block, type, "blk.0.x", out), doctest::Contains("blk.0.x"), Error);
  };
  for (const gguf::Type type : {gguf::Type::f32, gguf::Type::f16, gguf::Type::q8_0, gguf::Type::q4_0}) {
    refused(std::numeric_limits<float>::quiet_NaN(), type);
    refused(std::numeric_limits<float>::infinity(), type);
  }
  refused(70000.0F, gguf::Type::f16);
  refused(1e8F, gguf::Type::q8_0);
  out.clear();
  gguf::encode(std::vector<float>(32, 2e-38F), gguf::Type::q4_0, "tiny", out);  // its inverse is no number
  gguf::encode(std::vector<float>(32, 0.0F), gguf::Type::q8_0, "zero", out);
  CHECK(out == std::string("\0\x80", 2) + std::string(16, '\x88') + std::string(34, '\0'));
}

TEST_CASE("a model's tensors have llama.cpp's names, and rows of queries and keys its order") {
  const hf::ModelDir model = write_model(scratch.path / "base", DType::f16);
  const gguf::Report report = gguf::write_model(model, gguf::Type::f16, {{"tokenizer.ggml.model", std::string("none")}},
                                                scratch.path / "m.gguf");
  CHECK(report.bytes == fs::file_size(scratch.path / "m.gguf"));
  std::string head;
  const auto tensors = tensors_of(scratch.path / "m.gguf", head);
  CHECK(report.tensors == static_cast<std::int64_t>(tensors.size()));
  CHECK(tensors.size() == hf::tensor_names(shape).size());
  const auto weight = [&](const std::string& name) { return floats(model.source()(name).value()); };
  CHECK(tensors.at("token_embd.weight") == weight("model.embed_tokens.weight"));
  CHECK(tensors.at("output_norm.weight") == weight("model.norm.weight"));
  CHECK(tensors.at("output.weight") == weight("lm_head.weight"));
  CHECK(tensors.at("blk.2.attn_norm.weight") == weight("model.layers.2.input_layernorm.weight"));
  CHECK(tensors.at("blk.2.ffn_norm.weight") == weight("model.layers.2.post_attention_layernorm.weight"));
  CHECK(tensors.at("blk.1.attn_q.weight") == interleaved(weight("model.layers.1.self_attn.q_proj.weight"), 34, 136));
  CHECK(tensors.at("blk.1.attn_k.weight") == interleaved(weight("model.layers.1.self_attn.k_proj.weight"), 34, 136));
  CHECK(tensors.at("blk.1.attn_v.weight") == weight("model.layers.1.self_attn.v_proj.weight"));
  CHECK(tensors.at("blk.1.attn_output.weight") == weight("model.layers.1.self_attn.o_proj.weight"));
  CHECK(tensors.at("blk.1.ffn_gate.weight") == weight("model.layers.1.mlp.gate_proj.weight"));
  CHECK(tensors.at("blk.1.ffn_up.weight") == weight("model.layers.1.mlp.up_proj.weight"));
  CHECK(tensors.at("blk.1.ffn_down.weight") == weight("model.layers.1.mlp.down_proj.weight"));
  for (const char* line :
       {"general.architecture=llama\n", "general.file_type=1\n", "general.name=base\n",
        "llama.attention.head_count=4\n", "llama.attention.head_count_kv=2\n", "llama.attention.key_length=34\n",
        "llama.block_count=3\n", "llama.embedding_length=136\n", "llama.feed_forward_length=200\n",
        "llama.rope.dimension_count=34\n", "llama.rope.freq_base=10000.000000\n", "llama.vocab_size=70\n",
        "tokenizer.ggml.model=none\n"}) {
    CAPTURE(line);
    CHECK(head.find(line) != std::string::npos);
  }
}

TEST_CASE("an adapter's file multiplies as the adapter does") {
  const hf::ModelDir model = hf::ModelDir::open(scratch.path / "base");
  const PeftAdapter adapter = merge_cases::write_adapter(scratch.path / "adapter", 4);
  gguf::write_adapter(model, adapter, scratch.path / "a.gguf");
  std::string head;
  const auto tensors = tensors_of(scratch.path / "a.gguf", head);
  CHECK(tensors.size() == adapter.names().size());
  CHECK(head.find("adapter.lora.alpha=24.000000\nadapter.type=lora\n") != std::string::npos);
  const auto matrix = [&](int layer, Proj proj, char which) {
    return floats(adapter.source()(lora_name(layer, proj, which)).value());
  };
  CHECK(tensors.at("blk.1.attn_q.weight.lora_a") == matrix(1, Proj::q, 'A'));
  CHECK(tensors.at("blk.1.attn_q.weight.lora_b") == interleaved(matrix(1, Proj::q, 'B'), 34, 4));
  CHECK(tensors.at("blk.1.ffn_up.weight.lora_b") == matrix(1, Proj::up, 'B'));  // of another rank: 24 / 7, as llama.cpp
  PeftAdapter stable = adapter;
  stable.rslora = true;
  gguf::write_adapter(model, stable, scratch.path / "a.gguf");
  const auto scaled = tensors_of(scratch.path / "a.gguf", head);
  for (std::size_t i = 0; i < 100; ++i)  // 24 / sqrt 4 = 2 * 24 / 4
    CHECK(scaled.at("blk.0.ffn_up.weight.lora_b")[i] == 2 * matrix(0, Proj::up, 'B')[i]);
  const PeftAdapter other = merge_cases::write_adapter(scratch.path / "other", 4, shape.layers + 1);
  CHECK_THROWS_WITH_AS(gguf::write_adapter(model, other, scratch.path / "b.gguf"),
                       doctest::Contains("trained on another model"), Error);
  CHECK_FALSE(fs::exists(scratch.path / "b.gguf"));
}

TEST_CASE("rotary embeddings: factors of Llama 3, names of the others, and what llama.cpp has not") {
  hf::ModelConfig model;
  model.shape = shape;
  model.shape.head_dim = 64;
  model.rope_theta = 5e5F;
  model.rope_scaling = {.kind = RopeKind::llama3, .factor = 32, .old_positions = 8192, .low = 1, .high = 4};
  const std::vector<float> factors = gguf::detail::llama3_factors(model);
  // By a Python program with the formula of llama.cpp's conversion script; Llama-3.2-1B has these numbers.
  CHECK(factors.front() == 1.0F);
  CHECK(factors.back() == 32.0F);
  CHECK(factors[14] == 1.0F);
  CHECK(factors[15] == doctest::Approx(1.6513).epsilon(1e-4));
  CHECK(factors[16] == doctest::Approx(3.2923).epsilon(1e-4));
  CHECK(factors[17] == doctest::Approx(9.6667).epsilon(1e-4));
  CHECK(factors[18] == 32.0F);
  model.rope_scaling = {.kind = RopeKind::linear, .factor = 2};
  gguf::Values values = gguf::model_values(model, gguf::Type::f16, "m");
  CHECK(std::get<std::string>(values.at("llama.rope.scaling.type")) == "linear");
  CHECK(std::get<float>(values.at("llama.rope.scaling.factor")) == 2.0F);
  model.rope_scaling = {.kind = RopeKind::yarn,
                        .factor = 4,
                        .old_positions = 64,
                        .fast = 32,
                        .slow = 1,
                        .whole_pairs = true,
                        .attention = 1.1386294F};
  values = gguf::model_values(model, gguf::Type::f16, "m");
  CHECK(std::get<std::uint32_t>(values.at("llama.rope.scaling.original_context_length")) == 64);
  model.rope_scaling.attention = 1;
  CHECK_THROWS_WITH_AS((void)gguf::model_values(model, gguf::Type::f16, "m"), doctest::Contains("attention_factor"),
                       Error);
}
