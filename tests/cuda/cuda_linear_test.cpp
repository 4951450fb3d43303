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
TEST_CASE("long: true widths") {
  Cuda gpu;
  check_cases(true_width_linear_cases<Reference>(), true_width_linear_cases<Yardstick>(),
              true_width_linear_cases<Cuda>(), gpu);
}
TEST_CASE("dropout masks are those of the definition") { check_masks<Cuda>(Cuda()); }
TEST_CASE("the same bits every run") {
  Cuda gpu;
  for (const Case<Cuda>& one : linear_cases<Cuda>()) {
    INFO("case ", one.name);
    const Outcome first = outcome_of(gpu, one);
    const Outcome second = outcome_of(gpu, one);
    REQUIRE(first.outputs.size() == second.outputs.size());
    for (std::size_t i = 0; i < first.outputs.size(); ++i) {
      CHECK(first.outputs[i].values == second.outputs[i].values);
    }
  }
}
