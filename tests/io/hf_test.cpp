// Hugging Face model directories: the golden ones, both dialects, shards, and directories that lie.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/hf.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <random>
#include <string>

#include "qlora/configs/llama2.hpp"
#include "support/checksums.hpp"
#include "support/refusal.hpp"

using namespace qlora;
namespace fs = std::filesystem;

namespace {

const fs::path golden = fs::path(QLORA_SOURCE_DIR) / "tests/golden";

struct Scratch {
  fs::path path = fs::temp_directory_path() / ("hf_test-" + std::to_string(::getpid()));
  Scratch() { fs::create_directories(path); }
  ~Scratch() { fs::remove_all(path); }
} const scratch;

Json golden_config(const char* name) { return read_json_object(golden / name / "model/config.json"); }

/// Empty when the config is accepted, else the message.
std::string verdict(const Json& config) {
  try {
    (void)hf::parse_config(config, "config.json");
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}
std::string open_verdict(const fs::path& directory) {
  try {
    (void)hf::ModelDir::open(directory);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}
/// The model as floats, through one writer.
/// A copy; 1 is added to the first value of the tensor `shifted`.
void copy_model(const hf::ModelDir& model, const fs::path& target, const hf::ModelWriter::Options& options = {},
                std::string_view shifted = {}) {
  hf::ModelWriter writer(target, model, options);
  for (const hf::NamedShape& tensor : writer.tensors()) {
    const TensorRef ref = model.source()(tensor.name).value();
    std::vector<float> values(static_cast<std::size_t>(ref.size()));
    read_floats(ref, 0, values);
    if (tensor.name == shifted) values[0] += 1.0F;
    const std::span<const float> all(values);
    writer.write(tensor.name, all.subspan(all.size() / 2), all.size() / 2);  // in two pieces, the later one first
    writer.write(tensor.name, all.first(all.size() / 2));
  }
  writer.finish();
}
bool same_weights(const hf::ModelDir& a, const hf::ModelDir& b) {
  for (const hf::NamedShape& tensor : hf::tensor_names(a.shape)) {
    if (!std::ranges::equal(a.source()(tensor.name).value().bytes, b.source()(tensor.name).value().bytes)) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("the golden models") {
  const hf::ModelDir gqa = hf::ModelDir::open(golden / "gqa/model");
  CHECK(gqa.shape == Shape{256, 128, 2, 8, 2, 16, 352, false});
  CHECK(gqa.rope_theta == 10000.0F);
  CHECK(gqa.norm_eps == 1e-5F);
  CHECK(gqa.dtype == DType::f16);
  CHECK(gqa.max_positions == 512);
  CHECK(gqa.bos_token_id == 1);
  CHECK(gqa.eos_token_ids == std::vector<int>{2});
  CHECK_FALSE(gqa.tokenizer_file.has_value());
  CHECK_FALSE(gqa.has_chat_template);
  const hf::ModelDir tied = hf::ModelDir::open(golden / "tied/model");
  CHECK(tied.shape == Shape{320, 96, 2, 3, 1, 32, 256, true});
  CHECK(tied.rope_theta == 100000.0F);
  CHECK(tied.norm_eps == 1e-6F);
  CHECK(tied.source()("lm_head.weight")->bytes.data() == tied.source()("model.embed_tokens.weight")->bytes.data());
  CHECK_FALSE(gqa.nf4.has_value());
  CHECK(hf::ModelDir::open(golden / "gqa/model-bnb-4bit").nf4.has_value());
}

TEST_CASE("tensor counts and sizes of the published models") {
  CHECK(hf::tensor_names(llama2_7b.shape).size() == 291);
  CHECK(hf::tensor_names(llama2_13b.shape).size() == 363);
  CHECK(hf::tensor_names(llama2_70b.shape).size() == 723);
  std::int64_t sum = 0;
  for (const auto& tensor : hf::tensor_names(llama2_70b.shape)) {
    std::int64_t size = 1;
    for (const std::int64_t dim : tensor.shape) size *= dim;
    sum += size;
  }
  CHECK(sum == parameters(llama2_70b.shape));
}

TEST_CASE("a source outlives the directory object it came from") {
  TensorSource source;
  {
    hf::ModelDir model = hf::ModelDir::open(golden / "mha/model");
    const hf::ModelDir moved = std::move(model);
    source = moved.source();
  }
  std::vector<float> values(4);
  read_floats(source("model.norm.weight").value(), 0, values);
  CHECK(std::isfinite(values[0]));
}

TEST_CASE("both dialects of config.json mean the same") {
  Json config = golden_config("gqa");
  config.erase("rope_parameters");
  config.erase("dtype");
  config.erase("head_dim");
  config["torch_dtype"] = "bfloat16";
  config["rope_scaling"] = nullptr;
  hf::ModelConfig read = hf::parse_config(config, "c");
  CHECK(read.rope_theta == 10000.0F);
  CHECK(read.dtype == DType::bf16);
  CHECK(read.shape == Shape{256, 128, 2, 8, 2, 16, 352, false});
  config["rope_theta"] = 500000.0;
  config["eos_token_id"] = {5, 7};
  config.erase("num_key_value_heads");
  config["bos_token_id"] = nullptr;
  read = hf::parse_config(config, "c");
  CHECK(read.rope_theta == 500000.0F);
  CHECK(read.shape.kv_heads == 8);
  CHECK(read.eos_token_ids == std::vector<int>{5, 7});
  CHECK(read.eos_token_id() == 5);
  CHECK(read.bos_token_id == -1);
}

TEST_CASE("configs that lie or ask for another computation are refused by key") {
  const Json good = golden_config("gqa");
  REQUIRE(verdict(good).empty());
  const std::pair<const char*, Json> cases[] = {{"num_attention_heads", 0},
                                                {"num_attention_heads", 7},
                                                {"hidden_size", 2147483648LL},
                                                {"hidden_size", -1},
                                                {"hidden_size", 128.0},
                                                {"hidden_size", "128"},
                                                {"hidden_size", nullptr},
                                                {"num_hidden_layers", 1000000},
                                                {"vocab_size", 18446744073709551615ULL},
                                                {"intermediate_size", 1e300},
                                                {"num_key_value_heads", 3},
                                                {"head_dim", 15},
                                                {"head_dim", 0},
                                                {"model_type", "mixtral"},
                                                {"num_local_experts", 8},
                                                {"layer_norm_eps", 1e-5},
                                                {"final_logit_softcapping", 30.0},
                                                {"hidden_act", "gelu"},
                                                {"mlp_bias", true},
                                                {"rms_norm_eps", -1},
                                                {"rms_norm_eps", "x"},
                                                {"max_position_embeddings", 0},
                                                {"rope_scaling", {{"type", "linear"}}},
                                                {"rope_scaling", {{"rope_type", "yarn"}, {"factor", "x"}}},
                                                {"rope_scaling", {{"rope_type", "longrope"}, {"factor", 2.0}}},
                                                {"rope_parameters", {{"rope_type", "llama3"}}},
                                                {"rope_parameters", 4},
                                                {"rope_theta", 0},
                                                {"rope_theta", 20000},
                                                {"dtype", "int8"},
                                                {"tie_word_embeddings", 1},
                                                {"eos_token_id", 256},
                                                {"eos_token_id", {1, "2"}},
                                                {"bos_token_id", 1.5},
                                                {"quantization_config", {{"load_in_4bit", true}}},
                                                {"partial_rotary_factor", 0.5}};
  for (const auto& [key, value] : cases) {
    Json config = good;
    config[key] = value;
    const std::string said = verdict(config);
    CAPTURE(key);
    CAPTURE(value.dump());
    CHECK_FALSE(said.empty());
    const bool named = said.find(key) != std::string::npos || said.find("rotary") != std::string::npos ||
                       said.find("rope_theta") != std::string::npos;
    CHECK_MESSAGE(named, said);
  }
  for (const char* key : {"vocab_size", "hidden_size", "model_type", "num_hidden_layers", "intermediate_size"}) {
    Json config = good;
    config.erase(key);
    CHECK(verdict(config).find(key) != std::string::npos);
  }
}

TEST_CASE("relatives of LLaMA: types, windows, biases, scaled rotary embedding") {
  Json config = golden_config("gqa");
  config["model_type"] = "mistral";
  config["max_position_embeddings"] = 4096;
  config["sliding_window"] = 16;
  hf::ModelConfig read = hf::parse_config(config, "c");
  CHECK(read.max_positions == 16);
  CHECK(read.limited_by == "sliding_window");
  config["sliding_window"] = nullptr;
  CHECK(hf::parse_config(config, "c").max_positions == 4096);
  config["sliding_window"] = 16;
  config["model_type"] = "qwen2";  // which has a window only where use_sliding_window says so
  CHECK(hf::parse_config(config, "c").max_positions == 4096);
  CHECK(hf::parse_config(config, "c").shape.qkv_bias);
  CHECK_FALSE(hf::parse_config(config, "c").shape.o_bias);
  config["use_sliding_window"] = true;
  CHECK(hf::parse_config(config, "c").max_positions == 16);
  config["model_type"] = "llama";
  config["attention_bias"] = true;
  read = hf::parse_config(config, "c");
  CHECK(read.shape.qkv_bias);
  CHECK(read.shape.o_bias);
  CHECK(hf::tensor_names(read.shape).size() == hf::tensor_names(Shape{256, 128, 2, 8, 2, 16, 352}).size() + 4 * 2);
  config["rope_parameters"] = {{"rope_type", "llama3"},   {"rope_theta", 10000.0},
                               {"factor", 8.0},           {"low_freq_factor", 1.0},
                               {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 8192}};
  read = hf::parse_config(config, "c");
  CHECK(read.rope_scaling == RopeScaling{.kind = RopeKind::llama3, .factor = 8.0F, .old_positions = 8192});
  // What is written has the keys that were read.
  CHECK(hf::config_json(read).at("rope_parameters") == config.at("rope_parameters"));
  CHECK(hf::config_json(read).at("attention_bias") == true);
  config["rope_parameters"] = {{"rope_type", "yarn"}, {"rope_theta", 10000.0}, {"factor", 4.0}};
  // 0.1 ln 4 + 1, and the old context is that of the config: arXiv 2309.00071
  CHECK(hf::parse_config(config, "c").rope_scaling.attention == doctest::Approx(1.138629436));
  CHECK(hf::parse_config(config, "c").rope_scaling.old_positions == 4096);
}

TEST_CASE("10,000 random configs load with bounded numbers or are refused") {
  std::mt19937_64 random(23);
  const Json good = golden_config("gqa");
  std::vector<std::string> keys;
  for (const auto& [key, value] : good.items()) keys.push_back(key);
  const std::vector<Json> values{
      0,     1,   -1,  2,    3,       1 << 20,       2147483648LL,   18446744073709551615ULL,
      1e308, 0.5, "x", true, nullptr, Json::array(), Json::object(), Json::array({1, nullptr})};
  for (int i = 0; i < 10'000; ++i) {
    Json config = good;
    for (int k = 0; k < 3; ++k) config[keys[random() % keys.size()]] = values[random() % values.size()];
    try {
      const hf::ModelConfig read = hf::parse_config(config, "c");
      CHECK(read.shape.heads % read.shape.kv_heads == 0);
      CHECK(parameters(read.shape) > 0);
    } catch (const Error& error) {
      CHECK(std::string(error.what()).starts_with("c: "));
    }
  }
}

TEST_CASE("written in shards and in one file, a model reads back equal") {
  const hf::ModelDir model = hf::ModelDir::open(golden / "gqa/model");
  const fs::path tokenizer = scratch.path / "tokenizer";
  fs::create_directories(tokenizer);
  write_file_atomically(tokenizer / "tokenizer.model", "pieces");
  write_file_atomically(tokenizer / "tokenizer.json", "{}");
  write_file_atomically(tokenizer / "tokenizer_config.json", "{\"chat_template\": \"x\"}");
  copy_model(model, scratch.path / "whole", {.max_shard_bytes = 1 << 30, .tokenizer_from = tokenizer});
  copy_model(model, scratch.path / "sharded", {.max_shard_bytes = 100'000, .tokenizer_from = {}});
  const hf::ModelDir whole = hf::ModelDir::open(scratch.path / "whole");
  const hf::ModelDir sharded = hf::ModelDir::open(scratch.path / "sharded");
  CHECK(whole.shape == model.shape);
  CHECK(whole.norm_eps == model.norm_eps);
  CHECK(whole.rope_theta == model.rope_theta);
  CHECK(whole.has_chat_template);
  CHECK(whole.tokenizer_file == scratch.path / "whole/tokenizer.json");  // rules, as in transformers
  CHECK(fs::exists(scratch.path / "whole/tokenizer.model"));
  CHECK(fs::remove(scratch.path / "whole/tokenizer_config.json"));  // without it nothing says what ends a text
  CHECK(tokenizer_file(scratch.path / "whole") == scratch.path / "whole/tokenizer.model");
  CHECK(same_weights(model, whole));
  CHECK(same_weights(model, sharded));
  CHECK(whole.fingerprint() == sharded.fingerprint());
  CHECK(whole.fingerprint() == model.fingerprint());
  // The reference wrote the same tensors in the same order: the same bytes, but for the checksums.
  CHECK(test::without_checksums(scratch.path / "whole/model.safetensors", scratch.path / "plain.safetensors") ==
        read_text(golden / "gqa/model/model.safetensors", 1 << 30));
  const Json config = read_json_object(scratch.path / "whole/config.json");
  const std::string text = read_text(scratch.path / "whole/config.json", 1 << 20);
  CHECK(text.find("\"rms_norm_eps\": 1e-05") != std::string::npos);
  CHECK(config.at("torch_dtype") == "float16");
  const Json index = read_json_object(scratch.path / "sharded/model.safetensors.index.json");
  CHECK(index.at("metadata").at("total_size") == 2 * parameters(model.shape));
  CHECK(index.at("weight_map").at("model.embed_tokens.weight").get<std::string>().starts_with("model-00001-of-000"));
  CHECK_THROWS_WITH_AS(hf::ModelWriter(scratch.path / "whole", model), doctest::Contains("exists"), Error);
}

TEST_CASE("a fingerprint tells models of one shape apart, by any tensor") {
  const hf::ModelDir model = hf::ModelDir::open(golden / "gqa/model");
  for (const hf::NamedShape& changed : {hf::tensor_names(model.shape).front(), hf::tensor_names(model.shape).back()}) {
    CAPTURE(changed.name);
    const fs::path target = scratch.path / changed.name;
    copy_model(model, target, {}, changed.name);
    CHECK(hf::ModelDir::open(target).fingerprint() != model.fingerprint());
  }
  const hf::ModelDir base = hf::ModelDir::open(fs::path(QLORA_SOURCE_DIR) / "examples/models/tiny-base");
  const hf::ModelDir chat = hf::ModelDir::open(fs::path(QLORA_SOURCE_DIR) / "examples/models/tiny-chat");
  CHECK(base.fingerprint() != chat.fingerprint());
}

TEST_CASE("a changed bit anywhere in a written model is found when it is read") {
  const fs::path dir = scratch.path / "damaged";
  copy_model(hf::ModelDir::open(golden / "gqa/model"), dir, {.max_shard_bytes = 200'000, .tokenizer_from = {}});
  const auto read_all = [&](Verify verify) {
    return test::refusal([&] {
      const hf::ModelDir model = hf::ModelDir::open(dir, verify);
      const TensorSource source = model.source();
      for (const hf::NamedShape& tensor : hf::tensor_names(model.shape)) (void)source(tensor.name).value();
    });
  };
  REQUIRE(read_all(Verify::checksums).empty());
  std::mt19937 random(7);
  for (const auto& entry : std::vector<fs::directory_entry>{fs::directory_iterator(dir), {}}) {
    const std::string name = entry.path().filename().string();
    for (int i = 0; i < 20; ++i) {
      CAPTURE(name);
      const std::size_t bit = random() % (fs::file_size(entry.path()) * 8);
      CAPTURE(bit);
      test::flip_bit(entry.path(), bit);
      CHECK(read_all(Verify::checksums) != "");
      test::flip_bit(entry.path(), bit);
    }
  }
  // The last byte of a file of weights is a tensor's; it is not read where the disk is trusted.
  const Json index = read_json_object(dir / "model.safetensors.index.json");
  const fs::path last = dir / index.at("weight_map").at("model.norm.weight").get<std::string>();
  test::flip_bit(last, fs::file_size(last) * 8 - 1);
  CHECK(read_all(Verify::checksums).find("is not what was written: its checksum differs") != std::string::npos);
  CHECK(read_all(Verify::checksums).find(last.string() + ": the tensor '") == 0);
  CHECK(read_all(Verify::nothing).empty());
  test::flip_bit(last, fs::file_size(last) * 8 - 1);
  write_file_atomically(dir / "generation_config.json", "{}");  // as a user may do
  CHECK(read_all(Verify::checksums).find("remove its line there") != std::string::npos);
  fs::remove(dir / "qlora.sha256");
  CHECK(read_all(Verify::checksums).empty());
}

TEST_CASE("the checksum of a model is that of all its bytes, in any files, and no fingerprint") {
  const hf::ModelDir model = hf::ModelDir::open(golden / "gqa/model");
  const fs::path dir = scratch.path / "copy_of_gqa";
  copy_model(model, dir, {.max_shard_bytes = 100'000, .tokenizer_from = {}});
  CHECK(hf::ModelDir::open(dir).checksum() == model.checksum());
  CHECK(model.checksum().size() == 32);
  CHECK(hf::ModelDir::open(dir, Verify::nothing).checksum().empty());
  fs::remove_all(dir);
  fs::copy(golden / "gqa/model", dir);  // as a download: without checksums
  const std::size_t header =
      fs::file_size(dir / "model.safetensors") - 2 * static_cast<std::size_t>(parameters(model.shape));
  test::flip_bit(dir / "model.safetensors", (header + 5000) * 8);  // of the first matrix
  const hf::ModelDir damaged = hf::ModelDir::open(dir);
  CHECK(damaged.fingerprint() == model.fingerprint());  // of the begin of each tensor alone
  CHECK(damaged.checksum() != model.checksum());
}

TEST_CASE("a value that half precision cannot hold is named, and nothing is left behind") {
  const hf::ModelDir model = hf::ModelDir::open(golden / "mha/model");
  const fs::path target = scratch.path / "overflow/model";
  {
    hf::ModelWriter writer(target, model);
    const std::vector<float> values(64, 70000.0F);
    CHECK_THROWS_WITH_AS(writer.write("model.norm.weight", values), doctest::Contains("model.norm.weight"), Error);
    CHECK_THROWS_WITH_AS(writer.finish(), doctest::Contains("got 0 of"), Error);
    CHECK_THROWS_AS(writer.write("model.layers.9.mlp.up_proj.weight", values), Error);
  }
  CHECK(fs::is_empty(target.parent_path()));
}

TEST_CASE("directories that do not hold what they say") {
  const fs::path source = golden / "gqa/model";
  const fs::path here = scratch.path / "bad";
  const auto fresh = [&](const Json& config) {
    fs::remove_all(here);
    fs::create_directories(here);
    write_file_atomically(here / "config.json", json_text(config));
  };
  fresh(golden_config("gqa"));
  CHECK(open_verdict(here).find("neither model.safetensors") != std::string::npos);
  write_file_atomically(here / "pytorch_model.bin", "x");
  CHECK(open_verdict(here).find("pickle") != std::string::npos);
  CHECK(open_verdict(scratch.path / "absent").find("no such model directory") != std::string::npos);
  for (const auto& [key, value] :
       {std::pair("vocab_size", 255), {"num_hidden_layers", 3}, {"num_hidden_layers", 1}, {"intermediate_size", 353}}) {
    Json config = golden_config("gqa");
    config[key] = value;
    fresh(config);
    fs::copy_file(source / "model.safetensors", here / "model.safetensors");
    CHECK(open_verdict(here).find("the tensor '") != std::string::npos);
  }
}

TEST_CASE("an index may not lead out of the directory, nor lie about its shards") {
  const hf::ModelDir model = hf::ModelDir::open(golden / "gqa/model");
  const fs::path here = scratch.path / "index";
  copy_model(model, here, {.max_shard_bytes = 100'000, .tokenizer_from = {}});
  fs::copy_file(golden / "gqa/model/model.safetensors", scratch.path / "outside.safetensors");
  const fs::path path = here / "model.safetensors.index.json";
  fs::remove(here / "qlora.sha256");  // which would find every change
  const Json good = read_json_object(path);
  const auto with = [&](const Json& index) {
    write_file_atomically(path, json_text(index));
    return open_verdict(here);
  };
  REQUIRE(with(good).empty());
  for (const char* name : {"../outside.safetensors", "/etc/passwd", "..", ".", "", "a/../b.safetensors",
                           "x\\y.safetensors", "pytorch_model.bin", ".hidden.safetensors"}) {
    Json index = good;
    index["weight_map"]["model.norm.weight"] = name;
    CHECK_MESSAGE(with(index).find("plain .safetensors file name") != std::string::npos, name);
  }
  Json index = good;
  index["weight_map"]["model.norm.weight"] = std::string("a\0.safetensors", 14);
  CHECK(with(index).find("plain .safetensors file name") != std::string::npos);
  index = good;
  index["metadata"]["total_size"] = 7;
  CHECK(with(index).empty());  // all tensors are there: a note, no refusal
  CHECK(hf::ModelDir::open(here).note().find("total_size is 7 but") != std::string::npos);
  for (const char* odd : {"\"x\"", "-5", "1e99", "true", "{}"}) {
    index["metadata"]["total_size"] = Json::parse(odd);
    CHECK(with(index).empty());
    CHECK(hf::ModelDir::open(here).note().find("total_size is ") != std::string::npos);
  }
  index = good;
  index["weight_map"]["model.norm.weight"] = good["weight_map"]["model.embed_tokens.weight"];
  CHECK(with(index).find("but it is not") != std::string::npos);
  index = good;
  index["weight_map"].erase("model.norm.weight");
  CHECK_FALSE(with(index).empty());
  index["weight_map"] = Json::array();
  CHECK(with(index).find("weight_map") != std::string::npos);
  // Any bit of a small index: a message or an open model, never anything else.
  const std::string text = json_text(good);
  std::mt19937 random(31);
  for (int i = 0; i < 500; ++i) {
    std::string bytes = text;
    const std::size_t at = random() % bytes.size();
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
    write_file_atomically(path, bytes);
    (void)open_verdict(here);
  }
}
