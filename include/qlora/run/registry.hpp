// qlora/run/registry.hpp — the compiled code that a program holds, and the one place that decides which of it serves a
// model: shape, adapters, device and kind of training. RegisteredCode (compiled.hpp) puts code on the list, and the
// CMake function qlora_register() does so in one line.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "qlora/config.hpp"
#include "qlora/error.hpp"
#include "qlora/run/device.hpp"
#include "qlora/run/options.hpp"
#include "qlora/run/session.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// A config compiled for one backend.
class ModelCode {
 public:
  ModelCode() = default;
  ModelCode(const ModelCode&) = delete;
  ModelCode& operator=(const ModelCode&) = delete;
  virtual ~ModelCode() = default;

  /// May have dynamic numbers.
  [[nodiscard]] virtual const Config& config() const = 0;
  /// Where this code runs.
  [[nodiscard]] virtual Device device() const = 0;
  /// Whether its device is there. If not, `why` is the reason.
  [[nodiscard]] virtual bool usable(std::string& why) const = 0;
  /// Throws Error (resource) where the device of this process cannot compute such products. Opens no device.
  virtual void expect_products(Products, const dist::Launch&) const {}
  /// `adapters`: the highest rank and all targets of the adapters that will be attached.
  [[nodiscard]] virtual std::unique_ptr<LoadedModel> open(const hf::ModelDir& model, BaseWeights base,
                                                          const Lora& adapters, const DeviceOptions& device) const = 0;
  /// `probes`: what its session decodes between steps, at most; no sequences: nothing. On a GPU memory is kept for
  /// that; throws Error (resource) when there is too little.
  [[nodiscard]] virtual std::unique_ptr<TrainingSession> train(const hf::ModelDir& model, TrainOptions options,
                                                               Recomputation recompute, const DecodeLimits& probes,
                                                               const DeviceOptions& device) const = 0;
};

/// All code of this program. Changed before main begins, or by one thread before any model is opened.
[[nodiscard]] inline std::vector<std::unique_ptr<ModelCode>>& registered_code() {
  static std::vector<std::unique_ptr<ModelCode>> list;
  return list;
}

/// Capacity for no adapter: any code has it.
inline constexpr Lora no_adapters{.rank = 1, .targets = Proj::none};

/// Capacity for one adapter more.
[[nodiscard]] inline Lora room_for(Lora room, const PeftAdapter& adapter) {
  return {.rank = std::max(room.rank, highest_rank(adapter)), .targets = room.targets | adapter.targets};
}

/// Code for a model, and where it will run.
struct Selection {
  const ModelCode* code = nullptr;  ///< never null; owned by the registry
  DeviceOptions device;             ///< as chosen for the code
};

namespace detail {

/// Whether code for a config runs a model of this shape with such adapters. Static code that trains has adapters on all
/// of its targets; code that answers leaves those without an adapter out.
[[nodiscard]] inline bool serves(const Config& config, const Shape& shape, const Lora& adapters, bool trains) {
  if (!is_dynamic(config.shape) && config.shape != shape) return false;
  if (config.trainable == Trainable::all) return true;
  const bool rank_fits = is_dynamic(config.lora.rank) || config.lora.rank >= adapters.rank;
  if (!rank_fits || is_dynamic(config.lora.targets)) return rank_fits;
  return trains ? config.lora.targets == adapters.targets : contains(config.lora.targets, adapters.targets);
}

/// A static config of the very shape with the least rank cap if there is one, else a dynamic one; null: neither.
[[nodiscard]] inline const ModelCode* find_code(const Shape& shape, const Lora& adapters, Device device,
                                                std::optional<Method> trains) {
  const ModelCode* best = nullptr;
  const Trainable wanted = trains == Method::full ? Trainable::all : Trainable::adapters;
  const auto before = [](const Config& a, const Config& b) {
    if (is_dynamic(a.shape) != is_dynamic(b.shape)) return !is_dynamic(a.shape);
    if (is_dynamic(a.lora) != is_dynamic(b.lora)) return !is_dynamic(a.lora);
    return a.lora.rank < b.lora.rank;
  };
  for (const auto& code : registered_code()) {
    const Config& config = code->config();
    if (code->device() != device || config.trainable != wanted || !serves(config, shape, adapters, trains.has_value()))
      continue;
    if (best == nullptr || before(config, best->config())) best = code.get();
  }
  return best;
}

/// How to build the code that is missing: lines to paste. qlora_register() defines where the program is built.
[[noreturn]] inline void refuse_build(const Shape& shape, const Lora& adapters, Device device,
                                      std::optional<Method> trains) {
  const auto built = [&](const auto& code) { return code->device() == device; };
  if (device == Device::cuda && std::none_of(registered_code().begin(), registered_code().end(), built)) {
    std::string text =
        "no GPU can be used: this program was built without CUDA; compute on the processor with --device "
        "cpu, or build it where nvcc is";
#ifdef QLORA_BUILD_DIR
    text += ":\n  cmake -DQLORA_CUDA=ON " QLORA_BUILD_DIR "\n  cmake --build " QLORA_BUILD_DIR;
#endif
    throw Error(text, ErrorKind::resource);
  }
  std::string text = "this program has no code ";
  text += trains == Method::full ? "that trains every weight" : "for models with adapters";
  text += device == Device::cuda ? " on a GPU" : " on the CPU";
  bool other_configs = false;  // for this device and kind of training, but another model
  for (const auto& code : registered_code()) {
    other_configs = other_configs || (code->device() == device &&
                                      (code->config().trainable == Trainable::all) == (trains == Method::full));
  }
  if (other_configs) {
    text += concat(" for a model of ", shape.layers, " layers of width ", shape.dim, " with rank ", adapters.rank,
                   "; the configs that it was built for are others");
  }
#ifdef QLORA_BUILD_TARGET
  text += ". To build it, put this line into " QLORA_BUILD_LISTS ":\n  qlora_register(" QLORA_BUILD_TARGET " ";
#else
  text +=
      ". To build it, put this line, with the name of the program, into its CMakeLists.txt:\n  qlora_register(TARGET ";
#endif
  text += concat(trains == Method::full ? "qlora::any_model_all_weights" : "qlora::any_model",
                 " HEADER qlora/configs/any.hpp", " BACKENDS ", name_of(device), ")");
  throw Error(text, ErrorKind::usage);
}

}  // namespace detail

/// The code for a model of this shape that holds such adapters, on the device that is asked for. `trains`: that trains
/// just these adapters, or every weight; nothing: that answers. Throws Error (resource) when a GPU is asked for and
/// none is usable, and (usage) for options of the other device, or, with the lines that build it, when the program
/// lacks the code.
[[nodiscard]] inline Selection select_code(const Shape& shape, const Lora& adapters, const DeviceRequest& asked,
                                           std::optional<Method> trains = std::nullopt) {
  const bool gpu_options = asked.fast || asked.keep_dequantized || asked.memory_cap.count > 0;
  const DeviceOptions cpu{.threads = asked.threads};
  const auto on_cpu = [&]() -> Selection {
    const ModelCode* code = detail::find_code(shape, adapters, Device::cpu, trains);
    if (code == nullptr) detail::refuse_build(shape, adapters, Device::cpu, trains);
    return {code, cpu};
  };
  if (trains == Method::full) {
    if (asked.use == DeviceUse::cuda || gpu_options) {
      throw Error(
          "every weight is trained on the CPU only: leave --device cuda, --fast, --keep-dequantized and --memory-cap "
          "out",
          ErrorKind::usage);
    }
    return on_cpu();
  }
  if (asked.use == DeviceUse::cpu) {
    if (gpu_options) {
      throw Error("--fast, --keep-dequantized and --memory-cap are for a GPU; leave them or --device cpu out",
                  ErrorKind::usage);
    }
    return on_cpu();
  }
  const ModelCode* code = detail::find_code(shape, adapters, Device::cuda, trains);
  std::string why;
  if (code != nullptr && code->usable(why)) {
    return {code, {Device::cuda, asked.threads, asked.memory_cap.count, asked.fast, asked.keep_dequantized}};
  }
  if (asked.use == DeviceUse::automatic) return on_cpu();
  if (code == nullptr) detail::refuse_build(shape, adapters, Device::cuda, trains);
  throw Error(concat("no GPU can be used: ", why, "; or compute on the processor with --device cpu"),
              ErrorKind::resource);
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
