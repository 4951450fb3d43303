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

#include "adapters.hpp"
#include "answering.hpp"
#include "option_json.hpp"
#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/run/json.hpp"
#include "report.hpp"
#include "steps.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

/// Questions of `questions`, or some of the probes when there are none: a comparison always shows answers.
std::vector<Question> questions_of(const run::Comparison& compare, const std::vector<eval::Item>& items) {
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

class Comparison {
 public:
  Comparison(const CompareStep& step, Progress& progress)
      : step_(step), progress_(progress), items_(eval::read_items(step.comparison.probes)) {
    check_requirements(step, items_);
    has_texts_ = std::any_of(items_.begin(), items_.end(), [](const auto& i) { return i.kind == eval::Kind::text; });
    questions_ = questions_of(step.comparison, items_);
    if (questions_.empty() && items_.empty())
      throw Error("nothing to ask: give --questions or --probes", ErrorKind::usage);
    answers_ = Result::array();
    for (const Question& one : questions_) {
      answers_.push_back(
          {{"form", one.chat ? "chat" : "completion"}, {"prompt", one.prompt}, {"answers", Result::object()}});
    }
  }

  Result run() {
    const hf::ModelDir model = hf::ModelDir::open(step_.model);
    std::vector<PeftAdapter> adapters;
    Lora room = no_adapters;
    for (const auto& [name, dir] : step_.adapters) {
      adapters.push_back(open_adapter(dir, model, step_.any_base));
      room = room_for(room, adapters.back());
    }
    const std::size_t answering = 1 + adapters.size() + (step_.merged.empty() ? 0 : 1) + step_.models.size();
    progress_.begin("compare",
                    static_cast<std::int64_t>(answering * questions_.size() + (answering + 1) * items_.size()),
                    "answers");  // w16 is measured only
    if (!items_.empty()) {
      Answerer full(step_.model, Base::full, no_adapters, step_.device);
      measure("w16", full);
    }
    {
      Answerer nf4(step_.model, Base::nf4, room, step_.device);
      answer(nf4, "base");
      measure("nf4", nf4);
      for (std::size_t i = 0; i < adapters.size(); ++i) {
        const std::string& name = step_.adapters[i].first;
        nf4.session().attach(adapters[i]);
        answer(nf4, name);
        measure(name, nf4);
      }
    }
    if (!step_.merged.empty()) ask_model("merged", step_.merged);
    for (const auto& [name, dir] : step_.models) ask_model(name, dir);
    progress_.end();
    Result result{{"answers", answers_}, {"variants", variants_}};
    if (!items_.empty()) finish(result);
    return result;
  }

 private:
  void ask_model(const std::string& name, const fs::path& dir) {
    Answerer model(dir, Base::full, no_adapters, step_.device);
    answer(model, name);
    measure(name, model);
  }

  void answer(Answerer& model, const std::string& column) {
    int begun = 0;  // questions grow side by side, and those of either form are counted from 0
    const std::vector<Reply> replies =
        model.ask(questions_, generation(step_.sampling), [&](int question, std::int32_t) {
          begun = std::max(begun, question);
          progress_.update(done_ + begun);
          return true;
        });
    for (std::size_t i = 0; i < replies.size(); ++i) answers_[i]["answers"][column] = replies[i].text;
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
  void measure(const std::string& variant, Answerer& model) {
    if (items_.empty()) return;
    const std::string reference = reference_of(variant);
    const auto texts = [&](const std::string& name) { return has_texts_ ? &texts_[name] : nullptr; };
    readings_[variant] = eval::measure(model.session(), model.tokenizer(), items_,
                                       {.max_new_tokens = step_.sampling.max_new_tokens, .ends = model.ends()},
                                       is_reference(variant) ? texts(variant) : nullptr,
                                       reference.empty() ? nullptr : texts(reference), [&](std::size_t items) {
                                         progress_.update(done_ + static_cast<std::int64_t>(items));
                                         return !interrupted();
                                       });
    done_ += static_cast<std::int64_t>(items_.size());
    progress_.update(done_);
    const eval::ItemResults& ours = readings_[variant];
    const eval::ItemResults* theirs = reference.empty() ? nullptr : &readings_[reference];
    Result one = Result::object();
    if (!reference.empty()) one["reference"] = reference;
    figures_[variant] = eval::metrics_of(items_, ours, theirs);
    one["figures"] = run::to_json(figures_[variant]);
    one["by_relation"] = run::to_json(eval::shares_by_relation(items_, ours));
    one["by_entity"] = run::to_json(eval::shares_by_entity(items_, ours));
    variants_[variant] = one;
  }

  void finish(Result& result) {
    const std::string variant = tuned_of(step_);
    result["tuned"] = variant;
    const std::string reference = reference_of(variant);
    if (!reference.empty())
      result["examples"] = run::to_json(eval::examples_of(items_, readings_[reference], readings_[variant]));
    result["requirements"] =
        run::to_json(eval::check_requirements(step_.comparison.require, figures_[variant], figures_));
  }

  const CompareStep& step_;
  Progress& progress_;
  std::vector<eval::Item> items_;
  std::vector<Question> questions_;
  std::map<std::string, eval::ItemResults> readings_;
  eval::MetricsByVariant figures_;
  std::map<std::string, eval::TextReference> texts_;
  bool has_texts_ = false;
  Result answers_;
  Result variants_ = Result::object();
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
  const Result result = run_compare(options.step, context.progress);
  print_comparison(result, context.out);
  if (!options.report.empty()) {
    // The training that made an adapter left its record beside it.
    std::vector<std::pair<std::string, fs::path>> metrics;
    const fs::path record = fs::path(options.adapter).parent_path() / "metrics.jsonl";
    if (!options.adapter.empty() && fs::exists(record)) metrics.emplace_back("tuned", record);
    Result settings{{"model", options.step.model.string()},
                    {"adapter", options.adapter.string()},
                    {"merged", options.step.merged.string()},
                    {"full", options.full.string()}};
    add_options(settings, options.step.sampling, Which::all);
    write_report(options.report, result, metrics, {{"settings", settings}});
    context.out << options.report.string() << '\n';
  }
  return result;
}

}  // namespace

void check_compare(const CompareStep& step) { check_requirements(step, eval::read_items(step.comparison.probes)); }

Result run_compare(const CompareStep& step, Progress& progress) { return Comparison(step, progress).run(); }

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
