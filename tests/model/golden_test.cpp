// The float CPU backend against torch, transformers, peft and bitsandbytes: every row of the four golden models
// (golden/README.md has the tolerances).
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "qlora/cpu.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/io/merge.hpp"
#include "qlora/io/quantize.hpp"
#include "qlora/run/merge_certificate.hpp"
#include "support/golden_models.hpp"
#include "support/scratch.hpp"

using namespace qlora;

namespace {

using B = Cpu<float>;

/// W + scale B A for every projection of `base`, with the golden adapter (rank 8, alpha 16), in float.
struct Merged {
  std::map<std::string, std::vector<float>, std::less<>> weights;
  TensorSource others;

  [[nodiscard]] TensorSource source() const {
    return [this](std::string_view name) -> std::optional<TensorRef> {
      const auto found = weights.find(name);
      if (found == weights.end()) return others(name);
      return TensorRef{DType::f32, others(name)->shape, std::as_bytes(std::span<const float>(found->second))};
    };
  }
};
Merged merge(const golden::Model& model, const std::function<std::vector<float>(int, Proj)>& base) {
  Merged merged{.weights = {}, .others = model.directory.source()};
  const Shape& shape = model.directory.shape;
  for (int layer = 0; layer < shape.layers; ++layer) {
    for (const Proj proj : all_projections) {
      const std::string name = golden::stem(layer, proj);
      const std::vector<float> a = model.floats("lora.weight." + name + ".lora_A.weight");
      const std::vector<float> b = model.floats("lora.weight." + name + ".lora_B.weight");
      std::vector<float> w = base(layer, proj);
      const auto in = static_cast<std::size_t>(cols_of(shape, proj));
      for (std::size_t i = 0; i < w.size(); ++i) {
        float sum = 0.0F;
        for (std::size_t r = 0; r < 8; ++r) sum += b[i / in * 8 + r] * a[r * in + i % in];
        w[i] += 2.0F * sum;
      }
      merged.weights[name + ".weight"] = std::move(w);
    }
  }
  return merged;
}

/// The numbers of a merge's certificate for these logits (T,V) of windows of 64 tokens, straight from their formulas.
run::MergeDifference by_formula(const std::vector<float>& live, const std::vector<float>& merged,
                                const std::vector<std::int32_t>& ids, std::size_t vocab) {
  run::MergeDifference sums;
  double loss = 0, tokens = 0;
  for (std::size_t t = 0; t < ids.size(); ++t) {
    if (t % 64 == 63) continue;
    double all_live = 0, all_merged = 0;
    for (std::size_t v = 0; v < vocab; ++v) {
      all_live += std::exp(static_cast<double>(live[t * vocab + v]));
      all_merged += std::exp(static_cast<double>(merged[t * vocab + v]));
    }
    std::size_t best_live = 0, best_merged = 0;
    for (std::size_t v = 0; v < vocab; ++v) {
      const double a = static_cast<double>(live[t * vocab + v]), b = static_cast<double>(merged[t * vocab + v]);
      const double p = std::exp(a) / all_live, q = std::exp(b) / all_merged;
      sums.largest_logit = std::max(sums.largest_logit, std::abs(a - b));
      sums.mean_logit += std::abs(a - b) / static_cast<double>(vocab);
      sums.kl += p * std::log(p / q);
      if (v == static_cast<std::size_t>(ids[t + 1])) loss -= std::log(q);
      if (live[t * vocab + v] > live[t * vocab + best_live]) best_live = v;
      if (merged[t * vocab + v] > merged[t * vocab + best_merged]) best_merged = v;
    }
    sums.agreement += best_live == best_merged ? 1 : 0;
    ++tokens;
  }
  sums.mean_logit /= tokens;
  sums.kl /= tokens;
  sums.agreement /= tokens;
  sums.perplexity = std::exp(loss / tokens);
  return sums;
}

/// What `qlora merge --onto original|nf4` writes has the logits of peft's merged models, and its certificate has the
/// numbers that peft's logits give.
template <Config F>
void check_merged_files(const golden::Model& model, const TrainOptions& options) {
  const test::Scratch scratch;
  const std::vector<std::int32_t> ids = model.ints("input_ids");
  const std::vector<float> live = model.floats("lora.logits");
  const auto vocab = static_cast<std::size_t>(F.shape.vocab);
  const PeftAdapter adapter = PeftAdapter::open(model.directory.path.parent_path() / "adapter");
  for (const std::string onto : {"merged_full", "merged_nf4"}) {
    CAPTURE(onto);
    if (onto == "merged_nf4") static_cast<void>(quantize_model(model.directory, scratch / "nf4", {}));
    const hf::ModelDir base = onto == "merged_nf4" ? hf::ModelDir::open(scratch / "nf4") : model.directory;
    MergeLanes lanes = host_merge_lanes(2);
    MergeOptions merging;
    merging.dtype = DType::f32;
    static_cast<void>(merge_model(base, adapter, scratch / onto, lanes, merging));
    const hf::ModelDir written = hf::ModelDir::open(scratch / onto);
    Trainer<F, B> trainer(written.source(), options, B(2));
    const std::vector<float> ours = golden::logits(trainer.core().network(), ids, F.shape.vocab);
    const std::vector<float> theirs = model.floats(onto + ".logits");
    CHECK(golden::largest_difference(ours, theirs) < 1e-4);

    run::MergeDistance distance;
    for (std::size_t t = 0; t < ids.size(); ++t) {
      if (t % 64 == 63) continue;
      const auto row = [&](const std::vector<float>& all) { return std::span(all).subspan(t * vocab, vocab); };
      distance.add(row(live), row(ours), ids[t + 1]);
    }
    const run::MergeDifference found = distance.of(onto), expected = by_formula(live, theirs, ids, vocab);
    CHECK(std::abs(found.largest_logit - expected.largest_logit) < 1e-4);
    CHECK(std::abs(found.mean_logit - expected.mean_logit) < 1e-5);
    CHECK(std::abs(found.kl - expected.kl) < 1e-6);
    CHECK(found.agreement == expected.agreement);
    CHECK(found.perplexity == doctest::Approx(expected.perplexity).epsilon(1e-5));
    // The adapter was trained on what the codes mean.
    if (onto == "merged_nf4") CHECK(found.kl < 1e-8);
    if (onto == "merged_full") CHECK(found.kl > 1e-5);
  }
}

/// Unquantized: logits, loss, hidden states and gradients of full training; then the merged weights in the same net.
template <Config C>
void check_full(const golden::Model& model, const Merged& merged_nf4) {
  constexpr Config F = C.with(Trainable::all);
  const std::vector<std::int32_t> ids = model.ints("input_ids");
  const std::vector<std::int32_t> labels = model.ints("labels");
  const TrainOptions options{.lr = 0.0F, .total_steps = 1, .batch = 2, .seq = 64};
  {
    Trainer<F, B> trainer(model.directory.source(), options, B(2));
    auto& pass = trainer.core().network();
    const std::vector<float> logits = golden::logits(pass, ids, C.shape.vocab);
    CHECK(golden::relative(logits, model.floats("fp32.logits")) < 1e-5);
    CHECK(golden::largest_difference(logits, model.floats("fp32.logits")) < 1e-4);
    const auto hidden = [&](int i, Mat<const float, C.shape.dim> ours) {
      const std::vector<float> values(ours.data, ours.data + std::int64_t{ours.rows} * ours.cols());
      CHECK(golden::relative(values, model.floats("fp32.hidden." + std::to_string(i))) < 1e-5);
    };
    for (int i = 0; i < C.shape.layers; ++i) hidden(i, pass.residual(i));
    BatchBuilder builder(128);
    hidden(C.shape.layers, pass.forward(builder.build({64, ids, labels, {}})));

    const double expected = static_cast<double>(model.floats("fp32.loss")[0]);
    CHECK(trainer.evaluate({64, ids, labels, {}}).loss == doctest::Approx(expected).epsilon(1e-5));
    CHECK(trainer.step({64, ids, labels, {}}).loss == doctest::Approx(expected).epsilon(1e-5));
    int compared = 0;
    trainer.model().weights().for_each_trained(
        [&](const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
          if (!model.reference.find("fp32.grad." + name)) return;
          CAPTURE(name);
          const float* gradient = trainer.core().gradients() + offset;
          const std::vector<float> values(gradient, gradient + rows * cols);
          CHECK(golden::relative(values, model.floats("fp32.grad." + name)) < 1e-4);
          ++compared;
        });
    CHECK(compared == 4);
  }
  const Merged merged_full = merge(model, [&](int layer, Proj proj) {
    return golden::floats(model.directory.source()(golden::stem(layer, proj) + ".weight").value());
  });
  CHECK(golden::relative(merged_full.weights.at(golden::stem(0, Proj::q) + ".weight"),
                         model.floats("merged_full.q_proj.0")) < 1e-6);
  check_merged_files<F>(model, options);
  for (const bool quantized : {false, true}) {
    Trainer<F, B> trainer((quantized ? merged_nf4 : merged_full).source(), options, B(2));
    const std::vector<float> logits = golden::logits(trainer.core().network(), ids, C.shape.vocab);
    CHECK(golden::largest_difference(logits, model.floats(quantized ? "merged_nf4.logits" : "merged_full.logits")) <
          1e-4);
  }
}

/// NF4: the base alone, the adapter's logits, loss and gradients, greedy decoding with cached keys and values.
/// Returns the merged weights.
template <Config C>
Merged check_adapters(const golden::Model& model) {
  const std::vector<std::int32_t> ids = model.ints("input_ids");
  const std::vector<std::int32_t> labels = model.ints("labels");
  const TrainOptions options{.alpha = 16.0F, .dropout = 0.0F, .lr = 0.0F, .total_steps = 24, .batch = 2, .seq = 64};
  Trainer<C, B> trainer(model.directory.source(), options, B(2));
  auto& weights = trainer.model().weights();
  auto& backend = trainer.model().backend();
  golden::load_adapters(weights, backend, model, "lora.weight.", 8, 16.0F, false);

  trainer.context().use_base();
  CHECK(golden::largest_difference(golden::logits(trainer.core().network(), ids, C.shape.vocab),
                                   model.floats("nf4.logits")) < 1e-4);
  trainer.context().use_own();
  const std::vector<float> logits = golden::logits(trainer.core().network(), ids, C.shape.vocab);
  CHECK(golden::relative(logits, model.floats("lora.logits")) < 1e-4);
  CHECK(golden::largest_difference(logits, model.floats("lora.logits")) < 1e-4);

  const double expected = static_cast<double>(model.floats("lora.loss")[0]);
  CHECK(trainer.step({64, ids, labels, {}}).loss == doctest::Approx(expected).epsilon(1e-5));
  weights.for_each_trained([&](const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
    CAPTURE(name);
    const float* gradient = trainer.core().gradients() + offset;
    const std::vector<float> values(gradient, gradient + rows * cols);
    CHECK(golden::relative(values, model.floats("lora.grad." + name)) < 1e-4);
  });

  const std::vector<std::int32_t> whole = model.ints("lora.greedy");
  const std::vector<std::int32_t> prompt(ids.begin(), ids.begin() + 16);
  REQUIRE(std::equal(prompt.begin(), prompt.end(), whole.begin()));
  // Three slots for five prompts and pieces of 24 tokens: prompts are split, join late and sit beside others.
  Generator<C, B> generator(trainer.model(), {.sequences = 3, .length = 64, .step_tokens = 24});
  const std::vector<std::vector<std::int32_t>> prompts{
      prompt, {prompt.begin(), prompt.begin() + 5}, prompt, prompt, {prompt.begin(), prompt.begin() + 9}};
  const auto generated = generator.generate(prompts, {.max_new_tokens = 48, .sampling = greedy, .stop_ids = {}});
  for (const std::size_t same : {0U, 2U, 3U}) {
    CHECK(generated[same].ids == std::vector<std::int32_t>(whole.begin() + 16, whole.end()));
  }
  return merge(model, [&](int layer, Proj proj) { return weights.dense_weight(backend, layer, proj); });
}

/// 24 steps of AdamW from the golden start.
template <Config C>
void check_training(const golden::Model& model) {
  const TrainOptions options{.alpha = 16.0F, .dropout = 0.0F, .lr = 2e-3F, .total_steps = 24, .batch = 2, .seq = 64};
  Trainer<C, B> trainer(model.directory.source(), options, B(2));
  auto& weights = trainer.model().weights();
  golden::load_adapters(weights, trainer.model().backend(), model, "train.init.", 8, 16.0F, false);
  const std::vector<std::int32_t> data = model.ints("train.data");
  const std::vector<float> losses = model.floats("train.loss");
  const std::vector<float> norms = model.floats("train.grad_norm");
  const std::vector<float> rates = model.floats("train.lr");
  REQUIRE(losses.size() == 24);
  for (std::size_t step = 0; step < losses.size(); ++step) {
    CAPTURE(step);
    const auto batch = std::span<const std::int32_t>(data).subspan(step % 4 * 128, 128);
    const StepReport report = trainer.step({64, batch, batch, {}});
    CHECK(std::abs(report.loss - static_cast<double>(losses[step])) < 1e-4);
    CHECK(report.grad_norm == doctest::Approx(static_cast<double>(norms[step])).epsilon(1e-4));
    CHECK(report.lr == doctest::Approx(static_cast<double>(rates[step])).epsilon(1e-6));
  }
  weights.for_each_trained([&](const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
    CAPTURE(name);
    const std::vector<float> values(weights.trained() + offset, weights.trained() + offset + rows * cols);
    CHECK(golden::relative(values, model.floats("train.final." + name)) < 1e-4);
  });
}

/// Rank-stabilised adapters of rank 4 on q and v alone, under a rank cap of 6.
template <Config C>
void check_rank_stabilized(const golden::Model& model) {
  constexpr Config qv = C.with(Lora{.rank = 6, .targets = Proj::q | Proj::v});
  qlora::Model<qv, B> net(model.directory.source(), {}, B(2));
  golden::load_adapters(net.weights(), net.backend(), model, "rslora_qv.weight.", 4, 8.0F, true);
  Network<code_of(qv), B> pass(net.context(), {.batch = 2, .seq = 64, .dropout = false});
  const std::vector<float> logits = golden::logits(pass, model.ints("input_ids"), C.shape.vocab);
  CHECK(golden::largest_difference(logits, model.floats("rslora_qv.logits")) < 1e-4);
}

template <Config C>
void check(const std::string& name) {
  CAPTURE(name);
  const golden::Model model(name);
  REQUIRE(model.directory.shape == C.shape);
  REQUIRE(model.directory.rope_theta == C.rope_theta);
  REQUIRE(model.directory.norm_eps == C.norm_eps);
  const Merged merged = check_adapters<C>(model);
  check_full<C>(model, merged);
  check_training<C>(model);
  check_rank_stabilized<C>(model);
}

}  // namespace

TEST_CASE("mha: as many key/value heads as query heads") { check<golden::mha>("mha"); }
TEST_CASE("gqa: query heads share key/value heads") { check<golden::gqa>("gqa"); }
TEST_CASE("tied: the head is the embedding table") { check<golden::tied>("tied"); }
TEST_CASE("hd128: LLaMA-2's head size") { check<golden::hd128>("hd128"); }
