// s3_cli_test.cpp — paths in S3 as a user gives them to the program: a model, documents, a data set, a training and a
// merged model that lie in a store alone, what lies there half, and what is refused.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/net/s3_objects.hpp"
#include "qlora/net/s3_transfer.hpp"
#include "support/environment.hpp"
#include "support/program.hpp"
#include "support/s3_store.hpp"

namespace fs = std::filesystem;
namespace net = qlora::net;
using program_test::check_refused;
using program_test::contains;
using program_test::Outcome;
using test::Environment;
using test::store;

namespace {

using Variables = std::vector<std::pair<std::string, std::string>>;

/// The store, and a bucket with the small model in it.
struct Fixture : test::InBucket {
  Fixture() : InBucket("models-1") {
    std::vector<net::S3File> files;
    for (const auto& entry : fs::directory_iterator(QLORA_SOURCE_DIR "/examples/models/tiny-chat"))
      files.push_back({entry.path(), {.address = bucket / ("tiny/" + entry.path().filename().string()), .etag = {}}});
    files.push_back({QLORA_SOURCE_DIR "/examples/quickstart/text_completion.jsonl",
                     {.address = bucket / "documents/text.jsonl", .etag = {}}});
    net::upload(s3, files);
  }
  /// No copy of the small model's weights, which are 7 million bytes, lies in the cache.
  void check_no_weights_here() const {
    for (const auto& entry : fs::recursive_directory_iterator(scratch / "cache"))
      if (entry.is_regular_file()) CHECK(entry.file_size() < 1'000'000);
  }
  [[nodiscard]] Outcome qlora(const std::string& arguments) const { return program_test::qlora(scratch, arguments); }
};

void check_ok(const Outcome& outcome) {
  CHECK(outcome.code == 0);
  if (outcome.code != 0) MESSAGE(outcome.err);
}

}  // namespace

TEST_CASE_FIXTURE(Fixture, "a job's steps from S3 to S3 give the bytes that they give on a disk") {
  const std::string model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  const std::string here = (scratch / "").string();
  const std::string train = " --rank 4 --alpha 8 --epochs 1 --dropout 0 --lr 1e-3";
  check_ok(qlora("pack -q s3://models-1/documents/text.jsonl -m s3://models-1/tiny -o s3://models-1/data --seq 64"));
  check_ok(qlora("pack -q " QLORA_SOURCE_DIR "/examples/quickstart/text_completion.jsonl -m " + model + " -o " + here +
                 "data --seq 64"));
  CHECK(contains(names("data/"), "data/manifest.json"));
  const Outcome trained = qlora("train -q -m s3://models-1/tiny -d s3://models-1/data -o s3://models-1/run" + train);
  check_ok(trained);
  CHECK(contains(trained.out, "adapter in s3://models-1/run"));
  check_ok(qlora("train -q -m " + model + " -d " + here + "data -o " + here + "run" + train));
  check_ok(qlora("merge -q -m s3://models-1/tiny -a s3://models-1/run/adapter -o s3://models-1/merged --json " + here +
                 "merge.json"));
  CHECK(contains(test::contents(scratch / "merge.json"), "s3://models-1/merged"));
  CHECK(!contains(test::contents(scratch / "merge.json"), "cache"));
  check_ok(qlora("merge -q -m " + model + " -a " + here + "run/adapter -o " + here + "merged"));
  const auto same = [&](const std::string& name) {
    const auto object = net::head_object(s3, connection, bucket / name);
    REQUIRE(object.has_value());
    net::download(s3, {{scratch / "object", *object}});
    CHECK(test::contents(scratch / "object") == test::contents(scratch / name));
  };
  same("data/tokens-00000.safetensors");
  same("merged/model.safetensors");
  same("merged/config.json");
  check_ok(qlora("info s3://models-1/merged"));
  const bool clean = !fs::exists(scratch / "cache/qlora/s3-out") || fs::is_empty(scratch / "cache/qlora/s3-out");
  CHECK(clean);  // nothing stays of what was written

  // The manifest is the last object that is written.
  check_ok(qlora("pack -q s3://models-1/documents/text.jsonl -m s3://models-1/tiny -o s3://models-1/data --seq 32"));
  const std::string log = store().log();
  CHECK(log.rfind("PUT /models-1/data/manifest.json") > log.rfind("PUT /models-1/data/tokens-"));
  CHECK(log.rfind("DELETE /models-1/data/manifest.json") < log.rfind("PUT /models-1/data/tokens-"));

  // What did not change is not downloaded again, and weights never: of them `info` reads the header.
  store().faults("[]");
  check_ok(qlora("info s3://models-1/tiny"));
  const std::string requests = store().log();
  CHECK(contains(requests, "list-type=2"));
  CHECK(!contains(requests, "GET /models-1/tiny/tokenizer.model"));
  CHECK(requests.find("GET /models-1/tiny/model.safetensors") ==
        requests.rfind("GET /models-1/tiny/model.safetensors"));
  check_no_weights_here();

  // A model in S3 is not replaced, and nothing of it is lost.
  const Outcome again = qlora("merge -q -m s3://models-1/tiny -a s3://models-1/run/adapter -o s3://models-1/merged");
  check_refused(again, 2);
  CHECK(contains(again.err, "s3://models-1/merged: exists and holds"));
  same("merged/model.safetensors");
}

TEST_CASE_FIXTURE(Fixture, "a model that lies in S3 alone answers as the one on the disk does") {
  const std::string ask = " --prompt \"What is the capital of France?\" --max-new-tokens 16 --temperature 0";
  const Outcome disk = qlora("generate -q " QLORA_SOURCE_DIR "/examples/models/tiny-chat" + ask);
  check_ok(disk);
  store().faults(R"([{"method":"GET","match":"model.safetensors","do":"cut","times":2}])");
  const Outcome remote = qlora("generate -q s3://models-1/tiny" + ask);
  check_ok(remote);
  CHECK(!disk.out.empty());
  CHECK(remote.out == disk.out);
  check_no_weights_here();
}

TEST_CASE_FIXTURE(Fixture, "a machine that vanishes in a training loses nothing that was saved: another one ends it") {
  const std::string model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  const std::string here = (scratch / "").string();
  check_ok(qlora("pack -q " QLORA_SOURCE_DIR "/examples/quickstart/text_completion.jsonl -m " + model + " -o " + here +
                 "data --seq 64"));
  const std::string train = "train -q -m s3://models-1/tiny -d " + here +
                            "data --rank 4 --alpha 8 --epochs 6 --lr 1e-3 --checkpoint-every 2 -o ";
  check_ok(qlora(train + here + "whole"));
  REQUIRE(program_test::shell(
              scratch, "$qlora " + train + "s3://models-1/lost-run >/dev/null 2>&1 & echo $! >'" + here + "pid'") == 0);
  while (!contains(names("lost-run/"), "MANIFEST.json")) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  ::kill(std::stoi(test::contents(scratch / "pid")), SIGKILL);
  const Environment elsewhere(Variables{{"XDG_CACHE_HOME", here + "another-machine"}});
  const Outcome resumed = program_test::qlora(scratch, train.substr(0, 6) + train.substr(9) + "s3://models-1/lost-run");
  check_ok(resumed);
  CHECK(contains(resumed.err, "resuming after step "));
  const auto object = net::head_object(s3, connection, bucket / "lost-run/adapter/adapter_model.safetensors");
  REQUIRE(object.has_value());
  net::download(s3, {{scratch / "object", *object}});
  CHECK(test::contents(scratch / "object") == test::contents(scratch / "whole/adapter/adapter_model.safetensors"));
}

TEST_CASE_FIXTURE(Fixture, "a job in S3 finds what its relative paths name below its own prefix") {
  const std::string text =
      "[data]\nfiles = [\"../documents/text.jsonl\"]\n[model]\npath = \"../tiny\"\n"
      "[output]\ndir = \"out\"\n";
  net::put_object(s3, connection, bucket / "jobs/job.toml", std::as_bytes(std::span(text)));
  const Outcome shown = qlora("run s3://models-1/jobs/job.toml --show");
  check_ok(shown);
  CHECK(contains(shown.out, "\"s3://models-1/tiny\""));
  CHECK(contains(shown.out, "\"s3://models-1/jobs/out\""));
  CHECK(contains(shown.out, "\"s3://models-1/documents/text.jsonl\""));
  const std::string outside = "[model]\npath = \"../../other-bucket/tiny\"\n";
  net::put_object(s3, connection, bucket / "jobs/outside.toml", std::as_bytes(std::span(outside)));
  const Outcome refused = qlora("run -q s3://models-1/jobs/outside.toml --show");
  check_refused(refused, 3);
  CHECK(contains(refused.err, "s3://models-1/jobs/outside.toml:2: `path` leads out of the bucket"));
}

TEST_CASE_FIXTURE(Fixture, "a result, documents and a job may lie in S3") {
  check_ok(qlora("info s3://models-1/tiny --json s3://models-1/results/info.json"));
  CHECK(contains(names("results/"), "results/info.json"));
}

TEST_CASE_FIXTURE(Fixture, "what is half written, not there or not allowed is refused") {
  net::put_object(s3, connection, bucket / "half/model.safetensors", {});
  const Outcome half = qlora("info s3://models-1/half");
  check_refused(half, 3);
  CHECK(contains(half.err, "s3://models-1/half: is half written"));

  const Outcome nothing = qlora("info s3://models-1/nothing");
  check_refused(nothing, 3);
  CHECK(contains(nothing.err, "s3://models-1/nothing: nothing is there"));

  const Outcome bucketless = qlora("pack -q s3://models-1/documents -m s3://models-1/tiny -o s3://no-such-bucket/data");
  check_refused(bucketless, 3);
  CHECK(contains(bucketless.err, "there is no bucket 'no-such-bucket'"));

  const Environment wrong({{"AWS_SECRET_ACCESS_KEY", "wrong/secret"}, {"AWS_REGION", "us-east-1"}});
  const Outcome refused = qlora("info s3://models-1/tiny");
  check_refused(refused, 3);
  CHECK(contains(refused.err, "does not take the credentials of the environment (AWS_ACCESS_KEY_ID)"));
  CHECK(!contains(refused.err, "wrong/secret"));
}

TEST_CASE_FIXTURE(Fixture,
                  "an upload that fails says where the work lies, and leaves no half that is taken for whole") {
  store().faults(R"([{"method":"PUT","match":"/models-1/lost/manifest.json","do":"503","times":1000}])");
  const Outcome failed =
      qlora("pack -q s3://models-1/documents/text.jsonl -m s3://models-1/tiny -o s3://models-1/lost --seq 64");
  CHECK(failed.code == 5);
  CHECK(contains(failed.err, "(6 tries)"));
  CHECK(contains(failed.err, "lies whole in " + (scratch / "cache").string()));
  store().faults("[]");
  const Outcome half = qlora("data show s3://models-1/lost");
  CHECK(half.code == 3);
  CHECK(contains(half.err, "is half written"));
}
