// qlora/cuda/attention/cudnn.hpp — causal attention with cuDNN where it was built in (QLORA_WITH_CUDNN): selection,
// plans, launches.
// Math       as cpu/attention.hpp; graphs in cudnn_plan.hpp, cached state in cudnn_state.hpp
// Shapes     qkv gqkv (T,(H+2K)E) · o go (T,HE) inside wider rows · lse (H,T) fp32, natural logarithm of the sum of
//            exp(scaled scores)
// Writes     o lse gqkv with =
// Split      equal windows that tile T: strided views. Document pieces of varied length: ragged tensors with offset
//            tables. The tables of a batch are staged once and used by every layer
// Needs      cuDNN 9.12 (strided statistics), compute capability 8.0, ragged 9.0; E 64 or 128; T and S multiples of
//            128; 16-byte aligned rows. Anything else is declined and runs on this library's kernels. The choice
//            depends only on shapes and the card, so a resumed run gives the same bits
// Numbers    bf16 in and out, fp32 inside; the backward pass is deterministic unless ContextOptions::fast. A ragged
//            deterministic backward pass is declined, because it would store dS for the padded windows
// Cost       forward 2 T S H E FLOP, backward 5 T S H E; the deterministic backward pass also moves 2 T S H bytes of dS
//            twice
// Reference  cpu/attention.hpp
// Plain C++: g++ compiles this header in one translation unit of the library, since it takes a minute.
#pragma once

#include "qlora/cuda/context/context.cuh"
#include "qlora/error.hpp"

#ifdef QLORA_WITH_CUDNN

#include <algorithm>
#include <bit>
#include <unordered_map>
#include <vector>

#include "qlora/cuda/attention/cudnn_state.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {

namespace fused {

/// The smallest window; window lengths must be multiples of it: one tile of keys. For other lengths cuDNN before 9.16
/// copies them from pageable memory on every call.
inline constexpr int tile = 128;

/// Whether the pieces are windows of one length that tile the batch.
[[nodiscard]] inline bool equal_windows(const TokenBatch& batch) {
  const int seq = batch.segments.front().last - batch.segments.front().first;
  int next = 0;
  for (const Segment& piece : batch.segments) {
    if (piece.first != next || piece.last != next + seq) return false;
    next = piece.last;
  }
  return next == batch.tokens;
}

/// The problem that a batch poses; windows 0: declined, for the reasons listed at the top of this file.
[[nodiscard]] inline Problem pose(const Context& context, const AttentionShape& shape, const TokenBatch& batch,
                                  bool backward, int o_stride, int go_stride) {
  const bool served = context.options.use_cudnn && (shape.head_dim == 64 || shape.head_dim == 128) &&
                      shape.heads % shape.kv_heads == 0 && batch.tokens % tile == 0 && !batch.segments.empty() &&
                      o_stride % 8 == 0 && go_stride % 8 == 0;
  if (!served) return {};
  Problem problem{.backward = backward,
                  .deterministic = backward && !context.options.fast,
                  .tokens = batch.tokens,
                  .heads = shape.heads,
                  .kv_heads = shape.kv_heads,
                  .head_dim = shape.head_dim,
                  .o_stride = o_stride,
                  .go_stride = go_stride};
  const auto pieces = static_cast<int>(batch.segments.size());
  if (equal_windows(batch)) {
    problem.seq = batch.tokens / pieces;
    problem.windows = problem.seq % tile == 0 ? pieces : 0;
    return problem;
  }
  int longest = 0;
  for (const Segment& piece : batch.segments) longest = std::max(longest, piece.last - piece.first);
  problem.ragged = true;
  problem.seq = (longest + tile - 1) / tile * tile;
  const int rows = std::max({shape.width(), o_stride, go_stride});
  const bool fits_int = std::int64_t{batch.tokens} * rows <= INT32_MAX;
  if (context.capability < 90 || problem.deterministic || pieces > max_pieces || !fits_int) return problem;
  const auto padded = static_cast<int>(std::bit_ceil(static_cast<unsigned>(pieces)));
  if (std::int64_t{padded} * problem.seq <= std::int64_t{max_padding} * batch.tokens) problem.windows = padded;
  return problem;
}

/// Device pointers of the whole problem.
struct Buffers {
  const bf16* qkv = nullptr;  ///< (T,(H+2K)E)
  const bf16* o = nullptr;    ///< (T,HE), rows o_stride apart
  const bf16* go = nullptr;   ///< (T,HE), rows go_stride apart
  const float* lse = nullptr;
  bf16* gqkv = nullptr;
};
using Pointers = std::unordered_map<std::int64_t, void*>;

/// cuDNN takes non-const pointers also for tensors that it only reads.
template <class T>
[[nodiscard]] void* loose(const T* pointer) {
  return const_cast<T*>(pointer);  // NOLINT(cppcoreguidelines-pro-type-const-cast)
}

/// Pointers for the launch that starts at `window` and key head `kv_head`.
[[nodiscard]] inline Pointers bind(const Problem& problem, const Buffers& buffers, int window, int kv_head) {
  const std::int64_t row = std::int64_t{window} * problem.seq;
  const std::int64_t e = problem.head_dim;
  const std::int64_t head = std::int64_t{kv_head} * (problem.heads / problem.kv_heads);
  const std::int64_t at_q = row * problem.width() + head * e;
  const std::int64_t at_k = row * problem.width() + (problem.heads + kv_head) * e;
  const std::int64_t at_v = at_k + problem.kv_heads * e;
  // Dense statistics (B,H,S) or, in the forward pass, (H,T); with one window both layouts are the same.
  const std::int64_t at_stats =
      problem.backward ? row * problem.heads + head * problem.seq : head * problem.tokens + row;
  Pointers pointers{{q, loose(buffers.qkv + at_q)},
                    {k, loose(buffers.qkv + at_k)},
                    {v, loose(buffers.qkv + at_v)},
                    {o, loose(buffers.o + row * problem.o_stride + head * e)},
                    {stats, loose(buffers.lse + at_stats)}};
  if (problem.backward) {
    pointers[go] = loose(buffers.go + row * problem.go_stride + head * e);
    pointers[gq] = buffers.gqkv + at_q;
    pointers[gk] = buffers.gqkv + at_k;
    pointers[gv] = buffers.gqkv + at_v;
  }
  return pointers;
}
/// Adds the tables of a ragged batch; element offsets are relative to the start of each tensor.
inline void bind_tables(Context& context, const Problem& problem, const TokenBatch& batch, Pointers& pointers) {
  std::int32_t* counts = piece_lengths(context, batch, problem.windows);
  std::vector<int>& strides = context.fused->tables.strides;
  if (strides.size() > max_tables - launch_tables) strides.clear();  // never between the tables of one launch
  pointers[q_lengths] = counts;
  pointers[kv_lengths] = counts;
  const auto table = [&](int stride) { return piece_offsets(context, problem.tokens, problem.windows, stride); };
  const auto same = [&](std::initializer_list<Tensor> tensors, int stride) {
    for (const Tensor tensor : tensors) pointers[tensor + offsets_of] = table(stride);
  };
  same({q, k, v}, problem.width());
  same({o}, problem.o_stride);
  same({stats}, 1);
  if (problem.backward) {
    same({go}, problem.go_stride);
    same({gq, gk, gv}, problem.width());
  }
}

/// Copies lse (H,T) to (B,H,S) after the workspace.
[[nodiscard]] inline const float* pack_stats(Context& context, const Problem& problem, const Plan& plan,
                                             const float* lse) {
  auto* packed = reinterpret_cast<float*>(context.fused->workspace + aligned(plan.workspace));
  const std::size_t line = static_cast<std::size_t>(problem.seq) * sizeof(float);
  const std::size_t pitch = static_cast<std::size_t>(problem.tokens) * sizeof(float);
  for (int window = 0; window < problem.windows; ++window) {
    const std::int64_t row = std::int64_t{window} * problem.seq;
    check(cudaMemcpy2DAsync(packed + row * problem.heads, line, lse + row, pitch, line,
                            static_cast<std::size_t>(problem.heads), cudaMemcpyDeviceToDevice, context.stream),
          "attention statistics");
  }
  return packed;
}

/// Runs a plan over all its slices. Throws when a launch fails; outputs are then partly written.
inline void execute(Context& context, const Plan& plan, const TokenBatch& batch, Buffers buffers) {
  const Problem& problem = plan.problem;
  if (dense_stats(problem) > 0) buffers.lse = pack_stats(context, problem, plan, buffers.lse);
  for (int window = 0; window < problem.windows; window += plan.slice.windows) {
    for (int kv_head = 0; kv_head < problem.kv_heads; kv_head += plan.slice.kv_heads) {
      Pointers pointers = bind(problem, buffers, window, kv_head);
      if (problem.ragged) bind_tables(context, problem, batch, pointers);
      auto status = plan.graph->execute(context.fused->handle, pointers, context.fused->workspace);
      if (status.is_bad()) {
        throw Error(concat("cuDNN attention: ", status.get_message()), ErrorKind::resource);
      }
    }
  }
}

}  // namespace fused

/// qkv -> o and lse; false: declined, nothing was written. Builds a plan for a new shape.
QLORA_CUDA_LAUNCHER bool fused_attention(Context& context, const AttentionShape& shape, const TokenBatch& batch,
                                         const bf16* qkv, Rows<bf16> o, float* lse) {
  const fused::Problem problem = fused::pose(context, shape, batch, false, o.stride, 0);
  const fused::Plan* plan = problem.windows > 0 ? fused::plan_for(context, problem) : nullptr;
  if (plan == nullptr) return false;
  fused::execute(context, *plan, batch, {.qkv = qkv, .o = o.data, .lse = lse});
  return true;
}

/// go, qkv, o and lse -> gqkv; false: declined, nothing was written.
QLORA_CUDA_LAUNCHER bool fused_attention_backward(Context& context, const AttentionShape& shape,
                                                  const TokenBatch& batch, Rows<const bf16> go, const bf16* qkv,
                                                  Rows<const bf16> o, const float* lse, bf16* gqkv) {
  const fused::Problem problem = fused::pose(context, shape, batch, true, o.stride, go.stride);
  const fused::Plan* plan = problem.windows > 0 ? fused::plan_for(context, problem) : nullptr;
  if (plan == nullptr) return false;
  fused::execute(context, *plan, batch, {.qkv = qkv, .o = o.data, .go = go.data, .lse = lse, .gqkv = gqkv});
  return true;
}

/// Bytes of device memory that cuDNN uses as workspace.
QLORA_CUDA_LAUNCHER std::int64_t fused_workspace(const Context& context) {
  return context.fused != nullptr ? context.fused->workspace_bytes : 0;
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora

#else

namespace qlora {
inline namespace v0 {
namespace cuda {

QLORA_CUDA_LAUNCHER bool fused_attention(Context&, const AttentionShape&, const TokenBatch&, const bf16*, Rows<bf16>,
                                         float*) {
  return false;
}
QLORA_CUDA_LAUNCHER bool fused_attention_backward(Context&, const AttentionShape&, const TokenBatch&, Rows<const bf16>,
                                                  const bf16*, Rows<const bf16>, const float*, bf16*) {
  return false;
}
QLORA_CUDA_LAUNCHER std::int64_t fused_workspace(const Context&) { return 0; }

}  // namespace cuda
}  // namespace v0
}  // namespace qlora

#endif
