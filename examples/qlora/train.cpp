// train.cpp — `qlora train`: the options of a training run, and what is printed of its result.
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "options.hpp"
#include "qlora/dist/sagemaker.hpp"
#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/run/rank_options.hpp"
#include "qlora/run/start_ranks.hpp"
#include "qlora/run/train.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

/// Options of adapters that were given for a training without any.
void check_adapter_options(const run::Training& options, const std::vector<std::string>& of_adapters) {
  if (options.method != run::Method::full || of_adapters.empty()) return;
  std::string all;
  for (const std::string& name : of_adapters) all += (all.empty() ? "" : ", ") + name;
  throw Error("--method full trains all weights, there are no adapters: leave out " + all, ErrorKind::usage);
}

/// Whether this process only started the ones that train.
bool start_gpus(int gpus, run::TrainRequest& request, Context& context) {
  const auto refuse = [](const std::string& why) { throw Error(why, ErrorKind::usage); };
  if (request.device.use == run::DeviceUse::cpu) {
    refuse("--gpus is for GPUs; on the CPU mpirun -n N qlora train starts N processes");
  }
  request.device.use = run::DeviceUse::cuda;
  const dist::Launch& launch = request.launch;
  if (launch.launcher != dist::Launcher::none) {
    if (launch.local_size == gpus) return false;  // one of those that we, or another launcher, started
    refuse(concat("--gpus is ", gpus, ", and ", name_of(launch.launcher), " has started ", launch.local_size,
                  " processes on this host; leave --gpus out"));
  }
  std::string resources;
  if (std::filesystem::exists(dist::sagemaker_resources)) resources = read_text(dist::sagemaker_resources, 1U << 20);
  const dist::Hosts hosts = dist::sagemaker_hosts(dist::process_environment, resources);
  if (gpus * hosts.count == 1) return false;
  run::start_ranks(gpus, hosts, context.progress);
  return true;
}

}  // namespace

void add_train(OptionSet app, Invocation& call) {
  OptionSet verb =
      add_verb(app, call, "train", "Train a LoRA adapter on the 4-bit model; resumes what was interrupted");
  auto request = std::make_shared<run::TrainRequest>();
  verb.add_model("-m,--model", request->model, "Model directory").required().type_name("DIR");
  verb.add("-d,--data", request->data, "Packed data set").required().type_name("DIR");
  verb.add("-o,--out", request->out, "Directory of adapter, metrics and checkpoints").required().type_name("DIR");
  add_table(verb, request->options);
  add_table(verb, request->loop);
  add_table(verb, request->chat);
  add_table(verb, request->device);
  auto ranks = std::make_shared<run::Ranks>();
  add_table(verb, *ranks);
  verb.add("--restart", request->restart, "Begin anew: remove the checkpoints of an earlier run in --out");
  verb.on_call([&call, request, ranks, verb] {
    std::vector<std::string> of_adapters;
    for (const auto& option : run::Table<run::Training>::options) {
      const std::string name = run::line_name(option);
      if (option.adapters_only && verb.given(name)) of_adapters.push_back(name);
    }
    call.action = [&call, request, ranks, of_adapters, every = verb.given("--every")](Context& context) -> Result {
      if (every && request->loop.probes.empty()) {
        throw Error("--every says how often probes are measured: give --probes", ErrorKind::usage);
      }
      check_no_model(request->out);
      check_adapter_options(request->options, of_adapters);
      request->launch = dist::launch_of(dist::process_environment);
      if (ranks->gpus > 0 && start_gpus(ranks->gpus, *request, context)) {
        call.json.clear();  // rank 0 has written it
        return {};
      }
      if (request->launch.size > 1) expect_launcher_signals();
      const run::TrainResult result = run::train(*request, context.progress);
      if (request->launch.rank > 0) {  // rank 0 says the same
        call.json.clear();
        return {};
      }
      context.out << result.steps << " steps, loss " << result.first_loss << " -> " << result.last_loss << ", "
                  << (result.method == run::Method::full ? "model in " : "adapter in ") << result.trained.string()
                  << '\n';
      return result_of(result);
    };
  });
}

}  // namespace qlora::program
