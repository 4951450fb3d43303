// tests/census/census.cpp — one program in three variants, whose functions census.sh compares.
//   CENSUS_one    one config
//   CENSUS_twin   and its chat twin, with another eps, rope_theta and layer count; one with a second alpha
//   CENSUS_rank   and a second rank cap
#include <array>
#include <cstdio>

#include "qlora/llama2.hpp"

namespace {

using Backend = qlora::Cpu<float>;
constexpr qlora::Config base{
    .shape = {.vocab = 64, .dim = 32, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 8, .ffn = 96},
    .lora = {.rank = 8}};

/// Trains a step, evaluates, generates: the whole life of a model.
template <qlora::Config C>
double live(float alpha) {
  qlora::Trainer<C, Backend> trainer{qlora::random_weights(C.shape, 1), {.alpha = alpha, .batch = 1, .seq = 8}};
  const std::array<std::int32_t, 8> ids{1, 2, 3, 4, 5, 6, 7, 8};
  const double loss = trainer.step(ids, 8).loss + trainer.evaluate({8, ids, ids, {}}).loss;
  qlora::Generator<C, Backend> generator{trainer.model(), {.sequences = 1, .length = 16, .step_tokens = 8}};
  return loss + static_cast<double>(generator.generate({1, 2, 3}, {.max_new_tokens = 2}).ids.size());
}

#ifdef CENSUS_twin
constexpr qlora::Config twin = [] {
  qlora::Config c = base.with(qlora::Form::chat);
  c.shape.layers = 3;
  c.norm_eps = 1e-6F;
  c.rope_theta = 500000.0F;
  return c;
}();
#endif

}  // namespace

int main() {
  double sum = live<base>(16.0F);
#ifdef CENSUS_twin
  sum += live<base>(32.0F) + live<twin>(16.0F);
#endif
#ifdef CENSUS_rank
  sum += live<base.with(qlora::Lora{.rank = 16})>(16.0F);
#endif
  std::printf("%f\n", sum);
  return 0;
}
