// qlora/model/weights.hpp — all weights of a model in backend memory: frozen ones quantized while they are read,
// trained ones behind one another as the optimizer wants them. Needs: a TensorSource with Hugging Face names. Host
// memory while loading is bounded by one tensor.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>
#include <vector>

#include "qlora/model/names.hpp"
#include "qlora/model/plan.hpp"
#include "qlora/model/qlinear.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {

/// Numbers of a model that are values and not code.
struct ModelValues {
  float rope_theta = 10000.0F;  ///< base of the rotary embedding's wavelengths
  float norm_eps = 1e-5F;       ///< added to the mean square in RMS normalisation
};

/// Rank and scale of some adapters, other than the rest's.
struct AdapterOverride {
  int layer = -1;            ///< -1: every layer
  Proj targets = Proj::all;  ///< projections that it is for
  int rank = 0;              ///< 0: that of the rule
  float alpha = 0.0F;        ///< 0: that of the rule
};

/// How adapters are set up at run time. The scale of B A is alpha / r, or alpha / sqrt(r) when rank-stabilised.
struct AdapterRule {
  int rank = 0;                              ///< 0: the cap of the config
  float alpha = 16.0F;                       ///< numerator of the scale
  bool rank_stabilized = false;              ///< the scale is alpha / sqrt(r)
  std::vector<AdapterOverride> overrides{};  ///< where several fit, the last one counts
};

/// Rank, alpha and scale of one adapter. Rank 0: it was never set.
struct AdapterState {
  int rank = 0;                  ///< columns of A that are not padding
  float alpha = 0.0F;            ///< numerator of the scale
  float scale = 0.0F;            ///< what B A is multiplied by
  bool rank_stabilized = false;  ///< scale is alpha / sqrt(rank)
};

/// The weights of a model in backend memory, frozen and trained, and its adapters' ranks and scales.
template <Code K, class B>
class Weights {
 public:
  using Act = typename B::Act;      ///< what activations and frozen dense weights are stored in
  using Param = typename B::Param;  ///< what is trained
  static constexpr bool full = K.trainable == Trainable::all;  ///< every weight is trained, and there are no adapters
  static constexpr bool quantized = K.quant.kind == QuantKind::nf4;  ///< the frozen projections are in NF4

  /// Reads, quantizes and places every weight. `keep_dequantized` holds frozen linears dense as well.
  Weights(B& backend, const Dims<K>& dims, const ModelValues& values, const TensorSource& source, bool keep_dequantized)
      : values_(values),
        dims_(dims),
        layout_{dims.shape(), dims.lora(), K.trainable},
        adapters_(static_cast<std::size_t>(layers()) * 7),
        layers_(static_cast<std::size_t>(layers())),
        arena_(backend.arena(bytes_needed(dims, keep_dequantized))) {
    trained_ = arena_.template take<Param>(layout_.total());
    load(backend, source, keep_dequantized);
  }

  /// All sizes of the model.
  [[nodiscard]] const Dims<K>& dims() const { return dims_; }
  /// Where each trained tensor lies in trained().
  [[nodiscard]] const TrainedLayout& layout() const { return layout_; }
  /// Number of decoder blocks.
  [[nodiscard]] int layers() const { return layout_.shape.layers; }
  /// The model's numbers that are not sizes.
  [[nodiscard]] const ModelValues& values() const { return values_; }
  /// The memory that all of this lies in.
  [[nodiscard]] const typename B::Arena& arena() const { return arena_; }

  /// Everything the optimizer changes: (layout().total()).
  [[nodiscard]] Param* trained() { return trained_; }
  /// Everything the optimizer changes, to read.
  [[nodiscard]] const Param* trained() const { return trained_; }

  /// The embedding table (V,D).
  [[nodiscard]] const Act* embedding() const { return embedding_; }
  /// The head (V,D); a tied one is the embedding table.
  [[nodiscard]] const Act* head() const { return head_; }
  /// Weight (D) of the norm before the head.
  [[nodiscard]] const Param* final_norm() const { return final_norm_; }
  /// Norm weight (D) of a layer; `which`: 0 before attention, 1 before the feed-forward block.
  [[nodiscard]] const Param* norm(int layer, int which) const {
    return layers_[static_cast<std::size_t>(layer)].norm[which];
  }

  /// One group of a layer, with adapters or as the base model.
  template <Group G>
  [[nodiscard]] QLinear<K, G, B> linear(int layer) const {
    QLinear<K, G, B> group(dims_);
    for (int i = 0; i < part_count(G); ++i) {
      const Proj proj = part(G, i);
      LinearPart<Act, Param>& here = group.parts[static_cast<std::size_t>(i)];
      here.weight = layers_[static_cast<std::size_t>(layer)].linear[static_cast<std::size_t>(first_part(G) + i)];
      if constexpr (!full) {
        if (adapters_on_ && contains(layout_.lora.targets, proj)) {
          here.a = trained_ + layout_.a(layer, proj);
          here.b = trained_ + layout_.b(layer, proj);
          here.scale = Param(adapter(layer, proj).scale);
        }
      }
    }
    return group;
  }

  /// With adapters off the model is its base, to the bit.
  void use_adapters(bool on) { adapters_on_ = on; }
  /// Whether linear() has adapters.
  [[nodiscard]] bool uses_adapters() const { return adapters_on_; }

  /// Rank and scale of one adapter.
  [[nodiscard]] const AdapterState& adapter(int layer, Proj proj) const { return adapters_[slot(layer, proj)]; }

  /// Ranks and scales from a rule, A Kaiming-uniform (a = sqrt 5, so within 1 / sqrt(in)), B zero. The values depend on
  /// seed, layer, projection, row and column alone, so the rank cap does not show in them.
  /// Throws Error when an override is for no adapter of the model, or a rank is above the cap.
  void init_adapters(B& backend, const AdapterRule& rule, std::uint64_t seed) {
    for (const AdapterOverride& special : rule.overrides) expect_used(special);
    for_each_target([&](int layer, Proj proj) {
      int rank = rule.rank != 0 ? rule.rank : layout_.lora.rank;
      float alpha = rule.alpha;
      for (const AdapterOverride& special : rule.overrides) {
        if ((special.layer >= 0 && special.layer != layer) || !contains(special.targets, proj)) continue;
        if (special.rank != 0) rank = special.rank;
        if (special.alpha > 0.0F) alpha = special.alpha;
      }
      set_adapter(layer, proj, rank, alpha, rule.rank_stabilized);
      const int in = cols_of(layout_.shape, proj);
      const float bound = 1.0F / std::sqrt(static_cast<float>(in));
      std::vector<float> a(static_cast<std::size_t>(layout_.lora.rank) * static_cast<std::size_t>(in), 0.0F);
      for (int r = 0; r < rank; ++r) {
        for (int c = 0; c < in; ++c) {
          const auto words =
              philox({static_cast<std::uint32_t>(c), static_cast<std::uint32_t>(r), static_cast<std::uint32_t>(layer),
                      use_word(RandomUse::adapter_init, static_cast<std::uint32_t>(proj))},
                     seed);
          a[static_cast<std::size_t>(r * in + c)] = (2.0F * unit_float(words[0]) - 1.0F) * bound;
        }
      }
      backend.upload(a, trained_ + layout_.a(layer, proj));
      backend.zero(trained_ + layout_.b(layer, proj), std::int64_t{rows_of(layout_.shape, proj)} * layout_.lora.rank);
    });
  }

  /// Sets one adapter from A (rank, in) and B (out, rank); what is left up to the cap becomes zero.
  void load_adapter(B& backend, int layer, Proj proj, int rank, float alpha, bool rank_stabilized,
                    std::span<const float> a, std::span<const float> b) {
    QLORA_EXPECTS(contains(layout_.lora.targets, proj), name_of(proj),
                  " has an adapter, but is no target of this model");
    const auto in = static_cast<std::size_t>(cols_of(layout_.shape, proj));
    const auto out = static_cast<std::size_t>(rows_of(layout_.shape, proj));
    set_adapter(layer, proj, rank, alpha, rank_stabilized);
    const auto r = static_cast<std::size_t>(rank);
    QLORA_EXPECTS(a.size() == r * in && b.size() == out * r, "adapter of layer ", layer, " ", name_of(proj), " has ",
                  a.size(), " and ", b.size(), " values, rank ", rank, " needs ", r * in, " and ", out * r);
    const auto cap = static_cast<std::size_t>(layout_.lora.rank);
    std::vector<float> padded(cap * in, 0.0F);
    std::copy(a.begin(), a.end(), padded.begin());
    backend.upload(padded, trained_ + layout_.a(layer, proj));
    padded.assign(out * cap, 0.0F);
    for (std::size_t row = 0; row < out; ++row) {
      for (std::size_t col = 0; col < r; ++col) padded[row * cap + col] = b[row * r + col];
    }
    backend.upload(padded, trained_ + layout_.b(layer, proj));
  }

  /// One adapter without its padding: A (rank, in), B (out, rank).
  void save_adapter(const B& backend, int layer, Proj proj, std::vector<float>& a, std::vector<float>& b) const {
    const auto in = static_cast<std::size_t>(cols_of(layout_.shape, proj));
    const auto out = static_cast<std::size_t>(rows_of(layout_.shape, proj));
    const auto rank = static_cast<std::size_t>(adapter(layer, proj).rank);
    const auto cap = static_cast<std::size_t>(layout_.lora.rank);
    a.resize(rank * in);
    backend.download(trained_ + layout_.a(layer, proj), a);
    std::vector<float> padded(out * cap);
    backend.download(trained_ + layout_.b(layer, proj), padded);
    b.resize(out * rank);
    for (std::size_t row = 0; row < out; ++row) {
      for (std::size_t col = 0; col < rank; ++col) b[row * rank + col] = padded[row * cap + col];
    }
  }

  /// Calls visit(layer, projection) for every adapter.
  template <class Visit>
  void for_each_target(Visit&& visit) const {
    for (int layer = 0; layer < layers(); ++layer) {
      for (const Proj proj : all_projections) {
        if (contains(layout_.lora.targets, proj)) visit(layer, proj);
      }
    }
  }

  /// A dequantized or dense linear weight (out, in), in float: for merging and for looking at.
  [[nodiscard]] std::vector<float> dense_weight(B& backend, int layer, Proj proj) const {
    const Weight<Act>& weight =
        layers_[static_cast<std::size_t>(layer)].linear[static_cast<std::size_t>(index_of(proj))];
    std::vector<float> out(static_cast<std::size_t>(layout_.matrix(proj)));
    if (!quantized) {
      backend.download(weight.dense, out);
      return out;
    }
    auto scratch = backend.arena(arena_bytes(layout_.matrix(proj) * static_cast<std::int64_t>(sizeof(Param))));
    Param* values = scratch.template take<Param>(layout_.matrix(proj));
    backend.dequantize(weight.nf4, layout_.matrix(proj), K.quant, values);
    backend.download(values, out);
    return out;
  }

  /// Trained tensors by their Hugging Face names, with offsets into trained(): visit(name, rows, cols, offset).
  template <class Visit>
  void for_each_trained(Visit&& visit) const {
    const Shape& s = layout_.shape;
    if constexpr (full) {
      visit(std::string(tensor_name::embedding), s.vocab, s.dim, std::int64_t{0});
      for (int layer = 0; layer < s.layers; ++layer) {
        visit(tensor_name::norm(layer, 0), 1, s.dim, layout_.norm(layer, 0));
        visit(tensor_name::norm(layer, 1), 1, s.dim, layout_.norm(layer, 1));
        for (const Proj proj : all_projections) {
          visit(tensor_name::weight(layer, proj), rows_of(s, proj), cols_of(s, proj), layout_.weight(layer, proj));
        }
      }
      visit(std::string(tensor_name::final_norm), 1, s.dim, layout_.final_norm());
      if (!s.tied_embeddings) visit(std::string(tensor_name::head), s.vocab, s.dim, layout_.head());
    } else {
      for_each_target([&](int layer, Proj proj) {
        const std::string base = tensor_name::module(layer, proj);
        visit(base + ".lora_A.weight", layout_.lora.rank, cols_of(s, proj), layout_.a(layer, proj));
        visit(base + ".lora_B.weight", rows_of(s, proj), layout_.lora.rank, layout_.b(layer, proj));
      });
    }
  }

 private:
  struct Layer {
    const Param* norm[2] = {nullptr, nullptr};
    std::array<Weight<Act>, 7> linear{};
  };

  [[nodiscard]] static constexpr int index_of(Proj proj) {
    int index = 0;
    while (all_projections[static_cast<std::size_t>(index)] != proj) ++index;
    return index;
  }
  [[nodiscard]] static std::size_t slot(int layer, Proj proj) {
    return static_cast<std::size_t>(layer) * 7 + static_cast<std::size_t>(index_of(proj));
  }
  [[nodiscard]] static std::int64_t bytes_needed(const Dims<K>& dims, bool keep_dequantized) {
    const Run run{.seq = 1, .keep_dequantized = keep_dequantized};
    const MemoryPlan plan = memory_plan(dims.config(), run, storage_of<B>(0));
    return plan[Purpose::nf4_codes] + plan[Purpose::nf4_scales] + plan[Purpose::dense_linears] +
           plan[Purpose::embedding_head] + plan[Purpose::trained];
  }

  void expect_used(const AdapterOverride& special) const {
    QLORA_EXPECTS(special.layer >= -1 && special.layer < layers(), "an override for adapters of layer ", special.layer,
                  "; the model has layers 0 to ", layers() - 1);
    for (const Proj proj : all_projections) {
      if (contains(special.targets, proj) && contains(layout_.lora.targets, proj)) return;
    }
    throw Error(concat("an override for adapters of ", names_of(special.targets), "; this model has those of ",
                       names_of(layout_.lora.targets)),
                ErrorKind::usage);
  }
  void set_adapter(int layer, Proj proj, int rank, float alpha, bool rank_stabilized) {
    QLORA_EXPECTS(rank > 0 && rank <= layout_.lora.rank, "rank ", rank, " for layer ", layer, " ", name_of(proj),
                  " is outside 1 to ", layout_.lora.rank, ", the cap of this model");
    adapters_[slot(layer, proj)] = {rank, alpha, lora_scale(alpha, rank, rank_stabilized), rank_stabilized};
  }

  /// The tensor of that name. Throws Error when it is not there or has another shape.
  [[nodiscard]] static TensorRef find(const TensorSource& source, const std::string& name,
                                      std::initializer_list<std::int64_t> shape) {
    std::optional<TensorRef> tensor = source(name);
    QLORA_EXPECTS(tensor.has_value(), "the model has no tensor ", name);
    if (!std::equal(shape.begin(), shape.end(), tensor->shape.begin(), tensor->shape.end())) {
      throw Error(
          concat(name, " has shape ", shape_text(tensor->shape), ", this config needs ", shape_text(std::span(shape))));
    }
    return std::move(*tensor);
  }
  /// Not finite is refused while loading: NF4 would make a NaN zero.
  static void expect_finite(bool finite, const TensorRef& tensor, const std::string& name) {
    if (finite) return;
    float value = 0.0F;
    for (std::int64_t i = 0; i < tensor.size(); ++i) {
      read_floats(tensor, i, std::span(&value, 1));
      QLORA_EXPECTS(std::isfinite(value), name, " holds ", value, " at index ", i, ": the model is damaged");
    }
  }

  /// Reads a tensor into `trained`, or into fresh frozen memory when it is not trained.
  template <class T>
  const T* place(B& backend, const TensorSource& source, const std::string& name,
                 std::initializer_list<std::int64_t> shape, Param* trained, bool stored) {
    const TensorRef tensor = find(source, name, shape);
    T* to = nullptr;
    if constexpr (full) {
      to = trained;
    } else {
      to = arena_.template take<T>(tensor.size());
    }
    expect_finite(backend.place(tensor, stored && !full, to), tensor, name);
    return to;
  }

  [[nodiscard]] Weight<Act> quantize(B& backend, const TensorSource& source, const std::string& name, int rows,
                                     int cols) {
    const TensorRef tensor = find(source, name, {rows, cols});
    const Nf4Layout sizes = Nf4Layout::of(std::int64_t{rows} * cols, K.quant);
    Nf4Target target;
    Weight<Act> weight{.rows = rows};
    target.codes = arena_.template take<std::uint8_t>(sizes.code_bytes);
    if (sizes.nested > 0) {
      target.absmax8 = arena_.template take<std::uint8_t>(sizes.blocks);
      target.nested = arena_.template take<float>(sizes.nested);
      target.offset = &weight.nf4.offset;
    } else {
      target.absmax = arena_.template take<float>(sizes.blocks);
      weight.nf4.absmax = target.absmax;
    }
    expect_finite(backend.quantize(tensor, K.quant, target), tensor, name);
    weight.nf4.codes = target.codes;
    weight.nf4.absmax8 = target.absmax8;
    weight.nf4.nested = target.nested;
    weight.nf4.state = tensor.dtype;
    return weight;
  }
  /// Dense copies of the seven matrices as products read them.
  void keep_dense(B& backend, Layer& layer) {
    for (const Group g : all_groups) {
      const int in = group_in(layout_.shape, g);
      const int stride = in + (B::wide_groups ? adapter_width(layout_.lora, g) : 0);
      Act* dense =
          B::wide_groups ? arena_.template take<Act>(std::int64_t{group_out(layout_.shape, g)} * stride) : nullptr;
      for (int i = 0; i < part_count(g); ++i) {
        Weight<Act>& weight = layer.linear[static_cast<std::size_t>(first_part(g) + i)];
        if (!B::wide_groups) dense = arena_.template take<Act>(std::int64_t{weight.rows} * in);
        backend.dequantize_rows(weight.nf4, weight.rows, in, K.quant, dense, stride);
        weight.dense = dense;
        weight.stride = stride;
        dense += std::int64_t{weight.rows} * stride;
      }
    }
  }

  void load(B& backend, const TensorSource& source, bool keep_dequantized) {
    const Shape& s = layout_.shape;
    const auto to = [&](std::int64_t offset) { return trained_ + (full ? offset : 0); };
    embedding_ = place<Act>(backend, source, std::string(tensor_name::embedding), {s.vocab, s.dim}, to(0), true);
    for (int l = 0; l < s.layers; ++l) {
      Layer& layer = layers_[static_cast<std::size_t>(l)];
      layer.norm[0] = place<Param>(backend, source, tensor_name::norm(l, 0), {s.dim}, to(layout_.norm(l, 0)), false);
      layer.norm[1] = place<Param>(backend, source, tensor_name::norm(l, 1), {s.dim}, to(layout_.norm(l, 1)), false);
      for (std::size_t i = 0; i < all_projections.size(); ++i) {
        const Proj proj = all_projections[i];
        const std::string name = tensor_name::weight(l, proj);
        const int rows = rows_of(s, proj);
        const int cols = cols_of(s, proj);
        if constexpr (quantized) {
          layer.linear[i] = quantize(backend, source, name, rows, cols);
        } else {
          layer.linear[i] = {
              .rows = rows,
              .dense = place<Act>(backend, source, name, {rows, cols}, to(layout_.weight(l, proj)), true),
              .stride = cols};
        }
      }
      if constexpr (quantized) {
        if (keep_dequantized) keep_dense(backend, layer);
      }
    }
    final_norm_ =
        place<Param>(backend, source, std::string(tensor_name::final_norm), {s.dim}, to(layout_.final_norm()), false);
    head_ = s.tied_embeddings ? embedding_
                              : place<Act>(backend, source, std::string(tensor_name::head), {s.vocab, s.dim},
                                           to(layout_.head()), true);
    backend.finish_loading();
  }

  ModelValues values_;
  Dims<K> dims_;
  TrainedLayout layout_;
  std::vector<AdapterState> adapters_;
  std::vector<Layer> layers_;
  typename B::Arena arena_;
  Param* trained_ = nullptr;
  const Act* embedding_ = nullptr;
  const Act* head_ = nullptr;
  const Param* final_norm_ = nullptr;
  bool adapters_on_ = true;
};

}  // namespace v0
}  // namespace qlora
