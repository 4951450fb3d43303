// sweeps_test.cpp — arms of a job beside each other, by hand: seeds pooled, points of sweeps, controls kept apart.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "../../examples/qlora/sweeps.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "qlora/eval/sweep.hpp"

using namespace qlora;
using namespace qlora::program;

namespace {

Result number(double value, double lower, double upper, int n = 8) {
  return {{"n", n}, {"clusters", 4}, {"value", value}, {"lower", lower}, {"upper", upper}};
}

/// A variant that said `chat` of the chat questions, `net` in new words beyond the twin, and kept `kept`.
Result variant(double chat, double net, double kept) {
  Result figures = Result::object();
  figures["knowledge"] = number(chat / 2, chat / 4, chat);
  figures["knowledge"]["net"] = number(net + 0.1, net, net + 0.2);
  figures["knowledge_chat"] = number(chat, chat - 0.1, chat + 0.1);
  figures["paraphrase"] = number(0.9, 0.8, 1.0);
  figures["paraphrase"]["net"] = number(net, net - 0.2, net + 0.1, 16);
  figures["retention"] = number(kept, kept - 0.05, kept + 0.05, 40);
  return {{"reference", "nf4"}, {"figures", figures}};
}

Result arm(const char* group, const char* setting, int seed, const Result& more) {
  Result one{{"group", group}, {"setting", setting}, {"seed", seed}};
  one.update(more);
  return one;
}

Result at(double rank) { return {{"sweep", {{"rank", rank}}}}; }

struct Study {
  Result arms = Result::object();
  Result variants = Result::object();

  Study() {
    variants["nf4"] = variant(0, 0, 1);
    add("r64_s1", variant(0.8, 0.5, 0.9), arm("QLoRA", "r64", 1, at(64)));
    add("r4_s1", variant(0.3, 0.1, 1.0), arm("QLoRA", "r4", 1, at(4)));
    add("r64_s2", variant(0.6, 0.3, 0.8), arm("QLoRA", "r64", 2, {{"sweep", {{"epochs", 20}, {"rank", 64}}}}));
    add("replay", variant(0.7, 0.4, 1.0), arm("replay", "r64 and replay", 1, at(64)));
    add("plain", variant(0.5, 0.2, 1.0), arm("QLoRA", "plain", 1, Result::object()));
    add("permuted_s1", variant(0.1, -0.6, 0.9), arm("QLoRA", "p", 1, {{"control", "permuted values"}}));
    add("permuted_s2", variant(0.1, -0.4, 0.9), arm("QLoRA", "p", 2, {{"control", "permuted values"}}));
  }
  void add(const char* name, const Result& measured, const Result& about) {
    variants[name] = measured;
    arms[name] = about;
  }
};

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

TEST_CASE("settings: seeds pooled, models that are no arms beside them, named by what differs") {
  Study study;
  // Two rates of a method of its own, the first with two seeds; and what a sweep or a control has alone.
  const char* low = R"({"lr":0.001,"rank":8})";
  const char* high = R"({"lr":0.002,"rank":8})";
  study.arms = Result::object();
  study.add("r64_s1", variant(0.8, 0.5, 0.9), arm("lora", low, 1, Result::object()));
  study.add("r64_s2", variant(0.6, 0.3, 0.8), arm("lora", low, 2, Result::object()));
  study.add("r4_s1", variant(0.3, 0.1, 1.0), arm("lora", high, 1, Result::object()));
  study.add("plain", variant(0.5, 0.2, 1.0), arm("full", low, 1, Result::object()));
  study.add("replay", variant(0.7, 0.4, 1.0), arm("lora", high, 3, {{"front", false}}));
  study.add("permuted_s1", variant(0.1, -0.6, 0.9), arm("lora", low, 3, {{"control", "permuted values"}}));
  study.variants.erase("permuted_s2");
  const Result rows = pooled_of(study.arms, study.variants);
  std::vector<std::string> names;
  for (const Result& row : rows) names.push_back(row.at("name"));
  CHECK(names == std::vector<std::string>{"nf4", "lora, lr 0.001", "lora, lr 0.002", "full"});
  CHECK(rows.at(1).at("arms") == Result{"r64_s1", "r64_s2"});
  const Result& figures = rows.at(1).at("figures");
  CHECK(figures.size() == 3);  // of each kind the net number where there is one; no parts
  CHECK(figures.at("paraphrase.net").at("value").get<double>() == doctest::Approx(0.4));
  CHECK(figures.at("paraphrase.net").at("lower").get<double>() == doctest::Approx(0.2));
  CHECK(figures.at("knowledge.net").at("value").get<double>() == doctest::Approx(0.5));
  CHECK(figures.at("retention").at("least").get<double>() == 0.8);
  CHECK(rows.at(0).at("figures").at("retention").at("value").get<double>() == 1.0);
  CHECK(rows.at(0).at("figures").at("retention").at("seeds") == 1);

  const eval::Table table = table_of_settings(rows);
  REQUIRE(table.rows.size() == 4);
  CHECK(table.rows[1][0] == "lora, lr 0.001");
  CHECK(table.rows[1][1] == "2");  // seeds
  CHECK(pooled_of(Result::object(), Result::object()).empty());
}

TEST_CASE("arms of one sweep, group and value are one point, by rising value") {
  const Study study;
  const Result sweeps = sweeps_of(study.arms, study.variants);
  REQUIRE(sweeps.size() == 3);
  CHECK(sweeps.at(0).at("sweep") == "rank");
  CHECK(sweeps.at(0).at("group") == "QLoRA");
  const Result& points = sweeps.at(0).at("points");
  REQUIRE(points.size() == 2);
  CHECK(points.at(0).at("at") == 4);
  CHECK(points.at(1).at("at") == 64);
  CHECK(points.at(1).at("arms") == Result{"r64_s1", "r64_s2"});
  const Result& figures = points.at(1).at("figures");
  REQUIRE(figures.size() == 3);
  const Result& chat = figures.at("knowledge_chat");
  CHECK(chat.at("value").get<double>() == doctest::Approx(0.7));
  CHECK(chat.at("lower").get<double>() == doctest::Approx(0.6));
  CHECK(chat.at("upper").get<double>() == doctest::Approx(0.8));
  CHECK(chat.at("least") == 0.6);
  CHECK(chat.at("most") == 0.8);
  CHECK(chat.at("seeds") == 2);
  CHECK(chat.at("n") == 8);
  CHECK(figures.at("paraphrase.net").at("value").get<double>() == doctest::Approx(0.4));
  CHECK(figures.at("paraphrase.net").at("lower").get<double>() == doctest::Approx(0.2));
  CHECK(figures.at("paraphrase.net").at("n") == 16);
  CHECK(figures.at("retention").at("value").get<double>() == doctest::Approx(0.85));
  CHECK(points.at(0).at("figures").at("retention").at("seeds") == 1);
  // An arm may stand in two sweeps; another group is another chart.
  CHECK(sweeps.at(1).at("sweep") == "epochs");
  CHECK(sweeps.at(1).at("points").at(0).at("arms") == Result::array({"r64_s2"}));
  CHECK(sweeps.at(2).at("group") == "replay");
  CHECK(sweeps.at(2).at("points").size() == 1);
}

TEST_CASE("without chats or a twin world the nearest figure stands in, and nothing twice") {
  Study study;
  for (const auto& [name, one] : study.variants.items()) {
    Result& figures = study.variants[name]["figures"];
    figures.erase("knowledge_chat");
    figures.erase("paraphrase");
    figures["knowledge"].erase("net");
  }
  const Result figures = sweeps_of(study.arms, study.variants).at(0).at("points").at(0).at("figures");
  REQUIRE(figures.size() == 2);
  CHECK(figures.contains("knowledge"));
  CHECK(figures.contains("retention"));
  // What could not be measured is no point of its seed.
  study.variants["r64_s1"]["figures"]["retention"]["value"] = nullptr;
  const Result point = sweeps_of(study.arms, study.variants).at(0).at("points").at(1).at("figures");
  CHECK(point.at("retention").at("seeds") == 1);
  CHECK(point.at("retention").at("value") == 0.8);
  CHECK(sweeps_of(study.arms, Result::object()).empty());
  CHECK(sweeps_of(Result::object(), study.variants).empty());
}

TEST_CASE("controls are pooled among themselves, and stand neither in the front nor in a sweep") {
  const Study study;
  const Result controls = controls_of(study.arms, study.variants);
  REQUIRE(controls.size() == 1);
  CHECK(controls.at(0).at("control") == "permuted values");
  CHECK(controls.at(0).at("arms") == Result{"permuted_s1", "permuted_s2"});
  const Result& figures = controls.at(0).at("figures");
  CHECK(figures.at("knowledge.net").at("value").get<double>() == doctest::Approx(-0.4));
  CHECK(figures.at("knowledge.net").at("lower").get<double>() == doctest::Approx(-0.5));
  CHECK(figures.at("paraphrase.net").at("value").get<double>() == doctest::Approx(-0.5));
  CHECK(figures.at("retention").at("value").get<double>() == doctest::Approx(0.9));
  const std::vector<eval::Trial> trials = trials_of(study.arms, study.variants);
  REQUIRE(trials.size() == 5);  // seven arms, two of them controls
  CHECK(trials[0].gain == 0.5);
  CHECK(trials[0].kept == 0.9);
  CHECK(trials[0].kept_lower == doctest::Approx(0.85));
  CHECK(trials[0].kept_upper == doctest::Approx(0.95));
  CHECK(trials[3].group == "replay");
  for (const eval::Trial& trial : trials) CHECK(trial.setting != "p");

  const eval::Table table = table_of_controls(controls);
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
  const std::vector<eval::Sweep> charts = charts_of(sweeps_of(study.arms, study.variants));
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
  const std::size_t before = trials_of(study.arms, study.variants).size();
  study.arms["r4_s1"]["front"] = false;
  const std::vector<eval::Trial> trials = trials_of(study.arms, study.variants);
  CHECK(trials.size() == before - 1);
  for (const eval::Trial& trial : trials) CHECK(trial.setting != "r4");
  const Result sweeps = sweeps_of(study.arms, study.variants);
  CHECK(sweeps.dump().find("r4_s1") != std::string::npos);
}
