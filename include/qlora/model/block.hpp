// qlora/model/block.hpp — one decoder block: forward, what a recompute policy makes again, backward.
//   n1 = norm(x);  qkv = W_qkv n1, rotated;  o = attention(qkv);  mid = x + W_o o
//   n2 = norm(mid);  gu = W_gate|up n2;  act = silu(gate) up;  out = mid + W_down act
// n1, o, n2 and act are inputs of linear groups: each row has room for its XA behind it.
// Attention reads a packed batch, or, while decoding, the cached keys and values of sequences that grow.
#pragma once

#include "qlora/model/weights.hpp"

namespace qlora {
inline namespace v0 {

/// Where one layer's buffers lie. Buffers that are not kept point into scratch that all layers share.
template <class Act, class Param>
struct LayerBuffers {
  /// by the number of the buffer; not owned
  std::array<std::byte*, all_buffers.size()> data{};
  /// A buffer of activations, as its elements.
  [[nodiscard]] Act* act(Buffer b) const { return reinterpret_cast<Act*>(data[static_cast<std::size_t>(b)]); }
  /// A buffer of statistics: inv1, inv2 or lse.
  [[nodiscard]] Param* statistic(Buffer b) const { return reinterpret_cast<Param*>(data[static_cast<std::size_t>(b)]); }
};

/// Gradients of activations, shared by all layers. That of gate|up takes gate|up's place, and when it is used up, that
/// of qkv does.
template <class Act>
struct GradientBuffers {
  Act* stream = nullptr;  ///< (T,D)
  Act* input = nullptr;   ///< (T, K | gXA) of the group at hand
};

/// What all blocks of one pass through the network share.
template <class B>
struct Pass {
  using Act = typename B::Act;      ///< what activations are stored in
  using Param = typename B::Param;  ///< what statistics are stored in

  AppliedAdapters<B> adapters{};                  ///< what linear layers add to the base
  std::span<const AdaptedRows<B>> mixed{};        ///< while decoding, in the place of it: what they add to some rows
  TokenBatch batch{};                             ///< while decoding: tokens and positions alone
  std::span<const CachedSequence<Act>> cached{};  ///< while decoding: the tokens extend these sequences
  const Param* cosine = nullptr;                  ///< (positions, E/2), of the rotary embedding
  const Param* sine = nullptr;                    ///< (positions, E/2)
  Workspace<Act, Param> workspace{};              ///< shared by all layers
  DropoutSite dropout{};                          ///< threshold 0: none

  /// The dropout of one group of one layer in this pass.
  [[nodiscard]] DropoutSite site(int layer, Group g) const {
    DropoutSite here = dropout;
    here.layer = static_cast<std::uint32_t>(layer);
    here.group = static_cast<std::uint32_t>(g);
    return here;
  }
};

/// What attention reads: the documents of a packed batch, or cached keys and values that the tokens extend. A constant
/// of the code, so that a trainer compiles no decoding and a generator no packed batches.
enum class Reads : std::uint8_t { batch, cache };

/// One decoder block, made for one pass. It owns nothing; all that it is given must outlive it.
template <Code K, class B, Reads R>
class Block {
 public:
  using Act = typename B::Act;               ///< what activations are stored in
  using Param = typename B::Param;           ///< what is trained
  using C = Columns<K>;                      ///< widths that view types have
  using Buffers = LayerBuffers<Act, Param>;  ///< activations of this layer
  template <int Cols>
  using View = typename B::template View<Cols>;  ///< matrix that an op writes
  template <int Cols>
  using ConstView = typename B::template ConstView<Cols>;  ///< matrix that an op reads
  using Stream = View<C::dim>;                             ///< residual stream, (T,D)
  using ConstStream = ConstView<C::dim>;                   ///< residual stream to read

  /// Block number `layer`, from 0.
  Block(B& backend, const Weights<K, B>& weights, const Pass<B>& pass, int layer)
      : b_(backend), w_(weights), d_(weights.dims()), c_(pass), layer_(layer) {}

  /// x (T,D) is the stream that enters, out (T,D) the stream that leaves.
  void forward(const Buffers& a, ConstStream x, Stream out) const {
    norm(a, NormBefore::attention, x);
    attend(a);
    project_o(a, x);
    feed_forward(a);
    run<Group::down>(input<Group::down>(a.act(Buffer::act)), rows(d_.dim(), a.act(Buffer::mid)), out);
  }

  /// Makes again what `policy` did not keep.
  void recompute(const Buffers& a, Recompute policy, ConstStream x) const {
    if (policy == Recompute::none) return;
    norm(a, NormBefore::attention, x);
    if (policy == Recompute::block) {
      attend(a);
      project_o(a, x);
    } else {
      linear<Group::qkv>().recompute_xa(b_, c_.workspace.linear, site(Group::qkv),
                                        input<Group::qkv>(a.act(Buffer::norm1)));
      norm(a, NormBefore::feed_forward, rows(d_.dim(), a.act(Buffer::mid)));
    }
    feed_forward(a);
    linear<Group::down>().recompute_xa(b_, c_.workspace.linear, site(Group::down),
                                       input<Group::down>(a.act(Buffer::act)));
  }

  /// g.stream (T,D): gradient of the stream above the block on entry, below it on return. `gradients`: += those of
  /// this layer's trained parameters. Without `needs_input`, the stream's is not brought below the qkv group. gate|up
  /// is lost.
  void backward(const Buffers& a, const GradientBuffers<Act>& g, ConstStream x, Param* gradients,
                bool needs_input) const {
    const int t = c_.batch.tokens;
    const Stream gs(g.stream, t, d_.dim());
    b_.at(layer_, Site::feed_forward_gradient);
    const auto gact = input<Group::down>(g.input);
    backward_group<Group::down>(gradients, gs, a.act(Buffer::act), true, gact);
    const auto gate_up = view(d_.template out<Group::gate_up>(), a.act(Buffer::gate_up));
    b_.template swiglu_backward<C::ffn>(gact.left(d_.ffn()), gate_up, gate_up);
    const auto gn2 = input<Group::gate_up>(g.input);
    backward_group<Group::gate_up>(gradients, gate_up, a.act(Buffer::norm2), true, gn2);
    b_.at(layer_, Site::post_attention_norm_gradient);
    b_.rmsnorm_backward(gn2.left(d_.dim()), rows(d_.dim(), a.act(Buffer::mid)), a.statistic(Buffer::inv2),
                        w_.norm(layer_, NormBefore::feed_forward), true, gs,
                        norm_gradient(gradients, NormBefore::feed_forward));
    b_.at(layer_, Site::attention_gradient);
    const auto go = input<Group::o>(g.input);
    backward_group<Group::o>(gradients, gs, a.act(Buffer::o), true, go);
    const auto gqkv = view(qkv_width(), a.act(Buffer::gate_up));
    b_.attention_backward(d_.attention(), c_.batch, ConstView<C::heads>(go.left(d_.heads())),
                          rows(qkv_width(), a.act(Buffer::qkv)), input<Group::o>(a.act(Buffer::o)).left(d_.heads()),
                          a.statistic(Buffer::lse), gqkv, c_.workspace.attention, c_.workspace.attention_bytes);
    b_.rope(d_.attention(), c_.cosine, c_.sine, c_.batch.positions, -1, gqkv);
    const auto gn1 = input<Group::qkv>(g.input);
    backward_group<Group::qkv>(gradients, gqkv, a.act(Buffer::norm1), needs_input, gn1);
    if (!needs_input) return;
    b_.at(layer_, Site::input_norm_gradient);
    b_.rmsnorm_backward(gn1.left(d_.dim()), x, a.statistic(Buffer::inv1), w_.norm(layer_, NormBefore::attention), true,
                        gs, norm_gradient(gradients, NormBefore::attention));
  }

 private:
  template <int Cols>
  [[nodiscard]] ConstView<Cols> rows(Width<Cols> width, const Act* data) const {
    return {data, c_.batch.tokens, width};
  }
  template <int Cols>
  [[nodiscard]] View<Cols> view(Width<Cols> width, Act* data) const {
    return {data, c_.batch.tokens, width};
  }
  /// [X | XA] of a group.
  template <Group G>
  [[nodiscard]] View<GroupColumns<K, G>::wide> input(Act* data) const {
    return view(d_.template wide<G>(), data);
  }
  [[nodiscard]] Width<C::qkv> qkv_width() const { return d_.template out<Group::qkv>(); }
  template <Group G>
  [[nodiscard]] QLinear<K, G, B> linear() const {
    return w_.template linear<G>(layer_, c_.adapters);
  }
  [[nodiscard]] DropoutSite site(Group g) const { return c_.site(layer_, g); }
  [[nodiscard]] Param* norm_gradient(Param* gradients, NormBefore block) const {
    if (K.trainable != Trainable::all) return nullptr;
    return gradients + (w_.layout().norm(layer_, block) - w_.layout().layer_offset(layer_));
  }

  /// y = [residual +] the products of a group.
  template <Group G>
  void run(View<GroupColumns<K, G>::wide> x, ConstView<GroupColumns<K, G>::out> residual,
           View<GroupColumns<K, G>::out> y) const {
    if constexpr (R == Reads::cache) {
      if (!c_.mixed.empty()) return run_mixed<G>(x, residual, y);
    }
    linear<G>().forward(b_, c_.workspace.linear, site(G), x, residual, y);
  }
  template <Group G>
  void run_mixed(View<GroupColumns<K, G>::wide> x, ConstView<GroupColumns<K, G>::out> residual,
                 View<GroupColumns<K, G>::out> y) const {
    std::array<RowAdapters<Param>, most_row_adapters> ranges{};
    std::size_t count = 0;
    for (const AdaptedRows<B>& rows : c_.mixed) {
      RowAdapters<Param>& range = ranges[count++];
      range.first = rows.first;
      range.count = rows.count;
      const auto parts = w_.template linear<G>(layer_, rows.adapters).parts;
      for (std::size_t p = 0; p < parts.size(); ++p) {
        range.parts[p] = {parts[p].a,           parts[p].b,        parts[p].scale,
                          parts[p].row_factors, parts[p].strength, parts[p].inverse_lengths};
      }
    }
    linear<G>().forward_mixed(b_, c_.workspace.linear, std::span(ranges).first(count), x, residual, y);
  }

  void norm(const Buffers& a, NormBefore block, ConstStream x) const {
    const bool first = block == NormBefore::attention;
    b_.at(layer_, first ? Site::input_norm : Site::post_attention_norm);
    const Stream y = first ? input<Group::qkv>(a.act(Buffer::norm1)).left(d_.dim())
                           : input<Group::gate_up>(a.act(Buffer::norm2)).left(d_.dim());
    b_.rmsnorm(w_.values().norm_eps, x, w_.norm(layer_, block), y, a.statistic(first ? Buffer::inv1 : Buffer::inv2));
  }
  void attend(const Buffers& a) const {
    b_.at(layer_, Site::attention);
    const auto qkv = view(qkv_width(), a.act(Buffer::qkv));
    const auto o = input<Group::o>(a.act(Buffer::o)).left(d_.heads());
    run<Group::qkv>(input<Group::qkv>(a.act(Buffer::norm1)), {}, qkv);
    if (const Param* bias = w_.qkv_bias(layer_)) b_.add_bias(bias, qkv);
    if constexpr (R == Reads::batch) {
      b_.rope(d_.attention(), c_.cosine, c_.sine, c_.batch.positions, 1, qkv);
      b_.attention(d_.attention(), c_.batch, ConstView<C::qkv>(qkv), o, a.statistic(Buffer::lse),
                   c_.workspace.attention, c_.workspace.attention_bytes);
    } else {
      b_.attention_cached(d_.attention(), c_.cosine, c_.sine, c_.batch.positions, c_.cached, qkv, o,
                          c_.workspace.attention, c_.workspace.attention_bytes);
    }
  }
  /// mid = x + W_o o, and its norm.
  void project_o(const Buffers& a, ConstStream x) const {
    run<Group::o>(input<Group::o>(a.act(Buffer::o)), x, view(d_.dim(), a.act(Buffer::mid)));
    if (const Param* bias = w_.o_bias(layer_)) b_.add_bias(bias, view(d_.dim(), a.act(Buffer::mid)));
    norm(a, NormBefore::feed_forward, rows(d_.dim(), a.act(Buffer::mid)));
  }
  void feed_forward(const Buffers& a) const {
    b_.at(layer_, Site::feed_forward);
    const auto gate_up = view(d_.template out<Group::gate_up>(), a.act(Buffer::gate_up));
    run<Group::gate_up>(input<Group::gate_up>(a.act(Buffer::norm2)), {}, gate_up);
    b_.template swiglu<C::ffn>(gate_up, input<Group::down>(a.act(Buffer::act)).left(d_.ffn()));
  }
  template <Group G>
  void backward_group(Param* gradients, ConstView<GroupColumns<K, G>::out> gy, Act* x, bool needs_input,
                      View<GroupColumns<K, G>::wide> gx) const {
    linear<G>().backward(b_, c_.workspace.linear, site(G), gradient_slots<K, G>(w_.layout(), layer_, gradients), gy,
                         input<G>(x), needs_input, gx);
  }

  B& b_;
  const Weights<K, B>& w_;
  const Dims<K>& d_;
  const Pass<B>& c_;
  int layer_;
};

}  // namespace v0
}  // namespace qlora
