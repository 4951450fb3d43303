// qlora/cuda/attention/common.cuh — shared by the forward and backward attention kernels: arguments, the mask of a tile
// of scores, kernel launches.
// Shapes     qkv (T,(H+2K)E) bf16 · positions (T) · a tile of scores is (16 Blocks, 8 Columns) in a warp's accumulators
// Needs      sm_80; E 32, 64 or 128
// Reference  cpu/attention.hpp; tests/cuda/attention_tiles_test.cpp
#pragma once

#include <cmath>
#include <type_traits>

#include "qlora/cuda/attention/tiles.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

struct AttentionArgs {
  const bf16* qkv = nullptr;
  const std::int32_t* positions = nullptr;
  int tokens = 0;
  int heads = 0;
  int kv_heads = 0;
  int width = 0;       // of a qkv row
  float scale = 0.0F;  // 1 / sqrt(E)
  Fault fault{};
};

struct BackwardArgs {
  AttentionArgs forward{};
  const std::int32_t* ends = nullptr;
  Rows<const bf16> go{};
  const float* lse = nullptr;
  const float* delta = nullptr;
  bf16* gqkv = nullptr;
};

/// The row of the tile order that a block processes.
__device__ __forceinline__ int tile_of(const TileOrder& order, unsigned int block) {
  return order.count > 0 ? static_cast<int>(order.tile[block]) : static_cast<int>(block);
}

/// Sets scores of queries [row, row + 16 Blocks), whose first visible keys are starts[0 ...], against keys [key, key +
/// 8 Columns) to `hidden` where the pair is not visible.
template <int Blocks, int Columns>
__device__ __forceinline__ void mask_keys(float (&s)[Blocks][Columns][4], const int* starts, int row, int key,
                                          float hidden) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < Blocks; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = row + i * 16 + half * 8 + lane / 4;
      const int start = starts[t - row];
#pragma unroll
      for (int n = 0; n < Columns; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int j = key + n * 8 + lane % 4 * 2 + e;
          if (j < start || j > t) s[i][n][half * 2 + e] = hidden;
        }
      }
    }
  }
}

template <int Blocks, int Columns>
__device__ __forceinline__ void multiply(float (&values)[Blocks][Columns][4], float factor) {
#pragma unroll
  for (int i = 0; i < Blocks; ++i) {
#pragma unroll
    for (int n = 0; n < Columns; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) values[i][n][e] *= factor;
    }
  }
}

/// The first visible key of rows [first_row, first_row + Threads), one row per thread; rows past the last token see
/// none. Kept in shared memory because the kernels use all registers.
__device__ __forceinline__ void load_starts(const AttentionArgs& args, int first_row, int* starts) {
  const int t = first_row + static_cast<int>(threadIdx.x);
  starts[threadIdx.x] = t < args.tokens ? t - args.positions[t] : t + 1;
}
/// The visibility of keys [key, key + count) for rows row ... last of a warp.
__device__ __forceinline__ TileUse warp_use(const int* starts, int row, int last, int key, int count) {
  return keys_use(row, last, starts[0], starts[max(last - row, 0)], key, count);
}

inline AttentionArgs attention_args(const Context& context, const AttentionShape& shape, const TokenBatch& batch,
                                    const bf16* qkv) {
  return {qkv,
          batch.positions,
          batch.tokens,
          shape.heads,
          shape.kv_heads,
          shape.width(),
          1.0F / std::sqrt(static_cast<float>(shape.head_dim)),
          context.fault()};
}

inline void check_attention(const AttentionShape& shape, int stride) {
  QLORA_EXPECTS(shape.head_dim == 32 || shape.head_dim == 64 || shape.head_dim == 128, "attention: head_dim is ",
                shape.head_dim, "; kernels exist for 32, 64 and 128");
  QLORA_EXPECTS(shape.kv_heads > 0 && shape.heads > 0 && shape.heads % shape.kv_heads == 0, "attention: heads is ",
                shape.heads, ", which must be a multiple of kv_heads, ", shape.kv_heads);
  QLORA_EXPECTS(stride % 8 == 0 && stride >= shape.heads * shape.head_dim, "attention: rows of o are ", stride,
                " apart; they must be a multiple of 8 and hold ", shape.heads, " heads of ", shape.head_dim);
}

/// Calls run(std::integral_constant<int, E>).
template <class Run>
void for_head_dim(int head_dim, const Run& run) {
  if (head_dim == 32) run(std::integral_constant<int, 32>());
  if (head_dim == 64) run(std::integral_constant<int, 64>());
  if (head_dim == 128) run(std::integral_constant<int, 128>());
}

/// Launches a kernel that needs more than the default 48 KiB of shared memory per block.
template <class... Parameters, class... Arguments>
void launch_tiles(Context& context, const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
                  int shared_bytes, const Arguments&... arguments) {
  QLORA_EXPECTS(shared_bytes <= context.max_shared_bytes, name, ": a block needs ", shared_bytes,
                " bytes of shared memory, this GPU gives ", context.max_shared_bytes);
  allow_shared(context, kernel, shared_bytes, Carveout::most_shared, name);
  kernel<<<grid, static_cast<unsigned int>(threads), static_cast<std::size_t>(shared_bytes), context.stream>>>(
      arguments...);
  check_launch(name);
}

inline unsigned int tiles_of(int tokens, int size) { return static_cast<unsigned int>((tokens + size - 1) / size); }

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
