// qlora/run/guard.hpp — probes in the training loop: what a model has learned and kept so far, beside its base, which
// is the same model with adapters off, and whether it still meets the guard's requirements.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/measure.hpp"
#include "qlora/eval/metrics.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/run/options.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/session.hpp"
#include "qlora/text/chat_directory.hpp"
#include "qlora/text/tokenizer.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// The probes of a run. Throws Error (usage) for a guard that they could not answer, which would show only after the
/// first steps.
[[nodiscard]] inline std::vector<eval::Item> read_probes(const LoopProbes& loop) {
  if (loop.probes.empty() && !loop.guard.empty()) {
    throw Error("a guard is checked on probes: give --probes", ErrorKind::usage);
  }
  std::vector<eval::Item> items = eval::read_items(std::span(loop.probes));
  (void)eval::check_requirements(loop.guard, eval::expected_metrics(items, true));
  return items;
}

/// Measures the probes of a training in its steps; inactive without any. Used by one thread at a time.
class Guard {
 public:
  /// Inactive without probes. `threads`: for sums on texts; 0: one per core. Throws Error as read_probes does.
  Guard(const LoopProbes& loop, const hf::ModelDir& model, const ChatChoice& chat, int threads = 0)
      : loop_(loop), model_(model), threads_(threads), items_(read_probes(loop)) {
    if (items_.empty()) return;
    tokenizer_ = std::make_unique<Tokenizer>(Tokenizer::load(tokenizer_file(model.path)));
    chat_ = chat_template_of(model.path, *tokenizer_, chat.chat_template);
    for (const std::filesystem::path& file : loop.probes) hashes_.push_back(sha256_file(file));
  }

  /// Whether there are probes.
  [[nodiscard]] bool active() const { return !items_.empty(); }
  /// Number of probes.
  [[nodiscard]] std::size_t size() const { return items_.size(); }
  /// Whether it may end a run. Then a checkpoint is a step whose measurement met all requirements.
  [[nodiscard]] bool decides() const { return !loop_.guard.empty(); }
  /// Whether step `step` of `total`, counted from 1, is followed by a measurement: every `every` steps, and the last.
  [[nodiscard]] bool due(int step, int total) const { return active() && (step % loop_.every == 0 || step == total); }
  /// What measuring decodes beside a training: the longest probe, as many at a time as pay for their memory.
  [[nodiscard]] DecodeLimits limits() const {
    if (!active()) return {.sequences = 0};
    const std::size_t longest =
        std::min(eval::longest_sequence(*tokenizer_, items_, {.ends = model_.eos_token_ids, .chat = chat_}),
                 static_cast<std::size_t>(model_.max_positions));
    return limits_for_probes(items_.size(), static_cast<int>(longest));
  }
  /// Its requirements and when they are checked.
  [[nodiscard]] const LoopProbes& loop() const { return loop_; }
  /// SHA-256 of each file of probes, in the order of loop().probes.
  [[nodiscard]] const std::vector<std::string>& probe_hashes() const { return hashes_; }
  /// ChatTemplate::fingerprint() of the form that chats are asked in.
  [[nodiscard]] std::string chat_fingerprint() const { return chat_.fingerprint(); }

  /// One measurement.
  struct Measured {
    eval::Metrics metrics;  ///< beside the base
    std::string unmet;      ///< "retention.lower>=0.95 (0.93)"; empty: all requirements are met
    std::string note;       ///< the main numbers in a few words
  };
  /// `base` is the model before training; null: `now` with adapters off. Leaves trained_adapter in use. Throws Error
  /// (interrupted) when `progress` asks to stop.
  [[nodiscard]] Measured measure(Session& now, Session* base, const Progress& progress) {
    if (!base_) {
      Session& before = base != nullptr ? *base : now;
      before.use("");
      base_ = measured(before, &texts_, nullptr, progress);
    }
    now.use(trained_adapter);
    const eval::ItemResults results = measured(now, nullptr, &texts_, progress);
    Measured result{eval::metrics_of(items_, results, &*base_), {}, {}};
    for (const eval::Metric& metric : result.metrics) {
      if (metric.name.find('_') != std::string::npos) continue;  // a part, or a text
      const double value = metric.numbers.front().second.value;
      result.note += concat(", ", metric.name, ' ', std::round(1000.0 * value) / 10.0, " %");
    }
    for (const eval::RequirementResult& requirement : eval::check_requirements(loop_.guard, result.metrics)) {
      if (requirement.met) continue;
      result.unmet += concat(result.unmet.empty() ? "" : ", ", requirement.expression, " (", requirement.measured, ")");
    }
    return result;
  }

 private:
  [[nodiscard]] eval::ItemResults measured(Session& session, eval::TextReference* record,
                                           const eval::TextReference* against, const Progress& progress) const {
    return eval::measure(session, *tokenizer_, items_,
                         {.ends = model_.eos_token_ids, .chat = chat_, .threads = threads_}, record, against,
                         [&](std::size_t) { return !progress.stop_requested(); });
  }

  LoopProbes loop_;
  const hf::ModelDir& model_;
  int threads_;
  std::vector<eval::Item> items_;
  std::vector<std::string> hashes_;
  std::unique_ptr<Tokenizer> tokenizer_;
  ChatTemplate chat_;
  std::optional<eval::ItemResults> base_;
  eval::TextReference texts_;
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
