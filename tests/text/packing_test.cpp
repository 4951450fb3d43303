// packing_test.cpp — windows against hand-made cases, against the chunks of the article's code, and against the rules
// checked one by one on random documents.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/text/packing.hpp"

#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "qlora/text/prompt.hpp"
#include "qlora/text/tokenizer.hpp"

using qlora::Error;
using qlora::LabelChoice;
using qlora::PackedWindows;
using qlora::PackingOptions;
using qlora::SplitChoice;
using qlora::TokenDocument;
using Ids = std::vector<std::int32_t>;

namespace {

constexpr std::int32_t no = qlora::ignored_label;

std::vector<TokenDocument> three_documents() {
  return {{{1, 10, 11, 2}, {}}, {{1, 20, 21, 22, 23, 2}, {}}, {{1, 30, 2}, {}}};
}

/// Random documents, some empty, some with answer flags; every token is unique, so that places can be told apart.
std::vector<TokenDocument> random_documents(std::mt19937& random, bool chat) {
  std::vector<TokenDocument> documents(random() % 12);
  std::int32_t next = 100;
  for (auto& document : documents) {
    const auto length = random() % 5 == 0 ? 0 : random() % 40;
    for (unsigned i = 0; i < length; ++i) document.ids.push_back(next++);
    if (chat && random() % 2 == 0)
      for (unsigned i = 0; i < length; ++i) document.answer.push_back(random() % 2);
  }
  return documents;
}

/// Every rule of the isolated form, each checked on its own.
void check_rules(const std::vector<TokenDocument>& documents, const PackingOptions& options, const PackedWindows& out) {
  const auto seq = static_cast<std::size_t>(options.seq);
  REQUIRE(out.seq == options.seq);
  REQUIRE(out.ids.size() % seq == 0);
  REQUIRE(out.labels.size() == out.ids.size());
  REQUIRE(out.documents.size() == out.ids.size());

  std::map<std::int32_t, Ids> seen;                     // document -> its tokens in order of place
  std::map<std::int32_t, std::vector<std::size_t>> in;  // document -> windows it stands in
  qlora::PackingCounts counts;
  for (std::size_t i = 0; i < out.ids.size(); ++i) {
    const std::int32_t document = out.documents[i];
    if (document == qlora::no_document) {
      CHECK(out.ids[i] == options.pad_id);
      CHECK(out.labels[i] == no);
      ++counts.padding;
      continue;
    }
    const bool first = i % seq == 0 || out.documents[i - 1] != document;
    const TokenDocument& source = documents[static_cast<std::size_t>(document)];
    const std::size_t at = seen[document].size();
    REQUIRE(at < source.ids.size());
    const bool wanted = options.labels == LabelChoice::all || source.answer.empty() || source.answer[at] != 0;
    CHECK(out.labels[i] == (!first && wanted ? out.ids[i] : no));
    counts.labelled += out.labels[i] != no ? 1 : 0;
    ++counts.tokens;
    seen[document].push_back(out.ids[i]);
    if (in[document].empty() || in[document].back() != i / seq) in[document].push_back(i / seq);
  }
  std::size_t full = 0;
  for (std::size_t d = 0; d < documents.size(); ++d) {
    const auto index = static_cast<std::int32_t>(d);
    if (documents[d].ids.empty()) {
      ++counts.skipped_documents;
      CHECK(seen.count(index) == 0);
      continue;
    }
    ++counts.documents;
    full += documents[d].ids.size();
    CHECK(seen[index] == documents[d].ids);  // all tokens, once, in order
    if (in[index].size() > 1) {
      ++counts.cut_documents;
      if (options.split == SplitChoice::pad) CHECK(documents[d].ids.size() > seq);
    }
  }
  CHECK(counts == out.counts);
  CHECK(out.skipped.size() == static_cast<std::size_t>(counts.skipped_documents));
  for (const auto& skipped : out.skipped) CHECK(documents[static_cast<std::size_t>(skipped.document)].ids.empty());
  if (options.split == SplitChoice::carry) CHECK(out.windows() == static_cast<std::int64_t>((full + seq - 1) / seq));
}

}  // namespace

TEST_CASE("carry: dense windows, a cut document goes on, the end is padded") {
  const PackedWindows out = qlora::pack_documents(three_documents(), {.seq = 5});
  CHECK(out.ids == Ids{1, 10, 11, 2, 1, 20, 21, 22, 23, 2, 1, 30, 2, 2, 2});
  CHECK(out.labels == Ids{no, 10, 11, 2, no, no, 21, 22, 23, 2, no, 30, 2, no, no});
  CHECK(out.documents == Ids{0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, -1, -1});
  CHECK(out.counts ==
        qlora::PackingCounts{.documents = 3, .cut_documents = 1, .tokens = 13, .labelled = 9, .padding = 2});
  CHECK(out.windows() == 3);
}

TEST_CASE("pad: short documents are whole, long ones are cut where they are") {
  const PackedWindows out =
      qlora::pack_documents(three_documents(), {.seq = 5, .split = SplitChoice::pad, .pad_id = 9});
  CHECK(out.ids == Ids{1, 10, 11, 2, 1, 20, 21, 22, 23, 2, 1, 30, 2, 9, 9});  // the second has six tokens: cut anyway
  const PackedWindows wide =
      qlora::pack_documents(three_documents(), {.seq = 6, .split = SplitChoice::pad, .pad_id = 9});
  CHECK(wide.ids == Ids{1, 10, 11, 2, 9, 9, 1, 20, 21, 22, 23, 2, 1, 30, 2, 9, 9, 9});
  CHECK(wide.counts == qlora::PackingCounts{.documents = 3, .tokens = 13, .labelled = 10, .padding = 5});
}

TEST_CASE("answers: only what the assistant says is a label; plain documents keep theirs") {
  const std::vector<TokenDocument> documents{{{1, 5, 6, 7, 2}, {0, 0, 0, 1, 1}}, {{1, 8, 2}, {}}};
  const PackedWindows out = qlora::pack_documents(documents, {.seq = 8, .labels = LabelChoice::answers});
  CHECK(out.labels == Ids{no, no, no, 7, 2, no, 8, 2});
  CHECK(qlora::pack_documents(documents, {.seq = 8}).labels == Ids{no, 5, 6, 7, 2, no, 8, 2});
}

TEST_CASE("documents without tokens are counted and named") {
  const std::vector<TokenDocument> documents{{}, {{1, 2}, {}}, {}};
  const PackedWindows out = qlora::pack_documents(documents, {.seq = 2});
  CHECK(out.counts.skipped_documents == 2);
  REQUIRE(out.skipped.size() == 2);
  CHECK(out.skipped[0].document == 0);
  CHECK(out.skipped[1].document == 2);
  CHECK(out.skipped[1].reason == "no text after tokenization");
  CHECK(out.documents == Ids{1, 1});
  const PackedWindows none = qlora::pack_documents(std::span<const TokenDocument>{}, {.seq = 4});
  CHECK(none.windows() == 0);
  CHECK(none.counts == qlora::PackingCounts{});
}

TEST_CASE("random documents keep every rule") {
  std::mt19937 random(11);
  for (int round = 0; round < 600; ++round) {
    const auto documents = random_documents(random, true);
    PackingOptions options{.seq = static_cast<int>(2 + random() % 30), .pad_id = 2};
    if (random() % 2 == 0) options.labels = LabelChoice::answers;
    if (random() % 2 == 0) options.split = SplitChoice::pad;
    CAPTURE(round);
    check_rules(documents, options, qlora::pack_documents(documents, options));
  }
}

TEST_CASE("the article's form: one stream, the rest dropped and counted") {
  const std::vector<TokenDocument> documents{{{1, 10, 11}, {}}, {}, {{1, 20, 21, 22}, {}}};
  const PackedWindows out = qlora::pack_as_article(documents, 3);
  CHECK(out.ids == Ids{1, 10, 11, 1, 20, 21});
  CHECK(out.labels == out.ids);
  CHECK(out.documents == Ids(6, 0));
  CHECK(out.counts == qlora::PackingCounts{.documents = 2,
                                           .skipped_documents = 1,
                                           .cut_documents = 0,
                                           .tokens = 6,
                                           .labelled = 4,
                                           .padding = 0,
                                           .dropped_tokens = 1});
  CHECK(qlora::pack_as_article(documents, 4).counts.cut_documents == 0);  // what is dropped stands in no window
  CHECK(qlora::pack_as_article(documents, 2).counts.cut_documents == 2);
  CHECK(qlora::pack_as_article(documents, 100).windows() == 0);
  CHECK(qlora::pack_as_article(documents, 100).counts.dropped_tokens == 7);
  std::mt19937 random(12);
  for (int round = 0; round < 100; ++round) {
    const auto some = random_documents(random, false);
    Ids stream;
    for (const auto& document : some) stream.insert(stream.end(), document.ids.begin(), document.ids.end());
    const auto packed = qlora::pack_as_article(some, 7);
    CHECK(packed.counts.tokens + packed.counts.dropped_tokens == static_cast<std::int64_t>(stream.size()));
    stream.resize(stream.size() / 7 * 7);
    CHECK(packed.ids == stream);
  }
}

TEST_CASE("the article's chunks with LLaMA-2's tokenizer") {
  const char* path = std::getenv("QLORA_LLAMA2_TOKENIZER");
  if (path == nullptr || *path == '\0') {
    MESSAGE("skipped: set QLORA_LLAMA2_TOKENIZER to LLaMA-2's tokenizer.model");
    return;
  }
  const auto tokenizer = qlora::Tokenizer::load(path);
  std::ifstream file(std::string(QLORA_SOURCE_DIR) + "/tests/golden/tokenizer.json");
  const auto chunking = nlohmann::json::parse(file)["chunking"];
  std::vector<TokenDocument> documents;
  for (const auto& text : chunking["docs"])
    documents.push_back(qlora::article_document(tokenizer, text.get<std::string>()));
  Ids expected;
  for (const auto& chunk : chunking["chunks"])
    for (const auto& id : chunk) expected.push_back(id.get<std::int32_t>());
  REQUIRE(!expected.empty());
  CHECK(qlora::pack_as_article(documents, chunking["chunk_length"].get<int>()).ids == expected);
}

TEST_CASE("what cannot be packed is refused") {
  CHECK_THROWS_AS(static_cast<void>(qlora::pack_documents(three_documents(), {.seq = 1})), Error);
  CHECK_THROWS_AS(static_cast<void>(qlora::pack_documents(three_documents(), {.seq = -3})), Error);
  CHECK_THROWS_AS(static_cast<void>(qlora::pack_as_article(three_documents(), 0)), Error);
  const std::vector<TokenDocument> uneven{{{1, 5, 2}, {0, 1}}};
  CHECK_THROWS_AS(static_cast<void>(qlora::pack_documents(uneven, {.seq = 4})), Error);
}

TEST_CASE("windows without a label are taken out and counted") {
  // Chats of 6 tokens asked and 2 answered, of 2 and 1, and one without an answer. Windows of 4: the first has no
  // answer, the second and third have one, the last two none.
  const std::vector<TokenDocument> documents{{{1, 10, 11, 12, 13, 14, 15, 2}, {0, 0, 0, 0, 0, 0, 1, 1}},
                                             {{1, 20, 21}, {0, 0, 1}},
                                             {{1, 30, 31, 32, 33, 34}, {0, 0, 0, 0, 0, 0}}};
  qlora::PackingOptions options{.seq = 4, .labels = LabelChoice::answers, .split = SplitChoice::pad};
  const PackedWindows all = qlora::pack_documents(documents, options);
  REQUIRE(all.windows() == 5);
  const auto before = all.counts;
  options.drop_unlabelled = true;
  const PackedWindows packed = qlora::pack_documents(documents, options);
  CHECK(packed.ids == Ids{13, 14, 15, 2, 1, 20, 21, 1});
  CHECK(packed.labels == Ids{no, no, 15, 2, no, no, 21, no});
  CHECK(packed.documents == Ids{0, 0, 0, 0, 1, 1, 1, 2});
  CHECK(packed.counts.tokens == 8);
  CHECK(packed.counts.dropped_tokens == 9);
  CHECK(packed.counts.tokens + packed.counts.dropped_tokens == before.tokens);
  CHECK(packed.counts.padding == before.padding - 3);
  CHECK(packed.counts.labelled == before.labelled);
  std::int64_t handed_over = 0;
  qlora::WindowPacker packer(options, [&](const qlora::DatasetWindow&) { ++handed_over; });
  for (const TokenDocument& document : documents) packer.add(document);
  packer.finish();
  CHECK(handed_over == 2);
  CHECK(packer.dropped_windows() == 3);
}
