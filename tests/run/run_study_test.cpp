// run_study_test.cpp — arms of a job beside each other, by hand: seeds pooled, points of sweeps, controls kept apart.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "qlora/eval/sweep.hpp"
#include "qlora/run/study.hpp"
#include "qlora/run/study_report.hpp"

using namespace qlora;

namespace {

eval::Interval number(double value, double lower, double upper, int n = 8) {
  return {.value = value, .lower = lower, .upper = upper, .n = n, .clusters = 4};
}

/// A variant that said `chat` of the chat questions, `net` in new words beyond the twin, and kept `kept`.
run::VariantResult variant(double chat, double net, double kept) {
  run::VariantResult result{.reference = "nf4"};
  result.metrics = {
      {"knowledge", {{"right", number(chat / 2, chat / 4, chat)}, {"net", number(net + 0.1, net, net + 0.2)}}},
      {"knowledge_chat", {{"right", number(chat, chat - 0.1, chat + 0.1)}}},
      {"paraphrase", {{"right", number(0.9, 0.8, 1.0)}, {"net", number(net, net - 0.2, net + 0.1, 16)}}},
      {"retention", {{"right", number(kept, kept - 0.05, kept + 0.05, 40)}}}};
  return result;
}

/// An arm of seed 1.
run::StudyArm arm(const char* group, const char* setting) {
  return {.group = group, .setting = {{"name", std::string(setting)}}, .seed = 1};
}
run::StudyArm with_seed(run::StudyArm arm, int seed) {
  arm.seed = seed;
  return arm;
}
run::StudyArm at(run::StudyArm arm, const std::string& sweep, double value) {
  arm.sweep[sweep] = value;
  return arm;
}
run::StudyArm control(run::StudyArm arm, const std::string& name) {
  arm.control = name;
  return arm;
}

struct Study {
  run::StudyArms arms;
  OrderedMap<run::VariantResult> variants;

  Study() {
    variants["nf4"] = variant(0, 0, 1);
    const run::StudyArm r64 = at(arm("QLoRA", "r64"), "rank", 64);
    add("r64_s1", variant(0.8, 0.5, 0.9), r64);
    add("r4_s1", variant(0.3, 0.1, 1.0), at(arm("QLoRA", "r4"), "rank", 4));
    add("r64_s2", variant(0.6, 0.3, 0.8), with_seed(at(r64, "epochs", 20), 2));
    add("replay", variant(0.7, 0.4, 1.0), at(arm("replay", "r64 and replay"), "rank", 64));
    add("plain", variant(0.5, 0.2, 1.0), arm("QLoRA", "plain"));
    const run::StudyArm permuted = control(arm("QLoRA", "p"), "permuted values");
    add("permuted_s1", variant(0.1, -0.6, 0.9), permuted);
    add("permuted_s2", variant(0.1, -0.4, 0.9), with_seed(permuted, 2));
  }
  void add(const char* name, const run::VariantResult& measured, const run::StudyArm& about) {
    variants[name] = measured;
    arms[name] = about;
  }
  [[nodiscard]] std::vector<run::SweepResult> sweeps() const { return run::sweep_results(arms, variants); }
};

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("seeds are pooled: means of values and of the intervals' ends, least and most") {
  eval::PooledSeeds pooled;
  pooled.add({0.2, 0.1, 0.4, 10, 5});
  CHECK(pooled.lower == 0.1);
  CHECK(pooled.upper == 0.4);
  pooled.add({0.4, 0.3, 0.5, 8, 5});
  pooled.add({0.9, 0.5, 0.9, 10, 5});
  CHECK(pooled.over.mean == doctest::Approx(0.5));
  CHECK(pooled.over.least == 0.2);
  CHECK(pooled.over.most == 0.9);
  CHECK(pooled.over.seeds == 3);
  CHECK(pooled.lower == doctest::Approx(0.3));
  CHECK(pooled.upper == doctest::Approx(0.6));
  CHECK(pooled.n == 8);
  CHECK(pooled.values == std::vector<double>{0.2, 0.4, 0.9});
  pooled.add({0.5, std::nan(""), std::nan(""), 10, 5});
  CHECK(std::isnan(pooled.lower));  // no interval where one seed has none
  CHECK(pooled.over.mean == doctest::Approx(0.5));
  pooled.add({0.5, 0.4, 0.6, 10, 5});
  CHECK(std::isnan(pooled.upper));
}

TEST_CASE("an axis is laid out by ratios where values span a factor of eight") {
  using enum eval::Scale;
  const auto scale = [](const std::vector<double>& values) { return eval::sweep_scale(values); };
  CHECK(scale({1, 2, 4, 8}) == logarithmic);
  CHECK(scale({1, 2, 4}) == linear);
  CHECK(scale({5, 10, 20}) == linear);
  CHECK(scale({0, 1, 64}) == linear);  // no logarithm of 0
  CHECK(scale({-1, 1, 64}) == linear);
  CHECK(scale({1, 64}) == linear);  // two points have one distance
  CHECK(scale({}) == linear);
}

/// A setting that options describe.
run::StudyArm options(const char* group, double lr, int seed) {
  return {.group = group, .setting = {{"lr", lr}, {"rank", std::int64_t{8}}}, .seed = seed};
}

TEST_CASE("settings: seeds pooled, models that are no arms beside them, named by what differs") {
  Study study;
  // Two rates of a method of its own, the first with two seeds; and what a sweep or a control has alone.
  study.arms = {};
  study.add("r64_s1", variant(0.8, 0.5, 0.9), options("lora", 0.001, 1));
  study.add("r64_s2", variant(0.6, 0.3, 0.8), options("lora", 0.001, 2));
  study.add("r4_s1", variant(0.3, 0.1, 1.0), options("lora", 0.002, 1));
  study.add("plain", variant(0.5, 0.2, 1.0), options("full", 0.001, 1));
  study.add("replay", variant(0.7, 0.4, 1.0), options("lora", 0.002, 3));
  study.arms["replay"].pareto_front = false;
  study.add("permuted_s1", variant(0.1, -0.6, 0.9), control(options("lora", 0.001, 3), "permuted values"));
  study.variants.erase("permuted_s2");
  const std::vector<run::SettingResult> rows = run::pooled_settings(study.arms, study.variants);
  Names names;
  for (const run::SettingResult& row : rows) names.push_back(row.name);
  CHECK(names == Names{"nf4", "lora, lr 0.001", "lora, lr 0.002", "full"});
  CHECK(rows.at(1).arms == Names{"r64_s1", "r64_s2"});
  const run::PooledMetrics& metrics = rows.at(1).metrics;
  CHECK(metrics.size() == 3);  // of each kind the net number where there is one; no parts
  CHECK(metrics.at("paraphrase.net").over.mean == doctest::Approx(0.4));
  CHECK(metrics.at("paraphrase.net").lower == doctest::Approx(0.2));
  CHECK(metrics.at("knowledge.net").over.mean == doctest::Approx(0.5));
  CHECK(metrics.at("retention").over.least == 0.8);
  CHECK(rows.at(0).metrics.at("retention").over.mean == 1.0);
  CHECK(rows.at(0).metrics.at("retention").over.seeds == 1);

  const eval::Table table = run::setting_table(rows);
  REQUIRE(table.rows.size() == 4);
  CHECK(table.rows[1][0] == "lora, lr 0.001");
  CHECK(table.rows[1][1] == "2");  // seeds
  CHECK(run::pooled_settings({}, {}).empty());
}

TEST_CASE("what sets a setting apart: values as JSON writes them, a path by its name, pages, and what is not given") {
  Study study;
  study.arms = {};
  run::StudyArm plain = options("lora", 0.00001, 1);
  plain.setting.emplace_back("replay", std::string());
  plain.setting.emplace_back("rslora", true);
  run::StudyArm other = options("lora", 2, 1);
  other.setting.emplace_back("replay", std::string("a/b/old.jsonl"));
  other.pages.files = {"x/own.html"};
  for (const char* gone : {"replay", "plain", "permuted_s1", "permuted_s2", "r64_s2"}) study.variants.erase(gone);
  study.add("r64_s1", variant(0.8, 0.5, 0.9), plain);
  study.add("r4_s1", variant(0.3, 0.1, 1.0), other);
  const std::vector<run::SettingResult> rows = run::pooled_settings(study.arms, study.variants);
  REQUIRE(rows.size() == 3);
  CHECK(rows.at(1).name == "lora, lr 1e-05, replay none, rslora true");
  CHECK(rows.at(2).name.starts_with("lora, lr 2.0, replay old.jsonl, pages "));
  CHECK(run::trials_of(study.arms, study.variants).at(0).setting !=
        run::trials_of(study.arms, study.variants).at(1).setting);
}

TEST_CASE("arms of one sweep, group and value are one point, by rising value") {
  const Study study;
  const std::vector<run::SweepResult> sweeps = study.sweeps();
  REQUIRE(sweeps.size() == 3);
  CHECK(sweeps.at(0).sweep == "rank");
  CHECK(sweeps.at(0).group == "QLoRA");
  const std::vector<run::SweepPoint>& points = sweeps.at(0).points;
  REQUIRE(points.size() == 2);
  CHECK(points.at(0).at == 4);
  CHECK(points.at(1).at == 64);
  CHECK(points.at(1).arms == Names{"r64_s1", "r64_s2"});
  const run::PooledMetrics& metrics = points.at(1).metrics;
  REQUIRE(metrics.size() == 3);
  const eval::PooledSeeds& chat = metrics.at("knowledge_chat");
  CHECK(chat.over.mean == doctest::Approx(0.7));
  CHECK(chat.lower == doctest::Approx(0.6));
  CHECK(chat.upper == doctest::Approx(0.8));
  CHECK(chat.over.least == 0.6);
  CHECK(chat.over.most == 0.8);
  CHECK(chat.over.seeds == 2);
  CHECK(chat.n == 8);
  CHECK(metrics.at("paraphrase.net").over.mean == doctest::Approx(0.4));
  CHECK(metrics.at("paraphrase.net").lower == doctest::Approx(0.2));
  CHECK(metrics.at("paraphrase.net").n == 16);
  CHECK(metrics.at("retention").over.mean == doctest::Approx(0.85));
  CHECK(points.at(0).metrics.at("retention").over.seeds == 1);
  // An arm may stand in two sweeps; another group is another chart.
  CHECK(sweeps.at(1).sweep == "epochs");
  CHECK(sweeps.at(1).points.at(0).arms == Names{"r64_s2"});
  CHECK(sweeps.at(2).group == "replay");
  CHECK(sweeps.at(2).points.size() == 1);
}

TEST_CASE("without chats or a twin world the nearest metric stands in, and nothing twice") {
  Study study;
  for (auto& [name, variant] : study.variants) {
    std::erase_if(variant.metrics, [](const eval::Metric& metric) {
      return metric.name == "knowledge_chat" || metric.name == "paraphrase";
    });
    variant.metrics.front().numbers.pop_back();  // knowledge.net
  }
  const run::PooledMetrics metrics = study.sweeps().at(0).points.at(0).metrics;
  REQUIRE(metrics.size() == 2);
  CHECK(metrics.contains("knowledge"));
  CHECK(metrics.contains("retention"));
  // What could not be measured is no point of its seed.
  study.variants["r64_s1"].metrics.back().numbers.front().second.value = std::nan("");
  const run::PooledMetrics point = study.sweeps().at(0).points.at(1).metrics;
  CHECK(point.at("retention").over.seeds == 1);
  CHECK(point.at("retention").over.mean == 0.8);
  CHECK(run::sweep_results(study.arms, {}).empty());
  CHECK(run::sweep_results({}, study.variants).empty());
}

TEST_CASE("controls are pooled among themselves, and stand neither in the front nor in a sweep") {
  const Study study;
  const std::vector<run::ControlResult> controls = run::control_results(study.arms, study.variants);
  REQUIRE(controls.size() == 1);
  CHECK(controls.at(0).control == "permuted values");
  CHECK(controls.at(0).arms == Names{"permuted_s1", "permuted_s2"});
  const run::PooledMetrics& metrics = controls.at(0).metrics;
  CHECK(metrics.at("knowledge.net").over.mean == doctest::Approx(-0.4));
  CHECK(metrics.at("knowledge.net").lower == doctest::Approx(-0.5));
  CHECK(metrics.at("paraphrase.net").over.mean == doctest::Approx(-0.5));
  CHECK(metrics.at("retention").over.mean == doctest::Approx(0.9));
  const std::vector<eval::Trial> trials = run::trials_of(study.arms, study.variants);
  REQUIRE(trials.size() == 5);  // seven arms, two of them controls
  CHECK(trials[0].gain == 0.5);
  CHECK(trials[0].kept == 0.9);
  CHECK(trials[0].kept_lower == doctest::Approx(0.85));
  CHECK(trials[0].kept_upper == doctest::Approx(0.95));
  CHECK(trials[0].setting == trials[2].setting);  // another seed
  CHECK(trials[0].setting != trials[1].setting);
  CHECK(trials[3].group == "replay");

  const eval::Table table = run::control_table(controls);
  REQUIRE(table.rows.size() == 1);
  CHECK(table.columns == std::vector<std::string>{"", "seeds", "knowledge, net (n\u00A08)",
                                                  "paraphrase, net (n\u00A016)", "retention (n\u00A040)"});
  CHECK(table.rows[0] == std::vector<std::string>{"permuted values (QLoRA)", "2",
                                                  "-40.0 [-50.0,\u00A0-30.0] (-50.0\u00A0to\u00A0-30.0)",
                                                  "-50.0 [-70.0,\u00A0-40.0] (-60.0\u00A0to\u00A0-40.0)",
                                                  "90.0 [85.0,\u00A095.0] (90.0\u00A0to\u00A090.0)"});
}

TEST_CASE("a chart has a line a figure, whiskers and the seeds behind the means; its table the same numbers") {
  const Study study;
  const std::vector<eval::Sweep> charts = run::sweep_charts(study.sweeps());
  REQUIRE(charts.size() == 3);
  const eval::Plot& plot = charts[0].plot;
  CHECK(plot.x_ticks == std::vector<double>{4, 64});
  REQUIRE(plot.series.size() == 3);
  CHECK(plot.series[0].name == "knowledge (chat)");
  CHECK(plot.series[1].name == "paraphrase, net");
  CHECK(plot.series[2].name == "retention");
  CHECK(plot.series[0].x == std::vector<double>{4, 64});
  CHECK(plot.series[0].y[1] == doctest::Approx(70));
  CHECK(plot.series[0].lower[1] == doctest::Approx(60));
  CHECK(plot.series[0].upper[1] == doctest::Approx(80));
  CHECK(plot.series[0].behind[0].empty());  // one seed is its own mean
  CHECK(plot.series[0].behind[1] == std::vector<double>{80, 60});
  const eval::Table& table = charts[0].table;
  CHECK(table.columns[0] == "rank");
  REQUIRE(table.rows.size() == 2);
  CHECK(table.rows[0] == std::vector<std::string>{"4", "1", "30.0 [20.0,\u00A040.0]", "10.0 [-10.0,\u00A020.0]",
                                                  "100.0 [95.0,\u00A0105.0]"});
  CHECK(table.rows[1][0] == "64");
  CHECK(table.rows[1][1] == "2");
  CHECK(table.rows[1][2] == "70.0 [60.0,\u00A080.0] (60.0\u00A0to\u00A080.0)");
}

TEST_CASE("an arm that says so is no point of the front, and stays in its sweep") {
  Study study;
  const std::size_t before = run::trials_of(study.arms, study.variants).size();
  study.arms["r4_s1"].pareto_front = false;
  const std::vector<eval::Trial> trials = run::trials_of(study.arms, study.variants);
  CHECK(trials.size() == before - 1);
  for (const eval::Trial& trial : trials) CHECK(trial.setting != "name=r4\n");
  CHECK(study.sweeps().at(0).points.at(0).arms == Names{"r4_s1"});
}
