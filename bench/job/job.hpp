// bench/job/job.hpp — the whole job on one GPU, from model files to merged model files, with random weights of a
// preset's exact shape. It uses the library as a program does. Each preset is compiled in its own file.
#pragma once

#include <atomic>
#include <filesystem>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "../train/measure.hpp"
#include "qlora/io/adapter.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/hf_writer.hpp"
#include "qlora/io/merge.hpp"
#include "qlora/io/open_model.hpp"
#include "qlora/io/peft.hpp"

namespace qlora::bench {

struct JobSettings {
  std::filesystem::path directory;
  int steps = 160;
  bool few_layers = false;  ///< only the first few: see few_layers_of
  bool fp8 = false;         ///< products with the frozen weights
};

/// Seconds by phase; the job is everything from `open` on.
struct JobFigures {
  double base_s = 0.0;  ///< writing the random model; not part of the job
  double context_s = 0.0;
  double open_s = 0.0;
  double load_s = 0.0;
  double first_step_s = 0.0;  ///< including the choice of algorithms
  double train_s = 0.0;       ///< all steps
  double adapter_s = 0.0;
  double lanes_s = 0.0;
  double merge_s = 0.0;  ///< until the last write returned
  double sync_s = 0.0;   ///< from there until all files were durable
  double total_s = 0.0;
  double tokens = 0.0;
  double loss = 0.0;
  std::int64_t base_bytes = 0;
  std::int64_t arena = 0;
  std::int64_t workspace = 0;
  std::int64_t driver = 0;   ///< at the end of training
  std::int64_t merging = 0;  ///< driver's count during the merge, without the trainer
  int layers = 0;
  std::string device;
};

using Clock = std::chrono::steady_clock;
[[nodiscard]] inline double seconds_since(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}

/// A model directory of random float16 weights, durable before this returns.
inline void write_base(const std::filesystem::path& target, const Config& config) {
  const hf::ModelConfig model{.shape = config.shape, .rope_theta = config.rope_theta, .norm_eps = config.norm_eps};
  const RandomWeights weights(config.shape);
  const TensorSource source = weights.source();
  hf::ModelWriter writer(target, model);
  const unsigned processors = std::max(1U, std::thread::hardware_concurrency());
  const std::vector<hf::NamedShape> tensors = writer.tensors_for(processors);
  std::atomic<std::size_t> next{0};
  std::vector<std::future<void>> threads;
  const auto work = [&] {
    for (std::size_t i = next.fetch_add(1); i < tensors.size(); i = next.fetch_add(1)) {
      const TensorRef tensor = source(tensors[i].name).value();
      if (tensor.dtype == DType::f16) {
        writer.write_bytes(tensors[i].name, tensor.bytes);
        continue;
      }
      std::vector<float> values(static_cast<std::size_t>(tensor.size()));
      read_floats(tensor, 0, values);
      writer.write(tensors[i].name, values);
    }
  };
  for (unsigned i = 0; i < processors; ++i) {
    threads.push_back(std::async(std::launch::async, work));
  }
  for (auto& thread : threads) thread.get();
  std::vector<std::future<void>> files;
  for (std::size_t file = 0; file < writer.files(); ++file) {
    files.push_back(std::async(std::launch::async, [&writer, file] { writer.finish_file(file); }));
  }
  for (auto& file : files) file.get();
  writer.finish();
}

/// 16 windows of 2048 random tokens, two a step, in the order of a data set's epochs.
template <Config C>
void train(Trainer<C, Cuda>& trainer, const JobSettings& settings, JobFigures& figures) {
  constexpr int windows = 16;
  constexpr int per_step = 2;
  constexpr int seq = 2048;
  std::vector<std::int32_t> data;
  std::mt19937 random(7);
  for (int i = 0; i < windows * seq; ++i) {
    data.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(C.shape.vocab)));
  }
  DataOrder order(windows, per_step, 42);
  std::vector<std::int32_t> ids;
  for (int step = 0; step < settings.steps; ++step) {
    ids.clear();
    for (const std::uint32_t window : order.step(step)) {
      const auto first = data.begin() + static_cast<std::ptrdiff_t>(window) * seq;
      ids.insert(ids.end(), first, first + seq);
    }
    const auto started = Clock::now();
    const StepReport report = trainer.step({seq, ids, ids, {}});
    if (step == 0) figures.first_step_s = seconds_since(started);
    figures.loss = report.loss;
    figures.tokens += static_cast<double>(report.tokens);
  }
}

template <Config C>
JobFigures run_job(const JobSettings& settings) {
  namespace fs = std::filesystem;
  JobFigures figures;
  const fs::path base = settings.directory / "base";
  const fs::path adapter = settings.directory / "adapter";
  const fs::path merged = settings.directory / "merged";
  const auto started = Clock::now();
  if (!fs::exists(base)) write_base(base, C);
  figures.base_s = seconds_since(started);
  figures.base_bytes = 2 * parameters(C.shape);
  figures.layers = C.shape.layers;

  const auto begun = Clock::now();
  auto lap = [at = begun]() mutable {
    const double took = seconds_since(at);
    at = Clock::now();
    return took;
  };
  Cuda backend;
  cuda::Context& context = backend.context();
  figures.context_s = lap();
  {
    const hf::ModelDir model = hf::ModelDir::open(base);
    figures.open_s = lap();
    TrainOptions options{.rank = C.lora.rank,
                         .total_steps = settings.steps,
                         .recompute = Recompute::none,
                         .loss_chunk = 1024,
                         .products = settings.fp8 ? Products::fp8 : Products::bf16};
    options.model = model_options(model);
    auto trainer = std::make_unique<Trainer<C, Cuda>>(model.source(), options, backend);
    figures.load_s = lap();
    train<C>(*trainer, settings, figures);
    figures.train_s = lap();
    const cuda::DeviceInfo info = cuda::device_info(context);
    figures.device = info.name;
    figures.arena = trainer->core().arena_bytes_used();
    figures.workspace = info.workspace;
    figures.driver = info.driver_used;
    write_adapter(adapter, trainer->model(), {.dropout = 0.1F});
  }
  figures.adapter_s = lap();
  const hf::ModelDir model = hf::ModelDir::open(base);
  MergeLanes lanes;
  for (unsigned i = 0; i < std::clamp(std::thread::hardware_concurrency(), 1U, most_merge_threads); ++i) {
    lanes.push_back(cuda::merge_lane(context));
  }
  figures.merging = cuda::device_info(context).driver_used;
  figures.lanes_s = lap();
  const MergeReport report = merge_model(model, PeftAdapter::open(adapter), merged, lanes);
  figures.merge_s = report.written_s;
  figures.sync_s = report.durable_s;
  (void)hf::ModelDir::open(merged);
  figures.total_s = seconds_since(begun);
  return figures;
}

/// Four for a quick look. Sixteen for 70B: base and merged model of all 80 layers take 138 GB each, those of sixteen
/// 28 GB each, which fit a disk of 64 GiB. A layer is loaded, trained and merged as in the whole model.
[[nodiscard]] constexpr int few_layers_of(const Shape& shape) { return shape.layers > 40 ? 16 : 4; }

/// The config with few layers; it shares all code with the whole one.
[[nodiscard]] constexpr Config cut(Config config) {
  config.shape.layers = few_layers_of(config.shape);
  return config;
}

template <Config C>
JobFigures run_job_of(const JobSettings& settings) {
  return settings.few_layers ? run_job<cut(C)>(settings) : run_job<C>(settings);
}

JobFigures job_7b(const JobSettings& settings);
JobFigures job_13b(const JobSettings& settings);
JobFigures job_70b(const JobSettings& settings);

}  // namespace qlora::bench
