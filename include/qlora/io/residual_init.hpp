// qlora/io/residual_init.hpp — adapters that begin with what quantization lost: s B A is the best approximation of
// W - dq(NF4(W)) by its rank, as in LoftQ and peft's replace_lora_weights_loftq. The base does not change, so after
// training such an adapter is an ordinary one.
//   Trainer<mine, Cpu<>> trainer(directory.source(), options);
//   init_from_residual(trainer.model(), directory.source(), {.seed = options.seed});
// Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models" (2023), with one alternation.
// The work is done on the host for every backend, one matrix at a time: a copy of it in float, its codes, and what
// cpu/low_rank.hpp takes. Ranks that train together share the matrices.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/comm.hpp"
#include "qlora/cpu/low_rank.hpp"
#include "qlora/cpu/nf4_quantize.hpp"
#include "qlora/io/bnb.hpp"
#include "qlora/model/model.hpp"

namespace qlora {
inline namespace v0 {

/// How adapters are set to the residual.
struct ResidualInit {
  std::uint64_t seed = 42;  ///< of the first subspace of large matrices
  int threads = 0;          ///< of the host; 0: one per core
  Comm* comm = nullptr;     ///< ranks that all make this call and share the work; null: this process alone
  /// Called with 0, and after each round with how many matrices are done; false: stop.
  std::function<bool(int)> on_matrix{};
};

namespace detail {

/// Sums of squares over all residuals.
struct ResidualEnergy {
  double lost = 0.0;  ///< of W - dq(NF4(W))
  double left = 0.0;  ///< of W - dq(NF4(W)) - s B A
};

/// Of a matrix (values) what NF4 loses: each number less what its code means.
inline void subtract_quantized(cpu::ThreadPool& pool, std::vector<float>& values, DType state, const Quant& quant) {
  const Nf4Layout layout = Nf4Layout::of(static_cast<std::int64_t>(values.size()), quant);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(layout.code_bytes));
  std::vector<float> absmax(static_cast<std::size_t>(layout.blocks));
  std::vector<std::uint8_t> absmax8(layout.nested > 0 ? absmax.size() : 0);
  std::vector<float> nested(static_cast<std::size_t>(layout.nested));
  Nf4Ref stored;
  stored.state = state;
  stored.codes = std::as_bytes(std::span(codes));
  Nf4Target to{.codes = codes.data(), .absmax = absmax.data()};
  if (layout.nested > 0) {
    to.absmax8 = absmax8.data();
    to.nested = nested.data();
    to.offset = &stored.offset;
  }
  cpu::quantize_nf4(pool, values, quant, to);
  stored.absmax = layout.nested > 0 ? std::as_bytes(std::span(absmax8)) : std::as_bytes(std::span(absmax));
  stored.nested = std::as_bytes(std::span(nested));
  cpu::for_ranges(pool, static_cast<std::int64_t>(values.size()), 1 << 16,
                  [&](std::int64_t first, std::int64_t last, int) {
                    std::vector<float> meant(static_cast<std::size_t>(last - first));
                    bnb::dequantize(stored, first, meant);
                    for (std::size_t i = 0; i < meant.size(); ++i) {
                      values[static_cast<std::size_t>(first) + i] -= meant[i];
                    }
                  });
}

[[nodiscard]] inline double energy(std::span<const float> values) {
  double sum = 0.0;
  for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return sum;
}

/// Throws Error (input) when the weight is there in 4 bits alone: what quantization lost is not known then.
[[nodiscard]] inline TensorRef weight_to_approximate(const TensorSource& source, const std::string& name) {
  std::optional<TensorRef> tensor = source(name);
  if (tensor) return std::move(*tensor);
  throw Error(concat("the model has ", name, source.nf4(name) ? " in 4 bits alone" : " not at all",
                     "; adapters that begin with what quantization lost (loftq) need the weights in 16 or 32 bits: ",
                     "give the model that it was quantized from"));
}

/// A (rank,K) and then B (N,rank) of one adapter. Adds to the energies of all.
[[nodiscard]] inline std::vector<float> residual_adapter(cpu::ThreadPool& pool, const TensorSource& source, int layer,
                                                         Proj proj, const Shape& shape, const Quant& quant,
                                                         const AdapterState& state, std::uint64_t seed,
                                                         ResidualEnergy& energies) {
  const int rows = rows_of(shape, proj);
  const int cols = cols_of(shape, proj);
  std::vector<float> residual(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols));
  {
    const TensorRef weight = weight_to_approximate(source, tensor_name::weight(layer, proj));
    QLORA_EXPECTS(weight.size() == static_cast<std::int64_t>(residual.size()), tensor_name::weight(layer, proj),
                  " has shape ", shape_text(weight.shape), ", this model needs ", rows, " x ", cols);
    read_floats(weight, 0, residual);
    subtract_quantized(pool, residual, weight.dtype, quant);
  }
  const int rank = std::min({state.rank, rows, cols});  // a larger one has columns of zeros
  const cpu::LowRank found =
      cpu::low_rank(pool, residual, rows, cols, rank,
                    seed + (static_cast<std::uint64_t>(layer) * 64U) + static_cast<std::uint64_t>(proj));
  const float each = 1.0F / std::sqrt(state.scale);  // half of 1 / s in each, so that neither learns faster for it
  const auto r = static_cast<std::size_t>(state.rank);
  std::vector<float> out(r * static_cast<std::size_t>(rows + cols), 0.0F);
  for (std::size_t i = 0; i < found.right.size(); ++i) out[i] = found.right[i] * each;
  float* b = out.data() + r * static_cast<std::size_t>(cols);
  for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row) {
    for (std::size_t k = 0; k < static_cast<std::size_t>(rank); ++k) {
      b[row * r + k] = found.left[row * static_cast<std::size_t>(rank) + k] * each;
    }
  }
  energies.lost += energy(residual);
  cpu::product_nn<float>(pool, rows, cols, rank, -1.0F, {found.left.data(), rank}, {found.right.data(), cols}, 1,
                         {residual.data(), cols});
  energies.left += energy(residual);
  return out;
}

/// The values of each rank, those of this one being `mine`; sizes may differ.
[[nodiscard]] inline std::vector<std::vector<float>> share(Comm* comm, std::vector<float> mine) {
  std::vector<std::vector<float>> all;
  if (comm == nullptr || comm->size() == 1) {
    all.push_back(std::move(mine));
    return all;
  }
  const std::vector<std::uint64_t> sizes = comm->gather(std::uint64_t{mine.size()});
  const auto longest = static_cast<std::size_t>(*std::max_element(sizes.begin(), sizes.end()));
  mine.resize(longest);
  std::vector<float> together(longest * sizes.size());
  comm->gather_bytes(mine.data(), longest * sizeof(float), together.data());
  for (std::size_t rank = 0; rank < sizes.size(); ++rank) {
    const auto from = together.begin() + static_cast<std::ptrdiff_t>(rank * longest);
    all.emplace_back(from, from + static_cast<std::ptrdiff_t>(sizes[rank]));
  }
  return all;
}

}  // namespace detail

/// Sets A and B of all of the model's own adapters, whose ranks and scales stay, to the residuals of their weights.
/// `source` has the weights that the model was quantized from. The same bits for any number of threads and ranks.
/// Returns what share of the sum of squares of all residuals is left without a counterpart in s B A.
/// Throws Error: (input) when a weight is there in 4 bits alone, (usage) when the adapters are in use or were never
/// set, (interrupted) when on_matrix says so.
template <Config C, class B>
requires(C.trainable == Trainable::adapters &&
         C.quant.kind == QuantKind::nf4) double init_from_residual(Model<C, B>& model, const TensorSource& source,
                                                                   const ResidualInit& how = {}) {
  const Shape& shape = model.resolved_config().shape;
  std::vector<std::pair<int, Proj>> all;
  model.weights().for_each_target([&](int layer, Proj proj) { all.emplace_back(layer, proj); });
  const auto ranks = static_cast<std::size_t>(how.comm != nullptr ? how.comm->size() : 1);
  const auto rank = static_cast<std::size_t>(how.comm != nullptr ? how.comm->rank() : 0);
  cpu::ThreadPool pool(how.threads);
  detail::ResidualEnergy energies;
  const auto tell = [&](std::size_t done) {
    if (!how.on_matrix || how.on_matrix(static_cast<int>(done))) return;
    throw Error("interrupted while adapters were set to what quantization lost; nothing was written",
                ErrorKind::interrupted);
  };
  tell(0);
  for (std::size_t first = 0; first < all.size(); first += ranks) {
    std::vector<float> mine;
    if (first + rank < all.size()) {
      const auto [layer, proj] = all[first + rank];
      const AdapterState& state = model.weights().adapter(layer, proj);
      QLORA_EXPECTS(state.rank > 0, "the adapter of ", tensor_name::module(layer, proj), " was never set");
      mine = detail::residual_adapter(pool, source, layer, proj, shape, model.resolved_config().quant, state, how.seed,
                                      energies);
    }
    const std::vector<std::vector<float>> made = detail::share(how.comm, std::move(mine));
    const std::size_t here = std::min(ranks, all.size() - first);
    for (std::size_t i = 0; i < here; ++i) {
      const auto [layer, proj] = all[first + i];
      const AdapterState state = model.weights().adapter(layer, proj);
      const std::span<const float> values(made[i]);
      const std::size_t a = static_cast<std::size_t>(state.rank) * static_cast<std::size_t>(cols_of(shape, proj));
      model.weights().load_adapter(model.backend(), layer, proj, state.rank, state.alpha, state.rank_stabilized,
                                   values.first(a), values.subspan(a));
    }
    tell(first + here);
  }
  if (how.comm != nullptr) {  // each rank has the sums of its own matrices
    const std::vector<detail::ResidualEnergy> parts = how.comm->gather(energies);
    energies = {};
    for (const detail::ResidualEnergy& part : parts) {
      energies.lost += part.lost;
      energies.left += part.left;
    }
  }
  return energies.lost > 0.0 ? energies.left / energies.lost : 0.0;
}

}  // namespace v0
}  // namespace qlora
