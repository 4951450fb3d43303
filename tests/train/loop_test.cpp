// Loops of a trainer: what callbacks hear and when, that they may end a loop, and learning rates as functions.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/train/loop.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "qlora/cpu.hpp"
#include "support/small_model.hpp"

using namespace qlora;

namespace {

using B = Cpu<float>;
constexpr Config net{.shape = {53, 36, 3, 6, 2, 6, 50}, .lora = {.rank = 3}};
using Mine = Trainer<net, B>;

Mine make(float lr = 1e-2F, int total_steps = 100) {
  return Mine(small_model::weights(net.shape, 2),
              {.dropout = 0.0F, .lr = lr, .total_steps = total_steps, .batch = 2, .seq = 12}, B(2));
}
const small_model::Data data(2, 12, net.shape.vocab, 5);
const small_model::Data held_out(2, 12, net.shape.vocab, 6);
const auto batches = [](int) { return data.all(); };

std::vector<float> trained(const Mine& trainer) {
  const auto& weights = trainer.model().weights();
  return {weights.trained(), weights.trained() + weights.layout().total()};
}

/// Writes down what it hears.
struct Log {
  std::string heard;
  std::vector<std::vector<double>> norms;
  void begin(Mine&) { heard += "b"; }
  void step(Mine&, const StepReport& report) { heard += std::to_string(report.step); }
  void gradients(Mine& trainer, std::span<const double> of_layers) {
    heard += "g";
    norms.emplace_back(of_layers.begin(), of_layers.end());
    const float* g = trainer.core().gradients();
    const TrainedLayout& layout = trainer.model().weights().layout();
    const auto size = layout.layer_size();
    for (std::size_t layer = 0; layer < of_layers.size(); ++layer) {
      double squares = 0.0;
      for (std::int64_t i = 0; i < size; ++i) {
        const auto value = static_cast<double>(g[static_cast<std::int64_t>(layer) * size + i]);
        squares += value * value;
      }
      CHECK(of_layers[layer] == doctest::Approx(std::sqrt(squares)).epsilon(1e-5));
    }
  }
  void evaluation(Mine&, const Evaluation&) { heard += "e"; }
  void end(Mine&, const LoopReport& report) { heard += report.ended_early ? "x" : "."; }
};

struct Silent {};
struct Misspelt {
  void steps(Mine&, const StepReport&) {}
};
static_assert(TrainingCallback<Log, Mine> && TrainingCallback<EarlyStopping, Mine>);
static_assert(!TrainingCallback<Silent, Mine> && !TrainingCallback<Misspelt, Mine>);
static_assert(!HearsGradients<EarlyStopping, Mine>);

}  // namespace

TEST_CASE("callbacks hear begin, steps, gradients, evaluations and the end, in order") {
  Mine trainer = make();
  Log log;
  const LoopReport report = train_steps(trainer, {.steps = 4, .evaluate_every = 2}, batches, held_out.all(), log);
  CHECK(log.heard == "b1g2ge3g4ge.");
  CHECK(report.steps == 4);
  CHECK(report.tokens == 4 * 24);
  CHECK(report.last.step == 4);
  CHECK_FALSE(report.ended_early);
  CHECK(report.evaluation.loss == trainer.evaluate(held_out.all()).loss);
  for (const std::vector<double>& norms : log.norms) REQUIRE(norms.size() == 3);
  double squares = 0.0;
  for (const double norm : log.norms.back()) squares += norm * norm;
  CHECK(std::sqrt(squares) == doctest::Approx(report.last.grad_norm).epsilon(1e-5));
  Mine plain = make();
  for (int step = 0; step < 4; ++step) plain.step(data.all());
  CHECK(trained(trainer) == trained(plain));  // listening changes nothing
}

TEST_CASE("a loop ends when a callback says so, and the others still hear it") {
  struct Two {
    bool step(Mine&, const StepReport& report) const { return report.step < 2; }
  };
  Mine trainer = make();
  Log log;
  const LoopReport report = train_steps(trainer, {.steps = 9}, batches, held_out.all(), Two(), log);
  CHECK(report.ended_early);
  CHECK(report.steps == 2);
  CHECK(log.heard == "b1g2gx");
  CHECK(train_steps(trainer, {.steps = 0}, batches, held_out.all()).steps == 0);
  CHECK_THROWS_AS(train_steps(trainer, {.steps = -1}, batches, held_out.all()), Error);
}

TEST_CASE("early stopping: no better than the best, so many times in a row") {
  Mine trainer = make(0.0F);  // nothing is learned
  EarlyStopping stop{.patience = 2};
  const LoopReport report = train_steps(trainer, {.steps = 50, .evaluate_every = 3}, batches, held_out.all(), stop);
  CHECK(report.ended_early);
  CHECK(report.steps == 9);  // the first evaluation is the best; two more are not better
  CHECK(stop.best == report.evaluation.loss);

  EarlyStopping by_hand{.patience = 2, .least_gain = 0.1};
  const auto hears = [&](double loss) { return by_hand.evaluation(trainer, {loss, 1}); };
  CHECK(hears(3.0));
  CHECK(hears(2.95));  // 0.05 better than the best: not enough
  CHECK(hears(2.8));
  CHECK(by_hand.best == 2.8);
  CHECK(hears(2.9));
  CHECK_FALSE(hears(2.75));
  EarlyStopping never{.patience = 0};
  CHECK_THROWS_AS((void)never.evaluation(trainer, {1.0, 1}), Error);
  for (const double gain : {-0.1, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    EarlyStopping wrong{.patience = 1, .least_gain = gain};
    CHECK_THROWS_AS((void)wrong.evaluation(trainer, {1.0, 1}), Error);
  }
}

TEST_CASE("a learning rate as a function of the step") {
  Mine linear = make(1e-2F, 5);
  Mine mine = make(1.0F, 2);
  mine.use_schedule([](int step) { return learning_rate(Schedule::linear, static_cast<double>(1e-2F), step, 0, 5); });
  for (int step = 0; step < 4; ++step) CHECK(mine.step(data.all()).lr == linear.step(data.all()).lr);
  CHECK(trained(mine) == trained(linear));  // past the total_steps of its options, which are no limit here
  const std::vector<float> before = trained(mine);
  for (const double bad : {-1e-3, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    mine.use_schedule([bad](int) { return bad; });
    CHECK_THROWS_WITH_AS(mine.step(data.all()), doctest::Contains("the learning rate of step 5"), Error);
  }
  CHECK(trained(mine) == before);
  CHECK(mine.core().steps_done() == 4);
  mine.use_schedule({});
  CHECK_THROWS_WITH_AS(mine.step(data.all()), doctest::Contains("past the schedule"), Error);
}

namespace {

/// Two steps with these groups, from the same start.
Mine with_groups(std::vector<ParameterGroup> groups, float lr = 1.0F / 128, bool adamw8bit = false) {
  TrainOptions options{.dropout = 0.0F, .lr = lr, .schedule = Schedule::constant, .batch = 2, .seq = 12};
  options.groups = std::move(groups);
  options.adamw8bit = adamw8bit;
  Mine trainer(small_model::weights(net.shape, 2), options, B(2));
  trainer.step(data.all());
  return trainer;
}
/// The values of all matrices whose names contain `part`.
std::vector<float> part_of(const Mine& trainer, const std::string& part) {
  std::vector<float> values;
  const auto& weights = trainer.model().weights();
  weights.for_each_trained([&](const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t at) {
    if (name.find(part) == std::string::npos) return;
    values.insert(values.end(), weights.trained() + at, weights.trained() + at + rows * cols);
  });
  return values;
}

/// Equal but for the last bits: where a range begins decides which numbers a vector instruction takes.
bool close(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  float largest = 0.0F;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::fabs(a[i] - b[i]));
  return largest < 1e-7F;
}

}  // namespace

TEST_CASE("a parameter group has the learning rate of its scale, and the others keep theirs") {
  // One step from the same gradients, so each matrix must be that of a run in which all have its rate.
  const Mine slow = with_groups({});
  const Mine quick = with_groups({}, 16.0F / 128);
  REQUIRE(!close(part_of(slow, "lora_B"), part_of(quick, "lora_B")));
  const Mine mixed = with_groups({{.part = "lora_B", .lr_scale = 16.0F}});
  CHECK(close(part_of(mixed, "lora_A"), part_of(slow, "lora_A")));
  CHECK(close(part_of(mixed, "lora_B"), part_of(quick, "lora_B")));

  // The last group decides.
  const Mine nested = with_groups({{.part = "layers.1.", .lr_scale = 16.0F}, {.part = "q_proj", .lr_scale = 0.0F}});
  CHECK(close(part_of(nested, "layers.0.mlp"), part_of(slow, "layers.0.mlp")));
  CHECK(close(part_of(nested, "layers.1.mlp"), part_of(quick, "layers.1.mlp")));
  const Mine start = with_groups({{.part = "lora", .lr_scale = 0.0F}});
  CHECK(part_of(nested, "q_proj") == part_of(start, "q_proj"));
  CHECK(part_of(nested, "q_proj") != part_of(slow, "q_proj"));
}

TEST_CASE("a parameter group has a weight decay of its own") {
  // Decay takes lr times decay of a parameter away before the step, as in torch.optim.AdamW.
  const Mine plain = with_groups({});
  const Mine decayed = with_groups({{.part = "k_proj.lora_A", .weight_decay = 0.25F}});
  const std::vector<float> start = part_of(with_groups({{.part = "lora", .lr_scale = 0.0F}}), "k_proj.lora_A");
  const std::vector<float> without = part_of(plain, "k_proj.lora_A");
  const std::vector<float> with = part_of(decayed, "k_proj.lora_A");
  std::vector<float> expected(start.size());
  for (std::size_t i = 0; i < start.size(); ++i) expected[i] = without[i] - start[i] * 0.25F / 128;
  CHECK(close(with, expected));
  CHECK(!close(with, without));
  CHECK(close(part_of(decayed, "q_proj"), part_of(plain, "q_proj")));
}

TEST_CASE("rules cover all that is trained, norms keep out of decay, and groups that mean nothing are refused") {
  using detail::rule_ranges;
  const std::vector<detail::TrainedSpan> spans{
      {"a.norm", 0, false}, {"a.w", 100}, {"b.norm", 300, false}, {"b.w", 400}};
  const auto plain = rule_ranges(spans, 500, {}, 0.5F);
  REQUIRE(plain.size() == 4);
  CHECK(plain[0].weight_decay == 0.0F);
  CHECK(plain[1].first == 100);
  CHECK(plain[1].count == 200);
  CHECK(plain[1].weight_decay == 0.5F);
  CHECK(plain[3].count == 100);
  const std::vector<detail::TrainedSpan> falling{{"b.w", 400}, {"a.w", 100}};
  CHECK_THROWS_WITH_AS((void)rule_ranges(falling, 500, {}, 0.5F), doctest::Contains("b.w begins at 400"), Error);
  const std::vector<ParameterGroup> all{{.part = ".", .weight_decay = 0.25F}};
  CHECK(rule_ranges(spans, 500, all, 0.5F).size() == 1);
  const auto refused = [](const ParameterGroup& group, const char* why, bool adamw8bit = false) {
    CHECK_THROWS_WITH_AS(with_groups({group}, 1e-2F, adamw8bit), doctest::Contains(why), Error);
  };
  refused({.part = "lora_C"}, "the parameter group 'lora_C' is empty");
  refused({.part = ""}, "part of a parameter group");
  refused({.part = "lora_B", .lr_scale = -1.0F}, "lr_scale of the parameter group 'lora_B' is -1");
  refused({.part = "lora_B", .weight_decay = std::nanf("")}, "weight_decay of the parameter group 'lora_B' is nan");
  refused({.part = "lora_B", .lr_scale = 2.0F}, "blocks of 256", true);
}
