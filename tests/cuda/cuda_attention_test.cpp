// Attention, over the batch and over cached keys and values, on the GPU: near the float CPU as rounding to bfloat16
// allows.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "ops/attention.hpp"
#include "qlora/cuda.hpp"

using namespace ops;
using qlora::Cuda;

TEST_CASE("attention") {
  Cuda gpu;
  check_cases(attention_cases<Reference>(), attention_cases<Yardstick>(), attention_cases<Cuda>(), gpu);
}
TEST_CASE("the same bits every run") {
  Cuda gpu;
  check_repeats(attention_cases<Cuda>(), gpu);
}
TEST_CASE("own kernels, where cuDNN might be chosen") {
  Cuda gpu({.use_cudnn = false});
  check_cases(attention_cases<Reference>(), attention_cases<Yardstick>(), attention_cases<Cuda>(), gpu);
}
TEST_CASE("head sizes without kernels are refused by name") {
  Cuda gpu;
  Harness<Cuda> harness(gpu);
  std::string message;
  try {
    attention(harness, {2, 2, 16}, {33});
  } catch (const qlora::Error& error) {
    message = error.what();
  }
  CAPTURE(message);
  CHECK(message.find("16") != std::string::npos);
  CHECK(message.find("head") != std::string::npos);
}
