// tests/support/small_model.hpp — weights and token windows for tests of small models: random, but large enough that
// attention and the gate do something, and the same for every backend and scalar.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "qlora/model/adapters.hpp"
#include "qlora/model/init.hpp"
#include "qlora/train/batch.hpp"

namespace small_model {

/// Normal weights with deviation 0.6 / sqrt(in), 0.3 for the embedding; norms 1 + 0.1 x. Values fit float16.
[[nodiscard]] inline qlora::TensorSource weights(const qlora::Shape& shape, std::uint64_t seed) {
  auto memory = std::make_shared<std::vector<float>>();
  return [source = qlora::random_weights(shape, seed), memory,
          seed](std::string_view name) -> std::optional<qlora::TensorRef> {
    std::optional<qlora::TensorRef> tensor = source(name);
    if (!tensor) return tensor;
    const bool norm = name.ends_with("norm.weight");
    const auto in = static_cast<float>(tensor->shape.back());
    memory->resize(static_cast<std::size_t>(tensor->size()));
    qlora::detail::fill_normal(name, seed,
                               norm                              ? 0.1F
                               : name.starts_with("model.embed") ? 0.3F
                                                                 : 0.6F / std::sqrt(in),
                               *memory);
    for (float& value : *memory) value = qlora::rounded_to(qlora::DType::f16, norm ? 1.0F + value : value);
    tensor->bytes = std::as_bytes(std::span<const float>(*memory));
    return tensor;
  };
}

/// The same with two channels of `factor` times the size in the inputs of qkv and gate|up, as trained models have
/// channels far above the others. The layers that read them have zeros there, since NF4 would lose what is small beside
/// others in its block.
[[nodiscard]] inline qlora::TensorSource weights_with_outliers(const qlora::Shape& shape, std::uint64_t seed,
                                                               float factor) {
  return [source = weights(shape, seed), factor,
          memory = std::make_shared<std::vector<float>>()](std::string_view name) -> std::optional<qlora::TensorRef> {
    std::optional<qlora::TensorRef> tensor = source(name);
    const bool norm = name.ends_with("layernorm.weight");
    const std::array<std::string_view, 5> readers{"q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight",
                                                  "up_proj.weight"};
    const bool reads = std::any_of(readers.begin(), readers.end(), [&](auto end) { return name.ends_with(end); });
    if (!tensor || !(norm || reads)) return tensor;
    memory->resize(static_cast<std::size_t>(tensor->size()));
    qlora::read_floats(*tensor, 0, *memory);
    const auto width = static_cast<std::size_t>(tensor->shape.back());
    for (std::size_t row = 0; row < memory->size(); row += width) {
      for (const std::size_t channel : {std::size_t{5}, width - 9}) (*memory)[row + channel] *= norm ? factor : 0.0F;
    }
    tensor->bytes = std::as_bytes(std::span<const float>(*memory));
    return tensor;
  };
}

/// Windows of `seq` random tokens, cut into documents at random; about one label in eight is ignored.
struct Data {
  int seq = 0;
  std::vector<std::int32_t> ids, labels, documents;

  Data(int windows, int tokens, int vocab, unsigned seed, int document = 7) : seq(tokens) {
    std::mt19937 random(seed);
    const auto below = [&](int bound) { return static_cast<std::int32_t>(random() % static_cast<unsigned>(bound)); };
    std::int32_t number = 0;
    for (int i = 0; i < windows * tokens; ++i) {
      if (document > 0 && below(document) == 0) ++number;
      ids.push_back(below(vocab));
      labels.push_back(below(8) == 0 ? qlora::ignored_label : ids.back());
      documents.push_back(number);
    }
  }
  [[nodiscard]] qlora::Windows all() const { return {seq, ids, labels, documents}; }
};

/// Random A and B for every adapter of a set, of this rank, the same for every scalar and rank cap.
template <class Backend>
void load_random_adapters(qlora::AdapterSet<Backend>& set, Backend& backend, const qlora::Shape& shape, int rank,
                          float alpha, std::uint64_t seed) {
  set.for_each([&](int layer, qlora::Proj proj) {
    const std::string name = std::to_string(layer) + std::string(qlora::name_of(proj));
    const int in = qlora::cols_of(shape, proj);
    std::vector<float> a(static_cast<std::size_t>(rank) * static_cast<std::size_t>(in));
    std::vector<float> b(static_cast<std::size_t>(qlora::rows_of(shape, proj)) * static_cast<std::size_t>(rank));
    qlora::detail::fill_normal(name + "A", seed, 1.0F / std::sqrt(static_cast<float>(in)), a);
    qlora::detail::fill_normal(name + "B", seed, 0.1F, b);
    set.load(backend, layer, proj, rank, alpha, false, a, b);
  });
}
/// The same for a model's own.
template <class Weights, class Backend>
requires requires(Weights& weights) { weights.own(); }
void load_random_adapters(Weights& weights, Backend& backend, const qlora::Shape& shape, int rank, float alpha,
                          std::uint64_t seed) {
  load_random_adapters(weights.own(), backend, shape, rank, alpha, seed);
}

}  // namespace small_model
