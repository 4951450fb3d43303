// compare.cpp — `qlora compare`: the same questions to the base, the base with each adapter on, and the merged model.
// Answers are sampled with the article's settings; probes are judged on greedy answers, so that scores do not depend on
// a seed.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "answering.hpp"
#include "options.hpp"
#include "probes.hpp"
#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "steps.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

/// Questions of `questions`, or some of the probes when there are none: a comparison always shows answers.
std::vector<Question> questions_of(const CompareSection& compare, const std::vector<Probe>& probes) {
  if (!compare.questions.empty()) return read_questions(compare.questions);
  constexpr std::size_t shown = 12;
  std::vector<Question> questions;
  const std::size_t stride = std::max<std::size_t>(1, probes.size() / shown);
  for (std::size_t i = 0; i < probes.size(); i += stride) questions.push_back(probes[i].question);
  return questions;
}

class Comparison {
 public:
  Comparison(const CompareStep& step, Progress& progress) : step_(step), progress_(progress) {
    for (const fs::path& file : step.compare.probes) {
      for (Probe& one : read_probes(file)) probes_.push_back(std::move(one));
    }
    questions_ = questions_of(step.compare, probes_);
    if (questions_.empty()) throw Error("nothing to ask: give --questions or --probes", ErrorKind::usage);
    answers_ = Result::array();
    for (const Question& one : questions_) {
      answers_.push_back(
          {{"form", one.chat ? "chat" : "completion"}, {"prompt", one.prompt}, {"answers", Result::object()}});
    }
  }

  Result run() {
    std::vector<PeftAdapter> adapters;
    int rank = 1;
    for (const auto& [name, dir] : step_.adapters) {
      adapters.push_back(PeftAdapter::open(dir));
      rank = std::max(rank, highest_rank(adapters.back()));
    }
    const auto answering = static_cast<std::int64_t>(1 + adapters.size() + (step_.merged.empty() ? 0 : 1));
    const auto asked = static_cast<std::int64_t>(questions_.size());
    const auto scored = static_cast<std::int64_t>(probes_.size());
    progress_.begin("compare", answering * asked + (answering + 1) * scored, "answers");  // w16 is scored only
    if (!probes_.empty()) {
      Answerer full(step_.model, Base::full, 1, step_.device, step_.threads);
      score("w16", full);
    }
    {
      Answerer nf4(step_.model, Base::nf4, rank, step_.device, step_.threads);
      measure("nf4", nf4, "base");
      for (std::size_t i = 0; i < adapters.size(); ++i) {
        nf4.session().attach(adapters[i]);
        measure(step_.adapters[i].first, nf4, step_.adapters[i].first);
      }
    }
    if (!step_.merged.empty()) {
      Answerer merged(step_.merged, Base::full, 1, step_.device, step_.threads);
      measure("merged", merged, "merged");
    }
    progress_.end();
    return {{"answers", answers_}, {"variants", variants_}};
  }

 private:
  void measure(const std::string& variant, Answerer& model, const std::string& column) {
    GenerateOptions how;
    how.max_new_tokens = step_.compare.max_new_tokens;
    how.sampling = {.temperature = static_cast<float>(step_.compare.temperature),
                    .top_p = static_cast<float>(step_.compare.top_p),
                    .top_k = 0,
                    .seed = static_cast<std::uint64_t>(step_.compare.seed)};
    const std::vector<Reply> replies = ask(model, questions_, how);
    for (std::size_t i = 0; i < replies.size(); ++i) answers_[i]["answers"][column] = replies[i].text;
    score(variant, model);
  }

  /// Facts need as many tokens as the longest value and one more, to see where the word ends; chats go to their end.
  void score(const std::string& variant, Answerer& model) {
    if (probes_.empty()) return;
    std::vector<Reply> replies(probes_.size());
    for (const bool facts : {true, false}) {
      std::vector<Question> questions;
      std::vector<std::size_t> which;
      std::size_t longest = 0;
      for (std::size_t i = 0; i < probes_.size(); ++i) {
        if ((probes_[i].kind != "chat_form") != facts) continue;
        which.push_back(i);
        questions.push_back(probes_[i].question);
        longest = std::max(longest, model.tokenizer().encode(probes_[i].answer).size());
      }
      if (questions.empty()) continue;
      GenerateOptions how;
      how.sampling = greedy;
      how.max_new_tokens = facts ? static_cast<int>(longest) + 4 : step_.compare.max_new_tokens;
      const std::vector<Reply> some = ask(model, questions, how);
      for (std::size_t i = 0; i < which.size(); ++i) replies[which[i]] = some[i];
    }
    variants_[variant] = scores(probes_, replies);
  }

  std::vector<Reply> ask(Answerer& model, const std::vector<Question>& questions, const GenerateOptions& how) {
    std::vector<Reply> replies = model.ask(questions, how, [&](int, std::int32_t) {
      progress_.update(done_, ++tokens_);
      return true;
    });
    done_ += static_cast<std::int64_t>(questions.size());
    progress_.update(done_, tokens_);
    return replies;
  }

  const CompareStep& step_;
  Progress& progress_;
  std::vector<Probe> probes_;
  std::vector<Question> questions_;
  Result answers_;
  Result variants_ = Result::object();
  std::int64_t done_ = 0;
  std::int64_t tokens_ = 0;
};

struct CompareOptions {
  CompareStep step;
  fs::path adapter;
  fs::path report;
};

Result compare(CompareOptions& options, Context& context) {
  if (!options.adapter.empty()) options.step.adapters = {{"tuned", options.adapter}};
  if (options.step.adapters.empty() && options.step.merged.empty()) {
    throw Error("compare with what? give --adapter or --merged", ErrorKind::usage);
  }
  const Result result = run_compare(options.step, context.progress);
  print_comparison(result, context.out);
  if (!options.report.empty()) {
    // The training that made an adapter left its record beside it.
    std::vector<std::pair<std::string, fs::path>> metrics;
    const fs::path record = fs::path(options.adapter).parent_path() / "metrics.jsonl";
    if (!options.adapter.empty() && fs::exists(record)) metrics.emplace_back("tuned", record);
    const CompareSection& c = options.step.compare;
    const Result settings{{"model", options.step.model.string()},
                          {"adapter", options.adapter.string()},
                          {"merged", options.step.merged.string()},
                          {"max_new_tokens", c.max_new_tokens},
                          {"top_p", c.top_p},
                          {"temperature", c.temperature},
                          {"seed", c.seed}};
    write_report(options.report, result, metrics, {{"settings", settings}});
    context.out << options.report.string() << '\n';
  }
  return result;
}

}  // namespace

Result run_compare(const CompareStep& step, Progress& progress) { return Comparison(step, progress).run(); }

void add_compare(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "compare", "Ask base, tuned and merged model the same questions");
  auto options = std::make_shared<CompareOptions>();
  CompareSection& c = options->step.compare;
  verb.add("-m,--model", options->step.model, "Base model directory").required().type_name("DIR");
  verb.add("-a,--adapter", options->adapter, "Adapter directory").type_name("DIR");
  verb.add("--merged", options->step.merged, "Merged model directory").type_name("DIR");
  verb.add("--questions", c.questions, "Questions: .jsonl {form, prompt}, or one a line").type_name("FILE");
  verb.add("--probes", c.probes, "Facts with their answers, scored").type_name("FILE...");
  verb.add("--report", options->report, "Write an HTML page with the answers side by side").type_name("FILE");
  verb.add("--max-new-tokens", c.max_new_tokens, "Tokens of an answer at most").range(1, 1000000);
  verb.add("--top-p", c.top_p, "Nucleus that is sampled from").range(0.0001, 1.0);
  verb.add("--temperature", c.temperature, "0 is greedy").range(0.0, 100.0);
  verb.add("--seed", c.seed, "Of sampling").non_negative();
  add_device_options(verb, options->step.device, options->step.threads);
  verb.on_call([&call, options] { call.action = [options](Context& context) { return compare(*options, context); }; });
}

}  // namespace qlora::program
