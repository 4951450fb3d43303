// qlora/run/train.hpp — a training run: run::train(request, progress) turns a packed data set into an adapter, or into
// a model all of whose weights were trained. Everything that decides a step is a function of its number, so an
// interrupted run continues from its newest checkpoint and gives the bits of one that was not interrupted.
//   OUT/adapter or OUT/model    what was trained
//   OUT/metrics.jsonl           training_log.hpp; OUT/trainer_state.json beside it
//   OUT/checkpoints             io/checkpoint.hpp
//   OUT/run.lock                held while a run writes there
//   OUT/logs/rank-R.log         what rank R did, where several processes share the steps (dist/launch.hpp)
// Of several ranks each computes its part of every step and knows all that decides the next; rank 0 alone writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

#include "qlora/config.hpp"
#include "qlora/error.hpp"
#include "qlora/run/options.hpp"
#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/settings.hpp"
#include "qlora/run/train_request.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Everything in the options that decides the bits of what is trained, the data apart. A guard ends a run, and so
/// decides; probes that are only measured do not.
[[nodiscard]] inline Settings train_settings(const Training& options, const LoopProbes& loop) {
  Settings all;
  add_settings(all, options, Which::fingerprint, options.method != Method::full);
  if (!loop.guard.empty()) add_settings(all, loop, Which::fingerprint);
  return all;
}

/// Where a training in `out` writes its adapter, or its model.
[[nodiscard]] inline std::filesystem::path trained_in(const std::filesystem::path& out, Method method) {
  return out / (method == Method::full ? "model" : "adapter");
}

/// Checkpoints that are kept: the newest, and an older one in case the disk damages it.
inline constexpr int kept_checkpoints = 2;

/// Bytes that a training of a model of this shape leaves on the disk, `checkpoints` checkpoints and the result. The
/// rest of what a run writes is small.
[[nodiscard]] constexpr std::uint64_t training_bytes_on_disk(const Shape& shape, const Training& options,
                                                             std::size_t checkpoints) {
  const bool all = options.method == Method::full;
  auto values = static_cast<std::uint64_t>(
      all ? parameters(shape) : adapter_parameters(shape, {.rank = options.rank, .targets = options.targets}));
  for (const Proj proj : all_projections) {
    if (all || !options.dora || !contains(options.targets, proj)) continue;
    values += static_cast<std::uint64_t>(shape.layers) * static_cast<std::uint64_t>(rows_of(shape, proj));
  }
  const std::uint64_t moments = options.adamw8bit ? 3 * values : 8 * values;  // 8 bits with their scales
  return checkpoints * (4 * values + moments) + 4 * values;
}

/// Throws Error (usage) for options that do not go together.
inline void check_training(const Training& options) {
  if (options.method == Method::full && options.adamw8bit) {
    throw Error("moments in 8 bits are for adapters, not for --method full", ErrorKind::usage);
  }
}

/// Trains, or continues a run that was interrupted. Throws Error: (usage) for options that do not go together and for a
/// directory that holds a run with other settings, (input) for data of another vocabulary or length, (resource) for too
/// little memory or disk, for errors of the system, and when another rank is gone, (interrupted) after the state was
/// saved, (unmet) when the guard failed at its first measurement.
[[nodiscard]] QLORA_STEP TrainResult train(const TrainRequest& request, Progress& progress);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include "qlora/run/train_steps.hpp"
#endif  // QLORA_STEP_CODE
