// Windows -> positions, targets, segments; and which windows a step trains on.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/train/batch.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <set>

using namespace qlora;
using Ints = std::vector<std::int32_t>;

namespace {

/// One of a batch's arrays.
Ints copy(const TokenBatch& batch, const std::int32_t* values) { return {values, values + batch.tokens}; }

}  // namespace

TEST_CASE("two windows, three documents, one of them cut by the window") {
  const Ints ids{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21};
  const Ints labels{10, 11, -100, 13, 14, 15, 16, 17, 18, 19, 20, -100};
  const Ints documents{0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2};
  BatchBuilder builder(12);
  const TokenBatch batch = builder.build({6, ids, labels, documents});
  CHECK(copy(batch, batch.ids) == ids);
  CHECK(copy(batch, batch.positions) == Ints{0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 1, 2});
  CHECK(copy(batch, batch.targets) == Ints{11, -1, 13, -1, 15, -1, 17, 18, -1, 20, -1, -1});
  const std::vector<Segment> segments{{0, 4}, {4, 6}, {6, 9}, {9, 12}};
  CHECK(std::equal(batch.segments.begin(), batch.segments.end(), segments.begin(), segments.end()));
  CHECK(Ints(batch.labelled, batch.labelled + batch.labelled_count) == Ints{0, 2, 4, 6, 7, 9});
  CHECK(copy(batch, batch.ends) == Ints{4, 4, 4, 4, 6, 6, 9, 9, 9, 12, 12, 12});
  CHECK(batch.longest == 4);
  CHECK(BatchBuilder::count_labelled({6, ids, labels, documents}) == 6);
}

TEST_CASE("without document numbers each window is one document") {
  const Ints ids{1, 2, 3, 4, 5, 6};
  BatchBuilder builder(6);
  const TokenBatch batch = builder.build({3, ids, ids, {}});
  CHECK(copy(batch, batch.positions) == Ints{0, 1, 2, 0, 1, 2});
  CHECK(copy(batch, batch.targets) == Ints{2, 3, -1, 5, 6, -1});
  CHECK(batch.segments.size() == 2);
}

TEST_CASE("random windows: a micro-batch at a time gives what the whole gives") {
  std::mt19937 random(3);
  constexpr int seq = 17;
  constexpr int windows = 9;
  Ints ids, labels, documents;
  for (int i = 0; i < seq * windows; ++i) {
    ids.push_back(static_cast<std::int32_t>(random() % 50));
    labels.push_back(random() % 5 == 0 ? ignored_label : ids.back());
    documents.push_back(i == 0 ? 0 : documents.back() + (random() % 6 == 0 ? 1 : 0));
  }
  const Windows all{seq, ids, labels, documents};
  BatchBuilder whole(ids.size());
  const TokenBatch expected = whole.build(all);
  BatchBuilder builder(2 * seq);
  std::int64_t labelled = 0;
  for (int first = 0; first < windows; first += 2) {
    const Windows some = all.slice(first, std::min(2, windows - first));
    const TokenBatch batch = builder.build(some);
    const auto at = static_cast<std::size_t>(first * seq);
    CHECK(copy(batch, batch.positions) == copy(batch, expected.positions + at));
    CHECK(copy(batch, batch.targets) == copy(batch, expected.targets + at));
    CHECK(batch.labelled_count == BatchBuilder::count_labelled(some));
    CHECK(batch.segments.front().first == 0);
    CHECK(batch.segments.back().last == batch.tokens);
    for (std::size_t i = 1; i < batch.segments.size(); ++i) {
      CHECK(batch.segments[i].first == batch.segments[i - 1].last);
    }
    labelled += batch.labelled_count;
  }
  CHECK(labelled == expected.labelled_count);
}

TEST_CASE("windows that cannot be meant") {
  const Ints ids{1, 2, 3, 4};
  const Ints negative{1, -2, 3, 4};
  const Ints short_one{1, 2};
  CHECK_NOTHROW(Windows{2, ids, ids, ids}.check(5));
  CHECK_THROWS_AS((Windows{2, ids, ids, {}}.check(4)), Error);         // an id beyond the vocabulary
  CHECK_THROWS_AS((Windows{2, negative, ids, {}}.check(5)), Error);    // a negative id
  CHECK_THROWS_AS((Windows{2, ids, negative, {}}.check(5)), Error);    // a negative label that is not -100
  CHECK_THROWS_AS((Windows{3, ids, ids, {}}.check(5)), Error);         // no whole windows
  CHECK_THROWS_AS((Windows{0, ids, ids, {}}.check(5)), Error);         // no window size
  CHECK_THROWS_AS((Windows{2, {}, {}, {}}.check(5)), Error);           // nothing
  CHECK_THROWS_AS((Windows{2, ids, short_one, {}}.check(5)), Error);   // labels missing
  CHECK_THROWS_AS((Windows{2, ids, ids, short_one}.check(5)), Error);  // document numbers missing
}

TEST_CASE("data order: each epoch visits every window once, whatever was asked before") {
  constexpr int windows = 23;
  DataOrder order(windows, 4, 42);
  REQUIRE(order.steps_per_epoch() == 6);
  std::vector<std::vector<std::uint32_t>> steps;
  for (int step = 0; step < 18; ++step) {
    const auto span = order.step(step);
    CHECK(span.size() == (step % 6 == 5 ? 3U : 4U));
    steps.emplace_back(span.begin(), span.end());
  }
  std::set<std::vector<std::uint32_t>> epochs;
  for (std::size_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<std::uint32_t> visited;
    for (std::size_t i = 0; i < 6; ++i) {
      visited.insert(visited.end(), steps[epoch * 6 + i].begin(), steps[epoch * 6 + i].end());
    }
    epochs.insert(visited);
    std::sort(visited.begin(), visited.end());
    REQUIRE(visited.size() == windows);
    for (std::uint32_t i = 0; i < windows; ++i) CHECK(visited[i] == i);
  }
  CHECK(epochs.size() == 3);
  for (const int step : {17, 0, 7, 6, 12, 3}) {  // a resumed run starts anywhere
    DataOrder fresh(windows, 4, 42);
    const auto span = fresh.step(step);
    const auto again = order.step(step);
    CHECK(std::equal(span.begin(), span.end(), steps[static_cast<std::size_t>(step)].begin()));
    CHECK(std::equal(again.begin(), again.end(), span.begin(), span.end()));
  }
  DataOrder other(windows, 4, 43);
  const auto first = other.step(0);
  CHECK_FALSE(std::equal(first.begin(), first.end(), steps[0].begin()));
  CHECK_THROWS_AS(DataOrder(0, 4, 1), Error);
  CHECK_THROWS_AS(DataOrder(4, 0, 1), Error);
}
