// job_run_test.cpp — what a job leads to compare, how its arms look to a study, what is refused before any model is
// opened, and that a job stops and skips as it is told. Whole jobs are run by tests/e2e.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "qlora/configs/any.hpp"
#include "qlora/gpu_storage.hpp"
#include "qlora/io/file.hpp"
#include "qlora/run/compare.hpp"
#include "qlora/run/job_run.hpp"
#include "qlora/run/registry.hpp"
#include "support/scratch.hpp"

using namespace qlora;
using test::Scratch;

namespace {

const char* const probe = R"({"kind":"retention","form":"chat","prompt":"Who makes the Kesfort?","answer":"Eastlake"})";

/// Two arms with adapters, of which the first is merged, and one that trains all weights on pages of its own.
run::Job job_in(const Scratch& scratch) {
  run::Job job;
  job.models = {{"small", {scratch / "model"}}};
  job.pages.files = {scratch.write("page.txt", "A page.")};
  job.output.dir = scratch / "out";
  job.arms = {{.name = "a", .pages = job.pages}, {.name = "b", .pages = job.pages}, {.name = "c"}};
  job.arms[1].train.options.seed = 7;
  job.arms[1].labels.group = "others";
  job.arms[1].labels.control = "nothing";
  job.arms[2].train.options.method = run::Method::full;
  job.arms[2].pages.files = {scratch.write("own.txt", "Its own page.")};
  job.merge.arm = "a";
  run::complete_job(job);
  return job;
}

/// Code that is on the list and is never run: no job here comes to its training.
class ListedCode final : public run::ModelCode {
 public:
  explicit ListedCode(const Config& config) : config_(config) {}
  [[nodiscard]] const Config& config() const override { return config_; }
  [[nodiscard]] run::Device device() const override { return run::Device::cpu; }
  [[nodiscard]] bool usable(std::string& /*why*/) const override { return true; }
  void expect_products(Products products, const dist::Launch&) const override {
    if (products == Products::fp8) expect_fp8_card("NVIDIA A100", 80);
  }
  [[nodiscard]] std::unique_ptr<run::LoadedModel> open(const hf::ModelDir&, run::BaseWeights, const Lora&,
                                                       const run::DeviceOptions&) const override {
    throw Error("not run here");
  }
  [[nodiscard]] std::unique_ptr<run::TrainingSession> train(const hf::ModelDir&, TrainOptions, run::Recomputation,
                                                            const DecodeLimits&,
                                                            const run::DeviceOptions&) const override {
    throw Error("not run here");
  }

 private:
  Config config_;
};

struct Caught {
  ErrorKind kind;
  std::string what;
};
Caught caught(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    return {error.kind(), error.what()};
  }
  FAIL("nothing was thrown");
  return {};
}

/// Asks to stop from the n-th question on.
class Stopping : public run::Progress {
 public:
  explicit Stopping(int after) : left_(after) {}
  void say(std::string_view line) override { lines.emplace_back(line); }
  [[nodiscard]] bool stop_requested() const override { return left_-- <= 0; }
  std::vector<std::string> lines;

 private:
  mutable int left_;
};

}  // namespace

TEST_CASE("a job compares its adapters, what was merged, and the models that were trained whole") {
  const Scratch scratch;
  const run::Job job = job_in(scratch);
  const run::CompareRequest request = run::compare_request(job, job.models[0]);
  const std::filesystem::path out = scratch / "out" / "small";
  CHECK(request.model == scratch / "model");
  REQUIRE(request.adapters.size() == 2);
  CHECK(request.adapters[1].name == "b");
  CHECK(request.adapters[1].dir == out / "b/train/adapter");
  CHECK(request.merged == out / "merged");
  CHECK(request.merged_from == "a");
  REQUIRE(request.models.size() == 1);
  CHECK(request.models[0].dir == out / "c/train/model");

  std::string plan;
  for (const auto& [name, reference] : run::detail::planned_variants(request)) plan += name + "<" + reference + " ";
  CHECK(plan == "w16< nf4<w16 a<nf4 b<nf4 merged<a c<w16 ");
  CHECK(run::detail::judged_variant(request) == "a");
  CHECK(run::detail::judged_variant({}) == "nf4");
}

TEST_CASE("the arms of a study: group, setting without the seed, pages that are the arm's own") {
  const Scratch scratch;
  const run::StudyArms arms = run::study_arms(job_in(scratch));
  REQUIRE(arms.size() == 3);
  CHECK(arms.at("small a").group == "small qlora");
  CHECK(arms.at("small b").group == "small others");
  CHECK(arms.at("small b").seed == 7);
  CHECK(arms.at("small a").setting == arms.at("small b").setting);  // they differ in the seed
  CHECK(arms.at("small b").control == "nothing");
  CHECK(arms.at("small a").pages == run::Pages{});
  CHECK(arms.at("small c").pages.files == std::vector<std::filesystem::path>{scratch / "own.txt"});
  CHECK(arms.at("small a").setting != arms.at("small c").setting);
}

TEST_CASE("an input in a folder that the job removes and writes is refused by name") {
  const Scratch scratch;
  const auto refusal = [&](const std::function<void(run::Job&)>& change) {
    run::Job job = job_in(scratch);
    change(job);
    return caught([&] { run::check_job(job); });
  };
  const std::filesystem::path out = scratch / "out" / "small";
  const Caught model = refusal([&](run::Job& job) { job.models[0].source.path = out / "merged"; });
  CHECK(model.kind == ErrorKind::usage);
  CHECK(model.what.find("lies in " + (out / "merged").string()) != std::string::npos);
  (void)refusal([&](run::Job& job) { job.arms[0].pages.files = {out / "a/data/../data/x.jsonl"}; });
  (void)refusal([&](run::Job& job) { job.arms[1].train.replay.replay = out / "a/train/replay.jsonl"; });
  (void)refusal([&](run::Job& job) { job.comparison.questions = scratch / "out" / "pages.jsonl"; });
  run::Job beside = job_in(scratch);
  beside.models[0].source.path = out / "merged-by-hand";
  CHECK_NOTHROW(run::check_job(beside));
}

TEST_CASE("what probes could not answer is refused, and nothing is written") {
  const Scratch scratch;
  run::Job job = job_in(scratch);
  job.comparison.require = {"knowledge.value>0"};
  Caught refused = caught([&] { run::check_job(job); });
  CHECK(refused.kind == ErrorKind::usage);
  CHECK(refused.what.find("a requirement is checked on probes") != std::string::npos);
  job.comparison.probes = {scratch.write("old.jsonl", probe)};
  CHECK(caught([&] { run::check_job(job); }).what.find("there are a, b, c, merged, nf4, retention, w16") !=
        std::string::npos);
  job.comparison.require = {"c.retention.kept.value>0"};
  CHECK_NOTHROW(run::check_job(job));
  job.arms[1].train.loop.guard = {"retention.value>0"};
  CHECK(caught([&] { run::check_job(job); }).what.find("a guard is checked on probes") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(scratch / "out"));
}

TEST_CASE("a comparison without questions and probes is refused before a model is opened") {
  const Caught refused = caught([] {
    run::Progress silent;
    (void)run::compare({.model = "/nowhere"}, silent);
  });
  CHECK(refused.kind == ErrorKind::usage);
  CHECK(refused.what.find("nothing to ask") != std::string::npos);
}

TEST_CASE("fetching is the caller's; fetched pages are not fetched again, and a job stops between steps") {
  const Scratch scratch;
  run::Job job = job_in(scratch);
  job.models[0].source.path = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  job.comparison.questions = scratch.write("questions.txt", "Who makes it?");
  run::Progress silent;
  Caught refused = caught([&] { (void)run::run_job(job, {}, silent); });
  CHECK(refused.kind == ErrorKind::usage);
  CHECK(refused.what.find("this program has no code for models with adapters on the CPU") != std::string::npos);
  run::registered_code().push_back(std::make_unique<ListedCode>(any_model));
  run::registered_code().push_back(std::make_unique<ListedCode>(any_model_all_weights));
  refused = caught([&] { (void)run::run_job(job, {}, silent); });
  CHECK(refused.kind == ErrorKind::usage);
  CHECK(refused.what.find("no function that does it was given") != std::string::npos);
  job.arms[1].train.options.products = Products::fp8;
  refused = caught([&] { (void)run::run_job(job, {}, silent); });
  CHECK(refused.kind == ErrorKind::resource);
  CHECK(refused.what.find("NVIDIA A100 has 8.0") != std::string::npos);
  job.arms[1].train.options.products = Products::bf16;

  int fetched = 0;
  run::JobOptions options{.version = "1"};
  options.fetch = [&](const run::FetchRequest& request, run::Progress&) {
    ++fetched;
    write_file_atomically(request.out, "{}\n");
    run::FetchResult result;
    result.bytes = 3;
    return result;
  };
  Stopping first(2);
  Caught stopped = caught([&] { (void)run::run_job(job, options, first); });
  CHECK(stopped.kind == ErrorKind::interrupted);
  CHECK(stopped.what.find("interrupted before pack small a") != std::string::npos);
  CHECK(fetched == 2);  // the job's pages, and those of an arm
  CHECK(first.lines == std::vector<std::string>{"fetch", "fetch c"});

  Stopping second(2);
  (void)caught([&] { (void)run::run_job(job, options, second); });
  CHECK(fetched == 2);
  CHECK(second.lines == std::vector<std::string>{"fetch: unchanged, skipped", "fetch c: unchanged, skipped"});

  options.again = {run::JobStep::fetch};
  Stopping third(1);
  (void)caught([&] { (void)run::run_job(job, options, third); });
  CHECK(fetched == 3);
  CHECK(third.lines == std::vector<std::string>{"fetch: done again"});
}
