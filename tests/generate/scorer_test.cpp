// Likelihoods of continuations and texts against logits of whole passes, and KL divergence against its closed form.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <numeric>
#include <random>

#include "qlora/cpu.hpp"
#include "qlora/generate/scorer.hpp"
#include "qlora/train/batch.hpp"
#include "support/small_model.hpp"

using namespace qlora;
using Ids = std::vector<std::int32_t>;

namespace {

using B = Cpu<float>;
//                                   vocab dim layers heads kv head ffn
constexpr Config net{.shape = /* */ {97, 48, 2, 6, 2, 8, 80}, .lora = {.rank = 4, .targets = Proj::q | Proj::v}};
constexpr std::size_t vocab = 97;

struct Fixture {
  Model<net, B> model{small_model::weights(net.shape, 2), {}, B(2)};
  std::mt19937 random{9};

  Fixture() { small_model::load_random_adapters(model.weights(), model.backend(), net.shape, 4, 16.0F, 6); }
  Ids ids(std::size_t count) {
    Ids made;
    while (made.size() < count) made.push_back(static_cast<std::int32_t>(random() % vocab));
    return made;
  }
  /// Logits (T,V) of the whole network over a text.
  std::vector<float> whole(const Ids& text) {
    Network<code_of(net), B> pass(model.context(), {.batch = 1, .seq = 128, .dropout = false});
    BatchBuilder builder(text.size());
    pass.forward(builder.build({static_cast<int>(text.size()), text, text, {}}));
    std::vector<float> logits(text.size() * vocab);
    pass.logits(logits.data());
    return logits;
  }
  /// log p(text[t] | what stands before it), plainly: the softmax as it is written in books, in double.
  double log_probability(const std::vector<float>& logits, const Ids& text, std::size_t t) {
    double sum = 0.0;
    for (std::size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(logits[(t - 1) * vocab + v]));
    const auto z = static_cast<double>(logits[(t - 1) * vocab + static_cast<std::size_t>(text[t])]);
    return std::log(std::exp(z) / sum);
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "continuations have the likelihood of whole passes") {
  std::vector<Continuations> questions;
  for (const std::size_t prompt : {5U, 1U, 33U, 90U, 12U, 7U, 20U}) {
    Continuations& question = questions.emplace_back();
    question.prompt = ids(prompt);
    for (std::size_t c = 0; c < prompt % 4; ++c) question.candidates.push_back(ids(1 + (prompt + c) % 5));
  }
  for (const DecodeLimits& limits : {DecodeLimits{.sequences = 3, .length = 128, .step_tokens = 24},
                                     DecodeLimits{.sequences = 16, .length = 128, .step_tokens = 512}}) {
    Scorer<net, B> scorer(model, limits);
    const std::vector<std::vector<double>> scores = scorer.score(questions);
    REQUIRE(scores.size() == questions.size());
    for (std::size_t i = 0; i < questions.size(); ++i) {
      const Continuations& question = questions[i];
      REQUIRE(scores[i].size() == question.candidates.size());
      for (std::size_t c = 0; c < question.candidates.size(); ++c) {
        Ids text = question.prompt;
        text.insert(text.end(), question.candidates[c].begin(), question.candidates[c].end());
        const std::vector<float> logits = whole(text);
        double expected = 0.0;
        for (std::size_t t = question.prompt.size(); t < text.size(); ++t) expected += log_probability(logits, text, t);
        CHECK(scores[i][c] == doctest::Approx(expected).epsilon(1e-5));
        CHECK(expected < 0.0);
      }
    }
  }
}

TEST_CASE_FIXTURE(Fixture, "texts are read as whole passes read them") {
  const std::vector<Ids> texts{ids(30), ids(1), ids(100), ids(2), ids(8)};
  for (const DecodeLimits& limits : {DecodeLimits{.sequences = 2, .length = 128, .step_tokens = 16},
                                     DecodeLimits{.sequences = 8, .length = 128, .step_tokens = 256}}) {
    Scorer<net, B> scorer(model, limits);
    std::vector<std::size_t> seen(texts.size(), 0);
    std::vector<std::vector<float>> expected;
    for (const Ids& text : texts) expected.push_back(whole(text));
    scorer.read(texts, [&](std::size_t text, std::size_t position, std::span<const float> logits) {
      CHECK(position == ++seen[text]);  // in order, none left out
      const auto row = std::span(expected[text]).subspan((position - 1) * vocab, vocab);
      CHECK(kl_divergence(row, logits) <= 1e-9);
      for (const std::size_t v : {0U, 50U, 96U}) CHECK(logits[v] == doctest::Approx(row[v]).epsilon(1e-4));
      return true;
    });
    for (std::size_t i = 0; i < texts.size(); ++i) CHECK(seen[i] == texts[i].size() - 1);
  }
}

TEST_CASE_FIXTURE(Fixture, "reading ends when it is told to") {
  Scorer<net, B> scorer(model, {.sequences = 2, .length = 64, .step_tokens = 16});
  int calls = 0;
  scorer.read(std::vector<Ids>{ids(20), ids(20)},
              [&](std::size_t, std::size_t, std::span<const float>) { return ++calls < 5; });
  CHECK(calls == 5);
}

TEST_CASE_FIXTURE(Fixture, "with its adapters off a model is its base: KL is exactly 0") {
  const std::vector<Ids> texts{ids(40), ids(25)};
  const auto logits_of = [&](bool adapters) {
    Scorer<net, B> scorer(model, {.sequences = 2, .length = 64, .step_tokens = 64});
    if (!adapters) scorer.context().use_base();
    std::vector<float> all;
    scorer.read(texts, [&](std::size_t, std::size_t, std::span<const float> logits) {
      all.insert(all.end(), logits.begin(), logits.end());
      return true;
    });
    return all;
  };
  const std::vector<float> base = logits_of(false);
  const std::vector<float> tuned = logits_of(true);
  CHECK(logits_of(false) == base);
  double kl = 0.0;
  for (std::size_t at = 0; at < base.size(); at += vocab) {
    kl += kl_divergence(std::span(base).subspan(at, vocab), std::span(tuned).subspan(at, vocab));
    CHECK(kl_divergence(std::span(base).subspan(at, vocab), std::span(base).subspan(at, vocab)) == 0.0);
  }
  CHECK(kl > 1e-3);
}

TEST_CASE_FIXTURE(Fixture, "the room follows what is asked, and what is stated is stated") {
  Scorer<net, B> scorer(model);
  CHECK(scorer.bytes_used() == 0);
  const std::vector<Ids> texts{ids(30), ids(5)};
  const auto read = [&](Scorer<net, B>& by) {
    std::vector<float> all;
    by.read(texts, [&](std::size_t, std::size_t, std::span<const float> logits) {
      all.insert(all.end(), logits.begin(), logits.end());
      return true;
    });
    return all;
  };
  const std::vector<float> logits = read(scorer);
  const Storage store = storage_of<B>(2);
  const DecodeLimits needed{.sequences = 2, .length = 30, .step_tokens = 35, .all_logits = true};
  CHECK(scorer.bytes_used() == decode_bytes(net, needed, store));
  const Continuations few{ids(4), {ids(3)}};
  (void)scorer.score(std::span(&few, 1));  // less, and so in the same room
  CHECK(scorer.bytes_used() == decode_bytes(net, needed, store));
  const Continuations long_one{ids(200), {ids(600)}};  // a candidate goes in one piece
  (void)scorer.score(std::span(&long_one, 1));
  CHECK(scorer.bytes_used() ==
        decode_bytes(net, {.sequences = 1, .length = 800, .step_tokens = 600, .all_logits = true}, store));
  CHECK(read(scorer) == logits);
  const DecodeLimits stated{.sequences = 2, .length = 64, .step_tokens = 64};
  Scorer<net, B> fixed(model, stated);
  DecodeLimits with_logits = stated;
  with_logits.all_logits = true;
  CHECK(fixed.bytes_used() == decode_bytes(net, with_logits, store));
  CHECK(read(fixed) == logits);
  CHECK_THROWS_AS((void)fixed.score(std::span(&long_one, 1)), Error);
  CHECK(scorer.score({}).empty());
  for (const DecodeLimits& bad :
       {DecodeLimits{.sequences = -1}, DecodeLimits{.length = 0}, DecodeLimits{.sequences = 8, .step_tokens = 7}}) {
    CHECK_THROWS_WITH_AS((Scorer<net, B>(model, bad)), doctest::Contains("room for"), Error);
  }
}

TEST_CASE("KL divergence of two distributions by hand") {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): 1/2 ln 2 + 0 - 1/4 ln 2
  const std::array<float, 3> p{std::log(2.0F), 0.0F, 0.0F};
  const std::array<float, 3> q{5.0F, 5.0F, 5.0F + std::log(2.0F)};
  CHECK(kl_divergence(p, q) == doctest::Approx(0.25 * std::log(2.0)).epsilon(1e-6));
  const std::array<float, 2> far{1000.0F, -1000.0F};
  const std::array<float, 2> even{0.0F, 0.0F};
  CHECK(kl_divergence(far, even) == doctest::Approx(std::log(2.0)));
  CHECK(std::isfinite(kl_divergence(even, far)));
}

TEST_CASE_FIXTURE(Fixture, "what cannot be scored is refused") {
  Scorer<net, B> scorer(model, {.sequences = 2, .length = 32, .step_tokens = 16});
  const auto score = [&](Ids prompt, Ids candidate) {
    const Continuations question{std::move(prompt), {std::move(candidate)}};
    return scorer.score(std::span(&question, 1));
  };
  CHECK_NOTHROW(score({1}, {2}));
  CHECK_THROWS_AS(score({}, {2}), Error);
  CHECK_THROWS_AS(score({1}, {}), Error);
  CHECK_THROWS_AS(score({1}, {97}), Error);
  CHECK_THROWS_AS(score({1}, {-1}), Error);
  CHECK_THROWS_AS(score(ids(33), {1}), Error);
  CHECK_THROWS_AS(score(ids(30), ids(5)), Error);
}
