// bench/job/main.cpp — the whole job on one GPU, timed by phase and printed as one line of JSON.
//   job_speed DIR [--model 13b|7b|70b] [--steps N] [--few-layers] [--fp8] [--keep]
// DIR must not exist. The program writes a random float16 model of the exact shape to DIR/base (not timed) and the
// job's results to DIR/adapter and DIR/merged: 2 x 26 GB for 13B, 2 x 138 GB for 70B, 2 x 28 GB for its first 16 layers
// (--few-layers). Timed phases: open, load and quantize, train, write the adapter, merge on the GPU, sync to disk. DIR
// is removed at the end unless --keep is given. The base is in the page cache if memory has room for it.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string_view>

#include "../numbers.hpp"
#include "job.hpp"

namespace {

using namespace qlora;

[[noreturn]] void usage(std::string_view what) {
  std::cerr << "job_speed: " << what << "; see the head of bench/job/main.cpp\n";
  std::exit(2);
}

struct Arguments {
  std::string model = "13b";
  bool keep = false;
  bench::JobSettings settings;
};

Arguments parse(int argc, char** argv) {
  Arguments all;
  int at = 1;
  const auto value = [&]() -> const char* {
    if (at + 1 >= argc) usage(std::string(argv[at]) + " needs a value");
    return argv[++at];
  };
  for (; at < argc; ++at) {
    const std::string_view option = argv[at];
    if (option == "--model") {
      all.model = value();
    } else if (option == "--steps") {
      all.settings.steps = bench::number_of<int>(option, value(), 1, 1000000);
    } else if (option == "--few-layers") {
      all.settings.few_layers = true;
    } else if (option == "--fp8") {
      all.settings.fp8 = true;
    } else if (option == "--keep") {
      all.keep = true;
    } else if (all.settings.directory.empty() && !option.starts_with("-")) {
      all.settings.directory = option;
    } else {
      usage("what is " + std::string(option) + "?");
    }
  }
  if (all.settings.directory.empty()) usage("a directory is needed");
  if (all.model != "13b" && all.model != "7b" && all.model != "70b") usage("the model is 13b, 7b or 70b");
  return all;
}

void print(const Arguments& all, const bench::JobFigures& f) {
  const auto gib = [](std::int64_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0); };
  const double steady = (f.train_s - f.first_step_s) / std::max(1, all.settings.steps - 1);
  std::printf(
      "{\"job\": \"%s\", \"device\": \"%s\", \"layers\": %d, \"steps\": %d, \"batch\": 2, \"seq\": 2048, "
      "\"recompute\": \"none\", \"products\": \"%s\", \"weights\": \"random\", \"base_gb\": %.2f, \"base_write_s\": "
      "%.2f, \"processors\": %u, ",
      all.model.c_str(), f.device.c_str(), f.layers, all.settings.steps, all.settings.fp8 ? "fp8" : "bf16",
      static_cast<double>(f.base_bytes) * 1e-9, f.base_s, std::thread::hardware_concurrency());
  std::printf(
      "\"context_s\": %.2f, \"open_s\": %.3f, \"load_s\": %.2f, \"train_s\": %.2f, \"first_step_s\": %.2f, "
      "\"step_ms\": %.2f, \"tokens_per_s\": %.1f, \"adapter_s\": %.2f, \"lanes_s\": %.2f, \"merge_s\": %.2f, "
      "\"sync_s\": %.2f, \"total_without_sync_s\": %.2f, \"total_s\": %.2f, ",
      f.context_s, f.open_s, f.load_s, f.train_s, f.first_step_s, steady * 1e3, f.tokens / f.train_s, f.adapter_s,
      f.lanes_s, f.merge_s, f.sync_s, f.total_s - f.sync_s, f.total_s);
  std::printf(
      "\"loss\": %.5f, \"arena_gib\": %.3f, \"workspace_gib\": %.3f, \"driver_gib\": %.3f, "
      "\"merging_driver_gib\": %.3f}\n",
      f.loss, gib(f.arena), gib(f.workspace), gib(f.driver), gib(f.merging));
}

}  // namespace

int main(int argc, char** argv) {
  Arguments all;
  const std::filesystem::path& here = all.settings.directory;
  try {
    all = parse(argc, argv);
    if (std::filesystem::exists(here)) usage(here.string() + " exists");
    make_directories(here);
    const auto job = all.model == "7b" ? bench::job_7b : all.model == "13b" ? bench::job_13b : bench::job_70b;
    print(all, job(all.settings));
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::usage) usage(error.what());
    std::cerr << "job_speed: " << error.what() << "\n";
    return 4;
  }
  std::error_code ignored;
  if (!all.keep) std::filesystem::remove_all(here, ignored);
  return 0;
}
