// qlora/backend.hpp — the contract between network code and a backend, as three concepts: memory and loading, the ops
// of the network, the ops of the optimizer.
// Every op states what it writes: activations with = , gradients of parameters with += . Reductions have a fixed order:
// the same bits every run. A backend is a value that owns its threads or streams; there are no globals. Ops may return
// before they are done; what the host reads (download, read) waits.
// Act is what activations and frozen dense weights are stored in, Param what is trained, and statistics. XA stands
// behind X in each row, R columns for every adapted part: one product serves the frozen weights and the adapters.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include "qlora/error.hpp"
#include "qlora/tensor.hpp"
#include "qlora/view.hpp"
#include "qlora/workspace.hpp"

namespace qlora {
inline namespace v0 {

/// What the kernels of a backend need of a model's numbers.
struct ShapeLimits {
  int width_step = 1;                      ///< D, F and, where the model is trained, V are multiples of it
  int head_dim_step = 2;                   ///< E is a multiple of it
  int largest_head_dim = 0;                ///< 0: any
  std::array<int, 3> trained_head_dims{};  ///< the E that attention has a backward pass for; all 0: any
};

/// A block of backend memory, handed out once from front to back, zeroed.
template <class A>
concept BackendArena = requires(A& arena, const A& taken, std::int64_t n) {
  { arena.template take<float>(n) } -> std::same_as<float*>;
  { taken.size() } -> std::same_as<std::int64_t>;
  { taken.used() } -> std::same_as<std::int64_t>;
};

/// How a backend stores a model and works on it: memory, and what is read into it.
template <class B, class A = typename B::Act, class P = typename B::Param>
concept MemoryBackend = BackendArena<typename B::Arena> &&
    requires(B& b, const B& made, A* a, P* p, const TokenBatch& batch, std::span<const std::int32_t> numbers,
             std::span<float> host, std::span<std::int32_t> host_ids, std::span<const DrawRow> draws,
             const TensorRef& tensor, const Quant& quant, const Nf4Target& target, const WorkspaceNeeds& needs,
             std::byte* memory, StepScalars* scalars, std::span<const std::byte> bytes, std::int64_t n) {
  { B::space } -> std::convertible_to<Space>;
  { B::rank_step } -> std::convertible_to<int>;  // rank caps are multiples of it
  { B::shape_limits } -> std::convertible_to<ShapeLimits>;
  { B::wide_groups } -> std::convertible_to<bool>;  // see Storage
  { B::workspace_bytes(needs) } -> std::same_as<WorkspaceBytes>;
  requires(B::workspace_bytes({}).total() >= 0);  // constexpr: memory plans ask when a program is compiled
  { B::carve(needs, memory) } -> std::same_as<Workspace<A, P>>;  // memory of workspace_bytes(needs).total()
  { made.workers() } -> std::same_as<int>;                       // that a workspace has scratch for; 0: they share it
  // One backend serves one thread at a time. A fork serves another one beside it, with threads or a stream of its own,
  // on the same device: each reads what is in arenas of the other once the call that wrote it has returned.
  { made.fork() } -> std::same_as<B>;
  b.bind();  // before the first op of a call: the thread that calls it uses the backend now
  { b.arena(n) } -> std::same_as<typename B::Arena>;
  { b.stage(batch) } -> std::same_as<TokenBatch>;  // host arrays where ops can read them
  { b.stage(numbers) } -> std::same_as<const std::int32_t*>;
  { b.stage(draws) } -> std::same_as<const DrawRow*>;
  // Loading: false when a value is not finite. Stored values are rounded as activations are.
  { b.place(tensor, true, a) } -> std::same_as<bool>;
  { b.place(tensor, true, p) } -> std::same_as<bool>;
  { b.quantize(tensor, quant, target) } -> std::same_as<bool>;
  b.place_bytes(bytes, memory);  // as they are, of a matrix that is stored in NF4
  b.finish_loading();
  b.dequantize(Nf4View{}, n, quant, p);               // elements -> as they were quantized
  b.dequantize_rows(Nf4View{}, 1, 64, quant, a, 64);  // (rows, cols) -> rows as products read them, a stride apart
  b.upload(host, p);
  made.download(a, host);
  made.download(p, host);
  made.download(numbers.data(), host_ids);
  b.zero(p, n);
  b.copy(n, p, p);  // from, to
  b.zero(scalars);
  { b.read(scalars) } -> std::same_as<StepScalars>;
};

/// The ops of the network. Each stands in cpu/NAME.hpp and cuda/FAMILY/NAME.cuh, NAME before the colon. The widths of
/// views stand for any.
template <class B, class A = typename B::Act, class P = typename B::Param>
concept NetworkBackend = requires(B& b, typename B::template View<64> x, typename B::template ConstView<64> in,
                                  typename B::template View<128> wide, typename B::template ConstView<128> wide_in,
                                  A* a, P* p, std::span<const LinearPart<A, P>> parts,
                                  std::span<const RowAdapters<P>> ranges, std::span<const LinearGradient<P>> gradients,
                                  const LinearGroup<A>& group, const AttentionShape& heads, const TokenBatch& batch,
                                  std::span<const CachedSequence<A>> cached, const std::int32_t* ids,
                                  const LossScratch<A, P>& loss, std::byte* scratch, std::int64_t n,
                                  std::int32_t* picked, const DrawRow* draws, typename B::Recordings& recordings,
                                  void (*body)()) {
  b.at(1, Site::attention);  // where the next ops stand, for reports of what is not finite
  b.order(RowOrder::any);    // of the next linear layers and heads, until it is called again
  // embed: ids (T), table (V,D) -> x (T,D)
  b.embed(ids, in, x);
  // norm: x (T,D), w (D) -> y (T,D), inv_rms (T)
  b.rmsnorm(1e-5F, in, p, x, p);
  b.rmsnorm_backward(in, in, p, p, true, x, p);
  // linear: group, [X | XA] (T, K + parts R), residual -> Y (T,N); adapter_input: X -> XA
  // linear_mixed: the same, and each row has the adapters of its range, of up to most_row_adapters
  b.linear(group, parts, x, wide_in, wide);
  b.linear_mixed(group, parts, ranges, x, wide_in, wide);
  b.adapter_input(group, parts, x);
  b.linear_backward(group, parts, gradients, wide_in, in, true, x);
  // dora: lengths of the rows of W + s B A of a part whose adapters have magnitudes
  b.measure_rows(group, parts[0], RowLengths<P>{});
  // bias: y (T,N) += bias (N)
  b.add_bias(p, wide);
  // rope: frequencies (E/2) on the host -> cosine, sine (positions, E/2), times a factor; qkv (T,(H+2K)E) in place,
  // direction -1 in the backward pass
  b.rope_table(1, std::span<const float>(), 1.0F, p, p);
  b.rope(heads, p, p, ids, 1, wide);
  // attention: qkv -> o (T,HE), lse (H,T), inside document segments
  b.attention(heads, batch, wide_in, x, p, scratch, n);
  b.attention_backward(heads, batch, in, wide_in, in, p, wide, scratch, n);
  // decode: turns qkv of new tokens, puts their keys and values into caches, and attends over them -> o (T,HE).
  // Positions are places in the sequences; qkv is used up
  b.attention_cached(heads, p, p, ids, cached, wide, x, scratch, n);
  // runs a body of the ops above and of `stage`, or repeats its launches. Bodies with equal Repetition give the ops the
  // same addresses, also in host memory, and the same numbers except for lengths of cached sequences. What they stage
  // has room in the workspace of a decoder
  b.repeat(recordings, Repetition{}, std::span<std::byte>{}, body);
  // swiglu: gate|up (T,2F) -> y (T,F)
  b.template swiglu<64>(wide_in, x);
  b.template swiglu_backward<64>(in, wide_in, wide);
  // loss: x (T,D), head (V,D), targets (T) -> losses (T), gx (T,D); project: logits (T,V)
  b.cross_entropy(batch, in, a, 32, 1.0, loss, p, a, p);
  b.project(in, a, 32, p);
  // pick: logits (T,V) -> ids (T), the largest of the first columns
  b.pick(1, 32, 30, p, picked);
  // draw: logits (T,V), how (T) -> ids (T), drawn at random
  b.draw(1, 32, p, draws, picked);
};

/// The ops of the optimizer, over all trained parameters one after another. Named as those of the network.
template <class B, class P = typename B::Param>
concept OptimizerBackend = requires(B& b, P* p, const AdamW& rule, double* sums, StepScalars* scalars, std::int64_t n) {
  b.add_losses(1, p, scalars);  // losses (T) -> scalars->loss +=
  b.add(n, p, p);               // g (n) -> sum (n) +=
  // adamw: g (n) -> norm and clipping factor; p, g, moments (n) -> p, moments
  b.gradient_norm(n, p, sums, 1.0F, scalars);
  // the two halves of gradient_norm, of which the first may be made in parts: g (n) -> sums of tiles; those of all n
  b.norm_tiles(n, p, sums);
  b.norm_total(n, sums, 1.0F, scalars);
  b.adamw(n, rule, scalars, p, p, p, p);
  // adamw8bit: the same with moments in 8 bits
  b.adamw8bit(n, rule, scalars, p, p, Moments8bit{}, Moments8bit{});
};

/// All that training of adapters needs, and generation.
template <class B>
concept Backend = MemoryBackend<B> && NetworkBackend<B> && OptimizerBackend<B>;

/// What training every weight needs on top.
template <class B, class A = typename B::Act, class P = typename B::Param>
concept FullBackend = Backend<B> && std::same_as<A, P> &&
    requires(B& b, const std::int32_t* ids, typename B::template ConstView<64> in, typename B::template View<64> x) {
  b.embed_backward(ids, in, x);
};

// --- what a config must satisfy to run on a backend; dynamic numbers are checked when they are known, by
// expect_served()

namespace rule {
/// A number that is not known yet counts as a multiple.
[[nodiscard]] constexpr bool is_multiple(int number, int step) { return is_dynamic(number) || number % step == 0; }
/// Attention has kernels for this head dimension, or the backend has no limit.
[[nodiscard]] constexpr bool head_dim_has_kernels(int head_dim, const ShapeLimits& limits) {
  return is_multiple(head_dim, limits.head_dim_step) &&
         (limits.largest_head_dim == 0 || head_dim <= limits.largest_head_dim);
}
/// Attention can also train with it.
[[nodiscard]] constexpr bool head_dim_has_backward(int head_dim, const ShapeLimits& limits) {
  const auto& known = limits.trained_head_dims;
  return is_dynamic(head_dim) || known == std::array<int, 3>{} ||
         std::find(known.begin(), known.end(), head_dim) != known.end();
}
}  // namespace rule

/// D and F are multiples of ShapeLimits::width_step.
template <Config C, class B>
concept WidthsAreMultiplesOfStep = rule::is_multiple(C.shape.dim, B::shape_limits.width_step) && rule::is_multiple(
    C.shape.ffn, B::shape_limits.width_step);
/// V is a multiple of ShapeLimits::width_step, as training needs it.
template <Config C, class B>
concept VocabIsMultipleOfStep = rule::is_multiple(C.shape.vocab, B::shape_limits.width_step);
/// The rank cap is a multiple of the backend's rank_step. Full training has no rank.
template <Config C, class B>
concept RankIsMultipleOfStep = C.trainable == Trainable::all || rule::is_multiple(C.lora.rank, B::rank_step);
/// See rule::head_dim_has_kernels.
template <Config C, class B>
concept HeadDimHasKernels = rule::head_dim_has_kernels(C.shape.head_dim, B::shape_limits);
/// See rule::head_dim_has_backward.
template <Config C, class B>
concept HeadDimHasBackwardKernels = rule::head_dim_has_backward(C.shape.head_dim, B::shape_limits);

/// A config whose models a backend runs.
template <Config C, class B>
concept RunsOn = ValidConfig<C> && Backend<B> && WidthsAreMultiplesOfStep<C, B> && RankIsMultipleOfStep<C, B> &&
    HeadDimHasKernels<C, B>;
/// A config that a backend trains.
template <Config C, class B>
concept CanTrain = RunsOn<C, B> && VocabIsMultipleOfStep<C, B> && HeadDimHasBackwardKernels<C, B> &&
    (C.trainable == Trainable::adapters || FullBackend<B>);

namespace detail {
inline void expect_multiple(std::string_view what, int number, int step) {
  if (number % step == 0) return;
  throw Error(concat(what, " is ", number, "; this backend needs a multiple of ", step));
}
}  // namespace detail

/// Throws Error (input), naming the number, when the kernels of B do not serve a config whose numbers are all known;
/// with `trains` also when they do not train it.
template <class B>
void expect_served(const Config& config, bool trains) {
  constexpr ShapeLimits limits = B::shape_limits;
  const Shape& s = config.shape;
  detail::expect_multiple("dim", s.dim, limits.width_step);
  detail::expect_multiple("ffn", s.ffn, limits.width_step);
  detail::expect_multiple("head_dim", s.head_dim, limits.head_dim_step);
  if (config.trainable == Trainable::adapters) {
    detail::expect_multiple("the rank cap of adapters", config.lora.rank, B::rank_step);
  }
  if (!rule::head_dim_has_kernels(s.head_dim, limits)) {
    throw Error(concat("head_dim is ", s.head_dim, "; this backend has kernels up to ", limits.largest_head_dim));
  }
  if (!trains) return;
  detail::expect_multiple("vocab", s.vocab, limits.width_step);
  if (!rule::head_dim_has_backward(s.head_dim, limits)) {
    const auto& known = limits.trained_head_dims;
    throw Error(
        concat("head_dim is ", s.head_dim, "; this backend trains with ", known[0], ", ", known[1], " or ", known[2]));
  }
}

}  // namespace v0
}  // namespace qlora
