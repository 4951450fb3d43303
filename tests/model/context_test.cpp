// Many contexts on one model: what each computes is what it computes alone, a call at the wrong time is refused, and
// weights and adapters live as long as somebody uses them. The thread sanitizer runs these tests too.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/model/context.hpp"

#include <doctest/doctest.h>

#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "qlora/cpu.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/generate/scorer.hpp"
#include "qlora/train/trainer.hpp"
#include "support/small_model.hpp"

using namespace qlora;
using Ids = std::vector<std::int32_t>;

namespace {

using B = Cpu<float>;
constexpr Config net{.shape = {97, 48, 2, 6, 2, 8, 80}, .lora = {.rank = 4, .targets = Proj::q | Proj::v}};
constexpr DecodeLimits limits{.sequences = 2, .length = 48, .step_tokens = 16};
const std::vector<Ids> prompts{{1, 17, 30, 45}, {9, 81, 2}, {5}};
const GenerateOptions how{.max_new_tokens = 12, .sampling = {.temperature = 1.0F, .seed = 3}, .stop_ids = {}};

static_assert(std::is_move_constructible_v<Model<net, B>> && std::is_move_assignable_v<Model<net, B>>);
static_assert(std::is_move_constructible_v<Trainer<net, B>> && std::is_move_assignable_v<Trainer<net, B>>);
static_assert(std::is_move_constructible_v<Generator<net, B>> && std::is_move_constructible_v<Scorer<net, B>>);
static_assert(std::is_constructible_v<Generator<net, B>, const Model<net, B>&>);
static_assert(std::is_constructible_v<Scorer<net, B>, const Model<net, B>&>);
static_assert(!std::is_copy_constructible_v<Model<net, B>>);

Model<net, B> open(int threads) { return Model<net, B>(small_model::weights(net.shape, 2), {}, B(threads)); }

std::shared_ptr<AdapterSet<B>> adapters(Model<net, B>& model, std::uint64_t seed) {
  auto set = std::make_shared<AdapterSet<B>>(model.weights().layout());
  small_model::load_random_adapters(*set, model.backend(), net.shape, 4, 32.0F, seed);
  return set;
}

std::vector<Ids> ids_of(std::vector<Generated> made) {
  std::vector<Ids> ids;
  for (Generated& reply : made) ids.push_back(std::move(reply.ids));
  return ids;
}
std::vector<Ids> answers(Generator<net, B>& generator) { return ids_of(generator.generate(prompts, how)); }
std::vector<float> logits(Context<code_of(net), B>& context) {
  Scorer<net, B> scorer(context, limits);
  std::vector<float> all;
  scorer.read(prompts, [&](std::size_t, std::size_t, std::span<const float> row) {
    all.insert(all.end(), row.begin(), row.end());
    return true;
  });
  return all;
}

/// The message of an Error of kind usage; empty: none was thrown.
std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::usage);
    return error.what();
  }
  return {};
}
constexpr auto has = [](const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
};

Trainer<net, B> trainer() {
  return Trainer<net, B>(small_model::weights(net.shape, 2),
                         {.dropout = 0.0F, .lr = 1e-2F, .schedule = Schedule::constant, .batch = 2, .seq = 12}, B(2));
}
const small_model::Data& data() {
  static const small_model::Data made(2, 12, net.shape.vocab, 5);
  return made;
}

}  // namespace

TEST_CASE("generators and scorers in many threads on one model give what each gives alone") {
  Model<net, B> model = open(2);
  model.attach("first", adapters(model, 6));
  model.attach("second", adapters(model, 7));
  struct Job {
    std::string adapter;  // empty: the base
    float scale = 1.0F;
    std::vector<Ids> ids;
    std::vector<float> logits;
  };
  const auto run = [&model](Job& job) {
    Generator<net, B> generator(model, limits);
    if (job.adapter.empty()) {
      generator.context().use_base();
    } else {
      generator.context().use(job.adapter, job.scale);
    }
    job.ids = answers(generator);
    job.logits = logits(generator.context());
  };
  const std::vector<Job> jobs{
      {"", 1.0F, {}, {}}, {"first", 1.0F, {}, {}}, {"second", 1.0F, {}, {}}, {"first", 0.5F, {}, {}}};
  std::vector<Job> alone = jobs;
  for (Job& job : alone) run(job);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) CHECK(alone[i].logits != alone[j].logits);
  }
  std::vector<Job> together(8);
  for (std::size_t i = 0; i < together.size(); ++i) together[i] = jobs[i % jobs.size()];
  std::vector<std::thread> threads;
  for (Job& job : together) threads.emplace_back([&run, &job] { run(job); });
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < together.size(); ++i) {
    CAPTURE(i);
    CHECK(together[i].ids == alone[i % jobs.size()].ids);
    CHECK(together[i].logits == alone[i % jobs.size()].logits);
  }
}

TEST_CASE("the bits of a context do not depend on its threads") {
  Model<net, B> model = open(2);
  auto single = model.new_context(B(1));
  auto three = model.new_context(B(3));
  CHECK(single.backend().workers() == 1);
  CHECK(model.new_context().backend().workers() == 2);
  CHECK(logits(single) == logits(three));
}

TEST_CASE("a scale of 0 is the base, 1 the adapter as it was trained, and 2 that of twice its alpha") {
  Model<net, B> model = open(1);
  model.attach("mine", adapters(model, 6));
  auto context = model.new_context();
  const std::vector<float> base = logits(context);
  context.use("mine", 0.0F);
  CHECK(logits(context) == base);
  context.use("mine");
  const std::vector<float> tuned = logits(context);
  CHECK(tuned != base);
  context.use("mine", 2.0F);
  const std::vector<float> twice = logits(context);
  small_model::load_random_adapters(model.weights(), model.backend(), net.shape, 4, 64.0F, 6);  // mine has 32
  context.use_own();
  CHECK(logits(context) == twice);
  context.use_own(0.5F);
  CHECK(logits(context) == tuned);
  {
    const AdaptersOff off(context);
    CHECK(logits(context) == base);
    {
      const AdaptersOff again(context);
      CHECK(logits(context) == base);
    }
    CHECK(logits(context) == base);
  }
  CHECK(logits(context) == tuned);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    CHECK(has(refusal([&] { context.use("mine", bad); }), "scale"));
  }
  CHECK(logits(context) == tuned);
}

TEST_CASE("names: taken, unknown, and an adapter that is detached while it is in use") {
  Model<net, B> model = open(1);
  model.attach("mine", adapters(model, 6));
  CHECK(has(refusal([&] { model.attach("mine", adapters(model, 7)); }), "taken"));
  CHECK(has(refusal([&] { model.attach("", adapters(model, 7)); }), "empty"));
  auto context = model.new_context();
  CHECK(has(refusal([&] { context.use("other"); }), "\"other\""));
  context.use("mine");
  const std::vector<float> tuned = logits(context);
  model.detach("mine");
  CHECK(logits(context) == tuned);
  CHECK(has(refusal([&] { context.use("mine"); }), "\"mine\""));
  CHECK(has(refusal([&] { model.detach("mine"); }), "\"mine\""));
  model.attach("mine", adapters(model, 7));
  CHECK(logits(context) == tuned);
  context.use("mine");
  CHECK(logits(context) != tuned);
}

TEST_CASE("a second call into a busy context is refused, from a callback and from another thread") {
  Model<net, B> model = open(2);
  Generator<net, B> generator(model, limits);
  const std::vector<Ids> expected = answers(generator);
  std::vector<std::string> refused;
  const OnToken call_again = [&](int, std::int32_t) {
    if (!refused.empty()) return true;
    refused.push_back(refusal([&] { (void)answers(generator); }));
    refused.push_back(refusal([&] { generator.context().use_base(); }));
    refused.push_back(refusal([&] { (void)logits(generator.context()); }));
    std::thread([&] { refused.push_back(refusal([&] { (void)answers(generator); })); }).join();
    return true;
  };
  CHECK(ids_of(generator.generate(prompts, how, call_again)) == expected);
  REQUIRE(refused.size() == 4);
  for (const std::string& message : refused) CHECK(has(message, "busy"));
  CHECK(answers(generator) == expected);
}

TEST_CASE("what is trained is not read meanwhile; the base and other adapters are") {
  Trainer<net, B> training = trainer();
  training.model().attach("mine", adapters(training.model(), 6));
  training.step(data().all());
  Generator<net, B> generator(training.model(), limits);
  int steps = 1;
  const auto step_while_generating = [&] {
    std::string refused;
    bool done = false;
    (void)generator.generate(prompts, how, [&](int, std::int32_t) {
      if (!done) refused = refusal([&] { training.step(data().all()); });
      done = true;
      return true;
    });
    return refused;
  };
  CHECK(has(step_while_generating(), "in use"));  // as a new context does it reads the trained ones
  CHECK(training.core().steps_done() == steps);
  generator.context().use("mine");
  CHECK(step_while_generating().empty());
  generator.context().use_base();
  CHECK(step_while_generating().empty());
  steps += 2;
  CHECK(training.core().steps_done() == steps);
  generator.context().use_own();
  {
    const Writing step(training.model().weights().own_gate());
    CHECK(has(refusal([&] { (void)answers(generator); }), "being written"));
  }
  const std::vector<Ids> now = answers(generator);
  training.step(data().all());
  CHECK(answers(generator) != now);
}

TEST_CASE("a trainer and generators of the base run in threads of their own") {
  Trainer<net, B> quiet = trainer();
  for (int step = 0; step < 3; ++step) quiet.step(data().all());
  Trainer<net, B> training = trainer();
  std::vector<Ids> before;
  {
    Generator<net, B> generator(training.model(), limits);
    generator.context().use_base();
    before = answers(generator);
  }
  std::vector<std::vector<Ids>> made(3);
  std::vector<std::thread> threads;
  for (auto& mine : made) {
    threads.emplace_back([&mine, &model = std::as_const(training.model())] {
      Generator<net, B> generator(model, limits);
      generator.context().use_base();
      mine = answers(generator);
    });
  }
  for (int step = 0; step < 3; ++step) training.step(data().all());
  for (std::thread& thread : threads) thread.join();
  for (const auto& mine : made) CHECK(mine == before);
  const auto trained = [](const Trainer<net, B>& trainer) {
    const auto& weights = trainer.model().weights();
    return std::vector<float>(weights.trained(), weights.trained() + weights.layout().total());
  };
  CHECK(trained(training) == trained(quiet));
}

TEST_CASE("steps are refused while the adapters in use are not the trained ones as they are") {
  Trainer<net, B> training = trainer();
  training.model().attach("mine", adapters(training.model(), 6));
  const double trained = training.evaluate(data().all()).loss;
  training.context().use("mine");
  CHECK(training.evaluate(data().all()).loss != trained);
  CHECK(has(refusal([&] { training.step(data().all()); }), "the adapters are off"));
  training.context().use_own(0.5F);
  CHECK(has(refusal([&] { training.step(data().all()); }), "scale 1"));
  training.context().use_own();
  CHECK(training.step(data().all()).step == 1);
}

TEST_CASE("models and trainers move, and what was made on them stays valid") {
  std::optional<Model<net, B>> first(open(1));
  first->attach("mine", adapters(*first, 6));
  Generator<net, B> generator(*first, limits);
  generator.context().use("mine");
  const std::vector<Ids> expected = answers(generator);
  Model<net, B> second(std::move(*first));
  first.reset();
  CHECK(answers(generator) == expected);
  second = open(1);  // the generator alone keeps the weights now
  CHECK(answers(generator) == expected);
  Generator<net, B> moved(std::move(generator));
  CHECK(answers(moved) == expected);

  Trainer<net, B> still = trainer();
  std::optional<Trainer<net, B>> before(trainer());
  CHECK(before->step(data().all()).loss == still.step(data().all()).loss);
  Trainer<net, B> after(std::move(*before));
  before.reset();
  CHECK(after.step(data().all()).loss == still.step(data().all()).loss);
  Trainer<net, B> other = trainer();
  other = std::move(after);
  CHECK(other.step(data().all()).loss == still.step(data().all()).loss);
  CHECK(other.core().steps_done() == 3);
}
