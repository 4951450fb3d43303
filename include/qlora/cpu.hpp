// qlora/cpu.hpp — the CPU backend: the ops of backend.hpp on Eigen, assembled from cpu/*.hpp.
// It is the reference that proves the GPU, and good enough to train small models. Typed views come in, run-time sizes
// go on, so that each operator is compiled once per scalar type and not once per model.
#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "qlora/backend.hpp"
#include "qlora/cpu/adamw.hpp"
#include "qlora/cpu/adamw8bit.hpp"
#include "qlora/cpu/arena.hpp"
#include "qlora/cpu/attention.hpp"
#include "qlora/cpu/bias.hpp"
#include "qlora/cpu/decode.hpp"
#include "qlora/cpu/draw.hpp"
#include "qlora/cpu/embed.hpp"
#include "qlora/cpu/linear.hpp"
#include "qlora/cpu/loss.hpp"
#include "qlora/cpu/nf4.hpp"
#include "qlora/cpu/norm.hpp"
#include "qlora/cpu/pick.hpp"
#include "qlora/cpu/rope.hpp"
#include "qlora/cpu/swiglu.hpp"
#include "qlora/cpu/workspace.hpp"

// QLORA_ALLOW_UNOPTIMIZED silences the message.
#if !defined(__OPTIMIZE__) && !defined(QLORA_PREBUILT_CPU) && !defined(QLORA_ALLOW_UNOPTIMIZED)
#pragma message("qlora: the CPU backend is some 70 times slower without optimisation: compile with -O2")
#endif

namespace qlora {
inline namespace v0 {

/// Scalar is float, double, or std::complex<double> (to prove derivatives). Rounding::bf16 rounds to bfloat16 wherever
/// the GPU stores bfloat16. Used by one thread at a time; a fork() serves another one.
template <class ScalarType = float, Rounding Round = Rounding::none>
class Cpu {
  using N = cpu::Numbers<ScalarType, Round>;

 public:
  using Scalar = ScalarType;  ///< float for use, double and std::complex<double> for tests of derivatives
  using S = Scalar;           ///< the same, short
  using Act = Scalar;         ///< what activations and frozen dense weights are stored in
  using Param = Scalar;       ///< what is trained, and statistics
  using Arena = cpu::Arena;   ///< memory for a whole run, handed out from front to back
  static constexpr Space space = Space::host;   ///< pointers that it takes and gives are the host's
  static constexpr bool wide_groups = false;    ///< a product reads W and B apart
  static constexpr int rank_step = 1;           ///< rank caps of every size are served
  static constexpr ShapeLimits shape_limits{};  ///< shapes of every size are served
  template <int Cols>
  using View = Mat<S, Cols>;  ///< matrix that an op writes
  template <int Cols>
  using ConstView = Mat<const S, Cols>;  ///< matrix that an op reads

  /// `threads` 0: one per core.
  explicit Cpu(int threads = 0) : pool_(std::make_unique<cpu::ThreadPool>(threads)) {}

  /// See cpu/workspace.hpp.
  static constexpr auto workspace_bytes = &cpu::workspace_bytes<sizeof(S), N::rounds>;
  /// Cuts `memory`, of workspace_bytes(needs).total(), into pieces.
  [[nodiscard]] static Workspace<S> carve(const WorkspaceNeeds& needs, std::byte* memory) {
    return carve_workspace<S, S>(workspace_bytes(needs), needs, memory);
  }
  /// Threads of the pool, the calling one included.
  [[nodiscard]] int workers() const { return pool_->size(); }
  /// As many threads for another context; memory is the process's.
  [[nodiscard]] Cpu fork() const { return Cpu(workers()); }
  /// Nothing to do before a thread uses it.
  void bind() {}
  /// The threads that ops run on.
  [[nodiscard]] cpu::ThreadPool& pool() const { return *pool_; }
  /// A new arena of that many bytes, zeroed. Throws Error (resource) where there is no memory.
  [[nodiscard]] Arena arena(std::int64_t bytes) { return Arena(bytes); }
  /// Has no effect: Eigen's products have one kernel for a row, others for a few, and the last bits differ.
  void order(RowOrder /*order*/) {}
  /// Where the following ops run; kept only by backends that report faults by place.
  void at(int /*layer*/, Site /*site*/) {}

  /// A tensor into backend memory; `stored` rounds as activations and product operands are rounded. False when a value
  /// is not finite.
  bool place(const TensorRef& tensor, bool stored, S* to) {
    std::vector<float> part(static_cast<std::size_t>(std::min<std::int64_t>(tensor.size(), 1 << 20)));
    bool finite = true;
    for (std::int64_t first = 0; first < tensor.size(); first += static_cast<std::int64_t>(part.size())) {
      part.resize(static_cast<std::size_t>(std::min<std::int64_t>(tensor.size() - first, 1 << 20)));
      read_floats(tensor, first, part);
      for (const float value : part) finite = finite && std::isfinite(value);
      upload(part, to + first);
    }
    if (stored) N::store(to, tensor.size());
    return finite;
  }
  /// `from` into backend memory, converted to S.
  void upload(std::span<const float> from, S* to) {
    for (std::size_t i = 0; i < from.size(); ++i) to[i] = S(from[i]);
  }
  /// Backend memory into `to`, rounded to float; of a complex number the real part.
  void download(const S* from, std::span<float> to) const {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = static_cast<float>(cpu::real_part(from[i]));
  }
  /// Ids in backend memory into `to`.
  void download(const std::int32_t* from, std::span<std::int32_t> to) const {
    std::copy_n(from, to.size(), to.begin());
  }
  /// Sets `count` numbers to 0.
  void zero(S* data, std::int64_t count) {
    cpu::for_ranges(*pool_, count, 1 << 16, [&](std::int64_t first, std::int64_t last, int) {
      cpu::row_array(data + first, last - first).setZero();
    });
  }
  /// `to` = `from`, `count` numbers.
  void copy(std::int64_t count, const S* from, S* to) { std::copy_n(from, count, to); }
  /// Sets loss, norm and fault to their start.
  void zero(StepScalars* scalars) { *scalars = {}; }
  /// Loss, norm and fault as the ops so far left them.
  [[nodiscard]] StepScalars read(const StepScalars* scalars) { return *scalars; }
  /// Host arrays where the ops can read them; here they are read in place.
  [[nodiscard]] TokenBatch stage(const TokenBatch& host) { return host; }
  /// One array, likewise; valid as long as `host`.
  [[nodiscard]] const std::int32_t* stage(std::span<const std::int32_t> host) { return host.data(); }
  /// The same, of what ids are drawn by.
  [[nodiscard]] const DrawRow* stage(std::span<const DrawRow> host) { return host.data(); }

  /// x (T,D) = the rows `ids` (T) of table (V,D).
  template <int D>
  void embed(const std::int32_t* ids, In<S, D> table, Mat<S, D> x) {
    cpu::embed<N>(*pool_, x.rows, x.cols(), ids, table.data, block(x));
  }
  /// gtable (V,D) += gx (T,D) at the rows `ids`.
  template <int D>
  void embed_backward(const std::int32_t* ids, In<S, D> gx, Mat<S, D> gtable) {
    cpu::embed_backward<N>(*pool_, gx.rows, gx.cols(), ids, gx.data, gtable.data);
  }
  /// y = x r w with r = 1 / sqrt(mean(x^2) + eps); x y (T,D), w (D); r is kept in inv_rms (T).
  template <int D>
  void rmsnorm(float eps, In<S, D> x, const S* w, Mat<S, D> y, S* inv_rms) {
    cpu::rmsnorm<N>(*pool_, y.rows, y.cols(), S(eps), block(x), w, block(y), inv_rms);
  }
  /// gx (T,D) = [gx +] the gradient by x, added where `accumulate`; gw (D) += that by w, unless gw is null.
  template <int D>
  void rmsnorm_backward(In<S, D> gy, In<S, D> x, const S* inv_rms, const S* w, bool accumulate, Mat<S, D> gx, S* gw) {
    cpu::rmsnorm_backward<N>(*pool_, gx.rows, gx.cols(), block(gy), block(x), inv_rms, w, accumulate, block(gx), gw);
  }
  /// y (T,N) = [residual +] [X | XA] [W | s B]^T, all parts side by side. Writes XA = dropped X A^T behind X in x.
  template <int Wide, int Out>
  void linear(const LinearGroup<S>& group, std::span<const LinearPart<S>> parts, Mat<S, Wide> x, In<S, Out> residual,
              Mat<S, Out> y) {
    cpu::linear_forward<N>(*pool_, group, parts, {}, x.rows, block(x), residual.data, y.data);
  }
  /// The same with the adapters of each row's range; the parts have none.
  template <int Wide, int Out>
  [[gnu::always_inline]] void linear_mixed(const LinearGroup<S>& group, std::span<const LinearPart<S>> parts,
                                           std::span<const RowAdapters<S>> ranges, Mat<S, Wide> x, In<S, Out> residual,
                                           Mat<S, Out> y) {
    cpu::linear_forward<N>(*pool_, group, parts, ranges, x.rows, block(x), residual.data, y.data);
  }
  /// The columns XA of x alone, for a backward pass that did not keep them.
  template <int Wide>
  void adapter_input(const LinearGroup<S>& group, std::span<const LinearPart<S>> parts, Mat<S, Wide> x) {
    cpu::adapter_input<N>(*pool_, group, parts, x.rows, block(x));
  }
  /// Gradients of `linear`: gx = [gX | gXA], gX only where `needs_input`; `gradients` += those of A, B and of weights
  /// that are trained.
  template <int Out, int Wide>
  void linear_backward(const LinearGroup<S>& group, std::span<const LinearPart<S>> parts,
                       std::span<const LinearGradient<S>> gradients, Mat<const S, Out> gy, In<S, Wide> x,
                       bool needs_input, Mat<S, Wide> gx) {
    cpu::linear_backward<N>(*pool_, group, parts, gradients, x.rows, gy.data, block(x), needs_input, block(gx));
  }
  /// Lengths of the rows of W + s B A of a part with trained DoRA. Works in the group's output scratch.
  void measure_rows(const LinearGroup<S>& group, const LinearPart<S>& part, const RowLengths<S>& lengths) {
    cpu::measure_rows<N>(*pool_, group, part, lengths);
  }
  /// y (T,N) += bias (N).
  template <int Cols>
  void add_bias(const S* bias, View<Cols> y) {
    cpu::add_bias<N>(*pool_, y.rows, y.cols(), bias, y.data);
  }

  /// cosine sine (positions, E/2) of position * frequency, times `attention`.
  void rope_table(int positions, std::span<const float> frequencies, float attention, S* cosine, S* sine) {
    cpu::rope_table(positions, frequencies, attention, cosine, sine);
  }
  /// Turns queries and keys of qkv (T,(H+2K)E) in place; direction 1, or -1 in the backward pass. position (T).
  template <int Width>
  void rope(const AttentionShape& heads, const S* cosine, const S* sine, const std::int32_t* position, int direction,
            Mat<S, Width> qkv) {
    cpu::rope<N>(*pool_, qkv.rows, heads, cosine, sine, position, direction, qkv.data);
  }
  /// o (T,HE) = causal attention inside the document pieces of `batch`; lse (H,T) is the log of each softmax's sum.
  template <int Width, int Out>
  void attention(const AttentionShape& heads, const TokenBatch& batch, Mat<const S, Width> qkv, Mat<S, Out> o, S* lse,
                 std::byte* scratch, std::int64_t scratch_bytes) {
    cpu::attention<N>(*pool_, qkv.rows, heads, batch.segments, qkv.data, block(o), lse, reinterpret_cast<S*>(scratch),
                      per_worker(scratch_bytes));
  }
  /// gqkv (T,(H+2K)E) = the gradient of `attention` by qkv, from what that call read and wrote.
  template <int Out, int Width>
  void attention_backward(const AttentionShape& heads, const TokenBatch& batch, Mat<const S, Out> go,
                          Mat<const S, Width> qkv, In<S, Out> o, const S* lse, Mat<S, Width> gqkv, std::byte* scratch,
                          std::int64_t scratch_bytes) {
    cpu::attention_backward<N>(*pool_, qkv.rows, heads, batch.segments, block(go), qkv.data, block(o), lse, gqkv.data,
                               reinterpret_cast<S*>(scratch), per_worker(scratch_bytes));
  }
  /// Of new tokens: turns qkv (T,(H+2K)E) in place, puts keys and values into the caches, and o (T,HE) = attention of
  /// each over its sequence's cache up to itself. position (T) is the place in the sequence.
  template <int Width, int Out>
  void attention_cached(const AttentionShape& heads, const S* cosine, const S* sine, const std::int32_t* position,
                        std::span<const CachedSequence<S>> sequences, Mat<S, Width> qkv, Mat<S, Out> o,
                        std::byte* scratch, std::int64_t scratch_bytes) {
    rope(heads, cosine, sine, position, 1, qkv);
    cpu::store_kv<S>(heads, sequences, qkv.data);
    cpu::attention_cached<N>(*pool_, heads, sequences, qkv.data, block(o), reinterpret_cast<S*>(scratch),
                             per_worker(scratch_bytes));
  }
  /// This backend has nothing to record.
  struct Recordings {};
  /// Runs the body.
  template <class Body>
  void repeat(Recordings& /*recordings*/, const Repetition& /*what*/, std::span<std::byte> /*staged*/,
              const Body& body) {
    body();
  }
  /// y (T,F) = silu(gate) up; gate_up (T,2F) has the gate in the first F columns.
  template <int F>
  void swiglu(Mat<const S, columns_product(2, F)> gate_up, Mat<S, F> y) {
    cpu::swiglu<N>(*pool_, y.rows, y.cols(), gate_up.data, block(y));
  }
  /// ggate_up (T,2F) = the gradient of `swiglu`.
  template <int F>
  void swiglu_backward(Mat<const S, F> gy, Mat<const S, columns_product(2, F)> gate_up,
                       Mat<S, columns_product(2, F)> ggate_up) {
    cpu::swiglu_backward<N>(*pool_, gy.rows, gy.cols(), block(gy), gate_up.data, ggate_up.data);
  }
  /// losses (T) = nats of labelled rows, 0 elsewhere; gx (T,D) = scale times the gradient by x; ghead (V,D) += that by
  /// `head` (V,D). Null gx: losses only. Null ghead: the head is frozen.
  template <int D>
  void cross_entropy(const TokenBatch& batch, Mat<const S, D> x, const S* head, int vocab, double scale,
                     const LossScratch<S>& scratch, S* losses, S* gx, S* ghead) {
    cpu::cross_entropy<N>(*pool_, x.cols(), vocab, batch, x.data, head, S(scale), scratch, losses, gx, ghead);
  }
  /// logits (T,V) = x (T,D) head (V,D)^T
  template <int D>
  void project(Mat<const S, D> x, const S* head, int vocab, S* logits) {
    cpu::product_nt<S>(*pool_, x.rows, vocab, x.cols(), S(1), block(x), {head, x.cols()}, 0, {logits, vocab});
  }
  /// ids (T) = the largest of the first `among` of each row of logits (T,V), the lowest id among equals.
  void pick(int tokens, int vocab, int among, const S* logits, std::int32_t* ids) {
    cpu::pick(*pool_, tokens, vocab, among, logits, ids);
  }
  /// ids (T), drawn from logits (T,V) as rows (T) say.
  void draw(int tokens, int vocab, const S* logits, const DrawRow* rows, std::int32_t* ids) {
    cpu::draw(*pool_, tokens, vocab, logits, rows, ids);
  }
  /// scalars->loss += sum of losses, in order, in double.
  void add_losses(int tokens, const S* losses, StepScalars* scalars) {
    double sum = 0.0;
    for (int t = 0; t < tokens; ++t) sum += static_cast<double>(cpu::real_part(losses[t]));
    scalars->loss += sum;
  }
  /// to (count) += from (count).
  void add(std::int64_t count, const S* from, S* to) { cpu::add(*pool_, count, from, to); }
  /// scalars->grad_norm, and scalars->clip = min(1, max_norm / (norm + 1e-6)), 1 when max_norm is 0.
  void gradient_norm(std::int64_t count, const S* g, double* partial, float max_norm, StepScalars* scalars) {
    norm_tiles(count, g, partial);
    norm_total(count, partial, max_norm, scalars);
  }
  /// partial (norm_partials(count)) = sums of squares of g (count), tile by tile.
  void norm_tiles(std::int64_t count, const S* g, double* partial) { cpu::norm_tiles(*pool_, count, g, partial); }
  /// The result of gradient_norm from the sums of all tiles of `count` numbers.
  void norm_total(std::int64_t count, const double* partial, float max_norm, StepScalars* scalars) {
    scalars->grad_norm = cpu::norm_total(count, partial);
    const double limit = static_cast<double>(max_norm) / (scalars->grad_norm + 1e-6);
    scalars->clip = max_norm > 0.0F ? std::min(1.0, limit) : 1.0;
  }
  /// One update of p (count) by g times scalars->clip, with the moments m and v (count) each. Does nothing when loss or
  /// norm is not finite.
  void adamw(std::int64_t count, const AdamW& rule, const StepScalars* scalars, const S* g, S* p, S* m, S* v) {
    if (!std::isfinite(scalars->loss) || !std::isfinite(scalars->grad_norm)) return;
    cpu::adamw(*pool_, count, rule, scalars->clip, g, p, m, v);
  }
  /// The same with moments in 8 bits. Throws Error (usage) for another type than float.
  void adamw8bit(std::int64_t count, const AdamW& rule, const StepScalars* scalars, const S* g, S* p,
                 const Moments8bit& m, const Moments8bit& v) {
    if (!std::isfinite(scalars->loss) || !std::isfinite(scalars->grad_norm)) return;
    if constexpr (std::is_same_v<S, float>) {
      cpu::adamw8bit(*pool_, count, rule, scalars->clip, g, p, m, v);
    } else {
      throw Error("moments in 8 bits are for float parameters", ErrorKind::usage);
    }
  }
  /// False when a value is not finite. to.absmax is not needed with double quantization.
  bool quantize(const TensorRef& tensor, const Quant& quant, Nf4Target to) {
    std::vector<float> values(static_cast<std::size_t>(tensor.size()));
    read_floats(tensor, 0, values);
    for (const float value : values) {
      if (!std::isfinite(value)) return false;
    }
    std::vector<float> absmax;
    if (to.absmax8 != nullptr) {
      absmax.resize(static_cast<std::size_t>(Nf4Layout::of(tensor.size(), quant).blocks));
      to.absmax = absmax.data();
    }
    cpu::quantize_nf4(*pool_, values, quant, to);
    return true;
  }
  /// Bytes as they are.
  void place_bytes(std::span<const std::byte> from, void* to) { std::memcpy(to, from.data(), from.size()); }
  /// All weights are placed; nothing is left to do here.
  void finish_loading() {}
  /// A whole matrix, rounded as its dtype was before quantization.
  void dequantize(const Nf4View& w, std::int64_t elements, const Quant& quant, S* out) {
    cpu::dequantize_nf4<N>(*pool_, w, elements, quant, out);
  }
  /// A matrix (rows, cols) as products read it, its rows `stride` apart.
  void dequantize_rows(const Nf4View& w, int rows, int cols, const Quant& quant, S* out, int stride) {
    QLORA_EXPECTS(stride == cols, "rows ", stride, " apart, ", cols, " wide");
    dequantize(w, std::int64_t{rows} * cols, quant, out);
  }

 private:
  template <class T, int Cols>
  [[nodiscard]] static cpu::Block<T> block(const Mat<T, Cols>& m) {
    return {m.data, m.stride};
  }
  [[nodiscard]] std::int64_t per_worker(std::int64_t scratch_bytes) const {
    return scratch_bytes / workers() / static_cast<std::int64_t>(sizeof(S));
  }

  std::unique_ptr<cpu::ThreadPool> pool_;
};

}  // namespace v0
}  // namespace qlora
