// report_of_many_test.cpp — a page about more than eight models: a row for each in its tables, and in its answers the
// first arm of each group and the one that is judged.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <sstream>
#include <string>

#include "qlora/run/report.hpp"

using namespace qlora;

namespace {

/// A comparison and the arms behind it.
struct Job {
  run::Comparison comparison;
  run::StudyArms arms;

  [[nodiscard]] std::string page(const run::Study& study) const {
    return eval::to_html(run::report_of(comparison, study, {}, {}));
  }
  [[nodiscard]] std::string page() const { return page({.arms = arms}); }
  [[nodiscard]] std::string text() const {
    std::ostringstream out;
    run::print_comparison(comparison, out);
    return out.str();
  }
};

/// Arms of two groups, a1 to aN in turn, of which a3 is judged; a2 is no point of the front.
Job job_of(int arms) {
  Job job;
  job.comparison.tuned = "a3";
  run::Exchange exchange{true, "Who?", {{"nf4", "base says"}}};
  const auto add = [&](const std::string& name, double value) {
    const eval::Interval right{.value = value, .lower = value - 0.1, .upper = value + 0.1, .n = 8, .clusters = 4};
    job.comparison.variants[name].metrics = {{"retention", {{"right", right}}}};
  };
  add("nf4", 0.5);
  for (int i = 1; i <= arms; ++i) {
    const std::string name = "a" + std::to_string(i);
    add(name, 0.1 + 0.01 * i);
    exchange.answers[name] = name + " says";
    job.arms[name] = {.group = i % 2 == 0 ? "even" : "odd", .setting = {{"name", name}}, .seed = 1};
  }
  job.arms["a2"].pareto_front = false;
  job.comparison.answers.push_back(exchange);
  return job;
}

}  // namespace

TEST_CASE("of few models every answer is shown") {
  const std::string page = job_of(7).page();
  for (int i = 1; i <= 7; ++i) CHECK(page.find("a" + std::to_string(i) + " says") != std::string::npos);
}

TEST_CASE("of many models the first of each group and the judged one answer, and each has a row of figures") {
  const std::string page = job_of(8).page();
  for (const char* shown : {"a1 says", "a3 says", "a4 says", "base says"}) {
    CHECK_MESSAGE(page.find(shown) != std::string::npos, shown);
  }
  for (const char* hidden : {"a2 says", "a5 says", "a6 says", "a7 says", "a8 says"}) {
    CHECK_MESSAGE(page.find(hidden) == std::string::npos, hidden);
  }
  CHECK(job_of(8).text().find("\na8 ") != std::string::npos);
  CHECK(job_of(8).text().find("\nretention ") == std::string::npos);
  CHECK(job_of(7).text().find("\nretention ") != std::string::npos);
}

TEST_CASE("a page of many models begins with pooled settings and the front, and ends with each model") {
  const auto where = [](const std::string& page, const char* text) {
    const std::size_t at = page.find(text);
    CHECK_MESSAGE(at != std::string::npos, text);
    return at;
  };
  Job job = job_of(8);
  for (auto& [name, arm] : job.arms) {
    eval::Metrics& metrics = job.comparison.variants[name].metrics;
    metrics.push_back({"knowledge", metrics.front().numbers});
    arm.setting = {{"name", std::string("same")}};
    arm.seed = std::stoi(name.substr(1));
  }
  job.arms["a8"].setting = {{"name", std::string("other")}};
  const std::string page = job.page(run::study_of(job.arms, job.comparison.variants));
  CHECK(where(page, "<th scope=\"row\">odd</th><td>4</td>") < where(page, "Learning against forgetting"));
  CHECK(where(page, "Learning against forgetting") < where(page, "Old facts right, in percent, among"));
  CHECK(where(page, "Old facts right, in percent, among") < where(page, "Each model"));
  CHECK(where(page, "Each model") < where(page, "<th scope=\"row\">a5</th>"));

  const Job six = job_of(6);  // seven models: a column each, at once
  const std::string few = six.page(run::study_of(six.arms, six.comparison.variants));
  CHECK(few.find("Each model") == std::string::npos);
  CHECK(few.find("<th scope=\"col\">a5</th>") != std::string::npos);
}

TEST_CASE("the comparisons of several models become one, each under its model's name") {
  run::Comparison small;
  small.answers = {{true, "Who?", {{"base", "small base"}, {"x", "small x"}}}};
  small.variants["nf4"].reference = "w16";
  small.tuned = "x";
  small.examples["lost"].count = 3;
  small.requirements = {{"retention.value>=0", 1.0, true}};
  run::Comparison large;
  large.answers = {{true, "Who?", {{"base", "large base"}}}};
  large.requirements.emplace();
  const std::vector<std::string> names{"small", "base"};
  const run::Comparison joined = run::join_comparisons(names, std::vector{small, large});
  REQUIRE(joined.answers.size() == 1);
  CHECK(joined.answers.at(0).answers ==
        OrderedMap<std::string>{{"small nf4", "small base"}, {"small x", "small x"}, {"base nf4", "large base"}});
  CHECK(joined.variants.at("small nf4").reference == "w16");
  CHECK(joined.tuned.empty());
  CHECK(joined.examples.at("small lost").count == 3);
  REQUIRE(joined.requirements);
  CHECK(joined.requirements->at(0).expression == "small retention.value>=0");
  const std::vector<std::string> unnamed{""};
  CHECK(run::join_comparisons(unnamed, std::vector{small}).tuned == "x");  // as it is
  large.answers.clear();
  CHECK_THROWS_AS((void)run::join_comparisons(names, std::vector{small, large}), Error);
}

TEST_CASE("the page says first what was learned, what was kept, and what it cost") {
  const auto interval = [](double value) {
    return eval::Interval{.value = value, .lower = value - 0.05, .upper = value + 0.04, .n = 40, .clusters = 8};
  };
  run::Comparison comparison;
  comparison.tuned = "tuned";
  const auto add = [&](const char* name, double right, double net, double retention) {
    comparison.variants[name].metrics = {{"paraphrase_chat", {{"right", interval(right)}, {"net", interval(net)}}},
                                         {"retention", {{"right", interval(retention)}}},
                                         {"text_world", {{"loss", interval(2.0)}}}};
  };
  add("w16", 0.125, 0.0, 0.9);
  add("nf4", 0.1, 0.02, 0.875);
  add("tuned", 0.5, 0.4, 0.75);
  add("merged", 0.525, 0.4, 0.75);
  comparison.requirements = {{"retention.value>=0.8", 0.75, false}, {"retention.value>=0.7", 0.75, true}};
  for (const char* group : {"lost", "learned", "kept"}) {
    comparison.examples[group] = {3, {{eval::Kind::retention, true, std::string("Who ") + group, "A", "B", "C"}}};
  }
  const std::vector<eval::Finding> findings = run::detail::findings_of(comparison);
  REQUIRE(findings.size() == 5);
  CHECK(findings[0].head == "Learned by tuned");
  CHECK(findings[0].text == "New facts, new wording, chat: 40.0 % [35.0 to 44.0], 2.0 % before.");
  CHECK(findings[1].text == "Old facts: 75.0 % [70.0 to 79.0], 87.5 % before.");
  CHECK(findings[2].text ==
        "In percentage points, against the base in 16 bits: New facts, new wording, chat -2.5, Old facts -2.5.");
  CHECK(findings[3].text == "In percentage points, against the adapter: New facts, new wording, chat +2.5.");
  CHECK(findings[4].text == "1 of 2 hold; these do not: retention.value>=0.8.");
  const std::vector<eval::Exchange> picks = run::detail::picks_of(comparison.examples);
  REQUIRE(picks.size() == 3);
  CHECK(picks[0].prompt == "Who learned");
  CHECK(picks[2].form == "lost, one of 3");
  const eval::BarChart chart =
      run::detail::learned_and_kept(comparison.variants, [](const std::string& name) { return name == "w16"; });
  CHECK(chart.labels == std::vector<std::string>{"New facts, new wording, chat", "Old facts"});
  REQUIRE(chart.series.size() == 3);
  CHECK(chart.series[1].name == "tuned");
  CHECK(chart.series[1].values[0].value == 0.4);
  const std::string page = eval::to_html(run::report_of(comparison, {}, {}, {}));
  CHECK(page.find("<dt>Learned by tuned</dt>") < page.find("<h2>Results</h2>"));
  CHECK(page.find("Old facts (retention)") != std::string::npos);
  comparison.requirements->pop_back();
  comparison.requirements->front().met = true;
  comparison.variants["merged"] = comparison.variants.at("tuned");
  CHECK(run::detail::findings_of(comparison)[1].head == "Kept by tuned");
  CHECK(run::detail::findings_of(comparison)[3].text == "In percentage points, against the adapter: no difference.");
  CHECK(run::detail::findings_of(comparison)[4].text == "The only one holds.");
  comparison.tuned.clear();  // nobody says which arm was merged
  CHECK(run::detail::findings_of(comparison)[0].head == "Learned by tuned");
  CHECK(run::detail::findings_of(comparison)[3].head == "Requirements");
  run::JobCosts costs{.training_bytes = 1'730'000'000};
  CHECK(run::detail::costs_text(costs).empty());
  costs.seconds["fetch"] = 100.0;
  costs.seconds["train base tuned"] = 61.0;
  costs.seconds["total"] = 3700.0;
  CHECK(run::detail::costs_text(costs) == "Training: 1 min 1 s, with 1.7 GB of memory. The whole job: 1 h 1 min.");
  costs.seconds["train base other"] = 60.6;
  costs.training_bytes = 0;
  CHECK(run::detail::costs_text(costs) == "Training: 2 min 2 s for 2 models. The whole job: 1 h 1 min.");
  const std::string with_costs = eval::to_html(run::report_of(comparison, {}, {}, {}, costs));
  CHECK(with_costs.find("<dt>Time and memory</dt>") < with_costs.find("<h2>Results</h2>"));
  CHECK(page.find("Time and memory") == std::string::npos);
  // Without probes there is nothing to say.
  CHECK(run::detail::findings_of({}).empty());
}
