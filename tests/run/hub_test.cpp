// Models of a hub over TLS: tests/run/hub_server.py is the hub and its store, and goes wrong in all ways that the names
// of its organisations say. What is in the cache at the end has the hash of the server's file, or is not there.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/run/hub.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <thread>

#include "qlora/io/sha256.hpp"
#include "support/refusal.hpp"
#include "support/scratch.hpp"
#include "support/web_server.hpp"

namespace fs = std::filesystem;
namespace run = qlora::run;
using test::contents;
using test::refusal;
using test::Scratch;

namespace {

/// One server for all cases; its ports as it prints them.
struct Hub {
  Scratch folder;
  Server server{"tests/run/hub_server.py", (folder / "").string()};
  std::string port = server.port.substr(0, server.port.find(' '));
  [[nodiscard]] std::string log() const { return contents(folder / "log"); }
};
const Hub& hub() {
  static const Hub one;
  return one;
}

run::HubPlace place_in(const Scratch& scratch) {
  run::HubPlace place;
  place.cache = scratch / "hub";
  place.token_file = scratch / "home/token";
  place.accepted = scratch / "home/accepted.jsonl";
  place.endpoint = "https://127.0.0.1:" + hub().port;
  place.own_endpoint = true;
  place.ca_file = (hub().folder / "cert.pem").string();
  place.transfer = {.connections = 4,
                    .piece_bytes = 100'000,
                    .tries = 4,
                    .backoff = std::chrono::milliseconds(1),
                    .low_speed_seconds = 3600};
  return place;
}

run::HubModel named(const std::string& name) {
  const auto model = run::hub_model(name);
  REQUIRE(model.has_value());
  return *model;
}

run::PullResult pull(const std::string& name, const run::HubPlace& place) {
  run::Progress progress;
  return run::pull_model(named(name), place, progress);
}

constexpr std::int64_t weights_size = 1'000'003;

void check_whole(const run::PullResult& result) {
  CHECK(result.files == 7);
  CHECK(fs::file_size(result.path / "model.safetensors") == weights_size);
  for (const auto& entry : fs::directory_iterator(result.path)) {
    CHECK(entry.is_symlink());
    const std::string etag = fs::read_symlink(entry.path()).filename().string();
    const qlora::MappedFile file(entry.path());
    CHECK((etag.size() == 64 ? qlora::sha256(file.bytes()) : qlora::git_blob_name(file.bytes())) == etag);
  }
  for (const auto& entry : fs::directory_iterator(result.path / "../../blobs"))
    CHECK(entry.path().filename().string().find("qlora") == std::string::npos);
}

}  // namespace

TEST_CASE("git's name of a file") {
  CHECK(qlora::git_blob_name({}) == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");  // git hash-object /dev/null
  const std::string hello = "hello\n";
  CHECK(qlora::git_blob_name(std::as_bytes(std::span(hello))) == "ce013625030ba8dba906f756967f9e9ca394464a");
}

TEST_CASE("names of models") {
  for (const char* good : {"org/name", "meta-llama/Llama-2-7b.x_y", "a/b@main", "a/b@refs/pr/1"})
    CHECK(run::hub_model(good).has_value());
  for (const char* bad : {"", "name", "a/b/c", "../b", "a/..", "a/b@", "a/b@../x", "/a", "a/", "a//b", "a/b c", "./b",
                          "a/b@/x", "a--b/c", "a/b@x@y", "a\n/b"})
    CHECK(!run::hub_model(bad).has_value());
}

TEST_CASE("adapters name a model of the hub as it does") {
  CHECK(run::name_for_others("/a/hub/models--org--name/snapshots/0123") == "org/name");
  CHECK(run::name_for_others("/a/hub/models--org--name/snapshots/0123/") == "org/name");
  CHECK(run::name_for_others("models/org/name") == "models/org/name");
  CHECK(run::name_for_others("name") == "name");
  CHECK(run::name_for_others("/a/models--name/snapshots/0") == "/a/models--name/snapshots/0");
}

TEST_CASE("a model arrives in the layout of the cache, and is found there") {
  const Scratch scratch;
  run::HubPlace place = place_in(scratch);
  place.token = "hf_good";
  const run::PullResult result = pull("ok/model", place);
  check_whole(result);
  CHECK(result.downloaded == result.bytes);
  CHECK(result.legal == std::vector<std::string>{"LICENSE.txt", "USE_POLICY.md"});
  const fs::path folder = place.cache / "models--ok--model";
  CHECK(contents(folder / "refs/main") == result.commit);
  CHECK(result.path == folder / "snapshots" / result.commit);
  CHECK(run::cached_snapshot(place, named("ok/model")) == result.path);
  CHECK(run::cached_snapshot(place, named("ok/model@" + result.commit)) == result.path);
  CHECK(run::cached_snapshot(place, named("ok/other")).empty());
  CHECK(!fs::exists(result.path / "consolidated.safetensors"));
  // The token went to the hub with every request, and to the store with none.
  const std::string log = hub().log();
  CHECK(has(log, "hub HEAD /ok/model/resolve/" + result.commit + "/config.json - token"));
  CHECK(has(log, "store GET /ok/model.safetensors?Signature=abc bytes=0-99999 -\n"));
  CHECK(!has(log, "?Signature=abc bytes=0-99999 token"));

  CHECK(pull("ok/model", place).downloaded == 0);
  // A blob of the right size with another bit is found and replaced, which the size alone would not show.
  const fs::path blob = fs::canonical(result.path / "model.safetensors");
  std::string bytes = contents(blob);
  bytes[5] = static_cast<char>(bytes[5] ^ 1);
  std::ofstream(blob, std::ios::binary) << bytes;
  CHECK(pull("ok/model", place).downloaded == weights_size);
  check_whole(pull("ok/model", place));
  place.offline = true;
  CHECK(pull("ok/model", place).path == result.path);
  CHECK(has(refusal([&] { (void)pull("ok/other", place); }), "HF_HUB_OFFLINE"));
}

TEST_CASE("files of a pattern arrive, in folders too, and the revision is noted when the model is whole") {
  const Scratch scratch;
  const run::HubPlace place = place_in(scratch);
  run::Progress progress;
  const auto pulled = [&](const std::vector<std::string>& patterns) {
    return run::pull_files(named("ok/model"), place, patterns, progress);
  };
  const fs::path folder = place.cache / "models--ok--model";
  const run::PullResult some = pulled({"*/params.json", "token?zer.model"});
  CHECK(some.files == 2);
  CHECK(contents(some.path / "original/params.json") == "{}");
  CHECK(fs::file_size(some.path / "tokenizer.model") == 5000);
  CHECK(!fs::exists(some.path / "config.json"));
  CHECK(!fs::exists(folder / "refs/main"));
  CHECK(pulled({"pytorch_*"}).files == 1);  // asked for by name, it is brought as it is
  CHECK(has(refusal([&] { (void)pulled({"*.json", "*.gguf"}); }), "ok/model has no file of the pattern '*.gguf'"));
  CHECK(pulled({"*"}).files == 10);
  CHECK(contents(folder / "refs/main") == some.commit);
  CHECK(run::cached_snapshot(place, named("ok/model")) == some.path);
}

TEST_CASE("servers that cut, flip, ignore ranges or are busy are borne") {
  const Scratch scratch;
  const run::HubPlace place = place_in(scratch);
  for (const char* kind : {"cut", "fliponce", "norange", "busy", "passed"}) {
    INFO(kind);
    check_whole(pull(std::string(kind) + "/model", place));
  }
}

TEST_CASE("a hub that does not answer is asked as often as the place says") {
  const Scratch scratch;
  run::HubPlace place = place_in(scratch);
  place.endpoint = "https://127.0.0.1:1";
  place.transfer.first_tries = 3;
  CHECK(has(refusal([&] { (void)pull("ok/model", place); }), "(3 tries)"));
  place.transfer.first_tries = 1;
  CHECK(has(refusal([&] { (void)pull("ok/model", place); }), "(1 try)"));
  place.endpoint = "https://127.0.0.1:" + hub().port;
  CHECK(has(refusal([&] { (void)pull("down/model", place); }), "status 500 (4 tries)"));  // it does answer
}

TEST_CASE("what no repeat helps is refused, and leaves nothing under a file's name") {
  const Scratch scratch;
  run::HubPlace place = place_in(scratch);
  const auto refused = [&](const std::string& name) { return refusal([&] { (void)pull(name, place); }); };
  CHECK(has(refused("flip/model"), "came twice with other bytes than the hash"));
  CHECK(has(refused("short/model"), "/999994'"));
  CHECK(has(refused("long/model"), "Content-Range"));
  CHECK(has(refused("shifted/model"), "Content-Range is 'bytes "));
  CHECK(has(refused("plain/model"), "without TLS"));
  CHECK(has(refused("refused/model"), "status 403"));
  CHECK(has(refused("untagged/model"), "states no hash"));
  CHECK(has(refused("down/model"), "status 500 (4 tries)"));
  CHECK(has(refused("pickle/model"), "only in Python's pickle (pytorch_model.bin)"));
  CHECK(has(refused("none/model"), "the hub has no model none/model"));
  CHECK(has(refused("none/model"), "qlora login"));
  CHECK(has(refused("ok/model@absent"), "no revision 'absent'"));
  CHECK(has(refused("gated/model"), place.endpoint + "/gated/model"));
  CHECK(has(refused("gated/model"), "log in with `qlora login`"));
  place.token = "hf_bad";
  CHECK(has(refused("gated/model"), "qlora accept gated/model"));
  CHECK(has(refused("gated/model"), "the token is of an account"));
  for (const auto& model : fs::directory_iterator(place.cache)) {
    if (model.path().filename() == ".locks") continue;
    CHECK(fs::is_empty(model.path() / "refs"));
    for (const auto& entry : fs::directory_iterator(model.path() / "snapshots")) CHECK(fs::is_empty(entry.path()));
  }
  place.ca_file.clear();
  CHECK(has(refused("ok/model"), "SSL_CERT_FILE"));
  place.own_endpoint = false;
  CHECK(has(refused("ok/model"), "not on the public internet"));
  place.own_endpoint = true;
  place.endpoint = "http://127.0.0.1:" + hub().port;
  CHECK(has(refusal([&] { (void)run::log_in("hf_good", place); }), "not sent without TLS"));
}

TEST_CASE("a killed download goes on where it was") {
  const Scratch scratch;
  const run::HubPlace place = place_in(scratch);
  (void)hub();  // before the fork
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    try {
      (void)pull("slow/model", place);
    } catch (...) {
    }
    ::_exit(0);
  }
  const fs::path blobs = place.cache / "models--slow--model/blobs";
  const auto pieces = [&] {
    std::error_code absent;
    std::ptrdiff_t lines = 0;
    for (fs::directory_iterator at(blobs, absent), end; !absent && at != end; at.increment(absent)) {
      const std::string record = at->path().extension() == ".qlora-pieces" ? contents(at->path()) : "";
      if (record.starts_with("1000003 ")) lines = std::count(record.begin(), record.end(), '\n') - 1;
    }
    return lines;
  };
  while (pieces() < 3) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  const std::ptrdiff_t there = pieces();
  CHECK(!fs::exists(place.cache / "models--slow--model/refs/main"));
  const run::PullResult result = pull("slow/model", place);
  check_whole(result);
  CHECK(there >= 3);
  CHECK(result.downloaded <= result.bytes - 300'000);
}

TEST_CASE("an interrupted download says how to go on") {
  struct Impatient : run::Progress {
    std::int64_t done = 0;
    void update(std::int64_t now, std::int64_t, std::string_view) override { done = now; }
    [[nodiscard]] bool stop_requested() const override { return done > 0; }
  };
  const Scratch scratch;
  const run::HubPlace place = place_in(scratch);
  Impatient progress;
  const std::string said = refusal([&] { (void)run::pull_model(named("slow/model"), place, progress); });
  CHECK(has(said, "the same command goes on"));
  check_whole(pull("slow/model", place));
}

TEST_CASE("a token is asked about, stored for its owner alone, and used; what was accepted is recorded") {
  const Scratch scratch;
  run::HubPlace place = place_in(scratch);
  CHECK(has(refusal([&] { (void)run::log_in("hf_bad", place); }), "does not know this token"));
  CHECK(has(refusal([&] { (void)run::log_in("two words", place); }), "one word"));
  CHECK(!fs::exists(place.token_file));
  CHECK(run::log_in("hf_good", place) == "tester");
  struct stat status {};
  REQUIRE(::stat(place.token_file.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777U) == 0600U);
  ::setenv("HF_HOME", (scratch / "home").c_str(), 1);
  ::unsetenv("HF_TOKEN");
  place.token = run::hub_place().token;
  CHECK(place.token == "hf_good");
  run::Progress progress;
  const run::AcceptResult accepted = run::accept_model(named("gated/model"), place, progress);
  CHECK(accepted.licence == "llama2");
  CHECK(accepted.legal.size() == 2);
  const qlora::Json record = qlora::parse_json(contents(place.accepted), "record");
  CHECK(record["model"] == "gated/model");
  CHECK(record["files"]["LICENSE.txt"] == qlora::sha256("Do as you like.\n"));
  CHECK(record["accepted_at"].get<std::string>().size() == 20);
  check_whole(pull("gated/model", place));
  CHECK(run::log_out(place));
  CHECK(!fs::exists(place.token_file));
  CHECK(!run::log_out(place));
  CHECK(run::hub_place().token.empty());
}
