// qlora/cuda/linear/few_tokens.cuh — the forward pass of a group of linear layers for up to eight tokens, straight from
// NF4 codes: what decoding spends its time on.
// Math       Y = [residual +] X W^T + s XA B^T,  XA = X A^T;  w = codebook[c] absmax
// Shapes     x (T,K) bf16, rows x.stride apart, T up to 8 · codes (N,K/2), absmax (N,K/64) of each part · A (XA,K), B
//            (N,R) float · y residual (T, sum N) bf16 · partial (chunks, T, XA) float in the context's workspace
// Writes     y and the XA columns of x with =
// Split      a block of 16 warps per multiprocessor owns neighbouring tiles of 8 rows; its warps share the columns
//            evenly, in steps of 256, and their sums meet in shared memory. The products with A are a launch before it
//            (few_tokens_adapter.cuh)
// Fragments  mma of 16 x 16 by 16 x 8: rows g and g + 8 of the left operand are the same row of W in two neighbouring
//            pairs of blocks, 16 bytes of codes per lane each. The four lanes of a row hold two blocks, which have
//            different scales: column q of a token in the right operand is zero outside of block q. Codes hold, byte by
//            byte, the pairs that mma takes: a table gives a byte's two values at once, and each lane has a copy of
//            it in its own bank
// Needs      sm_80; K a multiple of 256; N and R multiples of 8; block 64, nested block 256
// Numbers    the codebook is rounded to bf16, absmax is not: sums of 64 products in fp32, times absmax, added in fp32.
//            XA is rounded to bf16, s and B are not. The order of a token's sums depends on shapes and GPU only, not on
//            how many tokens there are
// Cost       0.516 bytes per weight, at 2.5 TB/s of an H200 in the long run, and 2 to 4 us per launch; about 2.1
//            instructions per weight and lane. A weight is looked up once for all tokens: a step of the 7B network
//            takes 1.9 ms with one token, 2.7 with four, 3.7 with eight
// Reference  cpu/linear.hpp; the parity tests of linear groups
#pragma once

#include <algorithm>

#include "qlora/cuda/linear/few_tokens_adapter.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Packs of x in the order of fragments: pack 32 s + 8 i + 2 q + h holds columns 256 s + 64 q + 32 h + 8 i ...
__device__ __forceinline__ void fill_tokens(const FewTokensArgs& args, unsigned char* to) {
  const int packs = args.width / 8;
  for (int token = 0; token < args.tokens; ++token) {
    const bf16* from = args.x.data + std::int64_t{token} * args.x.stride;
    for (int i = static_cast<int>(threadIdx.x); i < packs; i += FewTokens::threads) {
      const int at = i / 32 * 32 + i % 4 * 8 + i / 8 % 4 * 2 + i / 4 % 2;
      *reinterpret_cast<device::Pack8*>(to + (token * packs + at) * 16) = device::load8(from + i * 8);
    }
  }
}

/// y of the block's rows, a thread per row and token: the sums of the warps in order, the adapter's share, the
/// residual.
__device__ __forceinline__ void store_outputs(const FewTokensArgs& args, const FewTokensTiles& tiles, int steps_in_row,
                                              int span, const int* first_tile, const float* sums, const float* shares) {
  const int steps = (tiles.last - tiles.first) * steps_in_row;
  const int rows = (tiles.last - tiles.first) * FewTokens::rows;
  const int pairs = pairs_of(args.tokens);
  for (int i = static_cast<int>(threadIdx.x); i < rows * args.tokens; i += FewTokens::threads) {
    const int token = i / rows;
    const int row = i - token * rows;
    const int tile = row / FewTokens::rows;
    const std::int64_t to = std::int64_t{token} * args.outputs + std::int64_t{tiles.first} * FewTokens::rows + row;
    const float residual = args.residual != nullptr ? __bfloat162float(device::native(args.residual)[to]) : 0.0F;
    float value = 0.0F;
    const int last = warp_of((tile + 1) * steps_in_row - 1, steps);
    for (int warp = warp_of(tile * steps_in_row, steps); warp <= last; ++warp) {
      if (share_of(warp, steps) == share_of(warp + 1, steps)) continue;  // fewer steps than warps
      const int at = (warp * span + tile - first_tile[warp]) * pairs + token / 2;
      const float* two = sums + (at * FewTokens::rows + row % FewTokens::rows) * 4 + token % 2 * 2;
      value += two[0] + two[1];
    }
    const FewTokensPart& part = args.part[part_of(args, tiles.first + tile)];
    if (part.b != nullptr) value = fmaf(part.scale, shares[row * args.tokens + token], value);
    device::native(args.y)[to] = __float2bfloat16_rn(value + residual);
  }
}

/// Whether there are adapters is asked here and not a parameter of the template: without the branch nvcc 13.0 schedules
/// the kernel such that decoding the 7B base is 8 % slower.
template <bool Double, int Pairs>
static __global__ void __launch_bounds__(FewTokens::threads, 1)
    few_tokens_kernel(const __grid_constant__ FewTokensArgs args, const FewTokensLayout layout) {
  extern __shared__ __align__(256) unsigned char few_tokens_shared[];
  const FewTokensTiles tiles(args.outputs / FewTokens::rows);
  const int steps_in_row = args.width / FewTokens::step;
  const int steps = (tiles.last - tiles.first) * steps_in_row;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = share_of(warp, steps);
  const int last = share_of(warp + 1, steps);
  FewTokensCursor<Double> cursor{tiles.first + first / steps_in_row, first % steps_in_row};
  FewTokensStep<Double> held[FewTokens::ahead];
  if (first < last) cursor.enter(args);
  int tile = cursor.tile;
  int step = cursor.step;
  auto* first_tile = reinterpret_cast<int*>(few_tokens_shared + layout.first_tile);
  if (lane == 0) first_tile[warp] = tile - tiles.first;
#pragma unroll
  for (int i = 0; i < FewTokens::ahead; ++i) {
    if (first + i >= last) continue;
    cursor.load(held[i]);
    cursor.advance(args, steps_in_row, first + i + 1 < last);
  }
  device::let_next_start();
  if (args.adapters > 0) prefetch_b(args, tiles);
  fill_tables<FewTokens::threads>(few_tokens_shared);
  device::wait_for_previous();  // weights and tables are constant; x and all that is written is not
  fill_tokens(args, few_tokens_shared + layout.x);
  auto* shares = reinterpret_cast<float*>(few_tokens_shared + layout.shares);
  if (args.adapters > 0) {
    auto* xa = reinterpret_cast<float*>(few_tokens_shared + layout.adapter);
    collect_adapter(args, xa);
    __syncthreads();
    make_shares<2 * Pairs>(args, tiles, xa, shares);
  } else {
    __syncthreads();
  }

  // The lane's column of the right operand is block q of a token; a block's codes are in two of the four lanes that are
  // summed, so the column is zero in the other two.
  const int token = lane / 16;
  const int q = lane / 4 % 4;
  // pairs of tokens whose column is not zero: of token and token + 2, + 4, + 6 those that there are
  const int active = lane % 4 / 2 == q % 2 ? (args.tokens - token + 1) / 2 : 0;
  const unsigned char* x = few_tokens_shared + layout.x + token * args.width * 2 + q * 32 + lane % 2 * 16;
  auto* sums = reinterpret_cast<float*>(few_tokens_shared + layout.sums) + warp * layout.span * Pairs * 32 + lane;
  float offset = args.part[part_of(args, tile)].offset;
  float sum[Pairs] = {};
  for (int base = first; base < last; base += FewTokens::ahead) {
#pragma unroll
    for (int i = 0; i < FewTokens::ahead; ++i) {
      const int at = base + i;
      if (at >= last) continue;
      if constexpr (Pairs == 1) {
        sum[0] =
            sum_of_step<Double>(held[i], few_tokens_shared, offset, x + step * FewTokens::step * 2, active > 0, sum[0]);
      } else {
        sums_of_step<Double, Pairs>(held[i], few_tokens_shared, offset, x + step * FewTokens::step * 2, args.width * 4,
                                    active, sum);
      }
      if (at + FewTokens::ahead < last) {
        cursor.load(held[i]);
        cursor.advance(args, steps_in_row, at + FewTokens::ahead + 1 < last);
      }
      if (++step < steps_in_row && at + 1 < last) continue;
#pragma unroll
      for (int p = 0; p < Pairs; ++p, sums += 32) {
        *sums = sum[p];
        sum[p] = 0.0F;
      }
      step = 0;
      ++tile;
      offset = args.part[part_of(args, tile)].offset;
    }
  }
  __syncthreads();
  store_outputs(args, tiles, steps_in_row, layout.span, first_tile,
                reinterpret_cast<const float*>(few_tokens_shared + layout.sums), shares);
}

/// Tokens of a group that one launch serves; 0: its shape is not served.
[[nodiscard]] inline int few_tokens_at_once(const Context& context, const GroupArgs& group, std::span<const Part> parts,
                                            int outputs, int adapters) {
  if (group.in % FewTokens::step != 0 || parts.size() > std::size_t{FewTokens::parts} || group.quant.block != 64 ||
      group.dropout.threshold != 0) {
    return 0;
  }
  const int tiles = outputs / FewTokens::rows;
  int tokens = FewTokens::most;
  while (tokens > 0 &&
         FewTokensLayout::of(tokens, group.in, adapters, tiles / std::min(context.sm_count, tiles) + 1).bytes >
             context.max_shared_bytes) {
    tokens /= 2;
  }
  return tokens;
}

/// At most few_tokens_at_once tokens. y null: XA alone, with the same bits.
inline void launch_few_tokens(Context& context, const GroupArgs& group, std::span<const Part> parts, int outputs,
                              int adapters, int tokens, Rows<bf16> x, const bf16* residual, bf16* y) {
  expect_packs("linear", "x", x, group.in);
  FewTokensArgs args;
  args.tokens = tokens;
  args.width = group.in;
  args.outputs = y == nullptr ? 0 : outputs;
  args.adapters = adapters;
  args.rank = group.rank;
  args.x = x;
  args.residual = residual;
  args.y = y;
  args.a = fill_parts(group, parts, args);
  const int tiles = args.outputs / FewTokens::rows;
  const int blocks = std::clamp(tiles, 1, context.sm_count);
  if (adapters > 0) {
    choose_chunks(context, args);
    launch_adapter_products(context, args);
  }
  const FewTokensLayout layout = FewTokensLayout::of(tokens, group.in, adapters, tiles / blocks + 1);
  const auto launch = [&](auto kernel) {
    allow_shared(context, kernel, context.max_shared_bytes, Carveout::usual, "linear, few tokens");
    cuda::launch(context, true, "linear, few tokens", kernel, dim3(static_cast<unsigned>(blocks)),
                 dim3(FewTokens::threads), layout.bytes, args, layout);
  };
  const auto launch_for = [&]<int Pairs>(std::integral_constant<int, Pairs>) {
    launch(args.part[0].absmax8 != nullptr ? few_tokens_kernel<true, Pairs> : few_tokens_kernel<false, Pairs>);
  };
  const int pairs = pairs_of(tokens);
  if (pairs == 1) return launch_for(std::integral_constant<int, 1>{});
  if (pairs == 2) return launch_for(std::integral_constant<int, 2>{});
  launch_for(std::integral_constant<int, 4>{});
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
