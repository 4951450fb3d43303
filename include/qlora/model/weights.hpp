// qlora/model/weights.hpp — all weights of a model in backend memory: frozen ones quantized while they are read,
// trained ones one after another as the optimizer wants them, and sets of adapters by name. Needs: a TensorSource with
// Hugging Face names. Host memory while loading is bounded by one tensor.
// Frozen weights never change once they are loaded: any number of contexts compute with them at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/model/adapters.hpp"
#include "qlora/model/names.hpp"
#include "qlora/model/plan.hpp"
#include "qlora/model/qlinear.hpp"
#include "qlora/ordered_map.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {

/// Numbers of a model that are values and not code.
struct ModelValues {
  float rope_theta = 10000.0F;  ///< base of the rotary embedding's wavelengths
  float norm_eps = 1e-5F;       ///< added to the mean square in RMS normalisation
  RopeScaling rope_scaling{};   ///< of the rotary embedding's frequencies

  /// Fills cosine and sine (positions, E/2) in the memory of a backend.
  template <class B, class P>
  void rope_table(B& backend, int positions, int head_dim, P* cosine, P* sine) const {
    const std::vector<float> all = rope_frequencies(static_cast<double>(rope_theta), rope_scaling, head_dim);
    backend.rope_table(positions, std::span<const float>(all.data(), all.size()), rope_scaling.attention, cosine, sine);
  }
};

/// The weights of a model. Const members may be called by any number of threads at once, and attach() and detach() with
/// them; the others are for the thread that trains or loads the model's own adapters, under own_gate().
template <Code K, class B>
class Weights {
 public:
  using Act = typename B::Act;      ///< what activations and frozen dense weights are stored in
  using Param = typename B::Param;  ///< what is trained
  static constexpr bool full = K.trainable == Trainable::all;  ///< every weight is trained, and there are no adapters
  static constexpr bool quantized = K.quant.kind == QuantKind::nf4;  ///< the frozen projections are in NF4

  /// Reads, quantizes and places every weight; matrices that are stored in NF4 are taken as they are.
  /// `keep_dequantized` holds frozen linears dense as well. `dora`: adapters have magnitudes, to be trained.
  Weights(B& backend, const Dims<K>& dims, const ModelValues& values, const TensorSource& source, bool keep_dequantized,
          bool dora = false)
      : values_(values),
        dims_(dims),
        layout_{dims.shape(), dims.lora(), K.trainable, dora && !full},
        own_(layout_),
        layers_(static_cast<std::size_t>(layers())),
        arena_(backend.arena(bytes_needed(dims, keep_dequantized))) {
    if constexpr (full) trained_ = arena_.template take<Param>(layout_.total());
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

  /// Bytes of backend memory: the arena, and that of the model's own adapters.
  [[nodiscard]] std::int64_t bytes_used() const { return arena_.used() + own_.bytes(); }

  /// Everything the optimizer changes: (layout().total()). Null where that is adapters which were never set.
  [[nodiscard]] Param* trained() { return full ? trained_ : own_.values(); }
  /// The same, to read.
  [[nodiscard]] const Param* trained() const { return full ? trained_ : own_.values(); }
  /// Guards what trained() points to.
  [[nodiscard]] AccessGate& own_gate() const { return own_.gate(); }

  /// The embedding table (V,D).
  [[nodiscard]] const Act* embedding() const { return embedding_; }
  /// The head (V,D); a tied one is the embedding table.
  [[nodiscard]] const Act* head() const { return head_; }
  /// Weight (D) of the norm before the head.
  [[nodiscard]] const Param* final_norm() const { return final_norm_; }
  /// A norm weight (D) of a layer.
  [[nodiscard]] const Param* norm(int layer, NormBefore block) const {
    return layers_[static_cast<std::size_t>(layer)].norm[static_cast<std::size_t>(block)];
  }

  /// Bias of queries, keys and values of a layer ((H+2K)E); null where the model has none.
  [[nodiscard]] const Param* qkv_bias(int layer) const { return layers_[static_cast<std::size_t>(layer)].qkv_bias; }
  /// Bias of the output of attention (D); null where the model has none.
  [[nodiscard]] const Param* o_bias(int layer) const { return layers_[static_cast<std::size_t>(layer)].o_bias; }

  /// One group of a layer with these adapters.
  template <Group G>
  [[nodiscard]] QLinear<K, G, B> linear(int layer, const AppliedAdapters<B>& adapters) const {
    QLinear<K, G, B> group(dims_);
    for (int i = 0; i < part_count(G); ++i) {
      const Proj proj = part(G, i);
      LinearPart<Act, Param>& here = group.parts[static_cast<std::size_t>(i)];
      here.weight = layers_[static_cast<std::size_t>(layer)].linear[static_cast<std::size_t>(first_part(G) + i)];
      if constexpr (!full) {
        if (adapters.set != nullptr && contains(layout_.lora.targets, proj)) {
          const TrainedLayout& layout = adapters.set->layout();  // sets beside the own one have no magnitudes
          here.a = adapters.set->values() + layout.a(layer, proj);
          here.b = adapters.set->values() + layout.b(layer, proj);
          here.scale = Param(adapters.set->state(layer, proj).scale * adapters.scale);
          here.row_factors = adapters.set->row_factors(layer, proj);
          here.strength = Param(adapters.scale);
          here.inverse_lengths = adapters.set->inverse_lengths(layer, proj);
        }
      }
    }
    return group;
  }

  /// The adapters that a trainer trains and read_adapter() loads. Not set: the model is its base.
  [[nodiscard]] AdapterSet<B>& own() { return own_; }
  /// The same, to read.
  [[nodiscard]] const AdapterSet<B>& own() const { return own_; }
  /// Rank and scale of one of the own adapters.
  [[nodiscard]] const AdapterState& adapter(int layer, Proj proj) const { return own_.state(layer, proj); }
  /// Sets all of the own adapters; see AdapterSet::init. Throws Error (usage) while they are in use.
  void init_adapters(B& backend, const AdapterRule& rule, std::uint64_t seed) {
    const Writing writing(own_gate());
    own_.init(backend, rule, seed);
  }
  /// Sets one of the own adapters; see AdapterSet::load. Throws Error (usage) while they are in use.
  void load_adapter(B& backend, int layer, Proj proj, int rank, float alpha, bool rank_stabilized,
                    std::span<const float> a, std::span<const float> b) {
    const Writing writing(own_gate());
    own_.load(backend, layer, proj, rank, alpha, rank_stabilized, a, b);
  }
  /// One of the own adapters without its padding; see AdapterSet::save.
  void save_adapter(const B& backend, int layer, Proj proj, std::vector<float>& a, std::vector<float>& b) const {
    own_.save(backend, layer, proj, a, b);
  }
  /// Measures the rows of W + s B A of the own adapters with DoRA, where they have changed; `scratch` is a training's.
  /// The own gate is held by the caller.
  void measure_rows(B& backend, const LinearScratch<Act>& scratch) {
    if constexpr (!full) {
      if (own_.is_measured()) return;
      LinearGroup<Act> group{.rank = dims_.lora().rank,
                             .quant = K.quant,
                             .weight_scratch = scratch.weight,
                             .adapter_scratch = scratch.adapter,
                             .output_scratch = scratch.output};
      own_.for_each([&](int layer, Proj proj) {
        group.in = cols_of(layout_.shape, proj);
        LinearPart<Act, Param> part{layers_[static_cast<std::size_t>(layer)].linear[index_of(proj)]};
        part.a = own_.values() + layout_.a(layer, proj);
        part.b = own_.values() + layout_.b(layer, proj);
        part.scale = Param(own_.state(layer, proj).scale);
        backend.measure_rows(group, part, own_.measuring(backend, layer, proj));
      });
      own_.set_measured();
    }
  }
  /// Calls visit(layer, projection) for every adapter.
  template <class Visit>
  void for_each_target(Visit&& visit) const {
    own_.for_each(visit);
  }

  /// Holds adapters under a name. Throws Error (usage) when the name is empty or taken.
  void attach(const std::string& name, std::shared_ptr<const AdapterSet<B>> adapters) {
    const std::lock_guard lock(named_mutex_);
    expect_usable(name);
    named_[name] = std::move(adapters);
  }
  /// Throws Error (usage) when attach() would, before adapters are read for nothing.
  void expect_free(std::string_view name) const {
    const std::lock_guard lock(named_mutex_);
    expect_usable(name);
  }
  /// Forgets a name; contexts that use these adapters keep them. Throws Error (usage) for an unknown name.
  void detach(std::string_view name) {
    const std::lock_guard lock(named_mutex_);
    (void)find_named(name);
    named_.erase(name);
  }
  /// The adapters of a name. Throws Error (usage) for an unknown one.
  [[nodiscard]] std::shared_ptr<const AdapterSet<B>> named(std::string_view name) const {
    const std::lock_guard lock(named_mutex_);
    return find_named(name);
  }

  /// A dequantized or dense linear weight (out, in), in float: for merging and for looking at.
  [[nodiscard]] std::vector<float> dense_weight(B& backend, int layer, Proj proj) const {
    const Weight<Act>& weight = layers_[static_cast<std::size_t>(layer)].linear[index_of(proj)];
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

  /// Trained tensors by their Hugging Face names, at rising offsets into trained(): visit(name, rows, cols, offset).
  template <class Visit>
  void for_each_trained(Visit&& visit) const {
    for (const TrainedTensor& tensor : trained_tensors(layout_)) {
      visit(tensor.name, tensor.rows, tensor.cols, tensor.offset);
    }
  }

 private:
  struct Layer {
    const Param* norm[2] = {nullptr, nullptr};
    const Param* qkv_bias = nullptr;
    const Param* o_bias = nullptr;
    std::array<Weight<Act>, 7> linear{};
  };

  [[nodiscard]] static std::size_t index_of(Proj proj) {
    return static_cast<std::size_t>(std::find(all_projections.begin(), all_projections.end(), proj) -
                                    all_projections.begin());
  }
  void expect_usable(std::string_view name) const {
    if (!name.empty() && !named_.contains(name)) return;
    throw Error(concat("\"", name, "\" cannot name an adapter: ", name.empty() ? "it is empty" : "it is taken"),
                ErrorKind::usage);
  }
  [[nodiscard]] const std::shared_ptr<const AdapterSet<B>>& find_named(std::string_view name) const {
    const auto* found = named_.find(name);
    if (found == nullptr) throw Error(concat("no adapter is named \"", name, "\""), ErrorKind::usage);
    return *found;
  }
  [[nodiscard]] static std::int64_t bytes_needed(const Dims<K>& dims, bool keep_dequantized) {
    const Run run{.seq = 1, .keep_dequantized = keep_dequantized};
    const MemoryPlan plan = memory_plan(dims.config(), run, storage_of<B>(0));
    return plan[Purpose::nf4_codes] + plan[Purpose::nf4_scales] + plan[Purpose::dense_linears] +
           plan[Purpose::embedding_head] + (full ? plan[Purpose::trained] : 0);
  }

  /// The tensor of that name. Throws Error when it is not there or has another shape.
  [[nodiscard]] static TensorRef find(const TensorSource& source, const std::string& name,
                                      std::initializer_list<std::int64_t> shape) {
    std::optional<TensorRef> tensor = source(name);
    QLORA_EXPECTS(tensor.has_value(), "the model has no tensor ", name,
                  source.nf4(name) ? " in 16 or 32 bits, only in 4" : "");
    if (tensor->shape != std::vector<std::int64_t>(shape)) {
      throw Error(concat(name, " has shape ", shape_text(tensor->shape), ", this config needs ", shape_text(shape)));
    }
    return std::move(*tensor);
  }
  /// Not finite is refused while loading: NF4 would make a NaN zero.
  static void expect_finite(bool finite, const TensorRef& tensor, const std::string& name) {
    if (finite) return;
    float value = 0.0F;
    for (std::int64_t i = 0; i < tensor.size(); ++i) {
      read_floats(tensor, i, std::span<float>(&value, 1));
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

  /// The biases of some projections one after another. Full training would have to train them, and does not.
  [[gnu::cold]] const Param* place_biases(B& backend, const TensorSource& source, int layer,
                                          std::initializer_list<Proj> all) {
    const Shape& s = layout_.shape;
    QLORA_EXPECTS(!full, "the model has biases (attention_bias), which full training does not train; train adapters");
    std::int64_t count = 0;
    for (const Proj proj : all) count += rows_of(s, proj);
    Param* to = arena_.template take<Param>(count);
    const Param* begin = to;
    for (const Proj proj : all) {
      const std::string name = tensor_name::bias(layer, proj);
      const TensorRef tensor = find(source, name, {rows_of(s, proj)});
      expect_finite(backend.place(tensor, false, to), tensor, name);
      to += rows_of(s, proj);
    }
    return begin;
  }

  /// A matrix in NF4: as it is stored, else quantized here.
  [[nodiscard]] Weight<Act> place_nf4(B& backend, const TensorSource& source, const std::string& name, int rows,
                                      int cols) {
    const Nf4Layout sizes = Nf4Layout::of(std::int64_t{rows} * cols, dims_.quant());
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
    if (const std::optional<Nf4Ref> stored = source.nf4(name)) {
      copy_nf4(backend, *stored, sizes, target, name);
      weight.nf4.offset = stored->offset;
      weight.nf4.state = stored->state;
    } else {
      const TensorRef tensor = find(source, name, {rows, cols});
      expect_finite(backend.quantize(tensor, dims_.quant(), target), tensor, name);
      weight.nf4.state = tensor.dtype;
    }
    weight.nf4.codes = target.codes;
    weight.nf4.absmax8 = target.absmax8;
    weight.nf4.nested = target.nested;
    const bool twice = sizes.nested > 0;
    weight.nf4.largest =
        largest_absmax(backend, twice ? target.nested : target.absmax, twice ? sizes.nested : sizes.blocks) +
        std::abs(weight.nf4.offset);
    return weight;
  }
  /// The largest of some scales in backend memory. With those of 8-bit scales: a bound of |absmax - offset|, since no
  /// 8-bit code stands for more than 1.
  [[nodiscard]] static float largest_absmax(const B& backend, const float* scales, std::int64_t count) {
    std::vector<float> copy;
    if constexpr (B::space != Space::host) {
      copy.resize(static_cast<std::size_t>(count));
      backend.download(scales, copy);
      scales = copy.data();
    }
    return *std::max_element(scales, scales + count);
  }
  /// Codes and scales of a stored matrix. Throws Error when they are not those of a matrix of these sizes.
  static void copy_nf4(B& backend, const Nf4Ref& stored, const Nf4Layout& sizes, const Nf4Target& to,
                       const std::string& name) {
    const bool twice = sizes.nested > 0;
    const auto is = [](std::span<const std::byte> bytes, std::int64_t count) {
      return static_cast<std::int64_t>(bytes.size()) == count;
    };
    QLORA_EXPECTS(is(stored.codes, sizes.code_bytes) && is(stored.absmax, (twice ? 1 : 4) * sizes.blocks) &&
                      is(stored.nested, 4 * sizes.nested),
                  name, " is stored in NF4 with ", stored.codes.size(), " bytes of codes and ",
                  stored.absmax.size() + stored.nested.size(), " of scales; its shape and this config need ",
                  sizes.code_bytes, " and ", sizes.scale_bytes() - (twice ? 4 : 0));
    backend.place_bytes(stored.codes, to.codes);
    if (twice) {
      backend.place_bytes(stored.absmax, to.absmax8);
      backend.place_bytes(stored.nested, to.nested);
    } else {
      backend.place_bytes(stored.absmax, to.absmax);
    }
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
      layer.norm[0] = place<Param>(backend, source, tensor_name::norm(l, NormBefore::attention), {s.dim},
                                   to(layout_.norm(l, NormBefore::attention)), false);
      layer.norm[1] = place<Param>(backend, source, tensor_name::norm(l, NormBefore::feed_forward), {s.dim},
                                   to(layout_.norm(l, NormBefore::feed_forward)), false);
      for (std::size_t i = 0; i < all_projections.size(); ++i) {
        const Proj proj = all_projections[i];
        const std::string name = tensor_name::weight(l, proj);
        const int rows = rows_of(s, proj);
        const int cols = cols_of(s, proj);
        if constexpr (quantized) {
          layer.linear[i] = place_nf4(backend, source, name, rows, cols);
        } else {
          layer.linear[i] = {
              .rows = rows,
              .dense = place<Act>(backend, source, name, {rows, cols}, to(layout_.weight(l, proj)), true),
              .stride = cols};
        }
      }
      if (s.qkv_bias) layer.qkv_bias = place_biases(backend, source, l, {Proj::q, Proj::k, Proj::v});
      if (s.o_bias) layer.o_bias = place_biases(backend, source, l, {Proj::o});
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
  AdapterSet<B> own_;  // of a config without adapters: its gate alone
  mutable std::mutex named_mutex_;
  OrderedMap<std::shared_ptr<const AdapterSet<B>>> named_;
  std::vector<Layer> layers_;
  typename B::Arena arena_;
  Param* trained_ = nullptr;  // where every weight is trained
  const Act* embedding_ = nullptr;
  const Act* head_ = nullptr;
  const Param* final_norm_ = nullptr;
};

}  // namespace v0
}  // namespace qlora
