// merge.cpp — `qlora merge`: a model of 16-bit weights with the adapter inside, W + scale B A, for programs that know no
// adapters. The files' side of it is in the library; here is where it is computed.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <thread>

#include "adapters.hpp"
#include "interrupt.hpp"
#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/merge.hpp"
#include "qlora/io/peft.hpp"
#include "steps.hpp"
#include "verb.hpp"
#ifdef QLORA_CUDA
#include "qlora/cuda/launch.hpp"
#endif

namespace qlora::program {
namespace {

/// What merges: on the GPU where there is one, unless another device is asked for.
struct Mergers {
  std::shared_ptr<void> device;  // outlives the lanes
  MergeLanes lanes;

  explicit Mergers(const run::DeviceRequest& wanted) {
    if (wanted.use == run::DeviceUse::cpu && wanted.memory_cap.count > 0) {
      throw Error("--memory-cap is for a GPU; leave it or --device cpu out", ErrorKind::usage);
    }
    if (wanted.use != run::DeviceUse::cpu) find_gpu(wanted);
    if (lanes.empty()) lanes = host_merge_lanes(static_cast<unsigned>(wanted.threads));
  }

 private:
#ifdef QLORA_CUDA
  void find_gpu(const run::DeviceRequest& wanted) {
    std::string why;
    if (cuda::device_count(&why) == 0) {
      if (wanted.use == run::DeviceUse::cuda)
        throw Error("--device cuda: no GPU can be used: " + why, ErrorKind::resource);
      return;
    }
    const std::shared_ptr<cuda::Context> context(cuda::create_context({.memory_cap = wanted.memory_cap.count}),
                                                 [](cuda::Context* one) { cuda::destroy_context(one); });
    device = context;
    for (unsigned i = 0; i < std::clamp(std::thread::hardware_concurrency(), 1U, most_merge_threads); ++i) {
      lanes.push_back(cuda::merge_lane(*context));
    }
  }
#else
  static void find_gpu(const run::DeviceRequest& wanted) {
    if (wanted.use == run::DeviceUse::cuda)
      throw Error("--device cuda: this program was built without CUDA", ErrorKind::resource);
  }
#endif
};

}  // namespace

Result run_merge(const MergeStep& step, Progress& progress) {
  const hf::ModelDir model = hf::ModelDir::open(step.model);
  const PeftAdapter adapter = open_adapter(step.adapter, model, step.any_base);
  Mergers mergers(step.device);
  const auto tensors = static_cast<std::int64_t>(hf::tensor_names(model.shape).size());
  const MergeReport report = merge_model(model, adapter, step.out, mergers.lanes,
                                         {.max_shard_bytes = static_cast<std::uint64_t>(step.merging.shard_bytes),
                                          .tokenizer_from = step.model,
                                          .on_tensor = [&](std::int64_t done) {
                                            if (done == 0) progress.begin("merge", tensors, "tensors");
                                            if (done > 0) progress.update(done);
                                            return !interrupted();
                                          }});
  const hf::ModelDir written = hf::ModelDir::open(step.out);  // what was written must open as a model again
  progress.end(std::to_string(report.changed) + " weights changed");
  return {{"tensors", report.tensors},
          {"changed", report.changed},
          {"parameters", parameters(written.shape)},
          {"dtype", name_of(written.dtype)},
          {"path", step.out.string()}};
}

void add_merge(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "merge", "Write a 16-bit model with the adapter inside");
  auto step = std::make_shared<MergeStep>();
  verb.add("-m,--model", step->model, "Model directory that the adapter was trained on").required().type_name("DIR");
  verb.add("-a,--adapter", step->adapter, "Adapter directory").required().type_name("DIR");
  add_any_base(verb, step->any_base);
  verb.add("-o,--out", step->out, "Directory of the merged model").required().type_name("DIR");
  add_table(verb, step->merging);
  add_table(verb, step->device, {.only = {"use", "memory_cap", "threads"}});
  verb.on_call([&call, step] {
    call.action = [step](Context& context) {
      const Result result = run_merge(*step, context.progress);
      context.out << result["changed"] << " of " << result["tensors"] << " tensors changed, model in "
                  << result["path"].get<std::string>() << '\n';
      return result;
    };
  });
}

}  // namespace qlora::program
