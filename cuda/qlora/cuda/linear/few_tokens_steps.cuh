// qlora/cuda/linear/few_tokens_steps.cuh — what a warp of few_tokens.cuh does with NF4 codes: which it reads next, and
// the products of one step, 8 rows by 256 columns.
// Math Shapes Fragments Numbers   as few_tokens.cuh
// Split      each block has a range of tiles, each warp a range of the block's steps
// Needs      sm_80; K a multiple of 256; the tables of fill_tables in shared memory
// Cost       32 reads of the table, 32 PRMT and 8 mma per step
// Reference  cpu/linear.hpp; the parity tests of linear groups
#pragma once

#include "qlora/cuda/attention/tiles.cuh"
#include "qlora/cuda/nf4/codes.cuh"
#include "qlora/cuda/rowwise/rows.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

struct FewTokens {
  static constexpr int warps = 16;
  static constexpr int threads = warps * 32;
  static constexpr int most = 8;    ///< tokens of a pass: 8, 4, 2 or 1
  static constexpr int rows = 8;    ///< of a tile
  static constexpr int step = 256;  ///< columns
  static constexpr int ahead = 3;   ///< steps that a warp has loaded ahead: 48 KiB per multiprocessor are in flight
  static constexpr int parts = 3;   ///< q, k, v
  static constexpr int table_bytes = 256 * 256;  ///< byte b, copy of lane l: at 256 b + 4 l
};

struct FewTokensPart {
  const std::uint8_t* codes = nullptr;
  const float* absmax = nullptr;
  const std::uint8_t* absmax8 = nullptr;
  const float* nested = nullptr;
  float offset = 0.0F;
  const float* b = nullptr;  ///< null: no adapter
  float scale = 0.0F;
  int slot = 0;        ///< its first column of XA
  int first_tile = 0;  ///< in the group
};
struct FewTokensArgs {
  FewTokensPart part[FewTokens::parts];
  int tokens = 0;
  int width = 0;     ///< K
  int outputs = 0;   ///< sum N
  int adapters = 0;  ///< XA
  int rank = 0;
  int chunks = 0;         ///< of K
  int chunk_columns = 0;  ///< multiple of 128
  const float* a = nullptr;
  Rows<bf16> x{};
  const bf16* residual = nullptr;
  bf16* y = nullptr;
  float* partial = nullptr;
};

/// Pairs of tokens that a pass has registers for.
[[nodiscard]] __host__ __device__ constexpr int pairs_of(int tokens) { return tokens > 4 ? 4 : tokens > 2 ? 2 : 1; }

/// Byte offsets in the block's shared memory behind the table.
struct FewTokensLayout {
  int first_tile;  ///< (warps) int: the first tile of each warp, in the block
  int x;           ///< (T, K) bf16 in the order of fragments
  int sums;        ///< (warps, span, pairs, 8, 2 tokens, 2) float
  int adapter;     ///< (T, XA) float
  int shares;      ///< (rows of the block, T) float
  int bytes;
  int span;  ///< tiles that one warp may touch
  __host__ __device__ static FewTokensLayout of(int tokens, int width, int adapters, int tiles_of_block) {
    FewTokensLayout layout{};
    layout.span = (tiles_of_block + FewTokens::warps - 1) / FewTokens::warps + 1;
    layout.first_tile = FewTokens::table_bytes + 256 * 4;  // behind the table of scales
    layout.x = layout.first_tile + FewTokens::warps * 4;
    layout.sums = layout.x + tokens * width * 2;
    layout.adapter = layout.sums + FewTokens::warps * layout.span * pairs_of(tokens) * 32 * 4;
    layout.shares = layout.adapter + tokens * adapters * 4;
    layout.bytes = layout.shares + (adapters > 0 ? tiles_of_block * FewTokens::rows * tokens * 4 : 0);
    return layout;
  }
};

/// The tiles of the block: [first, last).
struct FewTokensTiles {
  int first;
  int last;
  __device__ __forceinline__ explicit FewTokensTiles(int tiles) {
    const auto block = static_cast<std::int64_t>(blockIdx.x);
    const auto blocks = static_cast<std::int64_t>(gridDim.x);
    first = static_cast<int>(block * tiles / blocks);
    last = static_cast<int>((block + 1) * tiles / blocks);
  }
};
/// First step of a warp when `steps` are shared by all.
__device__ __forceinline__ int share_of(int warp, int steps) { return warp * steps / FewTokens::warps; }
/// The warp with this step.
__device__ __forceinline__ int warp_of(int step, int steps) { return ((step + 1) * FewTokens::warps - 1) / steps; }

/// The part that has a tile of FewTokens::rows rows of the group.
template <class Args>
__device__ __forceinline__ int part_of(const Args& args, int tile) {
  return (tile >= args.part[1].first_tile ? 1 : 0) + (tile >= args.part[2].first_tile ? 1 : 0);
}

/// Fills args.part from the parts of a group; the stacked A, or null without adapters.
template <class Args>
const float* fill_parts(const GroupArgs& group, std::span<const Part> parts, Args& args) {
  const float* a = nullptr;
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
    if (a == nullptr) a = part.a;
    to.b = part.b;
    to.scale = part.scale;
    to.slot = slot;
    slot += group.rank;
  }
  return a;
}

/// One step of a lane: 16 bytes of its row's blocks 0 and 1, 16 of blocks 2 and 3, and the scales of one such pair.
template <bool Double>
struct FewTokensStep {
  uint4 left;
  uint4 right;
  std::uint32_t absmax8;
  float nested;
  float2 absmax;
};
__device__ __forceinline__ uint4 load_codes(const std::uint8_t* p) {
  uint4 codes;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(codes.x), "=r"(codes.y), "=r"(codes.z), "=r"(codes.w)
               : "l"(p));
  return codes;
}

/// Brings 128 bytes to L2.
__device__ __forceinline__ void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
/// The table of pairs: one copy per lane, so that a read of the warp meets each bank once. Behind it the codes of
/// scales.
template <int Threads>
__device__ __forceinline__ void fill_tables(unsigned char* shared) {
  for (int i = static_cast<int>(threadIdx.x); i < 256 * 8; i += Threads) {
    const int byte = i / 8;
    const __nv_bfloat162 pair = __floats2bfloat162_rn(codebook.value[byte >> 4], codebook.value[byte & 15]);
    const auto word = *reinterpret_cast<const std::uint32_t*>(&pair);
    *reinterpret_cast<uint4*>(shared + byte * 256 + i % 8 * 16) = uint4{word, word, word, word};
  }
  if (threadIdx.x < 256) {
    reinterpret_cast<float*>(shared + FewTokens::table_bytes)[threadIdx.x] = dynamic8.value[threadIdx.x];
  }
}

/// Where a lane reads next.
template <bool Double>
struct FewTokensCursor {
  int tile;
  int step;
  const std::uint8_t* codes;
  std::int64_t block;  ///< of its part
  const void* scales;
  const float* nested;

  __device__ __forceinline__ void enter(const FewTokensArgs& args) {
    const FewTokensPart& part = args.part[part_of(args, tile)];
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::int64_t row = std::int64_t{tile - part.first_tile} * FewTokens::rows + lane / 4;
    block = row * (args.width / 64) + step * 4;
    codes = part.codes + block * 32 + lane % 4 * 16;
    nested = part.nested;
    scales = Double ? static_cast<const void*>(part.absmax8) : part.absmax;
  }
  __device__ __forceinline__ void load(FewTokensStep<Double>& to) const {
    to.left = load_codes(codes);
    to.right = load_codes(codes + 64);
    const std::int64_t pair = block + threadIdx.x % 2 * 2;
    if constexpr (Double) {
      to.absmax8 = __ldg(reinterpret_cast<const std::uint16_t*>(static_cast<const std::uint8_t*>(scales) + pair));
      to.nested = __ldg(nested + (block >> 8));
    } else {
      to.absmax = __ldg(reinterpret_cast<const float2*>(static_cast<const float*>(scales) + pair));
    }
  }
  __device__ __forceinline__ void advance(const FewTokensArgs& args, int steps_in_row, bool more) {
    ++step;
    block += 4;
    codes += 128;
    if (step == steps_in_row && more) {
      step = 0;
      ++tile;
      enter(args);
    }
  }
};

/// The two values of byte Index of a word of codes, from the lane's copy of the table.
template <int Index>
__device__ __forceinline__ std::uint32_t values_of(const unsigned char* table, std::uint32_t word) {
  const std::uint32_t copy = threadIdx.x % 32 * 4;
  std::uint32_t at;  // byte Index in the second byte, the copy in the first: 256 b + 4 l
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(at) : "r"(word), "r"(copy), "n"(0x5504 | Index << 4));
  return *reinterpret_cast<const std::uint32_t*>(table + at);
}

/// Adds two products per lane: words of codes in the rows g and g + 8 of the left operand.
__device__ __forceinline__ void multiply_words(float (&c)[4], const unsigned char* table, std::uint32_t left,
                                               std::uint32_t right, const uint4& x) {
  const std::uint32_t low[4] = {values_of<0>(table, left), values_of<0>(table, right), values_of<1>(table, left),
                                values_of<1>(table, right)};
  device::mma(c, low, x.x, x.y);
  const std::uint32_t high[4] = {values_of<2>(table, left), values_of<2>(table, right), values_of<3>(table, left),
                                 values_of<3>(table, right)};
  device::mma(c, high, x.z, x.w);
}

/// The scales of the lane's two blocks.
template <bool Double>
__device__ __forceinline__ float2 scales_of(const FewTokensStep<Double>& step, const unsigned char* table,
                                            float offset) {
  float2 scale;
  if constexpr (Double) {
    const auto* scales = reinterpret_cast<const float*>(table + FewTokens::table_bytes);
    scale.x = __fadd_rn(__fmul_rn(scales[step.absmax8 & 0xFFU], step.nested), offset);
    scale.y = __fadd_rn(__fmul_rn(scales[step.absmax8 >> 8], step.nested), offset);
  } else {
    scale = step.absmax;
  }
  return scale;
}

/// What a lane adds to the sum of its row and token in a step: two blocks' products times their scales. x: the lane's
/// fragments of the step, read where `active` and zeros elsewhere.
template <bool Double>
__device__ __forceinline__ float sum_of_step(const FewTokensStep<Double>& step, const unsigned char* table,
                                             float offset, const unsigned char* x, bool active, float sum) {
  const float2 scale = scales_of(step, table, offset);
  uint4 token[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    token[i] = uint4{0U, 0U, 0U, 0U};
    if (active) token[i] = *reinterpret_cast<const uint4*>(x + i * 128);
  }
  float c[2][4] = {};  // two sums, so that not every product waits for the one before it
  multiply_words(c[0], table, step.left.x, step.right.x, token[0]);
  multiply_words(c[1], table, step.left.y, step.right.y, token[1]);
  multiply_words(c[0], table, step.left.z, step.right.z, token[2]);
  multiply_words(c[1], table, step.left.w, step.right.w, token[3]);
  const bool second = threadIdx.x % 2 != 0;  // blocks 2 and 3 of the step
  sum = fmaf(scale.x, second ? c[0][2] + c[1][2] : c[0][0] + c[1][0], sum);
  return fmaf(scale.y, second ? c[0][3] + c[1][3] : c[0][1] + c[1][1], sum);
}

/// The same for several pairs of tokens, `pair` bytes apart at x. What the table gives is used for all of them.
template <bool Double, int Pairs>
__device__ __forceinline__ void sums_of_step(const FewTokensStep<Double>& step, const unsigned char* table,
                                             float offset, const unsigned char* x, int pair, int active,
                                             float (&sum)[Pairs]) {
  const float2 scale = scales_of(step, table, offset);
  const std::uint32_t left[4] = {step.left.x, step.left.y, step.left.z, step.left.w};
  const std::uint32_t right[4] = {step.right.x, step.right.y, step.right.z, step.right.w};
  const bool second = threadIdx.x % 2 != 0;  // blocks 2 and 3 of the step
  float2 total[Pairs];
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // words 0 and 2, then 1 and 3: the order of sum_of_step
    float c[Pairs][4] = {};
#pragma unroll
    for (int i = half; i < 4; i += 2) {
      const std::uint32_t low[4] = {values_of<0>(table, left[i]), values_of<0>(table, right[i]),
                                    values_of<1>(table, left[i]), values_of<1>(table, right[i])};
      const std::uint32_t high[4] = {values_of<2>(table, left[i]), values_of<2>(table, right[i]),
                                     values_of<3>(table, left[i]), values_of<3>(table, right[i])};
#pragma unroll
      for (int p = 0; p < Pairs; ++p) {
        uint4 token{0U, 0U, 0U, 0U};
        if (p < active) token = *reinterpret_cast<const uint4*>(x + p * pair + i * 128);
        device::mma(c[p], low, token.x, token.y);
        device::mma(c[p], high, token.z, token.w);
      }
    }
#pragma unroll
    for (int p = 0; p < Pairs; ++p) {
      const float2 own = second ? float2{c[p][2], c[p][3]} : float2{c[p][0], c[p][1]};
      total[p] = half == 0 ? own : float2{total[p].x + own.x, total[p].y + own.y};
    }
  }
#pragma unroll
  for (int p = 0; p < Pairs; ++p) {
    sum[p] = fmaf(scale.x, total[p].x, sum[p]);
    sum[p] = fmaf(scale.y, total[p].y, sum[p]);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
