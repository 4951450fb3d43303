// qlora/cuda/linear/few_tokens.cuh — the forward pass of a group of linear layers for one or two tokens, straight from
// NF4 codes: what decoding spends its time on.
// Math       Y = [residual +] X W^T + s XA B^T,  XA = X A^T;  w = codebook[c] absmax
// Shapes     x (T,K) bf16, rows x.stride apart, T up to 2 · codes (N,K/2), absmax (N,K/64) of each part · A (XA,K), B
//            (N,R) float · y residual (T, sum N) bf16 · partial (chunks, T, XA) float in the context's workspace
// Writes     y and the XA columns of x with =
// Split      a block of 16 warps per multiprocessor owns neighbouring tiles of 8 rows; its warps share the columns
//            evenly, in steps of 256, and their sums meet in shared memory. The products with A are split over all
//            warps of the grid and come first; a block needs XA only when it has finished with W, and waits for it
// Fragments  mma of 16 x 16 by 16 x 8: rows g and g + 8 of the left operand are the same row of W in two neighbouring
//            pairs of blocks, 16 bytes of codes per lane each. The four lanes of a row hold two blocks, which have
//            different scales: column q of a token in the right operand is zero outside of block q. Codes hold, byte by
//            byte, the pairs that mma takes: a table gives a byte's two values at once, and each lane has a copy of
//            it in its own bank
// Needs      sm_80; K a multiple of 256; N and R multiples of 8; block 64, nested block 256; all blocks resident at
//            once (at most one per multiprocessor)
// Numbers    the codebook is rounded to bf16, absmax is not: sums of 64 products in fp32, times absmax, added in fp32.
//            XA is rounded to bf16, s and B are not. The order of a token's sums depends on shapes and GPU only
// Cost       0.516 bytes per weight, at 2.5 TB/s of an H200 in the long run, and 2 to 4 us per launch; about 2.1
//            instructions per weight and lane
// Reference  cpu/linear.hpp; the parity tests of linear groups
#pragma once

#include <algorithm>

#include "qlora/cuda/linear/few_tokens_steps.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The table of pairs: one copy per lane, so that a read of the warp meets each bank once.
__device__ __forceinline__ void fill_tables(unsigned char* shared) {
  for (int i = static_cast<int>(threadIdx.x); i < 256 * 8; i += FewTokens::threads) {
    const int byte = i / 8;
    const __nv_bfloat162 pair = __floats2bfloat162_rn(codebook.value[byte >> 4], codebook.value[byte & 15]);
    const auto word = *reinterpret_cast<const std::uint32_t*>(&pair);
    *reinterpret_cast<uint4*>(shared + byte * 256 + i % 8 * 16) = uint4{word, word, word, word};
  }
  if (threadIdx.x < 256) {
    reinterpret_cast<float*>(shared + FewTokens::table_bytes)[threadIdx.x] = dynamic8.value[threadIdx.x];
  }
}
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

__device__ __forceinline__ void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
/// Brings the adapters' values that the block is going to read to L2: the warp's rows of A, the rows of B of its tiles.
__device__ __forceinline__ void prefetch_adapter(const FewTokensArgs& args, const FewTokensTiles& tiles) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int unit = static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) * warp;
  if (unit < args.adapters * args.chunks) {
    const int chunk = unit / args.adapters;
    const int column = chunk * args.chunk_columns + lane * 32;  // 128 bytes
    if (column < min(args.width, (chunk + 1) * args.chunk_columns)) {
      prefetch(args.a + std::int64_t{unit - chunk * args.adapters} * args.width + column);
    }
  }
  for (int tile = tiles.first + warp; tile < tiles.last; tile += FewTokens::warps) {
    const FewTokensPart& part = args.part[part_of(args, tile)];
    if (part.b == nullptr) continue;
    const float* b = part.b + std::int64_t{tile - part.first_tile} * FewTokens::rows * args.rank;
    for (int i = lane * 32; i < FewTokens::rows * args.rank; i += 32 * 32) prefetch(b + i);
  }
}

/// The warp's share of the products with A: one row of A in one chunk of K, for all tokens. Publishes it.
__device__ __forceinline__ void multiply_adapter(const FewTokensArgs& args) {
  const int warps = static_cast<int>(gridDim.x) * FewTokens::warps;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int unit = static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) * (static_cast<int>(threadIdx.x) / 32);
       unit < args.adapters * args.chunks; unit += warps) {
    const int chunk = unit / args.adapters;
    const int row = unit - chunk * args.adapters;
    const int last = min(args.width, (chunk + 1) * args.chunk_columns);
    const float* a = args.a + std::int64_t{row} * args.width;
    float sum[FewTokens::tokens] = {};
#pragma unroll 4
    for (int column = chunk * args.chunk_columns + lane * 4; column < last; column += 128) {
      const float4 four = __ldcs(reinterpret_cast<const float4*>(a + column));
#pragma unroll
      for (int t = 0; t < FewTokens::tokens; ++t) {
        if (t >= args.tokens) continue;
        const auto* x = reinterpret_cast<const uint2*>(args.x.data + std::int64_t{t} * args.x.stride + column);
        const float2 low = device::unpack2(x->x);
        const float2 high = device::unpack2(x->y);
        sum[t] += four.x * low.x + four.y * low.y + four.z * high.x + four.w * high.y;
      }
    }
#pragma unroll
    for (int t = 0; t < FewTokens::tokens; ++t) {
      if (t >= args.tokens) continue;
      const float all = device::warp_sum(sum[t]);
      if (lane == 0) __stcg(args.partial + (std::int64_t{chunk} * args.tokens + t) * args.adapters + row, all);
    }
    if (lane == 0) {
      __threadfence();
      atomicAdd(args.counters, 1U);
    }
  }
}
/// Waits for the products with A of all blocks and adds their parts in order, rounded to bf16, into `to` (T,XA).
__device__ __forceinline__ void collect_adapter(const FewTokensArgs& args, float* to) {
  if (threadIdx.x == 0) {
    const auto all = static_cast<std::uint32_t>(args.adapters * args.chunks);
    std::uint32_t seen = 0;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(args.counters) : "memory");
    } while (seen < all);
    if (atomicAdd(args.counters + 1, 1U) == gridDim.x - 1) {  // nobody waits any more
      args.counters[0] = 0;
      args.counters[1] = 0;
    }
  }
  __syncthreads();
  const int count = args.tokens * args.adapters;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += FewTokens::threads) {
    float sum = 0.0F;
#pragma unroll 4
    for (int chunk = 0; chunk < args.chunks; ++chunk) sum += __ldcg(args.partial + std::int64_t{chunk} * count + i);
    const __nv_bfloat16 rounded = __float2bfloat16_rn(sum);
    to[i] = __bfloat162float(rounded);
    if (blockIdx.x != 0) continue;
    const int token = i / args.adapters;
    device::native(args.x.data)[std::int64_t{token} * args.x.stride + args.width + i - token * args.adapters] = rounded;
  }
  __syncthreads();
}

/// y of the block's rows, half a warp per row: the sums of the warps in order, the adapter's share, the residual.
__device__ __forceinline__ void store_outputs(const FewTokensArgs& args, const FewTokensTiles& tiles, int steps_in_row,
                                              int span, const int* first_tile, const float* sums, const float* xa) {
  const int lane = static_cast<int>(threadIdx.x) % 16;
  const int steps = (tiles.last - tiles.first) * steps_in_row;
  const int rows = (tiles.last - tiles.first) * FewTokens::rows;
  for (int base = static_cast<int>(threadIdx.x) / 32 * 2; base < rows; base += FewTokens::warps * 2) {
    const int row = base + static_cast<int>(threadIdx.x) / 16 % 2;  // rows are even: both halves stay in the loop
    const int tile = row / FewTokens::rows;
    const FewTokensPart& part = args.part[part_of(args, tiles.first + tile)];
    const std::int64_t n = std::int64_t{tiles.first} * FewTokens::rows + row;
    float share[FewTokens::tokens] = {};
    if (part.b != nullptr) {
      const float* b = part.b + (n - std::int64_t{part.first_tile} * FewTokens::rows) * args.rank;
      for (int r = lane * 4; r < args.rank; r += 64) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(b + r));
#pragma unroll
        for (int t = 0; t < FewTokens::tokens; ++t) {
          if (t >= args.tokens) continue;
          const float* x = xa + t * args.adapters + part.slot + r;
          share[t] += four.x * x[0] + four.y * x[1] + four.z * x[2] + four.w * x[3];
        }
      }
    }
    float own = 0.0F;
#pragma unroll
    for (int t = 0; t < FewTokens::tokens; ++t) {
      if (t >= args.tokens || args.adapters == 0) continue;
#pragma unroll
      for (int distance = 8; distance > 0; distance /= 2) {
        share[t] += __shfl_xor_sync(0xffffffffU, share[t], distance);
      }
      if (lane == t) own = share[t];
    }
    if (lane >= args.tokens) continue;
    float value = 0.0F;
    const int last = warp_of((tile + 1) * steps_in_row - 1, steps);
    for (int warp = warp_of(tile * steps_in_row, steps); warp <= last; ++warp) {
      if (share_of(warp, steps) == share_of(warp + 1, steps)) continue;  // fewer steps than warps
      const int at = (warp * span + tile - first_tile[warp]) * FewTokens::rows + row % FewTokens::rows;
      value += sums[at * 4 + lane * 2] + sums[at * 4 + lane * 2 + 1];
    }
    value = fmaf(part.scale, own, value);
    const std::int64_t to = std::int64_t{lane} * args.outputs + n;
    if (args.residual != nullptr) value += __bfloat162float(device::native(args.residual)[to]);
    device::native(args.y)[to] = __float2bfloat16_rn(value);
  }
}

template <bool Double>
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
  if (args.adapters > 0) prefetch_adapter(args, tiles);
  fill_tables(few_tokens_shared);
  device::wait_for_previous();  // weights and tables are constant; x and all that is written is not
  fill_tokens(args, few_tokens_shared + layout.x);
  if (args.adapters > 0) multiply_adapter(args);
  __syncthreads();

  // The lane's column of the right operand is block q of a token; a block's codes are in two of the four lanes that are
  // summed, so the column is zero in the other two.
  const int token = lane / 16;
  const int q = lane / 4 % 4;
  const bool active = token < args.tokens && lane % 4 / 2 == q % 2;
  const unsigned char* x = few_tokens_shared + layout.x + token * args.width * 2 + q * 32 + lane % 2 * 16;
  auto* sums = reinterpret_cast<float*>(few_tokens_shared + layout.sums) + warp * layout.span * 32 + lane;
  float offset = args.part[part_of(args, tile)].offset;
  float sum = 0.0F;
  for (int base = first; base < last; base += FewTokens::ahead) {
#pragma unroll
    for (int i = 0; i < FewTokens::ahead; ++i) {
      const int at = base + i;
      if (at >= last) continue;
      sum = sum_of_step<Double>(held[i], few_tokens_shared, offset, x + step * FewTokens::step * 2, active, sum);
      if (at + FewTokens::ahead < last) {
        cursor.load(held[i]);
        cursor.advance(args, steps_in_row, at + FewTokens::ahead + 1 < last);
      }
      if (++step < steps_in_row && at + 1 < last) continue;
      *sums = sum;
      sums += 32;
      sum = 0.0F;
      step = 0;
      ++tile;
      offset = args.part[part_of(args, tile)].offset;
    }
  }
  auto* xa = reinterpret_cast<float*>(few_tokens_shared + layout.adapter);
  if (args.adapters > 0) {
    collect_adapter(args, xa);
  } else {
    __syncthreads();
  }
  store_outputs(args, tiles, steps_in_row, layout.span, first_tile,
                reinterpret_cast<const float*>(few_tokens_shared + layout.sums), xa);
}

/// Tokens of a group that one launch serves; 0: its shape is not served.
[[nodiscard]] inline int few_tokens_at_once(const Context& context, const GroupArgs& group, std::span<const Part> parts,
                                            int outputs, int adapters) {
  if (group.in % FewTokens::step != 0 || parts.size() > std::size_t{FewTokens::parts} || group.quant.block != 64 ||
      group.dropout.threshold != 0) {
    return 0;
  }
  const int tiles = outputs / FewTokens::rows;
  int tokens = FewTokens::tokens;
  while (tokens > 0 &&
         FewTokensLayout::of(tokens, group.in, adapters, tiles / std::min(context.sm_count, tiles) + 1).bytes >
             context.max_shared_bytes) {
    --tokens;
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
  args.counters = context.counters();
  int row = 0;
  int slot = 0;
  for (std::size_t p = 0; p < std::size_t{FewTokens::parts}; ++p) {
    FewTokensPart& to = args.part[p];
    to.first_tile = row / FewTokens::rows;
    if (p >= parts.size()) continue;
    const Part& part = parts[p];
    const Nf4View& w = part.weight.nf4;
    QLORA_EXPECTS(w.absmax8 == nullptr || (group.quant.nested_block == 256 && w.nested != nullptr),
                  "nested blocks hold ", group.quant.nested_block, " scales; the CUDA kernels know 256");
    QLORA_EXPECTS((w.absmax8 == nullptr) == (parts[0].weight.nf4.absmax8 == nullptr),
                  "the scales of a group are quantized in one part and not in another");
    to.codes = w.codes;
    to.absmax = w.absmax;
    to.absmax8 = w.absmax8;
    to.nested = w.nested;
    to.offset = w.offset;
    row += part.weight.rows;
    if (part.a == nullptr) continue;
    if (args.a == nullptr) args.a = part.a;
    to.b = part.b;
    to.scale = part.scale;
    to.slot = slot;
    slot += group.rank;
  }
  const int tiles = args.outputs / FewTokens::rows;
  const int blocks = adapters > 0 ? context.sm_count : std::min(context.sm_count, tiles);
  if (adapters > 0) {
    const int pieces = group.in / 128;
    const int most = std::clamp(blocks * FewTokens::warps / adapters, 1, FewTokens::chunks);
    const int each = (pieces + most - 1) / most;
    args.chunk_columns = each * 128;
    args.chunks = (pieces + each - 1) / each;
    args.partial = reinterpret_cast<float*>(context.workspace);
    QLORA_EXPECTS(std::int64_t{args.chunks} * tokens * adapters * 4 <= context.workspace_bytes, "products with A of ",
                  adapters, " columns need more workspace than ", context.workspace_bytes);
  }
  const FewTokensLayout layout = FewTokensLayout::of(tokens, group.in, adapters, tiles / blocks + 1);
  const auto launch = [&](auto kernel) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, layout.bytes),
          "linear, few tokens");
    cuda::launch(context, true, "linear, few tokens", kernel, dim3(static_cast<unsigned>(blocks)),
                 dim3(FewTokens::threads), layout.bytes, args, layout);
  };
  if (args.part[0].absmax8 != nullptr) {
    launch(few_tokens_kernel<true>);
  } else {
    launch(few_tokens_kernel<false>);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
