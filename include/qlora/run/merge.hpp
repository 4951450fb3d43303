// qlora/run/merge.hpp — a model with an adapter inside its weights, W + scale B A, for programs that know no adapters.
// io/merge.hpp has the files; here the device is chosen that computes them.
#pragma once

#include <optional>

#include "qlora/dtype.hpp"
#include "qlora/run/options.hpp"
#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/steps.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// The type that an option asks for; nothing: the model's own.
[[nodiscard]] constexpr std::optional<DType> dtype_of(MergedType type) {
  switch (type) {
    case MergedType::base:
      break;
    case MergedType::f16:
      return DType::f16;
    case MergedType::bf16:
      return DType::bf16;
    case MergedType::f32:
      return DType::f32;
  }
  return std::nullopt;
}

/// Writes the model directory `request.out`, with the tokenizer of the base, a tokenizer.json where that has none, and
/// the base's generation_config.json and licences (files_beside_weights). Throws Error: (input) for an adapter of other
/// weights or shapes, (usage) when --memory-cap is given for the CPU, (resource) without the GPU that is asked
/// for or when the directory cannot be written, (interrupted) when progress asks to stop.
QLORA_STEP MergeResult merge(const MergeRequest& request, Progress& progress);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "qlora/error.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/merge.hpp"
#include "qlora/run/adapter.hpp"
#include "qlora/text/tokenizer_directory.hpp"
#ifdef QLORA_CUDA
#include "qlora/cuda/launch.hpp"
#endif

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// Lanes on a GPU if one is usable, unless the request is for the CPU.
class MergeDevice {
 public:
  explicit MergeDevice(const DeviceRequest& request) {
    if (request.use == DeviceUse::cpu && request.memory_cap.count > 0) {
      throw Error("--memory-cap is for a GPU; leave it or --device cpu out", ErrorKind::usage);
    }
    if (request.use != DeviceUse::cpu) find_gpu(request);
    if (lanes.empty()) lanes = host_merge_lanes(static_cast<unsigned>(request.threads));
  }

 private:
#ifdef QLORA_CUDA
  void find_gpu(const DeviceRequest& request) {
    std::string why;
    if (cuda::device_count(&why) == 0) {
      if (request.use == DeviceUse::cuda) throw Error("--device cuda: no GPU can be used: " + why, ErrorKind::resource);
      return;
    }
    const std::shared_ptr<cuda::Context> context(cuda::create_context({.memory_cap = request.memory_cap.count}),
                                                 [](cuda::Context* made) { cuda::destroy_context(made); });
    context_ = context;
    for (unsigned i = 0; i < std::clamp(std::thread::hardware_concurrency(), 1U, most_merge_threads); ++i) {
      lanes.push_back(cuda::merge_lane(*context));
    }
  }
#else
  static void find_gpu(const DeviceRequest& request) {
    if (request.use == DeviceUse::cuda) {
      throw Error("--device cuda: this program was built without CUDA", ErrorKind::resource);
    }
  }
#endif
  std::shared_ptr<void> context_;  // outlives the lanes

 public:
  MergeLanes lanes;
};

}  // namespace detail

QLORA_STEP MergeResult merge(const MergeRequest& request, Progress& progress) {
  const hf::ModelDir model = hf::ModelDir::open(request.model, verify_of(request.device));
  say_note(model, progress);
  const PeftAdapter adapter = open_adapter(request.adapter, model, request.any_base, verify_of(request.device));
  std::error_code absent;
  if (std::filesystem::equivalent(request.out, request.model, absent)) {
    throw Error(request.out.string() + " is the model to be merged; choose another --out", ErrorKind::usage);
  }
  detail::MergeDevice device(request.device);
  const auto tensors = static_cast<std::int64_t>(hf::tensor_names(model.shape).size());
  const auto caller = std::this_thread::get_id();
  const MergeReport report = merge_model(model, adapter, request.out, device.lanes,
                                         {.max_shard_bytes = static_cast<std::uint64_t>(request.merging.shard_bytes),
                                          .tokenizer_from = request.model,
                                          .files = files_beside_weights(request.model),
                                          .on_tensor =
                                              [&](std::int64_t done) {
                                                if (std::this_thread::get_id() == caller) {
                                                  if (done == 0) progress.begin("merge", tensors, "tensors");
                                                  if (done > 0) progress.update(done);
                                                }
                                                return !progress.stop_requested();
                                              },
                                          .replace = request.replace,
                                          .dtype = dtype_of(request.merging.dtype),
                                          .any_base = request.any_base});
  const hf::ModelDir written = hf::ModelDir::open(request.out);  // what was written must open as a model again
  progress.update(report.tensors);
  progress.end(std::to_string(report.changed) + " weights changed");
  return {.tensors = report.tensors,
          .changed = report.changed,
          .parameters = parameters(written.shape),
          .dtype = std::string(name_of(written.dtype)),
          .path = request.out};
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
