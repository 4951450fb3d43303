// plan.cpp — `qlora plan MODEL`: every byte of a training run by purpose, the largest batch that fits for each way of
// recomputing, and what `train` would choose. Needs only the model's config.json, or the name of a published model: no
// weights, no compiled shape.
#include <unistd.h>

#include <array>
#include <filesystem>
#include <iomanip>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <thread>

#include "options.hpp"
#include "qlora/config.hpp"
#include "qlora/configs/llama2.hpp"
#include "qlora/cpu/workspace.hpp"
#include "qlora/error.hpp"
#include "qlora/io/hf_config.hpp"
#include "qlora/io/json.hpp"
#include "qlora/model/cards.hpp"
#include "qlora/model/plan.hpp"
#include "qlora/run/device.hpp"
#include "qlora/run/session.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

struct PlanOptions {
  fs::path model;
  run::Plan plan;
  run::Training training;
  run::Packing packing{.seq = 2048};
  run::DeviceRequest device;
};

/// `train` keeps everything on the CPU. On a GPU auto begins with the most, for what fits is to be found.
Recompute recompute_of(run::Recomputation asked, bool cpu) {
  if (asked == run::Recomputation::automatic) return cpu ? Recompute::none : Recompute::block;
  return asked == run::Recomputation::none    ? Recompute::none
         : asked == run::Recomputation::cheap ? Recompute::cheap
                                              : Recompute::block;
}

/// The shape of a model directory, or of a published model by its size.
Shape shape_of(const fs::path& model) {
  constexpr std::array<std::pair<std::string_view, const Config*>, 3> presets{
      {{"7b", &llama2_7b}, {"13b", &llama2_13b}, {"70b", &llama2_70b}}};
  for (const auto& [name, config] : presets) {
    if (model == name && !fs::exists(model)) return config->shape;
  }
  const fs::path file = model / "config.json";
  return hf::parse_config(read_json_object(file, 1U << 20), file.string()).shape;
}

/// The place that is planned for: its name, its bytes, those of them that no plan gives away, and how tensors are stored.
struct Place {
  std::string name;
  std::int64_t bytes;
  std::int64_t reserve;
  Storage store;

  [[nodiscard]] std::int64_t budget() const { return bytes - reserve; }
};

Place place_of(const run::Plan& options) {
  const std::string& name = options.on;
  if (options.gpu_memory.count > 0) {
    return {"GPU memory", options.gpu_memory.count, run::gpu_reserve, gpu_storage};
  }
  if (name == "cpu") {
    const std::int64_t bytes = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
    const auto threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    return {"this machine's memory", bytes, 0, cpu::storage(threads)};
  }
  for (const Gpu& card : gpu::all) {
    if (card.name == name) return {name, card.bytes, run::gpu_reserve, gpu_storage};
  }
  std::string known = "cpu";
  for (const Gpu& card : gpu::all) known += concat(", '", card.name, "'");
  throw Error(concat("no device '", name, "' is known; known are ", known), ErrorKind::usage);
}

/// The largest batch whose plan fits; 0 when not even one window does.
int largest_batch(const Config& config, Run run, const Place& place) {
  const auto fits = [&](int batch) {
    run.batch = batch;
    return memory_plan(config, run, place.store).total() <= place.budget();
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

constexpr std::array<std::pair<std::string_view, Recompute>, 3> policies{
    {{"none", Recompute::none}, {"cheap", Recompute::cheap}, {"block", Recompute::block}}};

/// "block in 5 of 32 layers", or "none".
std::string recomputed(const Run& run, int layers) {
  const std::string name(policies[static_cast<std::size_t>(run.recompute)].first);
  if (run.recompute == Recompute::none) return name;
  return concat(name, " in ", run.recompute_layers < 0 ? layers : run.recompute_layers, " of ", layers, " layers");
}

void print(const MemoryPlan& plan, const Place& place, const Run& run, int layers, int largest, std::ostream& out) {
  const auto line = [&](std::string_view name, std::int64_t bytes) {
    out << std::left << std::setw(24) << name << std::right << std::fixed << std::setprecision(1) << std::setw(12)
        << static_cast<double>(bytes) / 1e6 << " MB\n";
  };
  for (std::size_t i = 0; i < purpose_count; ++i) {
    if (plan.bytes[i] != 0) line(purpose_names[i], plan.bytes[i]);
  }
  line("total", plan.total());
  line(place.name, place.bytes);
  if (place.reserve > 0) line("of which kept free", place.reserve);
  out << (plan.total() <= place.budget() ? "fits" : "does not fit") << " with batch " << run.batch << " of " << run.seq
      << " tokens, recomputing " << recomputed(run, layers) << "; the largest batch that does is " << largest << '\n';
}

/// What fits a GPU: for each policy the largest batch, and what `train` chooses for the batch that was asked for.
Result advise(const Config& config, const Run& run, const Place& place, std::ostream& out) {
  Result advice{{"largest_batches", Result::object()}};
  out << "\nrecompute   largest batch of " << run.seq << " tokens\n";
  int most = 0;
  for (const auto& [name, policy] : policies) {
    Run one = run;
    one.recompute = policy;
    one.recompute_layers = -1;
    const int batch = largest_batch(config, one, place);
    advice["largest_batches"][std::string(name)] = batch;
    out << std::left << std::setw(12) << name << batch << '\n';
    most = std::max(most, batch);
  }
  if (most == 0) {
    advice["recommended"] = nullptr;
    out << "not even one window fits; shorter ones (--seq) or a larger GPU would\n";
    return advice;
  }
  Run chosen = run;
  chosen.batch = std::min(run.batch, most);
  chosen = choose_recompute(config, chosen, place.budget(), place.store);
  const std::string name(policies[static_cast<std::size_t>(chosen.recompute)].first);
  const std::int64_t total = memory_plan(config, chosen, place.store).total();
  advice["recommended"] = {
      {"batch", chosen.batch}, {"recompute", name}, {"recompute_layers", chosen.recompute_layers}, {"total", total}};
  out << "recommended: --batch " << chosen.batch << " --recompute auto, which is "
      << recomputed(chosen, config.shape.layers) << ": " << run::gigabytes(total) << " of "
      << run::gigabytes(place.bytes) << '\n';
  return advice;
}

Result plan(const PlanOptions& options, Context& context) {
  Config config{.shape = shape_of(options.model)};
  config.lora.rank = options.training.rank;
  if (options.plan.unquantized) config.quant = unquantized;
  const Place place = place_of(options.plan);
  const bool cpu = !place.store.wide_groups;
  Run run{.batch = options.training.batch,
          .seq = options.packing.seq,
          .recompute = recompute_of(options.training.recompute, cpu),
          .dropout = !options.plan.no_dropout,
          .keep_dequantized = cpu ? parameters(config.shape) <= run::cpu_dense_limit : options.device.keep_dequantized,
          .adamw8bit = options.training.adamw8bit};
  if (options.plan.probe_tokens > 0) run.probing = run::room_for_probes(SIZE_MAX, options.plan.probe_tokens);
  if (!cpu && options.training.recompute == run::Recomputation::automatic &&
      memory_plan(config, run, place.store).total() <= place.budget()) {
    run = choose_recompute(config, run, place.budget(), place.store);  // as `train` does
  }
  const MemoryPlan bytes = memory_plan(config, run, place.store);
  const int largest = largest_batch(config, run, place);
  print(bytes, place, run, config.shape.layers, largest, context.out);
  Result parts = Result::object();
  for (std::size_t i = 0; i < purpose_count; ++i) parts[std::string(purpose_names[i])] = bytes.bytes[i];
  Result result{{"bytes", parts},
                {"total", bytes.total()},
                {"device", place.name},
                {"device_bytes", place.bytes},
                {"fits", bytes.total() <= place.budget()},
                {"largest_batch", largest}};
  if (!cpu) result["advice"] = advise(config, run, place, context.out);
  return result;
}

}  // namespace

void add_plan(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "plan", "Show the memory that training a model takes, by purpose");
  auto options = std::make_shared<PlanOptions>();
  verb.add("model", options->model, "Model directory, of which only config.json is read; or 7b, 13b, 70b for LLaMA-2")
      .required()
      .type_name("DIR");
  add_table(verb, options->training, {.only = {"rank", "batch", "recompute", "adamw8bit"}});
  add_table(verb, options->packing, {.only = {"seq"}});
  add_table(verb, options->device, {.only = {"keep_dequantized"}});
  add_table(verb, options->plan);
  verb.on_call([&call, options, verb] {
    const bool both = verb.given("--on") && verb.given("--gpu-memory");
    call.action = [options, both](Context& context) {
      if (both) throw Error("--gpu-memory stands for --on; give one of them", ErrorKind::usage);
      if (options->plan.unquantized && options->device.keep_dequantized) {
        throw Error("--unquantized weights are not dequantized; leave out --keep-dequantized", ErrorKind::usage);
      }
      return plan(*options, context);
    };
  });
}

}  // namespace qlora::program
