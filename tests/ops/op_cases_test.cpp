// The op cases that judge the GPU, on the CPU: they leave no sentinel changed and no poison behind, and rounding to
// bfloat16 moves their results, but not far.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "ops/attention.hpp"
#include "ops/dora.hpp"
#include "ops/linear.hpp"
#include "ops/loss.hpp"
#include "ops/rows.hpp"

using namespace ops;

TEST_CASE("row by row") { check_yardstick(row_cases<Reference>(), row_cases<Yardstick>(), 1e-2); }
TEST_CASE("linear groups") { check_yardstick(linear_cases<Reference>(), linear_cases<Yardstick>(), 2e-2); }
TEST_CASE("linear groups with DoRA") { check_yardstick(dora_cases<Reference>(), dora_cases<Yardstick>(), 2e-2); }
TEST_CASE("linear groups whose frozen weights are multiplied in fp8") {
  check_yardstick(fp8_linear_cases<Reference>(), fp8_linear_cases<Yardstick>(), 6e-2);
}
TEST_CASE("dropout masks") { check_masks<Reference>(Reference{}); }
TEST_CASE("attention") { check_yardstick(attention_cases<Reference>(), attention_cases<Yardstick>(), 2e-2); }
TEST_CASE("the head and its loss") { check_yardstick(loss_cases<Reference>(), loss_cases<Yardstick>(), 2e-2); }
