// qlora/cuda/attention/hopper_keys.cuh — attention backward pass on Hopper: the kernel for gradients of keys and
// values.
// Math       P = exp(Q K^T / sqrt(E) - lse) where visible, else 0;  dS = P o (gO V^T - delta)
//            gV = P^T gO;  gK = dS^T Q / sqrt(E); both summed over a kv head's query heads
// Shapes     qkv gqkv (T,(H+2K)E) bf16 · go (T,HE) bf16 · lse delta (H,T) fp32 · ends (T)
// Writes     the key and value heads of gqkv with =
// Split      an item is a kv head and 128 keys, 64 per warpgroup. It loops over the query heads and their tiles of 64
//            queries, which pass through a ring of four stages together with lse and delta. Scores are transposed, so
//            P^T and dS^T pass from accumulators to operands in registers
// Needs      sm_90a; E 128; 195 KiB of shared memory
// Numbers    as backward.cuh
// Cost       8 E FLOP per visible pair and query head, bound by wgmma. A warpgroup overlaps gO V^T with exponentials
//            and P^T gO with the computation of dS; it waits for dS^T Q only after the next tile's scores
// Reference  cpu/attention.hpp
#pragma once

#include "qlora/cuda/attention/hopper_common.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

struct HopperKeyTiles : HopperSplit {
  static constexpr int queries = 64;  // per stage
  static constexpr int stage_rows = queries;
  static constexpr int stages = 4;
  static constexpr int panel = queries * 128;
  static constexpr int tile = 2 * panel;          // Q or gO
  static constexpr int stage_bytes = 2 * tile;    // Q, gO
  static constexpr int statistics = 2 * queries;  // floats per stage: -lse log2(e), delta
  static constexpr int shared_bytes = 1024 + own_bytes + stages * (stage_bytes + statistics * 4);
  // Full: one arrival per copying lane, two for the lane that also starts tile copies. Empty: one per thread that reads
  // lse and delta, since threads write these and each writer must know that all reads are complete.
  static constexpr int fills = 33;
  static constexpr int arrivals = 128;
};

/// One item: a kv head, a tile of keys, and the range of queries that see them.
struct HopperKeyItem {
  int kv;
  int first_key;
  TileRange range;
  __device__ __forceinline__ HopperKeyItem(const BackwardArgs& args, const TileOrder& order, int item) {
    using Tiles = HopperKeyTiles;
    kv = item % args.forward.kv_heads;
    first_key = tile_of(order, static_cast<unsigned>(item / args.forward.kv_heads)) * Tiles::rows;
    range = query_range(first_key, args.ends[min(first_key + Tiles::rows, args.forward.tokens) - 1], Tiles::queries);
  }
};

/// The producer warp: one lane starts the tile copies, all lanes copy lse and delta.
__device__ __forceinline__ void copy_for_keys(const BackwardArgs& args, const TileOrder& order, const CUtensorMap& qkv,
                                              const CUtensorMap& go, int items, const HopperShared& shared) {
  using Tiles = HopperKeyTiles;
  const AttentionArgs& forward = args.forward;
  const int group = forward.heads / forward.kv_heads;
  const auto lane = static_cast<int>(threadIdx.x);
  HopperRing<Tiles::stages> ring(shared.barriers);
  for_items(items, [&](int index, std::uint32_t parity) {
    const HopperKeyItem item(args, order, index);
    const int k_column = (forward.heads + item.kv) * Tiles::head_dim;
    bool own_missing = true;
    for (int head = item.kv * group; head < (item.kv + 1) * group; ++head) {
      const std::int64_t line = static_cast<std::int64_t>(head) * forward.tokens;
      for (int query = item.range.first; query < item.range.last; query += Tiles::queries) {
        ring.wait_empty();
        if (lane == 0) {
          const std::uint32_t to = stage_at<Tiles>(shared, ring);
          device::barrier_expect(ring.full(), Tiles::stage_bytes);
          copy_tile<Tiles::queries>(to, qkv, head * Tiles::head_dim, query, ring.full());
          copy_tile<Tiles::queries>(to + Tiles::tile, go, head * Tiles::head_dim, query, ring.full());
        }
        float* const to = shared.statistics + ring.stage() * Tiles::statistics;
#pragma unroll
        for (int i = lane; i < Tiles::queries; i += 32) {
          const bool inside = query + i < item.range.last;
          to[i] = inside ? args.lse[line + query + i] * -log2_e : 0.0F;
          to[Tiles::queries + i] = inside ? args.delta[line + query + i] : 0.0F;
        }
        device::barrier_arrive(ring.full());
        ring.advance();
        if (own_missing && lane == 0) {
          copy_own(shared.own, shared.barriers + Tiles::stages * 16, parity, qkv, k_column, qkv,
                   k_column + forward.kv_heads * Tiles::head_dim, item.first_key);
        }
        own_missing = false;
        __syncwarp();
      }
    }
  });
}

/// Turns scores of a warpgroup's keys [first_key, ...) and queries [query, query + 64) into P.
__device__ __forceinline__ void weigh_queries(float (&s)[8][4], const BackwardArgs& args, const float* statistics,
                                              int first_key, int query, bool masked) {
  const float scale_log2 = args.forward.scale * log2_e;
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float2 lse = *reinterpret_cast<const float2*>(statistics + n * 8 + column);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      s[n][e] = device::power_of_two(fmaf(s[n][e], scale_log2, e % 2 == 0 ? lse.x : lse.y));
    }
  }
  if (!masked) return;
  const int warp = static_cast<int>(threadIdx.x) % 128 / 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = first_key + warp * 16 + half * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
    const int end = j < args.forward.tokens ? args.ends[j] : 0;  // read here, because registers are scarce
    const int from = j - query - column;
    const int to = end - query - column;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (n * 8 + e < from || n * 8 + e >= to) s[n][half * 2 + e] = 0.0F;
      }
    }
  }
}
/// Turns P into dS, both packed as operands.
__device__ __forceinline__ void weigh_gradients(const float (&dp)[8][4], const float* statistics,
                                                std::uint32_t (&operands)[4][4]) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float2 delta = *reinterpret_cast<const float2*>(statistics + HopperKeyTiles::queries + n * 8 + column);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::uint32_t& both = operands[n / 2][n % 2 * 2 + half];
      const float2 weight = device::unpack2(both);
      both = device::pack2(weight.x * (dp[n][half * 2] - delta.x), weight.y * (dp[n][half * 2 + 1] - delta.y));
    }
  }
}

/// A consumer warpgroup.
__device__ __forceinline__ void add_queries_of_items(const BackwardArgs& args, const TileOrder& order, int items,
                                                     const HopperShared& shared) {
  using Tiles = HopperKeyTiles;
  const AttentionArgs& forward = args.forward;
  const HopperConsumer<Tiles> consumer(shared);
  const int heads = forward.heads / forward.kv_heads;
  HopperRing<Tiles::stages> ring(shared.barriers);
  float s[8][4] = {};
  float dp[8][4] = {};
  for_items(items, [&](int index, std::uint32_t parity) {
    const HopperKeyItem item(args, order, index);
    const int first_key = item.first_key + consumer.row;
    const int last_key = min(first_key + Tiles::group_rows, forward.tokens) - 1;
    const bool some = first_key <= last_key;  // otherwise this warpgroup's keys are past the last token
    const int first_end = some ? args.ends[first_key] : 0;
    const int last_end = some ? args.ends[last_key] : 0;
    float gk[16][4] = {};
    float gv[16][4] = {};
    device::barrier_wait(consumer.own_full, parity);
    for (int head = 0; head < heads; ++head) {
      int query = skip_stages<Tiles>(ring, item.range.first, min(item.range.last, first_key));
      for (; query < last_end; query += Tiles::queries) {
        ring.wait_full();
        const std::uint32_t stage = stage_at<Tiles>(shared, ring);
        const float* const of_stage = shared.statistics + ring.stage() * Tiles::statistics;
        multiply_stage<Tiles>(s, dp, consumer.own, stage, ring, query == first_key);
        weigh_queries(s, args, of_stage, first_key, query, query == first_key || query + Tiles::queries > first_end);
        std::uint32_t p[4][4];
        pack_operands(s, p);
        std::uint32_t ds[4][4];
        device::copy_registers(p, ds);
        device::settled(p);
        device::products_begin();
        device::product_down(gv, p, device::operand_down(stage + Tiles::tile, Tiles::panel));
        device::products_commit();
        device::products_wait<1>();
        device::settled(dp);
        weigh_gradients(dp, of_stage, ds);
        device::settled(ds);
        device::products_begin();
        device::product_down(gk, ds, device::operand_down(stage, Tiles::panel));
        device::products_commit();
        ring.advance();
      }
      device::products_wait<0>();
      device::settled(gk);
      device::settled(gv);
      if (some) release<Tiles::arrivals>(ring.empty_before());
      skip_stages<Tiles>(ring, query, item.range.last);
    }
    release(consumer.own_full + 8);
    bf16* const to = args.gqkv + (forward.heads + item.kv) * Tiles::head_dim;
    store_rows(gk, forward.scale, to, forward.width, first_key, forward.tokens);
    store_rows(gv, 1.0F, to + forward.kv_heads * Tiles::head_dim, forward.width, first_key, forward.tokens);
  });
}

/// The side of attention_hopper_kernel that owns keys and values.
struct HopperKeySide {
  using Tiles = HopperKeyTiles;
  static constexpr int copiers = 32;
  static constexpr auto copy = copy_for_keys;
  static constexpr auto compute = add_queries_of_items;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
