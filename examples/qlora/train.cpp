// train.cpp — `qlora train`: windows to an adapter, or to a model all of whose weights were trained. Everything that decides a step is a function of its number, so that
// an interrupted run goes on from its newest checkpoint as if nothing had happened.
#include <array>
#include <chrono>
#include <cmath>
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
#include "qlora/text/step_windows.hpp"
#include "steps.hpp"
#include "variant.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

/// Checkpoints that are kept: the newest, and one that is older in case the disk damages it.
constexpr int kept_checkpoints = 2;

Schedule schedule_of(const std::string& name) {
  return name == "cosine" ? Schedule::cosine : name == "constant" ? Schedule::constant : Schedule::linear;
}

RecomputeChoice recompute_of(const std::string& name) {
  return name == "none"    ? RecomputeChoice::none
         : name == "cheap" ? RecomputeChoice::cheap
         : name == "block" ? RecomputeChoice::block
                           : RecomputeChoice::automatic;
}

class TrainRun {
 public:
  TrainRun(const TrainStep& step, Progress& progress)
      : step_(step),
        progress_(progress),
        model_(hf::ModelDir::open(step.model)),
        data_(TokenDataset::open(step.data)),
        order_(static_cast<int>(data_.size()), step.train.batch * step.train.accumulate,
               static_cast<std::uint64_t>(step.train.seed)),
        total_(order_.steps_per_epoch() * step.train.epochs),
        guard_(step.train, model_) {
    check();
    const Chosen chosen = choose_variant(model_.shape, step.train.rank, step.device, step.threads, method());
    device_ = chosen.machine.device;
    training_ =
        chosen.variant->train(model_, options(), recompute_of(step.train.recompute), guard_.room(), chosen.machine);
    progress_.say("training on " + training_->about() + ", " + gigabytes(training_->memory()));
  }

  Result run() {
    resume();
    const int first = saved_step_ = training_->steps_done();
    MetricsLog log(step_.out / "metrics.jsonl", first);
    progress_.begin("train", total_, "steps", first);
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
    const bool saved = guard_.decides() ? due : stop || again || metric.step % step_.train.checkpoint_every == 0;
    if (saved || metric.step == total_) {
      checkpoint(log);
      saved_step_ = metric.step;
    }
    if (stop) {
      throw Error(qlora::detail::concat("interrupted; step ", saved_step_, " of ", total_, " is saved in ",
                                        step_.out.string(), ", the same command goes on from there"),
                  ErrorKind::interrupted);
    }
    return true;
  }
  /// Figures into the step's record; what of the guard is not met. Nothing: it was interrupted.
  std::optional<std::string> measure(Metric& metric) {
    if (method() == Method::full && base_ == nullptr) {  // not in this model any more
      const Chosen chosen = choose_variant(model_.shape, 1, {.use = "cpu", .memory_cap = {}}, step_.threads);
      base_ = chosen.variant->open(model_, Base::full, chosen.machine);
    }
    progress_.say(qlora::detail::concat("step ", metric.step, ": measuring ", guard_.size(), " probes"));
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
      throw Error(qlora::detail::concat("the guard ", unmet, " is not met at step ", step,
                                        ", where it was first measured; measure more often (--every), or lower --lr"),
                  ErrorKind::unmet);
    }
    training_->restore(*found.checkpoint);
    progress_.say(qlora::detail::concat("step ", step, ": the guard ", unmet, " is not met; going back to step ",
                                        found.checkpoint->step, ", the last that met it"));
    return step;
  }

  [[nodiscard]] static bool owes_measurement(const Checkpoint& checkpoint) {
    const Json* owes = json_find(checkpoint.state, "to_measure");
    return owes != nullptr && *owes == true;
  }

  [[nodiscard]] Method method() const { return step_.train.method == "full" ? Method::full : Method::qlora; }
  [[nodiscard]] fs::path written() const { return trained_in(step_.out, step_.train); }

  void check() const {
    if (method() == Method::full && step_.train.moments8) {
      throw Error("moments in 8 bits are for adapters, not for --method full", ErrorKind::usage);
    }
    if (data_.info().vocab_size != model_.shape.vocab) {
      throw Error(qlora::detail::concat(step_.data.string(), " was packed with a vocabulary of ",
                                        data_.info().vocab_size, ", the model has ", model_.shape.vocab,
                                        "; pack again with this model's tokenizer"));
    }
    if (data_.seq() > model_.max_positions) {
      throw Error(qlora::detail::concat("windows of ", data_.seq(), " tokens; the model was made for ",
                                        model_.max_positions, "; pack with a smaller --seq"));
    }
  }

  [[nodiscard]] TrainOptions options() const {
    const TrainSection& t = step_.train;
    TrainOptions o;
    o.rank = t.rank;
    o.alpha = static_cast<float>(t.alpha);
    o.rank_stabilized = t.rslora;
    o.dropout = static_cast<float>(t.dropout);
    o.lr = static_cast<float>(t.lr);
    o.schedule = schedule_of(t.schedule);
    o.warmup_steps = static_cast<int>(t.warmup < 1 ? std::ceil(t.warmup * total_) : t.warmup);
    o.total_steps = total_;
    o.weight_decay = static_cast<float>(t.weight_decay);
    o.max_grad_norm = static_cast<float>(t.max_grad_norm);
    o.adamw8bit = t.moments8;
    o.seed = static_cast<std::uint64_t>(t.seed);
    o.batch = t.batch;
    o.seq = data_.seq();
    return o;
  }

  /// What a checkpoint must have been made with for this run to go on from it.
  [[nodiscard]] Json fingerprint() const {
    Json all = Json::parse(settings_of(step_.train).dump());
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
    progress_.say(qlora::detail::concat("resuming after step ", checkpoint.step,
                                        to_measure_ ? ", whose measurement was interrupted" : ""));
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
                        {total_, step_.train.epochs, step_.train.batch, step_.train.checkpoint_every});
  }

  [[nodiscard]] PeftConfig adapter_config() const {
    PeftConfig config;
    config.r = step_.train.rank;
    config.alpha = static_cast<float>(step_.train.alpha);
    config.dropout = static_cast<float>(step_.train.dropout);
    config.rslora = step_.train.rslora;
    config.base_model = step_.model.string();
    config.base_fingerprint = model_.fingerprint();
    return config;
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
        {"tok_per_s", progress_.tokens_per_second()},
        {"method", step_.train.method},
        {"trained_parameters", method() == Method::full ? parameters(model_.shape)
                                                        : adapter_parameters(model_.shape, {.rank = step_.train.rank})},
        {"device", std::string(name_of(device_))},
        {"about", training_->about()},
        {"memory_bytes", training_->memory()},
        {method() == Method::full ? "model" : "adapter", written().string()}};
  }

  const TrainStep& step_;
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
  StepWindows windows_;
};

}  // namespace

Result settings_of(const TrainSection& t) {
  Result all{{"method", t.method},
             {"lr", t.lr},
             {"schedule", t.schedule},
             {"warmup", t.warmup},
             {"epochs", t.epochs},
             {"batch", t.batch},
             {"accumulate", t.accumulate},
             {"weight_decay", t.weight_decay},
             {"max_grad_norm", t.max_grad_norm},
             {"seed", t.seed}};
  if (t.method != "full") {
    all.update(Result{
        {"rank", t.rank}, {"alpha", t.alpha}, {"rslora", t.rslora}, {"dropout", t.dropout}, {"moments8", t.moments8}});
  }
  if (!t.guard.empty()) all.update(Result{{"guard", t.guard}, {"every", t.every}});
  return all;
}

fs::path trained_in(const fs::path& out, const TrainSection& train) {
  return out / (train.method == "full" ? "model" : "adapter");
}

void check_guard(const TrainSection& train) {
  if (!train.guard.empty()) (void)Guard::read_probes(train);
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
  TrainSection& t = step->train;
  verb.add("-m,--model", step->model, "Model directory").required().type_name("DIR");
  verb.add("-d,--data", step->data, "Packed data set").required().type_name("DIR");
  verb.add("-o,--out", step->out, "Adapter, metrics and checkpoints go here").required().type_name("DIR");
  verb.add("--method", t.method, "qlora: adapters on the 4-bit model; full: every weight of the 16-bit one, on the CPU")
      .one_of({"qlora", "full"});
  verb.add("--rank", t.rank,
           "Rank of the adapters; this, --alpha, --rslora, --dropout and --moments8 are not for --method full")
      .range(1, 1024);
  verb.add("--alpha", t.alpha, "Adapter scale is alpha / rank").positive();
  verb.add("--rslora", t.rslora, "Adapter scale is alpha / sqrt(rank)");
  verb.add("--dropout", t.dropout, "On the adapters' input").range(0.0, 0.99);
  verb.add("--lr", t.lr, "Highest learning rate").range(0.0, 10.0);
  verb.add("--schedule", t.schedule, "Learning rate over the run").one_of({"linear", "cosine", "constant"});
  verb.add("--warmup", t.warmup, "Steps of rising learning rate; below 1: a part of the run").non_negative();
  verb.add("--epochs", t.epochs, "Times over the data").range(1, 1000000);
  verb.add("--batch", t.batch, "Windows in a micro-batch").range(1, 4096);
  verb.add("--accumulate", t.accumulate, "Micro-batches in a step").range(1, 65536);
  verb.add("--weight-decay", t.weight_decay, "AdamW's decay").range(0.0, 1.0);
  verb.add("--max-grad-norm", t.max_grad_norm, "Gradient norm is clipped to this; 0: never").non_negative();
  verb.add("--moments8", t.moments8, "AdamW's moments in 8 bits: a quarter of their memory");
  verb.add("--seed", t.seed, "Of data order, initial adapters and dropout").non_negative();
  verb.add("--checkpoint-every", t.checkpoint_every, "Steps between checkpoints").range(1, 1000000000);
  verb.add("--probes", t.probes, "Measured during training, beside the base: .jsonl").type_name("FILE...");
  verb.add("--every", t.every, "Steps between measurements").range(1, 1000000000);
  verb.add("--guard", t.guard, "Ends training when it fails, and goes back to when it held: retention.lower>=0.95")
      .type_name("TEXT...");
  verb.add("--recompute", t.recompute,
           "What the backward pass computes again to save memory; auto: what the GPU's memory asks for, on the CPU "
           "nothing")
      .one_of({"auto", "none", "cheap", "block"});
  add_device_options(verb, step->device, step->threads);
  verb.on_call([&call, step, verb] {
    std::vector<std::string> of_adapters;
    for (const std::string_view name : adapter_settings) {
      if (verb.given(qlora::detail::concat("--", name))) of_adapters.push_back(qlora::detail::concat("--", name));
    }
    call.action = [step, of_adapters, every = verb.given("--every")](Context& context) {
      if (every && step->train.probes.empty()) {
        throw Error("--every says how often probes are measured: give --probes", ErrorKind::usage);
      }
      check_no_model(step->out);
      if (step->train.method == "full" && !of_adapters.empty()) {
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
