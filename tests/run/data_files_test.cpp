// Data sets out of and into the files of Python: streams that pyarrow and `datasets` wrote (tests/data/make_rows.py),
// damaged ones, and the program of docs/dataset.md.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/run/data_files.hpp"

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "support/refusal.hpp"
#include "support/scratch.hpp"

namespace fs = std::filesystem;
namespace run = qlora::run;
using Ids = std::vector<std::int64_t>;
using qlora::RowColumn;
using qlora::TokenDataset;
using qlora::TokenRow;
using test::contents;
using test::refusal;
using test::Scratch;

namespace {

const fs::path data = QLORA_SOURCE_DIR "/tests/data";
const fs::path rows = data / "rows";
const fs::path tokenizer = data / "small_tokenizer.model";

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

run::PackResult import(const fs::path& from, const fs::path& out) {
  run::Progress progress;
  return run::import_rows({from, tokenizer, out}, progress);
}
run::PackResult write_rows(const fs::path& from, const fs::path& out) {
  run::Progress progress;
  return run::export_rows({from, out}, progress);
}

nlohmann::json expected(const char* name) { return nlohmann::json::parse(contents(rows / "expected.json"))[name]; }

/// Columns of all rows of a file, as expected.json has them.
nlohmann::json read(const fs::path& path) {
  nlohmann::json all;
  for (const fs::path& file : qlora::row_files(path)) {
    qlora::for_each_row(file, [&](const TokenRow& row, const std::string&) {
      all["input_ids"].push_back(row[RowColumn::ids]);
      all["labels"].push_back(row[RowColumn::labels]);
      all["attention_mask"].push_back(row[RowColumn::mask]);
    });
  }
  return all;
}

Ids window_ids(const TokenDataset& set, std::size_t i) {
  const auto ids = set.window(i).ids;
  return {ids.begin(), ids.end()};
}

}  // namespace

TEST_CASE("streams of pyarrow and folders of datasets are read") {
  CHECK(read(rows / "saved") == expected("saved"));
  CHECK(read(rows / "types.arrow") == expected("types"));  // batches of three, other columns between
}

TEST_CASE("a file is read once") {
  const Scratch scratch;
  const auto read_so_far = [] {  // bytes that this process got from read(2) and its kind
    const std::string text = contents("/proc/self/io");
    return std::stoll(text.substr(text.find("rchar: ") + 7));
  };
  const std::string line = R"({"input_ids": [5, 6, 7], "note": ")" + std::string(4'000'000, 'x') + "\"}\n";
  scratch.write("rows.jsonl", line + R"({"input_ids": [5, 6]})" + "\n");
  const long long before = read_so_far();
  CHECK(import(scratch / "rows.jsonl", scratch / "set").windows == 2);
  const long long read = read_so_far() - before;
  CHECK(read >= 4'000'000);
  CHECK(read < 6'000'000);
  const TokenDataset set = TokenDataset::open(scratch / "set");
  CHECK(set.source(0).sha256 == qlora::sha256_file(scratch / "rows.jsonl"));
  CHECK(window_ids(set, 0) == Ids{5, 6, 7});
  CHECK(set.window(1).documents[2] == qlora::no_document);
}

TEST_CASE("what is not read is refused by name") {
  const Scratch scratch;
  const auto refused = [&](const char* file) { return refusal([&] { import(rows / file, scratch / "out"); }); };
  CHECK(has(refused("zstd.arrow"), "compressed (ZSTD)"));
  CHECK(has(refused("lz4.arrow"), "compressed (LZ4)"));
  CHECK(has(refused("null_row.arrow"), "'input_ids' has 1 nulls;"));
  CHECK(has(refused("null_token.arrow"), "1 nulls in its lists"));
  CHECK(has(refused("floats.arrow"), "list<float>"));
  CHECK(has(refused("dictionary.arrow"), "dictionary of string"));
  CHECK(has(refused("views.arrow"), "'view' has the type string_view"));
  CHECK(has(refused("text.arrow"), "no column input_ids, its columns are text"));
  CHECK(has(refused("feather.arrow"), "Feather"));
  CHECK(has(refused("none.arrow"), "no such file"));
  CHECK(has(refused("expected.json"), "neither a .jsonl or .arrow file"));
  CHECK(has(refused("."), "no state.json"));
  scratch.write("dataset_dict.json", "{}");
  CHECK(has(refusal([&] { import(scratch / ".", scratch / "out"); }), "several splits"));
  CHECK(!fs::exists(scratch / "out"));
}

TEST_CASE("rows become windows") {
  const Scratch scratch;
  const nlohmann::json saved = expected("saved");
  const run::PackResult result = import(rows / "saved", scratch / "out");
  CHECK(result.windows == 7);
  CHECK(result.seq == 16);
  CHECK(result.tokens == 112);
  CHECK(result.documents == 2);  // the files
  const TokenDataset set = TokenDataset::open(scratch / "out");
  std::int64_t labelled = 0;
  for (std::size_t i = 0; i < 7; ++i) {
    CHECK(window_ids(set, i) == saved["input_ids"][i].get<Ids>());
    const auto labels = set.window(i).labels;
    CHECK(Ids(labels.begin(), labels.end()) == saved["labels"][i].get<Ids>());
    for (std::size_t t = 1; t < labels.size(); ++t) labelled += labels[t] >= 0 ? 1 : 0;
  }
  CHECK(result.labelled == labelled);
  CHECK(set.source(1).source == (rows / "saved" / "data-00001-of-00002.arrow").string());
  CHECK(set.source(0).tokens == 64);

  const run::PackResult shorter = import(rows / "types.arrow", scratch / "padded");
  CHECK(shorter.seq == 12);
  CHECK(shorter.padding == 8 * 12 - (9 + 12 + 5 + 12 + 3 + 7 + 12 + 2));
  CHECK(TokenDataset::open(scratch / "padded").window(4).documents[3] == -1);
}

TEST_CASE("masks, document numbers and missing columns mean what docs/dataset.md says") {
  const Scratch scratch;
  const fs::path lines = scratch.write("rows.jsonl",
                                       "{\"input_ids\": [5, 6, 7, 8, 9, 3], \"document\": [40, 40, 7, 7, 7, -1]}\n"
                                       "{\"input_ids\": [5, 6, 7], \"document\": [7, 7, 9], "
                                       "\"attention_mask\": [1, 1, 0], \"more\": null}\n");
  const run::PackResult result = import(lines, scratch / "out");
  CHECK(result.documents == 2);
  CHECK(result.cut_documents == 1);
  CHECK(result.labelled == 4);
  const TokenDataset set = TokenDataset::open(scratch / "out");
  const auto list = [](std::span<const std::int32_t> of) { return Ids(of.begin(), of.end()); };
  CHECK(list(set.window(0).documents) == Ids{0, 0, 1, 1, 1, -1});
  CHECK(list(set.window(0).labels) == Ids{-100, 6, -100, 8, 9, -100});
  CHECK(list(set.window(1).documents) == Ids{1, 1, -1, -1, -1, -1});
  CHECK(set.info().form == qlora::PackingForm::isolated);

  const auto refused = [&](const std::string& line) {
    const fs::path file = scratch.write("bad.jsonl", line + "\n");
    return refusal([&] { import(file, scratch / "bad"); });
  };
  CHECK(has(refused("{\"input_ids\": [1, 2], \"labels\": [2, -100]}"), "label of token 0 is 2"));
  CHECK(has(refused("{\"input_ids\": [1, 2], \"labels\": [1]}"), "1 numbers in labels"));
  CHECK(has(refused("{\"input_ids\": [1, 99999]}"), "the id 99999"));
  CHECK(has(refused("{\"input_ids\": [1, -1]}"), "the id -1"));
  CHECK(has(refused("{\"input_ids\": [1, 2, 3], \"attention_mask\": [1, 0, 1]}"), "token 2 continues a document"));
  CHECK(has(refused("{\"input_ids\": [1, 2], \"attention_mask\": [1, 2]}"), "must be 0 or 1"));
  CHECK(has(refused("{\"input_ids\": [1.5, 2]}"), "no list of whole numbers"));
  CHECK(has(refused("{\"input_ids\": [1, 18446744073709551615]}"), "no list of whole numbers"));
  CHECK(has(refused("{\"text\": \"a\"}"), "bad.jsonl:1: is no object with \"input_ids\""));
  CHECK(has(refused("{\"input_ids\": [1]}"), "1 rows, none of two tokens"));
  CHECK(has(refused("{\"input_ids\": [1, 2], \"labels\": [-100, -100]}"), "no window to write"));
  CHECK(!fs::exists(scratch / "bad"));
}

TEST_CASE("what is exported comes back as it was") {
  const Scratch scratch;
  import(rows / "types.arrow", scratch / "first");
  for (const char* name : {"folder", "lines.jsonl"}) {
    const run::PackResult result = write_rows(scratch / "first", scratch / name);
    CHECK(result.windows == 8);
    import(scratch / name, scratch / "again");
    const TokenDataset a = TokenDataset::open(scratch / "first");
    const TokenDataset b = TokenDataset::open(scratch / "again");
    CHECK(std::equal(a.ids().begin(), a.ids().end(), b.ids().begin(), b.ids().end()));
    CHECK(std::equal(a.labels().begin(), a.labels().end(), b.labels().begin(), b.labels().end()));
    CHECK(std::equal(a.documents().begin(), a.documents().end(), b.documents().begin(), b.documents().end()));
  }
  write_rows(scratch / "first", scratch / "folder");  // replaces its own kind
  scratch.write("folder/notes.txt", "mine");
  CHECK(has(refusal([&] { write_rows(scratch / "first", scratch / "folder"); }), "holds notes.txt"));
}

TEST_CASE("cut and changed streams are refused or read, and never read beyond their end") {
  const Scratch scratch;
  const std::string whole = contents(rows / "types.arrow");
  const auto open = [&](const std::string& bytes) {
    const fs::path file = scratch.write("changed.arrow", bytes);
    return refusal([&] { qlora::for_each_row(file, [](const TokenRow&, const std::string&) {}); });
  };
  CHECK(open(whole).empty());
  for (std::size_t size = 0; size < whole.size(); size += 13) CHECK(!open(whole.substr(0, size)).empty());
  std::mt19937 draw(5);
  int refused = 0;
  for (int i = 0; i < 1000; ++i) {
    std::string bytes = whole;
    const unsigned changes = 1 + draw() % 4;
    for (unsigned c = 0; c < changes; ++c) {
      // Lengths and offsets are where a number is small or has all bits set.
      constexpr unsigned char numbers[] = {0, 1, 0x7F, 0x80, 0xFF};
      bytes[draw() % bytes.size()] = static_cast<char>(draw() % 2 == 0 ? draw() % 256 : numbers[draw() % 5]);
    }
    refused += open(bytes).empty() ? 0 : 1;
  }
  CHECK(refused > 200);
  CHECK(refused < 1000);
}

TEST_CASE("the program of docs/dataset.md writes a data set") {
  const Scratch scratch;
  const std::string page = contents(QLORA_SOURCE_DIR "/docs/dataset.md");
  const std::size_t begin = page.find("```python\n") + 10;
  const fs::path program = scratch.write("write.py", page.substr(begin, page.find("\n```", begin) - begin));
  const std::string line =
      "python3 '" + program.string() + "' '" + (scratch / "set").string() + "' '" + tokenizer.string() + "'";
  REQUIRE(std::system(line.c_str()) == 0);
  const TokenDataset set = TokenDataset::open(scratch / "set");
  CHECK(set.size() == 2);
  CHECK(window_ids(set, 1) == Ids{1, 20, 21, 22, 2, 2, 2, 2});
  CHECK(set.window(1).labels[4] == 2);
  CHECK(set.window(1).labels[5] == -100);
  CHECK(set.info().tokenizer_sha256 == qlora::sha256_file(tokenizer));
  CHECK(set.source(1).source == "text 1");
}
