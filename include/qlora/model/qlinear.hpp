// qlora/model/qlinear.hpp — a group of linear layers: frozen NF4 weights, and adapters where the config has targets.
// Compile time: which parts exist; where the config says so, their widths, which of them have an adapter, the rank cap.
// A group without targets has no adapter code then.
#pragma once

#include <array>
#include <span>

#include "qlora/backend.hpp"
#include "qlora/model/layout.hpp"

namespace qlora {
inline namespace v0 {

/// One group of one layer, ready to run: views only.
template <Code K, Group G, class B>
struct QLinear {
  using Act = typename B::Act;                       ///< what activations and frozen dense weights are stored in
  using Param = typename B::Param;                   ///< what is trained
  using Part = LinearPart<Act, Param>;               ///< one projection
  using Gradient = LinearGradient<Param>;            ///< where its gradients go
  using C = GroupColumns<K, G>;                      ///< widths that view types have
  using Input = typename B::template View<C::wide>;  ///< [X | XA], (T, K + XA)
  using Output = typename B::template View<C::out>;  ///< Y, (T, N of all parts)
  using ConstInput = typename B::template ConstView<C::wide>;  ///< [X | XA] to read
  using ConstOutput = typename B::template ConstView<C::out>;  ///< Y to read

  std::array<Part, C::parts> parts{};  ///< in the order of all_projections
  Width<C::in> in;                     ///< K, columns of X
  Width<K.lora.rank> rank;             ///< R, columns of XA for one adapter
  Width<C::adapted> adapted;           ///< parts that have an adapter

  /// Without weights: Weights::linear fills the parts.
  explicit QLinear(const Dims<K>& dims)
      : in(dims.template in<G>()), rank(dims.lora().rank), adapted(adapted_parts(dims.lora(), G)) {}

  /// What the backend is told of the group for one call.
  [[nodiscard]] LinearGroup<Act> group(const LinearScratch<Act>& scratch, const DropoutSite& dropout) const {
    return {.in = in,
            .rank = rank,
            .adapted = adapted,
            .quant = K.quant,
            .dropout = dropout,
            .products = scratch.products,
            .weight_scratch = scratch.weight,
            .input_scratch = scratch.input,
            .adapter_scratch = scratch.adapter,
            .output_scratch = scratch.output};
  }

  /// y (T,out) = [residual +] frozen and adapter products of x (T, in | XA), whose XA is written on the way and kept
  /// for the backward pass.
  void forward(B& b, const LinearScratch<Act>& scratch, const DropoutSite& dropout, Input x, ConstOutput residual,
               Output y) const {
    b.linear(group(scratch, dropout), std::span<const Part>(parts), x, residual, y);
  }
  /// The same for rows that have adapters of their own, without dropout. `parts` has none.
  void forward_mixed(B& b, const LinearScratch<Act>& scratch, std::span<const RowAdapters<Param>> ranges, Input x,
                     ConstOutput residual, Output y) const {
    b.linear_mixed(group(scratch, {}), std::span<const Part>(parts), ranges, x, residual, y);
  }
  /// XA again, for a backward pass that did not keep it.
  void recompute_xa(B& b, const LinearScratch<Act>& scratch, const DropoutSite& dropout, Input x) const {
    if constexpr (C::adapted != 0) {
      if (adapted > 0) b.adapter_input(group(scratch, dropout), std::span<const Part>(parts), x);
    }
  }
  /// gx (T, in | gXA). Gradients of the group's trained parameters are added at `gradients`.
  void backward(B& b, const LinearScratch<Act>& scratch, const DropoutSite& dropout,
                const std::array<Gradient, C::parts>& gradients, ConstOutput gy, ConstInput x, bool needs_input,
                Input gx) const {
    b.linear_backward(group(scratch, dropout), std::span<const Part>(parts), std::span<const Gradient>(gradients), gy,
                      x, needs_input, gx);
  }
};

/// Where the gradients of one group of one layer go; `gradients`: those of the whole layer.
template <Code K, Group G, class Param>
[[nodiscard]] std::array<LinearGradient<Param>, GroupColumns<K, G>::parts> gradient_slots(const TrainedLayout& layout,
                                                                                          int layer, Param* gradients) {
  const std::int64_t begin = layout.layer_offset(layer);
  std::array<LinearGradient<Param>, GroupColumns<K, G>::parts> slots{};
  for (int i = 0; i < GroupColumns<K, G>::parts; ++i) {
    const Proj proj = part(G, i);
    LinearGradient<Param>& slot = slots[static_cast<std::size_t>(i)];
    if constexpr (GroupColumns<K, G>::trains_weights) {
      slot.weight = gradients + (layout.weight(layer, proj) - begin);
    } else if (contains(layout.lora.targets, proj)) {
      slot.a = gradients + (layout.a(layer, proj) - begin);
      slot.b = gradients + (layout.b(layer, proj) - begin);
      if (layout.dora) slot.magnitude = gradients + (layout.magnitude(layer, proj) - begin);
    }
  }
  return slots;
}

}  // namespace v0
}  // namespace qlora
