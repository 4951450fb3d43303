// qlora/cuda/loss/loss.cuh — the product with the head fused with cross-entropy, in chunks of labelled rows.
// Math       z = x W^T;  loss_t = log sum_v e^{z_v} - z_target;  gz = scale (softmax(z) - onehot);  gx = gz W
// Shapes     x gx (T,D) bf16 · W (V,D) bf16 · targets (T), -1 where nothing is predicted · losses (T) float
//            scratch: rows grads (chunk,D) bf16 · logits (chunk,V) float · logit_grads (chunk,V) bf16
// Writes     losses gx with = (0 in rows without target); scalars->loss with +=
// Split      nearly all rows labelled: chunks of neighbouring rows, and the products read x and write gx directly;
//            otherwise labelled rows are gathered and their gradients scattered. One block per row of logits
// Needs      D and V multiples of 8; 16-byte alignment
// Numbers    fp32 logits; the running maximum and sum of a thread, then of the block in thread order; gz and gx are
//            rounded to bf16 once; the sum of losses in double, in a fixed order. A non-finite loss is reported
// Cost       bound by the products (4 V D FLOP per row); the softmax reads 4 V bytes twice, the second time from L2,
//            and writes 2 V
// Reference  cross_entropy in cpu/loss.hpp
#pragma once

#include <algorithm>
#include <cmath>

#include "qlora/cuda/rowwise/rows.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

namespace detail {

/// Threads per row of logits; two such blocks share a multiprocessor, so that the active rows stay in L2 (at V = 32000:
/// 132 * 2 * 128 KB = 34 MB of 50).
inline constexpr int softmax_threads = 512;
/// Packs of eight logits that a thread has in flight.
inline constexpr int softmax_packs = 2;

/// Row i of the logits is row index[i] of the batch, or first + i where index is null.
struct LossRows {
  const std::int32_t* index;
  int first;
};

template <bool Gradient>
static __global__ void __launch_bounds__(softmax_threads, 2)
    cross_entropy_kernel(int vocab, LossRows rows, const std::int32_t* __restrict__ targets, float scale,
                         const float* __restrict__ logits, float* __restrict__ losses, bf16* __restrict__ gz,
                         Fault fault) {
  const std::int64_t i = blockIdx.x;
  const int row = rows.index != nullptr ? rows.index[i] : rows.first + static_cast<int>(i);
  const int target = targets[row];
  const float* z = logits + i * vocab;
  const int packs = vocab / 8;
  const int thread = static_cast<int>(threadIdx.x);
  if (target < 0) {  // the whole block
    if (thread == 0) losses[row] = 0.0F;
    if constexpr (Gradient) {
      const float nothing[8] = {};
      for (int at = thread; at < packs; at += softmax_threads) {
        device::store8(gz + i * vocab + at * 8, device::to_pack(nothing));
      }
    }
    return;
  }
  float most = -INFINITY;
  float sum = 0.0F;  // of e^(z - most)
  for (int base = thread; base < packs; base += softmax_threads * softmax_packs) {
    float value[softmax_packs][8];
    float here = most;
#pragma unroll
    for (int k = 0; k < softmax_packs; ++k) {
      if (base + k * softmax_threads < packs) {
        device::load8(z + (base + k * softmax_threads) * 8, value[k]);
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) value[k][j] = -INFINITY;
      }
    }
#pragma unroll
    for (int k = 0; k < softmax_packs; ++k) {
#pragma unroll
      for (int j = 0; j < 8; ++j) here = fmaxf(here, value[k][j]);
    }
    sum *= __expf(most - here);
    most = here;
#pragma unroll
    for (int k = 0; k < softmax_packs; ++k) {
#pragma unroll
      for (int j = 0; j < 8; ++j) sum += __expf(value[k][j] - most);
    }
  }
  const float largest = device::block_max<softmax_threads>(most);
  // A thread without logits has sum 0 and maximum -inf, and adds 0.
  sum = device::block_sum<softmax_threads>(sum * __expf(most - largest));
  if (thread == 0) {
    const float loss = logf(sum) + largest - z[target];
    losses[row] = loss;
    if (!isfinite(loss)) device::report(fault);
  }
  if constexpr (Gradient) {
    const float factor = scale / sum;
#pragma unroll 2
    for (int at = thread; at < packs; at += softmax_threads) {
      float value[8];
      device::load8(z + at * 8, value);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        value[j] = __expf(value[j] - largest) * factor - (at * 8 + j == target ? scale : 0.0F);
      }
      device::store8(gz + i * vocab + at * 8, device::to_pack(value));
    }
  }
}

/// Zeroes losses and gradients of rows without a target; gx may be null.
static __global__ void __launch_bounds__(row_threads)
    clear_unlabelled_kernel(int packs, const std::int32_t* __restrict__ targets, float* __restrict__ losses, bf16* gx) {
  const std::int64_t t = blockIdx.x;
  if (targets[t] >= 0) return;
  if (threadIdx.x == 0) losses[t] = 0.0F;
  if (gx == nullptr) return;
  const float nothing[8] = {};
  for (int at = static_cast<int>(threadIdx.x); at < packs; at += row_threads) {
    device::store8(gx + (t * packs + at) * 8, device::to_pack(nothing));
  }
}

inline constexpr int add_losses_threads = 256;

static __global__ void __launch_bounds__(add_losses_threads)
    add_losses_kernel(int tokens, const float* __restrict__ losses, StepScalars* scalars) {
  double sum = 0.0;
  for (int t = static_cast<int>(threadIdx.x); t < tokens; t += add_losses_threads) {
    sum += static_cast<double>(losses[t]);
  }
  sum = device::block_sum<add_losses_threads>(sum);
  if (threadIdx.x == 0) scalars->loss += sum;
}

/// One chunk: the products read `product_rows` rows of `x` and write as many of `gx`; only the first `count` belong to
/// the batch.
struct LossChunk {
  LossRows rows;
  int count;
  int product_rows;
  const bf16* x;
  bf16* gx;
};
inline void cross_entropy_chunk(Context& context, int dim, int vocab, const std::int32_t* targets, const bf16* head,
                                float scale, const LossScratch<bf16, float>& scratch, const LossChunk& chunk,
                                float* losses) {
  matmul(context, Matmul{.product = Product::nt,
                         .m = chunk.product_rows,
                         .n = vocab,
                         .k = dim,
                         .a = {chunk.x, dim},
                         .b = {head, dim},
                         .c = scratch.logits,
                         .c_stride = vocab,
                         .c_float = true});
  const auto blocks = static_cast<unsigned>(chunk.count);
  if (chunk.gx == nullptr) {
    cross_entropy_kernel<false><<<blocks, softmax_threads, 0, context.stream>>>(
        vocab, chunk.rows, targets, scale, scratch.logits, losses, nullptr, context.fault());
    check_launch("cross_entropy");
    return;
  }
  cross_entropy_kernel<true><<<blocks, softmax_threads, 0, context.stream>>>(
      vocab, chunk.rows, targets, scale, scratch.logits, losses, scratch.logit_grads, context.fault());
  check_launch("cross_entropy");
  matmul(context, Matmul{.product = Product::nn,
                         .m = chunk.product_rows,
                         .n = dim,
                         .k = vocab,
                         .a = {scratch.logit_grads, vocab},
                         .b = {head, dim},
                         .c = chunk.gx,
                         .c_stride = dim});
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void cross_entropy(Context& context, int dim, int vocab, const TokenBatch& batch, const bf16* x,
                                       const bf16* head, float scale, const LossScratch<bf16, float>& scratch,
                                       float* losses, bf16* gx) {
  const Phase phase(context, "head and loss");
  if (batch.tokens <= 0) return;
  expect_packs("cross_entropy", "x", Rows<const bf16>{x, dim}, dim);
  expect_packs("cross_entropy", "the head", Rows<const bf16>{head, dim}, dim);
  expect_packs("cross_entropy", "the logits", Rows<const float>{scratch.logits, vocab}, vocab);
  if (gx != nullptr) {
    expect_packs("cross_entropy", "gx", Rows<bf16>{gx, dim}, dim);
    expect_packs("cross_entropy", "the logits' gradient", Rows<bf16>{scratch.logit_grads, vocab}, vocab);
  }
  QLORA_EXPECTS(scratch.chunk > 0, "cross_entropy: the chunk is ", scratch.chunk, " rows");
  // An unlabelled row costs 4 V D FLOP (0.8 us at V 32000, D 4096 and 660 TFLOP/s), gathering and scattering a row 8 D
  // bytes (8 ns at 4.3 TB/s): rows are not gathered while less than one in a hundred has no target.
  const int unlabelled = batch.tokens - batch.labelled_count;
  if (std::int64_t{unlabelled} * 100 <= batch.tokens) {
    for (int done = 0; done < batch.tokens; done += scratch.chunk) {
      const int count = std::min(scratch.chunk, batch.tokens - done);
      const std::int64_t at = std::int64_t{done} * dim;
      detail::cross_entropy_chunk(context, dim, vocab, batch.targets, head, scale, scratch,
                                  {{nullptr, done}, count, count, x + at, gx == nullptr ? nullptr : gx + at}, losses);
    }
    return;
  }
  detail::clear_unlabelled_kernel<<<static_cast<unsigned>(batch.tokens), row_threads, 0, context.stream>>>(
      dim / 8, batch.targets, losses, gx);
  check_launch("clear_unlabelled");
  // Every row count is a new shape for the products and is measured once, so the last chunk is rounded up to eighths.
  // The rows past the labelled ones hold stale values, and their results are not read.
  const int eighth = std::max((scratch.chunk + 7) / 8, 1);
  for (int done = 0; done < batch.labelled_count; done += scratch.chunk) {
    const int count = std::min(scratch.chunk, batch.labelled_count - done);
    const int filled = std::min((count + eighth - 1) / eighth * eighth, scratch.chunk);
    const std::int32_t* index = batch.labelled + done;
    embed(context, count, dim, index, x, {scratch.rows, dim});
    detail::cross_entropy_chunk(context, dim, vocab, batch.targets, head, scale, scratch,
                                {{index, 0}, count, filled, scratch.rows, gx == nullptr ? nullptr : scratch.grads},
                                losses);
    if (gx == nullptr) continue;
    scatter_rows(context, count, dim, index, scratch.grads, gx);
  }
}

QLORA_CUDA_LAUNCHER void project(Context& context, int tokens, int dim, int vocab, Rows<const bf16> x, const bf16* head,
                                 float* logits) {
  if (tokens <= 0) return;
  matmul(context, Matmul{.product = Product::nt,
                         .m = tokens,
                         .n = vocab,
                         .k = dim,
                         .a = x,
                         .b = {head, dim},
                         .c = logits,
                         .c_stride = vocab,
                         .c_float = true});
}

QLORA_CUDA_LAUNCHER void add_losses(Context& context, int tokens, const float* losses, StepScalars* scalars) {
  if (tokens <= 0) return;
  detail::add_losses_kernel<<<1, detail::add_losses_threads, 0, context.stream>>>(tokens, losses, scalars);
  check_launch("add_losses");
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
