// NF4 on the GPU: the bytes and bits of bitsandbytes for the golden inputs (golden/README.md), and those of the CPU for
// larger tensors of every stored type. Blocks of zeros of the golden inputs are not compared.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>

#include "ops/bench.hpp"
#include "qlora/cuda.hpp"
#include "support/golden.hpp"

using namespace qlora;
using ops::Bench;

namespace {

constexpr Quant once{.double_quant = false};
constexpr Quant twice{};

const SafetensorsFile& file() {
  static const SafetensorsFile opened(golden::folder() / "nf4.safetensors");
  return opened;
}
std::vector<std::string> cases() {
  std::vector<std::string> found;
  for (const std::string& name : file().names()) {
    if (name.ends_with(".input")) found.push_back(name.substr(0, name.size() - 6));
  }
  return found;
}
std::vector<std::uint8_t> bytes(const std::string& name) {
  const auto raw = file().at(name).bytes;
  std::vector<std::uint8_t> values(raw.size());
  std::memcpy(values.data(), raw.data(), raw.size());
  return values;
}
std::vector<std::uint32_t> bits(const std::vector<float>& values) {
  std::vector<std::uint32_t> out(values.size());
  std::memcpy(out.data(), values.data(), values.size() * sizeof(float));
  return out;
}

/// Everything that quantization stores, in host memory, and what comes back.
struct Quantized {
  bool finite = true;
  std::vector<std::uint8_t> codes, absmax8;
  std::vector<float> absmax, nested, values;
  float offset = 0.0F;
};

template <class T>
std::vector<T> fetch(Bench<Cuda>& bench, const T* from, std::int64_t count) {
  std::vector<T> host(static_cast<std::size_t>(count));
  cuda::download(bench.b.context(), from, count * static_cast<std::int64_t>(sizeof(T)), host.data());
  return host;
}
template <class T>
std::vector<T> fetch(Bench<Cpu<float>>&, const T* from, std::int64_t count) {
  return {from, from + count};
}

/// `guarded`: bytes behind the codes and scales must stay zero.
template <class B>
Quantized quantize(B& backend, const TensorRef& tensor, const Quant& quant) {
  Bench<B> bench(backend);
  const Nf4Layout sizes = Nf4Layout::of(tensor.size(), quant);
  constexpr std::int64_t room = 256;
  Quantized q;
  Nf4Target to{.codes = bench.template raw<std::uint8_t>(sizes.code_bytes + room)};
  if (quant.double_quant) {
    to.absmax8 = bench.template raw<std::uint8_t>(sizes.blocks + room);
    to.nested = bench.template raw<float>(sizes.nested + room);
    to.offset = &q.offset;
  } else {
    to.absmax = bench.template raw<float>(sizes.blocks + room);
  }
  q.finite = backend.quantize(tensor, quant, to);
  q.codes = fetch(bench, to.codes, sizes.code_bytes + room);
  Nf4View view{.codes = to.codes, .offset = q.offset, .state = tensor.dtype};
  if (quant.double_quant) {
    q.absmax8 = fetch(bench, to.absmax8, sizes.blocks + room);
    q.nested = fetch(bench, to.nested, sizes.nested + room);
    view.absmax8 = to.absmax8;
    view.nested = to.nested;
  } else {
    q.absmax = fetch(bench, to.absmax, sizes.blocks + room);
    view.absmax = to.absmax;
  }
  const auto behind_is_zero = [&](auto& all) {
    if (all.empty()) return;
    CHECK(std::all_of(all.end() - room, all.end(), [](auto value) { return value == 0; }));
    all.resize(all.size() - room);
  };
  behind_is_zero(q.codes);
  behind_is_zero(q.absmax8);
  behind_is_zero(q.nested);
  behind_is_zero(q.absmax);
  if (q.finite) {
    float* out = bench.template raw<float>(tensor.size() + room);
    backend.dequantize(view, tensor.size(), quant, out);
    q.values = fetch(bench, out, tensor.size() + room);
    behind_is_zero(q.values);
  }
  backend.finish_loading();
  return q;
}

/// How many elements differ, outside blocks of zeros. `per_block` elements of both belong to one block.
template <class T>
int differences(const std::vector<T>& ours, const std::vector<T>& expected, const std::vector<float>& absmax,
                std::size_t per_block) {
  if (ours.size() != expected.size()) return -1;
  int count = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (absmax[i / per_block] != 0.0F && ours[i] != expected[i]) ++count;
  }
  return count;
}

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
  CHECK(cases().size() >= 10);
  for (const std::string& name : cases()) {
    CAPTURE(name);
    const TensorRef input = file().at(name + ".input");
    const std::vector<float> absmax = golden::floats(file(), name + ".absmax");

    const Quantized plain = quantize(gpu, input, once);
    CHECK(plain.finite);
    CHECK(bits(plain.absmax) == bits(absmax));
    CHECK(differences(plain.codes, bytes(name + ".packed"), absmax, 32) == 0);
    CHECK(differences(bits(plain.values), bits(golden::floats(file(), name + ".dequant")), absmax, 64) == 0);

    const Quantized nested = quantize(gpu, input, twice);
    CHECK(differences(nested.codes, bytes(name + ".dq.packed"), absmax, 32) == 0);
    CHECK(nested.absmax8 == bytes(name + ".dq.absmax_u8"));
    CHECK(bits({nested.offset}) == bits(golden::floats(file(), name + ".dq.offset")));
    CHECK(bits(nested.nested) == bits(golden::floats(file(), name + ".dq.nested_absmax")));
    CHECK(differences(bits(nested.values), bits(golden::floats(file(), name + ".dq.dequant")), absmax, 64) == 0);
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
        Bench<Cuda> bench(gpu);
        const Nf4Layout sizes = Nf4Layout::of(stored.tensor.size(), quant);
        Nf4View view{.state = dtype};
        Nf4Target to{.codes = bench.raw<std::uint8_t>(sizes.code_bytes)};
        if (quant.double_quant) {
          to.absmax8 = bench.raw<std::uint8_t>(sizes.blocks);
          to.nested = bench.raw<float>(sizes.nested);
          to.offset = &view.offset;
        } else {
          to.absmax = bench.raw<float>(sizes.blocks);
        }
        REQUIRE(gpu.quantize(stored.tensor, quant, to));
        view.codes = to.codes;
        view.absmax = to.absmax;
        view.absmax8 = to.absmax8;
        view.nested = to.nested;
        const auto out = bench.poisoned<bf16>("out", rows, cols, stride);
        gpu.dequantize_rows(view, rows, cols, quant, out.data, stride);
        bench.collect(out);
        for (const std::string& what : bench.outcome.damage) FAIL_CHECK(what);
        std::vector<float> expected = quantize(cpu, stored.tensor, quant).values;
        for (float& value : expected) value = rounded_to(DType::bf16, value);
        CHECK(bench.outcome.outputs[0].values == expected);
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
      Bench<Cuda> bench(gpu);
      CHECK_FALSE(gpu.place(tensor, true, bench.raw<bf16>(5000)));
      CHECK_FALSE(gpu.place(tensor, true, bench.raw<float>(5000)));
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
      Bench<Cuda> bench(gpu);
      std::vector<float> expected(static_cast<std::size_t>(count)), ours(expected.size());
      auto* narrow = bench.raw<bf16>(count);
      CHECK(gpu.place(stored.tensor, true, narrow));
      gpu.download(narrow, ours);
      CHECK(cpu.place(stored.tensor, true, expected.data()));
      CHECK(ours == expected);
      auto* wide = bench.raw<float>(count);
      CHECK(gpu.place(stored.tensor, false, wide));
      gpu.download(wide, ours);
      CHECK(cpu.place(stored.tensor, false, expected.data()));
      CHECK(ours == expected);
    }
  }
  gpu.finish_loading();
}
