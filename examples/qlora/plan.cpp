// plan.cpp — `qlora plan MODEL`: every byte of a training run by purpose, and the largest batch that fits. Needs only
// the model's config.json: no weights, no compiled shape.
#include <unistd.h>

#include <filesystem>
#include <iomanip>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <thread>

#include "options.hpp"
#include "qlora/config.hpp"
#include "qlora/error.hpp"
#include "qlora/io/hf_config.hpp"
#include "qlora/io/json.hpp"
#include "qlora/model/plan.hpp"
#include "variant.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;
using qlora::detail::concat;

struct PlanOptions {
  fs::path model;
  int rank = 64;
  int batch = 2;
  int seq = 2048;
  std::string recompute = "auto";
  std::string on = "cpu";
  bool no_dropout = false;
  bool unquantized = false;
};

/// `train` keeps everything on the CPU; memory is short on GPUs.
Recompute recompute_of(const std::string& name, bool cpu) {
  if (name == "auto") return cpu ? Recompute::none : Recompute::block;
  return name == "none" ? Recompute::none : name == "cheap" ? Recompute::cheap : Recompute::block;
}

/// The CPU backend keeps everything in 32 bits and has no copy of the adapters.
Storage cpu_storage() {
  Storage store;
  store.activation = store.frozen = 4;
  store.copy = 0;
  store.workers = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  return store;
}

/// The place that is planned for: its name, its bytes, and how tensors are stored there.
struct Place {
  std::string name;
  std::int64_t bytes;
  Storage store;
};

Place place_of(const std::string& name) {
  if (name == "cpu") {
    const std::int64_t bytes = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
    return {"this machine's memory", bytes, cpu_storage()};
  }
  for (const Gpu& card : gpu::all) {
    if (card.name == name) return {name, card.bytes, gpu_storage};
  }
  std::string known = "cpu";
  for (const Gpu& card : gpu::all) known += concat(", '", card.name, "'");
  throw Error(concat("no device '", name, "' is known; known are ", known), ErrorKind::usage);
}

/// The largest batch whose plan fits; 0 when not even one window does.
int largest_batch(const Config& config, Run run, const Place& place) {
  const auto fits = [&](int batch) {
    run.batch = batch;
    return memory_plan(config, run, place.store).total() <= place.bytes;
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

void print(const MemoryPlan& plan, const Place& place, const Run& run, int largest, std::ostream& out) {
  const auto mib = [](std::int64_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0); };
  const auto line = [&](std::string_view name, std::int64_t bytes) {
    out << std::left << std::setw(24) << name << std::right << std::fixed << std::setprecision(1) << std::setw(12)
        << mib(bytes) << " MiB\n";
  };
  for (std::size_t i = 0; i < purpose_count; ++i) {
    if (plan.bytes[i] != 0) line(purpose_names[i], plan.bytes[i]);
  }
  line("total", plan.total());
  line(place.name, place.bytes);
  out << (plan.total() <= place.bytes ? "fits" : "does not fit") << " with batch " << run.batch << " of " << run.seq
      << " tokens; the largest batch that fits is " << largest << '\n';
}

Result plan(const PlanOptions& options, Context& context) {
  const fs::path file = options.model / "config.json";
  const hf::ModelConfig model = hf::parse_config(read_json_object(file, 1U << 20), file.string());
  Config config{.shape = model.shape};
  config.lora.rank = options.rank;
  if (options.unquantized) config.quant = unquantized;
  const bool cpu = options.on == "cpu";
  const Run run{.batch = options.batch,
                .seq = options.seq,
                .recompute = recompute_of(options.recompute, cpu),
                .dropout = !options.no_dropout,
                .keep_dequantized = cpu && parameters(model.shape) <= dense_limit};
  const Place place = place_of(options.on);
  const MemoryPlan bytes = memory_plan(config, run, place.store);
  const int largest = largest_batch(config, run, place);
  print(bytes, place, run, largest, context.out);
  Result parts = Result::object();
  for (std::size_t i = 0; i < purpose_count; ++i) parts[std::string(purpose_names[i])] = bytes.bytes[i];
  return {{"bytes", parts},
          {"total", bytes.total()},
          {"device", place.name},
          {"device_bytes", place.bytes},
          {"fits", bytes.total() <= place.bytes},
          {"largest_batch", largest}};
}

}  // namespace

void add_plan(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "plan", "Show the memory that training a model takes, by purpose");
  auto options = std::make_shared<PlanOptions>();
  verb.add("model", options->model, "Model directory; only its config.json is read").required().type_name("DIR");
  verb.add("--rank", options->rank, "Rank of the adapters").range(1, 1024);
  verb.add("--batch", options->batch, "Windows in a micro-batch").range(1, 65536);
  verb.add("--seq", options->seq, "Tokens in a window").range(2, 1 << 20);
  verb.add("--recompute", options->recompute,
           "What the backward pass makes again; auto: nothing on the CPU, blocks on a GPU")
      .one_of({"auto", "none", "cheap", "block"});
  verb.add("--on", options->on, "\"cpu\" or a GPU by name, as in \"A10G 24 GB\"");
  verb.add("--no-dropout", options->no_dropout, "Train without dropout");
  verb.add("--unquantized", options->unquantized, "Keep the frozen weights in full");
  verb.on_call([&call, options] { call.action = [options](Context& context) { return plan(*options, context); }; });
}

}  // namespace qlora::program
