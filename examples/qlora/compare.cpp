// compare.cpp — `qlora compare`: the same questions to the base, the base with each adapter on, the merged model and models
// that were trained whole; and probes, by which each is measured against another:
//   nf4 against w16, an adapter against nf4, the merged model against its adapter, a model trained whole against w16
// so that what quantization costs, what training does and what merging costs stand apart.
// Answers are sampled with the article's settings; probes are judged on greedy replies, so that figures do not depend on
// a seed.
#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "option_json.hpp"
#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/run/comparison.hpp"
#include "qlora/run/engine.hpp"
#include "qlora/run/report.hpp"
#include "qlora/run/study_json.hpp"
#include "qlora/run/training_log.hpp"
#include "steps.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;
using run::Engine;
using run::Question;
using run::Reply;

/// Questions of `questions`, or some of the probes when there are none: a comparison always shows answers.
std::vector<Question> questions_of(const run::Comparing& compare, const std::vector<eval::Item>& items) {
  if (!compare.questions.empty()) return run::read_questions(compare.questions);
  constexpr std::size_t shown = 12;
  std::vector<Question> questions;
  const std::size_t stride = std::max<std::size_t>(1, items.size() / shown);
  for (std::size_t i = 0; i < items.size(); i += stride) {
    if (items[i].kind == eval::Kind::text) continue;
    questions.push_back({items[i].chat, items[i].prompt, items[i].history});
  }
  return questions;
}

struct Measured {
  std::string name;
  std::string reference;  ///< what it is measured against; empty: nothing
};

/// All that is measured, in the order of the report.
std::vector<Measured> variants_of(const CompareStep& step) {
  std::vector<Measured> all{{"w16", ""}, {"nf4", "w16"}};
  for (const auto& [name, dir] : step.adapters) all.push_back({name, "nf4"});
  const auto known = [&](const Measured& one) { return one.name == step.merged_from; };
  const bool from_one = std::any_of(all.begin(), all.end(), known);
  if (!step.merged.empty()) all.push_back({"merged", from_one ? step.merged_from : "w16"});
  for (const auto& [name, dir] : step.models) all.push_back({name, "w16"});
  return all;
}

/// The variant that requirements and examples are about: the one that is to be judged, else that which is merged, else the
/// last one.
std::string tuned_of(const CompareStep& step) {
  const std::vector<Measured> all = variants_of(step);
  for (const std::string& wanted : {step.judged, step.merged_from}) {
    for (const Measured& one : all) {
      if (one.name == wanted) return wanted;
    }
  }
  return all.empty() ? std::string() : all.back().name;
}

/// Throws Error (usage) for a requirement that the measurement of these items will not answer.
void check_requirements(const CompareStep& step, const std::vector<eval::Item>& items) {
  if (step.comparison.require.empty()) return;
  if (items.empty()) throw Error("a requirement is held against probes: give --probes", ErrorKind::usage);
  eval::MetricsByVariant expected;
  for (const Measured& one : variants_of(step)) {
    expected[one.name] = eval::expected_metrics(items, !one.reference.empty());
  }
  (void)eval::check_requirements(step.comparison.require, expected.at(tuned_of(step)), expected);
}

class CompareRun {
 public:
  CompareRun(const CompareStep& step, Progress& progress)
      : step_(step), progress_(progress), items_(eval::read_items(step.comparison.probes)) {
    check_requirements(step, items_);
    has_texts_ = std::any_of(items_.begin(), items_.end(), [](const auto& i) { return i.kind == eval::Kind::text; });
    questions_ = questions_of(step.comparison, items_);
    if (questions_.empty() && items_.empty())
      throw Error("nothing to ask: give --questions or --probes", ErrorKind::usage);
    for (const Question& one : questions_) result_.answers.push_back({one.chat, one.prompt});
  }

  run::Comparison run() {
    const hf::ModelDir model = hf::ModelDir::open(step_.model);
    std::vector<run::NamedAdapter> adapters;
    for (const auto& [name, dir] : step_.adapters) {
      (void)run::open_adapter(dir, model, step_.any_base);  // refused before anything is measured
      adapters.push_back({name, dir});
    }
    const std::size_t answering = 1 + adapters.size() + (step_.merged.empty() ? 0 : 1) + step_.models.size();
    progress_.begin("compare",
                    static_cast<std::int64_t>(answering * questions_.size() + (answering + 1) * items_.size()),
                    "answers");  // w16 is measured only
    if (!items_.empty()) {
      Engine full(step_.model, {.base = run::BaseWeights::full, .device = step_.device});
      measure("w16", full);
    }
    {
      Engine nf4(step_.model, {.adapters = adapters, .any_base = step_.any_base, .device = step_.device});
      answer(nf4, "base");
      measure("nf4", nf4);
      for (const auto& [name, dir] : adapters) {
        nf4.use(name);
        answer(nf4, name);
        measure(name, nf4);
      }
    }
    if (!step_.merged.empty()) ask_model("merged", step_.merged);
    for (const auto& [name, dir] : step_.models) ask_model(name, dir);
    progress_.end();
    if (!items_.empty()) judge();
    return std::move(result_);
  }

 private:
  void ask_model(const std::string& name, const fs::path& dir) {
    Engine model(dir, {.base = run::BaseWeights::full, .device = step_.device});
    answer(model, name);
    measure(name, model);
  }

  void answer(Engine& model, const std::string& column) {
    int begun = 0;  // questions grow side by side, and those of either form are counted from 0
    const std::vector<Reply> replies =
        model.ask(questions_, step_.sampling, progress_, [&](int question, std::int32_t) {
          begun = std::max(begun, question);
          progress_.update(done_ + begun);
          return true;
        });
    for (std::size_t i = 0; i < replies.size(); ++i) result_.answers[i].answers[column] = replies[i].text;
    done_ += static_cast<std::int64_t>(questions_.size());
    progress_.update(done_);
  }

  /// What a variant is measured against.
  [[nodiscard]] std::string reference_of(const std::string& variant) const {
    for (const Measured& one : variants_of(step_)) {
      if (one.name == variant) return one.reference;
    }
    return {};
  }
  /// Logits on texts are kept of those that others are measured against.
  [[nodiscard]] bool is_reference(const std::string& variant) const {
    const std::vector<Measured> all = variants_of(step_);
    return std::any_of(all.begin(), all.end(), [&](const Measured& one) { return one.reference == variant; });
  }
  void measure(const std::string& variant, Engine& model) {
    if (items_.empty()) return;
    const std::string reference = reference_of(variant);
    const auto texts = [&](const std::string& name) { return has_texts_ ? &texts_[name] : nullptr; };
    results_[variant] =
        model.measure(items_, step_.sampling.max_new_tokens, is_reference(variant) ? texts(variant) : nullptr,
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
    result_.tuned = tuned_of(step_);
    const std::string reference = reference_of(result_.tuned);
    if (!reference.empty()) {
      result_.examples = eval::examples_of(items_, results_[reference], results_[result_.tuned]);
    }
    result_.requirements = eval::check_requirements(step_.comparison.require, metrics_[result_.tuned], metrics_);
  }

  const CompareStep& step_;
  Progress& progress_;
  std::vector<eval::Item> items_;
  std::vector<Question> questions_;
  std::map<std::string, eval::ItemResults> results_;
  eval::MetricsByVariant metrics_;
  std::map<std::string, eval::TextReference> texts_;
  bool has_texts_ = false;
  run::Comparison result_;
  std::int64_t done_ = 0;
};

struct CompareOptions {
  CompareStep step;
  fs::path adapter;
  fs::path full;
  fs::path report;
};

Result compare(CompareOptions& options, Context& context) {
  if (!options.adapter.empty()) {
    options.step.adapters = {{"tuned", options.adapter}};
    options.step.merged_from = "tuned";
  }
  if (!options.report.empty()) check_folder_of("--report", options.report);
  if (!options.full.empty()) options.step.models = {{"full", options.full}};
  if (options.step.adapters.empty() && options.step.merged.empty() && options.full.empty()) {
    throw Error("compare with what? give --adapter, --merged or --full", ErrorKind::usage);
  }
  const run::Comparison result = run_compare(options.step, context.progress);
  run::print_comparison(result, context.out);
  if (!options.report.empty()) {
    // The training that made an adapter left its record beside it.
    std::vector<run::TrainingCurves> trainings;
    const fs::path record = fs::path(options.adapter).parent_path() / "metrics.jsonl";
    if (!options.adapter.empty() && fs::exists(record)) trainings.push_back(run::training_curves("tuned", record));
    Result settings{{"model", options.step.model.string()},
                    {"adapter", options.adapter.string()},
                    {"merged", options.step.merged.string()},
                    {"full", options.full.string()}};
    add_options(settings, options.step.sampling, Which::all);
    run::write_report(options.report, result, {}, trainings, run::tables_of({{"settings", settings}}));
    context.out << options.report.string() << '\n';
  }
  return run::to_json(result);
}

}  // namespace

void check_compare(const CompareStep& step) { check_requirements(step, eval::read_items(step.comparison.probes)); }

run::Comparison run_compare(const CompareStep& step, Progress& progress) { return CompareRun(step, progress).run(); }

void add_compare(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "compare", "Ask base, tuned and merged model the same questions");
  auto options = std::make_shared<CompareOptions>();
  verb.add("-m,--model", options->step.model, "Base model directory").required().type_name("DIR");
  verb.add("-a,--adapter", options->adapter, "Adapter directory").type_name("DIR");
  add_any_base(verb, options->step.any_base);
  verb.add("--merged", options->step.merged, "Merged model directory").type_name("DIR");
  verb.add("--full", options->full, "Model directory, all of whose weights were trained").type_name("DIR");
  add_table(verb, options->step.comparison);
  verb.add("--report", options->report, "Write an HTML page with the answers side by side").type_name("FILE");
  add_table(verb, options->step.sampling);
  add_table(verb, options->step.device);
  verb.on_call([&call, options] { call.action = [options](Context& context) { return compare(*options, context); }; });
}

}  // namespace qlora::program
