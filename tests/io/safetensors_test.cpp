// The safetensors reader and writer: against files of the reference implementation, and against hostile ones.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>
#include <limits>
#include <random>
#include <string>

#include "qlora/io/safetensors.hpp"
#include "qlora/io/safetensors_writer.hpp"

using namespace qlora;
namespace fs = std::filesystem;

namespace {

const fs::path golden = fs::path(QLORA_SOURCE_DIR) / "tests/golden";

struct Scratch {
  fs::path path = fs::temp_directory_path() / ("safetensors_test-" + std::to_string(::getpid()));
  Scratch() { fs::create_directories(path); }
  ~Scratch() { fs::remove_all(path); }
} const scratch;

/// A file's bytes: length, header, data.
std::string file_of(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}
/// Empty when the reader accepts, else its message.
std::string verdict(const std::string& bytes) {
  const fs::path path = scratch.path / "case.safetensors";
  write_file_atomically(path, bytes);
  try {
    const SafetensorsFile file(path);
    for (const std::string& name : file.names()) {
      const TensorRef tensor = file.at(name);
      if (static_cast<std::size_t>(tensor.size()) * size_of(tensor.dtype) != tensor.bytes.size()) return "WRONG SIZE";
    }
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}
std::string tensor_of(const std::string& entry) { return "{\"t\":" + entry + "}"; }

}  // namespace

TEST_CASE("a golden file holds what numpy reads from it") {
  const SafetensorsFile file(golden / "mha/model/model.safetensors");
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.names().size() == 30);
  const TensorRef table = file.at("model.embed_tokens.weight");
  CHECK(table.dtype == DType::f16);
  CHECK(table.shape == std::vector<std::int64_t>{256, 64});
  std::vector<float> values(256 * 64);
  read_floats(table, 0, values);
  double sum = 0;
  double weighted = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    sum += double{values[i]};
    weighted += double{values[i]} * static_cast<double>(i % 97);
  }
  CHECK(sum == doctest::Approx(9.158172190189362).epsilon(1e-12));
  CHECK(weighted == doctest::Approx(1033.3260290026665).epsilon(1e-12));
  CHECK_FALSE(file.find("model.embed_tokens").has_value());
  CHECK_THROWS_WITH_AS((void)file.at("absent"), doctest::Contains("no tensor 'absent'"), Error);
}

TEST_CASE("writing a golden file's tensors again gives its bytes again") {
  for (const char* name : {"nf4.safetensors", "mha/model/model.safetensors", "gqa/model-bnb-4bit/model.safetensors",
                           "tied/reference.safetensors", "hd128/adapter/adapter_model.safetensors"}) {
    CAPTURE(name);
    const SafetensorsFile file(golden / name);
    std::vector<std::pair<std::string, TensorRef>> tensors;
    for (const std::string& one_name : file.names()) tensors.emplace_back(one_name, file.at(one_name));
    const fs::path path = scratch.path / "copy.safetensors";
    write_safetensors(path, tensors, file.metadata());
    const MappedFile ours(path);
    const MappedFile theirs(golden / name);
    CHECK(std::ranges::equal(ours.bytes(), theirs.bytes()));
  }
}

TEST_CASE("pieces in any order, and what the writer refuses") {
  const fs::path path = scratch.path / "pieces.safetensors";
  {
    SafetensorsWriter writer(path, {{"b", DType::u8, {3}}, {"a", DType::f16, {4}}, {"z", DType::f32, {}}});
    const std::vector<float> half{1.5F, -2.0F};
    writer.write_floats("a", 2, half);
    writer.write("b", 1, std::as_bytes(std::span("yz", 2)));
    CHECK_THROWS_WITH_AS(writer.finish(), doctest::Contains("'a'"), Error);
    writer.write_floats("a", 0, half);
    writer.write("b", 0, std::as_bytes(std::span("x", 1)));
    writer.write_floats("z", 0, std::vector<float>{7.0F});
    CHECK_FALSE(fs::exists(path));
    CHECK_THROWS_WITH_AS(writer.write("b", 3, std::as_bytes(std::span("x", 1))), doctest::Contains("'b'"), Error);
    CHECK_THROWS_WITH_AS(writer.write_floats("a", 0, std::vector<float>{65520.0F}), doctest::Contains("'a'"), Error);
    CHECK_THROWS_WITH_AS(writer.write_floats("z", 0, std::vector<float>{std::numeric_limits<float>::quiet_NaN()}),
                         doctest::Contains("not finite"), Error);
    writer.finish();
  }
  const SafetensorsFile file(path);
  CHECK(file.metadata().at("format") == "pt");
  std::vector<float> a(4);
  read_floats(file.at("a"), 0, a);
  CHECK(a == std::vector<float>{1.5F, -2.0F, 1.5F, -2.0F});
  CHECK(file.at("b").bytes[2] == std::byte{'z'});
  CHECK(file.at("z").shape.empty());
  CHECK(reinterpret_cast<std::uintptr_t>(file.at("z").bytes.data()) % 4 == 0);
  CHECK_THROWS_AS(SafetensorsWriter(path, {{"a", DType::u8, {1}}, {"a", DType::u8, {2}}}), Error);
  CHECK_THROWS_AS(SafetensorsWriter(path, {{"a", DType::f32, {1LL << 40, 1LL << 40}}}), Error);
  CHECK_THROWS_AS(SafetensorsWriter(path, {{"a\xff", DType::u8, {1}}}), Error);
}

TEST_CASE("checksums are those that xxhsum prints, and every changed bit is found") {
  CHECK(checksum({}).hex() == "99aa06d3014798d86001c324468d497f");  // of the library's own documentation
  CHECK(Checksum::parse(checksum({}).hex()) == checksum({}));
  CHECK_FALSE(Checksum::parse("99AA06d3014798d86001c324468d497f").has_value());
  const fs::path path = scratch.path / "sums.safetensors";
  {
    SafetensorsWriter writer(path, {{"a", DType::f32, {2, 3}}, {"none", DType::f32, {0}}, {"b", DType::u8, {5}}},
                             {{"format", "pt"}}, Checksums::stated);
    writer.write_floats("a", 3, std::vector<float>{4, 5, 6});  // not in order
    writer.write_floats("a", 0, std::vector<float>{1, 2, 3});
    writer.write("b", std::as_bytes(std::span("hello", 5)));
    writer.finish();
  }
  const auto read = [&](const std::string& bytes, Verify verify) {
    write_file_atomically(path, bytes);
    const SafetensorsFile file(path, verify);
    for (const std::string& name : file.names()) (void)file.verify(name);
    return file.names().size();
  };
  std::string bytes = read_text(path, 1 << 20);
  REQUIRE(read(bytes, Verify::checksums) == 3);
  CHECK(SafetensorsFile(path).verify("b").hex() == "b5e9c1ad071b3e7fc779cfaa5e523818");  // printf hello | xxhsum -H2
  for (std::size_t bit = 0; bit < bytes.size() * 8; bit += 3) {
    CAPTURE(bit);
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    CHECK_THROWS_AS((void)read(bytes, Verify::checksums), Error);
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
  }
  bytes.back() = 'O';
  CHECK_THROWS_WITH_AS((void)read(bytes, Verify::checksums),
                       doctest::Contains("the tensor 'b' is not what was written"), Error);
  CHECK(read(bytes, Verify::nothing) == 3);
}

TEST_CASE("a writer that is not finished leaves nothing behind") {
  const fs::path directory = scratch.path / "unfinished";
  fs::create_directories(directory);
  { SafetensorsWriter writer(directory / "x.safetensors", {{"a", DType::f32, {1000}}}); }
  CHECK(fs::is_empty(directory));
}

TEST_CASE("what the format allows is read") {
  CHECK(verdict(file_of("{}", "")).empty());
  CHECK(verdict(file_of("  {} \n", "")).empty());
  CHECK(verdict(file_of(tensor_of(R"({"dtype":"U8","shape":[],"data_offsets":[0,1]})"), "x")).empty());
  CHECK(verdict(file_of(tensor_of(R"({"dtype":"F32","shape":[0,5],"data_offsets":[0,0]})"), "")).empty());
  CHECK(
      verdict(file_of(tensor_of(R"({"data_offsets":[0,4],"shape":[2],"dtype":"BF16"})"), "\xff\xff\xff\xff")).empty());
}

TEST_CASE("every rule of the format has a file that breaks it") {
  const std::string good = R"({"dtype":"U8","shape":[4],"data_offsets":[0,4]})";
  REQUIRE(verdict(file_of(tensor_of(good), "abcd")).empty());
  const auto bad = [](const std::string& bytes, const char* reason) {
    const std::string said = verdict(bytes);
    CAPTURE(bytes);
    CHECK_MESSAGE(said.find(reason) != std::string::npos, "said: " << said);
  };
  bad("", "too short");
  bad("1234567", "too short");
  bad(std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10), "header");
  bad(file_of(tensor_of(good), "abcd").substr(0, 20), "cut off");
  bad(file_of("[]", ""), "does not belong");
  bad(file_of("null", ""), "does not belong");
  bad(file_of("", ""), "not valid JSON");
  bad(file_of("{}{}", ""), "not valid JSON");
  bad(file_of(std::string("{}\0\0", 4), ""), "NUL");
  bad(file_of("\xEF\xBB\xBF{}", ""), "byte order mark");
  bad(file_of(tensor_of(good), "abcde"), "data bytes");
  bad(file_of(tensor_of(good), "abc"), "data bytes");
  bad(file_of(R"({"t":)" + good + R"(,"t":)" + good + "}", "abcd"), "");
  bad(file_of(R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
              R"("t":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
              "abcd"),
      "two tensors are named");
  bad(file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
              R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
              "abcd"),
      "overlaps");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":[3],"data_offsets":[1,4]})"), "abcd"), "hole");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":[4],"data_offsets":[4,0]})"), "abcd"), "hole");
  bad(file_of(tensor_of(R"({"dtype":"F32","shape":[4],"data_offsets":[0,4]})"), "abcd"), "does not fit");
  bad(file_of(tensor_of(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})"), ""),
      "does not fit");
  bad(file_of(tensor_of(R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]})"), "abcd"), "dimension");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,4]})"), "abcd"), "number");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":[-4],"data_offsets":[0,4]})"), "abcd"), "negative");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":[4.0],"data_offsets":[0,4]})"), "abcd"), "4.0");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":[4e0],"data_offsets":[0,4]})"), "abcd"), "4e0");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":[4,1,1,1,1,1,1,1,1],"data_offsets":[0,4]})"), "abcd"), "8 dimensions");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":[[4]],"data_offsets":[0,4]})"), "abcd"), "an array");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":["4"],"data_offsets":[0,4]})"), "abcd"), "a string");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":4,"data_offsets":[0,4]})"), "abcd"), "a number");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":[4],"data_offsets":[0,4,4]})"), "abcd"), "two data_offsets");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":[4],"data_offsets":[0]})"), "abcd"), "two data_offsets");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":[4]})"), "abcd"), "must have");
  bad(file_of(tensor_of(R"({"dtype":"U8","dtype":"F32","shape":[4],"data_offsets":[0,4]})"), "abcd"),
      "two keys 'dtype'");
  bad(file_of(tensor_of(R"({"dtype":"X9","shape":[4],"data_offsets":[0,4]})"), "abcd"), "element type");
  bad(file_of(tensor_of(R"({"dtype":"U8","shape":[4],"data_offsets":[0,4],"more":{}})"), "abcd"), "unknown key");
  bad(file_of(R"({"a\u0000":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "abcd"), "NUL");
  bad(file_of(R"({"t":4})", ""), "a number");
  bad(file_of(R"({"__metadata__":{"a":1}})", ""), "a number");
  bad(file_of(R"({"__metadata__":{"a":{}}})", ""), "an object");
  bad(file_of(R"({"__metadata__":null})", ""), "null");
  bad(file_of(R"({"__metadata__":{"a":"1","a":"2"}})", ""), "two metadata keys");
  bad(file_of(R"({"__metadata__":{},"__metadata__":{}})", ""), "two keys '__metadata__'");
  bad(file_of("{\"\xff\":{}}", ""), "not valid JSON");
  bad(file_of(std::string(100'000, '['), ""), "does not belong");
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
  bad(file_of(deep, ""), "unknown key");
}

TEST_CASE("cut at every length, and 2,000 flipped bits: a message or a consistent file, never a crash") {
  const std::string whole =
      file_of(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
              R"("b":{"dtype":"U8","shape":[5],"data_offsets":[16,21]}})",
              "0123456789abcdefghijk");
  REQUIRE(verdict(whole).empty());
  for (std::size_t length = 0; length < whole.size(); ++length) CHECK_FALSE(verdict(whole.substr(0, length)).empty());
  std::mt19937 random(11);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = whole;
    const std::size_t at = random() % bytes.size();
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
    CHECK(verdict(bytes) != "WRONG SIZE");
  }
}
