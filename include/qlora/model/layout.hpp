// qlora/model/layout.hpp — how a decoder layer is cut into groups, buffers and trained parameters: pure arithmetic.
// Everything that needs a size asks here, so that the memory plan, the arenas and the checkpoints cannot disagree.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "qlora/config.hpp"
#include "qlora/error.hpp"
#include "qlora/model/names.hpp"
#include "qlora/ops.hpp"
#include "qlora/view.hpp"

namespace qlora {
inline namespace v0 {

/// Linear layers that share an input. A group is the unit of products, dropout masks and fusion.
enum class Group : std::uint8_t { qkv, o, gate_up, down };
/// The groups in the order in which a layer runs them.
inline constexpr std::array<Group, 4> all_groups{Group::qkv, Group::o, Group::gate_up, Group::down};

/// Index in all_projections of the group's first projection.
[[nodiscard]] constexpr int first_part(Group g) { return std::array{0, 3, 4, 6}[static_cast<std::size_t>(g)]; }
/// Projections in the group.
[[nodiscard]] constexpr int part_count(Group g) { return std::array{3, 1, 2, 1}[static_cast<std::size_t>(g)]; }
/// Projection number `index` of a group, in the order of all_projections.
[[nodiscard]] constexpr Proj part(Group g, int index) {
  return all_projections[static_cast<std::size_t>(first_part(g) + index)];
}
/// The group that a single projection belongs to.
[[nodiscard]] constexpr Group group_of(Proj proj) {
  if (contains(Proj::q | Proj::k | Proj::v, proj)) return Group::qkv;
  if (proj == Proj::o) return Group::o;
  return proj == Proj::down ? Group::down : Group::gate_up;
}
/// K, columns of the group's input.
[[nodiscard]] constexpr int group_in(const Shape& s, Group g) { return cols_of(s, part(g, 0)); }
/// N of all parts together, columns of the group's output.
[[nodiscard]] constexpr int group_out(const Shape& s, Group g) {
  int rows = 0;
  for (int i = 0; i < part_count(g); ++i) rows += rows_of(s, part(g, i));
  return rows;
}
/// Parts of the group that have an adapter.
[[nodiscard]] constexpr int adapted_parts(const Lora& lora, Group g) {
  int count = 0;
  for (int i = 0; i < part_count(g); ++i) count += contains(lora.targets, part(g, i)) ? 1 : 0;
  return count;
}
/// Which of the group's adapters belongs to `proj`: 0 for the first that is a target.
[[nodiscard]] constexpr int adapter_slot(const Lora& lora, Proj proj) {
  int slot = 0;
  for (int i = 0; part(group_of(proj), i) != proj; ++i) {
    slot += contains(lora.targets, part(group_of(proj), i)) ? 1 : 0;
  }
  return slot;
}
/// Columns of XA: one rank for each adapter of the group.
[[nodiscard]] constexpr int adapter_width(const Lora& lora, Group g) { return adapted_parts(lora, g) * lora.rank; }

/// Columns of the widest [X | XA] of a layer; shared workspaces are sized for it.
[[nodiscard]] constexpr int widest_input_row(const Shape& s, const Lora& lora) {
  int widest = 0;
  for (const Group g : all_groups) widest = std::max(widest, group_in(s, g) + adapter_width(lora, g));
  return widest;
}
/// A row of the gradients of a group's input; the loss keeps its input and its gradient there.
[[nodiscard]] constexpr int input_gradient_row(const Shape& s, const Lora& lora) {
  return std::max(widest_input_row(s, lora), 2 * s.dim);
}
/// The widths of activations that are part of view types; `dynamic` where the code does not know them.
template <Code K>
struct Columns {
  static constexpr int dim = K.shape.dim;                                         ///< D
  static constexpr int heads = columns_product(K.shape.heads, K.shape.head_dim);  ///< HE
  /// 2KE: the keys and values of a token
  static constexpr int kv = columns_product(2, columns_product(K.shape.kv_heads, K.shape.head_dim));
  static constexpr int qkv = columns_sum(heads, kv);       ///< (H+2K)E
  static constexpr int ffn = K.shape.ffn;                  ///< F
  static constexpr int gate_up = columns_product(2, ffn);  ///< 2F
};
/// The same of one group of linear layers.
template <Code K, Group G>
struct GroupColumns {
  static constexpr int parts = part_count(G);                            ///< projections in the group
  static constexpr bool trains_weights = K.trainable == Trainable::all;  ///< whether its weights have gradients
  /// K, columns of X
  static constexpr int in = G == Group::o ? Columns<K>::heads : (G == Group::down ? K.shape.ffn : K.shape.dim);
  /// N of all parts together
  static constexpr int out = G == Group::qkv       ? Columns<K>::qkv
                             : G == Group::gate_up ? Columns<K>::gate_up
                                                   : Columns<K>::dim;
  /// parts that have an adapter
  static constexpr int adapted = is_dynamic(K.lora.targets) ? int{dynamic} : adapted_parts(K.lora, G);
  static constexpr int xa = adapted == 0 ? 0 : columns_product(adapted, K.lora.rank);  ///< columns of XA
  static constexpr int wide = columns_sum(in, xa);                                     ///< columns of [X | XA]
};

/// All sizes of a network when it runs: shape and adapters with every dynamic number resolved. Widths are returned in
/// the types that views have, so those of a static config are constants wherever they are used.
template <Code K>
class Dims {
 public:
  /// `shape` and `lora` have no dynamic number and agree with the code's; `quant` may have another double_quant, which
  /// the code reads from each matrix.
  constexpr Dims(const Shape& shape, const Lora& lora, const Quant& quant = K.quant)
      : shape_(shape), lora_(lora), quant_(quant) {}

  /// The shape, layers included.
  [[nodiscard]] constexpr const Shape& shape() const { return shape_; }
  /// The rank cap and the targets; of full training they have no meaning.
  [[nodiscard]] constexpr const Lora& lora() const { return lora_; }
  /// How the frozen projections are stored.
  [[nodiscard]] constexpr const Quant& quant() const { return quant_; }
  /// The config that the memory plan is made of.
  [[nodiscard]] constexpr Config config() const {
    return {.shape = shape_, .lora = lora_, .quant = quant_, .trainable = K.trainable};
  }

  /// D, width of the residual stream.
  [[nodiscard]] constexpr Width<Columns<K>::dim> dim() const { return Width<Columns<K>::dim>(shape_.dim); }
  /// HE, width of all query heads.
  [[nodiscard]] constexpr Width<Columns<K>::heads> heads() const {
    return Width<Columns<K>::heads>(shape_.heads * shape_.head_dim);
  }
  /// 2KE, width of the keys and values of a token.
  [[nodiscard]] constexpr Width<Columns<K>::kv> kv() const {
    return Width<Columns<K>::kv>(2 * shape_.kv_heads * shape_.head_dim);
  }
  /// F, width of the feed-forward block.
  [[nodiscard]] constexpr Width<Columns<K>::ffn> ffn() const { return Width<Columns<K>::ffn>(shape_.ffn); }
  /// K, columns of the group's input X.
  template <Group G>
  [[nodiscard]] constexpr Width<GroupColumns<K, G>::in> in() const {
    return Width<GroupColumns<K, G>::in>(group_in(shape_, G));
  }
  /// N of all parts of the group together.
  template <Group G>
  [[nodiscard]] constexpr Width<GroupColumns<K, G>::out> out() const {
    return Width<GroupColumns<K, G>::out>(group_out(shape_, G));
  }
  /// Columns of the group's [X | XA].
  template <Group G>
  [[nodiscard]] constexpr Width<GroupColumns<K, G>::wide> wide() const {
    return Width<GroupColumns<K, G>::wide>(group_in(shape_, G) + adapter_width(lora_, G));
  }
  /// Heads of a layer, as attention takes them.
  [[nodiscard]] constexpr AttentionShape attention() const { return {shape_.heads, shape_.kv_heads, shape_.head_dim}; }

 private:
  Shape shape_;  ///< layers as at run time
  Lora lora_;
  Quant quant_;
};

/// What one decoder layer computes on the way, in elements for T tokens; inputs of a linear group have room for XA
/// behind each row. `stream`, the residual stream that enters each layer, is kept for all layers and not listed here.
enum class Buffer : std::uint8_t {
  norm1,    ///< [X | XA] of qkv, (T, D + XA): the stream after the first norm
  inv1,     ///< (T), 1 / root mean square of the first norm
  qkv,      ///< (T,(H+2K)E), rotated
  lse,      ///< (H,T), log of the softmax's sum
  o,        ///< [X | XA] of o, (T, HE + XA): what attention gives
  mid,      ///< (T,D), the stream after attention
  norm2,    ///< [X | XA] of gate|up, (T, D + XA): the stream after the second norm
  inv2,     ///< (T), 1 / root mean square of the second norm
  gate_up,  ///< (T,2F); its gradient takes its place, and then that of qkv
  act       ///< [X | XA] of down, (T, F + XA): silu(gate) up
};
/// The buffers in the order in which a layer fills them.
inline constexpr std::array<Buffer, 10> all_buffers{Buffer::norm1,   Buffer::inv1, Buffer::qkv,   Buffer::lse,
                                                    Buffer::o,       Buffer::mid,  Buffer::norm2, Buffer::inv2,
                                                    Buffer::gate_up, Buffer::act};

/// Elements of a buffer of one layer for that many tokens.
[[nodiscard]] constexpr std::int64_t elements(const Shape& s, const Lora& lora, std::int64_t tokens, Buffer buffer) {
  switch (buffer) {
    case Buffer::norm1:
      return tokens * (s.dim + adapter_width(lora, Group::qkv));
    case Buffer::mid:
      return tokens * s.dim;
    case Buffer::norm2:
      return tokens * (s.dim + adapter_width(lora, Group::gate_up));
    case Buffer::inv1:
    case Buffer::inv2:
      return tokens;
    case Buffer::qkv:
      return tokens * group_out(s, Group::qkv);
    case Buffer::lse:
      return tokens * s.heads;
    case Buffer::o:
      return tokens * (s.heads * s.head_dim + adapter_width(lora, Group::o));
    case Buffer::gate_up:  // its gradient takes its place, and then that of qkv
      return tokens * std::max(2 * s.ffn, group_out(s, Group::qkv));
    case Buffer::act:
      return tokens * (s.ffn + adapter_width(lora, Group::down));
  }
  return 0;
}
/// Statistics of a softmax or a norm stay in 32 bits where activations have 16.
[[nodiscard]] constexpr bool is_statistic(Buffer buffer) {
  return buffer == Buffer::inv1 || buffer == Buffer::inv2 || buffer == Buffer::lse;
}

/// What the backward pass computes again instead of keeping: nothing; what costs no attention and no large memory
/// (norms, adapter inputs, gate|up and its product); or the whole block from its input.
enum class Recompute : std::uint8_t { none, cheap, block };

/// Whether the forward pass leaves the buffer for the backward pass under a policy.
[[nodiscard]] constexpr bool is_kept(Buffer buffer, Recompute policy) {
  if (policy == Recompute::none) return true;
  if (policy == Recompute::block) return false;
  return buffer == Buffer::inv1 || buffer == Buffer::inv2 || buffer == Buffer::qkv || buffer == Buffer::lse ||
         buffer == Buffer::o || buffer == Buffer::mid;
}

/// Where each trained tensor lies in the one array that the optimizer sees, in elements.
/// Adapters:  per layer and group: the stacked A (parts x R, in), then each B (out, R); behind the groups of a layer,
///            with DoRA, the magnitudes (out) of each projection.
/// All:       embedding | per layer: norm1, norm2, seven linears | final norm | head (unless tied).
struct TrainedLayout {
  Shape shape;          ///< layers as at run time
  Lora lora;            ///< rank 0 without targets in full training
  Trainable trainable;  ///< which of the two layouts
  bool dora = false;    ///< adapters have magnitudes

  /// Elements of the embedding table, and of an untied head.
  [[nodiscard]] constexpr std::int64_t table() const { return std::int64_t{shape.vocab} * shape.dim; }
  /// Elements of one projection's weight.
  [[nodiscard]] constexpr std::int64_t matrix(Proj proj) const {
    return std::int64_t{rows_of(shape, proj)} * cols_of(shape, proj);
  }
  /// Elements of the adapters of a group in one layer.
  [[nodiscard]] constexpr std::int64_t group_size(Group g) const {
    std::int64_t sum = std::int64_t{adapter_width(lora, g)} * group_in(shape, g);
    for (int i = 0; i < part_count(g); ++i) {
      if (contains(lora.targets, part(g, i))) sum += std::int64_t{rows_of(shape, part(g, i))} * lora.rank;
    }
    return sum;
  }
  /// Elements of all that is trained in one layer.
  [[nodiscard]] constexpr std::int64_t layer_size() const {
    std::int64_t sum = 0;
    if (trainable == Trainable::all) {
      for (const Proj proj : all_projections) sum += matrix(proj);
      return sum + 2 * std::int64_t{shape.dim};
    }
    for (const Group g : all_groups) sum += group_size(g);
    return sum + (dora ? magnitudes(Proj::none) : 0);
  }
  /// Magnitudes of one layer that lie before those of a projection; of Proj::none, all.
  [[nodiscard]] constexpr std::int64_t magnitudes(Proj before) const {
    std::int64_t sum = 0;
    for (const Proj proj : all_projections) {
      if (proj == before) break;
      if (contains(lora.targets, proj)) sum += rows_of(shape, proj);
    }
    return sum;
  }
  /// Index of the first element of a layer; of shape.layers, one past the last layer.
  [[nodiscard]] constexpr std::int64_t layer_offset(int layer) const {
    return (trainable == Trainable::all ? table() : 0) + layer * layer_size();
  }
  /// Elements of the whole array.
  [[nodiscard]] constexpr std::int64_t total() const {
    std::int64_t sum = layer_offset(shape.layers);
    if (trainable == Trainable::all) sum += shape.dim + (shape.tied_embeddings ? 0 : table());
    return sum;
  }
  /// Elements that the gradient of a micro-batch is made in before it is added to those before it: a layer of adapters
  /// at a time, or all.
  [[nodiscard]] constexpr std::int64_t addend_size() const {
    return trainable == Trainable::all ? total() : layer_size();
  }
  /// Index of the stacked A (parts x R, K) of a group.
  [[nodiscard]] constexpr std::int64_t stacked_a(int layer, Group g) const {
    std::int64_t at = layer_offset(layer);
    for (const Group before : all_groups) {
      if (before < g) at += group_size(before);
    }
    return at;
  }
  /// Index of A (R,K) of a projection that is a target.
  [[nodiscard]] constexpr std::int64_t a(int layer, Proj proj) const {
    const Group g = group_of(proj);
    return stacked_a(layer, g) + std::int64_t{adapter_slot(lora, proj)} * lora.rank * group_in(shape, g);
  }
  /// Index of B (N,R) of a projection that is a target.
  [[nodiscard]] constexpr std::int64_t b(int layer, Proj proj) const {
    const Group g = group_of(proj);
    std::int64_t at = stacked_a(layer, g) + std::int64_t{adapter_width(lora, g)} * group_in(shape, g);
    for (int i = 0; part(g, i) != proj; ++i) {
      if (contains(lora.targets, part(g, i))) at += std::int64_t{rows_of(shape, part(g, i))} * lora.rank;
    }
    return at;
  }
  /// Index of the magnitudes (N) of a projection that is a target. With `dora`.
  [[nodiscard]] constexpr std::int64_t magnitude(int layer, Proj proj) const {
    return layer_offset(layer + 1) - magnitudes(Proj::none) + magnitudes(proj);
  }
  /// Index of a norm weight (D). For Trainable::all, as the three below.
  [[nodiscard]] constexpr std::int64_t norm(int layer, NormBefore block) const {
    return layer_offset(layer) + (block == NormBefore::attention ? 0 : shape.dim);
  }
  /// Index of the weight (N,K) of a projection.
  [[nodiscard]] constexpr std::int64_t weight(int layer, Proj proj) const {
    std::int64_t at = layer_offset(layer) + std::int64_t{2} * shape.dim;  // past the norms
    for (const Proj before : all_projections) {
      if (before == proj) break;
      at += matrix(before);
    }
    return at;
  }
  /// Index of the weight (D) of the norm before the head.
  [[nodiscard]] constexpr std::int64_t final_norm() const { return layer_offset(shape.layers); }
  /// Index of the weight (V,D) of the head; of a tied one, that of the embedding.
  [[nodiscard]] constexpr std::int64_t head() const { return shape.tied_embeddings ? 0 : final_norm() + shape.dim; }
};

/// A trained matrix (rows, cols), or with one row a norm weight or the magnitudes of a projection.
struct TrainedTensor {
  std::string name;         ///< as in Hugging Face files, "model.layers.0.mlp.up_proj.lora_A.weight"
  std::int64_t rows = 0;    ///< of an adapter's rank cap, padding included
  std::int64_t cols = 0;    ///< numbers in a row
  std::int64_t offset = 0;  ///< of its first number in the array of all that is trained
};

/// All that is trained, at rising offsets. No template: it builds text, and would be compiled for every config.
[[nodiscard, gnu::cold]] inline std::vector<TrainedTensor> trained_tensors(const TrainedLayout& layout) {
  const Shape& s = layout.shape;
  const Lora& lora = layout.lora;
  std::vector<TrainedTensor> all;
  const auto add = [&](std::string name, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
    all.push_back({std::move(name), rows, cols, offset});
  };
  if (layout.trainable == Trainable::all) add(std::string(tensor_name::embedding), s.vocab, s.dim, 0);
  for (int layer = 0; layer < s.layers; ++layer) {
    if (layout.trainable == Trainable::all) {
      for (const NormBefore block : {NormBefore::attention, NormBefore::feed_forward}) {
        add(tensor_name::norm(layer, block), 1, s.dim, layout.norm(layer, block));
      }
      for (const Proj proj : all_projections) {
        add(tensor_name::weight(layer, proj), rows_of(s, proj), cols_of(s, proj), layout.weight(layer, proj));
      }
      continue;
    }
    for (const Group g : all_groups) {
      for (const bool is_b : {false, true}) {  // all A of a group lie before its B
        for (int i = 0; i < part_count(g); ++i) {
          const Proj proj = part(g, i);
          if (!contains(lora.targets, proj)) continue;
          std::string name = concat(tensor_name::module(layer, proj), is_b ? ".lora_B.weight" : ".lora_A.weight");
          add(std::move(name), is_b ? rows_of(s, proj) : lora.rank, is_b ? lora.rank : cols_of(s, proj),
              is_b ? layout.b(layer, proj) : layout.a(layer, proj));
        }
      }
    }
    for (const Proj proj : all_projections) {
      if (!layout.dora || !contains(lora.targets, proj)) continue;
      add(concat(tensor_name::module(layer, proj), ".lora_magnitude_vector"), 1, rows_of(s, proj),
          layout.magnitude(layer, proj));
    }
  }
  if (layout.trainable == Trainable::all) {
    add(std::string(tensor_name::final_norm), 1, s.dim, layout.final_norm());
    if (!s.tied_embeddings) add(std::string(tensor_name::head), s.vocab, s.dim, layout.head());
  }
  return all;
}

}  // namespace v0
}  // namespace qlora
