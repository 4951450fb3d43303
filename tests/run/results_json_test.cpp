// results_json_test.cpp — results as JSON: the keys and their order, and null for what is not known.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>

#include "qlora/run/json.hpp"

using namespace qlora;
using run::to_json;

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
