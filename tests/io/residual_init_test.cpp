// residual_init_test.cpp — adapters that begin with what quantization lost, against peft's own function
// (tests/golden/make_variants.py), and what follows from the theorem of Eckart and Young.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "qlora/cpu.hpp"
#include "qlora/io/residual_init.hpp"
#include "qlora/io/trainer.hpp"
#include "support/golden.hpp"
#include "support/refusal.hpp"
#include "support/scratch.hpp"
#include "support/small_model.hpp"

using namespace qlora;

namespace {

//                                  vocab dim layers heads kv head ffn
constexpr Config config{.shape = {96, 32, 2, 4, 2, 8, 96}, .lora = {.rank = 8}};
using Tuned = Trainer<config, Cpu<>>;

const TrainOptions options{
    .rank = 6, .alpha = 3.0F, .dropout = 0.0F, .lr = 1e-2F, .total_steps = 4, .batch = 2, .seq = 16};

std::vector<float> trained(Tuned& trainer) {
  const float* values = trainer.model().weights().trained();
  return {values, values + trainer.model().weights().layout().total()};
}

/// s B A of one adapter, (N,K).
std::vector<float> product(const Weights<code_of(config), Cpu<>>& weights, Cpu<>& backend, int layer, Proj proj) {
  std::vector<float> a, b;
  weights.save_adapter(backend, layer, proj, a, b);
  const AdapterState& state = weights.adapter(layer, proj);
  const int rows = rows_of(config.shape, proj);
  const int cols = cols_of(config.shape, proj);
  std::vector<float> out(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols));
  cpu::product_nn<float>(backend.pool(), rows, cols, state.rank, state.scale, {b.data(), state.rank}, {a.data(), cols},
                         0, {out.data(), cols});
  return out;
}

}  // namespace

TEST_CASE("residual and product are those of peft") {
  const SafetensorsFile file(std::filesystem::path(QLORA_SOURCE_DIR) / "tests/golden/variants/loftq.safetensors");
  cpu::ThreadPool pool(2);
  const std::vector<float> weight = golden::floats(file, "weight");
  const std::vector<float> nf4 = golden::floats(file, "nf4");
  std::vector<float> residual = weight;
  // peft quantizes from float, and so rounds nothing on the way back
  detail::subtract_quantized(pool, residual, DType::f32, {.double_quant = false});
  std::vector<float> lost(weight.size());
  for (std::size_t i = 0; i < weight.size(); ++i) lost[i] = weight[i] - nf4[i];
  CHECK(golden::largest_difference(residual, lost) < 1e-7);
  for (const int rank : {1, 8, 40}) {
    CAPTURE(rank);
    const cpu::LowRank found = cpu::low_rank(pool, residual, 96, 160, rank, 1);
    std::vector<float> ours(weight.size());
    cpu::product_nn<float>(pool, 96, 160, rank, 1.0F, {found.left.data(), rank}, {found.right.data(), 160}, 0,
                           {ours.data(), 160});
    CHECK(golden::relative(ours, golden::floats(file, "product." + std::to_string(rank))) < 1e-4);
    std::vector<float> left = residual;
    for (std::size_t i = 0; i < left.size(); ++i) left[i] -= ours[i];
    const double theirs = static_cast<double>(golden::floats(file, "left." + std::to_string(rank))[0]);
    CHECK(detail::energy(left) == doctest::Approx(theirs).epsilon(1e-5));
  }
}

TEST_CASE("a large matrix is approximated almost as well as can be, with the same bits for any number of threads") {
  // Singular values 1, 0.97, 0.97^2, ... in random directions: no gap at the rank.
  constexpr int rows = 400;
  constexpr int cols = 500;
  constexpr int all = 300;
  constexpr int rank = 24;
  cpu::ThreadPool pool(2);
  std::vector<float> u(rows * all), v(cols * all), matrix(rows * cols);
  qlora::detail::fill_normal("u", 1, 1.0F, u);
  qlora::detail::fill_normal("v", 1, 1.0F, v);
  cpu::detail::orthonormalize(u, rows, all);
  cpu::detail::orthonormalize(v, cols, all);
  double best = 0.0;
  double value = 1.0;
  for (std::size_t k = 0; k < all; ++k, value *= 0.97) {
    if (k >= rank) best += value * value;
    for (std::size_t row = 0; row < rows; ++row) u[row * all + k] *= static_cast<float>(value);
  }
  cpu::product_nt<float>(pool, rows, cols, all, 1.0F, {u.data(), all}, {v.data(), all}, 0, {matrix.data(), cols});
  const cpu::LowRank found = cpu::low_rank(pool, matrix, rows, cols, rank, 7);
  cpu::ThreadPool other(3);
  const cpu::LowRank again = cpu::low_rank(other, matrix, rows, cols, rank, 7);
  CHECK(found.left == again.left);
  CHECK(found.right == again.right);
  cpu::product_nn<float>(pool, rows, cols, rank, -1.0F, {found.left.data(), rank}, {found.right.data(), cols}, 1,
                         {matrix.data(), cols});
  const double left = detail::energy(matrix);
  CHECK(left > best * (1.0 - 1e-4));  // nothing of this rank leaves less
  CHECK(left < best * 1.01);
  CHECK(test::refusal([&] { (void)cpu::low_rank(pool, matrix, rows, cols, 401, 7); }).find("rank 401") !=
        std::string::npos);
}

TEST_CASE("adapters begin with the residual, in their own scale, and a run goes on from its checkpoint") {
  const test::Scratch scratch;
  const TensorSource source = small_model::weights(config.shape, 5);
  const small_model::Data data(4, 16, config.shape.vocab, 9);
  Tuned trainer(source, options, Cpu<>(2));
  int told = 0;
  const double left = init_from_residual(trainer.model(), source, {.threads = 1, .on_matrix = [&](int done) {
                                                                     told = done;
                                                                     return true;
                                                                   }});
  CHECK(told == 14);
  CHECK(left < 0.9);
  double lost_energy = 0.0;
  double left_energy = 0.0;
  auto& weights = trainer.model().weights();
  weights.for_each_target([&](int layer, Proj proj) {
    CAPTURE(layer);
    CAPTURE(name_of(proj));
    CHECK(weights.adapter(layer, proj).rank == 6);
    CHECK(weights.adapter(layer, proj).scale == 0.5F);
    std::vector<float> residual = golden::floats(source(tensor_name::weight(layer, proj)).value());
    const std::vector<float> base = weights.dense_weight(trainer.model().backend(), layer, proj);
    const std::vector<float> sba = product(weights, trainer.model().backend(), layer, proj);
    for (std::size_t i = 0; i < base.size(); ++i) residual[i] -= base[i];
    lost_energy += detail::energy(residual);
    for (std::size_t i = 0; i < base.size(); ++i) residual[i] -= sba[i];
    left_energy += detail::energy(residual);
  });
  CHECK(left == doctest::Approx(left_energy / lost_energy).epsilon(1e-5));

  Tuned other(source, options, Cpu<>(1));
  CHECK(init_from_residual(other.model(), source, {.threads = 2}) == left);
  CHECK(trained(other) == trained(trainer));

  save_trainer(trainer, scratch / "checkpoints");
  (void)trainer.step(data.all());
  Tuned resumed(source, options, Cpu<>(2));
  REQUIRE(restore_trainer(resumed, scratch / "checkpoints"));
  (void)resumed.step(data.all());
  CHECK(trained(resumed) == trained(trainer));
}

TEST_CASE("weights in 4 bits alone have no residual, and a stop leaves with an error") {
  const TensorSource source = small_model::weights(config.shape, 5);
  Tuned trainer(source, options, Cpu<>(1));
  const TensorSource in_4_bits([](std::string_view) { return std::optional<TensorRef>(); },
                               [](std::string_view) { return std::optional<Nf4Ref>(Nf4Ref{}); });
  const std::string refused = test::refusal([&] { (void)init_from_residual(trainer.model(), in_4_bits); });
  CHECK(refused.find("model.layers.0.self_attn.q_proj.weight in 4 bits alone") != std::string::npos);
  CHECK(refused.find("16 or 32 bits") != std::string::npos);
  const auto stop = [&] {
    (void)init_from_residual(trainer.model(), source, {.on_matrix = [](int) { return false; }});
  };
  CHECK(test::refusal(stop).find("interrupted") != std::string::npos);
}
