// bench/decode/measure.hpp — decoding on the GPU, on random weights of a preset's exact shape. Each preset is
// compiled in a file of its own (7b.cpp and so on), so that they build side by side.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../random_weights.hpp"
#include "qlora/cuda.hpp"
#include "qlora/generate/scheduler.hpp"
#include "qlora/llama2.hpp"

namespace qlora::bench {

struct DecodeSettings {
  int batch = 1;    ///< sequences side by side
  int prompt = 16;  ///< tokens of each
  int tokens = 128;
  int runs = 5;         ///< timed, after one that is not counted
  int adapters = 0;     ///< sets; sequences have them in turn, 0: the base alone
  bool base = false;    ///< and every other sequence has none
  bool sample = false;  ///< temperature 0.7, top_p 0.9; else greedy
  bool profile = false;
  bool one_order = false;  ///< a sequence has the same bits beside any others
};

struct DecodeFigures {
  std::vector<double> tokens_per_s;  ///< of each run, all sequences together, without the first token
  double load_s = 0.0;
  double base_gb = 0.0;  ///< codes, scales and head that one token reads
  std::string device;
  std::vector<std::pair<std::string, double>> phases;  ///< milliseconds of one token
  std::vector<std::int32_t> last;                      ///< the fifth id of one sequence in each run
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
  for (int i = 0; i < settings.adapters; ++i) {
    auto set = std::make_shared<AdapterSet<Cuda>>(model.weights().layout());
    set->init(model.backend(), {}, static_cast<std::uint64_t>(i + 1));
    model.attach("adapter" + std::to_string(i), std::move(set));
  }
  figures.load_s = seconds(started);
  cuda::Context& context = model.backend().context();
  figures.device = cuda::device_info(context).name;
  const MemoryPlan plan = memory_plan(C, Run{.seq = 1}, gpu_storage);
  figures.base_gb = static_cast<double>(plan[Purpose::nf4_codes] + plan[Purpose::nf4_scales] +
                                        std::int64_t{2} * C.shape.vocab * C.shape.dim) /
                    1e9;
  Scheduler<code_of(C), Cuda> scheduler(
      model.context(),
      {.sequences = settings.batch, .length = settings.prompt + settings.tokens + 1, .one_order = settings.one_order});
  std::mt19937 random(1);
  std::vector<Request> requests(static_cast<std::size_t>(settings.batch));
  for (std::size_t n = 0; n < requests.size(); ++n) {
    Request& request = requests[n];
    request.max_new_tokens = settings.tokens;
    request.sampling = settings.sample ? Sampling{.temperature = 0.7F, .top_p = 0.9F, .seed = n} : greedy;
    if (settings.adapters > 0 && !(settings.base && n % 2 == 1)) {
      const auto turn = settings.base ? n / 2 : n;
      request.variant.adapter = "adapter" + std::to_string(turn % static_cast<std::size_t>(settings.adapters));
    }
  }
  // Timed from the first token of the last sequence to the last token of the first one: what is in between is decoding
  // of all sequences side by side, without any prompt.
  const auto run = [&](bool counts, int profiled) {
    for (Request& request : requests) {  // other prompts each time, so that no cache has them
      request.prompt.clear();
      for (int i = 0; i < settings.prompt; ++i) {
        request.prompt.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(C.shape.vocab)));
      }
      (void)scheduler.submit(request);
    }
    std::map<Ticket, int> made;
    bool decoding = false;
    bool ended = false;
    int steps = 0;
    int timed = 0;
    bool more = true;
    while (more) {
      more = scheduler.step([&](const Progressed& news) {
        const int count = made[news.ticket] += static_cast<int>(news.tokens.size());
        if (decoding) timed += static_cast<int>(news.tokens.size());
        if (counts && count == 5 && news.ticket % settings.batch == 0) figures.last.push_back(news.tokens[0].token.id);
        ended = ended || news.finish != Finish::running;
      });
      if (decoding && ended && counts) {
        figures.tokens_per_s.push_back(timed / seconds(started));
        counts = false;
      }
      if (decoding && profiled > 0 && ++steps == profiled) {
        figures.phases = cuda::take_profile(context);
        cuda::set_profile(context, false);
        for (auto& phase : figures.phases) phase.second /= profiled;
        profiled = 0;
      }
      if (!decoding && static_cast<int>(made.size()) == settings.batch) {
        decoding = true;
        started = Clock::now();
        if (profiled > 0) cuda::set_profile(context, true);
      }
    }
  };
  for (int i = 0; i <= settings.runs; ++i) run(i > 0, 0);
  if (settings.profile) run(false, std::min(settings.tokens - 2, 16));
  return figures;
}

DecodeFigures decode_7b(const DecodeSettings& settings);
DecodeFigures decode_13b(const DecodeSettings& settings);
DecodeFigures decode_70b(const DecodeSettings& settings);

}  // namespace qlora::bench
