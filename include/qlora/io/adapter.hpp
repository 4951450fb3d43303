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
  const Shape& s = model.resolved_config().shape;
  std::list<std::vector<float>> values;  // what the tensors point to
  std::vector<PeftTensor> tensors;
  model.weights().for_each_target([&](int layer, Proj proj) {
    std::vector<float>& a = values.emplace_back();
    std::vector<float>& b = values.emplace_back();
    model.weights().save_adapter(model.backend(), layer, proj, a, b);
    const std::int64_t rank = model.weights().adapter(layer, proj).rank;
    tensors.push_back({lora_name(layer, proj, 'A'), {rank, cols_of(s, proj)}, a});  // (r, in)
    tensors.push_back({lora_name(layer, proj, 'B'), {rows_of(s, proj), rank}, b});  // (out, r)
  });
  write_peft(dir, config, tensors);
}

}  // namespace v0
}  // namespace qlora
