// Metrics from item results: shares, twins, margins and texts by hand, one model against another.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <limits>

#include "qlora/eval/metrics.hpp"

using namespace qlora;
using namespace qlora::eval;

namespace {

constexpr double nothing = std::numeric_limits<double>::quiet_NaN();

/// A reading for each row: right, twin, margin; then the texts' loss, KL and tokens.
struct Table {
  std::vector<Item> items;
  ItemResults results;

  Table& ask(Kind kind, bool chat, const std::string& entity, bool right, bool twin = false, double margin = nothing) {
    Item item;
    item.kind = kind;
    item.chat = chat;
    item.entity = entity;
    item.answer = "a";
    if (kind != Kind::retention) item.twin = "b";
    return add(item, {right, twin}, margin, nothing, nothing, nothing);
  }
  Table& read(const std::string& domain, double loss, double kl, double tokens) {
    Item item;
    item.kind = Kind::text;
    item.domain = domain;
    return add(item, {}, nothing, loss, kl, tokens);
  }
  Table& add(const Item& item, Verdict verdict, double margin, double loss, double kl, double tokens) {
    items.push_back(item);
    results.replies.emplace_back();
    results.verdicts.push_back(verdict);
    results.margin.push_back(margin);
    results.loss.push_back(loss);
    results.kl.push_back(kl);
    results.tokens.push_back(tokens);
    return *this;
  }
};

double value(const Metrics& metrics, std::string_view path) {
  const std::optional<double> found = find_number(metrics, path);
  REQUIRE(found);
  return *found;
}

Table base() {
  return Table()
      .ask(Kind::paraphrase, false, "x", false, true, -1.0)
      .ask(Kind::paraphrase, false, "y", false, false, -2.0)
      .ask(Kind::paraphrase, true, "x", false, false, 0.5)
      .ask(Kind::retention, true, "p", true)
      .ask(Kind::retention, true, "q", true)
      .ask(Kind::retention, true, "r", true)
      .ask(Kind::retention, true, "s", false)
      .read("old", 10.0, nothing, 5.0)
      .read("old", 2.0, nothing, 1.0)
      .read("new", 9.0, nothing, 3.0);
}
Table tuned() {
  return Table()
      .ask(Kind::paraphrase, false, "x", true, false, 2.0)
      .ask(Kind::paraphrase, false, "y", true, false, 1.0)
      .ask(Kind::paraphrase, true, "x", false, true, -0.5)
      .ask(Kind::retention, true, "p", true)
      .ask(Kind::retention, true, "q", true)
      .ask(Kind::retention, true, "r", false)
      .ask(Kind::retention, true, "s", true)
      .read("old", 13.0, 0.75, 5.0)
      .read("old", 2.0, 0.15, 1.0)
      .read("new", 3.0, 6.0, 3.0);
}

}  // namespace

TEST_CASE("shares, twins and margins by hand") {
  const Table before = base();
  const Table after = tuned();
  const Metrics metrics = metrics_of(after.items, after.results, &before.results);
  CHECK(value(metrics, "paraphrase.value") == doctest::Approx(2.0 / 3));
  CHECK(value(metrics, "paraphrase.right.value") == value(metrics, "paraphrase.value"));
  CHECK(value(metrics, "paraphrase.n") == 3);
  CHECK(value(metrics, "paraphrase.twin.value") == doctest::Approx(1.0 / 3));
  CHECK(value(metrics, "paraphrase.net.value") == doctest::Approx(1.0 / 3));
  CHECK(value(metrics, "paraphrase.choice.value") == doctest::Approx(2.0 / 3));
  CHECK(value(metrics, "paraphrase.margin.value") == doctest::Approx(2.5 / 3));
  CHECK(value(metrics, "paraphrase.change.value") == doctest::Approx(2.0 / 3));
  CHECK(value(metrics, "paraphrase_completion.value") == 1.0);
  CHECK(value(metrics, "paraphrase_chat.value") == 0.0);
  CHECK(value(metrics, "paraphrase_chat.twin.value") == 1.0);
  CHECK(value(metrics, "retention.value") == 0.75);        // three of four
  CHECK(value(metrics, "retention.change.value") == 0.0);  // one lost, one won
  CHECK(value(metrics, "retention.kept.value") == doctest::Approx(2.0 / 3));
  CHECK(value(metrics, "retention.kept.lower") <= value(metrics, "retention.kept.value"));
  CHECK(value(metrics, "retention.kept.upper") >= value(metrics, "retention.kept.value"));
  CHECK_FALSE(find_number(metrics, "retention.twin.value"));    // no item has a twin
  CHECK_FALSE(find_number(metrics, "retention_chat.value"));    // asked in one form only
  CHECK_FALSE(find_number(metrics, "retention.margin.value"));  // nothing was weighed
  CHECK_FALSE(find_number(metrics, "reversed.value"));
  CHECK_FALSE(find_number(metrics, "retention"));
  CHECK_FALSE(find_number(metrics, "retention.kept.middle"));
}

TEST_CASE("texts count by tokens, domain by domain") {
  const Table before = base();
  const Table after = tuned();
  const Metrics metrics = metrics_of(after.items, after.results, &before.results);
  CHECK(value(metrics, "text_old.value") == doctest::Approx(15.0 / 6));
  CHECK(value(metrics, "text_old.kl.value") == doctest::Approx(0.9 / 6));
  CHECK(value(metrics, "text_old.change.value") == doctest::Approx(3.0 / 6));
  CHECK(value(metrics, "text_new.value") == doctest::Approx(1.0));
  CHECK(value(metrics, "text_new.kl.value") == doctest::Approx(2.0));
  CHECK(value(metrics, "text_new.change.value") == doctest::Approx(-2.0));
  const Metrics alone = metrics_of(before.items, before.results, nullptr);
  CHECK(value(alone, "text_old.value") == doctest::Approx(2.0));
  CHECK_FALSE(find_number(alone, "text_old.kl.value"));  // nobody to diverge from
  CHECK_FALSE(find_number(alone, "retention.change.value"));
}

TEST_CASE("a model against itself: nothing changed, and it is certain") {
  const Table table = tuned();
  const Metrics metrics = metrics_of(table.items, table.results, &table.results);
  for (const char* path : {"paraphrase.change", "retention.change", "text_old.change"}) {
    CHECK(value(metrics, std::string(path) + ".value") == 0.0);
    CHECK(value(metrics, std::string(path) + ".lower") == 0.0);
    CHECK(value(metrics, std::string(path) + ".upper") == 0.0);
  }
  CHECK(value(metrics, "retention.kept.lower") == 1.0);
}

TEST_CASE("items of one entity are one cluster, those without stand alone") {
  Table table;
  for (int i = 0; i < 20; ++i) table.ask(Kind::retention, true, i < 10 ? "same" : "", true);
  const Metrics metrics = metrics_of(table.items, table.results, nullptr);
  CHECK(metrics.at(0).numbers.at(0).second.clusters == 11);
  CHECK(metrics.at(0).numbers.at(0).second.n == 20);
}

TEST_CASE("what will be measured can be named before: the same paths, beside a reference and alone") {
  Table before = base();
  const Table after = tuned();
  for (Item& item : before.items) item.twin = item.kind == Kind::paraphrase ? "other" : "";
  for (const bool compared : {false, true}) {
    CAPTURE(compared);
    const Metrics measured = compared ? metrics_of(before.items, after.results, &before.results)
                                      : metrics_of(before.items, before.results, nullptr);
    CHECK(paths_of(expected_metrics(before.items, compared)) == paths_of(measured));
    for (const std::string& path : paths_of(measured)) CHECK_MESSAGE(find_number(measured, path), path);
  }
  const std::vector<std::string> paths = paths_of(expected_metrics(before.items, true));
  for (const char* path :
       {"paraphrase.net.lower", "paraphrase_chat.margin.value", "text_old.kl.upper", "retention.n"}) {
    CHECK_MESSAGE(std::find(paths.begin(), paths.end(), path) != paths.end(), path);
  }
}
