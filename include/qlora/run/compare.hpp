// qlora/run/compare.hpp — run::compare asks several models the same questions: the base, the base with each adapter,
// the merged model, and models all of whose weights were trained. With probes each variant is measured against another:
//   nf4 against w16, an adapter against nf4, the merged model against its adapter, a model trained whole against w16
// so that the costs of quantization, training and merging are seen apart. w16 is measured only.
// What may not change: answers are sampled with the request's settings, probes are judged on greedy replies, so that
// metrics do not depend on a seed.
#pragma once

#include "qlora/run/comparison.hpp"
#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/steps.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Throws Error (usage) for a requirement that the comparison could not answer. Reads the probes, but no model.
QLORA_STEP void check_comparison(const CompareRequest& request);

/// Throws Error: (usage) for a request without questions and probes; (input) for questions and probes that cannot be
/// read. Reads no model.
QLORA_STEP void check_questions(const CompareRequest& request);

/// Throws Error: (usage) as check_comparison does, and for a request without questions and probes; (input) for files
/// that cannot be used; (resource) for too little memory; (interrupted) when `progress` asks to stop.
[[nodiscard]] QLORA_STEP Comparison compare(const CompareRequest& request, Progress& progress);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/examples.hpp"
#include "qlora/eval/measure.hpp"
#include "qlora/eval/metrics.hpp"
#include "qlora/eval/probes.hpp"
#include "qlora/eval/shares.hpp"
#include "qlora/run/engine.hpp"
#include "qlora/run/options.hpp"
#include "qlora/run/questions.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

namespace detail {

/// A variant, and the one that it is measured against; empty: none.
struct PlannedVariant {
  std::string name;
  std::string reference;
};

/// Whether a model directory says that it is stored in 4 bits. One that cannot be read is refused later.
[[nodiscard]] inline bool is_in_4_bits(const std::filesystem::path& model) {
  const std::filesystem::path config = model / "config.json";
  std::error_code none;
  return std::filesystem::is_regular_file(config, none) &&
         json_find(read_json_object(config, 1U << 20), "quantization_config") != nullptr;
}

/// All variants, in the order of the report. A base that is stored in 4 bits has no w16.
[[nodiscard]] inline std::vector<PlannedVariant> planned_variants(const CompareRequest& request) {
  const std::string base = is_in_4_bits(request.model) ? "nf4" : "w16";
  std::vector<PlannedVariant> all{{base, ""}};
  if (base == "w16") all.push_back({"nf4", base});
  for (const NamedAdapter& adapter : request.adapters) all.push_back({adapter.name, "nf4"});
  const auto is_source = [&](const PlannedVariant& variant) { return variant.name == request.merged_from; };
  const bool from_one = std::any_of(all.begin(), all.end(), is_source);
  if (!request.merged.empty()) all.push_back({"merged", from_one ? request.merged_from : base});
  for (const NamedModel& model : request.models) all.push_back({model.name, base});
  return all;
}

/// The variant that requirements and examples are about.
[[nodiscard]] inline std::string judged_variant(const CompareRequest& request) {
  const std::vector<PlannedVariant> all = planned_variants(request);
  for (const std::string& wanted : {request.judged, request.merged_from}) {
    for (const PlannedVariant& variant : all) {
      if (variant.name == wanted) return wanted;
    }
  }
  return all.back().name;
}

inline void check_requirements(const CompareRequest& request, std::span<const eval::Item> items) {
  if (request.comparison.require.empty()) return;
  if (items.empty()) throw Error("a requirement is checked on probes: give --probes", ErrorKind::usage);
  eval::MetricsByVariant expected;
  for (const PlannedVariant& variant : planned_variants(request)) {
    expected[variant.name] = eval::expected_metrics(items, !variant.reference.empty());
  }
  (void)eval::check_requirements(request.comparison.require, expected.at(judged_variant(request)), expected);
}

/// The questions of the file, or some of the probes without one: a comparison always shows answers.
[[nodiscard]] inline std::vector<Question> shown_questions(const Comparing& comparison,
                                                           std::span<const eval::Item> items) {
  if (!comparison.questions.empty()) return read_questions(comparison.questions);
  constexpr std::size_t shown = 12;
  std::vector<Question> questions;
  const std::size_t stride = std::max<std::size_t>(1, items.size() / shown);
  for (std::size_t i = 0; i < items.size(); i += stride) {
    if (items[i].kind == eval::Kind::text) continue;
    questions.push_back({items[i].chat, items[i].prompt, items[i].history});
  }
  return questions;
}

[[noreturn]] inline void refuse_without_questions() {
  throw Error("nothing to ask: give questions or probes", ErrorKind::usage);
}

class CompareRun {
 public:
  CompareRun(const CompareRequest& request, Progress& progress)
      : request_(request),
        progress_(progress),
        items_(eval::read_items(std::span(request.comparison.probes))),
        variants_(planned_variants(request)) {
    check_requirements(request, items_);
    has_texts_ = std::any_of(items_.begin(), items_.end(), [](const auto& i) { return i.kind == eval::Kind::text; });
    questions_ = shown_questions(request.comparison, items_);
    if (questions_.empty() && items_.empty()) {
      refuse_without_questions();
    }
    for (const Question& question : questions_) result_.answers.push_back({question.chat, question.prompt});
  }

  [[nodiscard]] Comparison run() {
    const hf::ModelDir model = hf::ModelDir::open(request_.model, verify_of(request_.device));
    say_note(model, progress_);
    for (const NamedAdapter& adapter : request_.adapters) {
      // refused before anything is measured
      (void)open_adapter(adapter.dir, model, request_.any_base, verify_of(request_.device));
    }
    const std::size_t answering =
        1 + request_.adapters.size() + (request_.merged.empty() ? 0 : 1) + request_.models.size();
    progress_.begin("compare",
                    static_cast<std::int64_t>(answering * questions_.size() + variants_.size() * items_.size()),
                    "answers");
    if (!items_.empty() && variants_.front().name == "w16") {
      Engine full(request_.model, {.base = BaseWeights::full, .device = request_.device, .chat = request_.chat});
      measure("w16", full);
    }
    {
      Engine nf4(request_.model, {.adapters = request_.adapters,
                                  .any_base = request_.any_base,
                                  .device = request_.device,
                                  .chat = request_.chat});
      answer("base", nf4);
      measure("nf4", nf4);
      for (const NamedAdapter& adapter : request_.adapters) {
        nf4.use(adapter.name);
        answer(adapter.name, nf4);
        measure(adapter.name, nf4);
      }
    }
    if (!request_.merged.empty()) ask_model({"merged", request_.merged});
    for (const NamedModel& named : request_.models) ask_model(named);
    progress_.end();
    if (!items_.empty()) judge();
    return std::move(result_);
  }

 private:
  void ask_model(const NamedModel& named) {
    Engine model(named.dir, {.base = BaseWeights::full, .device = request_.device, .chat = request_.chat});
    answer(named.name, model);
    measure(named.name, model);
  }

  void answer(const std::string& column, Engine& model) {
    int begun = 0;  // questions grow side by side, and those of either form are counted from 0
    const std::vector<Reply> replies =
        model.ask(questions_, request_.sampling, progress_, [&](int question, std::int32_t) {
          begun = std::max(begun, question);
          progress_.update(done_ + begun);
          return true;
        });
    for (std::size_t i = 0; i < replies.size(); ++i) result_.answers[i].answers[column] = replies[i].text;
    done_ += static_cast<std::int64_t>(questions_.size());
    progress_.update(done_);
  }

  [[nodiscard]] std::string reference_of(const std::string& variant) const {
    for (const PlannedVariant& planned : variants_) {
      if (planned.name == variant) return planned.reference;
    }
    return {};
  }
  /// Logits on texts are kept of those that others are measured against.
  [[nodiscard]] bool is_reference(const std::string& variant) const {
    return std::any_of(variants_.begin(), variants_.end(),
                       [&](const PlannedVariant& planned) { return planned.reference == variant; });
  }
  void measure(const std::string& variant, Engine& model) {
    if (items_.empty()) return;
    const std::string reference = reference_of(variant);
    const auto texts = [&](const std::string& name) { return has_texts_ ? &texts_[name] : nullptr; };
    results_[variant] =
        model.measure(items_, request_.sampling.max_new_tokens, is_reference(variant) ? texts(variant) : nullptr,
                      reference.empty() ? nullptr : texts(reference), [&](std::size_t items) {
                        progress_.update(done_ + static_cast<std::int64_t>(items));
                        return !progress_.stop_requested();
                      });
    done_ += static_cast<std::int64_t>(items_.size());
    progress_.update(done_);
    const eval::ItemResults& ours = results_[variant];
    const eval::ItemResults* theirs = reference.empty() ? nullptr : &results_[reference];
    metrics_[variant] = eval::metrics_of(items_, ours, theirs);
    result_.variants[variant] = {reference, metrics_[variant], eval::shares_by_relation(items_, ours),
                                 eval::shares_by_entity(items_, ours)};
  }

  void judge() {
    result_.tuned = judged_variant(request_);
    const std::string reference = reference_of(result_.tuned);
    if (!reference.empty()) {
      result_.examples = eval::examples_of(items_, results_[reference], results_[result_.tuned]);
    }
    result_.requirements = eval::check_requirements(request_.comparison.require, metrics_[result_.tuned], metrics_);
  }

  const CompareRequest& request_;
  Progress& progress_;
  std::vector<eval::Item> items_;
  std::vector<PlannedVariant> variants_;
  std::vector<Question> questions_;
  std::map<std::string, eval::ItemResults> results_;
  eval::MetricsByVariant metrics_;
  std::map<std::string, eval::TextReference> texts_;
  bool has_texts_ = false;
  Comparison result_;
  std::int64_t done_ = 0;
};

}  // namespace detail

QLORA_STEP void check_comparison(const CompareRequest& request) {
  detail::check_requirements(request, eval::read_items(std::span(request.comparison.probes)));
}

QLORA_STEP void check_questions(const CompareRequest& request) {
  const std::vector<eval::Item> items = eval::read_items(std::span(request.comparison.probes));
  if (items.empty() && detail::shown_questions(request.comparison, items).empty()) detail::refuse_without_questions();
}
[[nodiscard]] QLORA_STEP Comparison compare(const CompareRequest& request, Progress& progress) {
  return detail::CompareRun(request, progress).run();
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
