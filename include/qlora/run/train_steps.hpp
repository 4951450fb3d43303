// qlora/run/train_steps.hpp — the code of run/train.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/lock.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/model/limits.hpp"
#include "qlora/run/adapter.hpp"
#include "qlora/run/guard.hpp"
#include "qlora/run/hub_cache.hpp"
#include "qlora/run/json.hpp"
#include "qlora/run/model_files.hpp"
#include "qlora/run/rank_progress.hpp"
#include "qlora/run/rank_team.hpp"
#include "qlora/run/registry.hpp"
#include "qlora/run/train.hpp"
#include "qlora/run/training_log.hpp"
#include "qlora/run/units.hpp"
#include "qlora/text/step_windows.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

namespace detail {

class TrainingRun {
 public:
  TrainingRun(const TrainRequest& request, Progress& progress)
      : request_(request),
        options_(request.options),
        progress_(progress),
        model_(hf::ModelDir::open(request.model, verify_of(request.device))),
        data_(TokenDataset::open(request.data)),
        order_(static_cast<int>(data_.size()), options_.batch * options_.accumulate,
               static_cast<std::uint64_t>(options_.seed)),
        total_(total_steps()),
        guard_(request.loop, model_, request.chat, request.device.threads),
        ranks_(request.launch, progress) {
    check();
    Selection selected = select_code(model_.shape, lora(), request.device, options_.method);
    selected.code->expect_products(options_.products, request.launch);
    device_ = selected.device.device;
    selected.device.launch = request.launch;
    selected.device.watch = [this](double seconds) { ranks_.watch_joining(seconds); };
    training_ = selected.code->train(model_, trainer_options<TrainOptions>(options_, total_, data_.seq()),
                                     options_.recompute, guard_.limits(), selected.device);
    say_note(model_, progress_);
    ranks_.begin(training_->comm());
    if (request.launch.size > options_.accumulate) {
      progress_.say(concat("a step has ", options_.accumulate, " micro-batches for ", request.launch.size,
                           " processes, some of which only wait; a smaller --batch and a larger --accumulate make the "
                           "same step of more"));
    }
    progress_.say("training on " + training_->about() + ranks_.about() + ", " + gigabytes(training_->memory()));
  }
  TrainingRun(const TrainingRun&) = delete;
  TrainingRun& operator=(const TrainingRun&) = delete;

  TrainResult run() {
    resume();
    const int first = saved_step_ = training_->steps_done();
    std::optional<TrainingLog> log;  // of rank 0
    ranks_.on_first([&] {
      expect_room();
      log.emplace(request_.out / "metrics.jsonl", first);
      if (log->damaged() == 0) return;
      progress_.say(concat((request_.out / "metrics.jsonl").string(), ": ", log->damaged(),
                           " lines were damaged or cut short and are left out"));
    });
    progress_.begin("train", total_, "steps", first);
    began_ = std::chrono::steady_clock::now();
    bool going = true;
    if (owes_measurement_) going = settle(log ? log->newest(first) : StepRecord{.step = first}, log, true);
    while (going && training_->steps_done() < total_) going = settle(one_step(), log, false);
    ranks_.on_first([&] {
      if (trains_all()) std::filesystem::remove_all(written());  // of a run that was killed after it wrote the model
      training_->write(written(), adapter_notes(), model_);
      write_state(*log);
    });
    progress_.end((trains_all() ? "model in " : "adapter in ") + written().string());
    return result(log ? log->records() : std::vector<StepRecord>{}, first);
  }

 private:
  /// Completes a step: its measurement, its record, its checkpoint. `again`: the step is in the record, and its
  /// measurement was interrupted. False: the guard has ended the run.
  bool settle(StepRecord record, std::optional<TrainingLog>& log, bool again) {
    const bool due = again || guard_.due(record.step, total_);
    std::optional<std::string> unmet;
    if (due) unmet = measure(record);
    owes_measurement_ = due && !unmet;
    ranks_.on_first([&] {
      again ? log->amend(record) : log->add(record);
      if (request_.on_step) request_.on_step(record);
    });
    if (!again) tokens_ += record.tokens;
    std::array<char, 96> note{};
    std::snprintf(note.data(), note.size(), "loss %.4f, gradient norm %.3g, %s", record.loss, record.grad_norm,
                  gigabytes(training_->memory()).c_str());
    progress_.update(record.step, tokens_, note.data() + measured_);
    if (unmet && !unmet->empty()) {
      stopped_at_ = go_back(record.step, *unmet);
      return false;
    }
    const bool stop = owes_measurement_ || (ranks_.any(progress_.stop_requested()) && record.step < total_);
    // Where a guard decides, a checkpoint is a step whose measurement met it, which the run may go back to, or one
    // whose measurement is owed, which is made before anything else and which the run never goes back to.
    const bool saved = guard_.decides() ? due : stop || again || record.step % options_.checkpoint_every == 0;
    if (saved || record.step == total_) {
      save(log);
      saved_step_ = record.step;
    }
    if (stop) {
      if (saved_step_ == 0) {
        throw Error(concat("interrupted at step ", record.step, " of ", total_,
                           " before the first checkpoint of a run ", "with a guard; the same command begins anew"),
                    ErrorKind::interrupted);
      }
      throw Error(concat("interrupted; step ", saved_step_, " of ", total_, " is saved in ", request_.out.string(),
                         ", the same command goes on from there"),
                  ErrorKind::interrupted);
    }
    return true;
  }

  /// Adds metrics to the step's record. The result is what the guard finds unmet; nothing: the measurement was
  /// interrupted.
  std::optional<std::string> measure(StepRecord& record) {
    std::optional<std::string> unmet;
    ranks_.on_first([&] { unmet = measure_here(record); });
    const std::string told = ranks_.broadcast(unmet ? "1" + *unmet : "");
    return told.empty() ? std::nullopt : std::optional(told.substr(1));
  }
  std::optional<std::string> measure_here(StepRecord& record) {
    if (trains_all() && base_ == nullptr) {  // its weights are not in this model any more
      const DeviceRequest on_cpu{.use = DeviceUse::cpu, .threads = request_.device.threads};
      const Selection selected = select_code(model_.shape, no_adapters, on_cpu);
      base_ = selected.code->open(model_, BaseWeights::full, no_adapters, selected.device)->open_session();
    }
    progress_.say(concat("step ", record.step, ": measuring ", guard_.size(), " probes"));
    try {
      Guard::Measured now = guard_.measure(training_->session(), base_.get(), progress_);
      record.probes = std::move(now.metrics);
      measured_ = now.note;
      return now.unmet;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::interrupted) throw;
      return std::nullopt;
    }
  }

  /// Restores the last checkpoint whose measurement met the guard: the newest, but for one whose measurement was owed
  /// and has just been made. Returns the step that the guard ended.
  int go_back(int step, const std::string& unmet) {
    const CheckpointSearch found = ranks_.search(checkpoints(), [](const std::filesystem::path& root) {
      CheckpointSearch all = load_latest_checkpoint(root);
      while (all.checkpoint && owes_measurement(*all.checkpoint)) {
        qlora::detail::remove_checkpoint(root, all.checkpoint->step);
        all = load_latest_checkpoint(root);
      }
      return all;
    });
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

  [[nodiscard]] int total_steps() const {
    const std::int64_t total = std::int64_t{order_.steps_per_epoch()} * options_.epochs;
    if (total > std::numeric_limits<int>::max()) {
      throw Error(concat("a run of ", total, " steps: at most ", std::numeric_limits<int>::max(),
                         " can be counted; train fewer --epochs or larger batches"),
                  ErrorKind::usage);
    }
    return static_cast<int>(total);
  }
  [[nodiscard]] static bool owes_measurement(const Checkpoint& checkpoint) {
    const Json* owes = json_find(checkpoint.state, "to_measure");
    return owes != nullptr && *owes == true;
  }
  static constexpr const char* base_checksum = "base_checksum";
  [[nodiscard]] std::filesystem::path checkpoints() const { return request_.out / "checkpoints"; }
  [[nodiscard]] bool trains_all() const { return options_.method == Method::full; }
  [[nodiscard]] Lora lora() const { return {.rank = options_.rank, .targets = options_.targets}; }
  [[nodiscard]] std::filesystem::path written() const { return trained_in(request_.out, options_.method); }

  void check() {
    for (const std::filesystem::path& folder : {written(), request_.out / "checkpoints"}) {
      if (std::filesystem::exists(folder) && !std::filesystem::is_directory(folder)) {
        throw Error(folder.string() + " is a file, and the run writes a folder there; choose another --out",
                    ErrorKind::usage);
      }
    }
    check_training(options_);
    if (!trains_all() && options_.init == AdapterInit::loftq && model_.nf4) {
      throw Error(concat(model_.path.string(), " is stored in 4 bits (quantization_config), and --init loftq begins ",
                         "with what quantization lost of the weights in 16 or 32 bits; give the model that it was ",
                         "quantized from, or leave --init out"));
    }
    if (trains_all()) check_model_folder();
    // A model's vocabulary may be padded beyond its tokenizer's; then the tokenizer must be the one that packed.
    const bool padded = data_.info().vocab_size < model_.shape.vocab && has_tokenizer_of_data();
    if (data_.info().vocab_size != model_.shape.vocab && !padded) {
      throw Error(concat(request_.data.string(), " was packed with a vocabulary of ", data_.info().vocab_size,
                         ", the model has ", model_.shape.vocab, "; pack again with this model's tokenizer"));
    }
    expect_length(data_.seq(), model_.max_positions, model_.limited_by);
    check_labels();
  }

  /// Whether a tokenizer file of the model packed the data: either of two, since a merged model has a tokenizer.json
  /// that its base may lack.
  [[nodiscard]] bool has_tokenizer_of_data() const {
    return std::ranges::any_of(std::array{"tokenizer.json", "tokenizer.model"}, [&](const char* name) {
      const std::filesystem::path file = model_.path / name;
      return std::filesystem::exists(file) && sha256_file(file) == data_.info().tokenizer_sha256;
    });
  }
  /// A step whose windows have no label has no loss, and would end the run in the midst of it.
  void check_labels() {
    std::vector<char> labelled(data_.size());
    for (std::size_t i = 0; i < data_.size(); ++i) {
      const auto labels = data_.window(i).labels.subspan(1);  // the first is never asked for
      labelled[i] =
          std::any_of(labels.begin(), labels.end(), [](std::int32_t label) { return label != ignored_label; });
    }
    if (std::all_of(labelled.begin(), labelled.end(), [](char flag) { return flag != 0; })) return;
    for (int step = 0; step < total_; ++step) {
      const auto windows = order_.step(step);
      if (std::none_of(windows.begin(), windows.end(), [&](auto i) { return labelled[static_cast<std::size_t>(i)]; })) {
        throw Error(concat("step ", step + 1, " would have windows without a label alone; pack ",
                           request_.data.string(), " again, which leaves such windows out"));
      }
    }
  }

  /// Throws Error (resource) unless the disk has room for what this run will keep: the checkpoints, one more while it
  /// is saved, and the result.
  void expect_room() const {
    const auto there =
        std::min<std::size_t>(qlora::detail::checkpoint_steps(request_.out / "checkpoints").size(), kept_checkpoints);
    expect_free_space(request_.out, training_bytes_on_disk(model_.shape, options_, kept_checkpoints + 1 - there));
  }
  [[nodiscard]] std::int64_t trained_values() const {
    return trains_all() ? parameters(model_.shape) : adapter_parameters(model_.shape, lora());
  }

  /// The folder of the trained model is replaced when the run ends. Throws Error (usage) unless it is absent, empty, or
  /// holds a model that a run in the same directory wrote.
  void check_model_folder() const {
    const std::filesystem::path folder = written();
    if (!std::filesystem::exists(folder)) return;
    const auto refuse = [&](const std::string& why) {
      throw Error(concat(folder.string(), " ", why, "; choose another --out"), ErrorKind::usage);
    };
    if (!std::filesystem::is_directory(folder)) refuse("is not a folder");
    if (std::filesystem::equivalent(folder, request_.model)) refuse("is the model to be trained");
    const bool is_run = std::filesystem::exists(request_.out / "checkpoints");
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (!is_run || !entry.is_regular_file() || !hf::is_model_file(name)) {
        refuse(concat("holds ", name, ", which no training here wrote"));
      }
    }
  }

  /// What a checkpoint must have been made with for this run to continue from it.
  [[nodiscard]] Json fingerprint() const {
    Json all = Json::parse(to_json(train_settings(options_, request_.loop)).dump());
    all["data"] = data_.identity();
    all["base"] = model_.fingerprint();
    if (const std::string sum = model_.checksum(); !sum.empty()) all[base_checksum] = sum;
    all["device"] = std::string(name_of(device_));
    all["fast"] = request_.device.fast;
    if (guard_.decides()) {
      const LoopProbes& loop = guard_.loop();
      all["guard"] = {{"requirements", loop.guard}, {"every", loop.every}, {"probes", guard_.probe_hashes()}};
      if (const std::string form = guard_.chat_fingerprint(); !form.empty()) all["guard"]["chat_template"] = form;
    }
    return all;
  }

  /// What comes before the first step of a run without a checkpoint. One with a checkpoint has what came of it there.
  void begin_anew() {
    training_->use_algorithms(checkpoints());
    if (trains_all() || options_.init != AdapterInit::loftq) return;
    progress_.begin("init", adapted_matrices(), "matrices");
    const double left = training_->init_from_residual(model_, static_cast<std::uint64_t>(options_.seed), progress_);
    std::array<char, 96> text{};
    std::snprintf(text.data(), text.size(), "adapters give back %.1f %% of what quantization lost (sum of squares)",
                  100.0 * (1.0 - left));
    progress_.end(text.data());
  }
  [[nodiscard]] int adapted_matrices() const {
    int kinds = 0;
    for (const Proj proj : all_projections) kinds += contains(options_.targets, proj) ? 1 : 0;
    return kinds * model_.shape.layers;
  }

  void resume() {
    const CheckpointSearch found = ranks_.search(checkpoints(), [&](const std::filesystem::path& folder) {
      if (request_.restart) {
        for (const std::int64_t step : qlora::detail::checkpoint_steps(folder))
          qlora::detail::remove_checkpoint(folder, step);
      }
      return load_latest_checkpoint(folder, kept_checkpoints);
    });
    for (const std::string& why : found.skipped) progress_.say("checkpoint left out: " + why);
    if (!found.checkpoint && !found.skipped.empty()) {
      throw Error(concat("no checkpoint in ", checkpoints().string(), " can be read, the newest because ",
                         found.skipped.front(), "; --restart begins anew, in a job --again train"));
    }
    if (!found.checkpoint) return begin_anew();
    const Checkpoint& checkpoint = *found.checkpoint;
    Json saved = json_at(checkpoint.state, "run", checkpoint.path.string());
    Json ours = fingerprint();
    const bool known = json_find(saved, base_checksum) != nullptr && json_find(ours, base_checksum) != nullptr;
    const bool damaged = known && saved[base_checksum] != ours[base_checksum];
    const Json* data = json_find(saved, "data");
    if (data != nullptr && *data == data_.fingerprint()) saved["data"] = ours["data"];  // as earlier versions have it
    saved.erase(base_checksum);
    ours.erase(base_checksum);
    if (json_find(saved, "base") == nullptr) ours.erase("base");  // of a checkpoint from before it was recorded
    if (saved != ours) {
      throw Error(request_.out.string() +
                      " holds a run with other settings, data or base model; choose another --out, or remove "
                      "it to begin anew",
                  ErrorKind::usage);
    }
    if (damaged) {
      throw Error(concat(model_.path.string(), " holds other weights than those that the run in ",
                         request_.out.string(),
                         " began with, although all tensors begin alike: the file is damaged, or was changed; fetch "
                         "the model again"));
    }
    training_->restore(checkpoint);
    owes_measurement_ = guard_.active() && owes_measurement(checkpoint);
    progress_.say(concat("resuming after step ", checkpoint.step,
                         owes_measurement_ ? ", whose measurement was interrupted" : ""));
  }

  StepRecord one_step() {
    const auto started = std::chrono::steady_clock::now();
    const int at = training_->steps_done();
    ranks_.begin_step(at + 1);
    const StepReport report = training_->step(windows_.gather(data_, order_.step(at)));
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
    ranks_.end_step(at + 1, seconds.count());
    return {report.step,     static_cast<double>(report.step) / order_.steps_per_epoch(),
            report.loss,     report.grad_norm,
            report.lr,       report.tokens,
            report.labelled, static_cast<double>(report.tokens) / std::max(seconds.count(), 1e-9)};
  }

  void save(std::optional<TrainingLog>& log) {
    ranks_.on_all([&] {
      if (log) log->sync();
      training_->save(request_.out / "checkpoints", {fingerprint().dump(), owes_measurement_}, kept_checkpoints);
      if (log) write_state(*log);
    });
    progress_.saved();
  }

  void write_state(const TrainingLog& log) const {
    write_trainer_state(request_.out / "trainer_state.json", log.records(),
                        {training_->steps_done(), total_, options_.epochs, options_.batch, options_.checkpoint_every});
  }

  [[nodiscard]] AdapterNotes adapter_notes() const {
    return {.dropout = static_cast<float>(options_.dropout),
            .base_model = name_for_others(request_.model),
            .base_fingerprint = model_.fingerprint(),
            .base_checksum = model_.checksum()};
  }

  [[nodiscard]] double last_loss(const std::vector<StepRecord>& records) const {
    for (auto record = records.rbegin(); record != records.rend(); ++record) {
      if (record->step == training_->steps_done()) return record->loss;
    }
    return 0.0;
  }
  [[nodiscard]] double tokens_per_second() const {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - began_;
    return elapsed.count() > 0 ? static_cast<double>(tokens_) / elapsed.count() : 0.0;
  }

  [[nodiscard]] TrainResult result(const std::vector<StepRecord>& records, int first) const {
    return {.steps = training_->steps_done(),
            .stopped_at = stopped_at_,
            .resumed_after = first,
            .windows = data_.size(),
            .first_loss = records.empty() ? 0.0 : records.front().loss,
            .last_loss = last_loss(records),
            .tok_per_s = tokens_per_second(),
            .method = options_.method,
            .trained_parameters = trained_values(),
            .device = device_,
            .about = training_->about(),
            .memory_bytes = training_->memory(),
            .trained = written()};
  }

  const TrainRequest& request_;
  const Training& options_;
  Progress& progress_;
  hf::ModelDir model_;
  TokenDataset data_;
  DataOrder order_;
  int total_;
  Device device_ = Device::cpu;
  Guard guard_;
  RankTeam ranks_;  ///< before the training, whose Comm asks it
  std::unique_ptr<TrainingSession> training_;
  std::unique_ptr<Session> base_;  ///< of a training of all weights, where the guard needs it
  std::string measured_;           ///< by the last measurement, for the progress line
  int saved_step_ = 0;             ///< of the newest checkpoint
  int stopped_at_ = 0;
  bool owes_measurement_ = false;  ///< the newest step's measurement was interrupted
  std::int64_t tokens_ = 0;        ///< of this start's steps
  std::chrono::steady_clock::time_point began_;
  StepWindows windows_;
};

}  // namespace detail

QLORA_STEP TrainResult train(const TrainRequest& request, Progress& progress) {
  make_directories(request.out);
  std::optional<RunLock> lock;
  if (request.launch.rank == 0) {
    lock.emplace(request.out / "run.lock");
    remove_stale_temporaries(request.out);
  }
  if (request.launch.size == 1) return detail::TrainingRun(request, progress).run();
  RankProgress ranked(progress, request.launch, request.out);
  try {
    return detail::TrainingRun(request, ranked).run();
  } catch (const Error& error) {
    ranked.note(error.what());
    throw;
  }
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
