// A model of your own: the config is a constexpr value, the trainer is generated for it.
//   g++ -std=c++20 -O2 -march=native -Iinclude -Iconfigs -I/usr/include/eigen3 examples/01_custom_config.cpp -pthread
#include <qlora/llama2.hpp>

#include <cstdio>
#include <vector>

// vocab, dim, layers, heads, kv heads (four query heads share one), head dim, ffn, tied embeddings
constexpr qlora::Shape shape{512, 256, 4, 8, 2, 32, 704, true};
constexpr qlora::Config mine{.shape = shape, .lora = {.rank = 8, .targets = qlora::Proj::q | qlora::Proj::v}};
static_assert(qlora::FitsInto<qlora::training_bytes<mine>({.batch = 2, .seq = 64}), qlora::gpu::l4_24gb.bytes>);

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
