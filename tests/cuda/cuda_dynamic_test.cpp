// A dynamic config on the GPU has the bits of the static config of the same shape: training, logits, and generation.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "qlora/cuda.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/train/trainer.hpp"
#include "support/golden_models.hpp"
#include "support/small_model.hpp"

using namespace qlora;

namespace {

constexpr Config any{.shape = dynamic_shape, .lora = dynamic_lora};

struct Result {
  std::vector<double> losses;
  std::vector<double> norms;
  std::vector<float> trained;
  std::vector<std::int32_t> ids;
};

template <Config C>
Result result_of(const Shape& shape, TrainOptions options) {
  const small_model::Data data(4, 128, shape.vocab, 5, 40);
  options.seq = 128;
  options.batch = 2;
  options.lr = 5e-3F;
  options.total_steps = 4;
  Trainer<C, Cuda> trainer(small_model::weights(shape, 3), options, Cuda());
  Result result;
  for (int step = 0; step < 4; ++step) {
    const StepReport report = trainer.step(data.all());
    result.losses.push_back(report.loss);
    result.norms.push_back(report.grad_norm);
  }
  auto& weights = trainer.model().weights();
  result.trained.resize(static_cast<std::size_t>(weights.layout().total()));
  trainer.model().backend().download(weights.trained(), result.trained);
  Generator<C, Cuda> generator(trainer.model(), {.sequences = 2, .length = 64, .step_tokens = 32});
  const std::vector<std::vector<std::int32_t>> prompts{{1, 5, 9}, {2, 3, 4, 5, 6, 7}};
  for (const Generated& made : generator.generate(prompts, {.max_new_tokens = 16, .sampling = {.temperature = 0.7F}})) {
    result.ids.insert(result.ids.end(), made.ids.begin(), made.ids.end());
  }
  return result;
}

template <Config C>
void compare(bool keep_dequantized) {
  TrainOptions options{.rank = C.lora.rank};
  options.model.keep_dequantized = keep_dequantized;
  const Result expected = result_of<C>(C.shape, options);
  options.targets = C.lora.targets;
  options.model.shape = C.shape;
  const Result actual = result_of<any>(C.shape, options);
  CHECK(actual.losses == expected.losses);
  CHECK(actual.norms == expected.norms);
  CHECK(actual.trained == expected.trained);
  CHECK(actual.ids == expected.ids);
  CHECK(expected.losses[0] > 0.1);
  CHECK_FALSE(expected.ids.empty());
}

}  // namespace

TEST_CASE("heads of 128, every target") {
  compare<golden::hd128>(false);
  compare<golden::hd128>(true);
}

TEST_CASE("heads of 64, tied, some targets") {
  constexpr Config tied{.shape = {320, 256, 3, 4, 2, 64, 512, true},
                        .lora = {.rank = 16, .targets = Proj::q | Proj::v | Proj::down}};
  compare<tied>(false);
  compare<tied>(true);
}

TEST_CASE("a shape that the kernels cannot train is refused before anything is read") {
  const auto unread = [](std::string_view) -> std::optional<TensorRef> {
    FAIL("read");
    return std::nullopt;
  };
  TrainOptions options{.rank = 8};
  options.model.shape = {320, 256, 3, 4, 2, 64, 500};
  CHECK_THROWS_WITH_AS((Trainer<any, Cuda>(unread, options)), "ffn is 500; this backend needs a multiple of 8", Error);
  options.model.shape = {320, 192, 3, 4, 2, 48, 512};
  CHECK_THROWS_WITH_AS((Trainer<any, Cuda>(unread, options)), "head_dim is 48; this backend trains with 32, 64 or 128",
                       Error);
}
