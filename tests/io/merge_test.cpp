// Merging an adapter into a model directory: the values, the same bytes whatever the threads, and whole or not at all.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/merge.hpp"

#include <doctest/doctest.h>

#include "qlora/io/quantize.hpp"
#include "support/merge_cases.hpp"

using namespace merge_cases;

namespace {

const Scratch scratch("merge_test");

/// W + s B A in double.
std::vector<double> expected(const hf::ModelDir& model, const PeftAdapter& adapter, const std::string& name) {
  std::vector<float> w;
  if (const auto tensor = model.source()(name)) {
    w.resize(static_cast<std::size_t>(tensor->size()));
    read_floats(*tensor, 0, w);
  } else {
    const Nf4Ref matrix = model.source().nf4(name).value();
    w.resize(2 * matrix.codes.size());
    bnb::dequantize(matrix, 0, w);  // bnb_test compares it with bitsandbytes
  }
  std::vector<double> values(w.begin(), w.end());
  for (int layer = 0; layer < shape.layers; ++layer) {
    for (const Proj proj : all_projections) {
      const auto a_ref = adapter.source()(lora_name(layer, proj, 'A'));
      if (name != "model." + module_name(layer, proj) + ".weight" || !a_ref) continue;
      std::vector<float> a(static_cast<std::size_t>(a_ref->size()));
      read_floats(*a_ref, 0, a);
      const TensorRef b_ref = adapter.source()(lora_name(layer, proj, 'B')).value();
      std::vector<float> b(static_cast<std::size_t>(b_ref.size()));
      read_floats(b_ref, 0, b);
      const auto rank = static_cast<std::size_t>(rank_of(adapter, layer, proj));
      const std::size_t in = a.size() / rank;
      for (std::size_t i = 0; i < values.size(); ++i) {
        double sum = 0;
        for (std::size_t k = 0; k < rank; ++k) sum += double{b[i / in * rank + k]} * double{a[k * in + i % in]};
        values[i] += static_cast<double>(scale_of(adapter, layer, proj)) * sum;
      }
    }
  }
  return values;
}

MergeReport merge_with(unsigned threads, const hf::ModelDir& model, const PeftAdapter& adapter, const fs::path& out,
                       const MergeOptions& options = {
                           .max_shard_bytes = 100'000, .tokenizer_from = {}, .on_tensor = {}}) {
  MergeLanes lanes = host_merge_lanes(threads);
  return merge_model(model, adapter, out, lanes, options);
}

std::size_t entries(const fs::path& directory) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(directory), fs::directory_iterator()));
}

}  // namespace

TEST_CASE("values are W + s B A") {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    CAPTURE(name_of(dtype));
    const fs::path here = scratch.path / std::string(name_of(dtype));
    const hf::ModelDir model = write_model(here / "base", dtype);
    const PeftAdapter adapter = write_adapter(here / "adapter", 5);
    MergeOptions options{.max_shard_bytes = 100'000, .tokenizer_from = {}, .on_tensor = {}};
    if (dtype != DType::f32) options.dtype = DType::f16;  // without it: the model's own
    const MergeReport report = merge_with(3, model, adapter, here / "merged", options);
    CHECK(report.tensors == static_cast<std::int64_t>(hf::tensor_names(shape).size()));
    CHECK(report.changed == 4 * shape.layers);
    const hf::ModelDir merged = hf::ModelDir::open(here / "merged");
    CHECK(merged.dtype == (dtype == DType::f32 ? DType::f32 : DType::f16));
    const double half_place = dtype == DType::f32 ? 0x1p-24 : 0x1p-11;
    for (const hf::NamedShape& tensor : hf::tensor_names(shape)) {
      CAPTURE(tensor.name);
      const std::vector<double> want = expected(model, adapter, tensor.name);
      std::vector<float> got(want.size());
      read_floats(merged.source()(tensor.name).value(), 0, got);
      double worst = 0;  // in half a unit of the type's last place, and what float rounds before
      for (std::size_t i = 0; i < got.size(); ++i) {
        worst = std::max(worst, std::abs(double{got[i]} - want[i]) / (std::abs(want[i]) * half_place + 0x1p-20));
      }
      CHECK(worst <= 1.01);
    }
  }
}

TEST_CASE("of a model in NF4 the values are dq(W) + s B A, in the model's type and without quantization_config") {
  const fs::path here = scratch.path / "nf4";
  const hf::ModelDir plain = write_model(here / "base", DType::bf16);
  (void)quantize_model(plain, here / "quantized", {.threads = 1});
  const hf::ModelDir model = hf::ModelDir::open(here / "quantized");
  const PeftAdapter adapter = write_adapter(here / "adapter", 5);
  CHECK(merge_with(2, model, adapter, here / "merged").changed == 4 * shape.layers);
  const hf::ModelDir merged = hf::ModelDir::open(here / "merged");
  CHECK(merged.dtype == DType::bf16);
  CHECK_FALSE(merged.nf4.has_value());
  for (const hf::NamedShape& tensor : hf::tensor_names(shape)) {
    CAPTURE(tensor.name);
    const std::vector<double> want = expected(model, adapter, tensor.name);
    std::vector<float> got(want.size());
    read_floats(merged.source()(tensor.name).value(), 0, got);
    double worst = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      worst = std::max(worst, std::abs(double{got[i]} - want[i]) / (std::abs(want[i]) * 0x1p-8 + 0x1p-20));
    }
    CHECK(worst <= 1.01);
  }
}

TEST_CASE("merged weights have the model's type, or the one that is asked for") {
  const fs::path here = scratch.path / "types";
  const hf::ModelDir model = write_model(here / "base", DType::bf16);
  const PeftAdapter adapter = write_adapter(here / "adapter", 5);
  MergeOptions options{.max_shard_bytes = 100'000, .tokenizer_from = {}, .on_tensor = {}};
  merge_with(2, model, adapter, here / "bf16", options);
  options.dtype = DType::f32;
  merge_with(2, model, adapter, here / "f32", options);
  const hf::ModelDir narrow = hf::ModelDir::open(here / "bf16");
  const hf::ModelDir wide = hf::ModelDir::open(here / "f32");
  CHECK(narrow.dtype == DType::bf16);
  CHECK(wide.dtype == DType::f32);
  for (const hf::NamedShape& tensor : hf::tensor_names(shape)) {
    CAPTURE(tensor.name);
    const TensorRef in_bf16 = narrow.source()(tensor.name).value();
    const TensorRef in_f32 = wide.source()(tensor.name).value();
    std::vector<float> rounded(static_cast<std::size_t>(in_f32.size()));
    std::vector<float> got(rounded.size());
    read_floats(in_f32, 0, rounded);
    read_floats(in_bf16, 0, got);
    for (float& value : rounded) value = rounded_to(DType::bf16, value);
    CHECK(got == rounded);
  }
}

TEST_CASE("the bytes are the same for any number of threads, in several files") {
  const hf::ModelDir model = write_model(scratch.path / "threads/base", DType::bf16);
  const PeftAdapter adapter = write_adapter(scratch.path / "threads/adapter", 16);
  merge_with(1, model, adapter, scratch.path / "threads/one");
  merge_with(7, model, adapter, scratch.path / "threads/seven");
  const auto first = files_of(scratch.path / "threads/one");
  CHECK(first.size() > 4);
  CHECK(first == files_of(scratch.path / "threads/seven"));
}

TEST_CASE("a matrix in many pieces is the matrix in one") {
  constexpr int rows = 37;
  constexpr int cols = 1500;  // more than a tile of columns
  const std::vector<float> a = drawn(9 * cols, 0.1F, 1), b = drawn(rows * 9, 0.1F, 2), w = drawn(rows * cols, 0.3F, 3);
  HostMergeLane lane;
  lane.begin({.cols = cols, .rank = 9, .scale = 1.5F, .a = a, .b = b});
  const auto span = lane.merge(DType::f32, std::as_bytes(std::span(w)), 0, rows);
  const std::vector<std::byte> whole(span.begin(), span.end());
  std::vector<std::byte> pieces;
  for (int row = 0; row < rows; row += 5) {
    const int here = std::min(5, rows - row);
    const auto piece =
        std::span(w).subspan(static_cast<std::size_t>(row * cols), static_cast<std::size_t>(here * cols));
    const auto merged = lane.merge(DType::f32, std::as_bytes(piece), row, here);
    pieces.insert(pieces.end(), merged.begin(), merged.end());
  }
  CHECK(whole == pieces);
}

TEST_CASE("whole or not at all") {
  const fs::path here = scratch.path / "whole";
  const hf::ModelDir model = write_model(here / "base", DType::f32);
  const PeftAdapter adapter = write_adapter(here / "adapter", 4);
  const std::size_t before = entries(here);
  for (const std::int64_t stop_after : {0, 1, 9}) {
    const MergeOptions options{.max_shard_bytes = 100'000, .tokenizer_from = {}, .on_tensor = [&](std::int64_t done) {
                                 return done < stop_after;
                               }};
    CHECK_THROWS_WITH_AS(merge_with(2, model, adapter, here / "merged", options),
                         "interrupted while merging; nothing was written", Error);
    CHECK(entries(here) == before);
  }
  {  // a value that float16 does not hold
    const hf::ModelDir wide = write_model(here / "wide", DType::f32, 70000.0F);
    MergeOptions options{.max_shard_bytes = 100'000, .tokenizer_from = {}, .on_tensor = {}};
    options.dtype = DType::f16;
    CHECK_THROWS_WITH_AS(merge_with(2, wide, adapter, here / "merged", options), doctest::Contains("up_proj"), Error);
    CHECK_THROWS_WITH_AS(merge_with(2, wide, adapter, here / "merged", options),
                         doctest::Contains("is not finite in F16; merge to a type with more range: --dtype bf16"),
                         Error);
    CHECK(entries(here) == before + 1);
  }
  {  // the weights beneath an adapter changed, although every tensor begins as it did
    const fs::path file = here / "base/model.safetensors";
    PeftAdapter of_base = adapter;
    of_base.base_checksum = model.checksum();
    merge_with(2, model, of_base, here / "merged");
    fs::remove_all(here / "merged");
    std::string bytes = read_text(file, 1 << 30);
    fs::copy(here / "base", here / "flipped");
    std::uint64_t header = 0;
    std::memcpy(&header, bytes.data(), 8);
    bytes[8 + header + 40'000] = static_cast<char>(bytes[8 + header + 40'000] ^ 1);
    write_file_atomically(here / "flipped/model.safetensors", bytes);
    CHECK_THROWS_WITH_AS(merge_with(2, hf::ModelDir::open(here / "flipped"), adapter, here / "merged"),
                         doctest::Contains("its checksum differs"), Error);
    fs::remove_all(here / "flipped");
    PeftAdapter other = adapter;
    other.base_checksum = std::string(32, '0');
    CHECK_THROWS_WITH_AS(merge_with(2, model, other, here / "merged"),
                         doctest::Contains("although all tensors begin alike"), Error);
    CHECK(entries(here) == before + 1);
  }
  {  // an adapter of another model
    const PeftAdapter deep = write_adapter(here / "deep", 4, shape.layers + 1);
    CHECK_THROWS_WITH_AS(merge_with(2, model, deep, here / "merged"), doctest::Contains("trained on another model"),
                         Error);
    const PeftAdapter wide = write_adapter(here / "other", 4, shape.layers, 2 * shape.dim);
    CHECK_THROWS_WITH_AS(merge_with(2, model, wide, here / "merged"), doctest::Contains("trained on another model"),
                         Error);
    CHECK(entries(here) == before + 3);
  }
  {  // a target that holds files
    write_file_atomically(here / "base/other", std::string_view("x"));
    CHECK_THROWS_WITH_AS(merge_with(2, model, adapter, here / "base"), doctest::Contains("exists"), Error);
  }
}

TEST_CASE("how the base generates and its licences go along, other files do not") {
  const fs::path here = scratch.path / "carried";
  const hf::ModelDir model = write_model(here / "base", DType::f16);
  const PeftAdapter adapter = write_adapter(here / "adapter", 4);
  const std::map<std::string, std::string> carried{
      {"generation_config.json", R"({"bos_token_id": 1, "eos_token_id": [2, 7], "do_sample": true, "top_p": 0.9})"},
      {"LICENSE.txt", "terms"},
      {"Notice", "names"},
      {"USE_POLICY.md", "what not"}};
  for (const auto& [name, text] : carried) write_file_atomically(here / "base" / name, text);
  for (const char* name : {"README.md", "optimizer.pt", "generation_config.json.old"})
    write_file_atomically(here / "base" / name, std::string_view("x"));
  MergeOptions options{.tokenizer_from = {}, .files = hf::carried_files(here / "base"), .on_tensor = {}};
  CHECK(options.files == carried);
  merge_with(1, model, adapter, here / "merged", options);
  for (const auto& [name, text] : carried) CHECK(read_text(here / "merged" / name, 1000) == text);
  CHECK(entries(here / "merged") == carried.size() + 3);  // weights, config.json, and the sums of all files
  options.replace = true;                                 // a directory of such files is one of a model
  merge_with(1, model, adapter, here / "merged", options);
  write_file_atomically(here / "base" / "LICENSE.txt", std::string((1U << 20U) + 1, 'x'));
  CHECK_THROWS_WITH_AS(static_cast<void>(hf::carried_files(here / "base")), doctest::Contains("LICENSE.txt"), Error);
}
