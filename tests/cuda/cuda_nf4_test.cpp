// NF4 on the GPU: the bytes and bits of bitsandbytes for the golden inputs (ops/nf4.hpp), and those of the CPU for
// larger tensors of every stored type. Blocks of zeros of the golden inputs are not compared.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "ops/nf4.hpp"
#include "qlora/cpu/fp8.hpp"
#include "qlora/cuda.hpp"

using namespace qlora;
using namespace nf4_cases;
using ops::Harness;

namespace ops {

template <class T>
std::vector<T> fetch(Harness<Cuda>& harness, const T* from, std::int64_t count) {
  std::vector<T> host(static_cast<std::size_t>(count));
  cuda::download(harness.b.context(), from, count * static_cast<std::int64_t>(sizeof(T)), host.data());
  return host;
}

}  // namespace ops

namespace {

/// Random values of a stored type, with outliers, tiny ones and a block of zeros.
struct Stored {
  Stored(DType dtype, std::int64_t count, std::uint64_t seed) {
    ops::Random random(seed);
    const std::size_t width = size_of(dtype);
    memory.resize(static_cast<std::size_t>(count) * width);
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      float value = random.value(0.02F) + random.value(1e-4F) * 0.3F;
      if (i % 4099 == 17) value *= 40.0F;
      if (i % 1031 == 5) value *= 1e-3F;
      if (i / 64 == 3) value = 0.0F;
      if (dtype == DType::f32) {
        std::memcpy(&memory[i * width], &value, width);
      } else {
        const std::uint16_t half = dtype == DType::f16 ? to_f16(value) : to_bf16(value);
        std::memcpy(&memory[i * width], &half, width);
      }
    }
    tensor = {dtype, {count}, memory};
  }
  std::vector<std::byte> memory;
  TensorRef tensor;
};

}  // namespace

TEST_CASE("codes, scales and values are those of bitsandbytes") {
  Cuda gpu;
  check_golden(gpu);
}

namespace {

/// Weights in e4m3 as the CPU makes them from a dequantized matrix; `out` (rows,cols), or (cols,rows).
std::vector<float> rounded_weights(const std::vector<float>& values, int rows, int cols, float largest,
                                   bool transposed) {
  const fp8::Scale scale = fp8::scale_of(largest);
  std::vector<float> out(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t row = i / static_cast<std::size_t>(cols);
    const std::size_t column = i % static_cast<std::size_t>(cols);
    out[transposed ? column * static_cast<std::size_t>(rows) + row : i] = fp8::rounded(values[i] * scale.inverse);
  }
  return out;
}
const float* put(Harness<Cuda>& harness, const std::vector<float>& host) {
  auto* there = harness.raw<float>(static_cast<std::int64_t>(host.size()));
  harness.b.upload(host, there);
  return there;
}
std::vector<float> decoded(const std::vector<std::uint8_t>& bits) {
  std::vector<float> out;
  for (const std::uint8_t one : bits) out.push_back(fp8::decode(one));
  return out;
}

}  // namespace

TEST_CASE("weights in e4m3, as they are and transposed: the values of the CPU") {
  Cuda gpu;
  Cpu<float> cpu;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const bool twice : {false, true}) {
      for (const auto& [rows, cols] : {std::pair{16, 64}, std::pair{144, 192}, std::pair{384, 1088}}) {
        CAPTURE(name_of(dtype));
        CAPTURE(rows);
        const Stored stored(dtype, std::int64_t{rows} * cols, 77);
        const Quant quant{.double_quant = twice};
        const Quantized host = quantize(cpu, stored.tensor, quant);
        Harness<Cuda> harness(gpu);
        const Nf4View view{.codes = harness.bytes(host.codes),
                           .absmax = twice ? nullptr : put(harness, host.absmax),
                           .absmax8 = twice ? harness.bytes(host.absmax8) : nullptr,
                           .nested = twice ? put(harness, host.nested) : nullptr,
                           .offset = host.offset,
                           .state = dtype,
                           .largest = 0.9F * *std::max_element(host.values.begin(), host.values.end())};  // saturates
        const std::vector<cuda::Part> parts(2, {.weight = {.rows = rows, .nf4 = view}});
        const cuda::GroupArgs group{.in = cols, .quant = quant};
        const std::int64_t count = std::int64_t{2} * rows * cols;
        auto* out = harness.raw<std::uint8_t>(count);
        auto* scales = harness.raw<float>(std::max(2 * rows, cols));
        std::vector<float> both = host.values;
        both.insert(both.end(), host.values.begin(), host.values.end());
        for (const bool transposed : {false, true}) {
          CAPTURE(transposed);
          cuda::dequantize_group_fp8(gpu.context(), group, parts, transposed, out, scales);
          CHECK(decoded(ops::fetch(harness, out, count)) ==
                rounded_weights(both, 2 * rows, cols, view.largest, transposed));
          CHECK(ops::fetch(harness, scales, transposed ? cols : 2 * rows) ==
                std::vector<float>(static_cast<std::size_t>(transposed ? cols : 2 * rows), view.largest / 448.0F));
        }
      }
    }
  }
}

TEST_CASE("rows in e4m3: the values and scales of the CPU") {
  Cuda gpu;
  for (const int cols : {64, 1088, 28672, 57344}) {
    CAPTURE(cols);
    constexpr int rows = 5;
    Harness<Cuda> harness(gpu);
    const int stride = cols + 16;
    std::vector<float> values(static_cast<std::size_t>(rows) * static_cast<std::size_t>(stride));
    ops::Random random(5);
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = i / static_cast<std::size_t>(stride) == 2 ? 0.0F : random.value(3.0F);
    values[7] *= 128.0F;
    const auto x = harness.filled<bf16>("x", rows, stride, stride, values);
    auto* out = harness.raw<std::uint8_t>(std::int64_t{rows} * cols);
    auto* scales = harness.raw<float>(rows);
    cuda::quantize_rows_fp8(gpu.context(), rows, cols, {x.data, stride}, out, scales);
    const std::vector<float> made = decoded(ops::fetch(harness, out, std::int64_t{rows} * cols));
    const std::vector<float> scale = ops::fetch(harness, scales, rows);
    std::vector<float> expected;
    for (int t = 0; t < rows; ++t) {
      const float* row = values.data() + static_cast<std::ptrdiff_t>(t) * stride;
      float most = 0.0F;
      for (int i = 0; i < cols; ++i) most = std::max(most, std::abs(row[i]));
      CHECK(scale[static_cast<std::size_t>(t)] == fp8::scale_of(most).scale);
      for (int i = 0; i < cols; ++i) expected.push_back(fp8::rounded(row[i] * fp8::scale_of(most).inverse));
    }
    CHECK(made == expected);
  }
}

TEST_CASE("every stored type and size: the bits of the CPU") {
  Cuda gpu;
  Cpu<float> cpu;
  std::uint64_t seed = 0;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const std::int64_t count : {1, 63, 64, 65, 4096 + 8, 16384 * 3 + 1, 200'003, 3'000'000}) {
      const Stored stored(dtype, count, ++seed);
      for (const Quant& quant : {once, twice}) {
        INFO(name_of(dtype), " ", count, " ", quant.double_quant);
        const Quantized expected = quantize(cpu, stored.tensor, quant);
        const Quantized ours = quantize(gpu, stored.tensor, quant);
        CHECK(ours.codes == expected.codes);
        CHECK(bits(ours.absmax) == bits(expected.absmax));
        CHECK(ours.absmax8 == expected.absmax8);
        CHECK(bits(ours.nested) == bits(expected.nested));
        CHECK(bits({ours.offset}) == bits({expected.offset}));
        CHECK(ours.values == expected.values);
      }
    }
  }
}

TEST_CASE("rows for products: values rounded to bfloat16, gaps untouched") {
  Cuda gpu;
  Cpu<float> cpu;
  for (const DType dtype : {DType::f16, DType::bf16}) {
    for (const auto& [rows, cols, stride] :
         {std::tuple(3, 64, 64), std::tuple(65, 704, 704 + 64), std::tuple(128, 256, 264)}) {
      const Stored stored(dtype, std::int64_t{rows} * cols, 91);
      for (const Quant& quant : {once, twice}) {
        Harness<Cuda> harness(gpu);
        const Nf4Layout sizes = Nf4Layout::of(stored.tensor.size(), quant);
        Nf4View view{.state = dtype};
        Nf4Target to{.codes = harness.raw<std::uint8_t>(sizes.code_bytes)};
        if (quant.double_quant) {
          to.absmax8 = harness.raw<std::uint8_t>(sizes.blocks);
          to.nested = harness.raw<float>(sizes.nested);
          to.offset = &view.offset;
        } else {
          to.absmax = harness.raw<float>(sizes.blocks);
        }
        REQUIRE(gpu.quantize(stored.tensor, quant, to));
        view.codes = to.codes;
        view.absmax = to.absmax;
        view.absmax8 = to.absmax8;
        view.nested = to.nested;
        const auto out = harness.poisoned<bf16>("out", rows, cols, stride);
        gpu.dequantize_rows(view, rows, cols, quant, out.data, stride);
        harness.collect(out);
        for (const std::string& what : harness.outcome.damage) FAIL_CHECK(what);
        std::vector<float> expected = quantize(cpu, stored.tensor, quant).values;
        for (float& value : expected) value = rounded_to(DType::bf16, value);
        CHECK(harness.outcome.outputs[0].values == expected);
      }
    }
  }
  gpu.finish_loading();
}

TEST_CASE("what is not finite is not quantized, and is told of by place") {
  Cuda gpu;
  for (const float bad : {INFINITY, NAN}) {
    for (const std::size_t at : {0U, 777U, 4999U}) {
      std::vector<float> values(5000, 0.5F);
      values[at] = bad;
      const TensorRef tensor{DType::f32, {5000}, std::as_bytes(std::span<const float>(values))};
      CHECK_FALSE(quantize(gpu, tensor, twice).finite);
      CHECK_FALSE(quantize(gpu, tensor, once).finite);
      Harness<Cuda> harness(gpu);
      CHECK_FALSE(gpu.place(tensor, true, harness.raw<bf16>(5000)));
      CHECK_FALSE(gpu.place(tensor, true, harness.raw<float>(5000)));
    }
  }
  gpu.finish_loading();
}

TEST_CASE("tensors into bfloat16 and float: the values of the CPU") {
  Cuda gpu;
  Cpu<float, Rounding::bf16> cpu;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const std::int64_t count : {1, 9, 4097, 1'500'001}) {
      const Stored stored(dtype, count, 92);
      Harness<Cuda> harness(gpu);
      std::vector<float> expected(static_cast<std::size_t>(count)), ours(expected.size());
      auto* narrow = harness.raw<bf16>(count);
      CHECK(gpu.place(stored.tensor, true, narrow));
      gpu.download(narrow, ours);
      CHECK(cpu.place(stored.tensor, true, expected.data()));
      CHECK(ours == expected);
      auto* wide = harness.raw<float>(count);
      CHECK(gpu.place(stored.tensor, false, wide));
      gpu.download(wide, ours);
      CHECK(cpu.place(stored.tensor, false, expected.data()));
      CHECK(ours == expected);
    }
  }
  gpu.finish_loading();
}
