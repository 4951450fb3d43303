// The head and its loss, on the GPU: near the float CPU as rounding to bfloat16 allows.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "ops/loss.hpp"
#include "qlora/cuda.hpp"

using namespace ops;
using qlora::Cuda;

TEST_CASE("the head and its loss") {
  Cuda gpu;
  check_cases(loss_cases<Reference>(), loss_cases<Yardstick>(), loss_cases<Cuda>(), gpu);
}
