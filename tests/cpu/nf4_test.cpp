// NF4 on the CPU: the bytes and bits of bitsandbytes (ops/nf4.hpp), code tables, odd sizes and roundings.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/cpu/nf4.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "ops/nf4.hpp"

using namespace qlora;
using nf4_cases::bits;
using nf4_cases::file;
using nf4_cases::once;
using nf4_cases::twice;

namespace {

using N = cpu::Numbers<float>;
struct Quantized {
  Nf4Layout layout;
  std::vector<std::uint8_t> codes;
  std::vector<float> absmax;
  std::vector<std::uint8_t> absmax8;
  std::vector<float> nested;
  float offset = 0.0F;

  [[nodiscard]] Nf4View view(DType state) const {
    Nf4View view{.codes = codes.data(), .offset = offset, .state = state};
    if (layout.nested > 0) {
      view.absmax8 = absmax8.data();
      view.nested = nested.data();
    } else {
      view.absmax = absmax.data();
    }
    return view;
  }
};
Quantized quantize(const std::vector<float>& w, const Quant& quant, int threads = 1) {
  Quantized q;
  q.layout = Nf4Layout::of(static_cast<std::int64_t>(w.size()), quant);
  q.codes.resize(static_cast<std::size_t>(q.layout.code_bytes));
  q.absmax.resize(static_cast<std::size_t>(q.layout.blocks));
  Nf4Target target{.codes = q.codes.data(), .absmax = q.absmax.data()};
  if (q.layout.nested > 0) {
    q.absmax8.resize(static_cast<std::size_t>(q.layout.blocks));
    q.nested.resize(static_cast<std::size_t>(q.layout.nested));
    target.absmax8 = q.absmax8.data();
    target.nested = q.nested.data();
    target.offset = &q.offset;
  }
  cpu::ThreadPool pool(threads);
  cpu::quantize_nf4(pool, w, quant, target);
  return q;
}
std::vector<float> dequantize(const Quantized& q, const Quant& quant, DType state, int threads = 1) {
  std::vector<float> out(static_cast<std::size_t>(q.layout.elements));
  cpu::ThreadPool pool(threads);
  cpu::dequantize_nf4<N>(pool, q.view(state), q.layout.elements, quant, out.data());
  return out;
}

}  // namespace

TEST_CASE("the two code tables") {
  const auto equal = [](const auto& table, const std::string& name) {
    return bits(std::vector<float>(table.begin(), table.end())) == bits(golden::floats(file(), name));
  };
  CHECK(equal(nf4::codebook, "code.nf4"));
  CHECK(equal(nf4::dynamic8, "code.dynamic8"));
}

TEST_CASE("a value on a threshold belongs below it; the codes are the nearest ones") {
  for (std::size_t i = 0; i < nf4::thresholds.size(); ++i) {
    const float threshold = nf4::thresholds[i];
    CHECK(nf4::encode(threshold) == i);
    CHECK(nf4::encode(std::nextafter(threshold, 2.0F)) == i + 1);
    const double middle = (static_cast<double>(nf4::codebook[i]) + static_cast<double>(nf4::codebook[i + 1])) / 2.0;
    CHECK(static_cast<double>(threshold) == doctest::Approx(middle).epsilon(1e-6));
  }
  CHECK(nf4::encode(-1.0F) == 0);
  CHECK(nf4::encode(1.0F) == 15);
  bool nearest = true;
  for (int i = -100'000; i <= 100'000; ++i) {
    const float x = static_cast<float>(i) * 1e-5F;
    const float distance = std::abs(x - nf4::dynamic8[nf4::encode8(x)]);
    const auto above = std::lower_bound(nf4::dynamic8.begin(), nf4::dynamic8.end(), x);
    if (above != nf4::dynamic8.end()) nearest &= distance <= std::abs(*above - x);
    if (above != nf4::dynamic8.begin()) nearest &= distance <= std::abs(x - *(above - 1));
  }
  CHECK(nearest);
}

TEST_CASE("codes, scales and values are those of bitsandbytes") {
  Cpu<float> cpu;
  nf4_cases::check_golden(cpu);
}

TEST_CASE("a block of zeros stays zero") {
  std::vector<float> w(256, 0.0F);
  for (std::size_t i = 64; i < 128; ++i) w[i] = static_cast<float>(i) / 100.0F;
  const Quantized q = quantize(w, once);
  CHECK(q.codes[0] == 0x77);
  const std::vector<float> back = dequantize(q, once, DType::f32);
  CHECK(std::all_of(back.begin(), back.begin() + 64, [](float value) { return value == 0.0F; }));
  const Quantized all_zero = quantize(std::vector<float>(256, 0.0F), twice);
  for (const float value : dequantize(all_zero, twice, DType::f32)) CHECK(value == 0.0F);
}

TEST_CASE("odd sizes, thread counts, and a second round trip") {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const std::size_t size : {1U, 63U, 65U, 16385U, 200'003U}) {
    CAPTURE(size);
    std::vector<float> w(size);
    for (float& value : w) value = normal(random);
    for (const Quant& quant : {once, twice}) {
      const Quantized q = quantize(w, quant);
      const Quantized threaded = quantize(w, quant, 3);
      CHECK(threaded.codes == q.codes);
      CHECK(threaded.absmax8 == q.absmax8);
      const std::vector<float> back = dequantize(q, quant, DType::f32);
      CHECK(dequantize(threaded, quant, DType::f32, 3) == back);
      if (size % 2 == 1) CHECK((q.codes.back() & 15U) == 0);
      if (!quant.double_quant) CHECK(quantize(back, quant).codes == q.codes);
      // The widest gap of the code is 0.304 of absmax, half of it the error; 8-bit scales add up to 4 % of a scale.
      double largest_share = 0.0;
      for (std::size_t i = 0; i < size; ++i) {
        const double error = std::abs(static_cast<double>(back[i]) - static_cast<double>(w[i]));
        largest_share = std::max(largest_share, error / static_cast<double>(q.absmax[i / 64]));
      }
      CHECK(largest_share < (quant.double_quant ? 0.2 : 0.1521));
    }
  }
}

TEST_CASE("values are rounded to the type that the weights came in") {
  const std::vector<float> w{0.1F, -0.7F, 0.33F, 1.0F};
  const Quantized q = quantize(w, once);
  const std::vector<float> wide = dequantize(q, once, DType::f32);
  const std::vector<float> half = dequantize(q, once, DType::f16);
  for (std::size_t i = 0; i < w.size(); ++i) CHECK(half[i] == rounded_to(DType::f16, wide[i]));
  CHECK(half != wide);
}
