// qlora/cuda/attention/forward.cuh — causal attention inside document pieces, forward pass, this library's kernels.
// Math       P = softmax(Q K^T / sqrt(E)) over keys j with t - positions[t] <= j <= t;  O = P V
//            lse = log sum exp of the scaled scores
// Shapes     qkv (T,(H+2K)E) bf16, rotated: H query heads, K key heads, K value heads; query head h reads h / (H/K)
//            o (T,HE) bf16, rows o.stride apart · lse (H,T) fp32 · positions (T)
// Writes     o lse with =
// Split      a block of 4 warps: one head and 128 queries of the flat token axis (which may span several pieces),
//            looping over tiles of keys from the start of the first query's piece. A warp has 32 queries, skips tiles
//            that none of them sees and masks only partly visible tiles. Blocks with the longest loops start first
// Needs      sm_80; E 32, 64 or 128; up to 97 KiB of shared memory (Q, and two stages of K and V: the next tile is
//            loaded while this one is used), so that two blocks fit a multiprocessor of sm_90
// Numbers    scores, softmax and sums fp32, exponentials as 2^x of scores times log2(e); P is rounded to bf16 before P
//            V and divided by the sum after it (the CPU reference divides first); fixed order. Masked scores have no
//            effect even when they are not finite; the first non-finite lse is reported
// Cost       4 E FLOP per visible pair and head, bound by mma.sync; 32 queries per warp because each fragment of K or V
//            read from shared memory then serves two products, which keeps shared memory below its bandwidth limit
// Reference  cpu/attention.hpp; Dao, FlashAttention-2 (2023), algorithm 1
#pragma once

#include "qlora/cuda/attention/common.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Tiles of the forward kernel.
template <int HeadDim>
struct ForwardTiles {
  static constexpr int head_dim = HeadDim;
  static constexpr int warps = 4;
  static constexpr int threads = warps * 32;
  static constexpr int blocks = 2;                     // of 16 queries, per warp
  static constexpr int queries = warps * blocks * 16;  // per block
  static constexpr int keys = 64;                      // per tile
  static constexpr int row_bytes = head_dim * 2;
  static constexpr int shared_bytes =
      (queries + 4 * keys) * row_bytes + queries * 4;  // Q, two stages of K and V, starts
  static constexpr int resident = 2;                   // blocks per multiprocessor, a bound on registers
};

/// Updates the running maximum, sum (this lane's columns only) and output with one tile of scores; returns packed P.
template <int Blocks, int Columns, int OutColumns>
__device__ __forceinline__ void softmax_step(const float (&s)[Blocks][Columns][4], float scale_log2,
                                             float (&largest)[Blocks][2], float (&sum)[Blocks][2],
                                             float (&out)[Blocks][OutColumns][4],
                                             std::uint32_t (&p)[Blocks][Columns][2]) {
#pragma unroll
  for (int i = 0; i < Blocks; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = largest[i][half];
#pragma unroll
      for (int n = 0; n < Columns; ++n) most = fmaxf(most, fmaxf(s[i][n][half * 2], s[i][n][half * 2 + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffU, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffU, most, 2));
      // A row without a visible key yet: its maximum is taken as 0, since -inf - -inf is NaN.
      const float shift = most == -INFINITY ? 0.0F : most * scale_log2;
      if (__any_sync(0xffffffffU, most != largest[i][half])) {  // rare late in a long loop
        const float factor = device::power_of_two(__fadd_rn(__fmul_rn(largest[i][half], scale_log2), -shift));
        sum[i][half] *= factor;
#pragma unroll
        for (int n = 0; n < OutColumns; ++n) {
          out[i][n][half * 2] *= factor;
          out[i][n][half * 2 + 1] *= factor;
        }
        largest[i][half] = most;
      }
      float added = 0.0F;
#pragma unroll
      for (int n = 0; n < Columns; ++n) {
        const float p0 = device::power_of_two(fmaf(s[i][n][half * 2], scale_log2, -shift));
        const float p1 = device::power_of_two(fmaf(s[i][n][half * 2 + 1], scale_log2, -shift));
        added += p0 + p1;
        p[i][n][half] = device::pack2(p0, p1);
      }
      sum[i][half] += added;
    }
  }
}

/// Divides by the row sum, whose columns four lanes share, and writes lse.
template <int Blocks, int OutColumns>
__device__ __forceinline__ void finish_rows(const AttentionArgs& args, int head, int row, float (&largest)[Blocks][2],
                                            float (&sum)[Blocks][2], float (&out)[Blocks][OutColumns][4], float* lse) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < Blocks; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = sum[i][half];
      total += __shfl_xor_sync(0xffffffffU, total, 1);
      total += __shfl_xor_sync(0xffffffffU, total, 2);
      const int t = row + i * 16 + half * 8 + lane / 4;
      if (lane % 4 == 0 && t < args.tokens) {
        const float value = largest[i][half] * args.scale + logf(total);
        lse[static_cast<std::int64_t>(head) * args.tokens + t] = value;
        if (!isfinite(value)) device::report(args.fault);
      }
      const float inverse = 1.0F / total;
#pragma unroll
      for (int n = 0; n < OutColumns; ++n) {
        out[i][n][half * 2] *= inverse;
        out[i][n][half * 2 + 1] *= inverse;
      }
    }
  }
}

template <class Tiles>
__global__ static void __launch_bounds__(Tiles::threads, Tiles::resident)
    attention_kernel(const AttentionArgs args, const __grid_constant__ TileOrder order, const Rows<bf16> o,
                     float* const lse) {
  constexpr int E = Tiles::head_dim;
  constexpr int columns = Tiles::keys / 8;
  static_assert(E % 32 == 0 && Tiles::keys % 16 == 0 && Tiles::queries % Tiles::keys == 0, "attention: tile sizes");
  static_assert(Tiles::queries == Tiles::threads, "attention: a thread loads one row's start");
  static_assert(Tiles::shared_bytes <= 99 * 1024, "attention: a block's shared memory on sm_86 and sm_89");
  extern __shared__ __align__(256) unsigned char attention_shared[];
  constexpr std::uint32_t tile_bytes = Tiles::keys * Tiles::row_bytes;
  const std::uint32_t q_tile = device::shared_address(attention_shared);
  const std::uint32_t kv_tiles = q_tile + Tiles::queries * Tiles::row_bytes;  // K V, K V

  const int head = static_cast<int>(blockIdx.x);
  const int kv = head / (args.heads / args.kv_heads);
  const bf16* const k = args.qkv + (args.heads + kv) * E;
  const int first_row = tile_of(order, blockIdx.y) * Tiles::queries;
  const TileRange range =
      key_range(first_row - args.positions[first_row], min(first_row + Tiles::queries, args.tokens), Tiles::keys);
  const auto load = [&](int key, std::uint32_t stage) {
    device::load_tile<E, Tiles::keys, Tiles::threads>(stage, k, args.width, key, range.last);
    device::load_tile<E, Tiles::keys, Tiles::threads>(stage + tile_bytes, k + args.kv_heads * E, args.width, key,
                                                      range.last);
    device::copies_commit();
  };
  device::load_tile<E, Tiles::queries, Tiles::threads>(q_tile, args.qkv + head * E, args.width, first_row, range.last);
  load(range.first, kv_tiles);

  const int warp_offset = static_cast<int>(threadIdx.x) / 32 * Tiles::blocks * 16;
  const int row = first_row + warp_offset;
  const int last = min(row + Tiles::blocks * 16, args.tokens) - 1;
  int* const starts = reinterpret_cast<int*>(attention_shared + (Tiles::queries + 4 * Tiles::keys) * Tiles::row_bytes);
  load_starts(args, first_row, starts);
  const auto q_lanes = device::lanes_down<E>(q_tile + static_cast<std::uint32_t>(warp_offset * Tiles::row_bytes));
  float out[Tiles::blocks][E / 8][4] = {};
  float largest[Tiles::blocks][2];
  float sum[Tiles::blocks][2] = {};
#pragma unroll
  for (int i = 0; i < Tiles::blocks; ++i) largest[i][0] = largest[i][1] = -INFINITY;

  std::uint32_t other = kv_tiles;
  for (int key = range.first; key < range.last; key += Tiles::keys) {
    device::copies_wait();
    const std::uint32_t stage = other;
    other = kv_tiles + (stage == kv_tiles ? 2 * tile_bytes : 0);
    __syncthreads();  // this tile has arrived, and all warps have finished with the other stage
    if (key + Tiles::keys < range.last) load(key + Tiles::keys, other);
    const TileUse use = warp_use(starts + warp_offset, row, last, key, Tiles::keys);
    if (use == TileUse::none) continue;
    float s[Tiles::blocks][columns][4];
    device::product_nt<E>(s, q_lanes, device::lanes_across<E>(stage));
    if (use == TileUse::part) mask_keys(s, starts + warp_offset, row, key, -INFINITY);
    std::uint32_t p[Tiles::blocks][columns][2];
    softmax_step(s, args.scale * log2_e, largest, sum, out, p);
    device::product_nn<E>(out, p, device::lanes_down<E>(stage + tile_bytes));
  }
  if (row > last) return;
  finish_rows(args, head, row, largest, sum, out, lse);
  device::store_tile<E>(out, attention_shared + warp_offset * Tiles::row_bytes, o.data + head * E, o.stride, row,
                        args.tokens);
}

}  // namespace detail

QLORA_CUDA_LAUNCHER std::int64_t own_attention_scratch(const AttentionShape& shape, int tokens) {
  return arena_bytes(std::int64_t{shape.heads} * tokens * static_cast<std::int64_t>(sizeof(float)));
}

QLORA_CUDA_LAUNCHER void own_attention(Context& context, const AttentionShape& shape, const TokenBatch& batch,
                                       const bf16* qkv, Rows<bf16> o, float* lse, void* /*scratch*/,
                                       std::int64_t /*scratch_bytes*/) {
  detail::check_attention(shape, o.stride);
  if (batch.tokens <= 0) return;
  const detail::AttentionArgs args = detail::attention_args(context, shape, batch, qkv);
  detail::for_head_dim(shape.head_dim, [&](auto dim) {
    using Tiles = detail::ForwardTiles<dim()>;
    const dim3 grid(static_cast<unsigned int>(shape.heads), detail::tiles_of(batch.tokens, Tiles::queries));
    detail::launch_tiles(context, "attention", detail::attention_kernel<Tiles>, grid, Tiles::threads,
                         Tiles::shared_bytes, args, heavy_first(batch.tokens, Tiles::queries, false, batch.segments), o,
                         lse);
  });
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
