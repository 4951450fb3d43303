// quickstart_test.cpp — the quickstart's probes: those that the study's guard asks are copies of its files, byte for
// byte, and its job file names what is there and nothing else.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>
#include <set>
#include <string>

#include "../../examples/world/study_files.hpp"
#include "qlora/eval/probes.hpp"
#include "qlora/io/file.hpp"

namespace {

namespace fs = std::filesystem;
const fs::path examples = fs::path(QLORA_SOURCE_DIR) / "examples";

std::string read(const fs::path& path) { return qlora::read_text(path, std::size_t{16} << 20); }

/// What stands between quotation marks and ends in .jsonl.
std::set<std::string> named_in(const std::string& text) {
  std::set<std::string> names;
  for (std::size_t at = text.find('"'); at != std::string::npos; at = text.find('"', at + 1)) {
    const std::size_t end = text.find('"', at + 1);
    if (end == std::string::npos) break;
    const std::string name = text.substr(at + 1, end - at - 1);
    if (name.ends_with(".jsonl")) names.insert(name);
    at = end;
  }
  return names;
}

}  // namespace

TEST_CASE("probes of the study's guard are its files") {
  const auto files = world::study_files(world::World(world::default_seed), world::default_seed);
  int copies = 0;
  for (const auto& [name, text] : files) {
    if (!name.starts_with("guard/")) continue;
    const fs::path copy = examples / "quickstart" / name.substr(6);
    if (!fs::exists(copy) || copy.filename() == "retention.jsonl") continue;
    ++copies;
    CHECK_MESSAGE(read(copy) == text, name);
  }
  CHECK(copies == 7);
}

TEST_CASE("the job names files that are there, and asks what the quickstart promises") {
  std::set<qlora::eval::Kind> kinds;
  for (const std::string& name : named_in(read(examples / "quickstart.toml"))) {
    const fs::path file = examples / name;
    CHECK_MESSAGE(fs::exists(file), name);
    if (name.ends_with("questions.jsonl") || name.ends_with("replay.jsonl")) continue;
    for (const qlora::eval::Item& item : qlora::eval::read_items(file)) kinds.insert(item.kind);
  }
  using enum qlora::eval::Kind;
  CHECK(kinds == std::set{knowledge, paraphrase, retention, unknown, behaviour, text});
}
