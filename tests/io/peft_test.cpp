// PEFT adapters: the golden ones, what is written reads back equal, and settings that are not computed are refused.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/peft.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <random>
#include <string>

#include "support/checksums.hpp"

using namespace qlora;
namespace fs = std::filesystem;

namespace {

const fs::path golden = fs::path(QLORA_SOURCE_DIR) / "tests/golden";

struct Scratch {
  fs::path path = fs::temp_directory_path() / ("peft_test-" + std::to_string(::getpid()));
  Scratch() { fs::create_directories(path); }
  ~Scratch() { fs::remove_all(path); }
} const scratch;

/// An adapter's floats, and the list that write_peft takes.
struct Matrices {
  std::vector<std::vector<float>> values;
  std::vector<PeftTensor> tensors;
  explicit Matrices(const PeftAdapter& adapter) {
    for (const std::string& name : adapter.names()) {
      const TensorRef ref = adapter.source()(name).value();
      values.emplace_back(static_cast<std::size_t>(ref.size()));
      read_floats(ref, 0, values.back());
      tensors.push_back({name, ref.shape, values.back()});
    }
  }
  Matrices(const Matrices&) = delete;
};

/// Message for a golden adapter whose config was changed; empty when it opens.
std::string verdict(const std::string& key, const Json& value) {
  const fs::path here = scratch.path / "changed";
  fs::remove_all(here);
  fs::copy(golden / "gqa/adapter", here);
  Json config = read_json_object(here / "adapter_config.json");
  if (value.is_discarded()) {
    config.erase(key);
  } else {
    config[key] = value;
  }
  write_file_atomically(here / "adapter_config.json", json_text(config));
  try {
    (void)PeftAdapter::open(here);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

TEST_CASE("the golden adapters read, write and read back equal") {
  for (const char* name : {"mha", "gqa", "tied", "hd128"}) {
    CAPTURE(name);
    const PeftAdapter adapter = PeftAdapter::open(golden / name / "adapter");
    const int layers = read_json_object(golden / name / "model/config.json").at("num_hidden_layers");
    CHECK(adapter.r == 8);
    CHECK(adapter.alpha == 16.0F);
    CHECK(adapter.dropout == 0.0F);
    CHECK_FALSE(adapter.rslora);
    CHECK(adapter.targets == Proj::all);
    CHECK(adapter.layers == layers);
    CHECK(adapter.names().size() == static_cast<std::size_t>(14 * layers));
    CHECK(scale_of(adapter, 1, Proj::down) == 2.0F);
    const Matrices matrices(adapter);
    const fs::path target = scratch.path / name;
    for (int i = 0; i < 2; ++i) write_peft(target, adapter, matrices.tensors);  // the second replaces the first
    CHECK(static_cast<const PeftConfig&>(PeftAdapter::open(target)) == static_cast<const PeftConfig&>(adapter));
    CHECK(test::without_checksums(target / "adapter_model.safetensors", scratch.path / "plain.safetensors") ==
          read_text(golden / name / "adapter/adapter_model.safetensors", 1 << 30));
    // Every key that is written has the value that peft wrote, and peft's own keys are all there but its newest.
    const Json ours = read_json_object(target / "adapter_config.json");
    Json theirs = read_json_object(golden / name / "adapter/adapter_config.json");
    for (const char* newest : {"kasa_config", "lora_ga_config", "monteclora_config", "use_bdlora", "velora_config"}) {
      theirs.erase(newest);
    }
    for (Json* config : {&theirs}) std::sort((*config)["target_modules"].begin(), (*config)["target_modules"].end());
    Json sorted = ours;
    std::sort(sorted["target_modules"].begin(), sorted["target_modules"].end());
    CHECK(sorted == theirs);
  }
}

TEST_CASE("a changed bit anywhere in a written adapter is found") {
  const Matrices matrices(PeftAdapter::open(golden / "mha/adapter"));
  const fs::path dir = scratch.path / "flipped";
  write_peft(dir, PeftAdapter::open(golden / "mha/adapter"), matrices.tensors);
  CHECK_NOTHROW((void)PeftAdapter::open(dir));
  std::mt19937 random(3);
  for (const char* name : {"adapter_model.safetensors", "adapter_config.json", "qlora.sha256"}) {
    for (int i = 0; i < 100; ++i) {
      const std::size_t bit = random() % (fs::file_size(dir / name) * 8);
      CAPTURE(name);
      CAPTURE(bit);
      test::flip_bit(dir / name, bit);
      CHECK_THROWS_AS((void)PeftAdapter::open(dir), Error);
      test::flip_bit(dir / name, bit);
    }
  }
  test::flip_bit(dir / "adapter_model.safetensors", fs::file_size(dir / "adapter_model.safetensors") * 8 - 1);
  CHECK_THROWS_WITH_AS((void)PeftAdapter::open(dir), doctest::Contains("its checksum differs"), Error);
  CHECK_NOTHROW((void)PeftAdapter::open(dir, Verify::nothing));
}

TEST_CASE("an adapter knows the weights that it was trained on") {
  PeftAdapter adapter = PeftAdapter::open(golden / "mha/adapter");
  CHECK_NOTHROW(expect_base_checksum(adapter, "0123"));  // trained elsewhere
  adapter.base_checksum = "4567";
  CHECK_NOTHROW(expect_base_checksum(adapter, "4567"));
  CHECK_NOTHROW(expect_base_checksum(adapter, ""));  // read without checksums
  CHECK_THROWS_WITH_AS(expect_base_checksum(adapter, "0123"), doctest::Contains("was trained on, although"), Error);
}

TEST_CASE("ranks and alphas per module") {
  PeftConfig config{.r = 2, .alpha = 3, .targets = Proj::q | Proj::up};
  config.rank_pattern = {{"layers.1.self_attn.q_proj", 4}, {"up_proj", 1}};
  config.alpha_pattern = {{"layers.0.mlp.up_proj", 5.5F}};
  config.dropout = 0.1F;
  config.base_model = "some/base";
  config.base_fingerprint = "0123abcd";
  config.base_checksum = "4567ef";
  CHECK(rank_of(config, 0, Proj::q) == 2);
  CHECK(rank_of(config, 1, Proj::q) == 4);
  CHECK(rank_of(config, 11, Proj::q) == 2);
  CHECK(rank_of(config, 11, Proj::up) == 1);
  CHECK(scale_of(config, 0, Proj::up) == 5.5F);
  CHECK(scale_of(config, 1, Proj::q) == 0.75F);
  config.rslora = true;
  CHECK(scale_of(config, 1, Proj::q) == 1.5F);
  std::vector<std::vector<float>> values;
  std::vector<PeftTensor> tensors;
  values.reserve(8);
  for (int layer = 0; layer < 2; ++layer) {
    for (const Proj proj : {Proj::q, Proj::up}) {
      const int rank = rank_of(config, layer, proj);
      for (const char matrix : {'A', 'B'}) {
        values.emplace_back(static_cast<std::size_t>(rank * 6), 0.25F);
        const std::vector<std::int64_t> shape =
            matrix == 'A' ? std::vector<std::int64_t>{rank, 6} : std::vector<std::int64_t>{6, rank};
        tensors.push_back({lora_name(layer, proj, matrix), shape, values.back()});
      }
    }
  }
  const fs::path target = scratch.path / "ranks";
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    write_peft(target, config, tensors, dtype);
    const PeftAdapter back = PeftAdapter::open(target);
    CHECK(static_cast<const PeftConfig&>(back) == config);
    const TensorRef tensor = back.source()("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight").value();
    CHECK(tensor.shape == std::vector<std::int64_t>{4, 6});
    CHECK(tensor.dtype == dtype);
    float value = 0;
    read_floats(tensor, 23, std::span(&value, 1));
    CHECK(value == 0.25F);
  }
  CHECK(read_text(target / "adapter_config.json", 1 << 20).find("\"lora_dropout\": 0.1,") != std::string::npos);
  CHECK_THROWS_AS(write_peft(target, config, std::span(tensors).first(7)), Error);
  const std::string name = std::exchange(tensors[0].name, lora_name(1, Proj::q, 'A'));
  CHECK_THROWS_WITH_AS(write_peft(target, config, tensors), doctest::Contains("rank 4"), Error);
  tensors[0].name = name;
  CHECK(PeftAdapter::open(target).layers == 2);  // the failed writes changed nothing
  write_file_atomically(target / "notes.txt", "mine");
  CHECK_THROWS_WITH_AS(write_peft(target, config, tensors), doctest::Contains("holds notes.txt"), Error);
  CHECK(fs::exists(target / "notes.txt"));
}

TEST_CASE("regular expressions match the names that Python's re.fullmatch matches") {
  const std::string many(36, 'a');
  const std::vector<std::string> names{"",       "a",     "b",     "abc",   "a.c",      "d",  "ababcd", "aab",
                                       "aaab",   "aaaab", "abc12", "zzx",   "a.x",      "aa", "aaa",    "foo.x",
                                       "q_proj", "x{a}",  "]a",    "a-b.c", many + "c", "ab"};
  const std::pair<const char*, const char*> cases[] = {
      {"model", "0000000000000000000000"},          {"a.c", "0001100000000000000000"},
      {"a\\.c", "0000100000000000000000"},          {"(ab|c)*d", "0000011000000000000000"},
      {"a{2,3}b?", "0000000110000110000000"},       {"[a-c]+\\d\\d", "0000000000100000000000"},
      {"[^.]*x", "0000000000010000000000"},         {"a{,2}", "1100000000000100000000"},
      {"\\w+\\b\\.\\B.", "0000000000000000000000"}, {"(?P<n>q|k)_proj", "0000000000000000100000"},
      {"a|b|", "1110000000000000000000"},           {"x{a}", "0000000000000000010000"},
      {"[]a]+", "0100000000000110001000"},          {"[\\w.-]+", "0111111111111111100111"},
      {"(a?){3}b", "0010000110000000000001"},       {"(a*)*(a*)*b", "0010000111000000000001"},
      {".*?b", "0010000111000000000001"},           {"^ab$", "0000000000000000000001"},
      {"a\\Zb", "0000000000000000000000"}};
  for (const auto& [expression, expected] : cases) {
    CAPTURE(expression);
    std::string found;
    for (const std::string& name : names) found += NamePattern(expression, "t").matches(name) ? '1' : '0';
    CHECK(found == expected);
  }
  for (const char* bad : {"(?!a)b", "(?i)a", "(a", "a)", "[a", "a**", "*a", "a{3,2}", "a{1001}", "\\1", "a\\",
                          "(?<=a)b", "[z-a]", "\\p", "(?P<n"}) {
    CAPTURE(bad);
    CHECK_THROWS_WITH_AS((void)NamePattern(bad, "t"), doctest::Contains("t: the regular expression '"), Error);
  }
  CHECK_THROWS_WITH_AS((void)NamePattern(std::string(60, '(') + std::string(60, ')'), "t"),
                       doctest::Contains("nested too deeply"), Error);
  std::string hard = "a*";  // each round doubles what a search would try
  for (int i = 0; i < 12; ++i) hard = "(" + hard + "){0,1000}" + hard.substr(0, 40);
  try {
    (void)NamePattern(hard, "t").matches(many);
  } catch (const Error&) {
  }  // ends, whatever it says
}

TEST_CASE("modules with adapters are those that peft finds") {
  // 5 layers of 7 projections, by check_target_module_exists of peft 0.21.2.
  const auto has = [](const Json& keys) {
    Json config{{"peft_type", "LORA"}, {"r", 8}, {"lora_alpha", 16}};
    config.update(keys);
    const PeftConfig read = detail::parse_peft_config(config, "c");
    std::string found;
    for (const int layer : {0, 1, 2, 10, 11}) {
      for (const Proj proj : all_projections) found += has_adapter(read, layer, proj) ? '1' : '0';
    }
    return found;
  };
  const auto rule = [](const Json& targets, const Json& more = Json::object()) {
    Json keys{{"target_modules", targets}};
    keys.update(more);
    return keys;
  };
  const std::string unsloth = R"((?:.*?(?:self_attn|mlp).*?(?:q_proj|gate_proj).*?)|)"
                              R"((?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn)\.(?:(?:o_proj))))";
  CHECK(has(rule({"q_proj", "mlp.up_proj"})) == "10000101000010100001010000101000010");
  CHECK(has(rule({"q_proj", "v_proj"}, {{"layers_to_transform", {1, 10}}})) == "00000001010000000000010100000000000");
  CHECK(has(rule({"down_proj"}, {{"layers_to_transform", 2}})) == "00000000000000000000100000000000000");
  CHECK(has(rule({"q_proj"}, {{"layers_to_transform", {0, 11}}, {"layers_pattern", "layers"}})) ==
        "10000000000000000000000000001000000");
  CHECK(has(rule({"1.self_attn.q_proj", "layers.10.mlp.up_proj", "model.layers.2.self_attn.o_proj"})) ==
        "00000001000000000100000000100000000");
  CHECK(has(rule({"q_proj", "k_proj", "down_proj"},
                 {{"exclude_modules", {"layers.1.self_attn.q_proj", "lm_head", "down_proj"}}})) ==
        "11000000100000110000011000001100000");
  CHECK(has(rule({"q_proj", "up_proj"}, {{"exclude_modules", R"(.*\.1\d?\..*)"}})) ==
        "10000100000000100001000000000000000");
  CHECK(has(rule(R"(.*\.(q|v)_proj)")) == "10100001010000101000010100001010000");
  CHECK(has(rule(R"(model\.layers\.(?:[02]|1\d)\.mlp\.(?:up|down)_proj$)")) == "00000110000000000001100000110000011");
  CHECK(has(rule(unsloth)) == "10011001001100100110010011001001100");
  CHECK(has(rule("all-linear")) == std::string(35, '1'));
  // and the ranks are those of peft's get_pattern_key
  PeftConfig config{.r = 8};
  const auto ranks = [&](std::map<std::string, int> pattern) {
    config.rank_pattern = std::move(pattern);
    std::string found;
    for (const int layer : {0, 1, 10}) {
      for (const Proj proj : all_projections) found += std::to_string(rank_of(config, layer, proj));
    }
    return found;
  };
  CHECK(ranks({{"q_proj", 4}, {"layers.1.mlp.down_proj", 2}}) == "488888848888824888888");
  CHECK(ranks({{R"(layers\.1\d\..*_proj)", 5}}) == "888888888888885555555");
  CHECK(ranks({{R"(.*\.(q|k)_proj)", 3}, {"v_proj", 6}}) == "336888833688883368888");
  CHECK(ranks({{"q_proj|o_proj", 7}}) == "788788878878887887888");
}

TEST_CASE("adapters of some layers, and names as a state_dict has them") {
  const SafetensorsFile whole(golden / "gqa/adapter/adapter_model.safetensors");
  const Json config = read_json_object(golden / "gqa/adapter/adapter_config.json");
  const fs::path here = scratch.path / "some_layers";
  const auto write = [&](const Json& changes, const auto& renamed) {
    fs::remove_all(here);
    fs::create_directories(here);
    Json changed = config;
    changed.update(changes);
    write_file_atomically(here / "adapter_config.json", json_text(changed));
    std::vector<std::pair<std::string, TensorRef>> tensors;
    for (const std::string& name : whole.names()) {
      const std::string other = renamed(name);
      if (!other.empty()) tensors.emplace_back(other, whole.at(name));
    }
    write_safetensors(here / "adapter_model.safetensors", tensors);
  };
  const auto second = [](const std::string& name) { return name.find("layers.1.") == std::string::npos ? "" : name; };
  const auto with_default = [](std::string name) {
    name.insert(name.rfind(".weight"), ".default");
    return name;
  };
  write({{"layers_to_transform", {1}}}, second);
  const PeftAdapter some = PeftAdapter::open(here);
  CHECK(some.names().size() == 14);
  CHECK(some.layers == 2);
  CHECK_FALSE(has_adapter(some, 0, Proj::q));
  CHECK_NOTHROW(expect_layers(some, 2));
  CHECK_NOTHROW(expect_layers(some, 9));  // no other layer has adapters
  CHECK_THROWS_AS(expect_layers(some, 1), Error);
  CHECK_FALSE(some.source()(lora_name(0, Proj::q, 'A')).has_value());
  const Matrices matrices(some);
  write_peft(scratch.path / "some_again", some, matrices.tensors);
  CHECK(static_cast<const PeftConfig&>(PeftAdapter::open(scratch.path / "some_again")) ==
        static_cast<const PeftConfig&>(some));
  const PeftAdapter all = PeftAdapter::open(golden / "gqa/adapter");
  CHECK_NOTHROW(expect_layers(all, 2));
  CHECK_THROWS_AS(expect_layers(all, 3), Error);

  write(Json::object(), second);
  CHECK_THROWS_WITH_AS((void)PeftAdapter::open(here), doctest::Contains("some are missing"), Error);
  write({{"layers_to_transform", {1}}}, [](const std::string& name) { return name; });
  CHECK_THROWS_WITH_AS((void)PeftAdapter::open(here), doctest::Contains("layers_to_transform"), Error);
  write({{"merge_weights", true}, {"target_modules", R"(.*_proj)"}}, with_default);
  const PeftAdapter named = PeftAdapter::open(here);
  CHECK(named.targets == Proj::all);
  CHECK(named.names() == all.names());
  const std::string name = lora_name(1, Proj::down, 'B');
  CHECK(std::ranges::equal(named.source()(name).value().bytes, all.source()(name).value().bytes));
  write(Json::object(),
        [&](const std::string& each) { return each.find("q_proj.lora_A") == each.npos ? each : with_default(each); });
  CHECK_NOTHROW((void)PeftAdapter::open(here));
}

TEST_CASE("the highest rank is that of a module which the adapter has") {
  const fs::path here = scratch.path / "highest";
  fs::copy(golden / "gqa/adapter", here);
  const auto highest = [&](const Json& pattern) {
    Json config = read_json_object(here / "adapter_config.json");
    config["rank_pattern"] = pattern;
    write_file_atomically(here / "adapter_config.json", json_text(config));
    return highest_rank(PeftAdapter::open(here));
  };
  CHECK(highest(Json::object()) == 8);
  CHECK(highest({{"layers.99.self_attn.q_proj", 64}}) == 8);  // the adapter has no such layer
  PeftConfig config{.r = 2, .targets = Proj::q};
  config.rank_pattern = {{"layers.0.self_attn.q_proj", 1}, {"layers.1.self_attn.q_proj", 3}, {"up_proj", 64}};
  const std::vector<float> values(18, 0.25F);
  std::vector<PeftTensor> tensors;
  for (int layer = 0; layer < 2; ++layer) {
    const int rank = rank_of(config, layer, Proj::q);
    const std::span<const float> data(values.data(), static_cast<std::size_t>(rank) * 6);
    tensors.push_back({lora_name(layer, Proj::q, 'A'), {rank, 6}, data});
    tensors.push_back({lora_name(layer, Proj::q, 'B'), {6, rank}, data});
  }
  write_peft(scratch.path / "highest_of_q", config, tensors);
  CHECK(highest_rank(PeftAdapter::open(scratch.path / "highest_of_q")) == 3);  // not 64, nor r
}

TEST_CASE("active settings that are not computed are refused by name; settings that are off are let be") {
  for (const auto& [key, value] :
       std::initializer_list<std::pair<std::string, Json>>{{"use_dora", 1},
                                                           {"modules_to_save", {"lm_head"}},
                                                           {"bias", "all"},
                                                           {"fan_in_fan_out", true},
                                                           {"lora_bias", true},
                                                           {"layers_to_transform", {0}},
                                                           {"layers_to_transform", -1},
                                                           {"layers_to_transform", {"0"}},
                                                           {"exclude_modules", {"q_proj"}},
                                                           {"exclude_modules", 3},
                                                           {"exclude_modules", "(?i)q_proj"},
                                                           {"target_modules", "(?!x).*q_proj"},
                                                           {"target_modules", {"layers.0.mlp.q_proj"}},
                                                           {"target_parameters", {"x"}},
                                                           {"trainable_token_indices", {1}},
                                                           {"layer_replication", {{0, 1}}},
                                                           {"use_qalora", true},
                                                           {"megatron_config", {{"a", 1}}},
                                                           {"alora_invocation_tokens", {1}},
                                                           {"arrow_config", {{"a", 1}}},
                                                           {"an_idea_of_tomorrow", 3},
                                                           {"init_lora_weights", "pissa_niter_4"},
                                                           {"init_lora_weights", "loftq"},
                                                           {"peft_type", "IA3"},
                                                           {"task_type", "SEQ_CLS"},
                                                           {"r", 0},
                                                           {"r", 4},
                                                           {"r", 8.0},
                                                           {"r", 1000000000},
                                                           {"lora_alpha", "16"},
                                                           {"lora_alpha", -1},
                                                           {"lora_dropout", 1.0},
                                                           {"target_modules", "q_proj"},
                                                           {"target_modules", {"embed_tokens"}},
                                                           {"target_modules", Json::array()},
                                                           {"target_modules", {"q_proj"}},
                                                           {"rank_pattern", {{"q_proj", 4}}},
                                                           {"rank_pattern", {{".*q_proj", 4}}},
                                                           {"rank_pattern", {{"(?i)q_proj", 8}}},
                                                           {"rank_pattern", {{"embed_tokens", 8}}},
                                                           {"rank_pattern", {{"q_proj", "8"}}},
                                                           {"rank_pattern", 8},
                                                           {"use_rslora", 1}}) {
    CAPTURE(key);
    CAPTURE(value.dump());
    const std::string said = verdict(key, value);
    const bool named = said.find(key) != std::string::npos || said.find("rank") != std::string::npos ||
                       said.find("q_proj") != std::string::npos;
    CHECK_MESSAGE(named, said);
  }
  CHECK(verdict("modules_to_save", {"lm_head"}).find("has no lm_head.weight") != std::string::npos);
  CHECK(verdict("modules_to_save", {"lm_head", "input_layernorm"})
            .ends_with("merge it into its base with peft's merge_and_unload() and use that model"));
  CHECK(verdict("use_dora", true).find("has no partner") != std::string::npos);  // the magnitude of a module
  for (const char* key : {"r", "lora_alpha", "target_modules", "peft_type"}) {
    CHECK(verdict(key, Json(Json::value_t::discarded)).find(key) != std::string::npos);
  }
  CHECK(verdict("target_modules", "all-linear").empty());
  CHECK(verdict("an_idea_of_tomorrow", nullptr).empty());
  CHECK(verdict("use_tomorrow", false).empty());
  CHECK(verdict("init_lora_weights", "gaussian").empty());
  CHECK(verdict("init_lora_weights", "mica").empty());  // trains A alone, on the base as it is
  CHECK(verdict("bias", nullptr).empty());
}

TEST_CASE("damaged directories: pickles, missing halves, flipped bits") {
  const fs::path here = scratch.path / "damaged";
  fs::create_directories(here);
  fs::copy_file(golden / "mha/adapter/adapter_config.json", here / "adapter_config.json");
  write_file_atomically(here / "adapter_model.bin", "x");
  CHECK_THROWS_WITH_AS((void)PeftAdapter::open(here), doctest::Contains("pickle"), Error);
  CHECK_THROWS_AS((void)PeftAdapter::open(scratch.path / "absent"), Error);
  const SafetensorsFile source(golden / "mha/adapter/adapter_model.safetensors");
  std::vector<std::pair<std::string, TensorRef>> most;
  for (const std::string& name : source.names()) most.emplace_back(name, source.at(name));
  most.pop_back();
  write_safetensors(here / "adapter_model.safetensors", most);
  CHECK_THROWS_WITH_AS((void)PeftAdapter::open(here), doctest::Contains("partner"), Error);
  most.pop_back();
  write_safetensors(here / "adapter_model.safetensors", most);
  CHECK_THROWS_WITH_AS((void)PeftAdapter::open(here), doctest::Contains("missing"), Error);
  fs::copy_file(source.path(), here / "adapter_model.safetensors", fs::copy_options::overwrite_existing);
  const std::string text = read_text(here / "adapter_config.json", 1 << 20);
  std::mt19937 random(41);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = text;
    const std::size_t at = random() % bytes.size();
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
    try {
      (void)detail::parse_peft_config(parse_json(bytes, "c"), "c");
    } catch (const Error& error) {
      CHECK(std::string(error.what()).starts_with("c: "));
    }
  }
}
