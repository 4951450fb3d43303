// Linear groups, on the GPU: near the float CPU as rounding to bfloat16 allows.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "ops/linear.hpp"
#include "qlora/cuda.hpp"

using namespace ops;
using qlora::Cuda;

TEST_CASE("linear groups") {
  Cuda gpu;
  check_cases(linear_cases<Reference>(), linear_cases<Yardstick>(), linear_cases<Cuda>(), gpu);
}
TEST_CASE("linear groups whose frozen weights are multiplied in fp8") {
  Cuda gpu;
  check_cases(fp8_linear_cases<Reference>(), fp8_linear_cases<Yardstick>(), fp8_linear_cases<Cuda>(), gpu);
}
TEST_CASE("long: true widths") {
  Cuda gpu;
  check_cases(true_width_linear_cases<Reference>(), true_width_linear_cases<Yardstick>(),
              true_width_linear_cases<Cuda>(), gpu);
}
TEST_CASE("dropout masks are those of the definition") { check_masks<Cuda>(Cuda()); }
namespace {

/// Y (T,N) of a case whose tokens come `at_once` at a time.
std::vector<float> outputs(Cuda& gpu, Harness<Cuda>& harness, const LinearCase& c, const LinearSetup<Cuda>& setup,
                           int at_once) {
  using View = Cuda::View<8>;
  using ConstView = Cuda::ConstView<8>;
  const std::span<const qlora::LinearPart<qlora::bf16, float>> parts(setup.parts);
  const int wide = c.in + c.xa();
  const auto x = harness.drawn<qlora::bf16>("x", c.tokens, wide, wide, 1.0F, 61);
  const auto residual = harness.drawn<qlora::bf16>("residual", c.tokens, c.out(), c.out(), 1.0F, 62);
  const auto y = harness.poisoned<qlora::bf16>("y", c.tokens, c.out(), c.out());
  for (int first = 0; first < c.tokens; first += at_once) {
    const int count = std::min(at_once, c.tokens - first);
    const std::int64_t row = std::int64_t{first} * c.out();
    gpu.linear(setup.group, parts, View(x.data + std::int64_t{first} * wide, count, wide),
               c.residual ? ConstView(residual.data + row, count, c.out()) : ConstView(),
               View(y.data + row, count, c.out()));
  }
  std::vector<float> values(static_cast<std::size_t>(c.tokens) * static_cast<std::size_t>(c.out()));
  gpu.download(y.data, values);
  return values;
}

}  // namespace

TEST_CASE("a token's bits do not depend on how many there are, up to two and from three on") {
  Cuda gpu;
  Harness<Cuda> harness(gpu);
  const LinearCase c{.rows = {272, 64}, .adapted = {0, 1}, .in = 1280, .rank = 16, .tokens = 32, .residual = true};
  const LinearSetup<Cuda> setup = draw_group(harness, c);
  CHECK(outputs(gpu, harness, c, setup, 2) == outputs(gpu, harness, c, setup, 1));
  const std::vector<float> together = outputs(gpu, harness, c, setup, c.tokens);
  for (const int at_once : {4, 8, 12, 16}) CHECK(outputs(gpu, harness, c, setup, at_once) == together);
}
TEST_CASE("in one order a token's bits do not depend on how many there are") {
  Cuda gpu;
  Harness<Cuda> harness(gpu);
  // read as codes; a width that the kernels for codes do not serve; frozen weights that are dense
  for (const LinearCase& c :
       {LinearCase{.rows = {272, 64}, .adapted = {0, 1}, .in = 1280, .rank = 16, .tokens = 300, .residual = true},
        LinearCase{.rows = {272, 64}, .adapted = {0}, .in = 320, .rank = 16, .tokens = 300},
        LinearCase{.rows = {512}, .adapted = {}, .in = 1280, .tokens = 300, .residual = true},
        LinearCase{.rows = {512}, .adapted = {}, .in = 1280, .tokens = 300, .resident = true}}) {
    const LinearSetup<Cuda> setup = draw_group(harness, c);
    for (const qlora::RowOrder order : {qlora::RowOrder::newest, qlora::RowOrder::prompt}) {
      CAPTURE(static_cast<int>(order));
      CAPTURE(c.in);
      gpu.order(order);
      const std::vector<float> together = outputs(gpu, harness, c, setup, c.tokens);
      for (const int at_once : {1, 2, 3, 5, 8, 17, 33, 64, 100, 256}) {
        CAPTURE(at_once);
        CHECK(outputs(gpu, harness, c, setup, at_once) == together);
      }
    }
    gpu.order(qlora::RowOrder::any);
  }
}
// The down projection of a 70B: cuBLASLt's algorithm for 256 rows splits the sum, and for 512 its parts have no room.
// Whole numbers, so that sums are exact: a has (row + k) % 3 - 1, b (2 row + k) % 5 - 2.
TEST_CASE("large: a product under an order whose algorithm has no workspace for all rows") {
  constexpr int m = 512;
  constexpr int n = 8192;
  constexpr int k = 28672;
  Cuda gpu;
  auto arena = gpu.arena(qlora::arena_bytes(std::int64_t{m} * k * 2) + qlora::arena_bytes(std::int64_t{n} * k * 2) +
                         qlora::arena_bytes(std::int64_t{m} * n * 4));
  const auto filled = [&](int rows, int factor, int period) {
    std::vector<qlora::bf16> values(static_cast<std::size_t>(rows) * k);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto row = static_cast<int>(i / k);
      const auto column = static_cast<int>(i % k);
      values[i] = qlora::bf16(static_cast<float>((factor * row + column) % period - period / 2));
    }
    auto* there = arena.template take<qlora::bf16>(std::int64_t{rows} * k);
    qlora::cuda::upload(gpu.context(), values.data(), static_cast<std::int64_t>(values.size()) * 2, there);
    return there;
  };
  const qlora::bf16* a = filled(m, 1, 3);
  const qlora::bf16* b = filled(n, 2, 5);
  auto* c = arena.template take<float>(std::int64_t{m} * n);
  std::array<std::array<float, 5>, 3> expected{};
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 5; ++j) {
      int sum = 0;
      for (int at = 0; at < k; ++at) sum += ((i + at) % 3 - 1) * ((2 * j + at) % 5 - 2);
      expected[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)] = static_cast<float>(sum);
    }
  }
  for (const qlora::RowOrder order : {qlora::RowOrder::newest, qlora::RowOrder::prompt}) {
    gpu.order(order);
    gpu.zero(c, std::int64_t{m} * n);
    qlora::cuda::matmul(gpu.context(),
                        {.m = m, .n = n, .k = k, .a = {a, k}, .b = {b, k}, .c = c, .c_stride = n, .c_float = true});
    std::vector<float> values(static_cast<std::size_t>(m) * n);
    gpu.download(c, values);
    int different = 0;
    for (std::size_t i = 0; i < values.size(); ++i) different += values[i] == expected[i / n % 3][i % n % 5] ? 0 : 1;
    CHECK(different == 0);
  }
  gpu.order(qlora::RowOrder::any);
}
TEST_CASE("the same bits every run") {
  Cuda gpu;
  check_repeats(linear_cases<Cuda>(), gpu);
  check_repeats(fp8_linear_cases<Cuda>(), gpu);
}
