// plan.cpp — `qlora plan MODEL`: every byte of a training run by purpose, and advice for GPUs.
#include "qlora/run/plan.hpp"

#include <cstddef>
#include <iomanip>
#include <memory>
#include <ostream>
#include <string>
#include <string_view>

#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/run/device.hpp"
#include "qlora/run/units.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

/// "block in 5 of 32 layers", or "none".
std::string recomputed(const Run& run, int layers) {
  const std::string name(run::recompute_name(run.recompute));
  if (run.recompute == Recompute::none) return name;
  return concat(name, " in ", run.recompute_layers < 0 ? layers : run.recompute_layers, " of ", layers, " layers");
}

void print(const run::PlanResult& result, std::ostream& out) {
  const auto line = [&](std::string_view name, std::int64_t bytes) {
    out << std::left << std::setw(24) << name << std::right << std::fixed << std::setprecision(1) << std::setw(12)
        << static_cast<double>(bytes) / 1e6 << " MB\n";
  };
  for (std::size_t i = 0; i < purpose_count; ++i) {
    if (result.bytes.bytes[i] != 0) line(purpose_names[i], result.bytes.bytes[i]);
  }
  line("total", result.bytes.total());
  line(result.device, result.device_bytes);
  if (result.reserve > 0) line("of which kept free", result.reserve);
  out << (result.fits() ? "fits" : "does not fit") << " with batch " << result.run.batch << " of " << result.run.seq
      << " tokens, recomputing " << recomputed(result.run, result.layers) << "; the largest batch that does is "
      << result.largest_batch << '\n';
  if (!result.advice) return;
  const run::PlanAdvice& advice = *result.advice;
  out << "\nrecompute   largest batch of " << result.run.seq << " tokens\n";
  for (std::size_t i = 0; i < advice.largest_batches.size(); ++i) {
    out << std::left << std::setw(12) << run::recompute_names[i] << advice.largest_batches[i] << '\n';
  }
  if (!advice.recommended) {
    out << "not even one window fits; shorter ones (--seq) or a larger GPU would\n";
    return;
  }
  out << "recommended: --batch " << advice.recommended->batch << " --recompute auto, which is "
      << recomputed(*advice.recommended, result.layers) << ": " << run::gigabytes(advice.total) << " of "
      << run::gigabytes(result.device_bytes) << '\n';
}

}  // namespace

void add_plan(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "plan", "Show the memory that training a model takes, by purpose");
  auto request = std::make_shared<run::PlanRequest>();
  verb.add_model(
          "model", request->model,
          "Model directory, of which only config.json is read; or 7b, 13b, 70b for LLaMA-2, mistral-7b, llama3.1-8b, "
          "tinyllama-1.1b, codellama-7b, codellama-13b, smollm2-135m, smollm2-360m, smollm2-1.7b")
      .required()
      .type_name("DIR");
  add_table(verb, request->training,
            {.only = {"rank", "targets", "batch", "recompute", "adamw8bit", "dora", "products"}});
  add_table(verb, request->packing, {.only = {"seq"}});
  add_table(verb, request->device, {.only = {"keep_dequantized"}});
  add_table(verb, request->plan);
  verb.on_call([&call, request, verb] {
    const bool both = verb.given("--on") && verb.given("--gpu-memory");
    if (!verb.given("--seq")) request->packing.seq = 0;
    call.action = [request, both](Context& context) {
      if (both) throw Error("--gpu-memory stands for --on; give one of them", ErrorKind::usage);
      const run::PlanResult result = run::plan(*request);
      print(result, context.out);
      return result_of(result);
    };
  });
}

}  // namespace qlora::program
