// qlora/io/adapter.hpp — the adapters of a model as a PEFT directory: write_adapter(dir, trainer.model(), config).
#pragma once

#include <filesystem>
#include <list>
#include <vector>

#include "qlora/io/peft.hpp"
#include "qlora/model/model.hpp"

namespace qlora {
inline namespace v0 {

/// Writes what the adapters of a model hold now, without the padding up to the rank cap. `config` says how they are to
/// be read: r and alpha are those of the training.
template <Config C, class B>
void write_adapter(const std::filesystem::path& dir, Model<C, B>& model, const PeftConfig& config) {
  std::list<std::vector<float>> values;  // what the tensors point to
  std::vector<PeftTensor> tensors;
  model.weights().for_each_target([&](int layer, Proj one) {
    std::vector<float>& a = values.emplace_back();
    std::vector<float>& b = values.emplace_back();
    model.weights().save_adapter(model.backend(), layer, one, a, b);
    const std::int64_t rank = model.weights().adapter(layer, one).rank;
    tensors.push_back({lora_name(layer, one, 'A'), {rank, cols_of(C.shape, one)}, a});  // (r, in)
    tensors.push_back({lora_name(layer, one, 'B'), {rows_of(C.shape, one), rank}, b});  // (out, r)
  });
  write_peft(dir, config, tensors);
}

}  // namespace v0
}  // namespace qlora
