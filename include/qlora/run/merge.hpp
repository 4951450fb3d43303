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
/// the base's generation_config.json and licences (files_beside_weights). With windows, or where the better weights are
/// asked for, merged models are measured before, and the numbers stand in merge_certificate.json: that takes the disk
/// of one more merged model and the memory to run one. Throws Error: (input) for an adapter of other weights or shapes,
/// (usage) when --memory-cap is given for the CPU, (resource) without the GPU that is asked
/// for or when the directory cannot be written, (interrupted) when progress asks to stop.
QLORA_STEP MergeResult merge(const MergeRequest& request, Progress& progress);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "qlora/error.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/merge.hpp"
#include "qlora/io/quantize.hpp"
#include "qlora/run/adapter.hpp"
#include "qlora/run/engine.hpp"
#include "qlora/run/json.hpp"
#include "qlora/run/merge_certificate.hpp"
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
  MergeDevice(const DeviceRequest& request, bool dora) {
    if (request.use == DeviceUse::cpu && request.memory_cap.count > 0) {
      throw Error("--memory-cap is for a GPU; leave it or --device cpu out", ErrorKind::usage);
    }
    if (dora && request.use == DeviceUse::cuda) {
      throw Error("--device cuda: an adapter with DoRA (use_dora) is merged on the CPU; leave --device out",
                  ErrorKind::usage);
    }
    if (request.use != DeviceUse::cpu && !dora) find_gpu(request);
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

/// A folder beside the target for what goes again: the model in NF4, and merged models that are measured.
class MergeScratch {
 public:
  explicit MergeScratch(const std::filesystem::path& target)
      : directory_(directory_itself(target).concat(".measured"), {}), path_(directory_.temporary()) {}
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  AtomicDirectory directory_;  // never committed: all of it goes
  std::filesystem::path path_;
};

/// One merge: which weights, how far each result is from the adapter, and the model that is written.
class MergeRun {
 public:
  MergeRun(const MergeRequest& request, Progress& progress)
      : request_(request),
        progress_(progress),
        model_(hf::ModelDir::open(request.model, verify_of(request.device))),
        adapter_(open_adapter(request.adapter, model_, request.any_base, verify_of(request.device))),
        device_(request.device, adapter_.dora) {}

  MergeResult run() {
    say_note(model_, progress_);
    const MergeBase asked = request_.merging.onto;
    const int windows = request_.merging.windows > 0 ? request_.merging.windows : asked == MergeBase::best ? 8 : 0;
    // Of a model in NF4 the weights before that are not there.
    MergeBase onto = model_.nf4 ? MergeBase::nf4 : asked;
    std::optional<MergeCertificate> certificate;
    if (windows > 0) {
      certificate = measured(windows);
      const auto nearest = std::min_element(certificate->merged.begin(), certificate->merged.end(),
                                            [](const auto& a, const auto& b) { return a.kl < b.kl; });
      if (onto == MergeBase::best) onto = nearest->onto == "nf4" ? MergeBase::nf4 : MergeBase::original;
      certificate->written = name_of(onto);
    }
    std::map<std::string, std::string> files = files_beside_weights(request_.model);
    if (certificate) files[std::string(hf::merge_certificate_name)] = to_json(*certificate).dump(2) + '\n';
    const MergeReport report = write(onto, request_.out, files, request_.replace);
    const hf::ModelDir written = hf::ModelDir::open(request_.out);  // what was written must open as a model again
    progress_.update(report.tensors);
    progress_.end(std::to_string(report.changed) + " weights changed");
    return {.tensors = report.tensors,
            .changed = report.changed,
            .parameters = parameters(written.shape),
            .dtype = std::string(::qlora::name_of(written.dtype)),
            .path = request_.out,
            .certificate = std::move(certificate)};
  }

 private:
  static constexpr int window_tokens = 64;

  [[nodiscard]] static std::string name_of(MergeBase base) { return base == MergeBase::nf4 ? "nf4" : "original"; }
  void expect_going() const {
    if (progress_.stop_requested())
      throw Error("interrupted while merging; nothing was written", ErrorKind::interrupted);
  }
  [[nodiscard]] MergeScratch& scratch() {
    if (!scratch_) scratch_.emplace(request_.out);
    return *scratch_;
  }
  /// The weights below the adapter. In NF4 they are quantized as an engine does it.
  [[nodiscard]] const hf::ModelDir& base(MergeBase onto) {
    if (onto == MergeBase::original || model_.nf4) return model_;
    if (!in_nf4_) {
      const std::filesystem::path dir = scratch().path() / "in-nf4";
      static_cast<void>(quantize_model(model_, dir,
                                       {.threads = request_.device.threads,
                                        .on_tensor = [&](std::int64_t) { return !progress_.stop_requested(); }}));
      in_nf4_ = hf::ModelDir::open(dir);
    }
    return *in_nf4_;
  }
  MergeReport write(MergeBase onto, const std::filesystem::path& out, const std::map<std::string, std::string>& files,
                    bool replace) {
    const hf::ModelDir& weights = base(onto);
    const auto tensors = static_cast<std::int64_t>(hf::tensor_names(model_.shape).size());
    const auto caller = std::this_thread::get_id();
    return merge_model(weights, adapter_, out, device_.lanes,
                       {.max_shard_bytes = static_cast<std::uint64_t>(request_.merging.shard_bytes),
                        .tokenizer_from = request_.model,
                        .files = files,
                        .on_tensor =
                            [&](std::int64_t done) {
                              if (std::this_thread::get_id() == caller) {
                                if (done == 0) progress_.begin("merge", tensors, "tensors");
                                if (done > 0) progress_.update(done);
                              }
                              return !progress_.stop_requested();
                            },
                        .replace = replace,
                        .dtype = dtype_of(request_.merging.dtype),
                        .any_base = request_.any_base});
  }
  /// One model at a time is in memory, and one merged model on the disk.
  [[nodiscard]] MergeCertificate measured(int windows) {
    MergeProbes probes;
    {
      Engine engine(
          request_.model,
          {.adapters = {{"adapter", request_.adapter}}, .any_base = request_.any_base, .device = request_.device});
      engine.use("adapter");
      const Tokenizer& tokenizer = engine.tokenizer();
      const std::int32_t begin = tokenizer.bos() >= 0 ? tokenizer.bos() : tokenizer.eos();
      const int length = std::min(window_tokens, model_.max_positions);
      probes = MergeProbes::of(engine.session(), begin, windows, length, tokenizer.vocab_size());
    }
    MergeCertificate certificate{.written = {},
                                 .windows = windows,
                                 .tokens = static_cast<std::int64_t>(probes.logits.size()),
                                 .perplexity = probes.perplexity(),
                                 .merged = {}};
    for (const MergeBase onto : {MergeBase::original, MergeBase::nf4}) {
      if (onto == MergeBase::original && model_.nf4) continue;
      expect_going();
      const std::filesystem::path dir = scratch().path() / name_of(onto);
      static_cast<void>(write(onto, dir, files_beside_weights(request_.model), false));
      progress_.end();
      {
        Engine merged(dir, {.base = BaseWeights::full, .device = request_.device});
        certificate.merged.push_back(probes.difference(merged.session(), name_of(onto)));
      }
      std::filesystem::remove_all(dir);
    }
    return certificate;
  }

  const MergeRequest& request_;
  Progress& progress_;
  hf::ModelDir model_;
  PeftAdapter adapter_;
  MergeDevice device_;
  std::optional<MergeScratch> scratch_;
  std::optional<hf::ModelDir> in_nf4_;
};

}  // namespace detail

QLORA_STEP MergeResult merge(const MergeRequest& request, Progress& progress) {
  std::error_code absent;
  if (std::filesystem::equivalent(request.out, request.model, absent)) {
    throw Error(request.out.string() + " is the model to be merged; choose another --out", ErrorKind::usage);
  }
  return detail::MergeRun(request, progress).run();
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
