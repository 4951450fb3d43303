// variants.cpp — the list of compiled shapes, and what is said about one that is not in it.
#include <algorithm>
#include <string>

#include "qlora/error.hpp"
#include "variant.hpp"

namespace qlora::program {

std::vector<std::unique_ptr<Variant>>& variants() {
  static std::vector<std::unique_ptr<Variant>> list;
  return list;
}

namespace {

/// Whether code for a config runs a model of this shape with such adapters.
bool serves(const Config& config, const Shape& shape, const Lora& adapters) {
  if (!is_dynamic(config.shape) && config.shape != shape) return false;
  if (config.trainable == Trainable::all) return true;
  const bool rank_fits = is_dynamic(config.lora.rank) || config.lora.rank >= adapters.rank;
  return rank_fits && (is_dynamic(config.lora.targets) || contains(config.lora.targets, adapters.targets));
}

const Variant* find(const Shape& shape, const Lora& adapters, Device device, Method method) {
  const Variant* best = nullptr;
  const Trainable wanted = method == Method::full ? Trainable::all : Trainable::adapters;
  const auto before = [](const Config& a, const Config& b) {
    if (is_dynamic(a.shape) != is_dynamic(b.shape)) return !is_dynamic(a.shape);
    if (is_dynamic(a.lora) != is_dynamic(b.lora)) return !is_dynamic(a.lora);
    return a.lora.rank < b.lora.rank;
  };
  for (const auto& variant : variants()) {
    const Config& config = variant->config();
    if (variant->device() != device || config.trainable != wanted || !serves(config, shape, adapters)) continue;
    if (best == nullptr || before(config, best->config())) best = variant.get();
  }
  return best;
}

[[noreturn]] void refuse(Device device, Method method) {
  throw Error(concat("this program was built without ",
                     method == Method::full ? "training of every weight" : "the code for models",
                     device == Device::cuda ? " on a GPU; build it where nvcc is, with -DQLORA_CUDA=ON"
                                            : " on the CPU; build it with examples/qlora/variant_*.cpp"),
              ErrorKind::usage);
}

}  // namespace

Chosen choose_variant(const Shape& shape, const Lora& adapters, const DeviceSection& asked, int threads,
                      Method method) {
  if (method == Method::full) {
    if (asked.use == "cuda" || asked.fast || asked.resident || !asked.memory_cap.empty()) {
      throw Error(
          "every weight is trained on the CPU only: leave --device cuda, --fast, --keep-dequantized and --memory-cap "
          "out",
          ErrorKind::usage);
    }
    const Variant* all = find(shape, adapters, Device::cpu, method);
    if (all == nullptr) refuse(Device::cpu, method);
    return {all, {.threads = threads}};
  }
  Machine machine{.threads = threads,
                  .memory_cap = bytes_of_option("--memory-cap", asked.memory_cap),
                  .fast = asked.fast,
                  .resident = asked.resident};
  const Variant* on_gpu = find(shape, adapters, Device::cuda, method);
  if (asked.use != "cpu") {
    std::string why;
    const bool usable = cuda_usable(why);
    if (asked.use == "cuda" && !usable) {
      throw Error(concat("no GPU can be used: ", why, "; or compute on the processor with --device cpu"),
                  ErrorKind::resource);
    }
    if (usable && on_gpu != nullptr) {
      machine.device = Device::cuda;
      return {on_gpu, machine};
    }
    if (asked.use == "cuda") refuse(Device::cuda, method);
  } else if (asked.fast || asked.resident || machine.memory_cap > 0) {
    throw Error("--fast, --keep-dequantized and --memory-cap are for a GPU; leave them or --device cpu out",
                ErrorKind::usage);
  }
  const Variant* on_cpu = find(shape, adapters, Device::cpu, method);
  if (on_cpu == nullptr) refuse(Device::cpu, method);
  return {on_cpu, machine};
}

}  // namespace qlora::program
