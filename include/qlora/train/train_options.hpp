// qlora/train/train_options.hpp — what a training run may choose, what of that a memory plan asks for, and how the
// model is opened for it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "qlora/backend.hpp"
#include "qlora/comm.hpp"
#include "qlora/model/model.hpp"
#include "qlora/train/parameter_groups.hpp"
#include "qlora/train/schedule.hpp"

namespace qlora {
inline namespace v0 {

/// What a training run may choose. Defaults are the article's and the Hugging Face Trainer's.
struct TrainOptions {
  int rank = 0;                  ///< 0: the config's cap
  Proj targets = Proj::none;     ///< what gets adapters; none: the config's targets, all where those are dynamic
  float alpha = 16.0F;           ///< numerator of the adapters' scale, above 0
  bool rank_stabilized = false;  ///< the scale is alpha / sqrt(r)
  bool dora = false;             ///< DoRA: lengths of rows are trained apart from their directions
  std::vector<AdapterOverride> overrides{};  ///< ranks and alphas of some adapters; not in full training
  float dropout = 0.1F;                      ///< on the input of adapters
  float lr = 2e-4F;                          ///< peak learning rate
  Schedule schedule = Schedule::linear;      ///< how it falls after the warmup
  int warmup_steps = 0;                      ///< steps in which it rises from 0
  int total_steps = 160;                     ///< the schedule's horizon
  float beta1 = 0.9F;                        ///< share of AdamW's first moment that a step keeps
  float beta2 = 0.999F;                      ///< share of its second moment that a step keeps
  float eps = 1e-8F;                         ///< added to the square root of the second moment
  float weight_decay = 0.0F;                 ///< not applied to norm weights
  std::vector<ParameterGroup> groups{};      ///< parts with a rate or a decay of their own
  float max_grad_norm = 1.0F;                ///< 0: no clipping
  std::uint64_t seed = 42;                   ///< of dropout masks and of the adapters' first A
  int batch = 2;                             ///< windows in one micro-batch
  int seq = 2048;                            ///< tokens in a window at most
  Recompute recompute = Recompute::block;    ///< for the first `recompute_layers` layers; the others keep everything
  int recompute_layers = -1;                 ///< -1: all
  int loss_chunk = 512;                      ///< labelled rows whose logits exist at once
  Products products = Products::bf16;        ///< of frozen weights; fp8 on a GPU from Hopper on, the CPU rounds alike
  bool adamw8bit = false;  ///< AdamW's moments in 8 bits, block-wise as in bitsandbytes: a quarter of their memory
  ModelOptions model{};    ///< how the model is opened
  /// Ranks that share the micro-batches of each step; null: this process alone. All make the same calls, with the whole
  /// step, and have the same result. Outlives the trainer.
  Comm* comm = nullptr;

  /// Throws Error (usage), naming the option, for a value outside its range, NaN and infinity included.
  [[gnu::cold]] void check() const {
    const auto option = [](bool good, std::string_view name, auto value, std::string_view allowed) {
      detail::expect_option(good, name, value, allowed);
    };
    const auto at_least_0 = [&](std::string_view name, float value) {
      option(std::isfinite(value) && value >= 0.0F, name, value, "0 or more, and finite");
    };
    const auto above_0 = [&](std::string_view name, float value) {
      option(std::isfinite(value) && value > 0.0F, name, value, "above 0, and finite");
    };
    const auto below_1 = [&](std::string_view name, float value) {
      option(value >= 0.0F && value < 1.0F, name, value, "0 or more and below 1");
    };
    option(rank >= 0, "rank", rank, "0 (the config's cap) or more");
    above_0("alpha", alpha);
    for (const AdapterOverride& special : overrides) {
      option(special.rank >= 0, "rank of an override", special.rank, "0 (that of the others) or more");
      at_least_0("alpha of an override", special.alpha);
    }
    below_1("dropout", dropout);
    at_least_0("lr", lr);
    option(warmup_steps >= 0, "warmup_steps", warmup_steps, "0 or more");
    option(total_steps >= 0, "total_steps", total_steps, "0 or more");
    below_1("beta1", beta1);
    below_1("beta2", beta2);
    above_0("eps", eps);
    at_least_0("weight_decay", weight_decay);
    at_least_0("max_grad_norm", max_grad_norm);
    detail::check_groups(groups);
    // 2^24 tokens in a micro-batch are beyond any memory and below where int ends.
    constexpr int most = 1 << 24;
    option(batch > 0, "batch", batch, "1 or more");
    option(seq > 0, "seq", seq, "1 or more");
    option(std::int64_t{batch} * seq <= most, "batch x seq", std::int64_t{batch} * seq, "at most 2^24 tokens");
    option(loss_chunk > 0 && loss_chunk <= most, "loss_chunk", loss_chunk, "1 to 2^24");
  }
};

/// What of the options a memory plan asks for; `keep_dequantized` as the weights are held.
[[nodiscard]] constexpr Run run_of(const TrainOptions& options, bool keep_dequantized) {
  return {.batch = options.batch,
          .seq = options.seq,
          .recompute = options.recompute,
          .recompute_layers = options.recompute_layers,
          .loss_chunk = options.loss_chunk,
          .dropout = options.dropout > 0.0F,
          .keep_dequantized = keep_dequantized,
          .adamw8bit = options.adamw8bit,
          .dora = options.dora,
          .products = options.products,
          .ranks = options.comm != nullptr ? options.comm->size() : 1};
}

namespace detail {
/// What gets adapters. Throws Error (usage), naming the projections, when the config cannot train just these.
[[nodiscard, gnu::cold]] inline Proj training_targets(const Config& config, const TrainOptions& options) {
  const Proj wanted = options.targets;
  const Proj held = options.model.lora.targets;
  const bool fixed = config.trainable == Trainable::all || !is_dynamic(config.lora.targets);
  if (wanted == Proj::none) return held != Proj::none || fixed ? held : Proj::all;
  if (config.trainable == Trainable::all) {
    throw Error(concat("adapters of ", names_of(wanted), " were asked for; this config trains every weight"),
                ErrorKind::usage);
  }
  if (fixed && wanted != config.lora.targets) {
    throw Error(concat("adapters of ", names_of(wanted), " were asked for; this config trains those of ",
                       names_of(config.lora.targets), ": use a config with these targets or with dynamic ones"),
                ErrorKind::usage);
  }
  if (held != Proj::none && held != wanted) {
    throw Error(
        concat("training adapts ", names_of(wanted), ", the model is to be opened for adapters of ", names_of(held)),
        ErrorKind::usage);
  }
  return wanted;
}
}  // namespace detail

/// How the model of a run is opened: with the targets of the options, and where the rank cap is dynamic with the
/// smallest that the backend has and that no adapter exceeds. Throws Error (usage) when the config cannot train these
/// targets.
template <Config C, class B>
[[nodiscard]] ModelOptions training_model(const TrainOptions& options) {
  ModelOptions model = options.model;
  model.lora.targets = detail::training_targets(C, options);
  model.dora = options.dora;
  expect_dora(options.dora, C.trainable == Trainable::adapters);
  if (C.trainable == Trainable::all || !is_dynamic(C.lora.rank)) return model;
  int rank = std::max(options.rank, model.lora.rank);
  for (const AdapterOverride& special : options.overrides) {
    for (const Proj proj : all_projections) {
      if (contains(model.lora.targets, proj) && contains(special.targets, proj)) rank = std::max(rank, special.rank);
    }
  }
  model.lora.rank = (rank + B::rank_step - 1) / B::rank_step * B::rank_step;
  return model;
}

namespace detail {
/// The same, refused before anything is read when an option is outside its range or the backend cannot train the config
/// that it makes.
template <Config C, class B>
[[nodiscard]] ModelOptions checked_training_model(const TrainOptions& options) {
  options.check();
  ModelOptions model = training_model<C, B>(options);
  const Config config = resolved(C, model.shape, model.lora, model.double_quant);
  expect_served<B>(config, true);
  expect_products(options.products, config, options.dora, model.keep_dequantized && B::space == Space::device);
  return model;
}
}  // namespace detail

}  // namespace v0
}  // namespace qlora
