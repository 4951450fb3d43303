// train.cpp — `qlora train`: the options of a training run, and what is printed of its result.
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "options.hpp"
#include "qlora/error.hpp"
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

}  // namespace

void add_train(OptionSet app, Invocation& call) {
  OptionSet verb =
      add_verb(app, call, "train", "Train a LoRA adapter on the 4-bit model; resumes what was interrupted");
  auto request = std::make_shared<run::TrainRequest>();
  verb.add("-m,--model", request->model, "Model directory").required().type_name("DIR");
  verb.add("-d,--data", request->data, "Packed data set").required().type_name("DIR");
  verb.add("-o,--out", request->out, "Directory of adapter, metrics and checkpoints").required().type_name("DIR");
  add_table(verb, request->options);
  add_table(verb, request->loop);
  add_table(verb, request->chat);
  add_table(verb, request->device);
  verb.add("--restart", request->restart, "Begin anew: remove the checkpoints of an earlier run in --out");
  verb.on_call([&call, request, verb] {
    std::vector<std::string> of_adapters;
    for (const auto& option : run::Table<run::Training>::options) {
      const std::string name = run::line_name(option);
      if (option.adapters_only && verb.given(name)) of_adapters.push_back(name);
    }
    call.action = [request, of_adapters, every = verb.given("--every")](Context& context) -> Result {
      if (every && request->loop.probes.empty()) {
        throw Error("--every says how often probes are measured: give --probes", ErrorKind::usage);
      }
      check_no_model(request->out);
      check_adapter_options(request->options, of_adapters);
      const run::TrainResult result = run::train(*request, context.progress);
      context.out << result.steps << " steps, loss " << result.first_loss << " -> " << result.last_loss << ", "
                  << (result.method == run::Method::full ? "model in " : "adapter in ") << result.trained.string()
                  << '\n';
      return result_of(result);
    };
  });
}

}  // namespace qlora::program
