// qlora/model/block.hpp — one decoder block: forward, what a recompute policy makes again, backward.
//   n1 = norm(x);  qkv = W_qkv n1, rotated;  o = attention(qkv);  mid = x + W_o o
//   n2 = norm(mid);  gu = W_gate|up n2;  act = silu(gate) up;  delta = W_down act      (x + delta: the next block's
//   norm)
#pragma once

#include "qlora/model/weights.hpp"

namespace qlora {
inline namespace v0 {

/// Where one layer's buffers lie. Buffers that are not kept point into scratch that all layers share.
template <class S>
struct LayerBuffers {
  std::array<S*, all_buffers.size()> data{};
  [[nodiscard]] S* operator[](Buffer b) const { return data[static_cast<std::size_t>(b)]; }
  [[nodiscard]] S*& operator[](Buffer b) { return data[static_cast<std::size_t>(b)]; }
};

/// Gradients of activations, shared by all layers.
template <class S>
struct BackwardScratch {
  S* norm = nullptr;     ///< (T,D)
  S* qkv = nullptr;      ///< (T,(H+2K)E)
  S* o = nullptr;        ///< (T,HE)
  S* gate_up = nullptr;  ///< (T,2F)
  S* act = nullptr;      ///< (T,F)
  S* xa = nullptr;       ///< (T, widest XA)
};

/// What all blocks of one pass share.
template <class S>
struct PassContext {
  int tokens = 0;
  std::span<const Segment> segments{};
  const std::int32_t* positions = nullptr;
  const S* cosine = nullptr;
  const S* sine = nullptr;
  S* attention = nullptr;
  std::int64_t attention_per_worker = 0;
  LinearScratch<S> linear{};
  DropoutSite dropout{};  ///< threshold 0: none

  [[nodiscard]] DropoutSite site(int layer, Group g) const {
    DropoutSite here = dropout;
    here.layer = static_cast<std::uint32_t>(layer);
    here.group = static_cast<std::uint32_t>(g);
    return here;
  }
};

template <Code K, class B>
class Block {
 public:
  using S = typename B::Scalar;
  using D = Dims<K>;
  using Stream = Mat<S, D::dim>;
  static constexpr AttentionShape heads{K.shape.heads, K.shape.kv_heads, K.shape.head_dim};

  Block(B& backend, const Weights<K, B>& weights, const PassContext<S>& context, int layer)
      : b_(backend), w_(weights), c_(context), layer_(layer) {}

  /// x (T,D) is the stream that enters, already summed; delta (T,D) gets what the block adds after mid.
  void forward(const LayerBuffers<S>& a, Mat<const S, D::dim> x, Stream delta) const {
    norm(a, 0, x);
    attend(a);
    project_o(a, x, delta);
    feed_forward(a);
    w_.template linear<Group::down>(layer_).forward(b_, c_.linear, site(Group::down), rows<D::ffn>(a[Buffer::act]),
                                                    a[Buffer::xa_down], delta);
  }

  /// Makes again what `policy` did not keep. delta is workspace.
  void recompute(const LayerBuffers<S>& a, Recompute policy, Mat<const S, D::dim> x, Stream delta) const {
    if (policy == Recompute::none) return;
    norm(a, 0, x);
    if (policy == Recompute::block) {
      attend(a);
      project_o(a, x, delta);
    } else {
      w_.template linear<Group::qkv>(layer_).recompute_xa(b_, c_.linear, site(Group::qkv),
                                                          rows<D::dim>(a[Buffer::norm1]), a[Buffer::xa_qkv]);
      w_.template linear<Group::o>(layer_).recompute_xa(b_, c_.linear, site(Group::o),
                                                        rows<D::heads_width>(a[Buffer::o]), a[Buffer::xa_o]);
      norm(a, 1, rows<D::dim>(a[Buffer::mid]));
    }
    feed_forward(a);
    w_.template linear<Group::down>(layer_).recompute_xa(b_, c_.linear, site(Group::down), rows<D::ffn>(a[Buffer::act]),
                                                         a[Buffer::xa_down]);
  }

  /// gs (T,D): gradient of the stream above the block on entry, below it on return. `gradients` is the array of all
  /// trained parameters. Without `needs_input`, gs is not brought below the qkv group.
  void backward(const LayerBuffers<S>& a, const BackwardScratch<S>& g, Mat<const S, D::dim> x, Stream gs, S* gradients,
                bool needs_input) const {
    const int t = c_.tokens;
    const auto slots = [&]<Group G>() { return gradient_slots<K, G>(w_.layout(), layer_, gradients); };
    const Mat<S, D::ffn> gact(g.act, t);
    const Mat<S, 2 * D::ffn> ggu(g.gate_up, t);
    const Mat<S, D::heads_width> go(g.o, t);
    const Mat<S, D::qkv_width> gqkv(g.qkv, t);
    const Stream gn(g.norm, t);
    w_.template linear<Group::down>(layer_).backward(b_, c_.linear, site(Group::down),
                                                     slots.template operator()<Group::down>(), gs,
                                                     rows<D::ffn>(a[Buffer::act]), a[Buffer::xa_down], g.xa, gact);
    b_.template swiglu_backward<D::ffn>(gact, rows<2 * D::ffn>(a[Buffer::gate_up]), ggu);
    w_.template linear<Group::gate_up>(layer_).backward(
        b_, c_.linear, site(Group::gate_up), slots.template operator()<Group::gate_up>(), ggu,
        rows<D::dim>(a[Buffer::norm2]), a[Buffer::xa_gate_up], g.xa, gn);
    b_.rmsnorm_backward(gn, rows<D::dim>(a[Buffer::mid]), a[Buffer::inv2], w_.norm(layer_, 1), true, gs,
                        norm_gradient(gradients, 1));
    w_.template linear<Group::o>(layer_).backward(b_, c_.linear, site(Group::o), slots.template operator()<Group::o>(),
                                                  gs, rows<D::heads_width>(a[Buffer::o]), a[Buffer::xa_o], g.xa, go);
    b_.attention_backward(heads, c_.segments, Mat<const S, D::heads_width>(go), rows<D::qkv_width>(a[Buffer::qkv]),
                          rows<D::heads_width>(a[Buffer::o]), a[Buffer::lse], gqkv, c_.attention,
                          c_.attention_per_worker);
    b_.rope(heads, c_.cosine, c_.sine, c_.positions, -1, gqkv);
    w_.template linear<Group::qkv>(layer_).backward(
        b_, c_.linear, site(Group::qkv), slots.template operator()<Group::qkv>(), gqkv, rows<D::dim>(a[Buffer::norm1]),
        a[Buffer::xa_qkv], g.xa, needs_input ? gn : Stream{});
    if (!needs_input) return;
    b_.rmsnorm_backward(gn, x, a[Buffer::inv1], w_.norm(layer_, 0), true, gs, norm_gradient(gradients, 0));
  }

 private:
  template <int Cols>
  [[nodiscard]] Mat<const S, Cols> rows(const S* data) const {
    return {data, c_.tokens};
  }
  [[nodiscard]] DropoutSite site(Group g) const { return c_.site(layer_, g); }
  [[nodiscard]] S* norm_gradient(S* gradients, int which) const {
    return K.trainable == Trainable::all ? gradients + w_.layout().norm(layer_, which) : nullptr;
  }

  void norm(const LayerBuffers<S>& a, int which, Mat<const S, D::dim> x) const {
    b_.rmsnorm(w_.values().norm_eps, x, {}, w_.norm(layer_, which), Stream{},
               Stream(a[which == 0 ? Buffer::norm1 : Buffer::norm2], c_.tokens),
               a[which == 0 ? Buffer::inv1 : Buffer::inv2]);
  }
  void attend(const LayerBuffers<S>& a) const {
    const Mat<S, D::qkv_width> qkv(a[Buffer::qkv], c_.tokens);
    w_.template linear<Group::qkv>(layer_).forward(b_, c_.linear, site(Group::qkv), rows<D::dim>(a[Buffer::norm1]),
                                                   a[Buffer::xa_qkv], qkv);
    b_.rope(heads, c_.cosine, c_.sine, c_.positions, 1, qkv);
    b_.attention(heads, c_.segments, Mat<const S, D::qkv_width>(qkv), Mat<S, D::heads_width>(a[Buffer::o], c_.tokens),
                 a[Buffer::lse], c_.attention, c_.attention_per_worker);
  }
  /// mid = x + W_o o and its norm, in one op.
  void project_o(const LayerBuffers<S>& a, Mat<const S, D::dim> x, Stream delta) const {
    w_.template linear<Group::o>(layer_).forward(b_, c_.linear, site(Group::o), rows<D::heads_width>(a[Buffer::o]),
                                                 a[Buffer::xa_o], delta);
    b_.rmsnorm(w_.values().norm_eps, x, delta, w_.norm(layer_, 1), Stream(a[Buffer::mid], c_.tokens),
               Stream(a[Buffer::norm2], c_.tokens), a[Buffer::inv2]);
  }
  void feed_forward(const LayerBuffers<S>& a) const {
    const Mat<S, 2 * D::ffn> gate_up(a[Buffer::gate_up], c_.tokens);
    w_.template linear<Group::gate_up>(layer_).forward(b_, c_.linear, site(Group::gate_up),
                                                       rows<D::dim>(a[Buffer::norm2]), a[Buffer::xa_gate_up], gate_up);
    b_.template swiglu<D::ffn>(gate_up, Mat<S, D::ffn>(a[Buffer::act], c_.tokens));
  }

  B& b_;
  const Weights<K, B>& w_;
  const PassContext<S>& c_;
  int layer_;
};

}  // namespace v0
}  // namespace qlora
