// tests/ops/steps.hpp — whole training steps on a tested backend, measured as single ops are (harness.hpp): the float
// CPU is the reference, the CPU that rounds to bfloat16 the yardstick. A test names the config and the backend.
#pragma once

#include "harness.hpp"
#include "qlora/train/trainer.hpp"
#include "support/small_model.hpp"

namespace steps {

using namespace qlora;
using ops::error_of;
using ops::Reference;
using ops::Yardstick;

//                                   vocab dim layers heads kv head ffn
inline constexpr Config hd128{.shape = {512, 256, 2, 2, 1, 128, 704}, .lora = {.rank = 8}};
inline constexpr Config chat{.shape = {1536, 256, 3, 8, 4, 32, 704}, .lora = {.rank = 16}};

inline constexpr int seq = 65;
inline constexpr int windows = 4;

[[nodiscard]] inline TrainOptions options() {
  return {
      .alpha = 16.0F, .dropout = 0.1F, .lr = 2e-4F, .total_steps = 50, .batch = windows, .seq = seq, .loss_chunk = 100};
}

template <Config C>
[[nodiscard]] const small_model::Data& data() {
  static const small_model::Data made(windows, seq, C.shape.vocab, 1, 40);
  return made;
}

template <Config C, class B>
struct Run {
  /// B of adapters is not zero.
  explicit Run(B backend, const TrainOptions& how = options())
      : Run(std::move(backend), how, small_model::weights(C.shape, 3)) {
    small_model::load_random_adapters(trainer.model().weights(), trainer.model().backend(), C.shape, C.lora.rank, 16.0F,
                                      6);
  }
  /// Adapters are as training begins with them.
  Run(B backend, const TrainOptions& how, const TensorSource& weights) : trainer(weights, how, std::move(backend)) {}
  StepReport step() { return trainer.step(data<C>().all()); }
  [[nodiscard]] std::vector<float> gradients() {
    std::vector<float> all(static_cast<std::size_t>(trainer.model().weights().layout().total()));
    trainer.model().backend().download(trainer.core().gradients(), all);
    return all;
  }
  /// Trained parameters and both moments.
  [[nodiscard]] std::vector<std::vector<float>> state() {
    std::vector<std::vector<float>> all;
    trainer.core().for_each_state([&](const std::string&, auto* values, std::int64_t count) {
      all.emplace_back(static_cast<std::size_t>(count));
      trainer.model().backend().download(values, all.back());
    });
    return all;
  }
  Trainer<C, B> trainer;
};

/// The first step of a backend: loss and gradients. Once for each config and backend.
struct First {
  double loss = 0.0;
  std::vector<float> gradients;
};
template <Config C, class B>
[[nodiscard]] First first_step(B backend, const TrainOptions& how = options()) {
  Run<C, B> run(std::move(backend), how);
  const double loss = run.step().loss;
  return {loss, run.gradients()};
}
template <Config C, class B>
[[nodiscard]] const First& cpu_first() {
  static const First first = first_step<C>(B{});
  return first;
}

/// Loss and gradients of a run's first step near the float CPU's, those of each tensor too.
template <class AnyRun>
void check_step(AnyRun& run, const First& exact, const First& rounded) {
  const double loss = run.step().loss;
  const std::vector<float> ours = run.gradients();
  CHECK(std::abs(loss - exact.loss) <= 1e-3 * exact.loss);
  const double yardstick = error_of(rounded.gradients, exact.gradients);
  CHECK(yardstick > 0.0);
  CHECK(error_of(ours, exact.gradients) <= 2.0 * yardstick);
  run.trainer.model().weights().for_each_trained(
      [&](const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
        CAPTURE(name);
        const auto part = [&](const std::vector<float>& all) {
          return std::vector<float>(all.begin() + offset, all.begin() + offset + rows * cols);
        };
        const std::vector<float> expected = part(exact.gradients);
        // one tensor alone: the yardstick's error is itself a draw
        CHECK(error_of(part(ours), expected) <= 2.0 * error_of(part(rounded.gradients), expected) + yardstick);
      });
}
template <Config C, class B>
void check_first_step(B backend) {
  Run<C, B> run(std::move(backend));
  check_step(run, cpu_first<C, Reference>(), cpu_first<C, Yardstick>());
}

/// So many losses within 1e-3 of the first loss, which fall.
template <class Exact, class AnyRun>
void check_same_losses(Exact& exact, AnyRun& run, int steps) {
  double first = 0.0;
  double last = 0.0;
  for (int step = 0; step < steps; ++step) {
    CAPTURE(step);
    last = exact.step().loss;
    if (step == 0) first = last;
    CHECK(std::abs(run.step().loss - last) <= 1e-3 * first);
  }
  CHECK(last < first);
}
template <Config C, class B>
void check_losses(B backend) {
  Run<C, Reference> exact{Reference{}};
  Run<C, B> run(std::move(backend));
  check_same_losses(exact, run, 50);
}

/// Whatever is made again, the same bits; resident weights and another split, the same but for rounding.
template <Config C, class B, class Make>
void check_policies(Make&& make) {
  const First expected = first_step<C>(make());
  for (const Recompute policy : {Recompute::none, Recompute::cheap, Recompute::block}) {
    for (const int layers : {-1, 1}) {
      CAPTURE(layers);
      TrainOptions how = options();
      how.recompute = policy;
      how.recompute_layers = layers;
      const First other = first_step<C>(make(), how);
      CHECK(other.loss == expected.loss);
      CHECK(other.gradients == expected.gradients);
    }
  }
  const double rounding = 2.0 * error_of(cpu_first<C, Yardstick>().gradients, cpu_first<C, Reference>().gradients);
  TrainOptions how = options();
  how.model.keep_dequantized = true;
  CHECK(error_of(first_step<C>(make(), how).gradients, expected.gradients) <= rounding);
  how = options();
  for (const int batch : {1, 3}) {
    how.batch = batch;
    const First split = first_step<C>(make(), how);
    CHECK(error_of(split.gradients, expected.gradients) <= rounding);
    CHECK(std::abs(split.loss - expected.loss) <= 1e-3 * expected.loss);
  }
}

/// With fp8 products: no further from the float CPU than twice what the same roundings cost on the CPU, whatever is
/// made again the same bits, and losses that fall as they do without.
template <Config C, class B, class Make>
void check_fp8(Make&& make) {
  TrainOptions how = options();
  how.products = Products::fp8;
  const First& exact = cpu_first<C, Reference>();
  const First rounded = first_step<C>(Yardstick{}, how);
  const First ours = first_step<C>(make(), how);
  const double yardstick = error_of(rounded.gradients, exact.gradients);
  CHECK(yardstick > 2.0 * error_of(cpu_first<C, Yardstick>().gradients, exact.gradients));
  CHECK(error_of(ours.gradients, exact.gradients) <= 2.0 * yardstick);
  CHECK(error_of(ours.gradients, exact.gradients) > yardstick / 2.0);
  CHECK(std::abs(ours.loss - exact.loss) <= 2.0 * std::abs(rounded.loss - exact.loss) + 1e-3 * exact.loss);
  for (const Recompute policy : {Recompute::none, Recompute::cheap}) {
    how.recompute = policy;
    const First other = first_step<C>(make(), how);
    CHECK(other.loss == ours.loss);
    CHECK(other.gradients == ours.gradients);
  }
  Run<C, Reference> reference{Reference{}};
  Run<C, B> run(make(), how);
  double last = 0.0;
  for (int step = 0; step < 12; ++step) last = reference.step().loss;
  double loss = 0.0;
  for (int step = 0; step < 12; ++step) loss = run.step().loss;
  CHECK(std::abs(loss - last) <= 1e-2 * exact.loss);
  how.model.keep_dequantized = true;
  how.dora = B::space == Space::host;  // there dense weights are rounded as those in NF4 are
  CHECK_THROWS_AS((void)first_step<C>(make(), how), Error);
}

/// Channels of 100 times the others' size in the inputs of layers leave the error of fp8 products where it was: a
/// format with an exponent keeps the others' digits, and each row has its scale.
template <Config C, class B, class Make>
void check_fp8_outliers(Make&& make) {
  const auto error = [&](float factor) {
    const TensorSource weights = small_model::weights_with_outliers(C.shape, 3, factor);
    Run<C, Reference> exact(Reference{}, options(), weights);
    TrainOptions how = options();
    how.products = Products::fp8;
    Run<C, B> run(make(), how, weights);
    (void)exact.step();
    (void)run.step();
    return error_of(run.gradients(), exact.gradients());
  };
  const double without = error(1.0F);
  const double with = error(100.0F);
  CAPTURE(without);
  CAPTURE(with);
  CHECK(without > 0.01);
  CHECK(with <= 1.25 * without);
}

template <Config C, class B, class Make>
void check_repeats(Make&& make) {
  Run<C, B> run(make());
  Run<C, B> other(make());
  for (int step = 0; step < 4; ++step) {
    const StepReport a = run.step();
    const StepReport b = other.step();
    CHECK(a.loss == b.loss);
    CHECK(a.grad_norm == b.grad_norm);
  }
  CHECK(run.state() == other.state());
}

}  // namespace steps
