// Models in NF4: read and written to the bit as transformers and bitsandbytes wrote the golden ones, and files that say
// one thing and hold another.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/bnb.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "qlora/io/hf_model.hpp"
#include "qlora/io/quantize.hpp"
#include "qlora/io/safetensors_writer.hpp"
#include "support/golden.hpp"
#include "support/refusal.hpp"
#include "support/scratch.hpp"

using namespace qlora;
using test::refusal;
namespace fs = std::filesystem;

namespace {

const test::Scratch scratch;
const char* const models[] = {"mha", "gqa", "tied", "hd128"};

fs::path stored(const std::string& name) { return golden::folder() / name / "model-bnb-4bit"; }

/// All tensors of a file, in memory.
struct Tensors {
  struct Tensor {
    DType dtype;
    std::vector<std::int64_t> shape;
    std::string bytes;
  };
  std::map<std::string, Tensor> all;

  explicit Tensors(const fs::path& path) {
    const SafetensorsFile file(path);
    for (const std::string& name : file.names()) {
      const TensorRef ref = file.at(name);
      all[name] = {ref.dtype, ref.shape,
                   std::string(reinterpret_cast<const char*>(ref.bytes.data()), ref.bytes.size())};
    }
  }
  Tensor& operator[](const std::string& name) { return all.at(name); }

  /// As a model directory with this config, in files of `per_file` tensors.
  [[nodiscard]] fs::path write(const std::string& name, const Json& config, std::size_t per_file = 1000) const {
    const fs::path directory = scratch / name;
    fs::create_directories(directory);
    write_file_atomically(directory / "config.json", json_text(config));
    std::vector<std::pair<std::string, TensorRef>> tensors;
    for (const auto& [key, tensor] : all) {
      tensors.emplace_back(key, TensorRef{tensor.dtype, tensor.shape, std::as_bytes(std::span(tensor.bytes))});
    }
    Json where = Json::object();
    for (std::size_t first = 0; first < tensors.size(); first += per_file) {
      const std::string file =
          per_file < tensors.size() ? concat("model-", first, ".safetensors") : std::string("model.safetensors");
      const auto begin = tensors.begin() + static_cast<std::ptrdiff_t>(first);
      const auto end = tensors.begin() + static_cast<std::ptrdiff_t>(std::min(first + per_file, tensors.size()));
      write_safetensors(directory / file, {begin, end});
      for (auto at = begin; at != end; ++at) where[at->first] = file;
    }
    if (per_file < tensors.size()) {
      write_file_atomically(directory / "model.safetensors.index.json", json_text({{"weight_map", where}}));
    }
    return directory;
  }
};

Json config_of(const std::string& model) { return read_json_object(stored(model) / "config.json"); }

bool same(const Nf4Ref& a, const Nf4Ref& b) {
  return a.state == b.state && a.shape == b.shape && a.offset == b.offset && std::ranges::equal(a.codes, b.codes) &&
         std::ranges::equal(a.absmax, b.absmax) && std::ranges::equal(a.nested, b.nested);
}

}  // namespace

TEST_CASE("the golden models in NF4 are written to the bit, config.json too") {
  for (const std::string name : models) {
    CAPTURE(name);
    const hf::ModelDir model = hf::ModelDir::open(golden::folder() / name / "model");
    const fs::path out = scratch / ("written-" + name);
    const QuantizeReport report = quantize_model(model, out, {.threads = 2});
    CHECK(report.quantized == 7 * model.shape.layers);
    CHECK(report.tensors == static_cast<std::int64_t>(hf::tensor_names(model.shape).size()));
    const Tensors ours(out / "model.safetensors");
    const Tensors theirs(stored(name) / "model.safetensors");
    REQUIRE(ours.all.size() == theirs.all.size());
    for (const auto& [key, tensor] : theirs.all) {
      CAPTURE(key);
      REQUIRE(ours.all.contains(key));
      CHECK(ours.all.at(key).dtype == tensor.dtype);
      CHECK(ours.all.at(key).shape == tensor.shape);
      CHECK(ours.all.at(key).bytes == tensor.bytes);
    }
    CHECK(read_json_object(out / "config.json") == config_of(name));
    // Adapters of either fit both; one that transformers wrote is a model of its own.
    CHECK(hf::ModelDir::open(out).fingerprint() == model.fingerprint());
    CHECK(hf::ModelDir::open(out).checksum() == model.checksum());
    CHECK(hf::ModelDir::open(stored(name)).fingerprint() != model.fingerprint());
    CHECK(hf::ModelDir::open(stored(name)).checksum() != model.checksum());
  }
}

TEST_CASE("of a model whose checksums were not computed none is stated") {
  const hf::ModelDir trusted = hf::ModelDir::open(golden::folder() / "mha/model", Verify::nothing);
  (void)quantize_model(trusted, scratch / "trusted", {.threads = 1});
  CHECK(hf::ModelDir::open(scratch / "trusted").fingerprint() == trusted.fingerprint());
  CHECK(hf::ModelDir::open(scratch / "trusted").checksum().empty());  // an adapter of that model is compared with none
}

TEST_CASE("the golden models in NF4 are read") {
  for (const std::string name : models) {
    CAPTURE(name);
    const hf::ModelDir model = hf::ModelDir::open(stored(name));
    CHECK(model.nf4 == bnb::Storage{.double_quant = true, .compute = DType::bf16});
    CHECK(model.dtype == DType::f16);
    const TensorSource source = model.source();
    Tensors file(stored(name) / "model.safetensors");
    for (const hf::NamedShape& tensor : hf::tensor_names(model.shape)) {
      CAPTURE(tensor.name);
      CHECK(source(tensor.name).has_value() != source.nf4(tensor.name).has_value());
      CHECK(source.nf4(tensor.name).has_value() == hf::is_projection(tensor.name));
      if (!hf::is_projection(tensor.name)) continue;
      const Nf4Ref matrix = source.nf4(tensor.name).value();
      CHECK(matrix.shape == tensor.shape);
      CHECK(matrix.state == DType::f16);
      CHECK(matrix.double_quant());
      CHECK(std::memcmp(matrix.codes.data(), file[tensor.name].bytes.data(), matrix.codes.size()) == 0);
      CHECK(std::memcmp(matrix.absmax.data(), file[tensor.name + ".absmax"].bytes.data(), matrix.absmax.size()) == 0);
      const std::string state = file[tensor.name + std::string(bnb::state_suffix)].bytes;
      CHECK(bnb::state_text(DType::f16, tensor.shape[0], tensor.shape[1], matrix.offset) == state);
    }
  }
}

TEST_CASE("shards that part a matrix from its scales, and codes stored in another type") {
  Tensors file(stored("gqa") / "model.safetensors");
  const hf::ModelDir whole = hf::ModelDir::open(stored("gqa"));
  const hf::ModelDir parted = hf::ModelDir::open(file.write("parted", config_of("gqa"), 5));
  Json config = config_of("gqa");
  config["quantization_config"]["bnb_4bit_quant_storage"] = "bfloat16";
  for (auto& [name, tensor] : file.all) {
    if (tensor.shape.size() == 2 && tensor.dtype == DType::u8) {
      tensor.dtype = DType::bf16;
      tensor.shape[0] /= 2;
    }
  }
  const hf::ModelDir as_bf16 = hf::ModelDir::open(file.write("bf16", config));
  for (const hf::NamedShape& tensor : hf::tensor_names(whole.shape)) {
    if (!hf::is_projection(tensor.name)) continue;
    CHECK(same(whole.source().nf4(tensor.name).value(), parted.source().nf4(tensor.name).value()));
    CHECK(same(whole.source().nf4(tensor.name).value(), as_bf16.source().nf4(tensor.name).value()));
  }
  CHECK(whole.checksum() == parted.checksum());
  CHECK(whole.fingerprint() == parted.fingerprint());
}

TEST_CASE("without double quantization, in several files, whatever the number of threads") {
  const hf::ModelDir model = hf::ModelDir::open(golden::folder() / "mha/model");
  QuantizeOptions options{
      .storage = {.double_quant = false, .compute = DType::f32}, .max_shard_bytes = 30'000, .threads = 1};
  (void)quantize_model(model, scratch / "single1", options);
  options.threads = 3;
  (void)quantize_model(model, scratch / "single3", options);
  std::size_t files = 0;
  for (const auto& entry : fs::directory_iterator(scratch / "single1")) {
    CHECK(test::contents(entry.path()) == test::contents(scratch / "single3" / entry.path().filename().string()));
    ++files;
  }
  CHECK(files > 5);
  const hf::ModelDir once = hf::ModelDir::open(scratch / "single1");
  CHECK(once.nf4 == bnb::Storage{.double_quant = false, .compute = DType::f32});
  const hf::ModelDir twice = hf::ModelDir::open(stored("mha"));
  const std::string name = "model.layers.2.mlp.down_proj.weight";
  const Nf4Ref matrix = once.source().nf4(name).value();
  CHECK_FALSE(matrix.double_quant());
  CHECK(std::ranges::equal(matrix.codes, twice.source().nf4(name)->codes));
  CHECK(matrix.absmax.size() == 4 * twice.source().nf4(name)->absmax.size());
  const std::vector<float> w = golden::floats(model.source()(name).value());
  float absmax = 0.0F;
  std::memcpy(&absmax, matrix.absmax.data() + 4, 4);
  const auto block = std::span(w).subspan(64, 64);
  CHECK(absmax == std::max(*std::ranges::max_element(block), -*std::ranges::min_element(block)));
}

TEST_CASE("what the codes mean is what bitsandbytes makes of them, from any place on") {
  const SafetensorsFile file(golden::folder() / "nf4.safetensors");
  int compared = 0;
  for (const std::string& input : file.names()) {
    if (!input.ends_with(".input")) continue;
    const std::string name = input.substr(0, input.size() - 6);
    CAPTURE(name);
    const TensorRef whole = file.at(input);
    const std::vector<float> absmax = golden::floats(file, name + ".absmax");
    const float offset = golden::floats(file, name + ".dq.offset")[0];
    const Nf4Ref once{
        whole.dtype, {1, whole.size()}, file.at(name + ".packed").bytes, file.at(name + ".absmax").bytes, {}, 0.0F};
    const Nf4Ref twice{whole.dtype,
                       {1, whole.size()},
                       file.at(name + ".dq.packed").bytes,
                       file.at(name + ".dq.absmax_u8").bytes,
                       file.at(name + ".dq.nested_absmax").bytes,
                       offset};
    for (const auto& [matrix, key] : {std::pair(&once, ".dequant"), std::pair(&twice, ".dq.dequant")}) {
      const std::vector<float> expected = golden::floats(file, name + key);
      for (const std::size_t first : {std::size_t{0}, expected.size() / 3 / 2 * 2}) {
        std::vector<float> values(expected.size() - first);
        bnb::dequantize(*matrix, static_cast<std::int64_t>(first), values);
        int wrong = 0;
        for (std::size_t i = 0; i < values.size(); ++i) {
          if (absmax[(first + i) / 64] != 0.0F && values[i] != expected[first + i]) ++wrong;
        }
        CHECK(wrong == 0);
        ++compared;
      }
    }
  }
  CHECK(compared >= 40);
}

TEST_CASE("other ways of quantization are refused by key and value") {
  const auto verdict = [](const Json& config) { return refusal([&] { (void)bnb::parse_storage(config, "c"); }); };
  const Json good = config_of("mha")["quantization_config"];
  REQUIRE(verdict(good).empty());
  const std::pair<const char*, Json> cases[] = {
      {"quant_method", "gptq"},         {"quant_method", "awq"},        {"load_in_8bit", true},
      {"load_in_4bit", false},          {"bnb_4bit_quant_type", "fp4"}, {"bnb_4bit_compute_dtype", "float8_e4m3fn"},
      {"bnb_4bit_use_double_quant", 1}, {"bnb_4bit_blocksize", 128}};
  for (const auto& [key, value] : cases) {
    Json config = good;
    config[key] = value;
    CAPTURE(key);
    const std::string said = verdict(config);
    CHECK(said.find(key) != std::string::npos);
    CHECK(said.starts_with("c: quantization_config"));
    if (value.is_string()) CHECK(said.find(value.get<std::string>()) != std::string::npos);
  }
  CHECK_FALSE(verdict(Json::array()).empty());
  CHECK_FALSE(verdict(Json::object()).empty());
  Json older = good;  // without the keys that came later
  for (const char* key : {"_load_in_4bit", "_load_in_8bit", "bnb_4bit_quant_storage"}) older.erase(key);
  older["llm_int8_skip_modules"] = {"lm_head"};
  CHECK(verdict(older).empty());
}

TEST_CASE("files that say one thing and hold another are refused by tensor") {
  const std::string weight = "model.layers.1.self_attn.q_proj.weight";
  const std::string state = weight + std::string(bnb::state_suffix);
  const Tensors good(stored("mha") / "model.safetensors");
  const auto verdict = [&](const std::function<void(Tensors&, Json&)>& change) {
    Tensors file = good;
    Json config = config_of("mha");
    change(file, config);
    const fs::path directory = file.write("changed", config);
    const std::string said = refusal([&] { (void)hf::ModelDir::open(directory).source().nf4(weight); });
    fs::remove_all(directory);
    return said;
  };
  REQUIRE(verdict([](Tensors&, Json&) {}).empty());
  const auto expect = [&](const std::string& name, const std::string& text,
                          const std::function<void(Tensors&, Json&)>& change) {
    const std::string said = verdict(change);
    INFO(said);
    CHECK(said.find(name) != std::string::npos);
    CHECK(said.find(text) != std::string::npos);
  };
  for (const std::string& part : bnb::part_names(weight, true)) {
    expect(part, "", [&](Tensors& file, Json&) { file.all.erase(part); });
  }
  const auto in_state = [&](const std::string& from, const std::string& to) {
    return [&, from, to](Tensors& file, Json&) {
      std::string& text = file[state].bytes;
      const std::size_t at = text.find(from);
      REQUIRE(at != std::string::npos);
      text.replace(at, from.size(), to);
      file[state].shape = {static_cast<std::int64_t>(text.size())};
    };
  };
  expect(state, "quant_type is \"fp4\"", in_state("nf4", "fp4"));
  expect(state, "blocksize is 128", in_state("64", "128"));
  expect(state, "shape is [64,32]", in_state("[64, 64]", "[64, 32]"));
  expect(state, "dtype is 'float8'", in_state("float16", "float8"));
  expect(state, "nested_blocksize is 64", in_state("256", "64"));
  expect(state, "nested_offset", in_state("\"nested_offset\": ", "\"nested_offset\": \"x\", \"y\": "));
  expect(state, "", in_state("}", "} {"));
  expect(weight, "bytes of codes", [&](Tensors& file, Json&) {
    file[weight].bytes += '\0';
    file[weight].shape = {2049, 1};
  });
  expect(weight + ".absmax", "of type F32", [&](Tensors& file, Json&) {
    file[weight + ".absmax"] = {DType::f32, {16}, std::string(64, '\0')};
  });
  expect(weight + ".quant_map", "another codebook",
         [&](Tensors& file, Json&) { file[weight + ".quant_map"].bytes[4] ^= 1; });
  expect(weight + ".nested_quant_map", "another codebook",
         [&](Tensors& file, Json&) { file[weight + ".nested_quant_map"].bytes[400] ^= 1; });
  expect(weight + ".nested_absmax", "is damaged", [&](Tensors& file, Json&) {
    constexpr float infinite = std::numeric_limits<float>::infinity();
    std::memcpy(file[weight + ".nested_absmax"].bytes.data(), &infinite, sizeof infinite);
  });
  expect("model.layers.0.self_attn.q_proj.weight", "bnb_4bit_use_double_quant",
         [&](Tensors&, Json& config) { config["quantization_config"]["bnb_4bit_use_double_quant"] = false; });
  expect("model.layers.1.mlp.up_proj.weight", "not in 4 bits as the others are", [&](Tensors& file, Json&) {
    for (const std::string& part : bnb::part_names("model.layers.1.mlp.up_proj.weight", true)) file.all.erase(part);
    file.all["model.layers.1.mlp.up_proj.weight"] = {DType::f16, {176, 64}, std::string(2 * 176 * 64, '\0')};
  });
  expect("lm_head.weight", "llm_int8_skip_modules",
         [&](Tensors& file, Json&) { file.all["lm_head.weight.quant_state.bitsandbytes__nf4"] = file[state]; });
  expect("quant_state.bitsandbytes__nf4", "config.json has no quantization_config",
         [&](Tensors&, Json& config) { config.erase("quantization_config"); });
}

TEST_CASE("what cannot be quantized leaves nothing behind") {
  const hf::ModelDir quantized = hf::ModelDir::open(stored("mha"));
  CHECK(refusal([&] { (void)quantize_model(quantized, scratch / "none"); }).find("in 4 bits already") !=
        std::string::npos);
  Tensors file(golden::folder() / "mha/model/model.safetensors");
  file["model.layers.2.mlp.up_proj.weight"].bytes[1] = 0x7e;  // the first value is a NaN
  const Json config = read_json_object(golden::folder() / "mha/model/config.json");
  const hf::ModelDir broken = hf::ModelDir::open(file.write("broken", config));
  CHECK(refusal([&] { (void)quantize_model(broken, scratch / "none"); }).find("up_proj.weight holds nan at index 0") !=
        std::string::npos);
  const hf::ModelDir model = hf::ModelDir::open(golden::folder() / "mha/model");
  std::int64_t seen = 0;
  const QuantizeOptions stopped{.threads = 1, .on_tensor = [&](std::int64_t done) { return (seen = done) < 5; }};
  CHECK(refusal([&] { (void)quantize_model(model, scratch / "none", stopped); }).find("interrupted") !=
        std::string::npos);
  CHECK(seen == 5);
  for (const auto& entry : fs::directory_iterator(scratch / "")) {
    CHECK(entry.path().filename().string().find("none") == std::string::npos);
  }
}

TEST_CASE("numbers as Python writes them") {
  const std::pair<double, const char*> cases[] = {{0.1178668662905693, "0.1178668662905693"},
                                                  {0, "0.0"},
                                                  {1, "1.0"},
                                                  {1e-4, "0.0001"},
                                                  {0.00001, "1e-05"},
                                                  {2.5e-7, "2.5e-07"},
                                                  {1e16, "1e+16"},
                                                  {123456789.5, "123456789.5"}};
  for (const auto& [value, text] : cases) CHECK(bnb::python_number(value) == text);
}
