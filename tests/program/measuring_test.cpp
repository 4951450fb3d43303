// measuring_test.cpp — figures as JSON: paths, requirements held against them, and the replies that show what changed.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "../../examples/qlora/measuring.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

using namespace qlora;
using namespace qlora::program;

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

eval::Readings readings(std::initializer_list<std::pair<bool, const char*>> rows) {
  eval::Readings all;
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
const eval::Readings before =
    readings({{false, "?"}, {true, "B"}, {false, "?"}, {true, "D"}, {false, "F"}, {true, "I do not know"}});
const eval::Readings after =
    readings({{true, "A"}, {true, "B"}, {false, "A"}, {false, "A"}, {true, "E"}, {false, "A"}});

}  // namespace

TEST_CASE("what was learned, lost and invented are the replies that changed") {
  const Result examples = examples_of(items, before, after);
  CHECK(examples.at("learned").at("count") == 1);  // x's maker; an old fact that is right by now was not taught
  CHECK(examples.at("learned").at("some").at(0).at("expected") == "A");
  CHECK(examples.at("learned").at("some").at(0).at("before") == "?");
  CHECK(examples.at("lost").at("count") == 1);
  CHECK(examples.at("lost").at("some").at(0).at("prompt") == "about p");
  CHECK(examples.at("invented").at("count") == 1);
  CHECK(examples.at("invented").at("some").at(0).at("expected") == "not know");
  CHECK(examples_of(items, after, after).at("lost").at("count") == 0);
}

TEST_CASE("shares by relation, and of new facts by entity") {
  const Result relations = shares_by(items, after, false);
  CHECK(relations.at("knowledge").at("maker").at("value") == 1.0);
  CHECK(relations.at("retention").at("maker").at("value") == 0.0);
  CHECK(relations.at("retention").at("city").at("n") == 1);
  CHECK_FALSE(relations.contains("unknown"));  // has no value
  const Result entities = shares_by(items, after, true);
  CHECK(entities.at("knowledge").at("x").at("n") == 2);
  CHECK(entities.at("paraphrase").at("y").at("value") == 0.0);
  CHECK_FALSE(entities.contains("retention"));
}

TEST_CASE("requirements are held against a model's figures, or those of a variant that is named") {
  const Variants variants{{"nf4", eval::figures_of(items, before, nullptr)},
                          {"qlora", eval::figures_of(items, after, &before)}};
  const eval::Figures& own = variants.at("qlora");
  const Result checked = json_of(hold(
      {"knowledge.value>=1", "retention.value>0.5", "nf4.unknown.value>=1", "qlora.unknown.upper<=0"}, own, variants));
  CHECK(checked.at(0).at("met") == true);
  CHECK(checked.at(1).at("met") == false);
  CHECK(checked.at(1).at("measured") == 0.5);
  CHECK(checked.at(2).at("met") == true);
  CHECK(checked.at(3).at("met") == true);
  CHECK(any_unmet({{"requirements", checked}}));
  CHECK_FALSE(any_unmet({{"requirements", json_of(hold({"knowledge.value>=1"}, own, variants))}}));
  CHECK_FALSE(any_unmet(Result::object()));
  CHECK(hold({"retention.kept.clusters>=2"}, own).at(0).met);  // two entities
}

TEST_CASE("a path that is not there is refused, and what could stand in its place is named") {
  const Variants variants{{"nf4", eval::figures_of(items, before, nullptr)},
                          {"qlora", eval::figures_of(items, after, &before)}};
  const auto refusal = [&](const std::string& requirement) -> std::string {
    try {
      (void)hold({requirement}, variants.at("qlora"), variants);
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

TEST_CASE("what is not known is null in JSON, and meets nothing") {
  const eval::Interval unknown{};
  CHECK(json_of(unknown).at("lower").is_null());
  const eval::Figures figures{{"retention", {{"right", unknown}}}};
  const Result checked = json_of(hold({"retention.lower<=1", "retention.lower>=0"}, figures));
  CHECK(checked.at(0).at("met") == false);
  CHECK(checked.at(1).at("met") == false);
  CHECK(checked.at(0).at("measured").is_null());
}
