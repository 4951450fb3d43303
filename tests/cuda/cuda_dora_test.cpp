// DoRA on the GPU: groups, steps and generation near the float CPU's as rounding to bfloat16 allows, peft's logits, and
// the same bits every run.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "ops/dora.hpp"
#include "ops/dora_model.hpp"
#include "qlora/cuda.hpp"

using ops::Reference;
using ops::Yardstick;
using qlora::Cuda;

TEST_CASE("linear groups with lengths of rows") {
  Cuda gpu;
  ops::check_cases(ops::dora_cases<Reference>(), ops::dora_cases<Yardstick>(), ops::dora_cases<Cuda>(), gpu);
}
TEST_CASE("linear groups: the same bits every run") {
  Cuda gpu;
  ops::check_repeats(ops::dora_cases<Cuda>(), gpu);
}
TEST_CASE("the first step") {
  for (const float dropout : {0.0F, 0.1F}) {
    CAPTURE(dropout);
    dora_model::check_first_step<steps::hd128>(Cuda(), dropout);
    dora_model::check_first_step<steps::chat>(Cuda(), dropout);
  }
}
TEST_CASE("long: 30 losses") {
  dora_model::check_losses<steps::chat>(Cuda(), 0.0F);
  dora_model::check_losses<steps::chat>(Cuda(), 0.1F);
}
TEST_CASE("long: recompute policies, resident weights, micro-batches, and the memory of the plan") {
  for (const float dropout : {0.0F, 0.1F}) {
    CAPTURE(dropout);
    dora_model::check_policies<steps::chat, Cuda>([] { return Cuda(); }, dropout, qlora::gpu_storage);
  }
}
TEST_CASE("peft's adapter beside its base has peft's logits") { dora_model::check_attached(Cuda(), 1e-2); }
TEST_CASE("sequences with several adapters share a pass") {
  dora_model::check_mixed(Cuda(), false, 1e-2);
  dora_model::check_mixed(Cuda(), true, 0.0);
}
TEST_CASE("trained adapters decode as they do beside a base") { dora_model::check_trained_decoding(Cuda(), 1e-2); }
