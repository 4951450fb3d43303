// qlora/train/trainer.hpp — Trainer<C, B>: causal-LM training with the semantics of the Hugging Face Trainer.
// One step: gradients of the mean loss over all labelled tokens of the step (whatever its split into micro-batches),
// clipped by their norm, AdamW, learning rate from the schedule. Deterministic; a step allocates nothing.
#pragma once

#include <array>
#include <cmath>
#include <functional>
#include <memory>
#include <string>

#include "qlora/model/model.hpp"
#include "qlora/train/batch.hpp"
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
  bool adamw8bit = false;  ///< AdamW's moments in 8 bits, block-wise as in bitsandbytes: a quarter of their memory
  ModelOptions model{};    ///< how the model is opened

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
          .adamw8bit = options.adamw8bit};
}

/// What a step did. grad_norm is before clipping.
struct StepReport {
  int step = 0;               ///< counts from 1
  double loss = 0.0;          ///< nats per labelled token
  double grad_norm = 0.0;     ///< norm of all gradients together
  double lr = 0.0;            ///< learning rate of the step
  std::int64_t tokens = 0;    ///< positions, padding included
  std::int64_t labelled = 0;  ///< tokens that were predicted
};

/// Mean loss over labelled tokens, and how many there were.
struct Evaluation {
  double loss = 0.0;          ///< nats per labelled token; 0 without any
  std::int64_t labelled = 0;  ///< tokens that were predicted
};

/// The optimizer and its state, for one Code. Used by one thread at a time.
template <Code K, class B>
class TrainerCore {
 public:
  using Param = typename B::Param;  ///< what is trained

  /// Takes all memory of a run. Trains what the weights hold, in a context on these very weights; both outlive the
  /// core. Throws Error (usage) when an option is outside its range.
  TrainerCore(Context<K, B>& context, Weights<K, B>& weights, const TrainOptions& options, bool keep_dequantized)
      : context_(context),
        b_(context.backend()),
        w_(weights),
        options_(checked(options)),
        run_(run_of(options, keep_dequantized)),
        network_(context, run_),
        builder_(static_cast<std::size_t>(options.batch) * static_cast<std::size_t>(options.seq)),
        arena_(b_.arena(bytes_needed())) {
    const std::int64_t count = w_.layout().total();
    gradients_ = arena_.template take<Param>(count);
    for (std::size_t i = 0; i < 2; ++i) {
      if (options_.adamw8bit) {
        codes_[i].codes =
            reinterpret_cast<std::uint8_t*>(arena_.template take<std::uint32_t>(moment_code_words(count)));
        codes_[i].absmax = arena_.template take<float>(moment_blocks(count));
      } else {
        moments_[i] = arena_.template take<Param>(count);
      }
    }
    partial_ = arena_.template take<double>(norm_partials(count));
    scalars_ = arena_.template take<StepScalars>(1);
    if constexpr (!Weights<K, B>::full) {
      w_.init_adapters(b_, {options.rank, options.alpha, options.rank_stabilized, options.overrides}, options.seed);
    }
    find_ranges();
  }

  /// One optimizer step on all these windows, in micro-batches of options.batch.
  StepReport step(const Windows& windows) {
    const auto entry = context_.enter_training();
    expect_trainable();
    windows.check(w_.dims().shape().vocab);
    QLORA_EXPECTS(windows.seq <= options_.seq, "windows of ", windows.seq, " tokens; there is room for ", options_.seq);
    StepReport report;
    report.tokens = static_cast<std::int64_t>(windows.ids.size());
    report.labelled = BatchBuilder::count_labelled(windows);
    QLORA_EXPECTS(report.labelled > 0, "no token of this step is labelled: nothing to learn from");
    report.lr = rate();
    b_.zero(gradients_, w_.layout().total());
    b_.zero(scalars_);
    const double scale = 1.0 / static_cast<double>(report.labelled);
    for (int first = 0; first < windows.count(); first += options_.batch) {
      const Windows micro = windows.slice(first, std::min(options_.batch, windows.count() - first));
      network_.forward(builder_.build(micro), dropout_site(static_cast<std::uint32_t>(first * windows.seq)));
      const Param* losses = network_.backward(scale, gradients_);
      b_.add_losses(static_cast<int>(micro.ids.size()), losses, scalars_);
    }
    b_.gradient_norm(w_.layout().total(), gradients_, partial_, options_.max_grad_norm, scalars_);
    update(report.lr);  // does nothing when something is not finite
    const StepScalars result = b_.read(scalars_);
    report.loss = result.loss * scale;
    report.grad_norm = result.grad_norm;
    if (!std::isfinite(report.loss) || !std::isfinite(report.grad_norm) || result.fault != 0) {
      fail_non_finite(report, result.fault);
    }
    report.step = ++step_;
    return report;
  }

  /// Mean loss over the labelled tokens of all these windows, without dropout.
  Evaluation evaluate(const Windows& windows) {
    const auto entry = context_.enter();
    windows.check(w_.dims().shape().vocab);
    Evaluation result;
    b_.zero(scalars_);
    for (int first = 0; first < windows.count(); first += options_.batch) {
      const Windows micro = windows.slice(first, std::min(options_.batch, windows.count() - first));
      const TokenBatch batch = builder_.build(micro);
      network_.forward(batch);
      b_.add_losses(batch.tokens, network_.losses(), scalars_);
      result.labelled += batch.labelled_count;
    }
    const double loss = b_.read(scalars_).loss;
    result.loss = result.labelled > 0 ? loss / static_cast<double>(result.labelled) : 0.0;
    return result;
  }

  /// Steps done so far; a resumed run sets it.
  [[nodiscard]] int steps_done() const { return step_; }
  /// Says how many steps the restored state has seen: learning rate, dropout and moments depend on it.
  void set_steps_done(int steps) { step_ = steps; }
  /// The options that it was made with.
  [[nodiscard]] const TrainOptions& options() const { return options_; }

  /// Calls visit(name, data, count) for the arrays that, with the step number, are the whole state of a run: dropout,
  /// data order and learning rate are functions of the step. 8-bit codes travel four to a number, as bits.
  template <class Visit>
  void for_each_state(Visit&& visit) {
    const std::int64_t count = w_.layout().total();
    visit(std::string("trained"), w_.trained(), count);
    for (std::size_t i = 0; i < 2; ++i) {
      const std::string name = i == 0 ? "moment1" : "moment2";
      if (!options_.adamw8bit) {
        visit(name, moments_[i], count);
        continue;
      }
      if constexpr (std::is_same_v<Param, float>) {
        visit(name + ".codes", reinterpret_cast<float*>(codes_[i].codes), moment_code_words(count));
        visit(name + ".absmax", codes_[i].absmax, moment_blocks(count));
      }
    }
  }
  /// The learning rate of each step, counted from 0, in place of the options' schedule; empty: that again. The function
  /// is no part of a checkpoint.
  void use_schedule(std::function<double(int step)> rate) { rate_ = std::move(rate); }
  /// Norms of the last step's gradients, layer by layer, before clipping.
  [[nodiscard]] std::vector<double> layer_gradient_norms() {
    const auto entry = context_.enter();
    std::vector<double> norms;
    const TrainedLayout& layout = w_.layout();
    for (int layer = 0; layer < w_.layers(); ++layer) {
      b_.gradient_norm(layout.layer_size(), gradients_ + layout.layer_offset(layer), partial_, 0.0F, scalars_);
      norms.push_back(b_.read(scalars_).grad_norm);
    }
    return norms;
  }
  /// Gradients of the last step, before clipping, laid out as the trained parameters.
  [[nodiscard]] const Param* gradients() const { return gradients_; }
  /// What runs the forward and the backward pass.
  [[nodiscard]] Network<K, B>& network() { return network_; }
  /// The same, to look at.
  [[nodiscard]] const Network<K, B>& network() const { return network_; }
  /// Bytes of all arenas of the run, weights included.
  [[nodiscard]] std::int64_t arena_bytes_used() const {
    return arena_.used() + network_.arena().used() + w_.bytes_used();
  }

 private:
  /// Before anything is sized from them.
  [[nodiscard]] static const TrainOptions& checked(const TrainOptions& options) {
    options.check();
    constexpr bool full = Weights<K, B>::full;
    QLORA_EXPECTS(!full || options.overrides.empty(), "overrides are for adapters; this config trains every weight");
    constexpr bool float_adapters = !full && std::is_same_v<Param, float>;
    QLORA_EXPECTS(!options.adamw8bit || float_adapters, "moments in 8 bits are for adapters in float");
    return options;
  }
  /// A step with its adapters off would have no gradient, and momentum would still move the weights; one past the
  /// schedule would have a learning rate of 0.
  void expect_trainable() const {
    if (!context_.uses_own()) {
      throw Error(
          "the adapters are off: a training step needs the model's own ones, with scale 1; call "
          "context().use_own()",
          ErrorKind::usage);
    }
    if (!rate_ && options_.schedule != Schedule::constant && step_ >= options_.total_steps) {
      throw Error(concat("step ", step_ + 1, " is past the schedule, which ends after total_steps = ",
                         options_.total_steps, " with a learning rate of 0"),
                  ErrorKind::usage);
    }
  }
  [[nodiscard]] double rate() const {
    if (!rate_) {
      return learning_rate(options_.schedule, static_cast<double>(options_.lr), step_, options_.warmup_steps,
                           options_.total_steps);
    }
    const double lr = rate_(step_);
    detail::expect_option(std::isfinite(lr) && lr >= 0.0, concat("the learning rate of step ", step_ + 1), lr,
                          "0 or more, and finite");
    return lr;
  }
  [[nodiscard]] std::int64_t bytes_needed() const {
    const MemoryPlan plan = Network<K, B>::plan(w_, run_, b_.workers());
    return plan[Purpose::gradients] + plan[Purpose::moments] + arena_bytes(norm_partials(w_.layout().total()) * 8) +
           arena_bytes(static_cast<std::int64_t>(sizeof(StepScalars)));
  }
  [[nodiscard]] DropoutSite dropout_site(std::uint32_t first_token) const {
    if (!run_.dropout || Weights<K, B>::full) return {};
    DropoutSite site = dropout_rate(options_.dropout);
    site.seed = options_.seed;
    site.step = static_cast<std::uint32_t>(step_);
    site.first_token = first_token;
    return site;
  }
  void find_ranges() {
    std::vector<detail::TrainedSpan> spans;
    for (TrainedTensor& tensor : trained_tensors(w_.layout())) {
      const bool is_norm = Weights<K, B>::full && tensor.rows == 1;
      spans.push_back({std::move(tensor.name), tensor.offset, !is_norm});
    }
    ranges_ = detail::rule_ranges(spans, w_.layout().total(), options_.groups, options_.weight_decay);
    if (options_.adamw8bit) detail::expect_whole_blocks(ranges_);
  }
  void update(double lr) {
    AdamW rule{.beta1 = options_.beta1, .beta2 = options_.beta2, .eps = options_.eps, .step = step_ + 1};
    for (const detail::RuleRange& range : ranges_) {
      rule.lr = static_cast<float>(lr) * range.lr_scale;
      rule.weight_decay = range.weight_decay;
      const Param* gradients = gradients_ + range.first;
      Param* parameters = w_.trained() + range.first;
      if (options_.adamw8bit) {
        b_.adamw8bit(range.count, rule, scalars_, gradients, parameters, codes_from(0, range.first),
                     codes_from(1, range.first));
      } else {
        b_.adamw(range.count, rule, scalars_, gradients, parameters, moments_[0] + range.first,
                 moments_[1] + range.first);
      }
    }
  }
  /// The codes of a moment from a number on, which begins a block.
  [[nodiscard]] Moments8bit codes_from(std::size_t moment, std::int64_t first) const {
    return {codes_[moment].codes + first, codes_[moment].absmax + first / moment_block};
  }
  /// This step has updated nothing; says where the trouble is first seen, and whether an earlier step left it behind.
  [[noreturn, gnu::cold]] void fail_non_finite(const StepReport& report, std::uint32_t fault) {
    std::string where;
    if (fault != 0) {
      where = concat(", first met in ", name_of(place_site(fault)));
      if (place_layer(fault) >= 0) where += concat(" of layer ", place_layer(fault));
    } else {
      for (const TrainedTensor& tensor : trained_tensors(w_.layout())) {
        b_.gradient_norm(tensor.rows * tensor.cols, gradients_ + tensor.offset, partial_, 0.0F, scalars_);
        if (std::isfinite(b_.read(scalars_).grad_norm)) continue;
        where = ", first in the gradient of " + tensor.name;
        break;
      }
    }
    const std::string what =
        concat("step ", step_ + 1, ": loss ", report.loss, ", gradient norm ", report.grad_norm, where);
    b_.gradient_norm(w_.layout().total(), w_.trained(), partial_, 0.0F, scalars_);  // of the weights
    if (!std::isfinite(b_.read(scalars_).grad_norm)) {
      throw Error(what +
                  "; the weights were not finite before this step. Go back to a checkpoint and lower the "
                  "learning rate");
    }
    throw Error(concat(what, "; no weight was changed. Lower the learning rate (now ", report.lr,
                       ") or look at the data of this step"));
  }

  Context<K, B>& context_;
  B& b_;
  Weights<K, B>& w_;
  TrainOptions options_;
  Run run_;
  Network<K, B> network_;
  BatchBuilder builder_;
  typename B::Arena arena_;
  Param* gradients_ = nullptr;
  std::array<Param*, 2> moments_{};
  std::array<Moments8bit, 2> codes_{};
  double* partial_ = nullptr;
  StepScalars* scalars_ = nullptr;
  std::vector<detail::RuleRange> ranges_;
  std::function<double(int)> rate_;
  int step_ = 0;
};

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
  expect_served<B>(resolved(C, model.shape, model.lora), true);
  return model;
}
}  // namespace detail

/// A model and its training. Used by one thread at a time; generators and scorers on trainer.model() may run in others
/// between steps, and during a step throw Error (usage) if they apply what it trains.
/// Trainer<mine, Cpu<>> trainer{source, {.lr = 2e-4F}};  trainer.step(windows);
/// What reaches the code beneath is defined outside the class: inline functions would be compiled again in every file
/// that uses a trainer of qlora_add_model.
template <Config C, class B>
requires CanTrain<C, B>
class Trainer {
 public:
  /// Throws Error as Model does, and (usage) when an option is outside its range.
  explicit Trainer(const TensorSource& source, const TrainOptions& options = {}, B backend = B());

  /// One optimizer step on these windows. Throws Error, with nothing changed, when loss or gradients are not finite,
  /// and (usage) while the model's adapters are off or when a linear or cosine schedule has had its total_steps.
  StepReport step(const Windows& windows);
  /// One step on plain tokens: windows of `seq`, every token a label.
  StepReport step(std::span<const std::int32_t> ids, int seq);
  /// Mean loss over the labelled tokens of all these windows, without dropout; nothing changes.
  Evaluation evaluate(const Windows& windows);
  /// The learning rate of each step, counted from 0, in place of the options' schedule:
  ///   trainer.use_schedule([](int step) { return 1e-3 / (1 + step); });
  /// A step throws Error (usage) when it is negative or not finite.
  void use_schedule(std::function<double(int step)> rate) { core_->use_schedule(std::move(rate)); }

  /// The model that is trained. With its adapters off no step can be made.
  [[nodiscard]] Model<C, B>& model() { return model_; }
  /// The same, to read.
  [[nodiscard]] const Model<C, B>& model() const { return model_; }
  /// Where it trains: AdaptersOff off(trainer.context()) makes evaluate() that of the base.
  [[nodiscard]] Context<code_of(C), B>& context() { return model_.context(); }
  /// The optimizer and its state, for what saves and restores it.
  [[nodiscard]] TrainerCore<code_of(C), B>& core() { return *core_; }
  /// The same, to read.
  [[nodiscard]] const TrainerCore<code_of(C), B>& core() const { return *core_; }

 private:
  Model<C, B> model_;
  std::unique_ptr<TrainerCore<code_of(C), B>> core_;
};

template <Config C, class B>
requires CanTrain<C, B> Trainer<C, B>::Trainer(const TensorSource& source, const TrainOptions& options, B backend)
    : model_(source, detail::checked_training_model<C, B>(options), std::move(backend)),
      core_(std::make_unique<TrainerCore<code_of(C), B>>(model_.context(), model_.weights(), options,
                                                         model_.keeps_dequantized())) {}

template <Config C, class B>
requires CanTrain<C, B> StepReport Trainer<C, B>::step(const Windows& windows) { return core_->step(windows); }

template <Config C, class B>
requires CanTrain<C, B> StepReport Trainer<C, B>::step(std::span<const std::int32_t> ids, int seq) {
  return core_->step({seq, ids, ids, {}});
}

template <Config C, class B>
requires CanTrain<C, B> Evaluation Trainer<C, B>::evaluate(const Windows& windows) { return core_->evaluate(windows); }

}  // namespace v0
}  // namespace qlora
