// results_json_test.cpp — results as JSON: the keys and their order, and null for what is not known.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>

#include "qlora/io/file.hpp"
#include "qlora/run/job_json.hpp"
#include "qlora/run/json.hpp"

using namespace qlora;
using run::to_json;

namespace {

/// Values that are not the same, numbers with a fraction to 12 digits.
int different(const run::OrderedJson& a, const run::OrderedJson& b) {
  if (a.is_number_float() && b.is_number_float()) {
    const auto x = a.get<double>();
    return std::abs(x - b.get<double>()) <= 1e-12 * (1.0 + std::abs(x)) ? 0 : 1;
  }
  if (!a.is_structured() || a.type() != b.type() || a.size() != b.size()) return a == b ? 0 : 1;
  int count = 0;
  auto other = b.items().begin();
  for (const auto& [key, value] : a.items()) {
    count += key == other.key() ? different(value, other.value()) : 1;
    ++other;
  }
  return count;
}

}  // namespace

TEST_CASE("metrics: the main number's fields, then the other numbers; null for what is not known") {
  const eval::Metrics metrics{{"retention", {{"right", {.value = 0.5, .n = 4, .clusters = 2}}, {"kept", {}}}}};
  const run::OrderedJson json = to_json(metrics);
  CHECK(json.dump() == R"({"retention":{"n":4,"clusters":2,"value":0.5,"lower":null,"upper":null,)"
                       R"("kept":{"n":0,"clusters":0,"value":0.0,"lower":null,"upper":null}}})");
  const eval::Metrics read = run::metrics_from_json(json);
  CHECK(read.front().numbers.front().second.n == 4);
  CHECK(std::isnan(read.front().numbers.front().second.lower));
  CHECK(to_json(read) == json);
}

TEST_CASE("requirements, shares and examples") {
  const std::vector<eval::RequirementResult> results{{"a.value>=1", 0.5, false},
                                                     {"b.value>=1", std::numeric_limits<double>::quiet_NaN(), false}};
  CHECK(to_json(results).dump() == R"([{"requirement":"a.value>=1","measured":0.5,"met":false},)"
                                   R"({"requirement":"b.value>=1","measured":null,"met":false}])");
  const eval::Shares shares{{"knowledge", {{"maker", {2, 0.5}}}}};
  CHECK(to_json(shares).dump() == R"({"knowledge":{"maker":{"n":2,"value":0.5}}})");
  const eval::Examples examples{{"lost", {1, {{eval::Kind::retention, true, "p", "e", "b", "a"}}}}};
  CHECK(to_json(examples).dump() ==
        R"({"lost":{"count":1,"some":[{"kind":"retention","form":"chat","prompt":"p","expected":"e","before":"b",)"
        R"("after":"a"}]}})");
}

TEST_CASE("report.json of the study that is committed is read and written again to the byte") {
  const std::string text = read_text(QLORA_SOURCE_DIR "/docs/forgetting/report.json", 1 << 24);
  run::JobResult result = run::job_result_from_json(run::OrderedJson::parse(text));
  CHECK(result.comparison.variants.size() == 45);
  CHECK(run::file_text(to_json(result)) == text);
  // What is derived from arms and metrics is derived again; compilers fuse other products and sums.
  result.study = run::study_of(result.study.arms, result.comparison.variants);
  CHECK(result.study.sweeps.size() == 5);
  CHECK(different(to_json(result), run::OrderedJson::parse(text)) == 0);
}

TEST_CASE("an arm has what it says, and its setting is one text") {
  run::StudyArm arm{.group = "QLoRA", .setting = {{"lr", 0.1}, {"rank", std::int64_t{4}}, {"rslora", true}}, .seed = 3};
  CHECK(to_json(arm).dump() == R"({"group":"QLoRA","setting":"{\"lr\":0.1,\"rank\":4,\"rslora\":true}","seed":3})");
  arm.pages = {{"http://x/"}, {"a.html"}};
  arm.sweep["rank"] = 4;
  arm.control = "c";
  arm.pareto_front = false;
  const run::OrderedJson json = to_json(arm);
  CHECK(json.dump().ends_with(R"(\"pages\":[[\"http://x/\"],[\"a.html\"]]}","seed":3,"sweep":{"rank":4.0},)"
                              R"("control":"c","front":false})"));
  const run::StudyArm read = run::study_arm_from_json(json);
  CHECK(read.setting == arm.setting);
  CHECK(read.pages == arm.pages);
  CHECK(to_json(read) == json);
}

TEST_CASE("a result that lacks what it must have is refused by the name of the key") {
  const auto refusal = [](const char* text) -> std::string {
    try {
      (void)run::comparison_from_json(run::OrderedJson::parse(text));
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  CHECK(refusal(R"({"answers":[]})").find("no key \"variants\"") != std::string::npos);
  CHECK(refusal(R"({"answers":[{"form":3}],"variants":{}})").find("\"form\" is no text") != std::string::npos);
  CHECK(refusal(R"({"answers":[],"variants":{}})") == "accepted");
  CHECK(refusal(R"({"answers":{},"variants":{}})").find("\"answers\" is no array") != std::string::npos);
  CHECK(refusal(R"([])").find("is no object") != std::string::npos);
}

TEST_CASE("a value of another type or out of its range is refused by its key, not read as 0") {
  const auto refused = [](const std::string& key, const auto& from_json, const char* text) {
    CAPTURE(text);
    try {
      (void)from_json(run::OrderedJson::parse(text));
      FAIL_CHECK("accepted");
    } catch (const Error& error) {
      CHECK(std::string(error.what()).find("\"" + key + "\" is no ") != std::string::npos);
    }
  };
  refused("steps", run::train_result_from_json, R"({"steps":"ten"})");
  refused("steps", run::train_result_from_json, R"({"steps":-1})");
  refused("steps", run::train_result_from_json, R"({"steps":2147483648})");
  refused("steps", run::train_result_from_json, R"({"steps":1.5})");
  refused("windows", run::train_result_from_json, R"({"windows":18446744073709551615})");
  refused("first_loss", run::train_result_from_json, R"({"first_loss":"low"})");
  refused("method", run::train_result_from_json, R"({"method":3})");
  refused("documents", run::pack_result_from_json, R"({"documents":[]})");
  refused("documents", run::fetch_result_from_json, R"({"documents":{}})");
  refused("source", run::fetch_result_from_json, R"({"documents":[{"source":3}]})");
  refused("dtype", run::merge_result_from_json, R"({"dtype":16})");
  refused("n", run::interval_from_json, R"({"n":true})");
  refused("value", run::interval_from_json, R"({"value":"0.5"})");
  refused("met", run::requirements_from_json, R"([{"requirement":"a","measured":1,"met":"yes"}])");
  refused("seed", run::study_arm_from_json, R"({"group":"g","setting":"{}","seed":"7"})");
  refused("front", run::study_arm_from_json, R"({"group":"g","setting":"{}","seed":7,"front":1})");
  refused("values", run::pooled_metrics_from_json, R"({"a":{"values":[1,"2"]}})");
}
