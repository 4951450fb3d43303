// Trains the model that qlora_add_model compiled; this file sees declarations only.
#include <my_model.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  using Backend = qlora::Cpu<float>;
  qlora::Trainer<my::config, Backend> trainer{
      qlora::random_weights(my::config.shape, 1),
      {.dropout = 0.0F, .lr = 0.02F, .schedule = qlora::Schedule::constant, .total_steps = 40, .batch = 1, .seq = 16}};
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 16; ++i) ids.push_back(i % 4);
  const double first = trainer.step(ids, 16).loss;
  double last = first;
  for (int step = 1; step < 40; ++step) last = trainer.step(ids, 16).loss;
  qlora::Generator<my::config, Backend> generator{trainer.model()};
  const auto continuation = generator.generate({ids[0], ids[1]}, {.max_new_tokens = 3, .stop_ids = {}});
  qlora::Scorer<my::config, Backend> scorer{trainer.model()};
  const qlora::Continuations question{{ids[0], ids[1]}, {{ids[2], ids[3]}, {ids[3], ids[2]}}};
  const std::vector<double> scores = scorer.score({&question, 1})[0];
  std::printf("loss %.3f -> %.3f, %zu tokens, log p %.3f and %.3f\n", first, last, continuation.ids.size(), scores[0],
              scores[1]);
  // Random weights know nothing (ln 64 = 4.16); four tokens in turn are learned by any trainer that works.
  return std::abs(first - std::log(64.0)) < 0.5 && last < first - 0.5 && continuation.ids.size() == 3 &&
                 scores[0] > scores[1]
             ? 0
             : 1;
}
