// guard.hpp — probes in the loop: what a model in training has learned and kept so far, beside its base, which is the same
// process with the adapters off, and whether it still is as a guard asks.
#pragma once

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "answering.hpp"
#include "interrupt.hpp"
#include "qlora/eval/measure.hpp"
#include "qlora/eval/metrics.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/run/json.hpp"
#include "qlora/run/options.hpp"
#include "variant.hpp"
#include "verb.hpp"

namespace qlora::program {

class Guard {
 public:
  /// Inactive without probes. Throws Error as read_probes does.
  Guard(const run::LoopProbes& loop, const hf::ModelDir& model)
      : every_(loop.every), model_(model), requirements_(loop.guard), items_(read_probes(loop)) {
    if (items_.empty()) return;
    tokenizer_ = std::make_unique<Tokenizer>(Tokenizer::load(model.path / "tokenizer.model"));
    for (const std::filesystem::path& file : loop.probes) hashes_.push_back(sha256_file(file));
  }

  /// Its probes. Throws Error (usage) for a guard that could not be held against them, since that would show
  /// only after the first steps.
  [[nodiscard]] static std::vector<eval::Item> read_probes(const run::LoopProbes& loop) {
    if (loop.probes.empty() && !loop.guard.empty()) {
      throw Error("a guard is held against probes: give --probes", ErrorKind::usage);
    }
    std::vector<eval::Item> items = eval::read_items(loop.probes);
    (void)eval::check_requirements(loop.guard, eval::expected_metrics(items, true));
    return items;
  }

  [[nodiscard]] bool active() const { return !items_.empty(); }
  [[nodiscard]] std::size_t size() const { return items_.size(); }
  /// Whether it may end a run: then checkpoints hold what was measured and found good.
  [[nodiscard]] bool decides() const { return !requirements_.empty(); }
  [[nodiscard]] bool due(int step, int total) const { return active() && (step % every_ == 0 || step == total); }
  /// What measuring takes beside a training: the longest probe, as many at a time as pay for their memory.
  [[nodiscard]] DecodeRoom room() const {
    if (!active()) return {.sequences = 0};
    const std::size_t longest = std::min(eval::longest_sequence(*tokenizer_, items_, {.ends = model_.eos_token_ids}),
                                         static_cast<std::size_t>(model_.max_positions));
    return room_for_probes(items_.size(), static_cast<int>(longest));
  }
  /// What of it decides a run's bits.
  [[nodiscard]] Json fingerprint() const {
    return {{"requirements", requirements_}, {"every", every_}, {"probes", hashes_}};
  }

  struct Measured {
    Result figures;
    std::string unmet;  ///< "retention.lower>=0.95 (0.93)"; empty: all is as asked
    std::string note;   ///< main numbers in a few words
  };
  /// `base` is the model before training; null: `now` with its adapters off. Leaves them on.
  [[nodiscard]] Measured measure(Session& now, Session* base) {
    if (!base_) {
      Session& before = base != nullptr ? *base : now;
      before.use_adapters(false);
      base_ = read(before, &texts_, nullptr);
    }
    now.use_adapters(true);
    const eval::ItemResults readings = read(now, nullptr, &texts_);
    const eval::Metrics figures = eval::metrics_of(items_, readings, &*base_);
    Measured result{run::to_json(figures), {}, {}};
    for (const eval::Metric& one : figures) {
      if (one.name.find('_') != std::string::npos) continue;  // a part, or a text
      const double value = one.numbers.front().second.value;
      result.note += concat(", ", one.name, ' ', std::round(1000.0 * value) / 10.0, " %");
    }
    for (const eval::RequirementResult& gate : eval::check_requirements(requirements_, figures)) {
      if (gate.met) continue;
      result.unmet += concat(result.unmet.empty() ? "" : ", ", gate.expression, " (", gate.measured, ")");
    }
    return result;
  }

 private:
  [[nodiscard]] eval::ItemResults read(Session& session, eval::TextReference* record,
                                       const eval::TextReference* against) {
    return eval::measure(session, *tokenizer_, items_, {.ends = model_.eos_token_ids}, record, against,
                         [](std::size_t) { return !interrupted(); });
  }

  int every_;
  const hf::ModelDir& model_;
  std::vector<std::string> requirements_;
  std::vector<eval::Item> items_;
  std::vector<std::string> hashes_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<eval::ItemResults> base_;
  eval::TextReference texts_;
};

}  // namespace qlora::program
