// LLaMA's relatives on the GPU: against transformers (tests/golden/make_families.py) where the kernels have the width
// of the golden heads, and against the CPU, which golden results prove for all of them. Products round to bfloat16
// here, so each bound stands beside what the same model without its feature gives, which must be far outside.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "qlora/configs/any.hpp"
#include "qlora/cpu.hpp"
#include "qlora/cuda.hpp"
#include "qlora/io/open_model.hpp"
#include "qlora/train/trainer.hpp"
#include "support/golden.hpp"
#include "support/small_model.hpp"

using namespace qlora;
using Ids = std::vector<std::int32_t>;

namespace {

constexpr double bound = 0.02;  // a few roundings to 8 bits

template <Config C, class B>
std::vector<float> logits_of(const TensorSource& source, const ModelOptions& options, B backend, const Ids& ids) {
  Model<C, B> model(source, options, std::move(backend));
  const auto tokens = static_cast<int>(ids.size());
  Network<code_of(C), B> pass(model.context(), {.batch = 1, .seq = tokens, .dropout = false});
  BatchBuilder builder(ids.size());
  pass.forward(builder.build({tokens, ids, ids, {}}));
  std::vector<float> values(ids.size() * static_cast<std::size_t>(options.shape.vocab));
  if constexpr (B::space == Space::device) {
    auto arena = model.backend().arena(arena_bytes(static_cast<std::int64_t>(values.size() * sizeof(float))));
    float* logits = arena.template take<float>(static_cast<std::int64_t>(values.size()));
    pass.logits(logits);
    model.backend().download(logits, std::span(values));
  } else {
    pass.logits(values.data());
  }
  return values;
}

struct Step {
  double loss = 0.0;
  double norm = 0.0;
};

template <class B>
Step step_of(const TensorSource& source, const ModelOptions& model, B backend) {
  const small_model::Data data(2, 64, model.shape.vocab, 5, 40);
  const TrainOptions options{.rank = 16,
                             .targets = Proj::all,
                             .dropout = 0.0F,
                             .lr = 0.0F,
                             .total_steps = 1,
                             .batch = 2,
                             .seq = 64,
                             .model = model};
  Trainer<any_model, B> trainer(source, options, std::move(backend));
  small_model::load_random_adapters(trainer.model().weights(), trainer.model().backend(), model.shape, 16, 16.0F, 6);
  const StepReport report = trainer.step(data.all());
  return {report.loss, report.grad_norm};
}

/// Random weights, biases included.
TensorSource with_biases(const Shape& shape) {
  auto memory = std::make_shared<std::vector<float>>();
  return [source = small_model::weights(shape, 3), memory, shape](std::string_view name) -> std::optional<TensorRef> {
    if (!name.ends_with(".bias")) return source(name);
    for (const Proj proj : all_projections) {
      if (name.find(name_of(proj)) == std::string_view::npos) continue;
      memory->resize(static_cast<std::size_t>(rows_of(shape, proj)));
      detail::fill_normal(name, 4, 1.0F, *memory);
      TensorRef tensor;
      tensor.shape = {rows_of(shape, proj)};
      tensor.bytes = std::as_bytes(std::span<const float>(*memory));
      return tensor;
    }
    return std::nullopt;
  };
}

/// The GPU is near the CPU, and both are far from what `without` is.
void compare(const Shape& shape, const ModelOptions& options, const Shape& without_shape,
             const ModelOptions& without_options) {
  ModelOptions model = options;
  model.shape = shape;
  ModelOptions without = without_options;
  without.shape = without_shape;
  Ids ids;
  for (int i = 0; i < 90; ++i) ids.push_back((i * 37 + 11) % shape.vocab);
  const TensorSource source = with_biases(shape);
  const std::vector<float> expected = logits_of<any_model>(source, model, Cpu<float>(2), ids);
  CHECK(golden::relative(logits_of<any_model>(source, model, Cuda(), ids), expected) < bound);
  CHECK(golden::relative(logits_of<any_model>(source, without, Cuda(), ids), expected) > 3 * bound);
  const Step here = step_of(source, model, Cuda());
  const Step there = step_of(source, model, Cpu<float>(2));
  CHECK(here.loss == doctest::Approx(there.loss).epsilon(0.005));
  CHECK(here.norm == doctest::Approx(there.norm).epsilon(bound));
}

constexpr Shape plain{512, 256, 3, 4, 2, 64, 512};

}  // namespace

TEST_CASE("scaled rotary embedding has the logits of transformers") {
  const std::filesystem::path folder = std::filesystem::path(QLORA_SOURCE_DIR) / "tests/golden/families";
  for (const std::string name : {"llama3", "yarn", "yarn_mscale"}) {
    CAPTURE(name);
    const hf::ModelDir directory = hf::ModelDir::open(folder / name / "model");
    const SafetensorsFile reference(folder / name / "reference.safetensors");
    const Ids ids = golden::ints(reference, "input_ids");
    const std::vector<float> expected = golden::floats(reference, "fp32.logits");
    constexpr Config dense = any_model.with(unquantized);
    ModelOptions options = model_options(directory);
    options.lora = {.rank = 16, .targets = Proj::all};
    CHECK(golden::relative(logits_of<dense>(directory.source(), options, Cuda(), ids), expected) < bound);
    options.rope_scaling = RopeScaling{};
    CHECK(golden::relative(logits_of<dense>(directory.source(), options, Cuda(), ids), expected) > 3 * bound);
  }
}

TEST_CASE("linear scaling") {
  const ModelOptions without{.lora = {.rank = 16, .targets = Proj::all}};
  ModelOptions scaled = without;
  scaled.rope_scaling = RopeScaling{.kind = RopeKind::linear, .factor = 4.0F};
  compare(plain, scaled, plain, without);
}

TEST_CASE("biases") {
  const ModelOptions options{.lora = {.rank = 16, .targets = Proj::all}};
  Shape qkv = plain;
  qkv.qkv_bias = true;
  compare(qkv, options, plain, options);
  Shape all = qkv;
  all.o_bias = true;
  compare(all, options, qkv, options);
}
