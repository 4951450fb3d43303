// The steps that judge the GPU, with the CPU that rounds to bfloat16 in its place: it meets its own bounds.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "ops/dora_model.hpp"
#include "ops/generation.hpp"
#include "ops/steps.hpp"

using ops::Yardstick;

TEST_CASE("steps") {
  steps::check_first_step<steps::chat>(Yardstick());
  steps::check_losses<steps::chat>(Yardstick());
  steps::check_policies<steps::chat, Yardstick>([] { return Yardstick(); });
  steps::check_fp8<steps::chat, Yardstick>([] { return Yardstick(); });
  steps::check_fp8_outliers<steps::chat, Yardstick>([] { return Yardstick(); });
  steps::check_repeats<steps::chat, Yardstick>([] { return Yardstick(); });
}
TEST_CASE("DoRA") {
  dora_model::check_first_step<steps::chat>(Yardstick(), 0.1F);
  dora_model::check_policies<steps::chat, Yardstick>([] { return Yardstick(); }, 0.1F,
                                                     qlora::storage_of<Yardstick>(Yardstick().workers()));
  dora_model::check_attached(Yardstick(), 1e-2);
  dora_model::check_attached(qlora::Cpu<float>(), 1e-5);
  dora_model::check_mixed(qlora::Cpu<float>(), false, 1e-5);
  dora_model::check_trained_decoding(qlora::Cpu<float>(), 1e-5);
}
TEST_CASE("generation") {
  generation::check_logits(Yardstick());
  generation::check_greedy(Yardstick());
  generation::check_cached(Yardstick());
  generation::check_mixed(Yardstick(), 1e-2);
  generation::check_mixed(qlora::Cpu<float>(), 1e-5);
}
