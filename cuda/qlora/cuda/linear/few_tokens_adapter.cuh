// qlora/cuda/linear/few_tokens_adapter.cuh — the adapters of few_tokens.cuh: XA in a launch of its own, and what a
// block of the product does with it.
// Math       XA = X A^T;  the share of a row n of part p is (XA_p B_p^T)_n
// Shapes     x (T,K) bf16, T up to 8 · A (XA,K), B (N,R) float · partial (chunks, T, XA) float
// Writes     partial, in the launch; the XA columns of x, from the first block of the product, with =
// Split      A: a warp per row and chunk of K's columns. Each block of the product adds the chunks, and makes the
//            shares of its own rows with half a warp per row
// Needs      sm_80; K a multiple of 128, R of 4
// Numbers    fp32; chunks are added in order, XA is rounded to bf16
// Cost       4 bytes per value of A and B. The product is launched early and loads weights meanwhile
// Reference  cpu/linear.hpp; the parity tests of linear groups
#pragma once

#include <algorithm>

#include "qlora/cuda/linear/few_tokens_steps.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

struct AdapterProducts {
  static constexpr int warps = 4;
  static constexpr int threads = warps * 32;
  static constexpr int piece = 128;  ///< columns that a warp reads at once, 16 bytes a lane
  static constexpr int ahead = 4;    ///< pieces in flight: chunks of up to 512 columns need one wait
  static constexpr int chunks = 16;  ///< at most
};

template <int Tokens>
static __global__ void __launch_bounds__(AdapterProducts::threads)
    adapter_products_kernel(const __grid_constant__ FewTokensArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int unit = static_cast<int>(blockIdx.x) * AdapterProducts::warps + static_cast<int>(threadIdx.x) / 32;
  const int chunk = unit / args.adapters;
  const int row = unit - chunk * args.adapters;
  const int first = chunk * args.chunk_columns + lane * 4;
  const int last = chunk < args.chunks ? min(args.width, (chunk + 1) * args.chunk_columns) : 0;
  const float* a = args.a + std::int64_t{row} * args.width;
  float4 held[AdapterProducts::ahead];
  const auto load = [&](int column) {
#pragma unroll
    for (int i = 0; i < AdapterProducts::ahead; ++i) {
      const int at = column + i * AdapterProducts::piece;
      if (at < last) held[i] = __ldcs(reinterpret_cast<const float4*>(a + at));
    }
  };
  load(first);
  device::let_next_start();
  device::wait_for_previous();  // A is constant; x is not
  if (chunk >= args.chunks) return;
  float sum[Tokens] = {};
  for (int column = first; column < last; column += AdapterProducts::ahead * AdapterProducts::piece) {
    if (column != first) load(column);
#pragma unroll
    for (int i = 0; i < AdapterProducts::ahead; ++i) {
      const int at = column + i * AdapterProducts::piece;
      if (at >= last) continue;
#pragma unroll
      for (int t = 0; t < Tokens; ++t) {
        if (t >= args.tokens) continue;
        const auto* x = reinterpret_cast<const uint2*>(args.x.data + std::int64_t{t} * args.x.stride + at);
        const float2 low = device::unpack2(x->x);
        const float2 high = device::unpack2(x->y);
        sum[t] += held[i].x * low.x + held[i].y * low.y + held[i].z * high.x + held[i].w * high.y;
      }
    }
  }
#pragma unroll
  for (int t = 0; t < Tokens; ++t) {
    if (t >= args.tokens) continue;
    const float all = device::warp_sum(sum[t]);
    if (lane == 0) args.partial[(std::int64_t{chunk} * args.tokens + t) * args.adapters + row] = all;
  }
}

/// Brings the rows of B of the block's tiles to L2.
__device__ __forceinline__ void prefetch_b(const FewTokensArgs& args, const FewTokensTiles& tiles) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int tile = tiles.first + warp; tile < tiles.last; tile += FewTokens::warps) {
    const FewTokensPart& part = args.part[part_of(args, tile)];
    if (part.b == nullptr) continue;
    const float* b = part.b + std::int64_t{tile - part.first_tile} * FewTokens::rows * args.rank;
    for (int i = lane * 32; i < FewTokens::rows * args.rank; i += 32 * 32) prefetch(b + i);  // 128 bytes
  }
}
/// Adds the chunks of XA in order, rounded to bf16, into `to` (T,XA) and, in the first block, behind x.
__device__ __forceinline__ void collect_adapter(const FewTokensArgs& args, float* to) {
  const int count = args.tokens * args.adapters;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += FewTokens::threads) {
    float part[AdapterProducts::chunks];
#pragma unroll
    for (int chunk = 0; chunk < AdapterProducts::chunks; ++chunk) {
      part[chunk] = chunk < args.chunks ? args.partial[std::int64_t{chunk} * count + i] : 0.0F;
    }
    float sum = part[0];
#pragma unroll
    for (int chunk = 1; chunk < AdapterProducts::chunks; ++chunk) sum += part[chunk];
    const __nv_bfloat16 rounded = __float2bfloat16_rn(sum);
    to[i] = __bfloat162float(rounded);
    if (blockIdx.x != 0) continue;
    const int token = i / args.adapters;
    device::native(args.x.data)[std::int64_t{token} * args.x.stride + args.width + i - token * args.adapters] = rounded;
  }
}
/// shares (rows, T) of the block's rows from xa (T,XA), half a warp per row.
template <int Tokens>
__device__ __forceinline__ void make_shares(const FewTokensArgs& args, const FewTokensTiles& tiles, const float* xa,
                                            float* shares) {
  const int lane = static_cast<int>(threadIdx.x) % 16;
  const int rows = (tiles.last - tiles.first) * FewTokens::rows;
#pragma unroll 4
  for (int base = static_cast<int>(threadIdx.x) / 32 * 2; base < rows; base += FewTokens::warps * 2) {
    const int row = base + static_cast<int>(threadIdx.x) / 16 % 2;  // rows are even: both halves stay in the loop
    const int tile = tiles.first + row / FewTokens::rows;
    const FewTokensPart& part = args.part[part_of(args, tile)];
    float share[Tokens] = {};
    if (part.b != nullptr) {
      const std::int64_t n = std::int64_t{tiles.first - part.first_tile} * FewTokens::rows + row;
      const float* b = part.b + n * args.rank;
      for (int r = lane * 4; r < args.rank; r += 64) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(b + r));
#pragma unroll
        for (int t = 0; t < Tokens; ++t) {
          if (t >= args.tokens) continue;
          const float* x = xa + t * args.adapters + part.slot + r;
          share[t] += four.x * x[0] + four.y * x[1] + four.z * x[2] + four.w * x[3];
        }
      }
    }
#pragma unroll
    for (int t = 0; t < Tokens; ++t) {
      if (t >= args.tokens) continue;
#pragma unroll
      for (int distance = 8; distance > 0; distance /= 2) {
        share[t] += __shfl_xor_sync(0xffffffffU, share[t], distance);
      }
      if (lane == t) shares[row * args.tokens + t] = share[t];
    }
  }
}

/// Divides K into chunks such that there is a warp for each row of A and chunk on every multiprocessor.
inline void choose_chunks(const Context& context, FewTokensArgs& args) {
  const int pieces = args.width / AdapterProducts::piece;
  const int warps = context.sm_count * FewTokens::warps;
  const int most = std::clamp(warps / args.adapters, 1, AdapterProducts::chunks);
  const int each = (pieces + most - 1) / most;
  args.chunk_columns = each * AdapterProducts::piece;
  args.chunks = (pieces + each - 1) / each;
  args.partial = reinterpret_cast<float*>(context.workspace);
  QLORA_EXPECTS(std::int64_t{args.chunks} * args.tokens * args.adapters * 4 <= context.workspace_bytes,
                "products with A of ", args.adapters, " columns need more workspace than ", context.workspace_bytes);
}
inline void launch_adapter_products(const Context& context, const FewTokensArgs& args) {
  const int units = args.adapters * args.chunks;
  const auto blocks = static_cast<unsigned>((units + AdapterProducts::warps - 1) / AdapterProducts::warps);
  const auto launch_for = [&](auto kernel) {
    launch(context, true, "linear, few tokens, A", kernel, dim3(blocks), dim3(AdapterProducts::threads), 0, args);
  };
  const int pairs = pairs_of(args.tokens);
  launch_for(pairs == 1   ? adapter_products_kernel<2>
             : pairs == 2 ? adapter_products_kernel<4>
                          : adapter_products_kernel<8>);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
