// requirements_test.cpp — requirements on measured numbers: what is read, what is met, and what the errors name.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/eval/requirements.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

using namespace qlora;
using namespace qlora::eval;

namespace {

const std::map<std::string, double, std::less<>> measured{{"retention.value", 0.98},
                                                          {"retention.lower", 0.961},
                                                          {"tuned.knowledge.chat.lower", -1.5},
                                                          {"tuned.knowledge.completion.lower", 0.25},
                                                          {"tuned.kl.value", std::numeric_limits<double>::quiet_NaN()}};

RequirementResult result_of(std::string_view expression) {
  std::vector<std::string> names;
  for (const auto& [name, value] : measured) names.push_back(name);
  const auto lookup = [](std::string_view path) {
    const auto at = measured.find(path);
    return at == measured.end() ? std::optional<double>() : at->second;
  };
  return check(parse_requirement(expression), lookup, names);
}

std::string refusal(std::string_view expression) {
  try {
    (void)result_of(expression);
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::usage);
    CHECK(std::string(error.what()).find(expression) != std::string::npos);
    return error.what();
  }
  FAIL("accepted: " << expression);
  return {};
}

bool says(const std::string& message, std::string_view part) {
  CAPTURE(message);
  return message.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a requirement is a path, a comparison and a number") {
  const Requirement plain = parse_requirement("retention.lower>=0.98");
  CHECK(plain.expression == "retention.lower>=0.98");
  CHECK(plain.path == "retention.lower");
  CHECK(plain.comparison == Comparison::at_least);
  CHECK(plain.bound == 0.98);
  const Requirement spaced = parse_requirement("  tuned.knowledge.chat.lower <  -1.5e-2 ");
  CHECK(spaced.path == "tuned.knowledge.chat.lower");
  CHECK(spaced.comparison == Comparison::below);
  CHECK(spaced.bound == -0.015);
  CHECK(parse_requirement("a.b<=3").comparison == Comparison::at_most);
  CHECK(parse_requirement("a.b>3").comparison == Comparison::above);
}

TEST_CASE("bounds are met as written, at equality too") {
  CHECK(result_of("retention.value>=0.98").met);
  CHECK(result_of("retention.value<=0.98").met);
  CHECK_FALSE(result_of("retention.value>0.98").met);
  CHECK_FALSE(result_of("retention.value<0.98").met);
  CHECK_FALSE(result_of("retention.lower>=0.98").met);
  CHECK(result_of("retention.lower>0.96").met);
  CHECK(result_of("retention.lower<0.98").met);
  const RequirementResult deep = result_of("tuned.knowledge.chat.lower <= -1");
  CHECK(deep.met);
  CHECK(deep.measured == -1.5);
  CHECK(deep.expression == "tuned.knowledge.chat.lower <= -1");
}

TEST_CASE("what was not measured meets nothing") {
  for (const char* expression : {"tuned.kl.value>=0", "tuned.kl.value<=0", "tuned.kl.value>-1", "tuned.kl.value<9"}) {
    CHECK_FALSE(result_of(expression).met);
    CHECK(std::isnan(result_of(expression).measured));
  }
}

TEST_CASE("a requirement that cannot be read says why") {
  CHECK(says(refusal("retention.lower"), "no comparison"));
  CHECK(says(refusal(""), "no comparison"));
  CHECK(says(refusal("retention.lower=0.98"), "`=` is not one of >= <= > <"));
  CHECK(says(refusal("retention.lower=>0.98"), "`=>` is not one of"));
  CHECK(says(refusal("retention.lower!=0.98"), "`!=` is not one of"));
  CHECK(says(refusal("retention>=0.98"), "no field"));
  CHECK(says(refusal(">=0.98"), "no field"));
  CHECK(says(refusal("retention..lower>=0.98"), "part of the name is empty"));
  CHECK(says(refusal(".lower>=0.98"), "part of the name is empty"));
  CHECK(says(refusal("retention.>=0.98"), "part of the name is empty"));
  CHECK(says(refusal("old facts.lower>=0.98"), "white space"));
  CHECK(says(refusal("retention.lower>="), "`` is not a number"));
  CHECK(says(refusal("retention.lower>=98%"), "`98%` is not a number"));
  CHECK(says(refusal("retention.lower>=0,98"), "`0,98` is not a number"));
  CHECK(says(refusal("retention.lower>=nan"), "`nan` is not a number"));
  CHECK(says(refusal("retention.lower>=1 2"), "`1 2` is not a number"));
}

TEST_CASE("a share that is asked to be beyond 1 was meant in percent, and is refused; nats and counts may be") {
  CHECK(says(refusal("retention.lower>=98"), "shares run from 0 to 1"));
  CHECK(says(refusal("retention.value>-1.5"), "shares run from 0 to 1"));
  CHECK_FALSE(result_of("retention.lower>=1").met);
  CHECK(result_of("retention.lower>=-1").met);
  CHECK(is_share("tuned.paraphrase.net.lower"));
  CHECK_FALSE(is_share("retention.n"));
  CHECK_FALSE(is_share("tuned.knowledge.margin.lower"));
  CHECK_FALSE(is_share("text_held_out.value"));
  CHECK_FALSE(is_share("tuned.text_held_out.kl.upper"));
}

TEST_CASE("a path that is not there is an error that names what is") {
  CHECK(says(refusal("retension.lower>=0.98"), "no number is named `retension.lower`; there are retention, tuned"));
  CHECK(says(refusal("retention.loewr>=0.98"), "; `retention` has lower, value"));
  CHECK(says(refusal("tuned.knowlege.chat.lower>=0"), "; `tuned` has kl, knowledge"));
  CHECK(says(refusal("tuned.knowledge.lower>=0"), "; `tuned.knowledge` has chat, completion"));
  CHECK(says(refusal("tuned.know.lower>=0"), "; `tuned` has kl, knowledge"));
  const auto nothing = [](std::string_view) { return std::optional<double>(); };
  CHECK_THROWS_WITH_AS((void)check(parse_requirement("a.b>1"), nothing, {}),
                       "requirement `a.b>1`: no number is named `a.b`; nothing was measured", Error);
}
