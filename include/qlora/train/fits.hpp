// qlora/train/fits.hpp — whether a training run fits a GPU, asked with the options that the trainer gets:
//   static_assert(FitsInto<training_bytes<mine>({.batch = 2}), gpu::a10g_24gb.bytes>);
// In this form the compiler names both numbers when the assertion fails.
#pragma once

#include "qlora/model/cards.hpp"
#include "qlora/train/trainer.hpp"

namespace qlora {
inline namespace v0 {

/// Bytes of a GPU that Trainer<C, Cuda> takes with these options, the driver's context and libraries included. `config`
/// has no dynamic number.
[[nodiscard]] constexpr std::int64_t training_bytes(const Config& config, const TrainOptions& options = {}) {
  return memory_plan(config, run_of(options, options.model.keep_dequantized), gpu_storage).total();
}
/// The same at compile time.
template <Config C>
requires StaticConfig<C>
[[nodiscard]] constexpr std::int64_t training_bytes(const TrainOptions& options = {}) {
  return training_bytes(C, options);
}

/// Both in bytes. A concept, since the compiler prints the numbers of one that does not hold.
template <std::int64_t Needed, std::int64_t Available>
concept FitsInto = Needed <= Available;

/// Whether a training run of a config fits into a GPU. `config` has no dynamic number.
[[nodiscard]] constexpr bool fits(const Config& config, const Gpu& card, const TrainOptions& options = {}) {
  return training_bytes(config, options) <= card.bytes;
}
/// The same at compile time: static_assert(fits<mine>(gpu::a10g_24gb, {.batch = 2})).
template <Config C>
requires StaticConfig<C>
[[nodiscard]] constexpr bool fits(const Gpu& card, const TrainOptions& options = {}) { return fits(C, card, options); }

}  // namespace v0
}  // namespace qlora
