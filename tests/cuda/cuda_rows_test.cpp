// Ops that work row by row, and the optimizer, on the GPU: near the float CPU as rounding to bfloat16 allows.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "ops/rows.hpp"
#include "qlora/cuda.hpp"

using namespace ops;
using qlora::Cuda;

TEST_CASE("row by row") {
  Cuda gpu;
  check_cases(row_cases<Reference>(), row_cases<Yardstick>(), row_cases<Cuda>(), gpu);
}
TEST_CASE("true widths") {
  Cuda gpu;
  check_cases(true_width_row_cases<Reference>(), true_width_row_cases<Yardstick>(), true_width_row_cases<Cuda>(), gpu);
}
TEST_CASE("swiglu's gradient in the place of its input") {
  Cuda gpu;
  Harness<Cuda> harness(gpu);
  constexpr int ffn = 704;
  constexpr int tokens = 33;
  const auto gate_up = harness.drawn<qlora::bf16>("gate_up", tokens, 2 * ffn, 2 * ffn, 3.0F, 1);
  const auto gy = harness.drawn<qlora::bf16>("gy", tokens, ffn, ffn, 1.0F, 2);
  const auto apart = harness.poisoned<qlora::bf16>("apart", tokens, 2 * ffn, 2 * ffn);
  const Cuda::ConstView<ffn> g(gy.data, tokens);
  gpu.swiglu_backward<ffn>(g, {gate_up.data, tokens}, {apart.data, tokens});
  gpu.swiglu_backward<ffn>(g, {gate_up.data, tokens}, {gate_up.data, tokens});
  harness.collect(apart);
  harness.collect(gate_up);
  CHECK(harness.outcome.damage.empty());
  CHECK(harness.outcome.outputs[0].values == harness.outcome.outputs[1].values);
}
TEST_CASE("a fault that is reported keeps the optimizer from its parameters") {
  Cuda gpu;
  Harness<Cuda> harness(gpu);
  auto* scalars = harness.raw<qlora::StepScalars>(1);
  auto* partial = harness.raw<double>(1);
  const auto p = harness.drawn<float>("p", 1, 4096, 4096, 1.0F, 1);
  const auto g = harness.drawn<float>("g", 1, 4096, 4096, 1.0F, 2);
  const auto m = harness.drawn<float>("m", 1, 4096, 4096, 1.0F, 3);
  const auto v = harness.filled<float>("v", 1, 4096, 4096, std::vector<float>(4096, 1.0F));
  std::vector<float> values(64, 1.0F);
  values[5] = INFINITY;
  const auto w = harness.filled<float>("w", 1, 64, 64, values);
  const auto x = harness.drawn<qlora::bf16>("x", 3, 64, 64, 1.0F, 4);
  const auto y = harness.poisoned<qlora::bf16>("y", 3, 64, 64);
  const auto inv = harness.poisoned<float>("inv", 1, 3, 3);
  gpu.zero(scalars);
  gpu.at(7, qlora::Site::feed_forward);
  gpu.rmsnorm<64>(1e-5F, {x.data, 3}, w.data, {y.data, 3}, inv.data);  // infinite products
  gpu.rmsnorm<64>(1e-5F, {y.data, 3}, w.data, {y.data, 3}, inv.data);  // reads them
  gpu.at(8, qlora::Site::attention);
  gpu.rmsnorm<64>(1e-5F, {y.data, 3}, w.data, {y.data, 3}, inv.data);  // not the first to meet one
  gpu.gradient_norm(4096, g.data, partial, 1.0F, scalars);
  gpu.adamw(4096, {.lr = 1.0F}, scalars, g.data, p.data, m.data, v.data);
  CHECK(gpu.read(scalars).fault == qlora::place_code(7, qlora::Site::feed_forward));
  harness.unchanged(p, g, m, v);
  for (const std::string& what : harness.outcome.damage) FAIL_CHECK(what);
  gpu.zero(scalars);
  CHECK(gpu.read(scalars).fault == 0);
}
