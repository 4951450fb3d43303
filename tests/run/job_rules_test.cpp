// job_rules_test.cpp — a job as a struct: what complete_job fills in and refuses, where results lie, and its JSON.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <string>
#include <utility>

#include "qlora/run/job.hpp"
#include "qlora/run/job_json.hpp"

using namespace qlora;

namespace {

run::Job minimal() {
  run::Job job;
  job.models = {{"", {"model"}}};
  job.pages.files = {"page.html"};
  job.output.dir = "out";
  return job;
}
run::Arm arm(const run::Job& job, const std::string& name) {
  return {.name = name, .pages = job.pages, .train = job.train};
}
run::Arm full(const run::Job& job, const std::string& name) {
  run::Arm found = arm(job, name);
  found.train.options.method = run::Method::full;
  return found;
}

std::string refusal(run::Job job) {
  try {
    run::complete_job(job);
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::input);
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("a job without arms has one, which is merged, and its results lie in the output directory") {
  run::Job job = minimal();
  job.train.options.rank = 8;
  run::complete_job(job);
  REQUIRE(job.arms.size() == 1);
  CHECK(job.arms[0].name == "qlora");
  CHECK(job.arms[0].train.options.rank == 8);
  CHECK(job.arms[0].pages == job.pages);
  CHECK(job.merge.arm == "qlora");
  REQUIRE(run::merged_arm(job) != nullptr);
  CHECK(run::folder_of(job, job.models[0], job.arms[0]) == "out/qlora");
  job.models[0].name = "small";
  CHECK(run::folder_of(job, job.models[0], job.arms[0]) == "out/small/qlora");
  const run::Job once = job;
  run::complete_job(job);
  CHECK(to_json(job) == to_json(once));
}

TEST_CASE("the last arm that has an adapter and is no control is merged, if none is named") {
  run::Job job = minimal();
  job.arms = {arm(job, "a"), arm(job, "b"), full(job, "c"), arm(job, "d")};
  job.arms[3].labels.control = "other values";
  run::Job all_full = job;
  run::complete_job(job);
  CHECK(job.merge.arm == "b");
  all_full.arms = {full(job, "a"), full(job, "b")};
  run::complete_job(all_full);
  CHECK(all_full.merge.arm == "b");  // what requirements are checked on
  CHECK(run::merged_arm(all_full) == nullptr);
  all_full.merge.arm = "a";
  CHECK(refusal(all_full) == "[merge] arm is \"a\", which trains all weights: there is no adapter");
}

TEST_CASE("what a job lacks is refused by its section and key") {
  CHECK(refusal(minimal()) == "accepted");
  run::Job job = minimal();
  job.models.clear();
  CHECK(refusal(job) == "[model] path is missing: the directory of the model to tune");
  job = minimal();
  job.pages = {};
  CHECK(refusal(job) == "[data] needs urls or files: what to learn from");
  job = minimal();
  job.output.dir.clear();
  CHECK(refusal(job) == "[output] dir is missing: where results go");
  job = minimal();
  job.merge.arm = "b";
  CHECK(refusal(job) == "[merge] arm is \"b\", and no [[arm]] has that name");
  job = minimal();
  job.models = {{"a", {"x"}}, {"b", {""}}};
  CHECK(refusal(job) == "the model \"b\" has no path");
}

TEST_CASE("names are folders and keys: plain, each once, and none of the report's own") {
  const auto with_arms = [](const std::string& a, const std::string& b) {
    run::Job job = minimal();
    job.arms = {arm(job, a), arm(job, b)};
    return refusal(job);
  };
  CHECK(with_arms("a", "b") == "accepted");
  CHECK(with_arms("a", "a") == "a second arm \"a\"");
  CHECK(with_arms("a", "nf4") == "an arm cannot be named \"nf4\"");
  CHECK(with_arms("../a", "b") == "an arm cannot be named \"../a\"");
  CHECK(with_arms("a", "") == "an arm cannot be named \"\"");
  const auto with_models = [](const std::string& a, const std::string& b) {
    run::Job job = minimal();
    job.models = {{a, {"x"}}, {b, {"y"}}};
    return refusal(job);
  };
  CHECK(with_models("a", "b") == "accepted");
  CHECK(with_models("a", "a") == "a second model \"a\"");
  CHECK(with_models("", "b") == "a model cannot be named \"\"");
}

TEST_CASE("a job of more arms or models than can be compared is refused at once") {
  run::Job job = minimal();
  job.arms.assign(run::max_named + 1, arm(job, "a"));
  CHECK(refusal(job) == "1001 arms; a job has at most 1000");
  job = minimal();
  job.models.assign(run::max_named + 1, {"m", {"x"}});
  CHECK(refusal(job) == "1001 models; a job has at most 1000");
}

TEST_CASE("one seed counts once at a value of a sweep, and a control stands in none") {
  run::Job job = minimal();
  job.arms = {arm(job, "a"), arm(job, "b")};
  job.arms[0].sweep = {{"epochs", 2}, {"rank", 1}};
  job.arms[1].sweep = {{"rank", 1}};
  CHECK(run::shared_point(job.arms[0], job.arms[1]) == "rank");
  CHECK(refusal(job).find("one point of the sweep \"rank\"") != std::string::npos);
  run::Job other = job;
  other.arms[1].train.options.seed = 7;
  CHECK(refusal(other) == "accepted");
  other = job;
  other.arms[1].labels.group = "other";
  CHECK(refusal(other) == "accepted");
  other.arms[1].labels.control = "c";
  CHECK(refusal(other).find("is a control or stands in a sweep") != std::string::npos);
}

TEST_CASE("the JSON of a job has its sections, and of each arm what it is trained by") {
  run::Job job = minimal();
  job.arms = {arm(job, "a"), full(job, "b")};
  job.arms[1].pages.files = {"own.html"};
  job.arms[1].labels.pareto_front = false;
  run::complete_job(job);
  const run::OrderedJson json = to_json(job);
  std::string sections;
  for (const auto& [name, section] : json.items()) sections += name + " ";
  CHECK(sections == "model device data pack arms merge compare output ");
  CHECK(json.at("model").dump() == R"({"path":"model"})");
  CHECK(json.at("arms").at("a").at("rank") == 64);
  CHECK_FALSE(json.at("arms").at("a").contains("files"));
  CHECK_FALSE(json.at("arms").at("b").contains("rank"));  // all weights have none
  CHECK(json.at("arms").at("b").at("files").dump() == R"(["own.html"])");
  CHECK(json.at("arms").at("b").at("pareto_front") == false);
  CHECK(json.at("merge").at("arm") == "a");
}
