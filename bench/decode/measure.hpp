// bench/decode/measure.hpp — greedy decoding on the GPU, on random weights of a preset's exact shape. Each preset is
// compiled in a file of its own (7b.cpp and so on), so that they build side by side.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../random_weights.hpp"
#include "qlora/cuda.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/llama2.hpp"

namespace qlora::bench {

struct DecodeSettings {
  int batch = 1;    ///< sequences side by side
  int prompt = 16;  ///< tokens of each
  int tokens = 128;
  int runs = 5;          ///< timed, after one that is not counted
  bool adapter = false;  ///< adapters on
  bool profile = false;
};

struct DecodeFigures {
  std::vector<double> tokens_per_s;  ///< of each run, all sequences together, without the first token
  double load_s = 0.0;
  double base_gb = 0.0;  ///< codes, scales and head that one token reads
  std::string device;
  std::vector<std::pair<std::string, double>> phases;  ///< milliseconds of one token
  std::vector<std::int32_t> last;                      ///< ids of the last run's first sequence
};

template <Config C>
DecodeFigures decode(const DecodeSettings& settings) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  DecodeFigures figures;
  const RandomWeights weights(C.shape);
  auto started = Clock::now();
  Model<C, Cuda> model(weights.source());
  model.weights().init_adapters(model.backend(), {}, 1);
  if (!settings.adapter) model.context().use_base();
  figures.load_s = seconds(started);
  cuda::Context& context = model.backend().context();
  figures.device = cuda::device_info(context).name;
  const MemoryPlan plan = memory_plan(C, Run{.seq = 1}, gpu_storage);
  figures.base_gb = static_cast<double>(plan[Purpose::nf4_codes] + plan[Purpose::nf4_scales] +
                                        std::int64_t{2} * C.shape.vocab * C.shape.dim) /
                    1e9;
  Generator<C, Cuda> generator(model.context(),
                               {.sequences = settings.batch, .length = settings.prompt + settings.tokens + 1});
  std::mt19937 random(1);
  std::vector<std::vector<std::int32_t>> prompts(static_cast<std::size_t>(settings.batch));
  for (auto& prompt : prompts) {
    for (int i = 0; i < settings.prompt; ++i) {
      prompt.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(C.shape.vocab)));
    }
  }
  const GenerateOptions options{.max_new_tokens = settings.tokens, .sampling = greedy, .stop_ids = {}};
  for (int run = 0; run <= settings.runs; ++run) {
    int made = 0;
    std::vector<Generated> results = generator.generate(prompts, options, [&](int, std::int32_t) {
      if (++made == settings.batch) started = Clock::now();
      return true;
    });
    const double took = seconds(started);
    figures.last = std::move(results[0].ids);
    if (run > 0) figures.tokens_per_s.push_back((made - settings.batch) / took);
  }
  if (settings.profile) {
    GenerateOptions few = options;
    few.max_new_tokens = std::min(settings.tokens, 17);
    int made = 0;
    (void)generator.generate(prompts, few, [&](int, std::int32_t) {
      if (++made == settings.batch) cuda::set_profile(context, true);  // the prompt has been read
      return true;
    });
    figures.phases = cuda::take_profile(context);
    cuda::set_profile(context, false);
    for (auto& phase : figures.phases) phase.second /= few.max_new_tokens - 1;
  }
  return figures;
}

DecodeFigures decode_7b(const DecodeSettings& settings);
DecodeFigures decode_13b(const DecodeSettings& settings);
DecodeFigures decode_70b(const DecodeSettings& settings);

}  // namespace qlora::bench
