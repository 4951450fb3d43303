// qlora/run/training_log.hpp — the record of a training run: metrics.jsonl, one line a step, and trainer_state.json in
// the form that transformers writes.
// What may not change: a resumed run's record is that of an uninterrupted one, but for the measured tok_per_s. So the
// lines of steps that will be repeated are cut off when the record is opened.
#pragma once

#include <fcntl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
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

/// Throws Error that names the key for a line that to_json did not write.
[[nodiscard]] inline StepRecord step_record_from_json(const OrderedJson& line) {
  const auto real = [&](const char* key) {
    const double value = detail::number_of(detail::required(line, key), key);
    if (std::isnan(value)) detail::refuse_value(key, "number", nullptr);
    return value;
  };
  const auto whole = [&](const char* key) { return detail::whole_of(detail::required(line, key), key); };
  StepRecord record{
      static_cast<int>(detail::whole_of(detail::required(line, "step"), "step", std::numeric_limits<int>::max())),
      real("epoch"),
      real("loss"),
      real("grad_norm"),
      real("lr"),
      whole("tokens"),
      whole("labelled_tokens"),
      real("tok_per_s")};
  if (const OrderedJson* probes = detail::section(line, "probes")) record.probes = metrics_from_json(*probes);
  return record;
}

/// The lines of a metrics.jsonl, in the order of their steps. One that is no record, as a killed run or a damaged disk
/// may leave, is left out, and `damaged` counts it; the ones behind it are read all the same.
[[nodiscard]] inline std::vector<StepRecord> read_training_log(const std::filesystem::path& file,
                                                               int* damaged = nullptr) {
  std::vector<StepRecord> records;
  if (!std::filesystem::exists(file)) return records;
  int bad = 0;
  std::vector<StepRecord> read;
  const std::string text = read_text(file, std::size_t{1} << 30);
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    try {
      (void)parse_json(line, "");  // refuses nesting and repeated keys
      read.push_back(step_record_from_json(OrderedJson::parse(line)));
    } catch (const Error&) {
      ++bad;
    }
  }
  for (std::size_t i = 0; i < read.size(); ++i) {  // a number that neither neighbour goes with is damaged, too
    const int before = records.empty() ? 0 : records.back().step;
    const int next = i + 1 < read.size() ? read[i + 1].step : std::numeric_limits<int>::max();
    if (read[i].step > before && (next > read[i].step || next <= before)) {
      records.push_back(std::move(read[i]));
    } else {
      ++bad;
    }
  }
  if (damaged != nullptr) *damaged = bad;
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

/// Appends to metrics.jsonl, and keeps all records in memory. Used by one thread at a time.
class TrainingLog {
 public:
  /// Opens the record of a run that has done `steps` steps.
  TrainingLog(std::filesystem::path file, int steps)
      : path_(std::move(file)), records_(read_training_log(path_, &damaged_)) {
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
  /// Lines that were no records when the file was opened, the one that a killed run leaves half written among them.
  [[nodiscard]] int damaged() const { return damaged_; }

 private:
  void write_whole() {
    std::string text;
    for (const StepRecord& m : records_) text += to_json(m).dump() + "\n";
    write_file_atomically(path_, text);
    size_ = text.size();
    file_ = FileDescriptor::open("cannot write", path_, O_WRONLY);
  }

  std::filesystem::path path_;
  int damaged_ = 0;  // before the records, which count it
  std::vector<StepRecord> records_;
  FileDescriptor file_;
  std::uint64_t size_ = 0;
};

/// What trainer_state.json says besides the log.
struct TrainerState {
  int step = 0;        ///< of the model; the log may go on behind it, where a guard went back
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
  double epoch = 0;
  for (const StepRecord& m : records) {
    history.push_back(
        {{"epoch", m.epoch}, {"grad_norm", m.grad_norm}, {"learning_rate", m.lr}, {"loss", m.loss}, {"step", m.step}});
    tokens += m.tokens;
    if (m.step <= state.step) epoch = m.epoch;
  }
  const nlohmann::json whole{{"best_global_step", nullptr},
                             {"best_metric", nullptr},
                             {"best_model_checkpoint", nullptr},
                             {"epoch", epoch},
                             {"eval_steps", 500},
                             {"global_step", state.step},
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
