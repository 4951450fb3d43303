// remote_test.cpp — copies of what lies in S3, and what is written there, over a real store: nothing comes twice,
// nothing is visible before it is whole, nothing is lost.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/run/remote.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/io/hf.hpp"
#include "qlora/net/s3_transfer.hpp"
#include "qlora/run/remote_copies.hpp"
#include "support/refusal.hpp"
#include "support/s3_store.hpp"

namespace fs = std::filesystem;
namespace net = qlora::net;
namespace run = qlora::run;
using test::contents;
using test::refusal;
using test::store;

namespace {

using Variables = std::vector<std::pair<std::string, std::string>>;

const fs::path tiny = QLORA_SOURCE_DIR "/examples/models/tiny-chat";

struct Fixture : test::InBucket {
  run::Progress progress;

  Fixture() : InBucket("copies-1") {
    for (const auto& object : net::list_objects(s3, connection, bucket))
      net::delete_object(s3, connection, object.address);
  }
  void put(const std::string& name, const std::string& text) {
    net::put_object(s3, connection, bucket / name, std::as_bytes(std::span(text)));
  }
  void upload_tiny(const std::string& prefix) {
    std::vector<net::S3File> files;
    for (const auto& entry : fs::directory_iterator(tiny))
      files.push_back({entry.path(), {.address = bucket / prefix / entry.path().filename().string(), .etag = {}}});
    net::upload(s3, files);
  }
  [[nodiscard]] run::RemoteOutput output(const std::string& name, bool file = false, bool keep = false) {
    return run::remote_output("s3://copies-1/" + name, file, keep, progress);
  }
  static void write(const fs::path& path, const std::string& text) {
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
  }
  /// Nothing of what was written stays on this machine.
  [[nodiscard]] bool is_clean() const {
    const fs::path out = scratch / "cache/qlora/s3-out";
    return !fs::exists(out) || fs::is_empty(out);
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "a prefix is copied once, and again only where it differs") {
  put("model/adapter_config.json", "{}");
  put("model/adapter_model.safetensors", "weights");
  put("model/more/notes.txt", "notes");
  put("model-other/config.json", "another prefix");
  const fs::path copy = run::local_copy("s3://copies-1/model", progress);
  CHECK(copy.filename() == "model");
  CHECK(contents(copy / "adapter_config.json") == "{}");
  CHECK(contents(copy / "adapter_model.safetensors") == "weights");
  CHECK(contents(copy / "more/notes.txt") == "notes");
  CHECK(std::distance(fs::recursive_directory_iterator(copy), {}) == 4);

  store().faults("[]");
  CHECK(run::local_copy("s3://copies-1/model", progress) == copy);
  CHECK(!has(store().log(), "/model/"));  // one list, no object

  put("model/adapter_model.safetensors", "others!");
  net::delete_object(s3, connection, bucket / "model/more/notes.txt");
  store().faults("[]");
  CHECK(run::local_copy("s3://copies-1/model", progress) == copy);
  CHECK(contents(copy / "adapter_model.safetensors") == "others!");
  CHECK(!fs::exists(copy / "more/notes.txt"));
  CHECK(!has(store().log(), "config.json"));
}

TEST_CASE_FIXTURE(Fixture,
                  "weights are read where they lie: the same tensors through faults, and no file of them here") {
  const qlora::hf::ModelDir disk = qlora::hf::ModelDir::open(tiny);
  upload_tiny("tiny");
  const auto read = [&] {
    const qlora::hf::ModelDir model = qlora::hf::ModelDir::open(run::local_copy("s3://copies-1/tiny", progress));
    const qlora::TensorSource here = model.source(), there = disk.source();
    for (const qlora::hf::NamedShape& tensor : qlora::hf::tensor_names(model.shape))
      CHECK(std::ranges::equal(here(tensor.name)->bytes, there(tensor.name)->bytes));
    CHECK(model.fingerprint() == disk.fingerprint());
    CHECK(model.checksum() == disk.checksum());
  };
  for (const char* fault : {"cut", "500", "slowdown", "429", "reset"}) {
    CAPTURE(fault);
    store().faults(qlora::concat(R"([{"method":"GET","match":"model.safetensors","do":")", fault, R"(","times":4}])"));
    read();
  }
  std::uintmax_t largest = 0;
  for (const auto& entry : fs::recursive_directory_iterator(scratch / ""))
    if (entry.is_regular_file()) largest = std::max(largest, entry.file_size());
  CHECK(largest < 65'536);  // the tokenizer has 22,585 bytes, the weights have 7 million
}

TEST_CASE_FIXTURE(Fixture, "weights that are replaced while they are read are an error that names them") {
  upload_tiny("tiny");
  const qlora::hf::ModelDir model = qlora::hf::ModelDir::open(run::local_copy("s3://copies-1/tiny", progress));
  put("tiny/model.safetensors", "others");
  const std::string name(qlora::tensor_name::embedding);
  CHECK(has(refusal([&] { (void)model.source()(name); }), "s3://copies-1/tiny/model.safetensors: was replaced while"));
  net::delete_object(s3, connection, bucket / "tiny/model.safetensors");
  CHECK(has(refusal([&] { (void)model.source()(name); }), "s3://copies-1/tiny/model.safetensors: there is no such"));
}

TEST_CASE_FIXTURE(Fixture, "a single file of weights is read where it lies") {
  upload_tiny("tiny");
  const qlora::SafetensorsFile file(run::local_copy("s3://copies-1/tiny/model.safetensors", progress));
  const qlora::SafetensorsFile disk(tiny / "model.safetensors");
  CHECK(file.names() == disk.names());
  CHECK(std::ranges::equal(file.at("model.norm.weight").bytes, disk.at("model.norm.weight").bytes));
}

TEST_CASE_FIXTURE(Fixture, "a single object is a file, and a path of this machine stays what it is") {
  put("jobs/job.toml", "[output]");
  const fs::path copy = run::local_copy("s3://copies-1/jobs/job.toml", progress);
  CHECK(copy.filename() == "job.toml");
  CHECK(contents(copy) == "[output]");
  CHECK(run::local_copy("jobs/job.toml", progress) == "jobs/job.toml");
  CHECK(has(refusal([&] { (void)run::local_copy("s3://copies-1/nothing", progress); }),
            "s3://copies-1/nothing: nothing is there"));
  CHECK(has(refusal([&] { (void)run::local_copy("s3://no-bucket-1/model", progress); }), "there is no bucket"));
}

TEST_CASE_FIXTURE(Fixture, "names that lead out of the folder are left where they are") {
  put("odd/config.json", "{}");
  put("odd/../escaped", "x");
  put("odd//absolute", "x");
  const fs::path copy = run::local_copy("s3://copies-1/odd", progress);
  CHECK(std::distance(fs::recursive_directory_iterator(copy.parent_path()), {}) == 2);
}

TEST_CASE_FIXTURE(Fixture, "what is half written is refused") {
  put("half/model.safetensors", "weights");
  put("half/sub/config.json", "{}");
  CHECK(has(refusal([&] { (void)run::local_copy("s3://copies-1/half", progress); }),
            "s3://copies-1/half: is half written"));
}

TEST_CASE_FIXTURE(Fixture, "a manifest is written last, and removed first when it is replaced") {
  for (const int shards : {2, 1}) {
    const run::RemoteOutput data = output("data");
    for (int i = 0; i < shards; ++i) write(data.staged / qlora::concat("tokens-0000", i, ".safetensors"), "tokens");
    write(data.staged / "manifest.json", "{}");
    store().faults("[]");
    run::publish(data, progress);
    const std::string log = store().log();
    CHECK(log.rfind("PUT /copies-1/data/manifest.json") > log.rfind("PUT /copies-1/data/tokens-"));
    if (shards == 1) {
      CHECK(has(log, "DELETE /copies-1/data/manifest.json"));
      CHECK(log.find("DELETE /copies-1/data/manifest.json") < log.find("PUT /copies-1/data/tokens-"));
    }
    CHECK(is_clean());
  }
  CHECK(names("data/") == "data/manifest.json data/tokens-00000.safetensors ");
}

TEST_CASE_FIXTURE(Fixture, "of two writers of a model the second is refused, and changes nothing") {
  const run::RemoteOutput model = output("model");
  write(model.staged / "model.safetensors", "second");
  write(model.staged / "config.json", "{}");
  put("model/model.safetensors", "the first");
  put("model/config.json", "{}");
  CHECK(has(refusal([&] { run::publish(model, progress); }),
            "s3://copies-1/model/config.json: somebody else has written it meanwhile"));
  CHECK(contents(model.staged / "model.safetensors") == "second");
  CHECK(net::head_object(s3, connection, bucket / "model/model.safetensors")->size == 9);
}

TEST_CASE_FIXTURE(Fixture, "nothing but a data set is replaced") {
  put("model/config.json", "{}");
  put("data/manifest.json", "{}");
  put("data/notes.txt", "mine");
  CHECK(has(refusal([&] { (void)output("model"); }), "s3://copies-1/model: exists and holds config.json"));
  CHECK(has(refusal([&] { (void)output("data"); }), "s3://copies-1/data: exists and holds notes.txt"));
  CHECK(has(refusal([&] { (void)output(""); }), "give the object or prefix that is written a name"));
  CHECK(names("") == "data/manifest.json data/notes.txt model/config.json ");
}

TEST_CASE_FIXTURE(Fixture, "a file is one object, which is replaced") {
  for (const char* text : {"first", "second"}) {
    const run::RemoteOutput result = output("results/info.json", true);
    write(result.staged, text);
    run::publish(result, progress);
    CHECK(contents(run::local_copy("s3://copies-1/results/info.json", progress)) == text);
  }
  CHECK(is_clean());
}

TEST_CASE_FIXTURE(Fixture, "a training that goes on elsewhere finds what was written") {
  const run::RemoteOutput first = output("run", false, true);
  write(first.staged / "checkpoints/step-1/MANIFEST.json", "{}");
  write(first.staged / "checkpoints/step-1/state.safetensors", "older");
  write(first.staged / "checkpoints/step-2/state.safetensors", "moments");
  write(first.staged / "run.lock", "this machine");
  run::publish(first, progress);
  CHECK(!has(names("run/"), "run.lock"));
  CHECK(!fs::exists(first.staged));
  const run::RemoteOutput second = output("run", false, true);
  CHECK(contents(second.staged / "checkpoints/step-2/state.safetensors") == "moments");
  fs::remove_all(second.staged / "checkpoints/step-1");
  write(second.staged / "adapter/adapter_model.safetensors", "adapter");
  write(second.staged / "adapter/adapter_config.json", "{}");
  store().faults("[]");
  run::publish(second, progress);
  CHECK(store().log().rfind("PUT ") == store().log().rfind("PUT /copies-1/run/adapter/adapter_config.json"));
  CHECK(has(names("run/"), "run/checkpoints/step-2/state.safetensors"));
  CHECK(!has(names("run/"), "step-1"));
  CHECK(contents(run::local_copy("s3://copies-1/run/adapter", progress) / "adapter_model.safetensors") == "adapter");
}

TEST_CASE_FIXTURE(Fixture, "a run is copied while it goes on: checkpoints whole, once, and none when it is gone") {
  const run::RemoteOutput output = this->output("run", false, true);
  const auto checkpoint = [&](int step) {
    const fs::path folder = output.staged / qlora::concat("checkpoints/checkpoint-", step);
    write(folder / "state.safetensors", qlora::concat("moments of step ", step));
    write(folder / "MANIFEST.json", qlora::concat("{\"step\":", step, "}"));
    write(output.staged / "metrics.jsonl", qlora::concat("steps to ", step));
    write(output.staged / "run.lock", "this machine");
  };
  const auto wait_for = [&](const std::string& name) {  // however long it takes
    while (!has(names("run/"), name)) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  {
    run::RemoteCopies copies(output);
    checkpoint(1);
    store().faults(R"([{"method":"PUT","match":"state.safetensors","do":"500","times":2}])");
    CHECK(copies.saved() == "");
    wait_for("checkpoint-1/MANIFEST.json");
    const std::string log = store().log();
    CHECK(log.rfind("PUT /copies-1/run/checkpoints/checkpoint-1/MANIFEST.json") > log.rfind("state.safetensors"));

    checkpoint(2);
    fs::remove_all(output.staged / "checkpoints/checkpoint-1");
    store().faults("[]");
    CHECK(copies.saved() == "");
    wait_for("checkpoint-2/MANIFEST.json");
    while (has(names("run/"), "checkpoint-1/")) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const std::string later = store().log();
    CHECK(later.find("DELETE /copies-1/run/checkpoints/checkpoint-1") >
          later.find("PUT /copies-1/run/checkpoints/checkpoint-2/MANIFEST.json"));
    CHECK(!has(names("run/"), "run.lock"));
  }
  CHECK(!fs::exists(output.staged.parent_path() / "snapshots"));

  // Another machine goes on from there, and the first one, which comes back, takes that over.
  {
    const test::Environment other(Variables{{"XDG_CACHE_HOME", (scratch / "other").string()}});
    const run::RemoteOutput elsewhere = this->output("run", false, true);
    CHECK(elsewhere.staged != output.staged);
    CHECK(contents(elsewhere.staged / "checkpoints/checkpoint-2/state.safetensors") == "moments of step 2");
    CHECK(contents(elsewhere.staged / "metrics.jsonl") == "steps to 2");
    write(elsewhere.staged / "checkpoints/checkpoint-3/state.safetensors", "moments of step 3");
    write(elsewhere.staged / "checkpoints/checkpoint-3/MANIFEST.json", "{}");
    store().faults("[]");
    run::publish(elsewhere, progress);
    CHECK(!has(store().log(), "PUT /copies-1/run/checkpoints/checkpoint-2"));  // it is there
  }
  CHECK(fs::exists(output.staged / "checkpoints/checkpoint-2"));
  const run::RemoteOutput again = this->output("run", false, true);
  CHECK(contents(again.staged / "checkpoints/checkpoint-3/state.safetensors") == "moments of step 3");
  const run::RemoteOutput same = this->output("run", false, true);
  write(same.staged / "checkpoints/checkpoint-4/state.safetensors", "not copied yet");
  CHECK(fs::exists(this->output("run", false, true).staged / "checkpoints/checkpoint-4"));
}

TEST_CASE_FIXTURE(Fixture, "a copy that fails ends no run, and is said at the next save") {
  const run::RemoteOutput output = this->output("failing", false, true);
  write(output.staged / "checkpoints/checkpoint-1/MANIFEST.json", "{}");
  run::RemoteCopies copies(output);
  const test::Environment wrong(Variables{{"AWS_SECRET_ACCESS_KEY", "wrong/secret"}});
  CHECK(copies.saved() == "");
  std::string said;
  while (said.empty()) {
    said = copies.saved();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  CHECK(has(said, "what the run saved was not copied to s3://copies-1/failing, and is tried again at its next save: "));
  CHECK(has(said, "does not take the credentials"));
}

TEST_CASE_FIXTURE(Fixture, "an upload that fails says where the work lies, and what is there is half") {
  const run::RemoteOutput data = output("data");
  write(data.staged / "tokens-00000.safetensors", "tokens");
  write(data.staged / "manifest.json", "{}");
  store().faults(R"([{"method":"PUT","match":"manifest.json","do":"503","times":1000}])");
  const std::string said = refusal([&] { run::publish(data, progress); });
  CHECK(has(said, "(6 tries)"));
  CHECK(has(said, "lies whole in " + data.staged.string()));
  CHECK(contents(data.staged / "manifest.json") == "{}");
  store().faults("[]");
  CHECK(has(refusal([&] { (void)run::local_copy("s3://copies-1/data", progress); }), "is half written"));
}
