// qlora/train/trainer.hpp — Trainer<C, B>: causal-LM training with the semantics of the Hugging Face Trainer.
// One step: gradients of the mean loss over all labelled tokens of the step (whatever its split into micro-batches),
// clipped by their norm, AdamW, learning rate from the schedule. Deterministic; a step allocates nothing.
#pragma once

#include <cmath>
#include <string>

#include "qlora/model/model.hpp"
#include "qlora/train/batch.hpp"
#include "qlora/train/schedule.hpp"

namespace qlora {
inline namespace v0 {

/// What a training run may choose. Defaults are the article's and the Hugging Face Trainer's.
struct TrainOptions {
  int rank = 0;  ///< 0: the config's cap
  float alpha = 16.0F;
  bool rank_stabilized = false;
  std::vector<AdapterOverride> overrides{};
  float dropout = 0.1F;  ///< on the input of adapters
  float lr = 2e-4F;
  Schedule schedule = Schedule::linear;
  int warmup_steps = 0;
  int total_steps = 160;  ///< the schedule's horizon
  float beta1 = 0.9F;
  float beta2 = 0.999F;
  float eps = 1e-8F;
  float weight_decay = 0.0F;   ///< not applied to norm weights
  float max_grad_norm = 1.0F;  ///< 0: no clipping
  std::uint64_t seed = 42;
  int batch = 2;  ///< windows in one micro-batch
  int seq = 2048;
  Recompute recompute = Recompute::none;
  int recompute_layers = -1;
  int loss_chunk = 512;
  ModelOptions model{};
};

/// What a step did. grad_norm is before clipping.
struct StepReport {
  int step = 0;  ///< counts from 1
  double loss = 0.0;
  double grad_norm = 0.0;
  double lr = 0.0;
  std::int64_t tokens = 0;
  std::int64_t labelled = 0;
};

/// Mean loss over labelled tokens, and how many there were.
struct Evaluation {
  double loss = 0.0;
  std::int64_t labelled = 0;
};

/// The optimizer and its state, for one Code.
template <Code K, class B>
class TrainerCore {
 public:
  using S = typename B::Scalar;

  TrainerCore(B& backend, Weights<K, B>& weights, const TrainOptions& options, bool keep_dequantized)
      : b_(backend),
        w_(weights),
        options_(checked(options)),
        run_{.batch = options.batch,
             .seq = options.seq,
             .recompute = options.recompute,
             .recompute_layers = options.recompute_layers,
             .loss_chunk = options.loss_chunk,
             .dropout = options.dropout > 0.0F,
             .keep_dequantized = keep_dequantized},
        pass_(backend, weights, run_),
        builder_(static_cast<std::size_t>(options.batch) * static_cast<std::size_t>(options.seq)),
        arena_(bytes_needed()) {
    const std::int64_t count = w_.layout().total();
    gradients_ = arena_.template take<S>(count);
    moment1_ = arena_.template take<S>(count);
    moment2_ = arena_.template take<S>(count);
    partial_ = arena_.template take<double>(norm_partials(count));
    losses_.resize(static_cast<std::size_t>(options.batch) * static_cast<std::size_t>(options.seq));
    if constexpr (!Weights<K, B>::full) {
      w_.init_adapters(b_, {options.rank, options.alpha, options.rank_stabilized, options.overrides}, options.seed);
    }
    find_decay_ranges();
  }

  /// One optimizer step on all these windows, in micro-batches of options.batch.
  StepReport step(const Windows& windows) {
    windows.check(K.shape.vocab);
    QLORA_EXPECTS(windows.seq <= options_.seq, "windows of ", windows.seq, " tokens; there is room for ", options_.seq);
    StepReport report;
    report.tokens = static_cast<std::int64_t>(windows.ids.size());
    report.labelled = BatchBuilder::count_labelled(windows);
    QLORA_EXPECTS(report.labelled > 0, "no token of this step is labelled: nothing to learn from");
    report.lr = learning_rate(options_.schedule, static_cast<double>(options_.lr), step_, options_.warmup_steps,
                              options_.total_steps);
    b_.zero(gradients_, w_.layout().total());
    double loss = 0.0;
    const double scale = 1.0 / static_cast<double>(report.labelled);
    for (int first = 0; first < windows.count(); first += options_.batch) {
      const Windows micro = windows.slice(first, std::min(options_.batch, windows.count() - first));
      pass_.forward(builder_.build(micro), dropout_site(static_cast<std::uint32_t>(first * windows.seq)));
      loss += sum(pass_.backward(S(scale), gradients_), micro.ids.size());
    }
    report.loss = loss * scale;
    report.grad_norm = b_.gradient_norm(w_.layout().total(), gradients_, partial_);
    if (!std::isfinite(report.loss) || !std::isfinite(report.grad_norm)) fail_non_finite(report);
    update(report);
    report.step = ++step_;
    return report;
  }

  /// Mean loss over the labelled tokens of all these windows, without dropout.
  Evaluation evaluate(const Windows& windows) {
    windows.check(K.shape.vocab);
    Evaluation result;
    double loss = 0.0;
    for (int first = 0; first < windows.count(); first += options_.batch) {
      const Windows micro = windows.slice(first, std::min(options_.batch, windows.count() - first));
      pass_.forward(builder_.build(micro));
      loss += sum(pass_.losses(), micro.ids.size());
      result.labelled += builder_.labelled();
    }
    result.loss = result.labelled > 0 ? loss / static_cast<double>(result.labelled) : 0.0;
    return result;
  }

  /// Steps done so far; a resumed run sets it.
  [[nodiscard]] int steps_done() const { return step_; }
  void set_steps_done(int steps) { step_ = steps; }
  [[nodiscard]] const TrainOptions& options() const { return options_; }

  /// Calls visit(name, data, count) for the three arrays that, with the step number, are the whole state of a run:
  /// dropout, data order and learning rate are functions of the step.
  template <class Visit>
  void for_each_state(Visit&& visit) {
    const std::int64_t count = w_.layout().total();
    visit(std::string("trained"), w_.trained(), count);
    visit(std::string("moment1"), moment1_, count);
    visit(std::string("moment2"), moment2_, count);
  }
  /// Gradients of the last step, before clipping, laid out as the trained parameters.
  [[nodiscard]] const S* gradients() const { return gradients_; }
  [[nodiscard]] Pass<K, B>& pass() { return pass_; }
  /// Bytes of all arenas of the run, weights included.
  [[nodiscard]] std::int64_t arena_bytes_used() const {
    return arena_.used() + pass_.arena().used() + w_.arena().used();
  }

 private:
  struct Range {
    std::int64_t first = 0;
    std::int64_t count = 0;
    bool decays = true;
  };

  /// Before anything is sized from them. A micro-batch of 2^24 tokens is beyond any memory and below where int ends.
  [[nodiscard]] static const TrainOptions& checked(const TrainOptions& options) {
    QLORA_EXPECTS(options.batch > 0 && options.seq > 0 && options.loss_chunk > 0 &&
                      std::int64_t{options.batch} * options.seq <= (1 << 24) && options.loss_chunk <= (1 << 24),
                  "batch ", options.batch, ", seq ", options.seq, ", loss_chunk ", options.loss_chunk);
    QLORA_EXPECTS(options.dropout >= 0.0F && options.dropout < 1.0F, "dropout is ", options.dropout);
    QLORA_EXPECTS(options.lr >= 0.0F && options.total_steps >= 0 && options.warmup_steps >= 0, "lr ", options.lr,
                  ", total_steps ", options.total_steps, ", warmup_steps ", options.warmup_steps);
    return options;
  }
  [[nodiscard]] std::int64_t bytes_needed() const {
    const MemoryPlan plan = Pass<K, B>::plan(w_.layers(), run_, b_.workers());
    return plan[Purpose::gradients] + plan[Purpose::moments] + arena_bytes(norm_partials(w_.layout().total()) * 8);
  }
  [[nodiscard]] DropoutSite dropout_site(std::uint32_t first_token) const {
    if (!run_.dropout || Weights<K, B>::full) return {};
    DropoutSite site = dropout_rate(options_.dropout);
    site.seed = options_.seed;
    site.step = static_cast<std::uint32_t>(step_);
    site.first_token = first_token;
    return site;
  }
  /// Sum of row losses, in order, in double.
  [[nodiscard]] double sum(const S* row_losses, std::size_t count) {
    b_.download(row_losses, std::span(losses_).first(count));
    double total = 0.0;
    for (std::size_t i = 0; i < count; ++i) total += static_cast<double>(losses_[i]);
    return total;
  }
  void find_decay_ranges() {
    w_.for_each_trained([&](const std::string&, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
      const bool decays = !(Weights<K, B>::full && rows == 1);  // norm weights
      if (!ranges_.empty() && ranges_.back().decays == decays) {
        ranges_.back().count = offset + rows * cols - ranges_.back().first;
      } else {
        ranges_.push_back({offset, rows * cols, decays});
      }
    });
  }
  void update(const StepReport& report) {
    AdamW rule{.lr = static_cast<float>(report.lr),
               .beta1 = options_.beta1,
               .beta2 = options_.beta2,
               .eps = options_.eps,
               .step = step_ + 1};
    if (options_.max_grad_norm > 0.0F) {
      rule.gradient_scale = std::min(1.0, static_cast<double>(options_.max_grad_norm) / (report.grad_norm + 1e-6));
    }
    for (const Range& range : ranges_) {
      rule.weight_decay = range.decays ? options_.weight_decay : 0.0F;
      b_.adamw(range.count, rule, gradients_ + range.first, w_.trained() + range.first, moment1_ + range.first,
               moment2_ + range.first);
    }
  }
  /// Nothing has been updated; says where the trouble is first seen.
  [[noreturn]] void fail_non_finite(const StepReport& report) {
    std::string where;
    w_.for_each_trained([&](const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
      if (where.empty() && !std::isfinite(b_.gradient_norm(rows * cols, gradients_ + offset, partial_))) where = name;
    });
    throw Error(detail::concat("step ", step_ + 1, ": loss ", report.loss, ", gradient norm ", report.grad_norm,
                               where.empty() ? std::string() : ", first in the gradient of " + where,
                               "; no weight was changed. Lower the learning rate (now ", report.lr,
                               ") or look at the data of this step"));
  }

  B& b_;
  Weights<K, B>& w_;
  TrainOptions options_;
  Run run_;
  Pass<K, B> pass_;
  BatchBuilder builder_;
  typename B::Arena arena_;
  S* gradients_ = nullptr;
  S* moment1_ = nullptr;
  S* moment2_ = nullptr;
  double* partial_ = nullptr;
  std::vector<float> losses_;
  std::vector<Range> ranges_;
  int step_ = 0;
};

/// A backend that can train what the config trains.
template <Config C, class B>
concept CanTrain = ValidConfig<C> && Backend<B> &&(C.trainable == Trainable::adapters || FullBackend<B>);

/// A model and its training. Trainer<mine, Cpu<>> trainer{source, {.lr = 2e-4F}};  trainer.step(windows);
/// What reaches the code beneath is defined outside the class: inline functions would be compiled again in every file
/// that uses a trainer of qlora_add_model.
template <Config C, class B>
requires CanTrain<C, B>
class Trainer {
 public:
  explicit Trainer(const TensorSource& source, const TrainOptions& options = {}, B backend = B());

  /// One optimizer step on these windows. Throws Error, with nothing changed, when loss or gradients are not finite.
  StepReport step(const Windows& windows);
  /// One step on plain tokens: windows of `seq`, every token a label.
  StepReport step(std::span<const std::int32_t> ids, int seq);
  Evaluation evaluate(const Windows& windows);

  [[nodiscard]] Model<C, B>& model() { return model_; }
  [[nodiscard]] TrainerCore<code_of(C), B>& core() { return core_; }

 private:
  Model<C, B> model_;
  TrainerCore<code_of(C), B> core_;
};

template <Config C, class B>
requires CanTrain<C, B> Trainer<C, B>::Trainer(const TensorSource& source, const TrainOptions& options, B backend)
    : model_(source, options.model, std::move(backend)),
      core_(model_.backend(), model_.weights(), options, model_.keeps_dequantized()) {}

template <Config C, class B>
requires CanTrain<C, B> StepReport Trainer<C, B>::step(const Windows& windows) { return core_.step(windows); }

template <Config C, class B>
requires CanTrain<C, B> StepReport Trainer<C, B>::step(std::span<const std::int32_t> ids, int seq) {
  return core_.step({seq, ids, ids, {}});
}

template <Config C, class B>
requires CanTrain<C, B> Evaluation Trainer<C, B>::evaluate(const Windows& windows) { return core_.evaluate(windows); }

}  // namespace v0
}  // namespace qlora
