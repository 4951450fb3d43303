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

#include <algorithm>

#include "qlora/cuda/linear/several_adapters.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

struct SeveralTokens {
  static constexpr int groups = 4;  ///< of four warps, each with a block of 64 columns
  static constexpr int warps = 4 * groups;
  static constexpr int threads = warps * 32;
  static constexpr int most = 32;                    ///< tokens of a pass
  static constexpr int rows = 128;                   ///< of a tile
  static constexpr int unit = 64 * groups;           ///< columns
  static constexpr int stages = 6;                   ///< units in shared memory, at most
  static constexpr int row_bytes = unit / 2;         ///< codes of a row
  static constexpr int token_bytes = unit * 2 + 16;  ///< x of a token, so that eight tokens are in different banks
};

/// The B of adapters of neighbouring tokens.
struct SeveralTokensSet {
  int first = 0;  ///< token
  int last = 0;
  const float* b[FewTokens::parts] = {};  ///< of each part; null: no adapter
  float scale[FewTokens::parts] = {};
};
struct SeveralTokensArgs {
  FewTokensPart part[FewTokens::parts];
  SeveralTokensSet set[SeveralAdapters::most];
  int sets = 0;
  int tokens = 0;
  int width = 0;    ///< K
  int outputs = 0;  ///< sum N
  int rank = 0;
  int tiles = 0;   ///< of rows
  int chunks = 0;  ///< units of K
  int units = 0;   ///< of a tile: chunks, and one for the adapters
  Rows<const bf16> x{};
  const bf16* residual = nullptr;
  bf16* y = nullptr;
  float* partial = nullptr;
  unsigned* arrivals = nullptr;
};

/// Byte offsets in the block's shared memory: tables, room for exchanges between warps, a flag, stages.
struct SeveralTokensLayout {
  int exchange = 0;
  int flag = 0;
  int first_stage = 0;
  int x = 0;       ///< in a stage, behind the codes
  int scales = 0;  ///< in a stage
  int stage_bytes = 0;
  int stages = 0;  ///< 0: there is no room for two
  int bytes = 0;
  /// For `columns` times eight tokens.
  static SeveralTokensLayout of(int columns, bool double_quant, int most_bytes) {
    SeveralTokensLayout layout;
    layout.exchange = FewTokens::table_bytes + 256 * 4;
    layout.flag = layout.exchange + (SeveralTokens::groups - 1) * 4 * 32 * 32;
    layout.first_stage = layout.flag + 16;
    layout.x = SeveralTokens::rows * SeveralTokens::row_bytes;
    layout.scales = layout.x + columns * 8 * SeveralTokens::token_bytes;
    layout.stage_bytes = layout.scales + SeveralTokens::rows * (double_quant ? 8 : 16);
    layout.stages = std::min((most_bytes - layout.first_stage) / layout.stage_bytes, SeveralTokens::stages);
    if (layout.stages < 2) layout.stages = 0;
    layout.bytes = layout.first_stage + layout.stages * layout.stage_bytes;
    return layout;
  }
};

/// Units of a block, and which block has a unit: shares that differ by at most one.
struct SeveralTokensShares {
  std::int64_t units;
  std::int64_t blocks;
  [[nodiscard]] __device__ __forceinline__ int first(int block) const {
    return static_cast<int>(block * units / blocks);
  }
  [[nodiscard]] __device__ __forceinline__ int block_of(int unit) const {
    return static_cast<int>(((unit + std::int64_t{1}) * blocks - 1) / units);
  }
};

/// A row of a tile.
struct SeveralTokensRow {
  const FewTokensPart* part;
  std::int64_t n;  ///< row in the part
  bool inside;
  __device__ __forceinline__ SeveralTokensRow(const SeveralTokensArgs& args, int tile, int row) {
    const int at = tile * SeveralTokens::rows + row;
    inside = at < args.outputs;
    part = &args.part[part_of(args, at / FewTokens::rows)];
    n = at - part->first_tile * FewTokens::rows;
  }
};

/// What a thread copies of the units to come: 16 bytes of codes in every 64th row, and the scales of one row.
template <bool Double>
struct SeveralTokensLoader {
  static constexpr int step = SeveralTokens::threads / 8;  ///< rows
  static constexpr int copies = SeveralTokens::rows / step;
  int tile;
  int chunk;
  const std::uint8_t* codes[copies];  ///< of the unit
  std::uint32_t inside;               ///< a bit for each copy, the highest for the scales
  std::int64_t block;                 ///< of the scales
  const void* scales;                 ///< of the part
  std::uint32_t to;                   ///< in a stage
  std::uint32_t scales_to;

  __device__ __forceinline__ SeveralTokensLoader(const SeveralTokensArgs& args, const SeveralTokensLayout& layout,
                                                 int unit)
      : tile(unit / args.units), chunk(unit - tile * args.units) {
    const int thread = static_cast<int>(threadIdx.x);
    const int row = thread / 8;
    const int pack = thread % 8 ^ (row & 3) << 1;  // so that a warp's reads of four rows are in different banks
    to = static_cast<std::uint32_t>(row * SeveralTokens::row_bytes + pack * 16);
    scales_to = static_cast<std::uint32_t>(layout.scales + (Double ? thread * 4 : thread * 16));
    enter(args);
  }
  __device__ __forceinline__ void enter(const SeveralTokensArgs& args) {
    const int thread = static_cast<int>(threadIdx.x);
    inside = 0;
#pragma unroll
    for (int i = 0; i < copies; ++i) {
      const SeveralTokensRow from(args, tile, i * step + thread / 8);
      codes[i] = from.part->codes;
      if (!from.inside) continue;
      inside |= 1U << i;
      codes[i] += from.n * (args.width / 2) + chunk * SeveralTokens::row_bytes + thread % 8 * 16;
    }
    const SeveralTokensRow from(args, tile, thread % SeveralTokens::rows);
    block = from.inside ? from.n * (args.width / 64) + chunk * 4 : 0;
    const bool nested = thread >= SeveralTokens::rows;
    scales = !Double  ? static_cast<const void*>(from.part->absmax)
             : nested ? static_cast<const void*>(from.part->nested)
                      : static_cast<const void*>(from.part->absmax8);
    if (from.inside && thread < SeveralTokens::rows * (Double ? 2 : 1)) inside |= 1U << 31;
  }
  /// Codes and scales to a stage; nothing for the adapters' unit.
  __device__ __forceinline__ void load(const SeveralTokensArgs& args, std::uint32_t stage) const {
    if (chunk == args.chunks) return;
#pragma unroll
    for (int i = 0; i < copies; ++i) {
      device::copy_async16(stage + to + static_cast<std::uint32_t>(i * step * SeveralTokens::row_bytes), codes[i],
                           (inside >> i & 1U) != 0);
    }
    const auto thread = static_cast<int>(threadIdx.x);
    if (thread >= SeveralTokens::rows * (Double ? 2 : 1)) return;
    const bool there = inside >> 31 != 0;
    if constexpr (Double) {
      const void* from = thread >= SeveralTokens::rows
                             ? static_cast<const void*>(static_cast<const float*>(scales) + (block >> 8))
                             : static_cast<const void*>(static_cast<const std::uint8_t*>(scales) + block);
      device::copy_async4(stage + scales_to, from, there);
    } else {
      device::copy_async16(stage + scales_to, static_cast<const float*>(scales) + block, there);
    }
  }
  __device__ __forceinline__ void advance(const SeveralTokensArgs& args) {
    ++chunk;
    block += 4;
#pragma unroll
    for (int i = 0; i < copies; ++i) codes[i] += SeveralTokens::row_bytes;
    if (chunk < args.units) return;
    chunk = 0;
    ++tile;
    enter(args);
  }
};
/// x of a unit to a stage; zeros for tokens that there are not.
template <int Columns>
__device__ __forceinline__ void load_tokens(const SeveralTokensArgs& args, const SeveralTokensLayout& layout, int chunk,
                                            std::uint32_t stage) {
  if (chunk == args.chunks) return;
  const int pack = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < (Columns + 1) / 2; ++i) {
    const int token = i * SeveralTokens::warps + static_cast<int>(threadIdx.x) / 32;
    if (Columns == 1 && token >= 8) return;
    const bool inside = token < args.tokens;
    const bf16* from = args.x.data;
    if (inside) from += std::int64_t{token} * args.x.stride + chunk * SeveralTokens::unit + pack * 8;
    const int to = layout.x + token * SeveralTokens::token_bytes + pack * 16;
    device::copy_async16(stage + static_cast<std::uint32_t>(to), from, inside);
  }
}

/// Brings B of the tiles whose adapters' unit the block has to L2.
__device__ __forceinline__ void prefetch_b(const SeveralTokensArgs& args, int first, int last) {
  if (args.sets == 0) return;
  for (int tile = first / args.units; (tile + 1) * args.units <= last; ++tile) {
    const SeveralTokensRow row(args, tile, static_cast<int>(threadIdx.x) % SeveralTokens::rows);
    if (!row.inside) continue;
    for (int set = 0; set < args.sets; ++set) {
      const float* b = args.set[set].b[row.part - args.part];
      if (b == nullptr) continue;
      constexpr int step = SeveralTokens::threads / SeveralTokens::rows * 32;  // a line of 128 bytes has 32
      for (int at = static_cast<int>(threadIdx.x) / SeveralTokens::rows * 32; at < args.rank; at += step) {
        prefetch(b + row.n * args.rank + at);
      }
    }
  }
}

/// Sums of a warp: 32 rows by 8 Columns tokens. [block of 16 rows][eight tokens][as mma has them]
template <int Columns>
using SeveralTokensSums = float[2][Columns][4];

/// Reads of a stage and of the tables at 32-bit addresses: one instruction less for each than with pointers. Stages
/// change, so their reads keep their place between barriers.
__device__ __forceinline__ uint4 read16(std::uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
  return v;
}
__device__ __forceinline__ uint2 read8(std::uint32_t at) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
  return v;
}
__device__ __forceinline__ float read_float(std::uint32_t at) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at));
  return v;
}
__device__ __forceinline__ std::uint32_t read_byte(std::uint32_t at) {
  std::uint32_t v;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(at));
  return v;
}
/// values_of at a table's address.
template <int Index>
__device__ __forceinline__ std::uint32_t values_at(std::uint32_t table, std::uint32_t word, std::uint32_t copy) {
  std::uint32_t at;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(at) : "r"(word), "r"(copy), "n"(0x5504 | Index << 4));
  std::uint32_t v;
  asm("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(table + at));
  return v;
}

/// Adds the products of a unit, of which the warp has 32 rows and one block.
template <bool Double, int Columns>
__device__ __forceinline__ void add_unit(std::uint32_t table, const SeveralTokensLayout& layout, std::uint32_t stage,
                                         const float (&offset)[2][2], SeveralTokensSums<Columns>& sums) {
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t g = lane / 4;
  const std::uint32_t q = lane % 4;
  const std::uint32_t copy = lane * 4;
  const std::uint32_t first_row = threadIdx.x / 32 % 4 * 32 + g;
  const std::uint32_t block = threadIdx.x / 128;
  const std::uint32_t pack = (block * 2 + q / 2) ^ (g & 3) << 1;
  const std::uint32_t from = stage + first_row * SeveralTokens::row_bytes + pack * 16 + q % 2 * 8;
  const std::uint32_t scales = stage + static_cast<std::uint32_t>(layout.scales);
  const std::uint32_t x =
      stage + static_cast<std::uint32_t>(layout.x) + g * SeveralTokens::token_bytes + block * 128 + q * 32;
  uint2 codes[2][2];
  float scale[2][2];
#pragma unroll
  for (std::uint32_t i = 0; i < 4; ++i) codes[i / 2][i % 2] = read8(from + i * 8 * SeveralTokens::row_bytes);
  if constexpr (Double) {
    std::uint32_t code[4];
#pragma unroll
    for (std::uint32_t i = 0; i < 4; ++i) {
      code[i] = read_byte(scales + (first_row + i * 8) * 4 + block);
      scale[i / 2][i % 2] = read_float(scales + SeveralTokens::rows * 4 + (first_row + i * 8) * 4);
    }
#pragma unroll
    for (std::uint32_t i = 0; i < 4; ++i) {
      const float dynamic = read_float(table + FewTokens::table_bytes + code[i] * 4);
      scale[i / 2][i % 2] = __fadd_rn(__fmul_rn(dynamic, scale[i / 2][i % 2]), offset[i / 2][i % 2]);
    }
  } else {
#pragma unroll
    for (std::uint32_t i = 0; i < 4; ++i)
      scale[i / 2][i % 2] = read_float(scales + (first_row + i * 8) * 16 + block * 4);
  }
  float here[2][Columns][4] = {};
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {  // of steps of mma
    uint4 token[Columns];
#pragma unroll
    for (int c = 0; c < Columns; ++c) {
      token[c] = read16(x + static_cast<std::uint32_t>(c * 8 * SeveralTokens::token_bytes + pair * 16));
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const std::uint32_t upper = pair == 0 ? codes[m][0].x : codes[m][0].y;
      const std::uint32_t lower = pair == 0 ? codes[m][1].x : codes[m][1].y;
      const std::uint32_t first[4] = {values_at<0>(table, upper, copy), values_at<0>(table, lower, copy),
                                      values_at<1>(table, upper, copy), values_at<1>(table, lower, copy)};
      const std::uint32_t second[4] = {values_at<2>(table, upper, copy), values_at<2>(table, lower, copy),
                                       values_at<3>(table, upper, copy), values_at<3>(table, lower, copy)};
#pragma unroll
      for (int c = 0; c < Columns; ++c) device::mma(here[m][c], first, token[c].x, token[c].y);
#pragma unroll
      for (int c = 0; c < Columns; ++c) device::mma(here[m][c], second, token[c].z, token[c].w);
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int c = 0; c < Columns; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][c][i] = fmaf(scale[m][i / 2], here[m][c][i], sums[m][c][i]);
    }
  }
}

/// Adds the adapters' products of a tile: the warp's 32 rows, and every fourth step of 16 columns of XA.
template <int Columns>
__device__ __forceinline__ void add_adapters(const SeveralTokensArgs& args, int tile,
                                             SeveralTokensSums<Columns>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int q = lane % 4;
  const int first_row = static_cast<int>(threadIdx.x) / 32 % 4 * 32;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const SeveralTokensRow upper(args, tile, first_row + m * 16 + g);
    const SeveralTokensRow lower(args, tile, first_row + m * 16 + g + 8);  // of the same part
    const auto part = static_cast<int>(upper.part - args.part);
    const bf16* xa = args.x.data + args.width + upper.part->slot;
    for (int s = 0; s < args.sets; ++s) {
      const SeveralTokensSet& set = args.set[s];
      if (set.b[part] == nullptr) continue;
      for (int column = static_cast<int>(threadIdx.x) / 128 * 16; column < args.rank;
           column += 16 * SeveralTokens::groups) {
        const auto pair_of = [&](const SeveralTokensRow& row, int at) {
          if (!row.inside || at >= args.rank) return 0U;
          const float2 two = __ldg(reinterpret_cast<const float2*>(set.b[part] + row.n * args.rank + at));
          return device::pack2(__fmul_rn(two.x, set.scale[part]), __fmul_rn(two.y, set.scale[part]));
        };
        const int at = column + q * 2;
        const std::uint32_t b[4] = {pair_of(upper, at), pair_of(lower, at), pair_of(upper, at + 8),
                                    pair_of(lower, at + 8)};
#pragma unroll
        for (int c = 0; c < Columns; ++c) {
          if (set.last <= c * 8 || set.first >= c * 8 + 8) continue;
          const int token = c * 8 + g;
          std::uint32_t x[2] = {0U, 0U};
          if (token >= set.first && token < set.last) {
            const bf16* row = xa + std::int64_t{token} * args.x.stride;
            x[0] = *reinterpret_cast<const std::uint32_t*>(row + at);
            if (at + 8 < args.rank) x[1] = *reinterpret_cast<const std::uint32_t*>(row + at + 8);
          }
          device::mma(sums[m][c], b, x[0], x[1]);
        }
      }
    }
  }
}

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
  args.units = args.chunks + (args.sets > 0 ? 1 : 0);
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
