// Adapters of a model as a PEFT directory and back: the directory says the scales that were trained with, and what does
// not fit a model is refused by name and leaves it as it was.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/io/adapter.hpp"

#include <doctest/doctest.h>

#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "qlora/cpu.hpp"
#include "qlora/train/trainer.hpp"
#include "support/refusal.hpp"
#include "support/scratch.hpp"
#include "support/small_model.hpp"

using namespace qlora;
namespace fs = std::filesystem;

namespace {

using test::refusal;

using B = Cpu<float>;
constexpr Config mine{.shape = {40, 32, 2, 4, 2, 8, 48}, .lora = {.rank = 8, .targets = Proj::q | Proj::v | Proj::up}};
constexpr Config fewer = mine.with(Lora{.rank = 8, .targets = Proj::q | Proj::v});
constexpr Config lower = mine.with(Lora{.rank = 4, .targets = mine.lora.targets});
constexpr Config deeper{.shape = {40, 32, 3, 4, 2, 8, 48}, .lora = mine.lora};
constexpr Config wider{.shape = {40, 32, 2, 4, 2, 8, 64}, .lora = mine.lora};

const test::Scratch scratch;

/// A trainer after one step.
template <Config C>
std::unique_ptr<Trainer<C, B>> trained(TrainOptions options) {
  options.batch = 2;
  options.seq = 16;
  auto trainer = std::make_unique<Trainer<C, B>>(small_model::weights(C.shape, 3), options, B(1));
  trainer->step(small_model::Data(2, 16, C.shape.vocab, 1).all());
  return trainer;
}
template <Config C>
Model<C, B> fresh() {
  return Model<C, B>(small_model::weights(C.shape, 3), {}, B(1));
}
template <Config C>
std::vector<float> trained_values(const Model<C, B>& model) {
  const auto& weights = model.weights();
  return {weights.trained(), weights.trained() + weights.layout().total()};
}
/// Each module has the same rank, matrices and, to the bit, scale.
template <Config C>
void check_same(const Model<C, B>& first, const Model<C, B>& other) {
  CHECK(trained_values(first) == trained_values(other));
  first.weights().for_each_target([&](int layer, Proj proj) {
    CHECK(first.weights().adapter(layer, proj).rank == other.weights().adapter(layer, proj).rank);
    CHECK(first.weights().adapter(layer, proj).scale == other.weights().adapter(layer, proj).scale);
  });
}

}  // namespace

TEST_CASE("the directory says what was trained with, and reads back to the bit") {
  auto trainer = trained<mine>({.rank = 5, .alpha = 7.0F});
  write_adapter(scratch / "plain", trainer->model(),
                {.dropout = 0.25F, .base_model = "base", .base_fingerprint = "ab"});
  auto model = fresh<mine>();
  const PeftConfig config = read_adapter(model, scratch / "plain");
  PeftConfig expected{.r = 5, .alpha = 7.0F, .dropout = 0.25F, .targets = mine.lora.targets};
  expected.base_model = "base";
  expected.base_fingerprint = "ab";
  CHECK(config == expected);
  check_same(model, trainer->model());
}

TEST_CASE("rank stabilisation, and modules with ranks and alphas of their own") {
  const TrainOptions options{
      .rank = 3,
      .alpha = 5.0F,
      .rank_stabilized = true,
      .overrides = {{.layer = 0, .targets = Proj::q, .rank = 7, .alpha = 2.0F}, {.targets = Proj::up, .alpha = 11.0F}}};
  auto trainer = trained<mine>(options);
  write_adapter(scratch / "overrides", trainer->model());
  auto model = fresh<mine>();
  const PeftAdapter adapter = read_adapter(model, scratch / "overrides");
  CHECK(adapter.r == 3);
  CHECK(adapter.alpha == 5.0F);
  CHECK(adapter.rslora);
  CHECK(adapter.rank_pattern == std::map<std::string, int>{{"layers.0.self_attn.q_proj", 7}});
  CHECK(adapter.alpha_pattern.size() == 3);
  check_same(model, trainer->model());
  model.weights().for_each_target([&](int layer, Proj proj) {
    CHECK(scale_of(adapter, layer, proj) == trainer->model().weights().adapter(layer, proj).scale);
  });
  write_adapter(scratch / "again", model);
  CHECK(static_cast<const PeftConfig&>(PeftAdapter::open(scratch / "again")) == adapter);
}

TEST_CASE("modules that an adapter leaves out become zeros") {
  auto trainer = trained<fewer>({.rank = 4});
  write_adapter(scratch / "fewer", trainer->model());
  auto model = fresh<mine>();
  small_model::load_random_adapters(model.weights(), model.backend(), mine.shape, 8, 16.0F, 6);
  read_adapter(model, scratch / "fewer");
  std::vector<float> a;
  std::vector<float> b;
  model.weights().save_adapter(model.backend(), 1, Proj::up, a, b);
  CHECK(b == std::vector<float>(b.size(), 0.0F));
  CHECK(model.weights().adapter(1, Proj::v).scale == 4.0F);
}

TEST_CASE("what does not fit is refused by name and changes nothing") {
  auto trainer = trained<mine>({.rank = 5});
  const fs::path dir = scratch / "mine";
  write_adapter(dir, trainer->model());
  const auto check = [&]<Config C>(std::integral_constant<Config, C>, const std::string& text) {
    auto model = fresh<C>();
    small_model::load_random_adapters(model.weights(), model.backend(), C.shape, 4, 16.0F, 6);
    const std::vector<float> before = trained_values(model);
    const std::string said = refusal([&] { read_adapter(model, dir); });
    CAPTURE(said);
    CHECK(said.starts_with(dir.string()));
    CHECK(said.find(text) != std::string::npos);
    CHECK(trained_values(model) == before);
  };
  check(std::integral_constant<Config, fewer>{}, "adapts mlp.up_proj");
  check(std::integral_constant<Config, lower>{}, "has rank 5");
  check(std::integral_constant<Config, deeper>{}, "has adapters in 2 layers, the model has 3 layers");
  check(std::integral_constant<Config, wider>{},
        "layers.0.mlp.up_proj.lora_B.weight has shape (48, 5), this model needs (64, 5)");
}

TEST_CASE("an adapter with a NaN or an infinity is refused by the name of its tensor") {
  Model<mine, B> model = fresh<mine>();
  model.weights().for_each_target([&](int layer, Proj proj) {
    std::vector<float> a(static_cast<std::size_t>(2 * cols_of(mine.shape, proj)), 0.5F);
    std::vector<float> b(static_cast<std::size_t>(2 * rows_of(mine.shape, proj)), 0.5F);
    if (layer == 1 && proj == Proj::v) b[3] = 0.8125F;  // found below, since no writer writes a NaN
    model.weights().load_adapter(model.backend(), layer, proj, 2, 4.0F, false, a, b);
  });
  write_adapter(scratch / "nan", model);
  std::string file = test::contents(scratch / "nan/adapter_model.safetensors");
  const float marked = 0.8125F;
  const float bad = std::numeric_limits<float>::quiet_NaN();
  const std::size_t at = file.find(std::string(reinterpret_cast<const char*>(&marked), sizeof marked));
  REQUIRE(at != std::string::npos);
  std::memcpy(file.data() + at, &bad, sizeof bad);
  scratch.write("nan/adapter_model.safetensors", file);
  Model<mine, B> other = fresh<mine>();
  const auto damaged = PeftAdapter::open(scratch / "nan", Verify::nothing);
  const std::string why = refusal([&] { read_adapter(other, damaged); });
  CHECK(why.find("layers.1.self_attn.v_proj.lora_B.weight holds a NaN") != std::string::npos);
}

TEST_CASE("adapters that one directory cannot describe are not written") {
  auto model = fresh<mine>();
  CHECK(refusal([&] { write_adapter(scratch / "unset", model); }) ==
        "the adapter of layers.0.self_attn.q_proj was never set");
  small_model::load_random_adapters(model.weights(), model.backend(), mine.shape, 4, 16.0F, 6);
  const std::vector<float> zeros(4 * 32, 0.0F);
  model.weights().load_adapter(model.backend(), 1, Proj::q, 4, 16.0F, true, zeros, zeros);
  CHECK(refusal([&] { write_adapter(scratch / "mixed", model); }).find("only some adapters are rank-stabilised") == 0);
  CHECK_FALSE(fs::exists(scratch / "unset"));
  CHECK_FALSE(fs::exists(scratch / "mixed"));
}
