// Same seed, same bits: whatever the thread count, whatever the backward pass makes again, and after a killed run has
// been resumed. Adapters that can be switched off, and a step that refuses what is not finite.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <limits>

#include "qlora/cpu.hpp"
#include "qlora/io/checkpoint.hpp"
#include "qlora/train/trainer.hpp"
#include "support/small_model.hpp"

using namespace qlora;

namespace {

using B = Cpu<float>;
//                                    vocab dim layers heads kv head ffn: several tiles in every product and norm
constexpr Config base{.shape = /* */ {256, 128, 3, 8, 2, 16, 352}, .lora = {.rank = 8}};
constexpr Config small_full = Config{.shape = {200, 96, 3, 4, 2, 24, 160}}.with(Trainable::all);

const small_model::Data& data() {
  static const small_model::Data windows(10, 64, 200, 1, 20);
  return windows;
}
TrainOptions options() {
  return {.rank = 5,
          .alpha = 16.0F,
          .dropout = 0.1F,
          .lr = 5e-3F,
          .schedule = Schedule::cosine,
          .warmup_steps = 2,
          .total_steps = 12,
          .weight_decay = 0.01F,
          .batch = 4,
          .seq = 64,
          .loss_chunk = 100};
}
template <Config C>
Trainer<C, B> make(const TrainOptions& how, int threads = 2) {
  return Trainer<C, B>(small_model::weights(C.shape, 3), how, B(threads));
}

/// The windows of one step, copied together in the order in which it visits them.
struct StepData {
  std::vector<std::int32_t> ids, labels, documents;
  explicit StepData(int step) {
    DataOrder order(10, 4, 42);
    for (const std::uint32_t window : order.step(step)) {
      const Windows slice = data().all().slice(static_cast<int>(window), 1);
      ids.insert(ids.end(), slice.ids.begin(), slice.ids.end());
      labels.insert(labels.end(), slice.labels.begin(), slice.labels.end());
      documents.insert(documents.end(), slice.documents.begin(), slice.documents.end());
    }
  }
  [[nodiscard]] Windows windows() const { return {64, ids, labels, documents}; }
};

/// Everything that a run leaves behind.
struct Outcome {
  std::vector<double> losses, norms;
  std::vector<std::vector<float>> state;  // trained, both moments
  friend bool operator==(const Outcome&, const Outcome&) = default;
};
template <class AnyTrainer>
std::vector<std::vector<float>> state_of(AnyTrainer& trainer) {
  std::vector<std::vector<float>> state;
  trainer.core().for_each_state(
      [&](const std::string&, const float* values, std::int64_t count) { state.emplace_back(values, values + count); });
  return state;
}
template <class AnyTrainer>
Outcome run(AnyTrainer& trainer, int steps) {
  Outcome outcome;
  while (trainer.core().steps_done() < steps) {
    const StepReport report = trainer.step(StepData(trainer.core().steps_done()).windows());
    outcome.losses.push_back(report.loss);
    outcome.norms.push_back(report.grad_norm);
  }
  outcome.state = state_of(trainer);
  return outcome;
}
/// A step on the data of step `step` throws Error (usage) with this text.
template <class AnyTrainer>
void expect_refused(AnyTrainer& trainer, int step, const char* text) {
  try {
    trainer.step(StepData(step).windows());
    FAIL_CHECK("not refused");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::usage);
    CHECK(std::string(error.what()).find(text) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("any number of threads gives the same bits") {
  const auto check = [](auto make_one) {
    auto trainer = make_one(1);
    const Outcome expected = run(trainer, 5);
    CHECK(expected.losses.back() < expected.losses.front());
    for (const int threads : {2, 3, 5}) {
      CAPTURE(threads);
      auto other = make_one(threads);
      CHECK(run(other, 5) == expected);
    }
  };
  check([](int threads) { return make<base>(options(), threads); });
  check([](int threads) { return make<small_full>(options(), threads); });
}

TEST_CASE("what is made again in the backward pass has the same bits") {
  const auto check = [](auto make_one) {
    const auto gradients = [&](Recompute policy, int layers) {
      TrainOptions how = options();
      how.recompute = policy;
      how.recompute_layers = layers;
      auto trainer = make_one(how);
      trainer.step(StepData(0).windows());
      const float* values = trainer.core().gradients();
      return std::vector<float>(values, values + trainer.model().weights().layout().total());
    };
    const std::vector<float> expected = gradients(Recompute::none, -1);
    CHECK(std::any_of(expected.begin(), expected.end(), [](float g) { return g != 0.0F; }));
    for (const Recompute policy : {Recompute::cheap, Recompute::block}) {
      for (const int layers : {-1, 0, 2}) {
        CAPTURE(layers);
        CHECK(gradients(policy, layers) == expected);
      }
    }
  };
  check([](const TrainOptions& how) { return make<base>(how); });
  check([](const TrainOptions& how) { return make<small_full>(how); });
}

TEST_CASE("a run that was killed after any step goes on with the bits of one that was not") {
  constexpr int total = 12;
  Outcome expected;
  {
    auto whole = make<base>(options());
    expected = run(whole, total);
  }
  const std::filesystem::path root =
      std::filesystem::temp_directory_path() / ("determinism_test-" + std::to_string(::getpid()));
  for (const int killed : {1, 3, 5, 8, 11}) {
    CAPTURE(killed);
    std::filesystem::remove_all(root);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {  // saves after every step; dies when one more is done and not yet saved
      auto trainer = make<base>(options());
      for (;;) {
        run(trainer, trainer.core().steps_done() + 1);
        const int step = trainer.core().steps_done();
        if (step > killed) ::raise(SIGKILL);
        std::vector<NamedTensor> tensors;
        trainer.core().for_each_state([&](const std::string& name, const float* values, std::int64_t count) {
          tensors.push_back({name, {count}, {values, static_cast<std::size_t>(count)}});
        });
        save_checkpoint(root, step, tensors, Json{{"step", step}}, 2);
      }
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));

    const CheckpointSearch found = load_latest_checkpoint(root);
    REQUIRE(found.checkpoint.has_value());
    REQUIRE(found.checkpoint->step == killed);
    auto resumed = make<base>(options());
    resumed.core().for_each_state([&](const std::string& name, float* values, std::int64_t count) {
      read_floats(found.checkpoint->tensors.at(name), 0, {values, static_cast<std::size_t>(count)});
    });
    resumed.core().set_steps_done(killed);
    const Outcome rest = run(resumed, total);
    const auto after = [&](const std::vector<double>& all) {
      return std::vector<double>(all.begin() + killed, all.end());
    };
    CHECK(rest.losses == after(expected.losses));
    CHECK(rest.norms == after(expected.norms));
    CHECK(rest.state == expected.state);
  }
  std::filesystem::remove_all(root);
}

TEST_CASE("adapters off: the base model, to the bit") {
  const auto logits = [](auto& trainer) {
    trainer.evaluate(data().all().slice(0, 4));
    std::vector<float> values(4 * 64 * 256);
    trainer.core().network().logits(values.data());
    return values;
  };
  auto fresh = make<base>(options());
  const std::vector<float> before = logits(fresh);  // B is zero
  auto trained = make<base>(options());
  run(trained, 3);
  CHECK(logits(trained) != before);
  {
    const AdaptersOff off(trained.context());
    CHECK(logits(trained) == before);
    const auto state = state_of(trained);
    expect_refused(trained, 3, "adapters are off");
    CHECK(state_of(trained) == state);
    CHECK(trained.core().steps_done() == 3);
  }
  CHECK(logits(trained) != before);
  auto undisturbed = make<base>(options());
  CHECK(run(trained, 5).state == run(undisturbed, 5).state);
}

TEST_CASE("a step past the schedule is refused, not taken with a learning rate of 0") {
  for (const Schedule schedule : {Schedule::linear, Schedule::cosine, Schedule::constant}) {
    TrainOptions how = options();
    how.schedule = schedule;
    how.warmup_steps = 0;
    how.total_steps = 2;
    auto trainer = make<base>(how);
    run(trainer, 2);
    if (schedule == Schedule::constant) {
      CHECK(trainer.step(StepData(2).windows()).lr == doctest::Approx(5e-3));
      continue;
    }
    const auto state = state_of(trainer);
    expect_refused(trainer, 2, "total_steps = 2");
    CHECK(state_of(trainer) == state);
    CHECK(trainer.core().steps_done() == 2);
  }
}

TEST_CASE("a step that is not finite names itself and changes nothing") {
  auto trainer = make<base>(options());
  run(trainer, 2);
  const auto before = state_of(trainer);
  auto& weights = trainer.model().weights();
  float& planted = weights.trained()[weights.layout().b(1, Proj::up)];
  const float good = planted;
  planted = std::numeric_limits<float>::infinity();
  std::string message;
  try {
    trainer.step(StepData(2).windows());
  } catch (const Error& error) {
    message = error.what();
  }
  CAPTURE(message);
  CHECK(message.find("step 3") != std::string::npos);
  CHECK(message.find("model.layers.") != std::string::npos);
  CHECK(message.find(".lora_") != std::string::npos);
  CHECK(message.find("the weights were not finite before this step") != std::string::npos);
  CHECK(message.find("no weight was changed") == std::string::npos);
  planted = good;
  CHECK(state_of(trainer) == before);
  CHECK(trainer.core().steps_done() == 2);
  auto undisturbed = make<base>(options());
  CHECK(run(trainer, 4).state == run(undisturbed, 4).state);
}

TEST_CASE("a step whose gradient is not finite while the weights are says that it changed none") {
  auto trainer = make<base>(options());
  run(trainer, 2);
  auto& weights = trainer.model().weights();
  float& planted = weights.trained()[weights.layout().b(1, Proj::up)];
  planted = std::numeric_limits<float>::max();
  const auto before = state_of(trainer);
  CHECK_THROWS_WITH_AS(trainer.step(StepData(2).windows()), doctest::Contains("; no weight was changed"), Error);
  CHECK(state_of(trainer) == before);
}

TEST_CASE("weights that are not finite, windows that are too long") {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::string culprit : {"model.layers.1.mlp.up_proj.weight", "model.norm.weight"}) {
      std::vector<float> damaged;
      const auto source = [&, good = small_model::weights(base.shape, 3)](std::string_view name) {
        std::optional<TensorRef> tensor = good(name);
        if (name == culprit) {
          damaged.resize(static_cast<std::size_t>(tensor->size()));
          read_floats(*tensor, 0, damaged);
          damaged[100] = bad;
          tensor->bytes = std::as_bytes(std::span<const float>(damaged));
        }
        return tensor;
      };
      std::string message;
      try {
        const Trainer<base, B> trainer(source, options(), B(1));
      } catch (const Error& error) {
        message = error.what();
      }
      CHECK(message.find(culprit) != std::string::npos);
    }
  }
  auto trainer = make<base>(options());
  const small_model::Data long_one(1, 65, 200, 2, 0);  // one token more than options().seq, one document
  CHECK_THROWS_AS(trainer.step(long_one.all()), Error);
  CHECK_THROWS_AS(trainer.evaluate(long_one.all()), Error);
  CHECK(trainer.evaluate(data().all()).labelled == BatchBuilder::count_labelled(data().all()));
}

TEST_CASE("moments in 8 bits: close to the losses of float moments, and a resumed run goes on to the bit") {
  TrainOptions eight = options();
  eight.adamw8bit = true;
  const auto bits = [](auto& trainer) {
    std::vector<std::uint32_t> all;  // codes are no numbers to compare
    trainer.core().for_each_state([&](const std::string&, const float* values, std::int64_t count) {
      const std::size_t before = all.size();
      all.resize(before + static_cast<std::size_t>(count));
      std::memcpy(all.data() + before, values, static_cast<std::size_t>(count) * sizeof(float));
    });
    return all;
  };
  auto exact = make<base>(options());
  const Outcome expected = run(exact, 10);
  auto whole = make<base>(eight);
  run(whole, 4);
  const std::vector<std::uint32_t> halfway = bits(whole);
  auto resumed = make<base>(eight);
  std::size_t at = 0;
  resumed.core().for_each_state([&](const std::string&, float* values, std::int64_t count) {
    std::memcpy(values, halfway.data() + at, static_cast<std::size_t>(count) * sizeof(float));
    at += static_cast<std::size_t>(count);
  });
  CHECK(at == halfway.size());
  CHECK(halfway.size() < state_of(exact)[0].size() * 8 / 5);  // parameters, and half as much for both moments
  resumed.core().set_steps_done(4);
  const Outcome rest = run(whole, 10);
  CHECK(run(resumed, 10).losses == rest.losses);
  CHECK(bits(resumed) == bits(whole));
  for (std::size_t i = 0; i < rest.losses.size(); ++i) {
    CHECK(std::abs(rest.losses[i] - expected.losses[i + 4]) < 0.01 * expected.losses[0]);
  }
  CHECK(rest.losses != std::vector<double>(expected.losses.begin() + 4, expected.losses.end()));
  CHECK_THROWS_AS(make<small_full>(eight), Error);
}
