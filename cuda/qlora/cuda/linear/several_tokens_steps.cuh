// qlora/cuda/linear/several_tokens_steps.cuh — what a block of several_tokens.cuh does with a unit: which it reads
// next, its codes and x on their way to shared memory, and the products of a warp.
// Math Shapes Split Fragments Needs Numbers   as several_tokens.cuh
// Cost       2 instructions per pair of weights and lane, and for each token 1/16 of an addition per weight
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

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
