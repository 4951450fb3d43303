// The bf16-rounding CPU backend, the yardstick for the GPU's error: near what bitsandbytes computes in bf16, and near
// float over a training run.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "qlora/cpu.hpp"
#include "support/golden_models.hpp"

using namespace qlora;

namespace {

using Rounded = Cpu<float, Rounding::bf16>;

/// Losses of 24 steps from the golden start at a learning rate of 2e-4.
template <class B>
std::vector<double> train(const golden::Model& model) {
  constexpr Config C = golden::hd128;
  const TrainOptions options{.alpha = 16.0F, .dropout = 0.0F, .lr = 2e-4F, .total_steps = 24, .batch = 2, .seq = 64};
  Trainer<C, B> trainer(model.directory.source(), options, B(2));
  golden::load_adapters(trainer.model().weights(), trainer.model().backend(), model, "train.init.", 8, 16.0F, false);
  const std::vector<std::int32_t> data = model.ints("train.data");
  std::vector<double> losses;
  for (std::size_t step = 0; step < 24; ++step) {
    const auto batch = std::span<const std::int32_t>(data).subspan(step % 4 * 128, 128);
    losses.push_back(trainer.step({64, batch, batch, {}}).loss);
  }
  return losses;
}

bool fits_bf16(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return value == rounded_to(DType::bf16, value); });
}

}  // namespace

TEST_CASE("logits are near those of bitsandbytes in bf16, and not those of float") {
  const golden::Model model("hd128");
  qlora::Model<golden::hd128, Rounded> net(model.directory.source(), {}, Rounded(2));
  const Run run{.batch = 2, .seq = 64, .dropout = false};
  Network<code_of(golden::hd128), Rounded> pass(net.context(), run);
  const std::vector<float> logits = golden::logits(pass, model.ints("input_ids"), golden::hd128.shape.vocab);
  const SafetensorsFile theirs(golden::folder() / "hd128" / "bnb_logits.safetensors");
  CHECK(golden::relative(logits, golden::floats(theirs, "bnb.logits")) < 1e-2);
  const double from_float = golden::relative(logits, model.floats("nf4.logits"));
  CHECK(from_float < 1e-2);
  CHECK(from_float > 1e-4);  // it does round
  const auto stream = pass.residual(1);
  CHECK(fits_bf16({stream.data, static_cast<std::size_t>(stream.rows) * 256}));
}

TEST_CASE("24 steps stay within 1e-3 of float's losses") {
  const golden::Model model("hd128");
  const std::vector<double> rounded = train<Rounded>(model);
  const std::vector<double> exact = train<Cpu<float>>(model);
  CHECK(exact.back() < exact.front());
  double squares = 0.0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double difference = rounded[i] - exact[i];
    squares += difference * difference;
    CHECK(rounded[i] == doctest::Approx(exact[i]).epsilon(1e-3));
  }
  const double typical = std::sqrt(squares / static_cast<double>(exact.size()));
  CHECK(typical < 1e-3);  // the losses are near 6.4
  CHECK(typical > 0.0);
}
