// qlora/cuda/attention/hopper_queries.cuh — attention backward pass on Hopper: the kernel for gradients of queries.
// Math       P = exp(Q K^T / sqrt(E) - lse) where visible, else 0;  dS = P o (gO V^T - delta);  gQ = dS K / sqrt(E)
// Shapes     qkv gqkv (T,(H+2K)E) bf16 · go (T,HE) bf16 · lse delta (H,T) fp32 · positions (T)
// Writes     the query heads of gqkv with =
// Split      an item is a head and 128 queries, 64 per warpgroup; tiles of 128 keys and values pass through a ring of
//            two stages
// Needs      sm_90a; E 128; 193 KiB of shared memory
// Numbers    as backward.cuh, but dS uses P before rounding
// Cost       6 E FLOP per visible pair and head, bound by wgmma. One warpgroup multiplies while the other computes
//            exponentials. Within a warpgroup, scores overlap with the gradient of the previous tile, and gO V^T with
//            exponentials
// Reference  cpu/attention.hpp
#pragma once

#include "qlora/cuda/attention/hopper_common.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

struct HopperQueryTiles : HopperSplit {
  static constexpr int keys = 128;  // per stage
  static constexpr int stages = 2;
  static constexpr int panel = keys * 128;
  static constexpr int tile = 2 * panel;        // K or V
  static constexpr int stage_bytes = 2 * tile;  // K, V
  static constexpr int shared_bytes = 1024 + own_bytes + stages * stage_bytes;
};

/// One item: a head, its kv head, a tile of queries, and the range of keys that they see.
struct HopperQueryItem {
  int head;
  int k_column;
  int first_row;
  TileRange range;
  __device__ __forceinline__ HopperQueryItem(const AttentionArgs& args, const TileOrder& order, int item) {
    using Tiles = HopperQueryTiles;
    head = item % args.heads;
    k_column = (args.heads + head / (args.heads / args.kv_heads)) * Tiles::head_dim;
    first_row = tile_of(order, static_cast<unsigned>(item / args.heads)) * Tiles::rows;
    range = key_range(first_row - args.positions[first_row], min(first_row + Tiles::rows, args.tokens), Tiles::keys);
  }
};

/// The producer thread.
__device__ __forceinline__ void copy_for_queries(const AttentionArgs& args, const TileOrder& order,
                                                 const CUtensorMap& qkv, const CUtensorMap& go, int items,
                                                 std::uint32_t own, std::uint32_t barriers) {
  using Tiles = HopperQueryTiles;
  HopperRing<Tiles::stages> ring(barriers);
  std::uint32_t parity = 0;
  for (int round = 0; round * static_cast<int>(gridDim.x) < items; ++round) {
    if (item_of(round) >= items) continue;
    const HopperQueryItem item(args, order, item_of(round));
    for (int key = item.range.first; key < item.range.last; key += Tiles::keys) {
      const std::uint32_t to = own + Tiles::own_bytes + ring.stage() * Tiles::stage_bytes;
      ring.wait_empty();
      device::barrier_expect(ring.full(), Tiles::stage_bytes);
      copy_tile<Tiles::keys>(to, qkv, item.k_column, key, ring.full());
      copy_tile<Tiles::keys>(to + Tiles::tile, qkv, item.k_column + args.kv_heads * Tiles::head_dim, key, ring.full());
      ring.advance();
      if (key == item.range.first) {
        copy_own(own, barriers + Tiles::stages * 16, parity, qkv, item.head * Tiles::head_dim, go,
                 item.head * Tiles::head_dim, item.first_row);
      }
    }
    parity ^= 1U;
  }
}

/// Per-thread state of its two rows, eight apart.
struct HopperQueryRows {
  int t;         // the first row
  int start[2];  // first visible key of each row
  float lse[2];  // multiplied by log2(e)
  float delta[2];
  __device__ __forceinline__ HopperQueryRows(const BackwardArgs& args, int head, int row) {
    const auto thread = static_cast<int>(threadIdx.x) % 128;
    const int tokens = args.forward.tokens;
    t = row + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = t + half * 8;
      const bool inside = at < tokens;
      const std::int64_t statistic = static_cast<std::int64_t>(head) * tokens + at;
      start[half] = inside ? at - args.forward.positions[at] : at + 1;
      lse[half] = inside ? args.lse[statistic] * log2_e : 0.0F;
      delta[half] = inside ? args.delta[statistic] : 0.0F;
    }
  }
};

/// Turns scores into P.
__device__ __forceinline__ void weigh_keys(float (&s)[16][4], const HopperQueryRows& rows, float scale_log2, int key,
                                           bool masked) {
  if (masked) {
    const int column = key + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int j = column + n * 8 + e % 2;
        if (j < rows.start[e / 2] || j > rows.t + e / 2 * 8) s[n][e] = -INFINITY;
      }
    }
  }
#pragma unroll
  for (int n = 0; n < 16; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] = device::power_of_two(fmaf(s[n][e], scale_log2, -rows.lse[e / 2]));
  }
}

/// Turns P and gO V^T of 32 keys into dS, packed as operands.
__device__ __forceinline__ void weigh_gradients(const float (&p)[16][4], const float (&dp)[16][4],
                                                const HopperQueryRows& rows, int part,
                                                std::uint32_t (&operands)[2][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int n = part * 4 + i;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      operands[i / 2][i % 2 * 2 + half] = device::pack2(p[n][half * 2] * (dp[n][half * 2] - rows.delta[half]),
                                                        p[n][half * 2 + 1] * (dp[n][half * 2 + 1] - rows.delta[half]));
    }
  }
}

/// A consumer warpgroup.
__device__ __forceinline__ void add_keys_of_items(const BackwardArgs& args, const TileOrder& order, int items,
                                                  std::uint32_t tiles, std::uint32_t barriers) {
  using Tiles = HopperQueryTiles;
  const AttentionArgs& forward = args.forward;
  const int group = static_cast<int>(threadIdx.x) / 128 - 1;
  const std::uint32_t own = tiles + static_cast<std::uint32_t>(group * 2 * Tiles::own_tile);
  const std::uint32_t own_full = barriers + static_cast<std::uint32_t>((Tiles::stages + group) * 16);
  const float scale_log2 = forward.scale * log2_e;
  HopperRing<Tiles::stages> ring(barriers);
  std::uint32_t parity = 0;
  float s[16][4] = {};
  float dp[16][4] = {};
  for (int round = 0; round * static_cast<int>(gridDim.x) < items; ++round) {
    if (item_of(round) >= items) continue;
    const HopperQueryItem item(forward, order, item_of(round));
    const int row = item.first_row + group * Tiles::group_rows;
    const int last = min(row + Tiles::group_rows, forward.tokens) - 1;
    const bool some = row <= last;  // otherwise this warpgroup's rows are past the last token
    const int first_key = some ? (row - forward.positions[row]) / Tiles::keys * Tiles::keys : item.range.last;
    const int last_start = some ? last - forward.positions[last] : 0;
    const HopperQueryRows rows(args, item.head, row);
    float gq[16][4] = {};
    int key = item.range.first;
    for (; key < item.range.last && key < first_key; key += Tiles::keys) {
      ring.wait_full();
      release(ring.empty());
      ring.advance();
    }
    device::barrier_wait(own_full, parity);
    const int first = key;
    for (; key <= last; key += Tiles::keys) {
      ring.wait_full();
      const std::uint32_t stage = tiles + Tiles::own_bytes + ring.stage() * Tiles::stage_bytes;
      device::products_begin();
      device::product_along(s, device::operand_along(own), Tiles::own_panel, device::operand_along(stage),
                            Tiles::panel);
      device::products_commit();
      device::products_wait<1>();  // the gradient of the previous tile
      if (key != first) release(ring.empty_before());
      device::products_begin();
      device::product_along(dp, device::operand_along(own + Tiles::own_tile), Tiles::own_panel,
                            device::operand_along(stage + Tiles::tile), Tiles::panel);
      device::products_commit();
      device::products_wait<1>();
      device::settled(s);
      weigh_keys(s, rows, scale_log2, key, key + Tiles::keys - 1 > row || key < last_start);
      device::products_wait<0>();
      device::settled(dp);
      const std::uint64_t k_down = device::operand_down(stage, Tiles::panel);
      std::uint32_t ds[4][2][4];
#pragma unroll
      for (int part = 0; part < 4; ++part) {  // 32 keys: their product overlaps with dS of the next 32
        weigh_gradients(s, dp, rows, part, ds[part]);
        device::settled(ds[part]);
        device::products_begin();
        device::product_down(gq, ds[part], device::operand_at(k_down, part * 32 * 128));
      }
      device::products_commit();
      ring.advance();
    }
    device::products_wait<0>();
    device::settled(gq);
    if (key != first) release(ring.empty_before());
    release(own_full + 8);
    for (; key < item.range.last; key += Tiles::keys) {
      ring.wait_full();
      release(ring.empty());
      ring.advance();
    }
    store_rows(gq, forward.scale, args.gqkv + item.head * Tiles::head_dim, forward.width, row, forward.tokens);
    parity ^= 1U;
  }
}

/// Without sm_90a this kernel has no body and no static shared memory.
__global__ static void __launch_bounds__(HopperQueryTiles::threads, 1)
    attention_hopper_queries_kernel(const __grid_constant__ CUtensorMap qkv, const __grid_constant__ CUtensorMap go,
                                    const BackwardArgs args, const __grid_constant__ TileOrder order, const int items) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Tiles = HopperQueryTiles;
  static_assert(Tiles::shared_bytes <= 226 * 1024, "attention: a block's shared memory on sm_90");
  extern __shared__ __align__(1024) unsigned char hopper_shared[];
  __shared__ __align__(16) std::uint64_t barrier_words[2 * (Tiles::stages + Tiles::groups)];
  const std::uint32_t tiles = (device::shared_address(hopper_shared) + 1023U) & ~1023U;
  const std::uint32_t barriers = device::shared_address(barrier_words);
  init_barriers<Tiles::stages>(barriers, 1, 4);
  if (threadIdx.x < 128) {
    device::registers_give<Tiles::copy_registers>();
    if (threadIdx.x == 0) copy_for_queries(args.forward, order, qkv, go, items, tiles, barriers);
  } else {
    device::registers_take<Tiles::multiply_registers>();
    add_keys_of_items(args, order, items, tiles, barriers);
  }
#endif
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
