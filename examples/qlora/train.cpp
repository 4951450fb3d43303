// train.cpp — `qlora train`: the options of a training run, and what is printed of its result.
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "options.hpp"
#include "qlora/dist/sagemaker.hpp"
#include "qlora/error.hpp"
#include "qlora/run/container.hpp"
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
  const auto root = dist::sagemaker_root(dist::process_environment);
  const dist::Hosts hosts = dist::sagemaker_hosts_in(root, dist::process_environment);
  if (gpus * hosts.count == 1) return false;
  run::start_ranks(gpus, hosts, context.progress);
  return true;
}

/// What is said of a training on rank 0; the others say nothing, since it would be the same.
Result said_of(const run::TrainResult& result, const dist::Launch& launch, Invocation& call, Context& context) {
  if (launch.rank > 0) {
    call.json.clear();
    return {};
  }
  context.out << result.steps << " steps, loss " << result.first_loss << " -> " << result.last_loss << ", "
              << (result.method == run::Method::full ? "model in " : "adapter in ") << result.trained.string() << '\n';
  return result_of(result);
}

/// The options of a table that the line gives.
template <run::HasTable S>
void add_given(std::vector<std::string>& all, const OptionSet& verb) {
  for (const run::Option<S>& option : run::Table<S>::options) {
    if (const std::string name = run::line_name(option); verb.given(name)) all.push_back(name);
  }
}
/// Those that say how to train.
std::vector<std::string> given_options(const OptionSet& verb) {
  std::vector<std::string> all;
  for (const char* name : {"--model", "--data", "--out", "--restart"}) {
    if (verb.given(name)) all.emplace_back(name);
  }
  add_given<run::Training>(all, verb);
  add_given<run::LoopProbes>(all, verb);
  add_given<run::ChatChoice>(all, verb);
  add_given<run::DeviceRequest>(all, verb);
  add_given<run::Ranks>(all, verb);
  return all;
}

/// `qlora train` alone in a container: everything comes from the platform (run/container.hpp).
Result train_container(const std::filesystem::path& root, Invocation& call, Context& context) {
  if (dist::launch_of(dist::process_environment).local_rank == 0) run::forget_failure(root);
  run::ContainerTraining job = run::container_training(root, dist::process_environment);
  job.train.model = model_directory(job.train.model, context.progress);
  if (job.ranks.gpus > 0 && start_gpus(job.ranks.gpus, job.train, context)) {
    call.json.clear();  // rank 0 has written it
    return {};
  }
  if (job.train.launch.size > 1) expect_launcher_signals();
  job.train.on_step = [&context](const run::StepRecord& record) {
    context.out << run::metric_line(record) << std::endl;  // at once: the platform reads along
  };
  return said_of(run::train_in_container(job, context.progress), job.train.launch, call, context);
}
void expect_container(const std::filesystem::path& root, Invocation& call) {
  call.on_failure = [root](std::string_view message, ErrorKind kind) {
    if (kind != ErrorKind::interrupted) run::write_failure(root, message, kind);
  };
  call.action = [&call, root](Context& context) { return train_container(root, call, context); };
}

}  // namespace

void add_train(OptionSet app, Invocation& call) {
  OptionSet verb =
      add_verb(app, call, "train", "Train a LoRA adapter on the 4-bit model; resumes what was interrupted");
  auto request = std::make_shared<run::TrainRequest>();
  const std::filesystem::path root = dist::sagemaker_root(dist::process_environment);
  const bool container = run::is_training_container(root);
  for (Option option :
       {verb.add_model("-m,--model", request->model, "Model directory").type_name("DIR"),
        verb.add("-d,--data", request->data, "Packed data set").type_name("DIR"),
        verb.add_output("-o,--out", request->out, Written::resumed, "Directory of adapter, metrics and checkpoints")
            .type_name("DIR")}) {
    if (!container) option.required();
  }
  add_table(verb, request->options);
  add_table(verb, request->loop);
  add_table(verb, request->chat);
  add_table(verb, request->device);
  auto ranks = std::make_shared<run::Ranks>();
  add_table(verb, *ranks);
  verb.add("--restart", request->restart, "Begin anew: remove the checkpoints of an earlier run in --out");
  verb.on_call([&call, request, ranks, verb, root, container] {
    if (container) {
      const std::vector<std::string> given = given_options(verb);
      if (given.empty()) return expect_container(root, call);
      for (const char* name : {"--model", "--data", "--out"}) {
        if (verb.given(name)) continue;
        throw Error(concat(name, " is required beside ", given.front(), "; without any option train does what ",
                           (root / "input" / "config").string(), " says"),
                    ErrorKind::usage);
      }
    }
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
      return said_of(run::train(*request, context.progress), request->launch, call, context);
    };
  });
}

}  // namespace qlora::program
