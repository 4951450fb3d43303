// tests/support/golden_models.hpp — the shapes of the golden models, and how a test opens one.
#pragma once

#include <functional>

#include "qlora/io/hf.hpp"
#include "qlora/train/trainer.hpp"
#include "support/golden.hpp"

namespace golden {

// As in each model's config.json; the tests compare.      vocab dim layers heads kv head ffn
inline constexpr qlora::Config mha{.shape = /*   */ {256, 64, 3, 4, 4, 16, 176}, .lora = {.rank = 8}};
inline constexpr qlora::Config gqa{.shape = /*   */ {256, 128, 2, 8, 2, 16, 352}, .lora = {.rank = 8}};
inline constexpr qlora::Config tied{
    .shape = /*  */ {320, 96, 2, 3, 1, 32, 256, true}, .lora = {.rank = 8}, .rope_theta = 100000.0F, .norm_eps = 1e-6F};
inline constexpr qlora::Config hd128{.shape = /* */ {512, 256, 2, 2, 1, 128, 704}, .lora = {.rank = 8}};

/// One golden model: its directory and its reference tensors.
struct Model {
  explicit Model(const std::string& name)
      : directory(qlora::hf::ModelDir::open(folder() / name / "model")),
        reference(folder() / name / "reference.safetensors") {}

  [[nodiscard]] std::vector<float> floats(const std::string& name) const { return golden::floats(reference, name); }
  [[nodiscard]] std::vector<std::int32_t> ints(const std::string& name) const { return golden::ints(reference, name); }

  qlora::hf::ModelDir directory;
  qlora::SafetensorsFile reference;
};

/// "model.layers.1.mlp.up_proj": what stands before ".weight" and ".lora_A.weight".
[[nodiscard]] inline std::string stem(int layer, qlora::Proj proj) {
  return "model.layers." + std::to_string(layer) + "." + std::string(qlora::name_of(proj));
}

/// Loads adapters whose tensors are called PREFIX + stem + ".lora_A.weight"; without a lora_B, B is zero.
template <class Weights, class Backend>
void load_adapters(Weights& weights, Backend& backend, const Model& model, const std::string& prefix, int rank,
                   float alpha, bool rank_stabilized) {
  weights.for_each_target([&](int layer, qlora::Proj proj) {
    const std::string base = prefix + stem(layer, proj);
    const auto stored = model.reference.find(base + ".lora_B.weight");
    const auto zeros =
        static_cast<std::size_t>(qlora::rows_of(model.directory.shape, proj)) * static_cast<std::size_t>(rank);
    weights.load_adapter(backend, layer, proj, rank, alpha, rank_stabilized, model.floats(base + ".lora_A.weight"),
                         stored ? golden::floats(*stored) : std::vector<float>(zeros));
  });
}

/// Logits of every token of (N x 64) ids, as one flat array.
template <class Pass>
[[nodiscard]] std::vector<float> logits(Pass& pass, const std::vector<std::int32_t>& ids, int vocab) {
  qlora::BatchBuilder builder(ids.size());
  pass.forward(builder.build({64, ids, ids, {}}));
  std::vector<typename Pass::Param> values(ids.size() * static_cast<std::size_t>(vocab));
  pass.logits(values.data());
  return {values.begin(), values.end()};
}

}  // namespace golden
