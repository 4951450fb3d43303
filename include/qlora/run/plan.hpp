// qlora/run/plan.hpp — the memory that training a model takes, by purpose; the largest batch that fits for each way of
// recomputing, and what `train` would choose. Needs the model's config.json, or the name of a published model: no
// weights and no compiled code.
#pragma once

#include "qlora/run/prebuilt.hpp"
#include "qlora/run/steps.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Reads nothing but the model's config.json. Throws Error: (input) for a model that cannot be read, (usage) for an
/// unknown device and for options that exclude each other.
[[nodiscard]] QLORA_STEP PlanResult plan(const PlanRequest& request);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "qlora/config.hpp"
#include "qlora/configs/llama2.hpp"
#include "qlora/configs/relatives.hpp"
#include "qlora/cpu/workspace.hpp"
#include "qlora/error.hpp"
#include "qlora/io/hf_config.hpp"
#include "qlora/io/json.hpp"
#include "qlora/model/cards.hpp"
#include "qlora/model/limits.hpp"
#include "qlora/run/device.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// The device that is planned for, and how its backend stores tensors.
struct PlanDevice {
  std::string name;
  std::int64_t bytes;
  std::int64_t reserve;
  Storage storage;

  [[nodiscard]] std::int64_t budget() const { return bytes - reserve; }
};

inline PlanDevice plan_device(const Plan& options) {
  if (options.gpu_memory.count > 0) return {"GPU memory", options.gpu_memory.count, gpu_reserve, gpu_storage};
  if (options.on == "cpu") {
    const std::int64_t bytes = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
    const auto threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    return {"this machine's memory", bytes, 0, cpu::storage(threads)};
  }
  for (const Gpu& card : gpu::all) {
    if (card.name == options.on) return {options.on, card.bytes, gpu_reserve, gpu_storage};
  }
  std::string known = "cpu";
  for (const Gpu& card : gpu::all) known += concat(", '", card.name, "'");
  throw Error(concat("no device '", options.on, "' is known; known are ", known), ErrorKind::usage);
}

/// A published model, and how long a text it reads.
struct PublishedModel {
  std::string_view name;
  const Config* config;
  int max_positions;
};

/// The numbers of a model directory, or of a published model by its name; LLaMA-2 by its size.
inline hf::ModelConfig planned_model(const std::filesystem::path& model) {
  constexpr std::array<PublishedModel, 11> published{{{"7b", &llama2_7b, 4096},
                                                      {"13b", &llama2_13b, 4096},
                                                      {"70b", &llama2_70b, 4096},
                                                      {"tinyllama-1.1b", &tinyllama_1b, 2048},
                                                      {"codellama-7b", &codellama_7b, 16384},
                                                      {"codellama-13b", &codellama_13b, 16384},
                                                      {"mistral-7b", &mistral_7b_v01, 4096},
                                                      {"llama3.1-8b", &llama31_8b, 131072},
                                                      {"smollm2-135m", &smollm2_135m, 8192},
                                                      {"smollm2-360m", &smollm2_360m, 8192},
                                                      {"smollm2-1.7b", &smollm2_1b7, 8192}}};
  for (const auto& [name, config, max_positions] : published) {
    if (model != name || std::filesystem::exists(model)) continue;
    hf::ModelConfig known;
    known.shape = config->shape;
    known.max_positions = max_positions;
    return known;
  }
  const std::filesystem::path file = model / "config.json";
  return hf::parse_config(read_json_object(file, 1U << 20), file.string());
}

/// `automatic` starts with none on the CPU, as `train` does, and with block on a GPU, where choose_recompute then looks
/// for less.
inline Recompute first_recompute(Recomputation asked, bool cpu) {
  switch (asked) {
    case Recomputation::automatic:
      return cpu ? Recompute::none : Recompute::block;
    case Recomputation::none:
      return Recompute::none;
    case Recomputation::cheap:
      return Recompute::cheap;
    case Recomputation::block:
      break;
  }
  return Recompute::block;
}

/// The largest batch whose plan fits; 0 when not even one window does.
inline int largest_batch(const Config& config, Run run, const PlanDevice& device) {
  const auto fits = [&](int batch) {
    run.batch = batch;
    return memory_plan(config, run, device.storage).total() <= device.budget();
  };
  int good = 0;
  int bad = 1;
  while (bad <= 65536 && fits(bad)) {
    good = bad;
    bad *= 2;
  }
  while (bad - good > 1) {
    const int middle = good + (bad - good) / 2;
    (fits(middle) ? good : bad) = middle;
  }
  return good;
}

inline PlanAdvice advice_for(const Config& config, const Run& run, const PlanDevice& device) {
  PlanAdvice advice;
  for (std::size_t i = 0; i < recompute_names.size(); ++i) {
    Run smaller = run;
    smaller.recompute = static_cast<Recompute>(i);
    smaller.recompute_layers = -1;
    advice.largest_batches[i] = largest_batch(config, smaller, device);
  }
  const int most = *std::max_element(advice.largest_batches.begin(), advice.largest_batches.end());
  if (most == 0) return advice;
  Run chosen = run;
  chosen.batch = std::min(run.batch, most);
  advice.recommended = choose_recompute(config, chosen, device.budget(), device.storage);
  advice.total = memory_plan(config, *advice.recommended, device.storage).total();
  return advice;
}

}  // namespace detail

[[nodiscard]] QLORA_STEP PlanResult plan(const PlanRequest& request) {
  if (request.plan.unquantized && request.device.keep_dequantized) {
    throw Error("--unquantized weights are not dequantized; leave out --keep-dequantized", ErrorKind::usage);
  }
  const hf::ModelConfig model = detail::planned_model(request.model);
  Config config{.shape = model.shape};
  config.lora = {.rank = request.training.rank, .targets = request.training.targets};
  expect_rank(config);
  const int seq = request.packing.seq > 0 ? request.packing.seq : std::min(2048, model.max_positions);
  expect_length(seq, model.max_positions, model.limited_by);
  if (request.plan.unquantized) config.quant = unquantized;
  if (model.nf4) {
    if (request.plan.unquantized) {
      throw Error(request.model.string() + " is in 4 bits; leave out --unquantized, or give the 16-bit model",
                  ErrorKind::usage);
    }
    config.quant.double_quant = model.nf4->double_quant;
  }
  const detail::PlanDevice device = detail::plan_device(request.plan);
  const bool cpu = !device.storage.wide_groups;
  expect_products(request.training.products, config, request.training.dora, !cpu && request.device.keep_dequantized);
  const DeviceOptions placed{.device = cpu ? Device::cpu : Device::cuda,
                             .keep_dequantized = request.device.keep_dequantized};
  PlanResult result;
  result.run = {.batch = request.training.batch,
                .seq = seq,
                .recompute = detail::first_recompute(request.training.recompute, cpu),
                .dropout = !request.plan.no_dropout,
                .keep_dequantized = keeps_dequantized(config.shape, placed),
                .adamw8bit = request.training.adamw8bit,
                .dora = request.training.dora,
                .products = request.training.products};
  if (request.plan.probe_tokens > 0) result.run.probing = limits_for_probes(SIZE_MAX, request.plan.probe_tokens);
  if (!cpu && request.training.recompute == Recomputation::automatic &&
      memory_plan(config, result.run, device.storage).total() <= device.budget()) {
    result.run = choose_recompute(config, result.run, device.budget(), device.storage);  // as `train` does
  }
  result.layers = config.shape.layers;
  result.bytes = memory_plan(config, result.run, device.storage);
  result.device = device.name;
  result.device_bytes = device.bytes;
  result.reserve = device.reserve;
  result.largest_batch = detail::largest_batch(config, result.run, device);
  if (!cpu) result.advice = detail::advice_for(config, result.run, device);
  return result;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
