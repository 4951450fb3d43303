// dataset_test.cpp — data sets written, read back, read by a second reader, and damaged in every way that a disk or a
// hostile author could; then what a reader is shown of them.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/text/dataset.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>

#include "qlora/text/display.hpp"
#include "qlora/text/prompt.hpp"
#include "qlora/text/tokenizer.hpp"

namespace fs = std::filesystem;
using qlora::DatasetInfo;
using qlora::Error;
using qlora::PackedWindows;
using qlora::TokenDataset;
using qlora::TokenDocument;
using Ids = std::vector<std::int32_t>;
using Json = nlohmann::json;

namespace {

struct TemporaryDirectory {
  fs::path path = fs::temp_directory_path() / ("qlora_dataset_test_" + std::to_string(::getpid()));
  TemporaryDirectory() { fs::remove_all(path); }
  ~TemporaryDirectory() { fs::remove_all(path); }
};

std::string read_bytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file.good());
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_bytes(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

const std::string hash_a(64, 'a');

/// Three documents of which one is empty, in windows of five.
PackedWindows windows() {
  const std::vector<TokenDocument> documents{{{1, 10, 11, 2}, {}}, {}, {{1, 20, 21, 22, 23, 2}, {}}};
  return qlora::pack_documents(documents, {.seq = 5});
}

DatasetInfo info() {
  return {.vocab_size = 30,
          .tokenizer_sha256 = hash_a,
          .sources = {{"https://example.org/a", "First \"page\"", hash_a, 4},
                      {"b.txt", "", hash_a, 0},
                      {"c.txt", "Drittes ä", hash_a, 6}}};
}

std::vector<qlora::DatasetSource> sources(const TokenDataset& data) {
  std::vector<qlora::DatasetSource> all;
  for (std::size_t i = 0; i < data.sources(); ++i) all.push_back(data.source(i));
  return all;
}

std::string refusal(const fs::path& directory) {
  try {
    static_cast<void>(TokenDataset::open(directory));
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

bool holds(const std::string& message, const std::string& part) {
  INFO(message);
  return message.find(part) != std::string::npos;
}

/// A second reader of a shard's column, from the format's description alone.
Ids column(const fs::path& shard, const std::string& name) {
  const std::string bytes = read_bytes(shard);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  const Json header = Json::parse(bytes.substr(8, length));
  CHECK(header.at(name).at("dtype") == "I32");
  const auto begin = header.at(name).at("data_offsets").at(0).get<std::size_t>();
  const auto end = header.at(name).at("data_offsets").at(1).get<std::size_t>();
  Ids values((end - begin) / 4);
  std::memcpy(values.data(), bytes.data() + 8 + length + begin, end - begin);
  return values;
}

}  // namespace

TEST_CASE("what is written is read back, by this reader and by a second one") {
  const TemporaryDirectory directory;
  const PackedWindows packed = windows();
  qlora::write_dataset(directory.path, packed, info());
  const TokenDataset dataset = TokenDataset::open(directory.path);
  CHECK(dataset.seq() == 5);
  REQUIRE(dataset.size() == 2);
  CHECK(Ids(dataset.ids().begin(), dataset.ids().end()) == packed.ids);
  CHECK(Ids(dataset.labels().begin(), dataset.labels().end()) == packed.labels);
  CHECK(Ids(dataset.documents().begin(), dataset.documents().end()) == packed.documents);
  const auto second = dataset.window(1);
  CHECK(Ids(second.ids.begin(), second.ids.end()) == Ids{20, 21, 22, 23, 2});
  CHECK(Ids(second.labels.begin(), second.labels.end()) == Ids{-100, 21, 22, 23, 2});
  CHECK(Ids(second.documents.begin(), second.documents.end()) == Ids(5, 2));
  CHECK_THROWS_AS(static_cast<void>(dataset.window(2)), Error);
  CHECK(dataset.counts() == packed.counts);
  CHECK(dataset.info().vocab_size == 30);
  CHECK(dataset.info().tokenizer_sha256 == hash_a);
  CHECK(sources(dataset) == info().sources);

  const fs::path shard = directory.path / "tokens-00000.safetensors";
  CHECK(column(shard, "input_ids") == packed.ids);
  CHECK(column(shard, "labels") == packed.labels);
  CHECK(column(shard, "document") == packed.documents);
  const Json manifest = Json::parse(read_bytes(directory.path / "manifest.json"));
  CHECK(manifest.at("sources").at(1).at("skipped") == "no text after tokenization");
  CHECK(manifest.at("packing") == Json{{"form", "isolated"}, {"labels", "all"}, {"split", "carry"}});
  CHECK(manifest.at("counts").at("cut_documents") == 1);
}

TEST_CASE("choices of packing survive, and the fingerprint tells data sets apart") {
  const TemporaryDirectory directory;
  DatasetInfo described = info();
  described.form = qlora::PackingForm::article;
  described.labels = qlora::LabelChoice::answers;
  described.split = qlora::SplitChoice::pad;
  qlora::write_dataset(directory.path, windows(), described);
  const TokenDataset first = TokenDataset::open(directory.path);
  CHECK(first.info().form == qlora::PackingForm::article);
  CHECK(first.info().labels == qlora::LabelChoice::answers);
  CHECK(first.info().split == qlora::SplitChoice::pad);
  qlora::write_dataset(directory.path, windows(), described);
  CHECK(TokenDataset::open(directory.path).fingerprint() == first.fingerprint());
  DatasetInfo moved = described;
  for (auto& source : moved.sources) source.source = "/another/root/" + source.source;
  qlora::write_dataset(directory.path, windows(), moved);
  CHECK(TokenDataset::open(directory.path).fingerprint() != first.fingerprint());
  CHECK(TokenDataset::open(directory.path).identity() == first.identity());
  moved.sources.front().sha256 = qlora::sha256(std::string_view("another document"));
  qlora::write_dataset(directory.path, windows(), moved);
  CHECK(TokenDataset::open(directory.path).identity() != first.identity());
  PackedWindows other = windows();
  other.ids[1] = other.labels[1] = 12;
  qlora::write_dataset(directory.path, other, described);
  CHECK(TokenDataset::open(directory.path).fingerprint() != first.fingerprint());
  CHECK(TokenDataset::open(directory.path).identity() != first.identity());
}

TEST_CASE("many windows go into several shards; a smaller data set leaves none of them behind") {
  const TemporaryDirectory directory;
  constexpr int seq = 1 << 17;  // four windows fill a shard
  std::vector<TokenDocument> documents(1);
  for (int i = 0; i < 5 * seq + 1; ++i) documents[0].ids.push_back(i % 30);
  DatasetInfo described = info();
  described.sources.resize(1);
  const PackedWindows packed = qlora::pack_documents(documents, {.seq = seq});
  qlora::write_dataset(directory.path, packed, described);
  CHECK(fs::exists(directory.path / "tokens-00001.safetensors"));
  CHECK_FALSE(fs::exists(directory.path / "tokens-00002.safetensors"));
  {
    const TokenDataset dataset = TokenDataset::open(directory.path);
    REQUIRE(dataset.size() == 6);
    CHECK(std::equal(packed.ids.begin(), packed.ids.end(), dataset.ids().begin(), dataset.ids().end()));
    CHECK(std::equal(packed.labels.begin(), packed.labels.end(), dataset.labels().begin(), dataset.labels().end()));
  }
  qlora::write_dataset(directory.path, windows(), info());
  CHECK_FALSE(fs::exists(directory.path / "tokens-00001.safetensors"));
  CHECK(TokenDataset::open(directory.path).size() == 2);
}

TEST_CASE("every flipped bit of a shard is found, and the shard is named") {
  const TemporaryDirectory directory;
  qlora::write_dataset(directory.path, windows(), info());
  const fs::path shard = directory.path / "tokens-00000.safetensors";
  const std::string good = read_bytes(shard);
  std::mt19937 random(21);
  for (int round = 0; round < 500; ++round) {
    std::string bad = good;
    const std::size_t at = random() % bad.size();
    bad[at] = static_cast<char>(bad[at] ^ (1 << (random() % 8)));
    write_bytes(shard, bad);
    REQUIRE(holds(refusal(directory.path), "tokens-00000.safetensors: damaged"));
  }
  for (std::size_t length = 0; length < good.size(); length += 7) {
    write_bytes(shard, good.substr(0, length));
    REQUIRE(holds(refusal(directory.path), "tokens-00000.safetensors"));
  }
  fs::remove(shard);
  CHECK(holds(refusal(directory.path), "tokens-00000.safetensors"));
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + hash_a + "\nsize 3184\n";
  write_bytes(shard, pointer);
  CHECK(holds(refusal(directory.path), "tokens-00000.safetensors: is a Git LFS pointer"));
  write_bytes(directory.path / "manifest.json", pointer);
  CHECK(holds(refusal(directory.path), "manifest.json: is a Git LFS pointer"));
}

TEST_CASE("damaged manifests: an error, or a data set that keeps its rules") {
  const TemporaryDirectory directory;
  qlora::write_dataset(directory.path, windows(), info());
  const fs::path path = directory.path / "manifest.json";
  const std::string good = read_bytes(path);
  for (std::size_t length = 0; length + 2 < good.size(); length += 5) {
    write_bytes(path, good.substr(0, length));
    REQUIRE(refusal(directory.path) != "accepted");
  }
  std::mt19937 random(22);
  for (int round = 0; round < 1500; ++round) {
    std::string bad = good;
    for (auto change = 1 + random() % 3; change > 0; --change) bad[random() % bad.size()] = static_cast<char>(random());
    write_bytes(path, bad);
    static_cast<void>(refusal(directory.path));
  }
  fs::remove(path);
  CHECK(holds(refusal(directory.path), "manifest.json"));
}

TEST_CASE("a manifest that was changed is not believed, and a fingerprint is that of the content") {
  const TemporaryDirectory directory;
  qlora::write_dataset(directory.path, windows(), info());
  const fs::path path = directory.path / "manifest.json";
  const std::string good = read_bytes(path);
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
    write_bytes(path, bad);
    CAPTURE(at);
    REQUIRE(refusal(directory.path) != "accepted");
  }
  Json without = Json::parse(good);
  without.erase("sha256");
  write_bytes(path, good);
  const std::string fingerprint = TokenDataset::open(directory.path).fingerprint();
  const std::string identity = TokenDataset::open(directory.path).identity();
  Json indented = without;  // as the first versions with a hash wrote it
  indented["sha256"] = qlora::sha256(qlora::json_text(without));
  write_bytes(path, qlora::json_text(indented));
  CHECK(sources(TokenDataset::open(directory.path)) == info().sources);
  CHECK(TokenDataset::open(directory.path).identity() == identity);
  write_bytes(path, qlora::json_text(without));  // as earlier versions wrote it
  CHECK(TokenDataset::open(directory.path).fingerprint() == fingerprint);
  CHECK(fingerprint == qlora::sha256(qlora::json_text(without)));
  CHECK(TokenDataset::open(directory.path).identity() == identity);
}

TEST_CASE("a data set that cannot be written leaves the one that was there, and no other file is removed") {
  const TemporaryDirectory directory;
  qlora::write_dataset(directory.path, windows(), info());
  const std::string good = read_bytes(directory.path / "manifest.json");
  PackedWindows none = windows();
  for (auto* column : {&none.ids, &none.labels, &none.documents}) column->clear();
  CHECK_THROWS_AS(qlora::write_dataset(directory.path, none, info()), qlora::Error);
  CHECK(read_bytes(directory.path / "manifest.json") == good);
  write_bytes(directory.path / "notes.txt", "mine");
  CHECK_THROWS_AS(qlora::write_dataset(directory.path, windows(), info()), qlora::Error);
  CHECK(read_bytes(directory.path / "notes.txt") == "mine");
  CHECK(read_bytes(directory.path / "manifest.json") == good);
}

TEST_CASE("manifests that lie are refused, each with its reason") {
  const TemporaryDirectory directory;
  qlora::write_dataset(directory.path, windows(), info());
  const fs::path path = directory.path / "manifest.json";
  Json good = Json::parse(read_bytes(path));
  good.erase("sha256");  // a manifest of an earlier version: what it says is looked at
  const auto lie = [&](const std::string& pointer, const Json& value) {
    Json bad = good;
    bad[Json::json_pointer(pointer)] = value;
    write_bytes(path, bad.dump());
    return refusal(directory.path);
  };
  CHECK(lie("/seq", 5) == "accepted");
  CHECK(holds(lie("/format", "x"), "not the manifest of a token data set"));
  CHECK(holds(lie("/version", 2), "version 2 of the format"));
  CHECK(holds(lie("/seq", 10), "must be I32 of shape [2, 10]"));
  CHECK(holds(lie("/seq", 0), "'seq' must be an integer from 2"));
  CHECK(holds(lie("/seq", 5.0), "'seq'"));
  CHECK(holds(lie("/windows", 3), "3 windows are announced, the shards hold 2"));
  CHECK(holds(lie("/windows", 0), "'windows'"));
  CHECK(holds(lie("/vocab_size", 23), "is the id 23, outside the vocabulary of 23"));
  CHECK(holds(lie("/packing/form", "other"), "'form' is 'other', not isolated or article"));
  CHECK(holds(lie("/counts/padding", 1), "padding are announced"));
  CHECK(holds(lie("/sources", Json::array()), "is of document 0, there are 0"));
  CHECK(holds(lie("/sources/0", 7), "every one of 'sources' must be an object"));
  CHECK(holds(lie("/sources/0/tokens", -1), "'tokens'"));
  CHECK(holds(lie("/shards", 1), "'shards' must be a list"));
  CHECK(
      holds(lie("/shards/0/file", "../tokens-00000.safetensors"), "shard 0 must be the file tokens-00000.safetensors"));
  CHECK(holds(lie("/shards/0/sha256", hash_a), "damaged"));
  CHECK(holds(lie("/shards/0/windows", 1), "must be I32 of shape [1, 5]"));
  CHECK(holds(lie("/shards/1", good["shards"][0]), "shard 1 must be the file tokens-00001.safetensors"));
  Json missing = good;
  missing.erase("counts");
  write_bytes(path, missing.dump());
  CHECK(holds(refusal(directory.path), "'counts' is missing"));
}

TEST_CASE("a shard that its hash vouches for must still keep the rules") {
  const TemporaryDirectory directory;
  const fs::path shard = directory.path / "tokens-00000.safetensors";
  const auto forged = [&](std::size_t place, std::int32_t value) {
    qlora::write_dataset(directory.path, windows(), info());
    std::string bytes = read_bytes(shard);
    std::memcpy(bytes.data() + bytes.size() - 120 + place * 4, &value, 4);  // document, input_ids, labels: 10 each
    write_bytes(shard, bytes);
    Json manifest = Json::parse(read_bytes(directory.path / "manifest.json"));
    manifest["shards"][0]["sha256"] = qlora::sha256_file(shard);
    manifest.erase("sha256");  // as an earlier version wrote it
    write_bytes(directory.path / "manifest.json", manifest.dump());
    return refusal(directory.path);
  };
  CHECK(forged(0, 0) == "accepted");  // the value that is there
  CHECK(holds(forged(0, 3), "is of document 3, there are 3"));
  CHECK(holds(forged(0, -2), "is of document -2"));
  CHECK(holds(forged(1, -1), "is padding and has a label"));
  CHECK(holds(forged(11, 30), "is the id 30, outside the vocabulary of 30"));
  CHECK(holds(forged(11, -1), "is the id -1"));
  CHECK(holds(forged(21, 11), "the label of token 1 is 11, neither -100 nor its id 10"));
}

TEST_CASE("windows that break the rules are not written") {
  const TemporaryDirectory directory;
  const auto refused = [&](PackedWindows packed, DatasetInfo described) {
    CHECK_THROWS_AS(qlora::write_dataset(directory.path, packed, described), Error);
    CHECK_FALSE(fs::exists(directory.path / "manifest.json"));
  };
  PackedWindows none;
  none.seq = 5;
  refused(none, info());
  PackedWindows uneven = windows();
  uneven.labels.pop_back();
  refused(uneven, info());
  DatasetInfo small = info();
  small.vocab_size = 20;
  refused(windows(), small);
  DatasetInfo unnamed = info();
  unnamed.sources.clear();
  refused(windows(), unnamed);
  write_bytes(directory.path, "a file where the directory should be");
  CHECK_THROWS_AS(qlora::write_dataset(directory.path, windows(), info()), Error);
}

TEST_CASE("shown windows: documents, labels, and nothing that a terminal would obey") {
  const auto tokenizer = qlora::Tokenizer::load(std::string(QLORA_SOURCE_DIR) + "/tests/data/small_tokenizer.model");
  const std::vector<TokenDocument> documents{qlora::text_document(tokenizer, "a lamp\n🙂"),
                                             qlora::text_document(tokenizer, "\x1b[31mred\u009b7\x7f")};
  const int seq = static_cast<int>(documents[0].ids.size() + documents[1].ids.size() + 2);
  const PackedWindows packed = qlora::pack_documents(documents, {.seq = seq});
  const std::vector<std::string> names{"lamp.txt", "evil\x1b.txt"};
  const auto render = [&](qlora::DisplayOptions options) {
    return qlora::render_windows(tokenizer, seq, packed.ids, packed.labels, packed.documents, names, options);
  };
  const auto sizes = [&](std::size_t d) { return std::to_string(documents[d].ids.size()) + " tokens\n"; };
  CHECK(render({}) == "‹ ›: read but not learned\n\nwindow 0: " + std::to_string(seq) + " tokens, " +
                          std::to_string(seq - 4) + " learned\n-- document 0 lamp.txt, " + sizes(0) +
                          "‹<s>› a lamp↵\n🙂</s>\n-- document 1 evil<0x1B>.txt, " + sizes(1) +
                          "‹<s>› <0x1B>[31mred<0xC2><0x9B>7<0x7F></s>\n-- padding, 2 tokens\n");
  const std::string coloured = render({.colour = true});
  CHECK(holds(coloured, "\x1b[2;32m<s>\x1b[0m\x1b[32m a lamp"));
  CHECK(holds(coloured, "\x1b[2;36m<s>\x1b[0m\x1b[36m <0x1B>[31mred"));
  CHECK(holds(render({.windows = 0}), "read but not learned\n"));
  CHECK_THROWS_AS(
      static_cast<void>(qlora::render_windows(tokenizer, 7, packed.ids, packed.labels, packed.documents, names, {})),
      Error);
}
