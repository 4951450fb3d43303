// qlora/model/qlinear.hpp — a group of linear layers: frozen NF4 weights, and adapters where the config has targets.
// Compile time: which parts exist, which have an adapter, the rank cap. A group without targets has no adapter code.
#pragma once

#include <array>
#include <span>

#include "qlora/backend.hpp"
#include "qlora/model/layout.hpp"

namespace qlora {
inline namespace v0 {

template <Code K, Group G>
struct GroupDims {
  static constexpr int parts = part_count(G);
  static constexpr int adapted = adapted_parts(K.lora, G);
  static constexpr int in = group_in(K.shape, G);
  static constexpr int out = group_out(K.shape, G);
  static constexpr int xa = adapter_width(K.lora, G);
  static constexpr bool trains_weights = K.trainable == Trainable::all;
};

/// Workspaces that all groups share; one product runs at a time.
template <class S>
struct LinearScratch {
  S* weight = nullptr;
  S* input = nullptr;
  S* adapter = nullptr;
};

/// One group of one layer, ready to run: views only.
template <Code K, Group G, class B>
struct QLinear {
  using S = typename B::Scalar;
  using D = GroupDims<K, G>;

  std::array<LinearPart<S>, D::parts> parts{};
  bool adapters = false;  ///< false: the base model, as if there were no adapters

  [[nodiscard]] LinearGroup<S> group(const LinearScratch<S>& scratch, const DropoutSite& dropout) const {
    return {.in = D::in,
            .rank = K.lora.rank,
            .adapted = D::adapted,
            .quant = K.quant,
            .dropout = dropout,
            .weight_scratch = scratch.weight,
            .input_scratch = scratch.input,
            .adapter_scratch = scratch.adapter};
  }
  /// The stacked A of the group, or null.
  [[nodiscard]] const S* stacked() const {
    for (const LinearPart<S>& one : parts) {
      if (one.a != nullptr) return one.a;
    }
    return nullptr;
  }

  /// y (T,out) = frozen and adapter products of x (T,in); xa (T, adapted R) is kept for the backward pass.
  void forward(B& b, const LinearScratch<S>& scratch, const DropoutSite& dropout, Mat<const S, D::in> x, S* xa,
               Mat<S, D::out> y) const {
    b.linear(group(scratch, dropout), std::span<const LinearPart<S>>(parts), x, xa, y);
  }
  /// xa again, for a backward pass that did not keep it.
  void recompute_xa(B& b, const LinearScratch<S>& scratch, const DropoutSite& dropout, Mat<const S, D::in> x,
                    S* xa) const {
    if constexpr (D::adapted > 0) {
      if (stacked() != nullptr) b.adapter_input(group(scratch, dropout), x, stacked(), xa);
    }
  }
  /// gx may be empty. Gradients of the group's trained parameters are added at `gradients`.
  void backward(B& b, const LinearScratch<S>& scratch, const DropoutSite& dropout,
                const std::array<LinearGradient<S>, D::parts>& gradients, Mat<const S, D::out> gy,
                Mat<const S, D::in> x, const S* xa, S* gxa, Mat<S, D::in> gx) const {
    b.linear_backward(group(scratch, dropout), std::span<const LinearPart<S>>(parts),
                      std::span<const LinearGradient<S>>(gradients), gy, x, xa, gxa, gx);
  }
};

/// Where the gradients of one group of one layer go, inside the array that the optimizer sees.
template <Code K, Group G, class S>
[[nodiscard]] std::array<LinearGradient<S>, GroupDims<K, G>::parts> gradient_slots(const TrainedLayout& layout,
                                                                                   int layer, S* gradients) {
  std::array<LinearGradient<S>, GroupDims<K, G>::parts> slots{};
  for (int i = 0; i < GroupDims<K, G>::parts; ++i) {
    const Proj one = part(G, i);
    LinearGradient<S>& slot = slots[static_cast<std::size_t>(i)];
    if constexpr (GroupDims<K, G>::trains_weights) {
      slot.weight = gradients + layout.weight(layer, one);
    } else if (contains(K.lora.targets, one)) {
      slot.a = gradients + layout.a(layer, one);
      slot.b = gradients + layout.b(layer, one);
    }
  }
  return slots;
}

}  // namespace v0
}  // namespace qlora
