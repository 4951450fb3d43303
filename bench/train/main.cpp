// bench/train/main.cpp — measures one training run and prints it as one line of JSON.
//   train_speed MODEL [--batch N] [--seq N] [--steps N] [--warmup N] [--recompute none|cheap|block]
//               [--recompute-layers N] [--chunk N] [--documents N] [--dropout P] [--adamw8bit] [--resident] [--fp8]
//               [--dora] [--profile] [--fast] [--no-cudnn] [--attention-workspace BYTES] [--memory-cap BYTES]
//               [--algorithms FILE] [--probe-tokens N] [--dynamic] [--accumulate N]
// Started by torchrun or mpirun each process takes a GPU and has so many micro-batches of each step; rank 0 prints:
//   torchrun --nproc-per-node 2 --no-python build/bench/train_speed 13b
// Prints the median wall time of a step, with p10 and p90. If the algorithms file exists it is used, else it is
// written, so that a second run makes the same choice.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string_view>
#include <type_traits>

#include "../numbers.hpp"
#include "measure.hpp"

namespace {

using namespace qlora;

[[noreturn]] void usage(std::string_view what) {
  std::cerr << "train_speed: " << what << "; see the head of bench/train/main.cpp\n";
  std::exit(2);
}

double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
}

struct Arguments {
  std::string model;
  std::string algorithms_file;
  bool dynamic = false;  ///< through code whose numbers are read at run time
  bench::Settings settings;
};

Recompute recompute_of(std::string_view name) {
  if (name == "none") return Recompute::none;
  if (name == "cheap") return Recompute::cheap;
  if (name == "block") return Recompute::block;
  usage("recompute is none, cheap or block");
}

Arguments parse(int argc, char** argv) {
  Arguments all;
  bench::Settings& s = all.settings;
  int at = 1;
  const auto value = [&]() -> const char* {
    if (at + 1 >= argc) usage(std::string(argv[at]) + " needs a value");
    return argv[++at];
  };
  const auto number = [&]<class Number>(Number& target, std::type_identity_t<Number> low,
                                        std::type_identity_t<Number> high) {
    const std::string_view option = argv[at];
    target = bench::number_of<Number>(option, value(), low, high);
  };
  for (; at < argc; ++at) {
    const std::string_view option = argv[at];
    if (option == "--batch") {
      number(s.batch, 1, 65536);
    } else if (option == "--seq") {
      number(s.seq, 2, 1 << 20);
    } else if (option == "--accumulate") {
      number(s.accumulate, 1, 65536);
    } else if (option == "--steps") {
      number(s.steps, 1, 1000000);
    } else if (option == "--warmup") {
      number(s.warmup, 0, 1000000);
    } else if (option == "--recompute") {
      s.recompute = recompute_of(value());
    } else if (option == "--recompute-layers") {
      number(s.recompute_layers, -1, 1024);
    } else if (option == "--chunk") {
      number(s.loss_chunk, 1, 1 << 20);
    } else if (option == "--documents") {
      number(s.documents, 1, 65536);
    } else if (option == "--dropout") {
      number(s.dropout, 0, 0.99F);
    } else if (option == "--adamw8bit") {
      s.adamw8bit = true;
    } else if (option == "--fp8") {
      s.fp8 = true;
    } else if (option == "--dora") {
      s.dora = true;
    } else if (option == "--resident") {
      s.resident = true;
    } else if (option == "--dynamic") {
      all.dynamic = true;
    } else if (option == "--profile") {
      s.profile = true;
    } else if (option == "--fast") {
      s.device.fast = true;
    } else if (option == "--no-cudnn") {
      s.device.use_cudnn = false;
    } else if (option == "--attention-workspace") {
      number(s.device.attention_workspace, 0, INT64_MAX);
    } else if (option == "--memory-cap") {
      number(s.device.memory_cap, 0, INT64_MAX);
    } else if (option == "--probe-tokens") {
      number(s.probe_tokens, 32, 1 << 20);
    } else if (option == "--algorithms") {
      all.algorithms_file = value();
    } else if (all.model.empty() && !option.starts_with("-")) {
      all.model = option;
    } else {
      usage("what is " + std::string(option) + "?");
    }
  }
  return all;
}

void print(const Arguments& all, const bench::Figures& f) {
  const bench::Settings& s = all.settings;
  const double median = percentile(f.step_ms, 0.5);
  const double tokens = static_cast<double>(s.batch) * s.accumulate * s.launch.size * s.seq;
  const auto gib = [](std::int64_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0); };
  constexpr const char* policies[] = {"none", "cheap", "block"};
  std::printf(
      "{\"model\": \"%s\", \"dynamic\": %s, \"device\": \"%s\", \"gpus\": %d, \"batch\": %d, \"accumulate\": %d, "
      "\"seq\": %d, "
      "\"documents\": %d, "
      "\"recompute\": "
      "\"%s\", \"recompute_layers\": %d, \"dropout\": %g, \"moments\": \"%s\", \"products\": \"%s\", \"dora\": %s, "
      "\"resident\": %s, "
      "\"fast\": %s, "
      "\"cudnn\": %s, "
      "\"memory_cap\": %lld, \"steps\": %zu, \"weights\": \"random\", ",
      all.model.c_str(), all.dynamic ? "true" : "false", f.device.c_str(), s.launch.size, s.batch, s.accumulate, s.seq,
      s.documents, policies[static_cast<std::size_t>(s.recompute)], s.recompute_layers, static_cast<double>(s.dropout),
      s.adamw8bit ? "8-bit" : "float", s.fp8 ? "fp8" : "bf16", s.dora ? "true" : "false", s.resident ? "true" : "false",
      s.device.fast ? "true" : "false", s.device.use_cudnn ? "true" : "false",
      static_cast<long long>(s.device.memory_cap), f.step_ms.size());
  std::printf(
      "\"tokens_per_s\": %.1f, \"step_ms\": %.2f, \"p10_ms\": %.2f, \"p90_ms\": %.2f, \"load_s\": %.2f, "
      "\"first_step_s\": %.2f, \"loss\": %.17g, \"grad_norm\": %.17g, \"arena_gib\": %.3f, \"workspace_gib\": "
      "%.3f, \"peak_gib\": %.3f, \"driver_gib\": %.3f, \"empty_context_gib\": %.3f, \"planned_gib\": %.3f",
      tokens / median * 1e3, median, percentile(f.step_ms, 0.1), percentile(f.step_ms, 0.9), f.load_s, f.first_step_s,
      f.loss, f.grad_norm, gib(f.arena), gib(f.workspace), gib(f.arena + f.workspace), gib(f.driver), gib(f.empty),
      gib(f.planned));
  if (s.probe_tokens > 0) std::printf(", \"probe_tokens\": %d, \"probes_ms\": %.1f", s.probe_tokens, f.probes_ms);
  if (!f.phases.empty()) {
    std::printf(", \"phases_ms\": {");
    for (std::size_t i = 0; i < f.phases.size(); ++i) {
      std::printf("%s\"%s\": %.2f", i == 0 ? "" : ", ", f.phases[i].first.c_str(), f.phases[i].second);
    }
    std::printf("}");
  }
  std::printf("}\n");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Arguments all = parse(argc, argv);
    if (!all.algorithms_file.empty()) {
      std::ostringstream text;
      text << std::ifstream(all.algorithms_file).rdbuf();
      all.settings.algorithms = text.str();
    }
    all.settings.launch = dist::launch_of(dist::process_environment);
    if (all.settings.launch.size > 1) all.settings.device.device = all.settings.launch.local_rank;
    bench::Figures figures;
    if (all.model == "7b") {
      figures = all.dynamic ? bench::measure_dynamic(all.settings, llama2_7b) : bench::measure_7b(all.settings);
    } else if (all.model == "13b") {
      figures = all.dynamic ? bench::measure_dynamic(all.settings, llama2_13b) : bench::measure_13b(all.settings);
    } else if (all.model == "70b") {
      figures = all.dynamic ? bench::measure_dynamic(all.settings, llama2_70b) : bench::measure_70b(all.settings);
    } else {
      usage("the model is 7b, 13b or 70b");
    }
    if (all.settings.launch.rank > 0) return 0;
    print(all, figures);
    if (!all.algorithms_file.empty() && all.settings.algorithms.empty()) {
      std::ofstream(all.algorithms_file) << figures.algorithms;
    }
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::usage) usage(error.what());
    std::cerr << "train_speed: " << error.what() << "\n";
    return 4;
  }
  return 0;
}
