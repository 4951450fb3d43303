// LLaMA-2 7B: trains adapters of rank 64 on the windows that `qlora pack` wrote, and saves them for PEFT.
//   llama2_7b MODEL_DIR DATA_DIR ADAPTER_DIR
// Another model takes another preset, GPU and batch: examples/CMakeLists.txt makes such copies of this file.
#include <qlora/io/adapter.hpp>
#include <qlora/io/open_model.hpp>
#include <qlora/llama2.hpp>
#include <qlora/text/step_windows.hpp>

#include <chrono>
#include <cstdio>

constexpr qlora::Config mine = qlora::llama2_7b.with(qlora::Lora{.rank = 64});
static_assert(qlora::FitsInto<qlora::training_bytes<mine>({.batch = 2}), qlora::gpu::a10g_24gb.bytes>);
#ifdef QLORA_CUDA
using Backend = qlora::Cuda;
#else
using Backend = qlora::Cpu<>;
#endif
int main(int argc, char** argv) try {
  QLORA_EXPECTS(argc == 4, "usage: llama2_7b MODEL_DIR DATA_DIR ADAPTER_DIR");
  const auto model = qlora::hf::ModelDir::open(argv[1]);
  const auto data = qlora::TokenDataset::open(argv[2]);
  qlora::TrainOptions options{.batch = 2, .seq = data.seq()};
  options.model = qlora::model_options(model);
  qlora::DataOrder order(static_cast<int>(data.size()), options.batch, options.seed);
  options.total_steps = 3 * order.steps_per_epoch();
  qlora::Trainer<mine, Backend> trainer(model.source(), options);
  qlora::StepWindows windows;
  for (int step = 0; step < options.total_steps; ++step) {
    const auto started = std::chrono::steady_clock::now();
    const auto report = trainer.step(windows.gather(data, order.step(step)));
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
    const double speed = static_cast<double>(report.tokens) / took.count();
    std::printf("step %d of %d  loss %.4f  %.0f tok/s\n", report.step, options.total_steps, report.loss, speed);
  }
  qlora::write_adapter(argv[3], trainer.model(), {.dropout = options.dropout, .base_fingerprint = model.fingerprint()});
} catch (const qlora::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return static_cast<int>(error.kind());
}
