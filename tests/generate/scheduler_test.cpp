// Many requests side by side: replies of a generator that answers them one by one, log-probabilities of whole passes,
// and slots that are found again.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <map>
#include <random>

#include "qlora/cpu.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/generate/scheduler.hpp"
#include "qlora/train/batch.hpp"
#include "support/small_model.hpp"

using namespace qlora;
using Ids = std::vector<std::int32_t>;

namespace {

using B = Cpu<float>;
//                                   vocab dim layers heads kv head ffn
constexpr Config net{.shape = /* */ {97, 48, 2, 6, 2, 8, 80}, .lora = {.rank = 4, .targets = Proj::q | Proj::v}};
constexpr std::size_t vocab = 97;
using Batch = Scheduler<code_of(net), B>;

struct Reply {
  Ids ids{};
  std::vector<DrawnToken> tokens{};
  std::vector<DrawnToken> prompt{};
  Finish finish = Finish::running;
  int cached = 0;
};

struct Fixture {
  Model<net, B> model{small_model::weights(net.shape, 2), {}, B(2)};
  std::mt19937 random{9};

  Fixture() {
    model.attach("first", adapters(6));
    model.attach("second", adapters(7));
  }
  std::shared_ptr<AdapterSet<B>> adapters(std::uint64_t seed) {
    auto set = std::make_shared<AdapterSet<B>>(model.weights().layout());
    small_model::load_random_adapters(*set, model.backend(), net.shape, 4, 16.0F, seed);
    return set;
  }
  Ids ids(std::size_t count) {
    Ids made;
    while (made.size() < count) made.push_back(static_cast<std::int32_t>(random() % vocab));
    return made;
  }
  /// What one generator makes of a request by itself.
  Ids alone(const Request& request) {
    Generator<net, B> generator(model, {.sequences = 1, .length = 120, .step_tokens = 120});
    if (request.variant.adapter.empty()) {
      generator.context().use_base();
    } else {
      generator.context().use(request.variant.adapter, request.variant.scale);
    }
    return generator
        .generate(request.prompt, {.max_new_tokens = request.max_new_tokens,
                                   .sampling = request.sampling,
                                   .stop_ids = request.stop_ids,
                                   .among = request.among})
        .ids;
  }
  /// log of the softmax as it is written in books, at every token of a text, of the whole network.
  std::vector<std::vector<double>> log_probabilities(const Ids& text, const Variant& variant = {}) {
    if (!variant.adapter.empty()) model.context().use(variant.adapter, variant.scale);
    Network<code_of(net), B> pass(model.context(), {.batch = 1, .seq = 128, .dropout = false});
    BatchBuilder builder(text.size());
    pass.forward(builder.build({static_cast<int>(text.size()), text, text, {}}));
    std::vector<float> logits(text.size() * vocab);
    pass.logits(logits.data());
    model.context().use_base();
    std::vector<std::vector<double>> rows(text.size(), std::vector<double>(vocab));
    for (std::size_t t = 0; t < text.size(); ++t) {
      double sum = 0.0;
      for (std::size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(logits[t * vocab + v]));
      for (std::size_t v = 0; v < vocab; ++v) {
        rows[t][v] = std::log(std::exp(static_cast<double>(logits[t * vocab + v])) / sum);
      }
    }
    return rows;
  }
};

/// Adds what a step says to the replies.
auto into(std::map<Ticket, Reply>& replies) {
  return [&replies](const Progressed& news) {
    Reply& reply = replies[news.ticket];
    REQUIRE(reply.finish == Finish::running);
    for (const DrawnToken& token : news.tokens) {
      reply.ids.push_back(token.token.id);
      reply.tokens.push_back(token);
    }
    reply.prompt.insert(reply.prompt.end(), news.prompt.begin(), news.prompt.end());
    reply.finish = news.finish;
    reply.cached = news.prompt_cached;
  };
}

Request request_of(Ids prompt, Variant variant = {}, int max_new_tokens = 12) {
  return {
      .prompt = std::move(prompt), .variant = std::move(variant), .max_new_tokens = max_new_tokens, .sampling = greedy};
}

}  // namespace

TEST_CASE_FIXTURE(Fixture, "variants side by side reply as each does alone, whenever they come") {
  std::vector<Request> requests;
  for (const std::size_t length : {11U, 3U, 40U, 1U, 17U, 70U, 5U, 30U, 9U, 2U}) {
    const std::size_t i = requests.size();
    Request request = request_of(ids(length), {}, 3 + static_cast<int>(i));
    request.variant.adapter = i % 3 == 0 ? "" : i % 3 == 1 ? "first" : "second";
    if (i % 2 == 0) request.variant.scale = 0.5F;
    if (i >= 4) request.sampling = {.temperature = 1.0F, .top_p = 0.95F, .min_p = 0.001F, .seed = i};
    if (i == 7) request.among = 40;
    requests.push_back(std::move(request));
  }
  for (const DecodeLimits& limits : {DecodeLimits{.sequences = 3, .length = 120, .step_tokens = 7},
                                     DecodeLimits{.sequences = 10, .length = 120, .step_tokens = 300}}) {
    Batch batch(model.make_context(), limits);
    std::map<Ticket, Reply> replies;
    std::vector<Ticket> tickets;
    for (const Request& request : requests) {
      tickets.push_back(batch.submit(request));
      (void)batch.step(into(replies));  // others run already
    }
    while (batch.step(into(replies))) {
      CHECK(batch.load().running <= limits.sequences);
    }
    CHECK(batch.load().running + batch.load().waiting == 0);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      CAPTURE(i);
      const Reply& reply = replies[tickets[i]];
      CHECK(reply.ids == alone(requests[i]));
      CHECK(reply.finish == Finish::length);
      CHECK(static_cast<int>(reply.ids.size()) == requests[i].max_new_tokens);
    }
  }
}

TEST_CASE_FIXTURE(Fixture, "a cancelled request makes room and leaves the others alone") {
  const std::vector<Request> requests{request_of(ids(20), {"first"}, 20), request_of(ids(8), {"second"}, 20),
                                      request_of(ids(5), {}, 20)};
  Batch batch(model.make_context(), {.sequences = 2, .length = 60, .step_tokens = 16});
  std::map<Ticket, Reply> replies;
  std::vector<Ticket> tickets;
  for (const Request& request : requests) tickets.push_back(batch.submit(request));
  for (int i = 0; i < 4; ++i) (void)batch.step(into(replies));
  CHECK(batch.load().waiting == 1);
  batch.cancel(tickets[0]);
  CHECK(batch.load().running == 1);
  batch.cancel(tickets[0]);
  batch.cancel(12345);
  while (batch.step(into(replies))) {
  }
  CHECK(replies[tickets[0]].finish == Finish::running);
  CHECK(replies[tickets[1]].ids == alone(requests[1]));
  CHECK(replies[tickets[2]].ids == alone(requests[2]));
  const Ticket waits = batch.submit(requests[2]);
  batch.cancel(waits);
  CHECK_FALSE(batch.step(into(replies)));
}

TEST_CASE_FIXTURE(Fixture, "a prompt that begins as one before it is read from where they part") {
  Batch batch(model.make_context(), {.sequences = 2, .length = 100, .step_tokens = 32, .all_logits = true});
  std::map<Ticket, Reply> replies;
  const auto reply_to = [&](const Request& request) {
    const Ticket ticket = batch.submit(request);
    while (batch.step(into(replies))) {
    }
    return replies[ticket];
  };
  const Request first = request_of(ids(30), {"first"}, 10);
  const Reply opening = reply_to(first);
  CHECK(opening.cached == 0);
  Request next = first;
  next.prompt.insert(next.prompt.end(), opening.ids.begin(), opening.ids.end());
  const Ids question = ids(6);
  next.prompt.insert(next.prompt.end(), question.begin(), question.end());
  Reply reply = reply_to(next);
  CHECK(reply.cached == 39);  // 30 and 10, of which the newest was never read
  CHECK(reply.ids == alone(next));
  // Another variant has other keys and values: nothing is found, and what is held stays.
  next.variant.adapter = "second";
  reply = reply_to(next);
  CHECK(reply.cached == 0);
  CHECK(reply.ids == alone(next));
  next.variant.adapter = "first";
  reply = reply_to(next);
  CHECK(reply.cached == static_cast<int>(next.prompt.size()) - 1);
  CHECK(reply.ids == alone(next));
  // An adapter of the same name that is another one.
  model.detach("first");
  model.attach("first", adapters(8));
  reply = reply_to(next);
  CHECK(reply.cached == 0);
  CHECK(reply.ids == alone(next));
}

TEST_CASE_FIXTURE(Fixture, "in one order replies are complete, and only what was read as a prompt is taken over") {
  const DecodeLimits limits{.sequences = 3, .length = 100, .step_tokens = 7, .all_logits = true, .one_order = true};
  Batch batch(model.make_context(), limits);
  std::map<Ticket, Reply> replies;
  std::vector<Request> requests;
  std::vector<Ticket> tickets;
  for (const std::size_t length : {30U, 1U, 8U, 2U, 15U, 7U, 14U, 3U}) {  // pieces of 7, 8 leaves one token
    requests.push_back(request_of(ids(length), {length % 2 == 0 ? "first" : ""}, 5));
    requests.back().prompt_logprobs = length == 15;
    tickets.push_back(batch.submit(requests.back()));
  }
  while (batch.step(into(replies))) {
  }
  for (std::size_t i = 0; i < requests.size(); ++i) CHECK(replies[tickets[i]].ids == alone(requests[i]));
  Request next = request_of(ids(20), {"second"}, 10);
  const auto reply_to = [&](const Request& request) {
    const Ticket ticket = batch.submit(request);
    while (batch.step(into(replies))) {
    }
    return replies[ticket];
  };
  const Reply opening = reply_to(next);
  const Ids first = next.prompt;
  next.prompt.insert(next.prompt.end(), opening.ids.begin(), opening.ids.end());
  next.prompt.push_back(5);
  Reply reply = reply_to(next);
  CHECK(reply.cached == 20);  // the reply is read again
  CHECK(reply.ids == alone(next));
  next.prompt = first;
  reply = reply_to(next);
  CHECK(reply.cached == 18);  // two tokens are left to read
  CHECK(reply.ids == opening.ids);
  CHECK_THROWS_WITH_AS(Batch(model.make_context(), {.sequences = 1, .step_tokens = 2, .one_order = true}),
                       doctest::Contains("3 tokens"), Error);
}

TEST_CASE_FIXTURE(Fixture, "log-probabilities are those of whole passes") {
  Batch batch(model.make_context(), {.sequences = 4, .length = 100, .step_tokens = 16, .all_logits = true});
  std::map<Ticket, Reply> replies;
  Request request = request_of(ids(40), {}, 8);
  request.sampling = {.temperature = 0.7F, .top_p = 0.9F, .seed = 4};
  request.logprobs = 5;
  request.prompt_logprobs = true;
  Request echo = request;
  echo.max_new_tokens = 0;
  const Ticket beside = batch.submit(request_of(ids(25), {"first"}, 9));
  const Ticket asked = batch.submit(request);
  const Ticket echoed = batch.submit(echo);
  while (batch.step(into(replies))) {
  }
  CHECK(replies[beside].ids.size() == 9);
  const Reply& reply = replies[asked];
  CHECK(reply.ids == alone(request));
  Ids text = request.prompt;
  text.insert(text.end(), reply.ids.begin(), reply.ids.end());
  const std::vector<std::vector<double>> expected = log_probabilities(text);
  const auto check = [&](const DrawnToken& token, std::size_t at) {
    REQUIRE(token.token.id == text[at]);
    const std::vector<double>& row = expected[at - 1];
    CHECK(static_cast<double>(token.token.logprob) ==
          doctest::Approx(row[static_cast<std::size_t>(text[at])]).epsilon(1e-4));
    REQUIRE(token.top.size() == 5);
    std::vector<double> sorted = row;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    for (std::size_t i = 0; i < 5; ++i) {
      CHECK(static_cast<double>(token.top[i].logprob) == doctest::Approx(sorted[i]).epsilon(1e-4));
      CHECK(row[static_cast<std::size_t>(token.top[i].id)] == doctest::Approx(sorted[i]).epsilon(1e-4));
    }
  };
  for (const Ticket ticket : {asked, echoed}) {
    const std::vector<DrawnToken>& prompt = replies[ticket].prompt;
    REQUIRE(prompt.size() == request.prompt.size());
    CHECK(prompt[0].top.empty());
    for (std::size_t t = 1; t < prompt.size(); ++t) check(prompt[t], t);
  }
  REQUIRE(reply.tokens.size() == 8);
  for (std::size_t t = 0; t < 8; ++t) check(reply.tokens[t], request.prompt.size() + t);
  CHECK(replies[echoed].ids.empty());
  CHECK(replies[echoed].finish == Finish::length);
}

TEST_CASE_FIXTURE(Fixture, "the divergence from another variant is that of whole passes, and changes no reply") {
  for (const DecodeLimits& limits : {DecodeLimits{.sequences = 3, .length = 100, .step_tokens = 7},
                                     DecodeLimits{.sequences = 6, .length = 100, .step_tokens = 90}}) {
    Batch batch(model.make_context(), limits);
    std::map<Ticket, Reply> replies;
    Request tuned = request_of(ids(30), {"first"}, 9);
    tuned.against = Variant{};
    Request weak = request_of(tuned.prompt, {"first", 0.5F}, 12);
    weak.sampling = {.temperature = 1.0F, .top_p = 0.9F, .seed = 4};
    weak.against = Variant{"second", 2.0F};
    Request same = request_of(ids(5), {"second"}, 4);
    same.against = same.variant;
    const Request plain = request_of(ids(11), {"second"}, 20);
    const Ticket none = batch.submit(plain);
    std::map<Ticket, Request> requests;
    for (const Request& request : {tuned, weak, same}) requests.emplace(batch.submit(request), request);
    CHECK(batch.load().waiting == 4);
    while (batch.step(into(replies))) {
      CHECK(batch.load().running + batch.load().waiting <= 4);
    }
    CHECK(replies[none].ids == alone(plain));
    for (const DrawnToken& token : replies[none].tokens) CHECK(!token.kl);
    for (const auto& [ticket, request] : requests) {
      const Reply& reply = replies[ticket];
      CHECK(reply.ids == alone(request));
      Ids text = request.prompt;
      text.insert(text.end(), reply.ids.begin(), reply.ids.end());
      const std::vector<std::vector<double>> p = log_probabilities(text, request.variant);
      const std::vector<std::vector<double>> q = log_probabilities(text, *request.against);
      REQUIRE(reply.tokens.size() == static_cast<std::size_t>(request.max_new_tokens));
      for (std::size_t t = 0; t < reply.tokens.size(); ++t) {
        const std::size_t at = request.prompt.size() + t - 1;
        double kl = 0.0;
        for (std::size_t v = 0; v < vocab; ++v) kl += std::exp(p[at][v]) * (p[at][v] - q[at][v]);
        CHECK((kl > 1e-3) == (request.variant != *request.against));
        REQUIRE(reply.tokens[t].kl.has_value());
        CHECK(static_cast<double>(*reply.tokens[t].kl) == doctest::Approx(kl).epsilon(1e-3));
      }
    }
    CHECK(batch.load().cached_tokens == 0);
    // Cancelled, both slots are free.
    const Ticket gone = batch.submit(tuned);
    (void)batch.step(into(replies));
    CHECK(batch.load().running == 1);
    batch.cancel(gone);
    CHECK(batch.load().cached_tokens == 0);
    CHECK(!batch.step(into(replies)));
  }
  Batch one(model.make_context(), {.sequences = 1, .length = 100, .step_tokens = 32});
  Request alone_there = request_of(ids(3));
  alone_there.against = Variant{"first"};
  CHECK_THROWS_AS((void)one.submit(alone_there), Error);
}

TEST_CASE_FIXTURE(Fixture, "penalties and biases") {
  // By hand, from the definitions: CTRL divides or multiplies, frequency counts, presence does not.
  std::vector<float> logits{1.0F, -1.0F, 2.0F, 0.5F, -0.5F};
  detail::apply_rules({.bias = {{3, 1.5F}, {99, 5.0F}},
                       .repetition_penalty = 2.0F,
                       .frequency_penalty = 0.25F,
                       .presence_penalty = 0.5F},
                      Ids{0, 1, 1}, Ids{2, 2, 4}, logits);
  const std::vector<float> expected{0.5F, -2.0F, 2.0F / 2 - 0.5F - 0.5F, 2.0F, -0.5F * 2 - 0.5F - 0.25F};
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(logits[i] == doctest::Approx(expected[i]));

  Batch batch(model.make_context(), {.sequences = 2, .length = 100, .step_tokens = 32});
  std::map<Ticket, Reply> replies;
  Request forced = request_of(ids(10));
  forced.rules.bias = {{42, 100.0F}};
  Request never_twice = request_of(ids(10), {}, 30);
  never_twice.rules.presence_penalty = 100.0F;
  const Ticket a = batch.submit(forced);
  const Ticket b = batch.submit(never_twice);
  while (batch.step(into(replies))) {
  }
  CHECK(replies[a].ids == Ids(12, 42));
  Ids drawn = replies[b].ids;
  std::sort(drawn.begin(), drawn.end());
  CHECK(std::unique(drawn.begin(), drawn.end()) == drawn.end());
  CHECK(drawn.size() == 30);
}

TEST_CASE_FIXTURE(Fixture, "where a reply ends, and what is refused") {
  Batch batch(model.make_context(), {.sequences = 1, .length = 20, .step_tokens = 8});
  std::map<Ticket, Reply> replies;
  const Request whole = request_of(ids(15), {}, 50);
  const Ticket full = batch.submit(whole);
  while (batch.step(into(replies))) {
  }
  CHECK(replies[full].finish == Finish::length);
  CHECK(replies[full].ids.size() == 6);  // the newest is not in the context
  Request stops = whole;
  stops.stop_ids = {replies[full].ids[2]};
  const Ticket stopped = batch.submit(stops);
  while (batch.step(into(replies))) {
  }
  CHECK(replies[stopped].finish == Finish::stop);
  const auto end = std::find(replies[full].ids.begin(), replies[full].ids.end(), stops.stop_ids[0]);
  CHECK(replies[stopped].ids == Ids(replies[full].ids.begin(), end));

  const auto refused = [&](Request request) { CHECK_THROWS_AS((void)batch.submit(std::move(request)), Error); };
  refused(request_of({}));
  refused(request_of(ids(20)));
  refused(request_of({static_cast<std::int32_t>(vocab)}));
  refused(request_of({-1}));
  refused(request_of(ids(3), {"nobody"}));
  refused(request_of(ids(3), {"first", std::nanf("")}));
  refused(request_of(ids(3), {}, 0));
  refused(request_of(ids(3), {}, -5));
  Request bad = request_of(ids(3));
  bad.sampling.temperature = std::nanf("");
  refused(bad);
  bad = request_of(ids(3));
  bad.rules.repetition_penalty = 0.0F;
  refused(bad);
  bad = request_of(ids(3));
  bad.prompt_logprobs = true;  // no room for it
  refused(bad);
  CHECK_FALSE(batch.step(into(replies)));
}
