// families_test.cpp — LLaMA's relatives against transformers (tests/golden/make_families.py): scaled rotary embedding,
// biases, heads of a width of their own. Logits, the loss and gradients of adapters, and greedy decoding.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "qlora/configs/any.hpp"
#include "qlora/cpu.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/io/open_model.hpp"
#include "qlora/train/trainer.hpp"
#include "support/arenas.hpp"
#include "support/golden.hpp"

using namespace qlora;

namespace {

using B = Cpu<float>;
constexpr Config config = any_model.with(unquantized);
const std::filesystem::path folder = std::filesystem::path(QLORA_SOURCE_DIR) / "tests/golden/families";

void check(const std::string& name) {
  CAPTURE(name);
  const hf::ModelDir directory = hf::ModelDir::open(folder / name / "model");
  const SafetensorsFile reference(folder / name / "reference.safetensors");
  const std::vector<std::int32_t> ids = golden::ints(reference, "input_ids");
  const auto tokens = static_cast<int>(ids.size());
  const int vocab = directory.shape.vocab;
  const TrainOptions options{.rank = 4,
                             .targets = Proj::all,
                             .alpha = 8.0F,
                             .dropout = 0.0F,
                             .lr = 0.0F,
                             .total_steps = 1,
                             .batch = 1,
                             .seq = tokens,
                             .model = model_options(directory)};
  Trainer<config, B> trainer(directory.source(), options, B(2));
  arenas::check_full(trainer, 2);
  auto& weights = trainer.model().weights();
  weights.for_each_target([&](int layer, Proj proj) {
    const std::string stem = "lora.weight." + tensor_name::module(layer, proj);
    weights.load_adapter(trainer.model().backend(), layer, proj, 4, 8.0F, false,
                         golden::floats(reference, stem + ".lora_A.weight"),
                         golden::floats(reference, stem + ".lora_B.weight"));
  });
  auto& pass = trainer.core().network();
  const auto logits = [&] {
    BatchBuilder builder(ids.size());
    pass.forward(builder.build({tokens, ids, ids, {}}));
    std::vector<float> values(ids.size() * static_cast<std::size_t>(vocab));
    pass.logits(values.data());
    return values;
  };
  trainer.context().use_base();
  CHECK(golden::largest_difference(logits(), golden::floats(reference, "fp32.logits")) < 1e-4);
  trainer.context().use_own();
  const auto expected = static_cast<double>(golden::floats(reference, "lora.loss")[0]);
  CHECK(trainer.step({tokens, ids, ids, {}}).loss == doctest::Approx(expected).epsilon(1e-5));
  weights.for_each_trained([&](const std::string& tensor, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
    CAPTURE(tensor);
    const float* gradient = trainer.core().gradients() + offset;
    CHECK(golden::relative(std::vector<float>(gradient, gradient + rows * cols),
                           golden::floats(reference, "lora.grad." + tensor)) < 1e-4);
  });

  // By the cache of keys and values, in pieces and beside others.
  const std::vector<std::int32_t> whole = golden::ints(reference, "lora.greedy");
  const std::vector<std::int32_t> prompt(whole.begin(), whole.begin() + 8);
  Generator<config, B> generator(trainer.model(), {.sequences = 2, .length = 64, .step_tokens = 5});
  const std::vector<std::vector<std::int32_t>> prompts{prompt, {5, 6, 7}, prompt};
  const auto generated = generator.generate(prompts, {.max_new_tokens = 24, .sampling = greedy, .stop_ids = {}});
  for (const std::size_t same : {0U, 2U}) {
    CHECK(generated[same].ids == std::vector<std::int32_t>(whole.begin() + 8, whole.end()));
  }
  CHECK(golden::floats(reference, "lora.margin")[0] > 5e-4F);  // else another rounding could choose another token
}

}  // namespace

TEST_CASE("scaled rotary embedding") {
  for (const char* name : {"llama3", "linear", "dynamic", "yarn", "yarn_mscale"}) check(name);
}
TEST_CASE("Mistral, within its sliding window") { check("mistral"); }
TEST_CASE("biases of queries, keys and values, and of attention's output") {
  check("qwen2");
  check("bias");
}
TEST_CASE("heads that are wider together than the stream") { check("head_dim"); }
