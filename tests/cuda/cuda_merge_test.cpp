// Merging on the GPU gives what merging on the CPU gives: bit by bit, but for sums that the CPU fuses.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "qlora/cuda.hpp"
#include "support/merge_cases.hpp"

using namespace merge_cases;

namespace {

template <class Stored>
std::vector<std::byte> bytes_of(const std::vector<float>& values, Stored (*convert)(float)) {
  std::vector<std::byte> bytes(1 + values.size() * sizeof(Stored));  // begins at an odd address, as in a mapped file
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Stored stored = convert(values[i]);
    std::memcpy(bytes.data() + 1 + i * sizeof stored, &stored, sizeof stored);
  }
  return bytes;
}
std::vector<std::byte> stored_as(DType dtype, const std::vector<float>& values) {
  if (dtype == DType::f16) return bytes_of<std::uint16_t>(values, [](float value) { return to_f16(value); });
  if (dtype == DType::bf16) return bytes_of<std::uint16_t>(values, [](float value) { return to_bf16(value); });
  if (dtype == DType::f64) return bytes_of<double>(values, [](float value) { return double{value}; });
  return bytes_of<float>(values, [](float value) { return value; });
}

template <class Word>
int furthest(std::span<const std::byte> want, std::span<const std::byte> got) {
  int worst = 0;
  for (std::size_t i = 0; i < want.size(); i += sizeof(Word)) {
    Word a = 0, b = 0;
    std::memcpy(&a, want.data() + i, sizeof a);
    std::memcpy(&b, got.data() + i, sizeof b);
    const auto place = [](Word bits) {
      const auto sign = static_cast<Word>(Word{1} << (8 * sizeof(Word) - 1));
      const auto magnitude = static_cast<std::int64_t>(bits & static_cast<Word>(~sign));
      return (bits & sign) != 0 ? -magnitude : magnitude;
    };
    worst = std::max(worst, static_cast<int>(std::min<std::int64_t>(std::abs(place(a) - place(b)), 1 << 30)));
  }
  return worst;
}

/// The largest distance of two merges of a whole matrix, in neighbouring numbers of its type.
int compare(MergeLane& gpu, DType dtype, int rows, int cols, int rank, DType to = DType::f16) {
  const auto count = [](int n, int m) { return static_cast<std::size_t>(n) * static_cast<std::size_t>(m); };
  const std::vector<float> a = drawn(count(rank, cols), 0.1F, 1), b = drawn(count(rows, rank), 0.1F, 2);
  std::vector<float> w = drawn(count(rows, cols), 0.3F, 3);
  w[0] = -0.0F;
  w.back() = 1e-7F;  // subnormal in float16
  const std::vector<std::byte> stored = stored_as(dtype, w);
  const MergeAdapter adapter{.cols = cols, .rank = rank, .scale = 0.25F, .a = a, .b = b, .to = to};
  HostMergeLane host;
  host.begin(adapter);
  gpu.begin(adapter);
  int worst = 0;
  const int at_once = std::max(1, static_cast<int>(merge_piece / cols));
  const std::size_t row_bytes = static_cast<std::size_t>(cols) * size_of(dtype);
  for (int row = 0; row < rows; row += at_once) {
    const int here = std::min(at_once, rows - row);
    const auto piece = std::span(stored).subspan(1 + static_cast<std::size_t>(row) * row_bytes,
                                                 static_cast<std::size_t>(here) * row_bytes);
    const auto want = host.merge(dtype, piece, row, here);
    const auto got = gpu.merge(dtype, piece, row, here);
    REQUIRE(want.size() == count(here, cols) * size_of(to));
    REQUIRE(got.size() == want.size());
    worst = std::max(worst, to == DType::f32 ? furthest<std::uint32_t>(want, got) : furthest<std::uint16_t>(want, got));
  }
  return worst;
}

}  // namespace

TEST_CASE("matrices of any size, rank and type") {
  Cuda gpu;
  const auto lane = cuda::merge_lane(gpu.context());
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::f64}) {
    CAPTURE(name_of(dtype));
    CHECK(compare(*lane, dtype, 64, 128, 16) <= allowed_places);
    CHECK(compare(*lane, dtype, 1, 1, 1) <= allowed_places);
    CHECK(compare(*lane, dtype, 67, 131, 23) <= allowed_places);
    CHECK(compare(*lane, dtype, 5, 320, 0) == 0);
    CHECK(compare(*lane, dtype, 67, 131, 23, DType::bf16) <= allowed_places);
    CHECK(compare(*lane, dtype, 5, 320, 0, DType::f32) == 0);
  }
}
TEST_CASE("large: a matrix in several pieces") {
  Cuda gpu;
  const auto lane = cuda::merge_lane(gpu.context());
  CHECK(compare(*lane, DType::f16, 1100, 4104, 64) <= allowed_places);
}
TEST_CASE("a value that float16 does not hold") {
  Cuda gpu;
  const auto lane = cuda::merge_lane(gpu.context());
  const std::vector<float> a(8, 1.0F), b(3, 1.0F);
  std::vector<float> w(24, 65504.0F);
  const auto merged = [&](float scale) {
    lane->begin({.cols = 8, .rank = 1, .scale = scale, .a = a, .b = b});
    return lane->merge(DType::f32, std::as_bytes(std::span(w)), 0, 3);
  };
  CHECK(merged(0.0F).size() == 48);
  CHECK(merged(15.0F).size() == 48);  // rounds down to the largest
  CHECK(merged(16.0F).empty());       // half way: to infinity
  w[23] = NAN;
  CHECK(merged(0.0F).empty());
  w[23] = 0.0F;
  CHECK(merged(-1.0F).size() == 48);  // the flag is cleared
}
TEST_CASE("whole directories, a lane for each of several threads") {
  const Scratch scratch("cuda_merge_test");
  const hf::ModelDir model = write_model(scratch.path / "base", DType::bf16);
  const PeftAdapter adapter = write_adapter(scratch.path / "adapter", 20);
  Cuda gpu;
  MergeLanes lanes;
  for (int i = 0; i < 5; ++i) lanes.push_back(cuda::merge_lane(gpu.context()));
  MergeLanes host = host_merge_lanes(2);
  MergeOptions options{.max_shard_bytes = 100'000, .tokenizer_from = {}, .on_tensor = {}};
  options.dtype = DType::f16;
  merge_model(model, adapter, scratch.path / "gpu", lanes, options);
  merge_model(model, adapter, scratch.path / "gpu2", lanes, options);
  merge_model(model, adapter, scratch.path / "cpu", host, options);
  CHECK(files_of(scratch.path / "gpu") == files_of(scratch.path / "gpu2"));
  const hf::ModelDir on_gpu = hf::ModelDir::open(scratch.path / "gpu");
  const hf::ModelDir on_cpu = hf::ModelDir::open(scratch.path / "cpu");
  for (const hf::NamedShape& tensor : hf::tensor_names(shape)) {
    const auto bits = [&](const hf::ModelDir& directory) {
      const TensorRef ref = directory.source()(tensor.name).value();
      std::vector<std::uint16_t> values(ref.bytes.size() / 2);
      std::memcpy(values.data(), ref.bytes.data(), ref.bytes.size());
      return values;
    };
    const auto got = bits(on_gpu), want = bits(on_cpu);
    int worst = 0;
    for (std::size_t i = 0; i < got.size(); ++i)
      worst = std::max(worst, std::abs(place_of(got[i]) - place_of(want[i])));
    CAPTURE(tensor.name);
    CHECK(worst <= allowed_places);
  }
}
