// Checkpoints: what is saved is what is read, damage is found and named, and a killed run always finds one to go on
// from.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/checkpoint.hpp"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "support/kill_point.hpp"

using namespace qlora;
namespace fs = std::filesystem;

namespace {

struct Scratch {
  fs::path path = fs::temp_directory_path() / ("checkpoint_test-" + std::to_string(::getpid()));
  Scratch() { fs::create_directories(path); }
  ~Scratch() { fs::remove_all(path); }
} const scratch;

/// Saves a state in which every number follows from the step.
void save(const fs::path& root, std::int64_t step, int keep, std::size_t count = 300) {
  std::vector<float> a(count);
  for (std::size_t i = 0; i < count; ++i) a[i] = static_cast<float>(step) + static_cast<float>(i) / 1024.0F;
  const std::vector<float> scalar{static_cast<float>(step)};
  const std::vector<NamedTensor> tensors{{"a", {static_cast<std::int64_t>(count)}, a}, {"s", {}, scalar}};
  save_checkpoint(root, step, tensors, Json{{"step", step}, {"note", "half \"quoted\" \u00e9"}}, keep);
}
bool holds(const Checkpoint& checkpoint) {
  const TensorRef a = checkpoint.tensors.at("a");
  std::vector<float> values(static_cast<std::size_t>(a.size()));
  read_floats(a, 0, values);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i] != static_cast<float>(checkpoint.step) + static_cast<float>(i) / 1024.0F) return false;
  }
  return checkpoint.state.at("step") == checkpoint.step;
}
std::size_t entries(const fs::path& root) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(root), fs::directory_iterator()));
}

}  // namespace

TEST_CASE("round trip, pruning, and the newest wins by number") {
  const fs::path root = scratch.path / "runs/one";
  CHECK_FALSE(load_latest_checkpoint(root).checkpoint.has_value());
  for (const std::int64_t step : {9, 10, 100}) save(root, step, 2);
  const CheckpointSearch found = load_latest_checkpoint(root);
  REQUIRE(found.checkpoint.has_value());
  CHECK(found.skipped.empty());
  CHECK(found.checkpoint->step == 100);
  CHECK(holds(*found.checkpoint));
  CHECK(found.checkpoint->state.at("note") == "half \"quoted\" \u00e9");
  CHECK_FALSE(fs::exists(root / "checkpoint-9"));
  CHECK(entries(root) == 2);
  save(root, 100, 2, 7);  // the same step again replaces it
  const CheckpointSearch again = load_latest_checkpoint(root);
  REQUIRE(again.checkpoint.has_value());
  CHECK(again.checkpoint->tensors.at("a").size() == 7);
  CHECK(entries(root) == 2);
}

TEST_CASE("the hashes in the manifest are those that sha256sum computes") {
  const fs::path root = scratch.path / "sums";
  save(root, 1, 1);
  const Json manifest = read_json_object(root / "checkpoint-1/MANIFEST.json");
  std::string list;
  for (const auto& [name, entry] : manifest.at("files").items()) {
    list += entry.at("sha256").get<std::string>() + "  " + (root / "checkpoint-1" / name).string() + "\n";
    CHECK(entry.at("bytes") == fs::file_size(root / "checkpoint-1" / name));
  }
  write_file_atomically(scratch.path / "list", list);
  CHECK(std::system(("sha256sum --quiet -c " + (scratch.path / "list").string()).c_str()) == 0);
}

TEST_CASE("500 flipped bits, 500 found and named") {
  const fs::path root = scratch.path / "flips";
  save(root, 1, 2);
  save(root, 2, 2);
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(root / "checkpoint-2")) files.push_back(entry.path());
  REQUIRE(files.size() == 3);
  std::mt19937 random(3);
  for (int i = 0; i < 500; ++i) {
    const fs::path& path = files[static_cast<std::size_t>(i) % 3];
    const std::string good = read_text(path, 1U << 20);
    std::string bad = good;
    const std::size_t at = random() % bad.size();
    bad[at] = static_cast<char>(bad[at] ^ (1 << (random() % 8)));
    std::ofstream(path, std::ios::binary) << bad;
    const CheckpointSearch found = load_latest_checkpoint(root);
    REQUIRE(found.checkpoint.has_value());
    CHECK(found.checkpoint->step == 1);
    REQUIRE(found.skipped.size() == 1);
    CHECK_MESSAGE(found.skipped[0].find("checkpoint-2/" + path.filename().string()) != std::string::npos,
                  found.skipped[0]);
    std::ofstream(path, std::ios::binary) << good;
  }
  CHECK(load_latest_checkpoint(root).checkpoint->step == 2);
}

TEST_CASE("missing and cut files are passed over; foreign names are no checkpoints") {
  const fs::path root = scratch.path / "cut";
  for (const std::int64_t step : {1, 2, 3, 4}) save(root, step, 9);
  fs::remove(root / "checkpoint-4/MANIFEST.json");
  fs::resize_file(root / "checkpoint-3/state.safetensors", 100);
  fs::remove(root / "checkpoint-2/state.json");
  for (const char* name : {"checkpoint-", "checkpoint-07", "checkpoint-9x", "checkpoint--1", "checkpoint-1e9"}) {
    fs::create_directory(root / name);
  }
  fs::create_directory(root / ".tmp-5-1234");
  const CheckpointSearch found = load_latest_checkpoint(root);
  REQUIRE(found.checkpoint.has_value());
  CHECK(found.checkpoint->step == 1);
  CHECK(found.skipped.size() == 3);
  CHECK_FALSE(fs::exists(root / ".tmp-5-1234"));
  fs::rename(root / "checkpoint-1", root / "checkpoint-8");  // a checkpoint under another step's name
  CHECK_THROWS_WITH_AS((void)load_checkpoint(root / "checkpoint-8"), doctest::Contains("another step"), Error);
}

TEST_CASE("a bit that changes on the way to the disk makes no checkpoint, and the next save works") {
  const fs::path root = scratch.path / "flipped";
  save(root, 1, 2);
  int refused = 0;
  for (long write = 0;; ++write) {
    kill_point::writes_left = write;
    kill_point::flipped_bit = static_cast<std::size_t>(977 * write + 5);
    bool failed = false;
    try {
      save(root, 2, 2);
    } catch (const Error& error) {
      failed = true;
      CHECK(error.kind() == ErrorKind::resource);
    }
    const bool reached = kill_point::writes_left < 0;
    kill_point::writes_left = -1;
    if (!reached) break;
    CHECK(failed);
    ++refused;
    CHECK(entries(root) == 1);
    CHECK(load_latest_checkpoint(root).checkpoint->step == 1);
  }
  CHECK(refused >= 4);  // header, tensors, state, manifest
  CHECK(load_latest_checkpoint(root).checkpoint->step == 2);
}

TEST_CASE("an error of the system is no damage: nothing is passed over") {
  const fs::path root = scratch.path / "errors";
  save(root, 1, 2);
  save(root, 2, 2);
  const auto kind = [&] {
    try {
      (void)load_latest_checkpoint(root);
    } catch (const Error& error) {
      return error.kind();
    }
    return ErrorKind::unmet;  // none
  };
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  const int next = ::dup(0);  // the number that the next file would get
  ::close(next);
  const rlimit none{static_cast<rlim_t>(next), before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);  // EMFILE
  const ErrorKind found = kind();
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK(found == ErrorKind::resource);
  const rlimit limit{static_cast<rlim_t>(next + 1), before.rlim_max};  // the directory opens, no file in it does
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
  const ErrorKind inside = kind();
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK(inside == ErrorKind::unmet);  // one file at a time is enough
  if (::geteuid() != 0) {
    fs::permissions(root / "checkpoint-2", fs::perms::none);
    CHECK(kind() == ErrorKind::resource);  // EACCES
    fs::permissions(root / "checkpoint-2", fs::perms::owner_all);
  }
  CHECK(load_latest_checkpoint(fs::path("/proc/1/nowhere")).skipped.empty());
  CHECK(load_latest_checkpoint(root).checkpoint->step == 2);
}

TEST_CASE("a disk without room is said before anything is written") {
  const fs::path root = scratch.path / "full";
  save(root, 1, 1);
  try {
    expect_free_space(root, std::uint64_t{1} << 60);
    FAIL("there cannot be that much room");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::resource);
    CHECK(std::string(error.what()).find("1152921504606846976") != std::string::npos);
  }
}

TEST_CASE("a start prunes what killed runs left, counted from the checkpoint that it goes on from") {
  const fs::path root = scratch.path / "prune";
  for (const std::int64_t step : {1, 2, 3, 4, 5, 6, 7}) save(root, step, 99);
  REQUIRE(entries(root) == 7);
  fs::resize_file(root / "checkpoint-7/state.safetensors", 100);
  fs::resize_file(root / "checkpoint-6/state.safetensors", 100);
  CHECK(load_latest_checkpoint(root).checkpoint->step == 5);
  CHECK(entries(root) == 7);  // who only looks removes nothing
  CHECK(load_latest_checkpoint(root, 2).checkpoint->step == 5);
  for (const char* name : {"checkpoint-4", "checkpoint-5", "checkpoint-6", "checkpoint-7"})
    CHECK(fs::exists(root / name));
  CHECK(entries(root) == 4);
  CHECK(holds(load_checkpoint(root / "checkpoint-4")));
  save(root, 6, 1);  // replaces a damaged one; the other does not count as the one to keep
  CHECK(load_latest_checkpoint(root, 1).checkpoint->step == 6);
  CHECK(entries(root) == 2);
  fs::resize_file(root / "checkpoint-6/state.safetensors", 100);
  CHECK_FALSE(load_latest_checkpoint(root, 1).checkpoint.has_value());  // none verifies: none is removed
  CHECK(entries(root) == 2);
}

TEST_CASE("killed at any moment: the next start finds a whole checkpoint, never older than the last saved") {
  const fs::path root = scratch.path / "killed";
  save(root, 0, 2);
  save(root, 1, 2);
  std::int64_t last = 1;
  int killed = 0;
  int not_committed = 0;
  int not_pruned = 0;
  for (bool going = true; going;) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      kill_point::calls_left = killed;
      save(root, last + 1, 2, 20'000);
      ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    going = WIFSIGNALED(status);
    if (going) {
      ++killed;
    } else {
      REQUIRE(WEXITSTATUS(status) == 0);
    }
    const bool committed = fs::exists(root / ("checkpoint-" + std::to_string(last + 1)));
    not_committed += committed ? 0 : 1;
    not_pruned += committed && fs::exists(root / ("checkpoint-" + std::to_string(last - 1))) ? 1 : 0;
    const CheckpointSearch found = load_latest_checkpoint(root, 2);
    REQUIRE(found.checkpoint.has_value());
    CHECK(found.skipped.empty());
    CHECK(holds(*found.checkpoint));
    CHECK(found.checkpoint->step == (committed ? last + 1 : last));
    CHECK((going || committed));  // who was not killed has saved
    last = found.checkpoint->step;
    CHECK(entries(root) == 2);
  }
  CHECK(not_committed >= 10);  // the kills were where they matter: before the name is given, and before pruning
  CHECK(not_pruned >= 2);
}
