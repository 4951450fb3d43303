// metrics.hpp — the record of a training run: metrics.jsonl, one line a step, and trainer_state.json in the form that
// transformers writes. What may not change: a resumed run's record is that of an uninterrupted one (but for the
// measured tok_per_s), so lines of steps that will be done again are cut off when the record is opened.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/run/report.hpp"

namespace qlora::program {

struct Metric {
  int step = 0;
  double epoch = 0;
  double loss = 0;
  double grad_norm = 0;
  double lr = 0;
  std::int64_t tokens = 0;           ///< positions of this step, padding included
  std::int64_t labelled_tokens = 0;  ///< of these, the ones that were to be predicted
  double tok_per_s = 0;
  nlohmann::ordered_json probes{};  ///< figures measured after this step; null: none were
};

inline nlohmann::ordered_json json_of(const Metric& m) {
  nlohmann::ordered_json line{{"step", m.step},
                              {"epoch", m.epoch},
                              {"loss", m.loss},
                              {"grad_norm", m.grad_norm},
                              {"lr", m.lr},
                              {"tokens", m.tokens},
                              {"labelled_tokens", m.labelled_tokens},
                              {"tok_per_s", m.tok_per_s}};
  if (!m.probes.is_null()) line["probes"] = m.probes;
  return line;
}

/// Lines of a metrics.jsonl; reading ends at the first that is not whole, which a killed run may leave.
inline std::vector<Metric> read_metrics(const std::filesystem::path& file) {
  std::vector<Metric> metrics;
  if (!std::filesystem::exists(file)) return metrics;
  const std::string text = read_text(file, std::size_t{1} << 30);
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    if (end == std::string::npos) break;
    const auto line = nlohmann::ordered_json::parse(text.begin() + static_cast<std::ptrdiff_t>(at),
                                                    text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    at = end + 1;
    if (!line.is_object()) break;
    const auto real = [&](const char* key) {
      return line.contains(key) && line[key].is_number() ? line[key].get<double>() : 0.0;
    };
    const auto whole = [&](const char* key) {
      return line.contains(key) && line[key].is_number_integer() ? line[key].get<std::int64_t>() : 0;
    };
    metrics.push_back({static_cast<int>(whole("step")), real("epoch"), real("loss"), real("grad_norm"), real("lr"),
                       whole("tokens"), whole("labelled_tokens"), real("tok_per_s"),
                       line.contains("probes") ? line["probes"] : nlohmann::ordered_json()});
  }
  return metrics;
}

/// The record that led to a variant, as a report draws it.
inline run::TrainingCurves curves_of(const std::string& variant, const std::filesystem::path& file) {
  run::TrainingCurves curves{.name = variant};
  for (const Metric& m : read_metrics(file)) {
    curves.step.push_back(m.step);
    curves.loss.push_back(m.loss);
    curves.lr.push_back(m.lr);
    curves.grad_norm.push_back(m.grad_norm);
  }
  return curves;
}

class MetricsLog {
 public:
  /// Opens the record of a run that has done `steps` steps.
  MetricsLog(std::filesystem::path file, int steps) : path_(std::move(file)), metrics_(read_metrics(path_)) {
    std::erase_if(metrics_, [&](const Metric& m) { return m.step > steps; });
    write_whole();
  }

  void add(const Metric& metric) {
    const std::string line = json_of(metric).dump() + "\n";
    write_all(file_, path_, size_, std::as_bytes(std::span(line)));
    size_ += line.size();
    metrics_.push_back(metric);
  }
  /// What is known of the newest step: its line, or its number alone where somebody took the record away.
  [[nodiscard]] Metric newest(int step) const {
    return metrics_.empty() || metrics_.back().step != step ? Metric{.step = step} : metrics_.back();
  }
  /// The newest line again, with what was found out about its step since.
  void amend(const Metric& metric) {
    if (metrics_.empty() || metrics_.back().step < metric.step) metrics_.emplace_back();
    QLORA_EXPECTS(metrics_.back().step <= metric.step, "step ", metric.step, " is not the newest");
    metrics_.back() = metric;
    write_whole();
  }
  /// Before a checkpoint counts as written, so that the record is never behind it.
  void sync() { sync_file(file_, path_); }
  [[nodiscard]] const std::vector<Metric>& metrics() const { return metrics_; }

 private:
  void write_whole() {
    std::string text;
    for (const Metric& m : metrics_) text += json_of(m).dump() + "\n";
    write_file_atomically(path_, text);
    size_ = text.size();
    file_ = FileDescriptor::open("cannot write", path_, O_WRONLY);
  }

  std::filesystem::path path_;
  std::vector<Metric> metrics_;
  FileDescriptor file_;
  std::uint64_t size_ = 0;
};

/// What trainer_state.json says besides the log.
struct TrainerState {
  int max_steps = 0;
  int epochs = 0;
  int batch = 0;
  int save_steps = 0;
};

/// trainer_state.json with transformers' keys and order, loss of every step in log_history.
inline void write_trainer_state(const std::filesystem::path& file, const std::vector<Metric>& metrics,
                                const TrainerState& state) {
  nlohmann::json history = nlohmann::json::array();
  std::int64_t tokens = 0;
  for (const Metric& m : metrics) {
    history.push_back(
        {{"epoch", m.epoch}, {"grad_norm", m.grad_norm}, {"learning_rate", m.lr}, {"loss", m.loss}, {"step", m.step}});
    tokens += m.tokens;
  }
  const nlohmann::json whole{{"best_global_step", nullptr},
                             {"best_metric", nullptr},
                             {"best_model_checkpoint", nullptr},
                             {"epoch", metrics.empty() ? 0.0 : metrics.back().epoch},
                             {"eval_steps", 500},
                             {"global_step", metrics.empty() ? 0 : metrics.back().step},
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

}  // namespace qlora::program
