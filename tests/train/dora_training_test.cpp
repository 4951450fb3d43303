// dora_training_test.cpp — DoRA against peft (tests/golden/make_variants.py): gradients, losses and weights of a short
// run; and what the library promises of every training: the same bits when it resumes, whatever is computed again,
// and the memory of its plan.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "qlora/cpu.hpp"
#include "qlora/cpu/workspace.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/io/adapter.hpp"
#include "qlora/io/trainer.hpp"
#include "qlora/model/init.hpp"
#include "support/golden_models.hpp"
#include "support/refusal.hpp"
#include "support/scratch.hpp"

using namespace qlora;

namespace {

using B = Cpu<>;
constexpr Config config = golden::gqa.with(Lora{.rank = 4});
using Tuned = Trainer<config, B>;
using Ids = std::vector<std::int32_t>;

const std::filesystem::path folder = std::filesystem::path(QLORA_SOURCE_DIR) / "tests/golden";

TrainOptions options(int batch, int seq) {
  return {.alpha = 6.0F, .dora = true, .dropout = 0.0F, .lr = 2e-3F, .total_steps = 8, .batch = batch, .seq = seq};
}
TensorSource base() {
  static const hf::ModelDir model = hf::ModelDir::open(folder / "gqa/model");
  return model.source();
}
/// A trainer of the adapter that peft saved.
std::unique_ptr<Tuned> of_peft(const TrainOptions& how) {
  auto trainer = std::make_unique<Tuned>(base(), how, B(2));
  (void)read_adapter(trainer->model(), folder / "variants/dora", AdapterBase::any);
  trainer->core().measure_rows();
  return trainer;
}
/// The numbers of a trained tensor in an array that is laid out as all that is trained.
std::vector<float> tensor(const Tuned& trainer, const std::string& wanted, const float* all) {
  std::vector<float> values;
  trainer.model().weights().for_each_trained(
      [&](const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
        if (name == wanted) values.assign(all + offset, all + offset + rows * cols);
      });
  return values;
}
/// Compares with all tensors of a file whose names begin so; gives their number.
int compare(const Tuned& trainer, const SafetensorsFile& file, const std::string& prefix, const float* all) {
  int compared = 0;
  for (const std::string& name : file.names()) {
    if (!name.starts_with(prefix)) continue;
    CAPTURE(name);
    std::string ours = "model." + name.substr(prefix.size());
    if (ours.ends_with("vector.weight")) ours.resize(ours.size() - 7);  // torch calls it a weight, files do not
    CHECK(golden::relative(tensor(trainer, ours, all), golden::floats(file, name)) < 1e-4);
    ++compared;
  }
  return compared;
}
std::vector<float> trained(const Tuned& trainer) {
  const auto& weights = trainer.model().weights();
  return {weights.trained(), weights.trained() + weights.layout().total()};
}
std::vector<float> logits(Tuned& trainer, const Ids& ids) {
  auto& pass = trainer.core().network();
  BatchBuilder builder(ids.size());
  pass.forward(builder.build({static_cast<int>(ids.size()), ids, ids, {}}));
  std::vector<float> all(ids.size() * 256);
  pass.logits(all.data());
  return all;
}
const Ids& windows() {
  static const SafetensorsFile file(folder / "variants/dora_train.safetensors");
  static const Ids data = golden::ints(file, "data");
  return data;
}
StepReport step(Tuned& trainer, std::size_t number) {
  const auto batch = std::span<const std::int32_t>(windows()).subspan(number * 64, 64);
  return trainer.step({32, batch, batch, {}});
}

}  // namespace

TEST_CASE("logits, loss and gradients are those of peft") {
  const SafetensorsFile reference(folder / "variants/dora.safetensors");
  const Ids ids = golden::ints(reference, "input_ids");
  const auto trainer = of_peft(options(1, 48));
  CHECK(golden::relative(logits(*trainer, ids), golden::floats(reference, "nf4.logits")) < 1e-5);
  const double expected = static_cast<double>(golden::floats(reference, "nf4.loss")[0]);
  CHECK(trainer->evaluate({48, ids, ids, {}}).loss == doctest::Approx(expected).epsilon(1e-5));
  CHECK(trainer->step({48, ids, ids, {}}).loss == doctest::Approx(expected).epsilon(1e-5));
  CHECK(compare(*trainer, reference, "nf4.grad.", trainer->core().gradients()) == 12);
}

TEST_CASE("a short training is that of peft") {
  const SafetensorsFile reference(folder / "variants/dora_train.safetensors");
  const std::vector<float> losses = golden::floats(reference, "loss"), norms = golden::floats(reference, "grad_norm");
  const auto trainer = of_peft(options(2, 32));
  REQUIRE(losses.size() == 8);
  for (std::size_t i = 0; i < losses.size(); ++i) {
    CAPTURE(i);
    const StepReport report = step(*trainer, i);
    CHECK(std::abs(report.loss - static_cast<double>(losses[i])) < 1e-4);
    CHECK(report.grad_norm == doctest::Approx(static_cast<double>(norms[i])).epsilon(1e-4));
  }
  CHECK(compare(*trainer, reference, "final.", trainer->model().weights().trained()) == 12);
}

TEST_CASE("a new adapter is the base, and its magnitudes are the lengths of rows") {
  Tuned trainer(base(), options(2, 32), B(2));
  const Ids ids(windows().begin(), windows().begin() + 32);
  const std::vector<float> tuned = logits(trainer, ids);
  trainer.context().use_base();
  CHECK(golden::relative(tuned, logits(trainer, ids)) < 1e-6);
  auto& model = trainer.model();
  for (const Proj proj : {Proj::k, Proj::down}) {
    const std::vector<float> w = model.weights().dense_weight(model.backend(), 1, proj);
    const std::vector<float> m =
        tensor(trainer, golden::stem(1, proj) + ".lora_magnitude_vector", trained(trainer).data());
    REQUIRE(static_cast<int>(m.size()) == rows_of(config.shape, proj));
    const std::size_t cols = w.size() / m.size();
    for (std::size_t n = 0; n < m.size(); ++n) {
      double squares = 0;
      for (std::size_t k = 0; k < cols; ++k) squares += double{w[n * cols + k]} * double{w[n * cols + k]};
      CHECK(double{m[n]} == doctest::Approx(std::sqrt(squares)).epsilon(1e-6));
    }
  }
}

TEST_CASE("dropped inputs go through the weights as in peft: W x + (f - 1) W x' + f s B A x'") {
  constexpr int tokens = 4, in = 24, out = 5, rank = 2, wide = in + rank;
  std::vector<float> w(out * in), a(rank * in), b(out * rank), x(tokens * wide), dropped(tokens * in), y(tokens * out);
  detail::fill_normal("w", 1, 1.0F, w);
  detail::fill_normal("a", 1, 1.0F, a);
  detail::fill_normal("b", 1, 1.0F, b);
  detail::fill_normal("x", 1, 1.0F, x);
  const std::vector<float> factors{0.5F, 1.25F, -2.0F, 1.0F, 0.0F}, inverse(out, 1.0F);
  LinearPart<float> part;
  part.weight = {.rows = out, .dense = w.data(), .stride = in};
  part.a = a.data();
  part.b = b.data();
  part.scale = 0.75F;
  part.row_factors = factors.data();
  part.inverse_lengths = inverse.data();
  LinearGroup<float> group{.in = in, .rank = rank, .adapted = 1, .dropout = dropout_rate(0.4F)};
  group.input_scratch = dropped.data();
  cpu::ThreadPool pool(2);
  cpu::linear_forward<cpu::Numbers<float>>(pool, group, std::span<const LinearPart<float>>(&part, 1), {}, tokens,
                                           {x.data(), wide}, static_cast<const float*>(nullptr), y.data());
  int zeros = 0;
  for (int t = 0; t < tokens; ++t) {
    std::vector<double> kept(in);
    cpu::detail::for_dropout_row<float>(group.dropout, static_cast<std::uint32_t>(t), in, [&](int i, float factor) {
      kept[static_cast<std::size_t>(i)] = double{factor} * double{x[static_cast<std::size_t>(t * wide + i)]};
      zeros += factor == 0.0F ? 1 : 0;
    });
    for (int n = 0; n < out; ++n) {
      double whole = 0, some = 0, low = 0;
      for (int k = 0; k < in; ++k) {
        const double weight = double{w[static_cast<std::size_t>(n * in + k)]};
        whole += weight * double{x[static_cast<std::size_t>(t * wide + k)]};
        some += weight * kept[static_cast<std::size_t>(k)];
      }
      for (int r = 0; r < rank; ++r) {
        double xa = 0;
        for (int k = 0; k < in; ++k) {
          xa += double{a[static_cast<std::size_t>(r * in + k)]} * kept[static_cast<std::size_t>(k)];
        }
        low += 0.75 * double{b[static_cast<std::size_t>(n * rank + r)]} * xa;
      }
      const double f = double{factors[static_cast<std::size_t>(n)]};
      const double expected = whole + (f - 1) * some + f * low;
      CHECK(double{y[static_cast<std::size_t>(t * out + n)]} == doctest::Approx(expected).epsilon(1e-5));
    }
  }
  CHECK(zeros > 10);
}

TEST_CASE("what is computed again gives the same bits, and memory is that of the plan") {
  std::vector<float> first;
  for (const Recompute policy : {Recompute::none, Recompute::cheap, Recompute::block}) {
    TrainOptions how = options(2, 32);
    how.dropout = 0.2F;
    how.recompute = policy;
    const auto trainer = of_peft(how);
    for (std::size_t i = 0; i < 2; ++i) step(*trainer, i);
    if (first.empty()) first = trained(*trainer);
    CHECK(trained(*trainer) == first);
    CHECK(trainer->core().arena_bytes_used() ==
          memory_plan(trainer->model().resolved_config(), run_of(how, false), cpu::storage(2)).total());
  }
  TrainOptions plain = options(2, 32);
  plain.dora = false;
  const auto bytes = [](const TrainOptions& how) { return memory_plan(config, run_of(how, false), cpu::storage(2)); };
  const std::int64_t rows = 2 * (128 + 32 + 32 + 128 + 352 + 352 + 128);  // of all projections of both layers
  CHECK(bytes(options(2, 32))[Purpose::gradients] - bytes(plain)[Purpose::gradients] == (rows + rows / 2) * 4);
  CHECK(bytes(options(2, 32))[Purpose::trained] - bytes(plain)[Purpose::trained] == 3 * rows * 4);
}

TEST_CASE("a run that resumes has the bits of one that does not, and its adapter reads back") {
  const test::Scratch scratch;
  TrainOptions how = options(2, 32);
  how.dropout = 0.2F;
  Tuned whole(base(), how, B(2)), before(base(), how, B(1)), after(base(), how, B(2));
  for (std::size_t i = 0; i < 4; ++i) step(whole, i);
  for (std::size_t i = 0; i < 2; ++i) step(before, i);
  save_trainer(before, scratch / "checkpoints");
  REQUIRE(restore_trainer(after, scratch / "checkpoints"));
  const Ids ids(windows().begin(), windows().begin() + 32);
  CHECK(logits(after, ids) == logits(before, ids));
  for (std::size_t i = 2; i < 4; ++i) step(after, i);
  CHECK(trained(after) == trained(whole));

  write_adapter(scratch / "adapter", whole.model());
  const PeftAdapter written = PeftAdapter::open(scratch / "adapter");
  CHECK(written.dora);
  CHECK(written.names().size() == 3 * 14);
  Tuned again(base(), how, B(2));
  (void)read_adapter(again.model(), scratch / "adapter", AdapterBase::any);
  CHECK(trained(again) == trained(whole));
  // Its words while it is trained, and beside a base, where factors are in B.
  const auto words = [&](auto& context) {
    Generator<config, B> generator(context);
    return generator.generate(ids, {.max_new_tokens = 12, .sampling = greedy, .stop_ids = {}}).ids;
  };
  const std::vector<float> theirs = logits(whole, ids);
  const Ids said = words(whole.context());
  (void)attach_adapter(whole.model(), "written", scratch / "adapter", AdapterBase::any);
  whole.context().use("written");
  CHECK(golden::relative(logits(whole, ids), theirs) < 1e-5);
  CHECK(words(whole.context()) == said);
}

TEST_CASE("magnitudes are a group of parameters") {
  TrainOptions how = options(2, 32);
  how.groups = {{.part = "lora_magnitude", .lr_scale = 0.0F}};
  const auto trainer = of_peft(how);
  const std::vector<float> before = trained(*trainer);
  step(*trainer, 0);
  const std::vector<float> after = trained(*trainer);
  int magnitudes = 0;
  trainer->model().weights().for_each_trained([&](const std::string& name, std::int64_t rows, std::int64_t cols,
                                                  std::int64_t offset) {
    CAPTURE(name);
    const bool kept = std::equal(after.begin() + offset, after.begin() + offset + rows * cols, before.begin() + offset);
    CHECK(kept == name.ends_with("lora_magnitude_vector"));
    magnitudes += kept ? 1 : 0;
  });
  CHECK(magnitudes == 14);
}

TEST_CASE("what is not trained with DoRA is refused by name") {
  using test::refusal;
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  CHECK(has(refusal([] { expect_dora(true, false); }), "trains every weight"));
  CHECK(refusal([] { expect_dora(true, true); }).empty());
  const auto trainer = of_peft(options(1, 32));
  const test::Scratch scratch;
  TrainOptions plain = options(1, 32);
  plain.dora = false;
  write_adapter(scratch / "plain", Tuned(base(), plain, B(1)).model());
  CHECK(has(refusal([&] { (void)read_adapter(trainer->model(), scratch / "plain", AdapterBase::any); }),
            "without DoRA (use_dora), and the model was opened to train one with it"));
  const Ids ids(windows().begin(), windows().begin() + 32);
  trainer->context().use_own(0.5F);
  CHECK(has(refusal([&] { (void)logits(*trainer, ids); }), "no other strength than 1"));
  trainer->context().use_own();
  (void)read_adapter(trainer->model(), folder / "variants/dora", AdapterBase::any);
  CHECK(has(refusal([&] { (void)logits(*trainer, ids); }), "not measured since"));
  trainer->core().measure_rows();
  CHECK(logits(*trainer, ids).size() == 32 * 256);
}
