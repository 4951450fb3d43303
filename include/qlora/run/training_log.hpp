// qlora/run/training_log.hpp — the record of a training run: metrics.jsonl, one line a step, and trainer_state.json in
// the form that transformers writes.
// What may not change: a resumed run's record is that of an uninterrupted one, but for the measured tok_per_s. So the
// lines of steps that will be repeated are cut off when the record is opened.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/run/json.hpp"
#include "qlora/run/report.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// The record of one step.
struct StepRecord {
  int step = 0;                      ///< counts from 1
  double epoch = 0;                  ///< epochs done after this step, a fraction inside one
  double loss = 0;                   ///< nats per labelled token
  double grad_norm = 0;              ///< before clipping
  double lr = 0;                     ///< learning rate of the step
  std::int64_t tokens = 0;           ///< positions of this step, padding included
  std::int64_t labelled_tokens = 0;  ///< of these, the ones that were to be predicted
  double tok_per_s = 0;              ///< positions a second, of this step
  eval::Metrics probes{};            ///< measured after this step; empty: nothing was
};

/// The step as a line of metrics.jsonl.
[[nodiscard]] inline OrderedJson to_json(const StepRecord& m) {
  OrderedJson line{{"step", m.step},
                   {"epoch", m.epoch},
                   {"loss", m.loss},
                   {"grad_norm", m.grad_norm},
                   {"lr", m.lr},
                   {"tokens", m.tokens},
                   {"labelled_tokens", m.labelled_tokens},
                   {"tok_per_s", m.tok_per_s}};
  if (!m.probes.empty()) line["probes"] = to_json(m.probes);
  return line;
}

/// A line of metrics.jsonl; what is missing or of another type is 0.
[[nodiscard]] inline StepRecord step_record_from_json(const OrderedJson& line) {
  const auto real = [&](const char* key) {
    return line.contains(key) && line[key].is_number() ? line[key].get<double>() : 0.0;
  };
  const auto whole = [&](const char* key) {
    return line.contains(key) && line[key].is_number_integer() ? line[key].get<std::int64_t>() : 0;
  };
  return {static_cast<int>(whole("step")),
          real("epoch"),
          real("loss"),
          real("grad_norm"),
          real("lr"),
          whole("tokens"),
          whole("labelled_tokens"),
          real("tok_per_s"),
          line.contains("probes") ? metrics_from_json(line["probes"]) : eval::Metrics()};
}

/// Lines of a metrics.jsonl; reading ends at the first that is not whole, which a killed run may leave.
[[nodiscard]] inline std::vector<StepRecord> read_training_log(const std::filesystem::path& file) {
  std::vector<StepRecord> records;
  if (!std::filesystem::exists(file)) return records;
  const std::string text = read_text(file, std::size_t{1} << 30);
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    if (end == std::string::npos) break;
    const auto line = OrderedJson::parse(text.begin() + static_cast<std::ptrdiff_t>(at),
                                         text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    at = end + 1;
    if (!line.is_object()) break;
    records.push_back(step_record_from_json(line));
  }
  return records;
}

/// The curves of a record, for a report. `name`: the variant that the training led to.
[[nodiscard]] inline TrainingCurves training_curves(const std::string& name, const std::filesystem::path& file) {
  TrainingCurves curves{.name = name};
  for (const StepRecord& record : read_training_log(file)) {
    curves.step.push_back(record.step);
    curves.loss.push_back(record.loss);
    curves.lr.push_back(record.lr);
    curves.grad_norm.push_back(record.grad_norm);
  }
  return curves;
}

/// Appends to metrics.jsonl, and keeps all records in memory.
class TrainingLog {
 public:
  /// Opens the record of a run that has done `steps` steps.
  TrainingLog(std::filesystem::path file, int steps) : path_(std::move(file)), records_(read_training_log(path_)) {
    std::erase_if(records_, [&](const StepRecord& m) { return m.step > steps; });
    write_whole();
  }

  /// Appends one line. Throws Error when it cannot be written.
  void add(const StepRecord& record) {
    const std::string line = to_json(record).dump() + "\n";
    write_all(file_, path_, size_, std::as_bytes(std::span(line)));
    size_ += line.size();
    records_.push_back(record);
  }
  /// The record of the newest step; its number alone if the file was removed.
  [[nodiscard]] StepRecord newest(int step) const {
    return records_.empty() || records_.back().step != step ? StepRecord{.step = step} : records_.back();
  }
  /// Replaces the newest line, by one with the step's measurement.
  void amend(const StepRecord& record) {
    if (records_.empty() || records_.back().step < record.step) records_.emplace_back();
    QLORA_EXPECTS(records_.back().step <= record.step, "step ", record.step, " is not the newest");
    records_.back() = record;
    write_whole();
  }
  /// Makes the record durable. Called before a checkpoint is written, so that the record is never behind it.
  void sync() { sync_file(file_, path_); }
  /// All steps so far, by rising number.
  [[nodiscard]] const std::vector<StepRecord>& records() const { return records_; }

 private:
  void write_whole() {
    std::string text;
    for (const StepRecord& m : records_) text += to_json(m).dump() + "\n";
    write_file_atomically(path_, text);
    size_ = text.size();
    file_ = FileDescriptor::open("cannot write", path_, O_WRONLY);
  }

  std::filesystem::path path_;
  std::vector<StepRecord> records_;
  FileDescriptor file_;
  std::uint64_t size_ = 0;
};

/// What trainer_state.json says besides the log.
struct TrainerState {
  int max_steps = 0;   ///< optimizer steps of the whole run
  int epochs = 0;      ///< of the whole run
  int batch = 0;       ///< windows in a micro-batch
  int save_steps = 0;  ///< checkpoint interval in steps
};

/// trainer_state.json with transformers' keys and order, loss of every step in log_history.
inline void write_trainer_state(const std::filesystem::path& file, const std::vector<StepRecord>& records,
                                const TrainerState& state) {
  nlohmann::json history = nlohmann::json::array();
  std::int64_t tokens = 0;
  for (const StepRecord& m : records) {
    history.push_back(
        {{"epoch", m.epoch}, {"grad_norm", m.grad_norm}, {"learning_rate", m.lr}, {"loss", m.loss}, {"step", m.step}});
    tokens += m.tokens;
  }
  const nlohmann::json whole{{"best_global_step", nullptr},
                             {"best_metric", nullptr},
                             {"best_model_checkpoint", nullptr},
                             {"epoch", records.empty() ? 0.0 : records.back().epoch},
                             {"eval_steps", 500},
                             {"global_step", records.empty() ? 0 : records.back().step},
                             {"is_hyper_param_search", false},
                             {"is_local_process_zero", true},
                             {"is_world_process_zero", true},
                             {"log_history", history},
                             {"logging_steps", 1},
                             {"max_steps", state.max_steps},
                             {"num_input_tokens_seen", tokens},
                             {"num_train_epochs", state.epochs},
                             {"save_steps", state.save_steps},
                             {"stateful_callbacks", nlohmann::json::object()},
                             {"total_flos", 0.0},
                             {"train_batch_size", state.batch},
                             {"trial_name", nullptr},
                             {"trial_params", nullptr}};
  write_file_atomically(file, whole.dump(2) + "\n");
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
