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
  static constexpr int stage_rows = keys;
  static constexpr int stages = 2;
  static constexpr int panel = keys * 128;
  static constexpr int tile = 2 * panel;        // K or V
  static constexpr int stage_bytes = 2 * tile;  // K, V
  static constexpr int shared_bytes = 1024 + own_bytes + stages * stage_bytes;
  static constexpr int fills = 1;     // the producer thread
  static constexpr int arrivals = 4;  // one per warp
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
__device__ __forceinline__ void copy_for_queries(const BackwardArgs& args, const TileOrder& order,
                                                 const CUtensorMap& qkv, const CUtensorMap& go, int items,
                                                 const HopperShared& shared) {
  using Tiles = HopperQueryTiles;
  const int value_columns = args.forward.kv_heads * Tiles::head_dim;
  HopperRing<Tiles::stages> ring(shared.barriers);
  for_items(items, [&](int index, std::uint32_t parity) {
    const HopperQueryItem item(args.forward, order, index);
    for (int key = item.range.first; key < item.range.last; key += Tiles::keys) {
      const std::uint32_t to = stage_at<Tiles>(shared, ring);
      ring.wait_empty();
      device::barrier_expect(ring.full(), Tiles::stage_bytes);
      copy_tile<Tiles::keys>(to, qkv, item.k_column, key, ring.full());
      copy_tile<Tiles::keys>(to + Tiles::tile, qkv, item.k_column + value_columns, key, ring.full());
      ring.advance();
      if (key == item.range.first) {
        copy_own(shared.own, shared.barriers + Tiles::stages * 16, parity, qkv, item.head * Tiles::head_dim, go,
                 item.head * Tiles::head_dim, item.first_row);
      }
    }
  });
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
                                                  const HopperShared& shared) {
  using Tiles = HopperQueryTiles;
  const AttentionArgs& forward = args.forward;
  const HopperConsumer<Tiles> consumer(shared);
  const float scale_log2 = forward.scale * log2_e;
  HopperRing<Tiles::stages> ring(shared.barriers);
  float s[16][4] = {};
  float dp[16][4] = {};
  for_items(items, [&](int index, std::uint32_t parity) {
    const HopperQueryItem item(forward, order, index);
    const int row = item.first_row + consumer.row;
    const int last = min(row + Tiles::group_rows, forward.tokens) - 1;
    const bool some = row <= last;  // otherwise this warpgroup's rows are past the last token
    const int first_key = some ? (row - forward.positions[row]) / Tiles::keys * Tiles::keys : item.range.last;
    const int last_start = some ? last - forward.positions[last] : 0;
    const HopperQueryRows rows(args, item.head, row);
    float gq[16][4] = {};
    const int first = skip_stages<Tiles>(ring, item.range.first, min(item.range.last, first_key));
    int key = first;
    device::barrier_wait(consumer.own_full, parity);
    for (; key <= last; key += Tiles::keys) {
      ring.wait_full();
      const std::uint32_t stage = stage_at<Tiles>(shared, ring);
      multiply_stage<Tiles>(s, dp, consumer.own, stage, ring, key == first);
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
    release(consumer.own_full + 8);
    skip_stages<Tiles>(ring, key, item.range.last);
    store_rows(gq, forward.scale, args.gqkv + item.head * Tiles::head_dim, forward.width, row, forward.tokens);
  });
}

/// The side of attention_hopper_kernel that owns queries.
struct HopperQuerySide {
  using Tiles = HopperQueryTiles;
  static constexpr int copiers = 1;
  static constexpr auto copy = copy_for_queries;
  static constexpr auto compute = add_keys_of_items;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
