// train.cpp — `qlora train`: windows to an adapter, or to a model all of whose weights were trained. Everything that decides a step is a function of its number, so that
// an interrupted run goes on from its newest checkpoint as if nothing had happened.
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <ostream>
#include <string>

#include "guard.hpp"
#include "interrupt.hpp"
#include "metrics.hpp"
#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/io/lock.hpp"
#include "qlora/run/json.hpp"
#include "qlora/run/settings.hpp"
#include "qlora/text/step_windows.hpp"
#include "steps.hpp"
#include "variant.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

/// Checkpoints that are kept: the newest, and one that is older in case the disk damages it.
constexpr int kept_checkpoints = 2;

RecomputeChoice recompute_of(run::Recomputation asked) {
  return asked == run::Recomputation::none    ? RecomputeChoice::none
         : asked == run::Recomputation::cheap ? RecomputeChoice::cheap
         : asked == run::Recomputation::block ? RecomputeChoice::block
                                              : RecomputeChoice::automatic;
}

class TrainRun {
 public:
  TrainRun(const TrainStep& step, Progress& progress)
      : step_(step),
        options_(step.train.options),
        progress_(progress),
        model_(hf::ModelDir::open(step.model)),
        data_(TokenDataset::open(step.data)),
        order_(static_cast<int>(data_.size()), options_.batch * options_.accumulate,
               static_cast<std::uint64_t>(options_.seed)),
        total_(order_.steps_per_epoch() * options_.epochs),
        guard_(step.train.loop, model_) {
    check();
    const Chosen chosen =
        choose_variant(model_.shape, {.rank = options_.rank}, section_of(step.device), step.device.threads, method());
    device_ = chosen.machine.device;
    training_ = chosen.variant->train(model_, run::trainer_options<TrainOptions>(options_, total_, data_.seq()),
                                      recompute_of(options_.recompute), guard_.room(), chosen.machine);
    progress_.say("training on " + training_->about() + ", " + gigabytes(training_->memory()));
  }

  Result run() {
    resume();
    const int first = saved_step_ = training_->steps_done();
    MetricsLog log(step_.out / "metrics.jsonl", first);
    progress_.begin("train", total_, "steps", first);
    began_ = std::chrono::steady_clock::now();
    bool going = true;
    if (to_measure_) going = settle(log.newest(first), log, true);
    while (going && training_->steps_done() < total_) going = settle(one_step(), log, false);
    if (method() == Method::full) fs::remove_all(written());  // of a run that ended between writing and saying so
    training_->write(written(), adapter_config(), model_);
    write_state(log);
    progress_.end((method() == Method::full ? "model in " : "adapter in ") + written().string());
    return result(log.metrics(), first);
  }

 private:
  /// What belongs to a step that is done: its measurement, its record, its checkpoint. `again`: it was left when its
  /// measurement was interrupted, and is in the record. False: the guard has ended the run.
  bool settle(Metric metric, MetricsLog& log, bool again) {
    const bool due = again || guard_.due(metric.step, total_);
    std::optional<std::string> unmet;
    if (due) unmet = measure(metric);
    to_measure_ = due && !unmet;
    if (again) {
      log.amend(metric);
    } else {
      log.add(metric);
      tokens_ += metric.tokens;
    }
    std::array<char, 96> note{};
    std::snprintf(note.data(), note.size(), "loss %.4f, gradient norm %.3g, %s", metric.loss, metric.grad_norm,
                  gigabytes(training_->memory()).c_str());
    progress_.update(metric.step, tokens_, note.data() + measured_);
    if (unmet && !unmet->empty()) {
      stopped_ = go_back(metric.step, *unmet);
      return false;
    }
    const bool stop = to_measure_ || (interrupted() && metric.step < total_);
    // Where a guard decides, a checkpoint is a measurement that met it, which the run goes back to, or one that is owed,
    // which is made before anything else and which the run never goes back to.
    const bool saved = guard_.decides() ? due : stop || again || metric.step % options_.checkpoint_every == 0;
    if (saved || metric.step == total_) {
      checkpoint(log);
      saved_step_ = metric.step;
    }
    if (stop) {
      throw Error(concat("interrupted; step ", saved_step_, " of ", total_, " is saved in ", step_.out.string(),
                         ", the same command goes on from there"),
                  ErrorKind::interrupted);
    }
    return true;
  }
  /// Metrics into the step's record; what of the guard is not met. Nothing: it was interrupted.
  std::optional<std::string> measure(Metric& metric) {
    if (method() == Method::full && base_ == nullptr) {  // not in this model any more
      const Chosen chosen =
          choose_variant(model_.shape, no_adapters, {.use = "cpu", .memory_cap = {}}, step_.device.threads);
      base_ = chosen.variant->open(model_, Base::full, no_adapters, chosen.machine);
    }
    progress_.say(concat("step ", metric.step, ": measuring ", guard_.size(), " probes"));
    try {
      Guard::Measured now = guard_.measure(training_->session(), base_.get());
      metric.probes = std::move(now.figures);
      measured_ = now.note;
      return now.unmet;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::interrupted) throw;
      return std::nullopt;
    }
  }
  /// The newest checkpoint, but for one whose measurement was owed and has just been made, is the last measurement at
  /// which all was as asked.
  int go_back(int step, const std::string& unmet) {
    const fs::path root = step_.out / "checkpoints";
    CheckpointSearch found = load_latest_checkpoint(root);
    while (found.checkpoint && owes_measurement(*found.checkpoint)) {
      qlora::detail::remove_checkpoint(root, found.checkpoint->step);
      found = load_latest_checkpoint(root);
    }
    if (!found.checkpoint) {
      throw Error(concat("the guard ", unmet, " is not met at step ", step,
                         ", where it was first measured; measure more often (--every), or lower --lr"),
                  ErrorKind::unmet);
    }
    training_->restore(*found.checkpoint);
    progress_.say(concat("step ", step, ": the guard ", unmet, " is not met; going back to step ",
                         found.checkpoint->step, ", the last that met it"));
    return step;
  }

  [[nodiscard]] static bool owes_measurement(const Checkpoint& checkpoint) {
    const Json* owes = json_find(checkpoint.state, "to_measure");
    return owes != nullptr && *owes == true;
  }

  [[nodiscard]] Method method() const { return options_.method == run::Method::full ? Method::full : Method::qlora; }
  [[nodiscard]] fs::path written() const { return trained_in(step_.out, options_.method); }

  void check() const {
    if (method() == Method::full && options_.adamw8bit) {
      throw Error("moments in 8 bits are for adapters, not for --method full", ErrorKind::usage);
    }
    if (data_.info().vocab_size != model_.shape.vocab) {
      throw Error(concat(step_.data.string(), " was packed with a vocabulary of ", data_.info().vocab_size,
                         ", the model has ", model_.shape.vocab, "; pack again with this model's tokenizer"));
    }
    if (data_.seq() > model_.max_positions) {
      throw Error(concat("windows of ", data_.seq(), " tokens; the model was made for ", model_.max_positions,
                         "; pack with a smaller --seq"));
    }
  }

  /// What a checkpoint must have been made with for this run to go on from it.
  [[nodiscard]] Json fingerprint() const {
    Json all = Json::parse(run::to_json(settings_of(step_.train)).dump());
    all["data"] = data_.fingerprint();
    all["device"] = std::string(name_of(device_));
    all["fast"] = step_.device.fast;
    if (guard_.decides()) all["guard"] = guard_.fingerprint();
    return all;
  }

  void resume() {
    const CheckpointSearch found = load_latest_checkpoint(step_.out / "checkpoints", kept_checkpoints);
    for (const std::string& why : found.skipped) progress_.say("checkpoint left out: " + why);
    if (!found.checkpoint) return;
    const Checkpoint& checkpoint = *found.checkpoint;
    if (json_at(checkpoint.state, "run", checkpoint.path.string()) != fingerprint()) {
      throw Error(step_.out.string() +
                      " holds a run with other settings or data; choose another --out, or remove it to begin anew",
                  ErrorKind::usage);
    }
    training_->restore(checkpoint);
    to_measure_ = guard_.active() && owes_measurement(checkpoint);
    progress_.say(
        concat("resuming after step ", checkpoint.step, to_measure_ ? ", whose measurement was interrupted" : ""));
  }

  Metric one_step() {
    const auto started = std::chrono::steady_clock::now();
    const int at = training_->steps_done();
    const StepReport report = training_->step(windows_.gather(data_, order_.step(at)));
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
    return {report.step,     static_cast<double>(report.step) / order_.steps_per_epoch(),
            report.loss,     report.grad_norm,
            report.lr,       report.tokens,
            report.labelled, static_cast<double>(report.tokens) / std::max(seconds.count(), 1e-9)};
  }

  void checkpoint(MetricsLog& log) {
    log.sync();
    training_->save(step_.out / "checkpoints", {{"run", fingerprint()}, {"to_measure", to_measure_}}, kept_checkpoints);
    write_state(log);
  }

  void write_state(const MetricsLog& log) const {
    write_trainer_state(step_.out / "trainer_state.json", log.metrics(),
                        {total_, options_.epochs, options_.batch, options_.checkpoint_every});
  }

  [[nodiscard]] PeftConfig adapter_config() const {
    PeftConfig config;
    config.r = options_.rank;
    config.alpha = static_cast<float>(options_.alpha);
    config.dropout = static_cast<float>(options_.dropout);
    config.rslora = options_.rslora;
    config.base_model = step_.model.string();
    config.base_fingerprint = model_.fingerprint();
    return config;
  }

  /// Of this start, measurements and checkpoints included.
  [[nodiscard]] double tokens_per_second() const {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - began_;
    return elapsed.count() > 0 ? static_cast<double>(tokens_) / elapsed.count() : 0.0;
  }
  /// Of the step that the run ended at, which need not be the last that was made.
  [[nodiscard]] double last_loss(const std::vector<Metric>& metrics) const {
    for (auto metric = metrics.rbegin(); metric != metrics.rend(); ++metric) {
      if (metric->step == training_->steps_done()) return metric->loss;
    }
    return 0.0;
  }

  [[nodiscard]] Result result(const std::vector<Metric>& metrics, int first) const {
    return {
        {"steps", training_->steps_done()},
        {"stopped_at", stopped_},
        {"resumed_after", first},
        {"windows", data_.size()},
        {"first_loss", metrics.empty() ? 0.0 : metrics.front().loss},
        {"last_loss", last_loss(metrics)},
        {"tok_per_s", tokens_per_second()},
        {"method", name_of(options_.method)},
        {"trained_parameters", method() == Method::full ? parameters(model_.shape)
                                                        : adapter_parameters(model_.shape, {.rank = options_.rank})},
        {"device", std::string(name_of(device_))},
        {"about", training_->about()},
        {"memory_bytes", training_->memory()},
        {method() == Method::full ? "model" : "adapter", written().string()}};
  }

  const TrainStep& step_;
  const run::Training& options_;
  Progress& progress_;
  hf::ModelDir model_;
  TokenDataset data_;
  DataOrder order_;
  int total_;
  Device device_ = Device::cpu;
  Guard guard_;
  std::unique_ptr<Training> training_;
  std::unique_ptr<Session> base_;  ///< of a training of all weights, where the guard needs it
  std::string measured_;           ///< by the last measurement, for the progress line
  int saved_step_ = 0;             ///< of the newest checkpoint
  int stopped_ = 0;                ///< step at which the guard ended the run
  bool to_measure_ = false;        ///< the newest step's measurement was interrupted
  std::int64_t tokens_ = 0;        ///< of this start's steps
  std::chrono::steady_clock::time_point began_;
  StepWindows windows_;
};

}  // namespace

run::Settings settings_of(const TrainSection& train) {
  run::Settings all;
  run::add_settings(all, train.options, run::Which::fingerprint, train.options.method != run::Method::full);
  if (!train.loop.guard.empty()) run::add_settings(all, train.loop, run::Which::fingerprint);
  return all;
}

fs::path trained_in(const fs::path& out, run::Method method) {
  return out / (method == run::Method::full ? "model" : "adapter");
}

void check_guard(const run::LoopProbes& loop) {
  if (!loop.guard.empty()) (void)Guard::read_probes(loop);
}

Result run_train(const TrainStep& step, Progress& progress) {
  make_directories(step.out);
  const RunLock lock(step.out / "run.lock");
  return TrainRun(step, progress).run();
}

void add_train(OptionSet app, Invocation& call) {
  OptionSet verb =
      add_verb(app, call, "train", "Train a LoRA adapter on the 4-bit model; resumes what was interrupted");
  auto step = std::make_shared<TrainStep>();
  verb.add("-m,--model", step->model, "Model directory").required().type_name("DIR");
  verb.add("-d,--data", step->data, "Packed data set").required().type_name("DIR");
  verb.add("-o,--out", step->out, "Directory of adapter, metrics and checkpoints").required().type_name("DIR");
  add_table(verb, step->train.options);
  add_table(verb, step->train.loop);
  add_table(verb, step->device);
  verb.on_call([&call, step, verb] {
    std::vector<std::string> of_adapters;
    for (const auto& option : run::Table<run::Training>::options) {
      const std::string name = run::line_name(option);
      if (option.adapters_only && verb.given(name)) of_adapters.push_back(name);
    }
    call.action = [step, of_adapters, every = verb.given("--every")](Context& context) {
      if (every && step->train.loop.probes.empty()) {
        throw Error("--every says how often probes are measured: give --probes", ErrorKind::usage);
      }
      check_no_model(step->out);
      if (step->train.options.method == run::Method::full && !of_adapters.empty()) {
        std::string all;
        for (const std::string& one : of_adapters) all += (all.empty() ? "" : ", ") + one;
        throw Error("--method full trains all weights, there are no adapters: leave out " + all, ErrorKind::usage);
      }
      const Result result = run_train(*step, context.progress);
      context.out << result["steps"] << " steps, loss " << result["first_loss"].get<double>() << " -> "
                  << result["last_loss"].get<double>() << ", "
                  << (result.contains("model") ? "model in " + result["model"].get<std::string>()
                                               : "adapter in " + result["adapter"].get<std::string>())
                  << '\n';
      return result;
    };
  });
}

}  // namespace qlora::program
