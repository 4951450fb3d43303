// step_cache_test.cpp — which steps are skipped, which are done again, and what is left of outputs when they are.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "qlora/io/file.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/step_cache.hpp"
#include "support/scratch.hpp"

using namespace qlora;
namespace fs = std::filesystem;
using test::Scratch;

namespace {

class Lines : public run::Progress {
 public:
  void say(std::string_view line) override { lines.emplace_back(line); }
  std::vector<std::string> lines;
};

/// A step that writes its output, and counts how often it is done. Its result is what pack would return.
struct Job {
  Scratch scratch;
  run::Settings settings{{"seq", std::int64_t{8}}};
  std::string version = "1";
  Lines progress;
  int done = 0;
  std::string failure;
  bool resumes = false;

  Job() { scratch.write("in.txt", "input"); }
  run::PackResult run(bool again = false) {
    run::StepCache cache(scratch / "run.json", version);
    const std::function<run::PackResult()> act = [&] {
      ++done;
      if (!failure.empty()) throw Error(failure);
      scratch.write("out.txt", "output");
      run::PackResult result;
      result.documents = done;
      return result;
    };
    return cache.run({"pack a", settings, {scratch / "in.txt"}, {scratch / "out.txt"}, resumes}, act,
                     run::pack_result_from_json, progress, again);
  }
};

}  // namespace

TEST_CASE("a step is skipped while its settings, inputs and outputs are the same") {
  Job job;
  CHECK(job.run().documents == 1);
  CHECK(job.run().documents == 1);  // the result of then
  CHECK(job.done == 1);
  CHECK(job.progress.lines == std::vector<std::string>{"pack a", "pack a: unchanged, skipped"});
  const std::string record = read_text(job.scratch / "run.json", 1 << 20);
  (void)job.run();
  CHECK(read_text(job.scratch / "run.json", 1 << 20) == record);

  SUBCASE("another setting") { job.settings[0].second = std::int64_t{9}; }
  SUBCASE("another input") { job.scratch.write("in.txt", "other"); }
  SUBCASE("a damaged output") { job.scratch.write("out.txt", "damaged"); }
  SUBCASE("an output that is gone") { fs::remove(job.scratch / "out.txt"); }
  SUBCASE("another version") { job.version = "2"; }
  SUBCASE("a record that cannot be read") { job.scratch.write("run.json", "{"); }
  SUBCASE("a record of another format") { job.scratch.write("run.json", R"({"format": 2, "steps": {}})"); }
  CHECK(job.run().documents == 2);
  CHECK(job.done == 2);
  CHECK(job.run().documents == 2);
  CHECK(job.done == 2);
}

TEST_CASE("a step may be done again although nothing changed") {
  Job job;
  (void)job.run();
  CHECK(job.run(true).documents == 2);
  CHECK(job.progress.lines.back() == "pack a: done again");
}

TEST_CASE("steps that an interrupted run did again are not done a third time, and the one in hand is continued") {
  Job job;
  job.resumes = true;
  (void)job.run();
  job.failure = "interrupted";
  CHECK_THROWS_AS((void)job.run(true), Error);
  CHECK_FALSE(fs::exists(job.scratch / "out.txt"));  // it began anew
  job.scratch.write("out.txt", "half");
  CHECK_THROWS_AS((void)job.run(true), Error);
  CHECK(read_text(job.scratch / "out.txt", 100) == "half");  // it went on
  job.failure.clear();
  CHECK(job.run(true).documents == 4);
  CHECK(job.run(true).documents == 4);  // a later step was interrupted: this one is done
  run::StepCache(job.scratch / "run.json", "1").end_of_run();
  CHECK(job.run(true).documents == 5);
}

TEST_CASE("whatever becomes of run.json, what it does not say for certain is done again") {
  Job job;
  (void)job.run();
  const std::string good = read_text(job.scratch / "run.json", 1 << 20);
  const auto after = [&](const std::string& text) {
    job.scratch.write("run.json", text);
    const int before = job.done;
    run::PackResult result;
    CHECK_NOTHROW(result = job.run());
    (void)run::StepCache(job.scratch / "run.json", "1").records();
    return job.done == before ? "skipped" : "done";
  };
  CHECK(std::string(after(good)) == "skipped");
  for (const char* text : {"", "null", "[]", "{}", R"({"format":1})", R"({"format":1,"steps":[]})",
                           R"({"format":1,"steps":{"pack a":3}})", R"({"format":1,"steps":{"pack a":{"key":3}}})",
                           R"({"format":"1","steps":{}})", R"({"format":1e99,"steps":{}})"}) {
    CAPTURE(text);
    CHECK(std::string(after(text)) == "done");
  }
  CHECK(std::string(after(std::string(2'000'000, '['))) == "done");
  CHECK(std::string(after(good.substr(0, good.size() / 2))) == "done");
  for (std::size_t at = 0; at < good.size(); at += 3) {
    std::string text = good;
    text[at] = static_cast<char>(text[at] ^ (1 << (at % 7)));
    CAPTURE(at);
    CHECK(std::string(after(text)) == "done");
  }
  // A value of another type in each place.
  for (const char* key : {"key", "seconds", "outputs", "result"}) {
    for (const char* value : {"3", "\"x\"", "[]", "{}", "null", R"({"out.txt":3})", R"({"out.txt":{"out.txt":3}})"}) {
      auto book = run::OrderedJson::parse(good);
      book.erase("sha256");  // as an earlier version wrote it
      book["steps"]["pack a"][key] = run::OrderedJson::parse(value);
      CAPTURE(book.dump());
      (void)after(book.dump());
    }
  }
}

TEST_CASE("what a failed step left goes before the next try, unless the step resumes") {
  Job job;
  job.failure = "no";
  CHECK_THROWS_AS((void)job.run(), Error);
  job.scratch.write("out.txt", "half");
  CHECK_THROWS_AS((void)job.run(), Error);
  CHECK_FALSE(fs::exists(job.scratch / "out.txt"));
}

TEST_CASE("what a step that resumes left stays for the next try under the same key, and goes under another") {
  Job job;
  job.resumes = true;
  job.failure = "no";
  CHECK_THROWS_AS((void)job.run(), Error);
  job.scratch.write("out.txt", "half");
  CHECK_THROWS_AS((void)job.run(), Error);
  CHECK(read_text(job.scratch / "out.txt", 100) == "half");
  CHECK(run::StepCache(job.scratch / "run.json", "1").records().at(0).seconds == 0);
  job.settings[0].second = std::int64_t{9};
  CHECK_THROWS_AS((void)job.run(), Error);
  CHECK_FALSE(fs::exists(job.scratch / "out.txt"));
  job.failure.clear();
  CHECK(job.run().documents == 4);
}

TEST_CASE("a lock file in an output says nothing of the result") {
  const Scratch scratch;
  int done = 0;
  const auto run_step = [&] {
    run::StepCache cache(scratch / "run.json", "1");
    const std::function<run::PackResult()> act = [&] {
      ++done;
      fs::create_directories(scratch / "out");
      scratch.write("out/run.lock", "1");
      scratch.write("out/result", "result");
      return run::PackResult{};
    };
    Lines progress;
    (void)cache.run({"train a", {}, {}, {scratch / "out"}, true}, act, run::pack_result_from_json, progress);
  };
  run_step();
  scratch.write("out/run.lock", "another process");
  run_step();
  CHECK(done == 1);
  scratch.write("out/result", "damaged");
  run_step();
  CHECK(done == 2);
}

TEST_CASE("the record: key, time, hashes of outputs and result; the key is a hash of what decides the outcome") {
  Job job;
  (void)job.run();
  const auto record = run::OrderedJson::parse(read_text(job.scratch / "run.json", 1 << 20));
  const auto& step = record.at("steps").at("pack a");
  std::vector<std::string> keys;
  for (const auto& [key, value] : step.items()) keys.push_back(key);
  CHECK(keys == std::vector<std::string>{"key", "seconds", "outputs", "result"});
  CHECK(step.at("outputs").at("out.txt").at("out.txt") == sha256("output"));
  CHECK(step.at("result").at("documents") == 1);
  CHECK(step.at("key") == sha256(R"({"version":"1","step":"pack a","settings":{"seq":8},"inputs":[{"in.txt":")" +
                                 sha256("input") + R"("}]})"));
  const std::vector<run::CachedRecord> records = run::StepCache(job.scratch / "run.json", "1").records();
  REQUIRE(records.size() == 1);
  CHECK(records[0].name == "pack a");
  CHECK(records[0].seconds > 0);
  CHECK(records[0].outputs.at(0).second == run::FileHashes{{"out.txt", sha256("output")}});
}

TEST_CASE("a directory is hashed file by file, in the order of the names") {
  const Scratch scratch;
  fs::create_directories(scratch / "dir" / "sub");
  for (const char* name : {"dir/b", "dir/a", "dir/sub/c"}) scratch.write(name, name);
  const run::FileHashes hashes = run::file_hashes(scratch / "dir");
  CHECK(hashes == run::FileHashes{{"a", sha256("dir/a")}, {"b", sha256("dir/b")}, {"sub/c", sha256("dir/sub/c")}});
  CHECK_THROWS_AS((void)run::file_hashes(scratch / "nowhere"), Error);
}
