// Generation: cached decoding against the whole network, and answers that depend on the prompt alone and not on what is
// generated beside it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>

#include "qlora/cpu.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/train/batch.hpp"
#include "support/small_model.hpp"

using namespace qlora;
using Ids = std::vector<std::int32_t>;

namespace {

using B = Cpu<float>;
//                                   vocab dim layers heads kv head ffn
constexpr Config net{.shape = /* */ {97, 48, 2, 6, 2, 8, 80}, .lora = {.rank = 4, .targets = Proj::q | Proj::v}};
constexpr int vocab = net.shape.vocab;

struct Fixture {
  Model<net, B> model{small_model::weights(net.shape, 2), {}, B(2)};
  std::vector<Ids> prompts;

  Fixture() {
    small_model::load_random_adapters(model.weights(), model.backend(), net.shape, 4, 16.0F, 6);
    std::mt19937 random(9);
    for (const int length : {11, 3, 40, 1, 17, 70, 5}) {
      Ids& prompt = prompts.emplace_back();
      for (int i = 0; i < length; ++i) prompt.push_back(static_cast<std::int32_t>(random() % vocab));
    }
  }
  std::vector<Ids> run(const DecodeLimits& limits, const GenerateOptions& options, std::span<const Ids> some) {
    Generator<net, B> generator(model, limits);
    std::vector<Ids> answers;
    for (Generated& reply : generator.generate(some, options)) answers.push_back(std::move(reply.ids));
    return answers;
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "cached decoding in pieces gives the logits of the whole network") {
  Network<code_of(net), B> pass(model.context(), {.batch = 1, .seq = 80, .dropout = false});
  Decoder<code_of(net), B> decoder(model.context(), {.sequences = 3, .length = 80, .step_tokens = 90});
  const Ids& ids = prompts[5];  // 70 tokens: more than one tile of queries
  BatchBuilder builder(ids.size());
  pass.forward(builder.build({static_cast<int>(ids.size()), ids, ids, {}}));
  std::vector<float> whole(ids.size() * vocab);
  pass.logits(whole.data());
  const std::span<const std::int32_t> all(ids);
  std::size_t done = 0;
  for (const std::size_t piece : {1U, 2U, 30U, 1U, 36U}) {
    const Decoder<code_of(net), B>::Addition additions[] = {{2, all.subspan(done, piece)}, {0, prompts[1]}};
    decoder.clear(0);
    const std::span<const float> logits = decoder.extend(additions);
    done += piece;
    REQUIRE(decoder.length(2) == static_cast<int>(done));
    double worst = 0.0;
    for (std::size_t v = 0; v < vocab; ++v) {
      worst = std::max(worst, static_cast<double>(std::abs(logits[v] - whole[(done - 1) * vocab + v])));
    }
    CHECK(worst < 1e-5);
  }
  CHECK(done == ids.size());
}

TEST_CASE_FIXTURE(Fixture, "a prompt's tokens do not depend on its company") {
  const GenerateOptions options{
      .max_new_tokens = 12, .sampling = {.temperature = 1.0F, .top_p = 1.0F, .seed = 5}, .stop_ids = {}};
  const std::vector<Ids> together = run({.sequences = 7, .length = 100, .step_tokens = 200}, options, prompts);
  CHECK(run({.sequences = 1, .length = 100, .step_tokens = 100}, options, prompts) == together);
  CHECK(run({.sequences = 3, .length = 100, .step_tokens = 5}, options, prompts) == together);
  CHECK(run({.sequences = 2, .length = 100, .step_tokens = 64}, options, std::span(prompts).first(1))[0] ==
        together[0]);
  for (const Ids& ids : together) CHECK(ids.size() == 12);
  GenerateOptions other = options;
  other.sampling.seed = 6;
  CHECK(run({.sequences = 7, .length = 100, .step_tokens = 200}, other, prompts) != together);
}

TEST_CASE_FIXTURE(Fixture, "the same prompt twice draws twice") {
  const std::vector<Ids> twins{prompts[0], prompts[0]};
  GenerateOptions options{.max_new_tokens = 12, .sampling = {.temperature = 1.0F, .top_p = 1.0F}, .stop_ids = {}};
  const std::vector<Ids> drawn = run({.sequences = 2, .length = 40, .step_tokens = 40}, options, twins);
  CHECK(drawn[0] != drawn[1]);
  options.sampling = greedy;
  const std::vector<Ids> best = run({.sequences = 2, .length = 40, .step_tokens = 40}, options, twins);
  CHECK(best[0] == best[1]);
}

TEST_CASE_FIXTURE(Fixture, "ids that no tokenizer has are not drawn, and the likeliest are those of the logits") {
  const DecodeLimits limits{.sequences = 7, .length = 120, .step_tokens = 120};
  GenerateOptions options{.max_new_tokens = 40, .sampling = greedy, .stop_ids = {}};
  const auto most = [&] {
    std::int32_t id = 0;
    for (const Ids& ids : run(limits, options, prompts)) id = std::max(id, *std::max_element(ids.begin(), ids.end()));
    return id;
  };
  for (const float temperature : {0.0F, 1.0F}) {
    options.sampling.temperature = temperature;
    options.among = 0;
    CHECK(most() >= 50);
    options.among = 50;
    CHECK(most() < 50);
  }
  Decoder<code_of(net), B> logits(model.context(), limits);
  Decoder<code_of(net), B> picks(model.context(), limits);
  Ids next = prompts[0];
  for (int i = 0; i < 5; ++i) {
    const Decoder<code_of(net), B>::Addition addition[] = {{3, next}};
    const std::span<const float> all = logits.extend(addition);
    const std::int32_t expected = argmax(all.first(60));
    CHECK(picks.extend_greedy(addition, 60)[0] == expected);
    next = {expected};
  }
  const Decoder<code_of(net), B>::Addition addition[] = {{3, next}};
  CHECK_THROWS_AS((void)picks.extend_greedy(addition, vocab + 1), Error);
}

TEST_CASE_FIXTURE(Fixture, "where a continuation ends") {
  const DecodeLimits limits{.sequences = 2, .length = 30, .step_tokens = 30};
  Generator<net, B> generator(model, limits);
  GenerateOptions options{.max_new_tokens = 10, .sampling = greedy, .stop_ids = {}};
  const Generated whole = generator.generate(prompts[0], options);
  REQUIRE(whole.ids.size() == 10);
  CHECK_FALSE(whole.stopped);

  options.stop_ids = {whole.ids[4]};
  const auto first =
      static_cast<std::size_t>(std::find(whole.ids.begin(), whole.ids.end(), whole.ids[4]) - whole.ids.begin());
  const Generated stopped = generator.generate(prompts[0], options);
  CHECK(stopped.stopped);
  CHECK(stopped.ids == Ids(whole.ids.begin(), whole.ids.begin() + static_cast<std::ptrdiff_t>(first)));

  options.stop_ids = {};
  options.max_new_tokens = 0;
  CHECK(generator.generate(prompts[0], options).ids.empty());
  options.max_new_tokens = -1;
  CHECK_THROWS_WITH_AS(generator.generate(prompts[0], options), doctest::Contains("max_new_tokens is -1"), Error);

  options.max_new_tokens = 100;  // the context of 30 has room for 19 after 11; the last logits still give one
  CHECK(generator.generate(prompts[0], options).ids.size() == 20);

  Ids heard;
  const Generated cut = generator.generate(prompts[0], options, [&](int prompt, std::int32_t id) {
    CHECK(prompt == 0);
    heard.push_back(id);
    return heard.size() < 3;
  });
  CHECK(cut.ids == heard);
  CHECK(heard == Ids(whole.ids.begin(), whole.ids.begin() + 3));
}

TEST_CASE_FIXTURE(Fixture, "the cache lives between turns and forgets what does not hold any more") {
  const GenerateOptions options{.max_new_tokens = 6, .stop_ids = {}};
  const auto fresh = [&](const Ids& prompt, bool base) {
    Generator<net, B> generator(model);
    if (base) generator.context().use_base();
    return generator.generate(prompt, options).ids;
  };
  Generator<net, B> generator(model);
  Ids talk = prompts[2];
  const auto turn = [&](const Ids& prompt, int cached, bool base = false) {
    const Ids answer = generator.go_on(prompt, options).ids;
    CHECK(generator.cached() == cached);
    CHECK(answer == fresh(prompt, base));
    return answer;
  };
  for (int t = 0; t < 3; ++t) {
    // The newest token of an answer was not computed with.
    const Ids answer = turn(talk, t == 0 ? 0 : static_cast<int>(talk.size()) - 4);
    talk.insert(talk.end(), answer.begin(), answer.end());
    talk.insert(talk.end(), {3, 1, 4});
  }
  turn(talk, 0);                                  // 67 tokens and 6 more need more than 64: the room is made anew
  turn(talk, static_cast<int>(talk.size()) - 1);  // the last token gives the logits
  Ids other = talk;
  other[20] = (other[20] + 1) % vocab;
  turn(other, 20);
  turn({other.begin(), other.begin() + 10}, 9);
  generator.context().use_base();
  turn(talk, 0, true);
  generator.context().use_own();
  turn(talk, 0);
  small_model::load_random_adapters(model.weights(), model.backend(), net.shape, 4, 16.0F, 7);
  { const Writing written(model.weights().own_gate()); }
  turn(talk, 0);
  turn(talk, static_cast<int>(talk.size()) - 1);
  (void)generator.generate(prompts[0], options);
  turn(talk, 0);
  CHECK_THROWS_AS(generator.go_on(Ids{1, vocab}), Error);
  turn(talk, 0);
  CHECK_THROWS_AS(generator.go_on(Ids{}), Error);
  Generator<net, B> stated(model, {.sequences = 2, .length = 60, .step_tokens = 16});
  CHECK(stated.go_on(prompts[2], options).ids == fresh(prompts[2], false));
  CHECK(stated.go_on(prompts[2], options).ids == fresh(prompts[2], false));
  CHECK(stated.cached() == 39);
}

TEST_CASE_FIXTURE(Fixture, "prompts that cannot be continued") {
  Generator<net, B> generator(model, {.sequences = 1, .length = 30, .step_tokens = 30});
  CHECK_THROWS_AS(generator.generate(Ids{}), Error);
  CHECK_THROWS_AS(generator.generate(prompts[2]), Error);  // 40 tokens
  CHECK_THROWS_AS(generator.generate(Ids{1, vocab}), Error);
  CHECK_THROWS_AS(generator.generate(Ids{-1}), Error);
  CHECK(generator.generate(prompts[0], {.max_new_tokens = 2, .stop_ids = {}}).ids.size() == 2);  // and it goes on
}
