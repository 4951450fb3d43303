// qlora/cuda/attention/backward_keys.cuh — attention backward pass: the kernel for gradients of keys and values.
// Math       as backward.cuh; P = exp(Q K^T / sqrt(E) - lse), gV = P^T gO, gK = dS^T Q / sqrt(E)
// Shapes     qkv gqkv (T,(H+2K)E) bf16 · go (T,HE) bf16 · lse delta (H,T) fp32 · ends (T)
// Writes     the key and value heads of gqkv with =
// Split      a block of 4 warps owns one kv head and a tile of keys; it loops over the query heads that read them and
//            over tiles of queries up to the end of the last key's piece. A warp has 16 or 32 keys; its P^T and dS^T
//            are accumulators of one product and operands of the next, and stay in registers
// Needs      sm_80; two stages of Q, gO, lse and delta beside K and V in shared memory, 97 KiB at E = 128
// Numbers    as backward.cuh
// Cost       8 E FLOP per visible pair and query head
// Reference  cpu/attention.hpp
#pragma once

#include "qlora/cuda/attention/common.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Tiles of the kernel for keys and values. 16 keys a warp at E = 128: gK and gV then take 128 registers a thread.
template <int HeadDim>
struct BackwardKeyTiles {
  static constexpr int head_dim = HeadDim;
  static constexpr int warps = 4;
  static constexpr int threads = warps * 32;
  static constexpr int blocks = HeadDim == 128 ? 1 : 2;     // of 16 keys, per warp
  static constexpr int keys = warps * blocks * 16;          // per block
  static constexpr int queries = HeadDim == 128 ? 64 : 32;  // per tile
  static constexpr int row_bytes = head_dim * 2;
  static constexpr int stage_bytes = 2 * queries * row_bytes + 2 * queries * 4;  // Q, gO, lse, delta
  static constexpr int shared_bytes = 2 * keys * row_bytes + 2 * stage_bytes;
  static constexpr int resident = 2;
};

/// Sets transposed scores of keys [key, ...) and queries [query, ...) to 0 where the pair is not visible.
template <int Blocks, int Columns>
__device__ __forceinline__ void hide_queries(float (&p)[Blocks][Columns][4], const BackwardArgs& args, int key,
                                             int query) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < Blocks; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int j = key + i * 16 + half * 8 + lane / 4;
      const int end = j < args.forward.tokens ? args.ends[j] : 0;
#pragma unroll
      for (int n = 0; n < Columns; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int t = query + n * 8 + lane % 4 * 2 + e;
          if (t < j || t >= end) p[i][n][half * 2 + e] = 0.0F;
        }
      }
    }
  }
}

template <int Blocks, int Columns>
__device__ __forceinline__ void pack_all(const float (&from)[Blocks][Columns][4],
                                         std::uint32_t (&to)[Blocks][Columns][2]) {
#pragma unroll
  for (int i = 0; i < Blocks; ++i) {
#pragma unroll
    for (int n = 0; n < Columns; ++n) {
      to[i][n][0] = device::pack2(from[i][n][0], from[i][n][1]);
      to[i][n][1] = device::pack2(from[i][n][2], from[i][n][3]);
    }
  }
}

/// Adds one tile of queries (Q, gO, lse and delta in `stage`) to gK and gV of a warp's keys [key, ...).
template <class Tiles>
__device__ __forceinline__ void add_queries(const BackwardArgs& args, const device::LaneRow<Tiles::head_dim>& k_lanes,
                                            const device::LaneRow<Tiles::head_dim>& v_lanes, std::uint32_t stage,
                                            const float* statistics, bool masked, int key, int query,
                                            float (&gk)[Tiles::blocks][Tiles::head_dim / 8][4],
                                            float (&gv)[Tiles::blocks][Tiles::head_dim / 8][4]) {
  constexpr int E = Tiles::head_dim;
  constexpr int columns = Tiles::queries / 8;
  constexpr std::uint32_t tile_bytes = Tiles::queries * Tiles::row_bytes;
  const float scale_log2 = args.forward.scale * log2_e;
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
  float s[Tiles::blocks][columns][4];
  device::product_nt<E>(s, k_lanes, device::lanes_across<E>(stage));
#pragma unroll
  for (int n = 0; n < columns; ++n) {
    const float2 lse = *reinterpret_cast<const float2*>(statistics + n * 8 + column);
#pragma unroll
    for (int i = 0; i < Tiles::blocks; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[i][n][e] = device::power_of_two(fmaf(s[i][n][e], scale_log2, (e % 2 == 0 ? lse.x : lse.y) * -log2_e));
      }
    }
  }
  if (masked) hide_queries(s, args, key, query);
  std::uint32_t p[Tiles::blocks][columns][2];
  pack_all(s, p);
  device::product_nn<E>(gv, p, device::lanes_down<E>(stage + tile_bytes));
  device::product_nt<E>(s, v_lanes, device::lanes_across<E>(stage + tile_bytes));
#pragma unroll
  for (int n = 0; n < columns; ++n) {
    const float2 delta = *reinterpret_cast<const float2*>(statistics + Tiles::queries + n * 8 + column);
#pragma unroll
    for (int i = 0; i < Tiles::blocks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 weight = device::unpack2(p[i][n][half]);
        p[i][n][half] =
            device::pack2(weight.x * (s[i][n][half * 2] - delta.x), weight.y * (s[i][n][half * 2 + 1] - delta.y));
      }
    }
  }
  device::product_nn<E>(gk, p, device::lanes_down<E>(stage));
}

/// Loads Q, gO, lse and delta of queries [query, query + Tiles::queries) of a head; zeros from `limit` on.
template <class Tiles>
__device__ __forceinline__ void load_queries(const BackwardArgs& args, std::uint32_t stage, int head, int query,
                                             int limit) {
  constexpr int E = Tiles::head_dim;
  constexpr std::uint32_t tile_bytes = Tiles::queries * Tiles::row_bytes;
  static_assert(2 * Tiles::queries <= Tiles::threads, "attention: a thread loads one number");
  device::load_tile<E, Tiles::queries, Tiles::threads>(stage, args.forward.qkv + head * E, args.forward.width, query,
                                                       limit);
  device::load_tile<E, Tiles::queries, Tiles::threads>(stage + tile_bytes, args.go.data + head * E, args.go.stride,
                                                       query, limit);
  const auto i = static_cast<int>(threadIdx.x);
  if (i < 2 * Tiles::queries) {
    const float* const from = i < Tiles::queries ? args.lse : args.delta;
    const int t = query + i % Tiles::queries;
    const bool inside = t < limit;
    device::copy_async4(stage + 2 * tile_bytes + static_cast<std::uint32_t>(i * 4),
                        from + static_cast<std::int64_t>(head) * args.forward.tokens + (inside ? t : 0), inside);
  }
  device::copies_commit();
}

template <class Tiles>
__global__ static void __launch_bounds__(Tiles::threads, Tiles::resident)
    attention_backward_keys_kernel(const BackwardArgs args, const __grid_constant__ TileOrder order) {
  constexpr int E = Tiles::head_dim;
  static_assert(Tiles::keys % Tiles::queries == 0 && Tiles::queries % 16 == 0, "attention: tile sizes");
  static_assert(Tiles::shared_bytes <= 99 * 1024, "attention: a block's shared memory on sm_86 and sm_89");
  static_assert(Tiles::stage_bytes % 256 == 0, "attention: tiles start on 256 bytes");
  extern __shared__ __align__(256) unsigned char attention_shared[];
  constexpr int tile_bytes = Tiles::keys * Tiles::row_bytes;
  const std::uint32_t k_tile = device::shared_address(attention_shared);
  const std::uint32_t v_tile = k_tile + tile_bytes;

  const AttentionArgs& forward = args.forward;
  const int kv = static_cast<int>(blockIdx.x);
  const int group = forward.heads / forward.kv_heads;
  const int k_column = (forward.heads + kv) * E;
  const int v_column = k_column + forward.kv_heads * E;
  const int first_key = tile_of(order, blockIdx.y) * Tiles::keys;
  const int keys_end = min(first_key + Tiles::keys, forward.tokens);
  const TileRange range = query_range(first_key, args.ends[keys_end - 1], Tiles::queries);
  const int tiles = range.tiles(Tiles::queries);
  device::load_tile<E, Tiles::keys, Tiles::threads>(k_tile, forward.qkv + k_column, forward.width, first_key, keys_end);
  device::load_tile<E, Tiles::keys, Tiles::threads>(v_tile, forward.qkv + v_column, forward.width, first_key, keys_end);
  load_queries<Tiles>(args, v_tile + tile_bytes, kv * group, range.first, range.last);

  const int warp_offset = static_cast<int>(threadIdx.x) / 32 * Tiles::blocks * 16;
  const int key = first_key + warp_offset;
  const int last_key = min(key + Tiles::blocks * 16, forward.tokens) - 1;
  const int first_end = key <= last_key ? args.ends[key] : 0;
  const int last_end = key <= last_key ? args.ends[last_key] : 0;
  const auto k_lanes = device::lanes_down<E>(k_tile + static_cast<std::uint32_t>(warp_offset * Tiles::row_bytes));
  const auto v_lanes = device::lanes_down<E>(v_tile + static_cast<std::uint32_t>(warp_offset * Tiles::row_bytes));
  float gk[Tiles::blocks][E / 8][4] = {};
  float gv[Tiles::blocks][E / 8][4] = {};

  int head = kv * group;
  int query = range.first;
  for (int step = 0; step < group * tiles; ++step) {
    const int here = 2 * tile_bytes + (step & 1) * Tiles::stage_bytes;
    const int there = 2 * tile_bytes + ((step + 1) & 1) * Tiles::stage_bytes;
    const bool head_ends = query + Tiles::queries >= range.last;
    const int next_head = head_ends ? head + 1 : head;
    const int next_query = head_ends ? range.first : query + Tiles::queries;
    device::copies_wait();
    __syncthreads();  // this tile has arrived, and all warps have finished with the other stage
    if (step + 1 < group * tiles) {
      load_queries<Tiles>(args, k_tile + static_cast<std::uint32_t>(there), next_head, next_query, range.last);
    }
    const TileUse use = queries_use(key, last_key, first_end, last_end, query, Tiles::queries);
    if (use != TileUse::none) {
      const auto* statistics =
          reinterpret_cast<const float*>(attention_shared + here + 2 * Tiles::queries * Tiles::row_bytes);
      add_queries<Tiles>(args, k_lanes, v_lanes, k_tile + static_cast<std::uint32_t>(here), statistics,
                         use == TileUse::part, key, query, gk, gv);
    }
    head = next_head;
    query = next_query;
  }
  multiply(gk, forward.scale);
  unsigned char* const own = attention_shared + warp_offset * Tiles::row_bytes;
  device::store_tile<E>(gk, own, args.gqkv + k_column, forward.width, key, forward.tokens);
  device::store_tile<E>(gv, own + tile_bytes, args.gqkv + v_column, forward.width, key, forward.tokens);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
