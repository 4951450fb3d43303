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
  check_repeats(linear_cases<Cuda>(), gpu);
}
