// qlora/cuda/decode/prefill.cuh — attention of many new tokens of a sequence over its cached keys and values, on tensor
// cores.
// Math       O = softmax(Q K^T / sqrt(E)) V; query i of a sequence sees its first length - added + i + 1 keys
// Shapes     qkv (T,(H+2K)E) bf16, only query heads are read · kv (length, 2KE) bf16 · o (T,HE) bf16
// Writes     o rows first ... first + added - 1 with = , for sequences with more than one new token
// Split      a block of 4 warps per (64 queries, head, sequence), 16 queries per warp, looping over tiles of 64 keys
// Needs      E a multiple of 8, at most 256 (columns beyond E are zeros up to 32, 64, 128 or 256)
// Numbers    fp32 scores and sums; probabilities rounded to bf16 for the second product; keys in order: the bits do not
//            depend on the rest of the batch
// Cost       4 E FLOP per visible (query, key) pair and head; bound by the warp-level tensor instructions
// Reference  attention_cached in cpu/decode.hpp
#pragma once

#include "qlora/cuda/attention/tiles.cuh"
#include "qlora/cuda/rowwise/rows.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

namespace detail {

/// AttentionShape::width as a device function.
__device__ __forceinline__ int qkv_width(const AttentionShape& shape) {
  return (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
}
__device__ __forceinline__ device::Pack8 zero_pack() {
  device::Pack8 pack;
  reinterpret_cast<uint4&>(pack) = uint4{0, 0, 0, 0};
  return pack;
}

/// Tiles of the kernel; Columns is the head dimension, rounded up.
template <int Columns>
struct PrefillPolicy {
  static constexpr int columns = Columns;
  static constexpr int threads = 128;
  static constexpr int queries = 64;
  static constexpr int keys = 64;
  static constexpr int pitch = Columns + 8;  ///< puts eight rows of 16 bytes into different banks
  static constexpr int shared_bytes = (queries + 2 * keys) * pitch * 2;
};

/// 64 rows into shared memory; zeros beyond `valid` rows and `e` columns.
template <class Policy>
__device__ __forceinline__ void prefill_stage(bf16* to, const bf16* from, std::int64_t stride, int valid, int e) {
  static_assert(Policy::queries == 64 && Policy::keys == 64, "one shape of tile");
  constexpr int packs = Policy::columns / 8;
#pragma unroll 4
  for (int n = static_cast<int>(threadIdx.x); n < 64 * packs; n += Policy::threads) {
    const int row = n / packs;
    const int column = n % packs * 8;
    const bool there = row < valid && column < e;
    device::store8(to + row * Policy::pitch + column,
                   there ? device::load8(from + row * stride + column) : zero_pack());
  }
}

/// The running softmax of a warp's 16 queries: a lane holds rows lane/4 and lane/4 + 8, which the four lanes of a quad
/// share. `sum` is this lane's part.
struct PrefillSoftmax {
  float most[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0F, 0.0F};
};

/// Turns scores of a tile of 64 keys into probabilities relative to the running maximum; older results are multiplied
/// by `factor`. Every query sees key 0, which comes first, so the maximum is finite.
__device__ __forceinline__ void prefill_softmax(float (&s)[8][4], PrefillSoftmax& state, float scale, int base,
                                                const int (&limit)[2], float (&factor)[2]) {
  const int pair = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float here = state.most[half];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& score = s[n][half * 2 + c];
        score = base + n * 8 + pair + c < limit[half] ? score * scale : -INFINITY;
        here = fmaxf(here, score);
      }
    }
    here = fmaxf(here, __shfl_xor_sync(0xffffffffU, here, 1));
    here = fmaxf(here, __shfl_xor_sync(0xffffffffU, here, 2));
    factor[half] = exp2f(state.most[half] - here);
    state.most[half] = here;
    float sum = 0.0F;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& score = s[n][half * 2 + c];
        score = exp2f(score - here);
        sum += score;
      }
    }
    state.sum[half] = state.sum[half] * factor[half] + sum;
  }
}

template <class Policy>
static __global__ void __launch_bounds__(Policy::threads)
    prefill_kernel(AttentionShape shape, const CachedSequence<bf16>* __restrict__ sequences,
                   const bf16* __restrict__ qkv, float scale, Rows<bf16> o) {
  static_assert(Policy::columns % 32 == 0 && Policy::threads == 128, "four warps of 16 queries");
  extern __shared__ __align__(16) unsigned char prefill_shared[];
  const CachedSequence<bf16> sequence = sequences[blockIdx.z];
  const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * Policy::queries;  // blocks with the most keys first
  if (sequence.added == 1 || first >= sequence.added) return;
  auto* q_tile = reinterpret_cast<bf16*>(prefill_shared);
  bf16* k_tile = q_tile + Policy::queries * Policy::pitch;
  bf16* v_tile = k_tile + Policy::keys * Policy::pitch;
  const int e = shape.head_dim;
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = head / (shape.heads / shape.kv_heads);
  const int width = qkv_width(shape);
  const std::int64_t kv_width = std::int64_t{2} * shape.kv_heads * e;
  const bf16* keys = sequence.kv + std::int64_t{kv_head} * e;
  const bf16* values = keys + std::int64_t{shape.kv_heads} * e;
  const int history = sequence.length - sequence.added;
  const int count = min(Policy::queries, sequence.added - first);
  const int end = history + first + count;
  prefill_stage<Policy>(q_tile, qkv + (std::int64_t{sequence.first} + first) * width + std::int64_t{head} * e, width,
                        count, e);

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(threadIdx.x) / 32 * 16;  // the warp's first query
  const int limit[2] = {history + first + row + lane / 4 + 1, history + first + row + lane / 4 + 9};
  // Where a lane's ldmatrix address points: A and V load matrices (0,0) (8,0) (0,8) (8,8), K loads (0,0) (0,8) (8,0)
  // (8,8).
  const bf16* q_row = q_tile + (row + lane % 16) * Policy::pitch + lane / 16 * 8;
  const bf16* k_row = k_tile + (lane % 8 + lane / 16 * 8) * Policy::pitch + lane / 8 % 2 * 8;
  const bf16* v_row = v_tile + lane % 16 * Policy::pitch + lane / 16 * 8;
  PrefillSoftmax state;
  float out[Policy::columns / 8][4] = {};
  for (int base = 0; base < end; base += Policy::keys) {
    __syncthreads();  // the previous tiles have been read
    const int valid = min(Policy::keys, end - base);
    prefill_stage<Policy>(k_tile, keys + base * kv_width, kv_width, valid, e);
    prefill_stage<Policy>(v_tile, values + base * kv_width, kv_width, valid, e);
    __syncthreads();
    float s[8][4] = {};
#pragma unroll
    for (int k = 0; k < Policy::columns; k += 16) {
      std::uint32_t a[4];
      device::load_matrices(a, device::shared_address(q_row + k));
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        std::uint32_t b[4];
        device::load_matrices(b, device::shared_address(k_row + n * 16 * Policy::pitch + k));
        device::mma(s[2 * n], a, b[0], b[1]);
        device::mma(s[2 * n + 1], a, b[2], b[3]);
      }
    }
    float factor[2];
    prefill_softmax(s, state, scale, base, limit, factor);
#pragma unroll
    for (int n = 0; n < Policy::columns / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) out[n][c] *= factor[c / 2];
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {  // 16 keys: the accumulator layout of scores is the layout of A
      const std::uint32_t a[4] = {device::pack2(s[2 * k][0], s[2 * k][1]), device::pack2(s[2 * k][2], s[2 * k][3]),
                                  device::pack2(s[2 * k + 1][0], s[2 * k + 1][1]),
                                  device::pack2(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < Policy::columns / 16; ++n) {
        std::uint32_t b[4];
        device::load_transposed(b, device::shared_address(v_row + k * 16 * Policy::pitch + n * 16));
        device::mma(out[2 * n], a, b[0], b[1]);
        device::mma(out[2 * n + 1], a, b[2], b[3]);
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = state.sum[half];
    sum += __shfl_xor_sync(0xffffffffU, sum, 1);
    sum += __shfl_xor_sync(0xffffffffU, sum, 2);
    const int query = row + lane / 4 + half * 8;
    if (query >= count) continue;
    bf16* to = o.data + (std::int64_t{sequence.first} + first + query) * o.stride + std::int64_t{head} * e;
#pragma unroll
    for (int n = 0; n < Policy::columns / 8; ++n) {
      if (n * 8 < e) {
        const std::uint32_t pair = device::pack2(out[n][half * 2] / sum, out[n][half * 2 + 1] / sum);
        *reinterpret_cast<std::uint32_t*>(to + n * 8 + lane % 4 * 2) = pair;
      }
    }
  }
}

template <class Policy>
void launch_prefill(Context& context, const AttentionShape& shape, int sequences, int longest,
                    const CachedSequence<bf16>* staged, const bf16* qkv, float scale, Rows<bf16> o) {
  allow_shared(context, prefill_kernel<Policy>, Policy::shared_bytes, Carveout::usual,
               "attention_cached, many new tokens");
  const dim3 grid(static_cast<unsigned>((longest + Policy::queries - 1) / Policy::queries),
                  static_cast<unsigned>(shape.heads), static_cast<unsigned>(sequences));
  prefill_kernel<Policy><<<grid, Policy::threads, Policy::shared_bytes, context.stream>>>(shape, staged, qkv, scale, o);
  check_launch("attention_cached, many new tokens");
}

}  // namespace detail

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
