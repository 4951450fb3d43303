// NF4 on the GPU: the bytes and bits of bitsandbytes for the golden inputs (ops/nf4.hpp), and those of the CPU for
// larger tensors of every stored type. Blocks of zeros of the golden inputs are not compared.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "ops/nf4.hpp"
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
