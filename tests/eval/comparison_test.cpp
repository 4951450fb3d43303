// comparison_test.cpp — one model against another: requirements on metrics, shares by relation and entity, and the
// replies that changed.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "qlora/eval/examples.hpp"
#include "qlora/eval/metrics.hpp"
#include "qlora/eval/shares.hpp"

using namespace qlora;

namespace {

eval::Item asked(eval::Kind kind, const std::string& entity, const std::string& relation, const std::string& answer) {
  eval::Item item;
  item.kind = kind;
  item.entity = entity;
  item.relation = relation;
  item.answer = answer;
  item.prompt = "about " + entity;
  if (kind == eval::Kind::unknown) item.accept = {"not know"};
  return item;
}

eval::ItemResults item_results(std::initializer_list<std::pair<bool, const char*>> rows) {
  eval::ItemResults all;
  for (const auto& [right, text] : rows) {
    all.replies.push_back({text, true});
    all.verdicts.push_back({right, false});
  }
  for (auto* list : {&all.margin, &all.loss, &all.kl, &all.tokens}) {
    list->assign(rows.size(), std::numeric_limits<double>::quiet_NaN());
  }
  return all;
}

const std::vector<eval::Item> items{
    asked(eval::Kind::knowledge, "x", "maker", "A"),  asked(eval::Kind::knowledge, "x", "city", "B"),
    asked(eval::Kind::paraphrase, "y", "maker", "C"), asked(eval::Kind::retention, "p", "maker", "D"),
    asked(eval::Kind::retention, "q", "city", "E"),   asked(eval::Kind::unknown, "z", "maker", ""),
};
const eval::ItemResults before =
    item_results({{false, "?"}, {true, "B"}, {false, "?"}, {true, "D"}, {false, "F"}, {true, "I do not know"}});
const eval::ItemResults after =
    item_results({{true, "A"}, {true, "B"}, {false, "A"}, {false, "A"}, {true, "E"}, {false, "A"}});

}  // namespace

TEST_CASE("what was learned, lost and invented are the replies that changed") {
  const eval::Examples examples = eval::examples_of(items, before, after);
  CHECK(examples.at("learned").count == 1);  // x's maker; an old fact that is right by now was not taught
  CHECK(examples.at("learned").some.at(0).expected == "A");
  CHECK(examples.at("learned").some.at(0).before == "?");
  CHECK(examples.at("lost").count == 1);
  CHECK(examples.at("lost").some.at(0).prompt == "about p");
  CHECK(examples.at("invented").count == 1);
  CHECK(examples.at("invented").some.at(0).expected == "not know");
  CHECK(eval::examples_of(items, after, after).at("lost").count == 0);
  CHECK(examples.at("kept").count == 0);
  CHECK(eval::examples_of(items, after, after).at("kept").count == 1);  // q's city; new facts are not kept but learned
  CHECK(eval::examples_of(items, after, after).at("kept").some.at(0).prompt == "about q");
}

TEST_CASE("of many examples some are kept, evenly spaced") {
  const std::vector<eval::Item> asked_often(20, asked(eval::Kind::knowledge, "x", "maker", "A"));
  eval::ItemResults wrong = item_results({{false, "?"}});
  eval::ItemResults right = item_results({{true, "A"}});
  for (eval::ItemResults* of : {&wrong, &right}) {
    of->replies.resize(20, of->replies.front());
    of->verdicts.resize(20, of->verdicts.front());
  }
  for (std::size_t i = 0; i < 20; ++i) right.replies[i].text = std::to_string(i);
  const eval::ExampleGroup learned = eval::examples_of(asked_often, wrong, right).at("learned");
  CHECK(learned.count == 20);
  REQUIRE(learned.some.size() == eval::examples_shown);
  CHECK(learned.some.front().after == "0");
  CHECK(learned.some.back().after == "17");
}

TEST_CASE("shares by relation, and of new facts by entity") {
  const eval::Shares relations = eval::shares_by_relation(items, after);
  CHECK(relations.at("knowledge").at("maker").value == 1.0);
  CHECK(relations.at("retention").at("maker").value == 0.0);
  CHECK(relations.at("retention").at("city").n == 1);
  CHECK_FALSE(relations.contains("unknown"));  // has no value
  const eval::Shares entities = eval::shares_by_entity(items, after);
  CHECK(entities.at("knowledge").at("x").n == 2);
  CHECK(entities.at("paraphrase").at("y").value == 0.0);
  CHECK_FALSE(entities.contains("retention"));
}

TEST_CASE("requirements are checked on a model's metrics, or those of a variant that is named") {
  const eval::MetricsByVariant variants{{"nf4", eval::metrics_of(items, before, nullptr)},
                                        {"qlora", eval::metrics_of(items, after, &before)}};
  const eval::Metrics& own = variants.at("qlora");
  const std::vector<std::string> requirements{"knowledge.value>=1", "retention.value>0.5", "nf4.unknown.value>=1",
                                              "qlora.unknown.upper<=0"};
  const std::vector<eval::RequirementResult> checked = eval::check_requirements(requirements, own, variants);
  CHECK(checked.at(0).met);
  CHECK_FALSE(checked.at(1).met);
  CHECK(checked.at(1).measured == 0.5);
  CHECK(checked.at(2).met);
  CHECK(checked.at(3).met);
  CHECK(eval::any_unmet(checked));
  CHECK_FALSE(eval::any_unmet(std::span(checked).first(1)));
  CHECK_FALSE(eval::any_unmet({}));
  const std::vector<std::string> kept{"retention.kept.clusters>=2"};
  CHECK(eval::check_requirements(kept, own).at(0).met);  // two entities
}

TEST_CASE("the interval of a number is found by its path, with or without the main number's name") {
  const eval::Metrics metrics = eval::metrics_of(items, after, &before);
  REQUIRE(eval::find_interval(metrics, "retention") != nullptr);
  CHECK(eval::find_interval(metrics, "retention")->value == 0.5);
  CHECK(eval::find_interval(metrics, "retention.right") == eval::find_interval(metrics, "retention"));
  REQUIRE(eval::find_interval(metrics, "retention.kept") != nullptr);
  CHECK(eval::find_interval(metrics, "retention.kept")->clusters == 2);
  CHECK(eval::find_interval(metrics, "retention.net") == nullptr);
  CHECK(eval::find_interval(metrics, "reversed") == nullptr);
}

TEST_CASE("a path that is not there is refused, and what could stand in its place is named") {
  const eval::MetricsByVariant variants{{"nf4", eval::metrics_of(items, before, nullptr)},
                                        {"qlora", eval::metrics_of(items, after, &before)}};
  const auto refusal = [&](const std::string& requirement) -> std::string {
    try {
      (void)eval::check_requirements(std::span(&requirement, 1), variants.at("qlora"), variants);
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::usage);
      return error.what();
    }
    return "it was held";
  };
  const auto says = [&](const std::string& requirement, const std::string& part) {
    CAPTURE(refusal(requirement));
    return refusal(requirement).find(part) != std::string::npos;
  };
  CHECK(says("knowledge.middle>=1", "`knowledge` has change, clusters, kept, lower, n, upper, value"));
  CHECK(says("knowlege.value>=1", "there are knowledge, nf4, paraphrase, qlora, retention, unknown"));
  CHECK(says("nf5.knowledge.value>=1", "there are knowledge, nf4, "));
  CHECK(says("nf4.reversed.value>=1", "`nf4` has knowledge, paraphrase, retention, unknown"));
  CHECK(says("nf4.retention.change.value>=0", "`nf4.retention` has clusters, lower, n, upper, value"));
  CHECK(says("knowledge.value=1", "`=` is not one of"));
  CHECK(says("knowledge.value>=much", "`much` is not a number"));
}

TEST_CASE("a number that is not known meets no requirement") {
  const eval::Metrics metrics{{"retention", {{"right", eval::Interval{}}}}};
  const std::vector<std::string> requirements{"retention.lower<=1", "retention.lower>=0"};
  const std::vector<eval::RequirementResult> checked = eval::check_requirements(requirements, metrics);
  CHECK_FALSE(checked.at(0).met);
  CHECK_FALSE(checked.at(1).met);
  CHECK(std::isnan(checked.at(0).measured));
}
