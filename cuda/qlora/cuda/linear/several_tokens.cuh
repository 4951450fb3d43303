// qlora/cuda/linear/several_tokens.cuh — the forward pass of a group of linear layers for up to 32 tokens, straight
// from NF4 codes: what a batch of replies spends its time on.
// Math       Y = [residual +] X W^T + XA (s B)^T;  w = codebook[c] absmax
// Shapes     x (T, K | XA) bf16, rows x.stride apart, T up to 32 · codes (N,K/2), absmax (N,K/64) of each part · B
//            (N,R) float · y residual (T, sum N) bf16 · partial (blocks, 2, T, 128) float in the context's workspace
// Writes     y with =
// Split      a unit is 128 rows by 256 columns of W, or the adapters' columns of 128 rows. A block per multiprocessor
//            has a range of neighbouring units ("stream-K", Osama et al. 2023, arXiv 2301.03598); of its 16 warps four
//            share the rows, four the columns. The block that comes last to a tile adds the sums of all its blocks, in
//            their order: nobody waits
// Fragments  mma of 16 x 16 by 16 x 8. The lane q of a row has 8 bytes of a block's codes, columns 16 q and on: a byte
//            is a pair that mma takes, and the right operand has its rows in the same order
// Needs      sm_80; 163 KB of shared memory or more; K a multiple of 256; heights of parts and R multiples of 16 and 8;
//            block 64, nested block 256
// Numbers    the codebook is rounded to bf16, absmax is not: sums of 64 products in fp32, times absmax, added in fp32.
//            s B is rounded to bf16. The order of a token's sums depends on shapes and GPU only, not on how many tokens
//            there are
// Cost       codes are read once, x once per 128 rows; 2 instructions per pair of weights and lane, and for each token
//            1/16 of an addition per weight
// Reference  cpu/linear.hpp; the parity tests of linear groups
#pragma once

#include "qlora/cuda/linear/several_tokens_steps.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Adds the sums of the groups of warps in order and writes them to `to`, (T, 128).
template <int Columns>
__device__ __forceinline__ void write_sums(unsigned char* exchange, SeveralTokensSums<Columns>& sums, float* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int rows = static_cast<int>(threadIdx.x) / 32 % 4;
  const int group = static_cast<int>(threadIdx.x) / 128;
  auto* mine = reinterpret_cast<float4*>(exchange) + (rows * 2) * 32 + lane;
  constexpr int group_step = 4 * 2 * 32;
#pragma unroll
  for (int c = 0; c < Columns; ++c) {
    __syncthreads();
    if (group > 0) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const float(&from)[4] = sums[m][c];
        mine[(group - 1) * group_step + m * 32] = float4{from[0], from[1], from[2], from[3]};
      }
    }
    __syncthreads();
    if (group > 0) continue;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      float(&all)[4] = sums[m][c];
#pragma unroll
      for (int i = 0; i < SeveralTokens::groups - 1; ++i) {
        const float4 other = mine[i * group_step + m * 32];
        all[0] += other.x;
        all[1] += other.y;
        all[2] += other.z;
        all[3] += other.w;
      }
      float* at = to + (c * 8 + lane % 4 * 2) * SeveralTokens::rows + rows * 32 + m * 16 + lane / 4;
      at[0] = all[0];
      at[SeveralTokens::rows] = all[1];
      at[8] = all[2];
      at[SeveralTokens::rows + 8] = all[3];
    }
  }
}

/// The sums of the blocks of a tile in order, and the residual, to y.
template <int Columns>
__device__ __forceinline__ void store_tile(const SeveralTokensArgs& args, const SeveralTokensShares& shares, int tile,
                                           int first, int last) {
  constexpr int quads = SeveralTokens::rows / 4;
  const int row = static_cast<int>(threadIdx.x) % quads * 4;
  const std::int64_t n = std::int64_t{tile} * SeveralTokens::rows + row;
  if (n >= args.outputs) return;
  for (int token = static_cast<int>(threadIdx.x) / quads; token < args.tokens;
       token += SeveralTokens::threads / quads) {
    float4 sum{};
    for (int block = first; block <= last; ++block) {
      const int slot = block * 2 + (shares.first(block) / args.units == tile ? 0 : 1);
      const float4 part = __ldcg(reinterpret_cast<const float4*>(
          args.partial + (std::int64_t{slot} * Columns * 8 + token) * SeveralTokens::rows + row));
      sum = float4{sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
    }
    const std::int64_t at = token * std::int64_t{args.outputs} + n;
    if (args.residual != nullptr) {
      const uint2 both = *reinterpret_cast<const uint2*>(args.residual + at);
      const float2 low = device::unpack2(both.x);
      const float2 high = device::unpack2(both.y);
      sum = float4{sum.x + low.x, sum.y + low.y, sum.z + high.x, sum.w + high.y};
    }
    *reinterpret_cast<uint2*>(args.y + at) = uint2{device::pack2(sum.x, sum.y), device::pack2(sum.z, sum.w)};
  }
}

/// Writes the block's sums of a tile, and y where all blocks of the tile have written theirs.
template <int Columns>
__device__ __forceinline__ void end_tile(const SeveralTokensArgs& args, const SeveralTokensLayout& layout,
                                         const SeveralTokensShares& shares, int tile, unsigned char* shared,
                                         SeveralTokensSums<Columns>& sums) {
  const auto block = static_cast<int>(blockIdx.x);
  const int first = shares.block_of(tile * args.units);
  const int last = shares.block_of((tile + 1) * args.units - 1);
  const int slot = block * 2 + (shares.first(block) / args.units == tile ? 0 : 1);
  write_sums<Columns>(shared + layout.exchange, sums,
                      args.partial + std::int64_t{slot} * Columns * 8 * SeveralTokens::rows);
  auto* flag = reinterpret_cast<unsigned*>(shared + layout.flag);
  if (first != last) __threadfence();
  __syncthreads();
  if (first != last) {
    if (threadIdx.x == 0) {
      const auto others = static_cast<unsigned>(last - first);
      *flag = atomicAdd(args.arrivals + tile, 1U) == others ? 1U : 0U;
      if (*flag != 0) args.arrivals[tile] = 0;  // for the next launch
    }
    __syncthreads();
    if (*flag == 0) return;
    __threadfence();
  }
  store_tile<Columns>(args, shares, tile, first, last);
}

template <bool Double, int Columns>
static __global__ void __launch_bounds__(SeveralTokens::threads, 1)
    several_tokens_kernel(const __grid_constant__ SeveralTokensArgs args, const SeveralTokensLayout layout) {
  extern __shared__ __align__(256) unsigned char several_tokens_shared[];
  unsigned char* shared = several_tokens_shared;
  const SeveralTokensShares shares{std::int64_t{args.tiles} * args.units, gridDim.x};
  const int first = shares.first(static_cast<int>(blockIdx.x));
  const int last = shares.first(static_cast<int>(blockIdx.x) + 1);
  const std::uint32_t table = device::shared_address(shared);
  const std::uint32_t stages = table + static_cast<std::uint32_t>(layout.first_stage);
  const auto stage_of = [&](int index) { return stages + static_cast<std::uint32_t>(index * layout.stage_bytes); };
  const int ahead = layout.stages - 1;
  SeveralTokensLoader<Double> loader(args, layout, first);
  const int first_chunk = loader.chunk;
  for (int i = 0; i < ahead && first + i < last; ++i) {
    loader.load(args, stage_of(i));
    loader.advance(args);
  }
  prefetch_b(args, first, last);
  device::let_next_start();
  fill_tables<SeveralTokens::threads>(shared);
  device::wait_for_previous();  // weights and tables are constant; x and all that is written is not
  int tile = first / args.units;
  int chunk = first_chunk;
  for (int i = 0; i < ahead; ++i) {
    if (first + i < last) load_tokens<Columns>(args, layout, chunk, stage_of(i));
    device::copies_commit();  // the first group has the weights of all
    chunk = chunk + 1 == args.units ? 0 : chunk + 1;
  }
  chunk = first_chunk;
  SeveralTokensSums<Columns> sums = {};
  float offset[2][2] = {};
  const auto enter_tile = [&] {
    const int row = tile * SeveralTokens::rows + static_cast<int>(threadIdx.x) / 32 % 4 * 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) offset[i / 2][i % 2] = args.part[part_of(args, row / FewTokens::rows + i)].offset;
  };
  enter_tile();
  int stage = 0;
  int loaded = ahead;
  for (int unit = first; unit < last; ++unit) {
    device::copies_wait_but(ahead - 1);
    __syncthreads();  // the unit is there for all, and all are done with the stage that is filled next
    if (unit + ahead < last) {
      loader.load(args, stage_of(loaded));
      load_tokens<Columns>(args, layout, loader.chunk, stage_of(loaded));
      loader.advance(args);
    }
    device::copies_commit();
    if (chunk == args.chunks) {
      add_adapters<Columns>(args, tile, sums);
    } else {
      add_unit<Double, Columns>(table, layout, stage_of(stage), offset, sums);
    }
    stage = stage + 1 == layout.stages ? 0 : stage + 1;
    loaded = loaded + 1 == layout.stages ? 0 : loaded + 1;
    if (++chunk < args.units && unit + 1 < last) continue;
    end_tile<Columns>(args, layout, shares, tile, shared, sums);
#pragma unroll
    for (int i = 0; i < 8 * Columns; ++i) sums[i / (4 * Columns)][i / 4 % Columns][i % 4] = 0.0F;
    chunk = 0;
    ++tile;
    enter_tile();
  }
}

/// Tokens of a group that one launch serves; 0: its shape is not served.
[[nodiscard]] inline int several_tokens_at_once(const Context& context, const GroupArgs& group,
                                                std::span<const Part> parts, int outputs) {
  if (group.in % SeveralTokens::unit != 0 || parts.size() > std::size_t{FewTokens::parts} || group.quant.block != 64 ||
      group.dropout.threshold != 0 || outputs > most_arrivals * SeveralTokens::rows) {
    return 0;
  }
  bool double_quant = false;
  for (const Part& part : parts) {
    if (part.weight.rows % 16 != 0) return 0;
    double_quant = part.weight.nf4.absmax8 != nullptr;
  }
  const std::int64_t sums = std::int64_t{context.sm_count} * 2 * SeveralTokens::rows * std::int64_t{sizeof(float)};
  for (int columns = SeveralTokens::most / 8; columns > 0; columns /= 2) {
    const int stages = SeveralTokensLayout::of(columns, double_quant, context.max_shared_bytes).stages;
    if (stages > 0 && sums * columns * 8 <= context.workspace_bytes) return columns * 8;
  }
  return 0;
}

/// The ranges of rows of a pass, and the columns of XA that each part has.
inline void fill_sets(std::span<const RowAdapters<float>> ranges, const GroupArgs& group, SeveralTokensArgs& args,
                      SeveralAdaptersArgs& products) {
  QLORA_EXPECTS(ranges.size() <= std::size_t{SeveralAdapters::most}, ranges.size(), " ranges of rows with adapters");
  args.sets = static_cast<int>(ranges.size());
  int slot = 0;
  for (std::size_t p = 0; p < std::size_t{FewTokens::parts}; ++p) {
    args.part[p].slot = slot;
    bool adapted = false;
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      const RowAdapters<float>& range = ranges[i];
      args.set[i].first = range.first;
      args.set[i].last = range.first + range.count;
      args.set[i].b[p] = range.parts[p].b;
      args.set[i].scale[p] = range.parts[p].scale;
      if (range.parts[p].a == nullptr) continue;
      adapted = true;
      if (products.set[i].a == nullptr) products.set[i] = {range.parts[p].a, range.first, range.count};
    }
    slot += adapted ? group.rank : 0;
  }
}

/// At most several_tokens_at_once tokens, with the adapters of each row's range; the parts' own are not looked at. y
/// null: XA alone, with the same bits.
inline void launch_several_tokens(Context& context, const GroupArgs& group, std::span<const Part> parts,
                                  std::span<const RowAdapters<float>> ranges, int outputs, int tokens, Rows<bf16> x,
                                  const bf16* residual, bf16* y) {
  expect_packs("linear", "x", x, group.in);
  SeveralTokensArgs args;
  (void)fill_parts(group, parts, args);
  if (!ranges.empty()) {
    SeveralAdaptersArgs products;
    fill_sets(ranges, group, args, products);
    products.tokens = tokens;
    products.width = group.in;
    products.adapters = group.adapter_width();
    products.x = x;
    launch_several_adapters(context, products, args.sets);
  }
  if (y == nullptr) return;
  args.tokens = tokens;
  args.width = group.in;
  args.outputs = outputs;
  args.rank = group.rank;
  args.tiles = (outputs + SeveralTokens::rows - 1) / SeveralTokens::rows;
  args.chunks = group.in / SeveralTokens::unit;
  // Shares depend on it: under an order it is the same with adapters and without.
  args.units = args.chunks + (args.sets > 0 || context.order != RowOrder::any ? 1 : 0);
  args.x = {x.data, x.stride};
  args.residual = residual;
  args.y = y;
  args.partial = reinterpret_cast<float*>(context.workspace);
  args.arrivals = context.arrivals;
  const bool double_quant = args.part[0].absmax8 != nullptr;
  int columns = 1;
  while (columns * 8 < tokens) columns *= 2;
  const SeveralTokensLayout layout = SeveralTokensLayout::of(columns, double_quant, context.max_shared_bytes);
  const auto blocks = static_cast<unsigned>(std::min(context.sm_count, args.tiles * args.units));
  const auto launch_for = [&]<int Columns>(std::integral_constant<int, Columns>) {
    const auto kernel = double_quant ? several_tokens_kernel<true, Columns> : several_tokens_kernel<false, Columns>;
    allow_shared(context, kernel, context.max_shared_bytes, Carveout::usual, "linear, several tokens");
    launch(context, true, "linear, several tokens", kernel, dim3(blocks), dim3(SeveralTokens::threads), layout.bytes,
           args, layout);
  };
  if (columns == 1) return launch_for(std::integral_constant<int, 1>{});
  if (columns == 2) return launch_for(std::integral_constant<int, 2>{});
  launch_for(std::integral_constant<int, 4>{});
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
