// bench/train/measure.hpp — one training run on the GPU, on random weights of a preset's exact shape and random
// tokens. Each preset is compiled in a file of its own (7b.cpp and so on), so that they build side by side.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../random_weights.hpp"
#include "qlora/cuda.hpp"
#include "qlora/dist/launch.hpp"
#include "qlora/llama2.hpp"

namespace qlora::bench {

struct Settings {
  int batch = 2;
  int accumulate = 1;  ///< micro-batches of a step that each process has
  int seq = 2048;
  int warmup = 5;
  int steps = 20;
  int documents = 1;  ///< in each window
  Recompute recompute = Recompute::none;
  int recompute_layers = -1;
  int loss_chunk = 512;
  float dropout = 0.1F;
  bool adamw8bit = false;
  bool fp8 = false;       ///< products with the frozen weights
  bool dora = false;      ///< lengths of rows are trained too
  bool resident = false;  ///< bf16 copy of the frozen weights
  bool profile = false;
  int probe_tokens = 0;      ///< length of 8 sequences that are read and continued after the steps
  std::string algorithms{};  ///< the choice of an earlier run, as text
  cuda::ContextOptions device{};
  dist::Launch launch{};  ///< which of how many processes this is
};

struct Figures {
  std::vector<double> step_ms;
  double load_s = 0.0;
  double first_step_s = 0.0;  ///< including the choice of algorithms
  double loss = 0.0;
  double grad_norm = 0.0;
  double probes_ms = 0.0;      ///< reading the 8 sequences and 16 new tokens for each, allocation included
  std::int64_t arena = 0;      ///< all arenas
  std::int64_t workspace = 0;  ///< library workspaces, staging ring
  std::int64_t driver = 0;     ///< the driver's count at the end, empty context included
  std::int64_t empty = 0;      ///< the driver's count before the first allocation
  std::int64_t planned = 0;
  std::string device;
  std::string algorithms;
  std::vector<std::pair<std::string, double>> phases;  ///< milliseconds of one step
};

/// Random tokens; each window holds `documents` pieces of about equal length.
struct RandomData {
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> documents;

  RandomData(const Settings& settings, int vocab, unsigned seed) {
    std::mt19937 random(seed);
    const int windows = settings.batch * settings.accumulate * settings.launch.size;
    for (int i = 0; i < windows * settings.seq; ++i) {
      ids.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(vocab)));
      documents.push_back((i % settings.seq) * settings.documents / settings.seq);
    }
  }
  [[nodiscard]] Windows windows(int seq) const { return {seq, ids, ids, documents}; }
};

/// Measures training of `preset`, which is C where C has no dynamic number.
template <Config C>
Figures measure(const Settings& settings, const Config& preset = C) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  Figures figures;
  const RandomWeights weights(preset.shape);
  Cuda backend(settings.device);
  figures.empty = cuda::device_info(backend.context()).driver_used - cuda::device_info(backend.context()).workspace;
  cuda::Context& context = backend.context();
  std::unique_ptr<Comm> comm;
  if (settings.launch.size > 1) {
    ::setenv("NCCL_COMM_ID", dist::meeting_point(settings.launch).c_str(), 0);
    ::setenv("NCCL_NVLS_ENABLE", "0", 0);
    comm = backend.join(settings.launch.rank, settings.launch.size, cuda::nccl_id(), {});
  }
  if (!settings.algorithms.empty()) cuda::load_algorithms(context, settings.algorithms);
  TrainOptions options{.rank = preset.lora.rank,
                       .targets = preset.lora.targets,
                       .dora = settings.dora,
                       .dropout = settings.dropout,
                       .total_steps = std::max(TrainOptions{}.total_steps, settings.warmup + settings.steps),
                       .batch = settings.batch,
                       .seq = settings.seq,
                       .recompute = settings.recompute,
                       .recompute_layers = settings.recompute_layers,
                       .loss_chunk = settings.loss_chunk,
                       .products = settings.fp8 ? Products::fp8 : Products::bf16,
                       .adamw8bit = settings.adamw8bit,
                       .model = {.shape = preset.shape, .keep_dequantized = settings.resident},
                       .comm = comm.get()};
  auto started = Clock::now();
  auto trainer = std::make_unique<Trainer<C, Cuda>>(weights.source(), options, std::move(backend));
  figures.load_s = seconds(started);
  StepReport report;
  for (int step = 0; step < settings.warmup + settings.steps; ++step) {
    const RandomData data(settings, preset.shape.vocab, static_cast<unsigned>(step));
    started = Clock::now();
    report = trainer->step(data.windows(settings.seq));
    const double took = seconds(started);
    if (step == 0) figures.first_step_s = took;
    if (step >= settings.warmup) figures.step_ms.push_back(took * 1e3);
  }
  figures.loss = report.loss;
  figures.grad_norm = report.grad_norm;
  cuda::DeviceInfo info = cuda::device_info(context);
  const DecodeLimits probes{.sequences = settings.probe_tokens > 0 ? 8 : 0, .length = settings.probe_tokens};
  if (settings.probe_tokens > 0) {
    constexpr int new_tokens = 16;
    const std::vector<std::vector<std::int32_t>> prompts(
        8, std::vector<std::int32_t>(static_cast<std::size_t>(settings.probe_tokens - new_tokens), 5));
    started = Clock::now();
    Generator<C, Cuda> generator(trainer->context(), probes);
    (void)generator.generate(prompts, {.max_new_tokens = new_tokens, .sampling = {.temperature = 0.0F}, .stop_ids = {}},
                             {});
    figures.probes_ms = seconds(started) * 1e3;
    info.driver_used = cuda::device_info(context).driver_used;  // with the decoder's room
  }
  figures.device = info.name;
  figures.arena = trainer->core().arena_bytes_used();
  figures.workspace = info.workspace;
  figures.driver = info.driver_used;
  figures.algorithms = cuda::algorithms(context);
  Run run = run_of(options, settings.resident);
  run.probing = probes;
  figures.planned = memory_plan(preset, run, gpu_storage).total();
  if (settings.profile) {
    cuda::set_profile(context, true);
    trainer->step(RandomData(settings, preset.shape.vocab, 1000).windows(settings.seq));
    figures.phases = cuda::take_profile(context);
    cuda::set_profile(context, false);
  }
  return figures;
}

Figures measure_7b(const Settings& settings);
Figures measure_13b(const Settings& settings);
Figures measure_70b(const Settings& settings);
Figures measure_dynamic(const Settings& settings, const Config& preset);

}  // namespace qlora::bench
