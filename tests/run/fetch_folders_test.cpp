// fetch_folders_test.cpp — folders as sources: which files are read, and what is said of the others.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <variant>
#include <vector>

#include "qlora/run/fetch.hpp"
#include "qlora/run/settings.hpp"
#include "qlora/text/document.hpp"
#include "support/scratch.hpp"

using namespace qlora;

namespace {

void write(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

struct Quiet : run::Progress {};

std::vector<std::string> names(const run::FetchResult& result) {
  std::vector<std::string> all;
  for (const run::FetchedDocument& document : result.documents)
    all.push_back(std::filesystem::path(document.source).filename().string());
  return all;
}

}  // namespace

TEST_CASE("a folder gives its document files; the others are named with a reason") {
  const test::Scratch scratch;
  const std::filesystem::path folder = scratch / "site";
  write(folder / "B.HTML", "<p>Bees live here.");
  write(folder / "c.xhtml", "<p>Cows live there.");
  write(folder / "d.TXT", "Dogs bark.");
  write(folder / "e.JSONL", "{\"text\": \"Eels swim.\"}\n");
  write(folder / "f.php", "<p>Foxes");
  write(folder / ".hidden.html", "<p>Ghosts");
  write(folder / "inner" / "g.html", "<p>Goats climb.");
  REQUIRE(::mkfifo((folder / "pipe.jsonl").c_str(), 0600) == 0);
  run::FetchRequest request;
  request.pages.files = {folder};
  request.out = folder / "pages.jsonl";
  Quiet progress;
  const run::FetchResult first = run::fetch(request, progress);
  CHECK(names(first) == std::vector<std::string>{"B.HTML", "c.xhtml", "d.TXT", "e.JSONL:1"});
  REQUIRE(first.failed.size() == 3);
  CHECK(first.failed[0].source == (folder / "f.php").string());
  CHECK(first.failed[1].error == "a folder; --recursive reads it");
  CHECK(first.failed[2].error == "not a plain file");
  CHECK(first.repeated.empty());

  request.fetching.recursive = true;
  const run::FetchResult second = run::fetch(request, progress);  // its output lies in the folder now
  CHECK(names(second) == std::vector<std::string>{"B.HTML", "c.xhtml", "d.TXT", "e.JSONL:1", "g.html"});
  CHECK(second.failed.at(1).error == "it is the output");
  CHECK(read_documents(request.out).size() == 5);
}

TEST_CASE("a pipe is refused, not waited for") {
  const test::Scratch scratch;
  const std::filesystem::path pipe = scratch / "pipe.jsonl";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK_THROWS_AS((void)read_documents(pipe), Error);
}

TEST_CASE("the size limit is the caller's, also above the usual 8 MiB") {
  const test::Scratch scratch;
  const std::filesystem::path page = scratch / "long.html";
  write(page, "<p>Few words beside a long remark.<!--" + std::string(std::size_t{9} << 20, 'x') + "-->");
  run::FetchRequest request;
  request.pages.files = {page};
  request.out = scratch / "out.jsonl";
  Quiet progress;
  CHECK_THROWS_AS((void)run::fetch(request, progress), Error);
  request.fetching.max_bytes = 16 << 20;
  CHECK(run::fetch(request, progress).bytes == 31);
}

TEST_CASE("settings hold addresses without their credentials, and new options only when they are set") {
  run::Pages pages;
  pages.urls = {"https://ann:pw@example.org/a?token=b", "https://example.org/c"};
  const run::Settings shown = run::settings_of(pages, run::Which::fingerprint);
  REQUIRE(shown.size() == 1);
  CHECK(std::get<std::vector<std::string>>(shown[0].second) ==
        std::vector<std::string>{"https://example.org/a?token=...", "https://example.org/c"});
  const auto names = [](const run::Fetching& fetching) {
    std::string all;
    for (const auto& setting : run::settings_of(fetching, run::Which::fingerprint)) all += setting.first + " ";
    return all;
  };
  CHECK(names({}) == "compat allow_private max_bytes ");
  CHECK(names({.recursive = true, .all_pages = true}) == "compat allow_private max_bytes recursive all_pages ");
}
