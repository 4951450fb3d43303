// A model of your own in thirty lines: the config is a constexpr value, the trainer is generated for it.
//   g++ -std=c++20 -O2 -march=native -Iinclude -Iconfigs -I/usr/include/eigen3 examples/01_custom_config.cpp -pthread
#include <qlora/llama2.hpp>

#include <cstdio>
#include <vector>

// dim 256, 4 layers, 8 query heads on 2 kv heads, tied embeddings; NF4, adapters of rank 8 on q and v only
constexpr qlora::Config mine{.shape = {.vocab = 512,
                                       .dim = 256,
                                       .layers = 4,
                                       .heads = 8,
                                       .kv_heads = 2,
                                       .head_dim = 32,
                                       .ffn = 704,
                                       .tied_embeddings = true},
                             .lora = {.rank = 8, .targets = qlora::Proj::q | qlora::Proj::v}};
static_assert(qlora::fits<mine>(qlora::gpu::t4_16gb, {.batch = 2, .seq = 64}));

int main() {
  qlora::Trainer<mine, qlora::Cpu<>> trainer(
      qlora::random_weights(mine.shape, /*seed=*/1),
      {.alpha = 16.0F, .dropout = 0.05F, .lr = 1e-2F, .total_steps = 10, .batch = 2, .seq = 64});

  std::vector<std::int32_t> tokens;  // two windows of 64 tokens: a pattern that can be learned
  for (int i = 0; i < 2 * 64; ++i) tokens.push_back(3 + i % 7);

  for (int step = 0; step < 10; ++step) {
    const qlora::StepReport report = trainer.step(tokens, 64);
    std::printf("step %2d  loss %.4f  gradient norm %.3f\n", report.step, report.loss, report.grad_norm);
  }
}
