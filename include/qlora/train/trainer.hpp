// qlora/train/trainer.hpp — Trainer<C, B>: causal-LM training with the semantics of the Hugging Face Trainer.
// One step: gradients of the mean loss over all labelled tokens of the step (whatever its split into micro-batches),
// clipped by their norm, AdamW, learning rate from the schedule. Deterministic, on any number of ranks; a step
// allocates nothing.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "qlora/model/model.hpp"
#include "qlora/train/batch.hpp"
#include "qlora/train/parameter_groups.hpp"
#include "qlora/train/rank_sums.hpp"
#include "qlora/train/train_options.hpp"

namespace qlora {
inline namespace v0 {

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
    const std::int64_t total = w_.layout().total();
    gradients_ = arena_.template take<Param>(total);
    if (run_.ranks > 1) {
      ranks_.emplace(*options.comm, b_, arena_, w_.layout());
    } else {
      addend_ = arena_.template take<Param>(w_.layout().addend_size());
    }
    const std::int64_t count = ranks_ ? ranks_->shards().largest() : total;  // of AdamW's state
    for (std::size_t i = 0; i < 2; ++i) {
      if (options_.adamw8bit) {
        codes_[i].codes =
            reinterpret_cast<std::uint8_t*>(arena_.template take<std::uint32_t>(moment_code_words(count)));
        codes_[i].absmax = arena_.template take<float>(moment_blocks(count));
      } else {
        moments_[i] = arena_.template take<Param>(count);
      }
    }
    partial_ = arena_.template take<double>(norm_partials(total));
    scalars_ = arena_.template take<StepScalars>(1);
    if constexpr (!Weights<K, B>::full) {
      w_.init_adapters(b_, {options.rank, options.alpha, options.rank_stabilized, options.overrides}, options.seed);
    }
    measure_rows();
    find_ranges();
  }

  /// One optimizer step on all these windows, in micro-batches of options.batch.
  StepReport step(const Windows& windows) {
    const auto entry = context_.enter_training();
    expect_trainable();
    measure_rows(entry);
    windows.check(w_.dims().shape().vocab);
    QLORA_EXPECTS(windows.seq <= options_.seq, "windows of ", windows.seq, " tokens; there is room for ", options_.seq);
    StepReport report;
    report.tokens = static_cast<std::int64_t>(windows.ids.size());
    report.labelled = BatchBuilder::count_labelled(windows);
    QLORA_EXPECTS(report.labelled > 0, "no token of this step is labelled: nothing to learn from");
    report.lr = rate();
    const double scale = 1.0 / static_cast<double>(report.labelled);
    const StepScalars result =
        ranks_ ? step_of_ranks(windows, scale, report.lr) : step_alone(windows, scale, report.lr);
    report.loss = result.loss * scale;
    report.grad_norm = result.grad_norm;
    if (!std::isfinite(report.loss) || !std::isfinite(report.grad_norm) || result.fault != 0) {
      fail_non_finite(report, result.fault);
    }
    report.step = ++step_;
    w_.own().rows_changed();
    measure_rows(entry);
    return report;
  }

  /// Adapters with DoRA have other lengths of rows when they were loaded; steps and evaluate() see to it themselves.
  /// Before other uses of adapters that were loaded, between calls.
  void measure_rows() {
    if (!w_.own().is_measured()) measure_rows(context_.enter_training());
  }
  /// The same within a call that writes adapters.
  void measure_rows(const typename Context<K, B>::Entry& /*writing*/) { w_.measure_rows(b_, network_.scratch()); }

  /// Mean loss over the labelled tokens of all these windows, without dropout.
  Evaluation evaluate(const Windows& windows) {
    measure_rows();
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
  /// data order and learning rate are functions of the step. 8-bit codes travel four to a number, as bits. Of several
  /// ranks all call this at the same time; each sees the whole arrays, of AdamW's state a copy that lives during the
  /// visit.
  template <class Visit>
  void for_each_state(Visit&& visit) {
    for_each_part([&](const std::string& name, Param* data, std::int64_t /*first*/, std::int64_t /*count*/,
                      std::int64_t all, std::int64_t per_number) {
      if (ranks_ && data != w_.trained()) {
        ranks_->collect(data, all, per_number, gradients_);
        data = gradients_;
      }
      visit(name, data, all);
    });
  }
  /// Calls visit(name, data, first, count, all, numbers) for what this process holds of each of these arrays: the
  /// numbers [first, first + count) of all, each of which stands for so many trained numbers.
  template <class Visit>
  void for_each_part(Visit&& visit) {
    const std::int64_t total = w_.layout().total();
    const auto part = [&](const std::string& name, Param* data, std::int64_t all, std::int64_t numbers) {
      const Shards shards{all, run_.ranks, norm_tile / numbers};
      const int rank = ranks_ ? options_.comm->rank() : 0;
      visit(name, data, shards.first(rank), shards.size(rank), all, numbers);
    };
    visit(std::string("trained"), w_.trained(), std::int64_t{0}, total, total, std::int64_t{1});
    for (std::size_t i = 0; i < 2; ++i) {
      const std::string name = i == 0 ? "moment1" : "moment2";
      if (!options_.adamw8bit) {
        part(name, moments_[i], total, 1);
        continue;
      }
      if constexpr (std::is_same_v<Param, float>) {
        part(name + ".codes", reinterpret_cast<float*>(codes_[i].codes), moment_code_words(total), 4);
        part(name + ".absmax", codes_[i].absmax, moment_blocks(total), moment_block);
      }
    }
  }
  /// The learning rate of each step, counted from 0, in place of the options' schedule; empty: that again. The function
  /// is no part of a checkpoint.
  void use_schedule(std::function<double(int step)> rate) { rate_ = std::move(rate); }
  /// Norms of the last step's gradients, layer by layer, before clipping. Of several ranks all call this.
  [[nodiscard]] std::vector<double> layer_gradient_norms() {
    const auto entry = context_.enter();
    if (ranks_) ranks_->collect(gradients_);
    std::vector<double> norms;
    const TrainedLayout& layout = w_.layout();
    for (int layer = 0; layer < w_.layers(); ++layer) {
      b_.gradient_norm(layout.layer_size(), gradients_ + layout.layer_offset(layer), partial_, 0.0F, scalars_);
      norms.push_back(b_.read(scalars_).grad_norm);
    }
    return norms;
  }
  /// Gradients of the last step, before clipping, laid out as the trained parameters. Of several ranks those of the
  /// rank's last micro-batch alone, until layer_gradient_norms() has been called.
  [[nodiscard]] const Param* gradients() const { return gradients_; }
  /// What runs the forward and the backward pass.
  [[nodiscard]] Network<K, B>& network() { return network_; }
  /// The same, to look at.
  [[nodiscard]] const Network<K, B>& network() const { return network_; }
  /// Processes that share the steps.
  [[nodiscard]] int ranks() const { return run_.ranks; }
  /// This one's number among them, from 0.
  [[nodiscard]] int rank() const { return ranks_ ? options_.comm->rank() : 0; }
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
           step_scalars_bytes(run_.ranks);
  }
  /// The micro-batch that begins at window `first`.
  [[nodiscard]] Windows micro_batch(const Windows& windows, int first) const {
    return windows.slice(first, std::min(options_.batch, windows.count() - first));
  }
  /// Gradient and loss of the micro-batch that begins at window `first`.
  void run_micro_batch(const Windows& windows, int first, double scale, Param* gradients, Param* apart,
                       StepScalars* scalars) {
    const Windows micro = micro_batch(windows, first);
    network_.forward(builder_.build(micro), dropout_site(static_cast<std::uint32_t>(first * windows.seq)));
    const Param* losses = network_.backward(scale, gradients, apart);
    b_.add_losses(static_cast<int>(micro.ids.size()), losses, scalars);
  }
  StepScalars step_alone(const Windows& windows, double scale, double lr) {
    b_.zero(gradients_, w_.layout().total());
    b_.zero(scalars_);
    for (int first = 0; first < windows.count(); first += options_.batch) {
      run_micro_batch(windows, first, scale, gradients_, first == 0 ? nullptr : addend_, scalars_);
    }
    b_.gradient_norm(w_.layout().total(), gradients_, partial_, options_.max_grad_norm, scalars_);
    update(lr);  // does nothing when something is not finite
    return b_.read(scalars_);
  }
  /// The same on this rank's part of the micro-batches, and of the parameters.
  StepScalars step_of_ranks(const Windows& windows, double scale, double lr) {
    detail::RankSums<B>& ranks = *ranks_;
    agree_on_algorithms(windows, scale);
    ranks.begin((windows.count() + options_.batch - 1) / options_.batch);
    for (int round = 0; round < ranks.rounds(); ++round) {
      const std::int64_t first = std::int64_t{ranks.micro_batch(round)} * options_.batch;
      if (first < windows.count()) {
        b_.zero(gradients_, w_.layout().total());
        run_micro_batch(windows, static_cast<int>(first), scale, gradients_, nullptr, ranks.scalars(round));
      }
      ranks.add(round, gradients_);
    }
    b_.zero(scalars_);
    ranks.norm(partial_, options_.max_grad_norm, scalars_);
    StepScalars result = b_.read(scalars_);
    const StepScalars all = ranks.gather(result.fault);
    result.loss = all.loss;
    result.fault = all.fault;
    // Every rank knows this of all of them, and so does the same.
    if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm) || result.fault != 0) {
      ranks.collect(gradients_);  // where the report looks for the place
      return result;
    }
    update(lr);
    all_gather(ranks.comm(), w_.trained(), ranks.shards());
    ranks.comm().wait();
    return result;
  }
  /// Rank 0 measures algorithms for what this step has and no step before had, and the others take over its choice.
  void agree_on_algorithms([[maybe_unused]] const Windows& windows, [[maybe_unused]] double scale) {
    if constexpr (detail::ChoosesAlgorithms<B>) {
      bool all_known = true;
      for (int first = 0; first < windows.count(); first += options_.batch) {
        const Windows micro = micro_batch(windows, first);
        // Products depend on the number of tokens, and those of the loss on the labelled ones in its last chunk.
        const int eighth = std::max((options_.loss_chunk + 7) / 8, 1);
        const auto labelled = static_cast<int>(BatchBuilder::count_labelled(micro) % options_.loss_chunk);
        const std::pair size(micro.count() * micro.seq, (labelled + eighth - 1) / eighth);
        if (std::find(known_sizes_.begin(), known_sizes_.end(), size) != known_sizes_.end()) continue;
        known_sizes_.push_back(size);
        all_known = false;
        if (options_.comm->rank() == 0) run_micro_batch(windows, first, scale, gradients_, nullptr, scalars_);
      }
      if (!all_known) b_.load_algorithms(options_.comm->broadcast(b_.algorithms()));
    }
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
    const std::int64_t begin = ranks_ ? ranks_->first() : 0;  // of the numbers that this process updates
    const std::int64_t end = ranks_ ? begin + ranks_->count() : w_.layout().total();
    const Param* sum = ranks_ ? ranks_->sum() : gradients_;
    for (const detail::RuleRange& range : ranges_) {
      const std::int64_t first = std::max(range.first, begin);
      const std::int64_t count = std::min(range.first + range.count, end) - first;
      if (count <= 0) continue;
      rule.lr = static_cast<float>(lr) * range.lr_scale;
      rule.weight_decay = range.weight_decay;
      const std::int64_t at = first - begin;  // in the arrays of this process
      Param* parameters = w_.trained() + first;
      if (options_.adamw8bit) {
        b_.adamw8bit(count, rule, scalars_, sum + at, parameters, codes_from(0, at), codes_from(1, at));
      } else {
        b_.adamw(count, rule, scalars_, sum + at, parameters, moments_[0] + at, moments_[1] + at);
      }
    }
  }
  /// The codes of a moment from one of this process's numbers on, which begins a block.
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
  Param* addend_ = nullptr;                         ///< of one process; see Network::backward
  std::optional<detail::RankSums<B>> ranks_{};      ///< of several
  std::vector<std::pair<int, int>> known_sizes_{};  ///< of micro-batches whose algorithms all ranks have
  std::array<Param*, 2> moments_{};
  std::array<Moments8bit, 2> codes_{};
  double* partial_ = nullptr;
  StepScalars* scalars_ = nullptr;
  std::vector<detail::RuleRange> ranges_;
  std::function<double(int)> rate_;
  int step_ = 0;
};

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
