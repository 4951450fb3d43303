// memory_test.cpp — bytes that are allocated at once while long texts are encoded and manifests of many sources are
// written and read. Needs glibc, whose allocator stays reachable under other names when a program defines malloc.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "qlora/text/dataset.hpp"
#include "qlora/text/tokenizer.hpp"
#include "qlora/text/tokenizer_json.hpp"
#include "support/scratch.hpp"

#ifdef __GLIBC__
#include <malloc.h>

namespace {

std::atomic<long> live{0};
std::atomic<long> most{0};

void* taken(void* memory) {
  if (memory == nullptr) return memory;
  const long now = live += static_cast<long>(::malloc_usable_size(memory));
  long before = most;
  while (now > before && !most.compare_exchange_weak(before, now)) {
  }
  return memory;
}
void returned(void* memory) {
  if (memory != nullptr) live -= static_cast<long>(::malloc_usable_size(memory));
}

}  // namespace

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* memory, std::size_t size);
void __libc_free(void* memory);

void* malloc(std::size_t size) noexcept { return taken(__libc_malloc(size)); }
void* calloc(std::size_t count, std::size_t size) noexcept { return taken(__libc_calloc(count, size)); }
void* realloc(void* memory, std::size_t size) noexcept {
  returned(memory);
  return taken(__libc_realloc(memory, size));
}
void free(void* memory) noexcept {
  returned(memory);
  __libc_free(memory);
}
}

namespace {

/// Most bytes that `work` holds at once.
template <class Work>
long peak(const Work& work) {
  const long before = live;
  most = before;
  work();
  return most - before;
}

}  // namespace

TEST_CASE("the counter sees what is allocated") {
  CHECK(peak([] { const std::vector<char> room(1'000'000); }) >= 1'000'000);
  CHECK(peak([] {}) == 0);
}

TEST_CASE("encoding takes at most ten bytes for each byte of a text, its own among them") {
  const auto check = [](const qlora::TokenizerModel& tokenizer) {
    std::string mixed;
    for (int i = 0; i < 3'000'000; ++i) mixed += i * i % 7 < 3 ? 'a' : 'b';
    for (const std::string& text : {std::string(3'000'000, 'a'), std::string(3'000'000, ' '), mixed}) {
      CAPTURE(text.substr(0, 20));
      CHECK(peak([&] { static_cast<void>(tokenizer.encode(text)); }) < 9 * 3'000'000);
    }
  };
  const std::string data = std::string(QLORA_SOURCE_DIR) + "/tests/data/";
  std::ifstream file(data + "small_tokenizer.model", std::ios::binary);
  check(qlora::SentencePieceModel(std::string(std::istreambuf_iterator<char>(file), {})));
  std::ifstream kinds(data + "tokenizers.json");
  const qlora::Json json = qlora::Json::parse(kinds);
  check(qlora::JsonTokenizer(json.at("llama2_prepend").at("file").dump(), "llama2_prepend", ""));
}

TEST_CASE("a manifest takes no memory for its sources, when it is written and when it is read") {
  const test::Scratch dir;
  constexpr int sources = 30'000;
  const std::string hash(64, 'a');
  const auto source = [&](int i) {
    return qlora::DatasetSource{"https://example.org/articles/" + std::to_string(i), "A title \"" + std::to_string(i),
                                hash, i == 0 ? 4 : 0};
  };
  const std::vector<std::int32_t> ids{1, 10, 11, 2}, labels{-100, 10, 11, 2}, documents{0, 0, 0, 0};
  const qlora::PackingCounts counts{.documents = 1, .skipped_documents = sources - 1, .tokens = 4, .labelled = 3};
  std::vector<qlora::SkippedDocument> skipped;
  for (int i = 1; i < sources; i += 7) skipped.push_back({i, "no text"});
  const long writing = peak([&] {
    qlora::DatasetWriter writer(dir / "data", 4, 30);
    writer.add({ids, labels, documents});
    for (int i = 0; i < sources; ++i) writer.add_source(source(i));
    writer.finish({.vocab_size = 30, .tokenizer_sha256 = hash, .sources = {}}, counts, skipped);
  });
  const auto bytes = static_cast<long>(std::filesystem::file_size(dir / "data" / "manifest.json"));
  REQUIRE(bytes > 4'000'000);
  CHECK(writing < bytes);  // some MB for a piece of the file, not bytes for each source
  const long reading = peak([&] {
    const auto data = qlora::TokenDataset::open(dir / "data");
    REQUIRE(data.sources() == sources);
    for (const int i : {0, 1, 17, sources - 1}) CHECK(data.source(static_cast<std::size_t>(i)) == source(i));
  });
  CHECK(reading < bytes / 4);
}

TEST_CASE("a data set of many shards is opened with no more room than its windows take") {
  const test::Scratch dir;
  constexpr int seq = 4096, windows = 3 * 128;  // three shards of 2^19 tokens
  const std::vector<std::int32_t> tokens(seq, 10), documents(seq, 0);
  {
    qlora::DatasetWriter writer(dir / "data", seq, 30);
    for (int i = 0; i < windows; ++i) writer.add({tokens, tokens, documents});
    constexpr std::int64_t all = std::int64_t{seq} * windows;
    writer.add_source({"a", "", std::string(64, 'a'), all});
    writer.finish({.vocab_size = 30, .tokenizer_sha256 = std::string(64, 'a'), .sources = {}},
                  {.documents = 1, .tokens = all, .labelled = all}, {});
  }
  REQUIRE(std::filesystem::exists(dir / "data" / "tokens-00002.safetensors"));
  const long opening = peak([&] { (void)qlora::TokenDataset::open(dir / "data"); });
  const long bytes = 3L * 4 * seq * windows;
  CHECK(opening >= bytes);
  CHECK(opening < bytes + bytes / 8);
  // One that keeps a few verifies all, a shard at a time.
  CHECK(peak([&] {
          const auto first = qlora::TokenDataset::open(dir / "data", 2);
          CHECK(first.size() == windows);
          CHECK(first.window(1).ids[seq - 1] == 10);
          CHECK_THROWS_AS((void)first.window(2), qlora::Error);
        }) < bytes / 2);
}

#else

TEST_CASE("skipped: allocations are counted through glibc") {}

#endif
