// qlora/cuda/attention/backward.cuh — causal attention inside document pieces, backward pass, this library's kernels.
// Math       P = exp(Q K^T / sqrt(E) - lse) where visible, else 0;  delta = rowsum(gO o O);  dS = P o (gO V^T - delta)
//            gV = P^T gO;  gK = dS^T Q / sqrt(E);  gQ = dS K / sqrt(E); gK and gV summed over a kv head's query heads
// Shapes     qkv gqkv (T,(H+2K)E) bf16 · o go (T,HE) bf16, rows their strides apart · lse delta (H,T) fp32
//            positions ends (T)
// Writes     gqkv with =, every element: one kernel writes queries, the other keys and values; delta
// Split      delta: E/8 lanes per row and head. Keys: a block of 4 warps owns one kv head and a tile of keys and loops
//            over its query heads and over tiles of queries; scores are transposed, so P^T and dS^T pass from
//            accumulators to operands in registers. Queries: a block owns one head and 128 queries and loops over tiles
//            of keys
// Needs      sm_80; E 32, 64 or 128; up to 97 KiB of shared memory (two stages); gqkv must not alias qkv.
//            hopper_backward.cuh replaces these kernels on compute capability 9.0 when compiled for sm_90a, for E 128
// Numbers    as forward; P and dS are rounded to bf16 before products, and dS is computed from the rounded P; 1 /
//            sqrt(E) is applied to fp32 sums. Every sum is computed by one thread in a fixed order, without atomics. A
//            non-finite delta is reported
// Cost       14 E FLOP per visible pair and head (8 for keys, 6 for queries), bound by mma.sync. A single kernel would
//            need 10, but would have to add gQ from many blocks: with fp32 atomics (order not fixed), with a lock, or
//            with partial sums of T/64 times the size of gQ
// Reference  cpu/attention.hpp; Dao, FlashAttention-2 (2023), algorithm 2
#pragma once

#include "qlora/cuda/attention/backward_keys.cuh"
#include "qlora/cuda/attention/hopper_backward.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Tiles of the kernel for queries.
template <int HeadDim>
struct BackwardQueryTiles {
  static constexpr int head_dim = HeadDim;
  static constexpr int warps = 4;
  static constexpr int threads = warps * 32;
  static constexpr int blocks = 2;                     // of 16 queries, per warp
  static constexpr int queries = warps * blocks * 16;  // per block
  static constexpr int keys = 32;                      // per tile
  static constexpr int row_bytes = head_dim * 2;
  static constexpr int starts_at = (2 * queries + 4 * keys) * row_bytes;  // after Q, gO, two stages of K and V
  static constexpr int shared_bytes = starts_at + queries * 4;
  static constexpr int resident = 2;
};

/// delta (H,T) = rowsum(gO o O).
template <int E>
__global__ static void __launch_bounds__(256)
    attention_delta_kernel(const int tokens, const int heads, const Rows<const bf16> go, const Rows<const bf16> o,
                           float* const delta, const Fault fault) {
  constexpr int lanes = E / 8;  // per row and head
  static_assert(32 % lanes == 0, "attention: whole rows in a warp");
  const std::int64_t item = (static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const auto t = static_cast<int>(item / heads);
  const auto head = static_cast<int>(item % heads);
  float sum = 0.0F;
  if (t < tokens) {
    float a[8];
    float b[8];
    const int column = head * E + lane * 8;
    device::to_floats(device::load8(go.data + static_cast<std::int64_t>(t) * go.stride + column), a);
    device::to_floats(device::load8(o.data + static_cast<std::int64_t>(t) * o.stride + column), b);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(a[i], b[i], sum);
  }
#pragma unroll
  for (int distance = lanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffU, sum, distance);
  if (t >= tokens || lane != 0) return;
  delta[static_cast<std::int64_t>(head) * tokens + t] = sum;
  if (!isfinite(sum)) device::report(fault);
}

/// Adds one tile of keys and values to gQ of a warp's queries [row, ...). `lse` is multiplied by log2(e).
template <class Tiles>
__device__ __forceinline__ void add_keys(const BackwardArgs& args, const device::LaneRow<Tiles::head_dim>& q_lanes,
                                         const device::LaneRow<Tiles::head_dim>& go_lanes, std::uint32_t stage,
                                         const int* starts, bool masked, int row, int key,
                                         const float (&lse)[Tiles::blocks][2], const float (&delta)[Tiles::blocks][2],
                                         float (&gq)[Tiles::blocks][Tiles::head_dim / 8][4]) {
  constexpr int E = Tiles::head_dim;
  constexpr int columns = Tiles::keys / 8;
  constexpr std::uint32_t tile_bytes = Tiles::keys * Tiles::row_bytes;
  const float scale_log2 = args.forward.scale * log2_e;
  float s[Tiles::blocks][columns][4];
  device::product_nt<E>(s, q_lanes, device::lanes_across<E>(stage));
  if (masked) mask_keys(s, starts, row, key, -INFINITY);
  std::uint32_t p[Tiles::blocks][columns][2];
#pragma unroll
  for (int i = 0; i < Tiles::blocks; ++i) {
#pragma unroll
    for (int n = 0; n < columns; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        p[i][n][half] = device::pack2(device::power_of_two(fmaf(s[i][n][half * 2], scale_log2, -lse[i][half])),
                                      device::power_of_two(fmaf(s[i][n][half * 2 + 1], scale_log2, -lse[i][half])));
      }
    }
  }
  device::product_nt<E>(s, go_lanes, device::lanes_across<E>(stage + tile_bytes));
#pragma unroll
  for (int i = 0; i < Tiles::blocks; ++i) {
#pragma unroll
    for (int n = 0; n < columns; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 weight = device::unpack2(p[i][n][half]);
        p[i][n][half] = device::pack2(weight.x * (s[i][n][half * 2] - delta[i][half]),
                                      weight.y * (s[i][n][half * 2 + 1] - delta[i][half]));
      }
    }
  }
  device::product_nn<E>(gq, p, device::lanes_down<E>(stage));
}

template <class Tiles>
__global__ static void __launch_bounds__(Tiles::threads, Tiles::resident)
    attention_backward_queries_kernel(const BackwardArgs args, const __grid_constant__ TileOrder order) {
  constexpr int E = Tiles::head_dim;
  static_assert(Tiles::queries % Tiles::keys == 0 && Tiles::keys % 16 == 0, "attention: tile sizes");
  static_assert(Tiles::shared_bytes <= 99 * 1024, "attention: a block's shared memory on sm_86 and sm_89");
  static_assert(Tiles::queries == Tiles::threads, "attention: a thread loads one row's start");
  extern __shared__ __align__(256) unsigned char attention_shared[];
  constexpr std::uint32_t q_bytes = Tiles::queries * Tiles::row_bytes;
  constexpr std::uint32_t tile_bytes = Tiles::keys * Tiles::row_bytes;
  const std::uint32_t q_tile = device::shared_address(attention_shared);
  const std::uint32_t kv_tiles = q_tile + 2 * q_bytes;
  int* const starts = reinterpret_cast<int*>(attention_shared + Tiles::starts_at);

  const AttentionArgs& forward = args.forward;
  const int head = static_cast<int>(blockIdx.x);
  const int k_column = (forward.heads + head / (forward.heads / forward.kv_heads)) * E;
  const int first_row = tile_of(order, blockIdx.y) * Tiles::queries;
  const TileRange range =
      key_range(first_row - forward.positions[first_row], min(first_row + Tiles::queries, forward.tokens), Tiles::keys);
  const auto load = [&](int key, std::uint32_t stage) {
    const bf16* const k = forward.qkv + k_column;
    device::load_tile<E, Tiles::keys, Tiles::threads>(stage, k, forward.width, key, range.last);
    device::load_tile<E, Tiles::keys, Tiles::threads>(stage + tile_bytes, k + forward.kv_heads * E, forward.width, key,
                                                      range.last);
    device::copies_commit();
  };
  device::load_tile<E, Tiles::queries, Tiles::threads>(q_tile, forward.qkv + head * E, forward.width, first_row,
                                                       range.last);
  device::load_tile<E, Tiles::queries, Tiles::threads>(q_tile + q_bytes, args.go.data + head * E, args.go.stride,
                                                       first_row, range.last);
  load(range.first, kv_tiles);
  load_starts(forward, first_row, starts);

  const int warp_offset = static_cast<int>(threadIdx.x) / 32 * Tiles::blocks * 16;
  const int row = first_row + warp_offset;
  const int last = min(row + Tiles::blocks * 16, forward.tokens) - 1;
  float lse[Tiles::blocks][2];
  float delta[Tiles::blocks][2];
#pragma unroll
  for (int i = 0; i < Tiles::blocks; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = row + i * 16 + half * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
      const std::int64_t at = static_cast<std::int64_t>(head) * forward.tokens + t;
      lse[i][half] = t < forward.tokens ? args.lse[at] * log2_e : 0.0F;
      delta[i][half] = t < forward.tokens ? args.delta[at] : 0.0F;
    }
  }
  const auto q_lanes = device::lanes_down<E>(q_tile + static_cast<std::uint32_t>(warp_offset * Tiles::row_bytes));
  const auto go_lanes =
      device::lanes_down<E>(q_tile + q_bytes + static_cast<std::uint32_t>(warp_offset * Tiles::row_bytes));
  float gq[Tiles::blocks][E / 8][4] = {};
  std::uint32_t other = kv_tiles;
  for (int key = range.first; key < range.last; key += Tiles::keys) {
    const std::uint32_t stage = other;
    other = kv_tiles + (stage == kv_tiles ? 2 * tile_bytes : 0);
    device::copies_wait();
    __syncthreads();  // this tile has arrived, and all warps have finished with the other stage
    if (key + Tiles::keys < range.last) load(key + Tiles::keys, other);
    const TileUse use = warp_use(starts + warp_offset, row, last, key, Tiles::keys);
    if (use == TileUse::none) continue;
    add_keys<Tiles>(args, q_lanes, go_lanes, stage, starts + warp_offset, use == TileUse::part, row, key, lse, delta,
                    gq);
  }
  multiply(gq, forward.scale);
  device::store_tile<E>(gq, attention_shared + warp_offset * Tiles::row_bytes, args.gqkv + head * E, forward.width, row,
                        forward.tokens);
}

template <int E>
void launch_attention_delta(Context& context, const TokenBatch& batch, Rows<const bf16> o, float* delta,
                            const BackwardArgs& args) {
  const AttentionArgs& forward = args.forward;
  const std::int64_t lanes = std::int64_t{batch.tokens} * forward.heads * (E / 8);
  attention_delta_kernel<E><<<static_cast<unsigned int>((lanes + 255) / 256), 256, 0, context.stream>>>(
      batch.tokens, forward.heads, args.go, o, delta, forward.fault);
  check_launch("attention_delta");
}

/// Gradients with mma.sync.
template <int E>
void launch_attention_backward(Context& context, const TokenBatch& batch, const BackwardArgs& args) {
  using KeyTiles = BackwardKeyTiles<E>;
  using QueryTiles = BackwardQueryTiles<E>;
  const AttentionArgs& forward = args.forward;
  launch_tiles(context, "attention_backward_keys", attention_backward_keys_kernel<KeyTiles>,
               dim3(static_cast<unsigned int>(forward.kv_heads), tiles_of(batch.tokens, KeyTiles::keys)),
               KeyTiles::threads, KeyTiles::shared_bytes, args,
               heavy_first(batch.tokens, KeyTiles::keys, true, batch.segments));
  launch_tiles(context, "attention_backward_queries", attention_backward_queries_kernel<QueryTiles>,
               dim3(static_cast<unsigned int>(forward.heads), tiles_of(batch.tokens, QueryTiles::queries)),
               QueryTiles::threads, QueryTiles::shared_bytes, args,
               heavy_first(batch.tokens, QueryTiles::queries, false, batch.segments));
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void own_attention_backward(Context& context, const AttentionShape& shape, const TokenBatch& batch,
                                                Rows<const bf16> go, const bf16* qkv, Rows<const bf16> o,
                                                const float* lse, bf16* gqkv, void* scratch,
                                                std::int64_t scratch_bytes) {
  detail::check_attention(shape, o.stride);
  detail::check_attention(shape, go.stride);
  QLORA_EXPECTS(gqkv != qkv, "attention_backward: gqkv must not be qkv, which is read to the end");
  if (batch.tokens <= 0) return;
  const std::int64_t needed = own_attention_scratch(shape, batch.tokens);
  QLORA_EXPECTS(scratch != nullptr && scratch_bytes >= needed, "attention_backward: scratch holds ", scratch_bytes,
                " bytes, needed are ", needed);
  auto* const delta = static_cast<float*>(scratch);
  const detail::BackwardArgs args{detail::attention_args(context, shape, batch, qkv), batch.ends, go, lse, delta, gqkv};
  const bool hopper = detail::hopper_backward_serves(context, shape);
  detail::for_head_dim(shape.head_dim, [&](auto dim) {
    detail::launch_attention_delta<dim()>(context, batch, o, delta, args);
    if (!hopper) detail::launch_attention_backward<dim()>(context, batch, args);
  });
  if (hopper) detail::launch_hopper_backward(context, batch, args);
}

QLORA_CUDA_LAUNCHER bool prefers_own_backward(const Context& context, const AttentionShape& shape) {
  return !context.options.fast && detail::hopper_backward_serves(context, shape);
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
