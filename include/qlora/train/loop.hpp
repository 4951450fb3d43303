// qlora/train/loop.hpp — steps of a trainer with callbacks on begin, step, gradients, evaluation and end. A callback is
// any object with some of these members; what nobody hears is not computed, which is decided when the loop is compiled.
//   EarlyStopping stop{.patience = 3};
//   train_steps(trainer, {.steps = 200, .evaluate_every = 10}, batches, held_out, stop, my_log);
#pragma once

#include <cmath>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "qlora/train/trainer.hpp"

namespace qlora {
inline namespace v0 {

/// How far train_steps() goes.
struct LoopOptions {
  int steps = 0;           ///< at most; a callback may end the loop earlier
  int evaluate_every = 0;  ///< steps between evaluations; 0: none

  /// Throws Error (usage) for a value outside its range.
  void check() const {
    detail::expect_option(steps >= 0, "steps", steps, "0 or more");
    detail::expect_option(evaluate_every >= 0, "evaluate_every", evaluate_every, "0 (never) or more");
  }
};

/// What a loop did.
struct LoopReport {
  int steps = 0;             ///< that this loop took
  std::int64_t tokens = 0;   ///< of these steps
  StepReport last{};         ///< of the last step
  Evaluation evaluation{};   ///< the last one
  bool ended_early = false;  ///< a callback returned false
};

/// What a callback may hear. A member that returns bool ends the loop with false; the others return nothing.
template <class Callback, class Trained>
concept HearsBegin = requires(Callback& callback, Trained& trainer) {
  callback.begin(trainer);
};
/// After each step.
template <class Callback, class Trained>
concept HearsSteps = requires(Callback& callback, Trained& trainer, const StepReport& report) {
  callback.step(trainer, report);
};
/// After each step, norms of the gradients of each layer before clipping. They cost a pass over the gradients.
template <class Callback, class Trained>
concept HearsGradients = requires(Callback& callback, Trained& trainer, std::span<const double> norms) {
  callback.gradients(trainer, norms);
};
/// After each evaluation.
template <class Callback, class Trained>
concept HearsEvaluations = requires(Callback& callback, Trained& trainer, const Evaluation& evaluation) {
  callback.evaluation(trainer, evaluation);
};
/// After the last step.
template <class Callback, class Trained>
concept HearsEnd = requires(Callback& callback, Trained& trainer, const LoopReport& report) {
  callback.end(trainer, report);
};
/// A callback that hears something: one with a misspelt member is refused when the loop is compiled.
template <class Callback, class Trained>
concept TrainingCallback = HearsBegin<Callback, Trained> || HearsSteps<Callback, Trained> ||
    HearsGradients<Callback, Trained> || HearsEvaluations<Callback, Trained> || HearsEnd<Callback, Trained>;

namespace detail {
/// What a member of a callback says: false only where it returns that.
template <class Call>
[[nodiscard]] bool goes_on(const Call& call) {
  if constexpr (std::is_void_v<decltype(call())>) {
    call();
    return true;
  } else {
    return call();
  }
}
}  // namespace detail

/// Ends a loop when `patience` evaluations in a row have not been better than the best by more than `least_gain`.
struct EarlyStopping {
  int patience = 3;                                       ///< 1 or more
  double least_gain = 0.0;                                ///< of the mean loss
  double best = std::numeric_limits<double>::infinity();  ///< so far
  int since = 0;                                          ///< evaluations after the best

  /// False when the loop is to end. Throws Error (usage) when patience is below 1 or least_gain is below 0 or NaN.
  template <class Trained>
  [[nodiscard]] bool evaluation(Trained& /*trainer*/, const Evaluation& now) {
    detail::expect_option(patience >= 1, "patience", patience, "1 or more");
    detail::expect_option(std::isfinite(least_gain) && least_gain >= 0.0, "least_gain", least_gain,
                          "0 or more, and finite");
    if (now.loss < best - least_gain) {
      best = now.loss;
      since = 0;
      return true;
    }
    return ++since < patience;
  }
};

/// Steps of a trainer on windows(step), step counting from 0 in this loop, with evaluations on `held_out`. Callbacks
/// are called in their order. Throws Error as the trainer does.
template <class Trained, class NextWindows, class... Callbacks>
requires(TrainingCallback<Callbacks, Trained>&&...) LoopReport
    train_steps(Trained& trainer, const LoopOptions& options, const NextWindows& windows, const Windows& held_out,
                Callbacks&&... callbacks) {
  options.check();
  LoopReport report;
  bool going = true;
  const auto tell = [&]([[maybe_unused]] const auto& call) { ((going = call(callbacks) && going), ...); };
  tell([&](auto& callback) {
    if constexpr (HearsBegin<decltype(callback), Trained>) {
      return detail::goes_on([&] { return callback.begin(trainer); });
    }
    return true;
  });
  for (int step = 0; going && step < options.steps; ++step) {
    report.last = trainer.step(windows(step));
    report.steps = step + 1;
    report.tokens += report.last.tokens;
    tell([&](auto& callback) {
      if constexpr (HearsSteps<decltype(callback), Trained>) {
        return detail::goes_on([&] { return callback.step(trainer, report.last); });
      }
      return true;
    });
    if constexpr ((HearsGradients<Callbacks, Trained> || ...)) {
      const std::vector<double> norms = trainer.core().layer_gradient_norms();
      tell([&](auto& callback) {
        if constexpr (HearsGradients<decltype(callback), Trained>) {
          return detail::goes_on(
              [&] { return callback.gradients(trainer, std::span<const double>(norms.data(), norms.size())); });
        }
        return true;
      });
    }
    if (options.evaluate_every == 0 || report.steps % options.evaluate_every != 0) continue;
    report.evaluation = trainer.evaluate(held_out);
    tell([&](auto& callback) {
      if constexpr (HearsEvaluations<decltype(callback), Trained>) {
        return detail::goes_on([&] { return callback.evaluation(trainer, report.evaluation); });
      }
      return true;
    });
  }
  report.ended_early = !going;
  tell([&](auto& callback) {
    if constexpr (HearsEnd<decltype(callback), Trained>) {
      return detail::goes_on([&] { return callback.end(trainer, report); });
    }
    return true;
  });
  return report;
}

}  // namespace v0
}  // namespace qlora
