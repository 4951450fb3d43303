// Several contexts on one model on the GPU: two threads decode side by side, with recorded steps and adapters, while a
// third attaches adapters or trains; each writes what it writes alone, to the bit.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <atomic>
#include <map>
#include <thread>

#include "qlora/cuda.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/generate/scheduler.hpp"
#include "qlora/train/trainer.hpp"
#include "support/small_model.hpp"

using namespace qlora;
using Ids = std::vector<std::int32_t>;

namespace {

// Widths of 256 and more, so that products of few tokens read NF4 codes: a multiple of the step of their kernel.
constexpr Config net{.shape = {1024, 512, 4, 8, 4, 64, 1024}, .lora = {.rank = 16}};
constexpr DecodeLimits limits{.sequences = 2, .length = 300, .step_tokens = 64};
const std::vector<Ids> prompts{{1, 17, 30, 45, 900, 3}, {9, 81, 2}};
constexpr GenerateOptions sampled{.max_new_tokens = 60, .sampling = {.temperature = 1.0F, .seed = 3}, .stop_ids = {}};

std::shared_ptr<AdapterSet<Cuda>> adapters(Model<net, Cuda>& model, std::uint64_t seed) {
  auto set = std::make_shared<AdapterSet<Cuda>>(model.weights().layout());
  small_model::load_random_adapters(*set, model.backend(), net.shape, 16, 32.0F, seed);
  return set;
}

/// Greedy ids of one sequence, then drawn ids of two.
Ids answer(Generator<net, Cuda>& generator) {
  GenerateOptions likeliest = sampled;
  likeliest.sampling = greedy;
  Ids ids = generator.generate(prompts[0], likeliest).ids;
  for (const Generated& reply : generator.generate(prompts, sampled)) {
    ids.insert(ids.end(), reply.ids.begin(), reply.ids.end());
  }
  return ids;
}

/// What the two generators of a model wrote, and a third thread's work beside them until both are done.
struct Pair {
  explicit Pair(const Model<net, Cuda>& model) : first(model, limits), second(model, limits) {
    first.context().use("first");
    second.context().use("second", 0.5F);
  }
  /// Rounds of both threads that differ from `alone`, while `beside` runs again and again.
  template <class Beside>
  int differing(const Ids& first_alone, const Ids& second_alone, const Beside& beside) {
    constexpr int rounds = 2;
    std::atomic<int> different{0};
    std::atomic<int> running{2};
    const auto work = [&](Generator<net, Cuda>& generator, const Ids& alone) {
      for (int round = 0; round < rounds; ++round) {
        try {
          if (answer(generator) != alone) ++different;
        } catch (const Error& error) {
          MESSAGE(std::string(error.what()));
          ++different;
        }
      }
      --running;
    };
    std::thread other_thread([&] { work(first, first_alone); });
    std::thread two([&] { work(second, second_alone); });
    while (running > 0) beside();
    other_thread.join();
    two.join();
    return different;
  }
  Generator<net, Cuda> first;
  Generator<net, Cuda> second;
};

}  // namespace

TEST_CASE("two threads decode with adapters while a third attaches others") {
  Model<net, Cuda> model(small_model::weights(net.shape, 2), {}, Cuda());
  model.attach("first", adapters(model, 5));
  model.attach("second", adapters(model, 6));
  Pair pair(model);
  const Ids first = answer(pair.first);
  const Ids second = answer(pair.second);
  CHECK(first.size() == 180);
  CHECK(first != second);
  int attached = 0;
  CHECK(pair.differing(first, second, [&] {
    model.attach("third", adapters(model, 7));
    model.detach("third");
    ++attached;
  }) == 0);
  CHECK(attached > 0);
}

TEST_CASE("two threads decode with adapters while a trainer steps") {
  const TrainOptions options{.lr = 1e-3F, .total_steps = 1000, .batch = 1, .seq = 64};
  const small_model::Data data(2, options.seq, net.shape.vocab, 1, 50);
  Trainer<net, Cuda> trainer(small_model::weights(net.shape, 2), options, Cuda());
  Model<net, Cuda>& model = trainer.model();
  model.attach("first", adapters(model, 5));
  model.attach("second", adapters(model, 6));
  Pair pair(model);
  const Ids first = answer(pair.first);
  const Ids second = answer(pair.second);
  std::vector<double> losses;
  CHECK(pair.differing(first, second, [&] { losses.push_back(trainer.step(data.all()).loss); }) == 0);
  REQUIRE(losses.size() > 0);

  Trainer<net, Cuda> alone(small_model::weights(net.shape, 2), options, Cuda());
  int different = 0;
  for (const double loss : losses) different += alone.step(data.all()).loss == loss ? 0 : 1;
  CHECK(different == 0);
}

/// The replies of variants that share a scheduler of two slots, with log-probabilities.
std::vector<std::vector<TokenLogprob>> replies_of(Model<net, Cuda>& model, const std::vector<Variant>& variants) {
  Scheduler<code_of(net), Cuda> batch(model.make_context(), limits);
  std::map<Ticket, std::size_t> places;
  for (const Variant& variant : variants) {
    const Ticket ticket = batch.submit({.prompt = prompts[0],
                                        .variant = variant,
                                        .max_new_tokens = 60,
                                        .sampling = {.temperature = 1.0F, .seed = 3},
                                        .logprobs = 0});
    places.emplace(ticket, places.size());
  }
  std::vector<std::vector<TokenLogprob>> replies(variants.size());
  while (batch.step([&](const Progressed& news) {
    for (const DrawnToken& token : news.tokens) replies[places.at(news.ticket)].push_back(token.token);
  })) {
  }
  return replies;
}

// Products of another number of rows round otherwise: a reply beside others is the reply alone until an id is drawn
// that this decides, and its probabilities are near.
TEST_CASE("a scheduler's variants reply beside each other as each does alone") {
  Model<net, Cuda> model(small_model::weights(net.shape, 2), {}, Cuda());
  model.attach("first", adapters(model, 5));
  model.attach("second", adapters(model, 6));
  const std::vector<Variant> variants{{}, {"first"}, {"second", 0.5F}};
  const auto together = replies_of(model, variants);
  const auto again = replies_of(model, variants);
  for (std::size_t i = 0; i < variants.size(); ++i) {
    const auto alone = replies_of(model, {variants[i]})[0];
    REQUIRE(together[i].size() == 60);
    REQUIRE(alone.size() == 60);
    int different = 0;
    for (std::size_t t = 0; t < 60; ++t) {
      different += together[i][t].id != again[i][t].id || together[i][t].logprob != again[i][t].logprob ? 1 : 0;
    }
    CHECK(different == 0);
    float furthest = 0.0F;
    for (std::size_t t = 0; t < 60 && together[i][t].id == alone[t].id; ++t) {
      furthest = std::max(furthest, std::abs(together[i][t].logprob - alone[t].logprob));
    }
    CHECK(together[i][0].id == alone[0].id);
    CHECK(furthest < 0.1F);
  }
  CHECK(together[0][0].logprob != together[1][0].logprob);
}

// One order of sums: whatever runs beside a request, and whatever a slot has kept of prompts before it, its ids and
// their probabilities are those of the request alone.
TEST_CASE("in one order a scheduler's replies have the bits of each alone") {
  Model<net, Cuda> model(small_model::weights(net.shape, 2), {}, Cuda());
  model.attach("first", adapters(model, 5));
  model.attach("second", adapters(model, 6));
  std::vector<Request> requests;
  for (std::size_t i = 0; i < 40; ++i) {
    Request request{.max_new_tokens = 10 + static_cast<int>(i % 7) * 5, .sampling = greedy, .logprobs = 0};
    request.variant = std::array<Variant, 3>{Variant{}, {"first"}, {"second", 0.5F}}[i % 3];
    for (std::size_t t = 0; t < 1 + i * 13 % 90; ++t) {
      request.prompt.push_back(static_cast<std::int32_t>((t * 31 + (t < 20 ? 0 : i) * 7 + 3) % 1024));
    }
    if (i % 2 == 1) request.sampling = {.temperature = 1.0F, .top_p = 0.9F, .seed = i};
    requests.push_back(std::move(request));
  }
  const auto replies = [&](int slots, std::size_t at_once) {
    Scheduler<code_of(net), Cuda> batch(model.make_context(),
                                        {.sequences = slots, .length = 200, .step_tokens = 64, .one_order = true});
    std::map<Ticket, std::vector<std::pair<std::int32_t, float>>> made;
    std::vector<Ticket> tickets;
    const auto note = [&](const Progressed& news) {
      for (const DrawnToken& token : news.tokens) made[news.ticket].emplace_back(token.token.id, token.token.logprob);
    };
    for (std::size_t i = 0; i < requests.size(); ++i) {
      tickets.push_back(batch.submit(requests[i]));
      if (i % at_once == at_once - 1) {
        for (int step = 0; step < 3; ++step) (void)batch.step(note);
      }
      if (at_once != 1) continue;
      while (batch.step(note)) {
      }
    }
    while (batch.step(note)) {
    }
    std::vector<std::vector<std::pair<std::int32_t, float>>> all;
    for (const Ticket ticket : tickets) all.push_back(made[ticket]);
    return all;
  };
  const auto alone = replies(1, 1);
  for (const auto& [slots, at_once] : {std::pair{3, 5U}, std::pair{40, 1000U}, std::pair{12, 3U}}) {
    CAPTURE(slots);
    const auto beside = replies(slots, at_once);
    int different = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      CHECK(beside[i].size() == static_cast<std::size_t>(requests[i].max_new_tokens));
      different += beside[i] == alone[i] ? 0 : 1;
    }
    CHECK(different == 0);
  }
}
