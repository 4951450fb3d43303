// qlora/cuda/linear/fp8.cuh — what fp8 products read: rows of activations or gradients, and NF4 weights, in e4m3.
// Math       row t of X: x8 = e4m3(x (448 / m)), scale m / 448, m = max |x|;  W: w8 = e4m3(w (448 / M)), one scale
//            M / 448 for a group, M the largest bound of its parts;  w = state(codebook[c] absmax_b) as in nf4.cuh
// Shapes     x (T, cols) bf16, rows x.stride apart; codes of part p (N_p K / 2) bytes; out8 (T, cols) and (sum N, K),
//            or transposed (K, sum N), bytes without gaps; scales float, one a row of out8
// Writes     out8 and scales with =
// Split      rows: a block of 128 to 512 threads has a row, of which a thread keeps up to 56 numbers. Weights: a lane
//            has 16 codes of a block of 64; the four lanes of a block compute four of its 16 values each and exchange
//            them, then a lookup is two byte permutations for four codes. Transposed: tiles of 128 x 256 through shared
//            memory, whose words are swizzled by the row's sixteenth, so that 16 rows are read without bank conflicts
// Needs      cols of rows multiples of 8; K a multiple of 64, N_p of 16; block 64, nested block 256; no -ftz
// Numbers    rounded to nearest, ties to even, saturated: the bits of cpu/fp8.hpp with weights that are not rounded to
//            bf16 first. A row with a NaN or an infinity keeps one
// Cost       rows: 2 B read and 1 B written a number; weights: 0.516 B and 1 B. Bound by bandwidth
// Reference  cpu/fp8.hpp
#pragma once

#include <cuda_fp8.h>

#include <type_traits>

#include "qlora/cuda/nf4/matrix.cuh"
#include "qlora/fp8.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {

struct Fp8Policy {
  static constexpr int most_row_threads = 512;
  static constexpr int kept_units = 7;  ///< of 8 numbers of a row, in a thread's registers
  static constexpr int threads = 256;
  static constexpr int steps = 4;        ///< units of 16 codes a lane
  static constexpr int tile_rows = 128;  ///< of W, for its transpose
  static constexpr int tile_cols = 256;
  static constexpr int max_parts = 3;
};

namespace detail {

/// Four numbers times `by` in e4m3, the first in the lowest byte.
__device__ __forceinline__ std::uint32_t e4m3_word(float a, float b, float c, float d, float by) {
  const auto pair = [&](float low, float high) {
    const float2 both{__fmul_rn(low, by), __fmul_rn(high, by)};
    return static_cast<std::uint32_t>(__nv_cvt_float2_to_fp8x2(both, __NV_SATFINITE, __NV_E4M3));
  };
  return pair(a, b) | pair(c, d) << 16;
}

/// The largest magnitude of eight numbers; NaN and infinity give infinity.
__device__ __forceinline__ float largest_of(const uint4& unit) {
  const std::uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
  std::uint32_t most = 0;
#pragma unroll
  for (const std::uint32_t word : words) {  // magnitudes of bf16 compare as their bits do
    most = max(most, max(word & 0x7FFFU, (word >> 16) & 0x7FFFU));
  }
  return __uint_as_float(min(most, 0x7F80U) << 16);
}

__device__ __forceinline__ uint2 e4m3_unit(const uint4& unit, float by) {
  float values[8];
  device::to_floats(*reinterpret_cast<const device::Pack8*>(&unit), values);
  return {e4m3_word(values[0], values[1], values[2], values[3], by),
          e4m3_word(values[4], values[5], values[6], values[7], by)};
}

template <int Threads>
static __global__ void __launch_bounds__(Threads)
    quantize_rows(const int units, const bf16* __restrict__ x, const int stride, std::uint8_t* __restrict__ out,
                  float* __restrict__ scales) {
  const std::int64_t row = blockIdx.x;
  const auto* from = reinterpret_cast<const uint4*>(x + row * stride);
  auto* to = reinterpret_cast<uint2*>(out + row * units * 8);
  const int thread = static_cast<int>(threadIdx.x);
  constexpr int step = Threads;
  uint4 kept[Fp8Policy::kept_units];
  float most = 0.0F;
#pragma unroll
  for (int k = 0; k < Fp8Policy::kept_units; ++k) {
    const int unit = thread + k * step;
    kept[k] = unit < units ? from[unit] : uint4{0, 0, 0, 0};
    most = fmaxf(most, largest_of(kept[k]));
  }
  for (int unit = thread + Fp8Policy::kept_units * step; unit < units; unit += step) {
    most = fmaxf(most, largest_of(from[unit]));
  }
  most = device::block_max<Threads>(most);
  const bool zeros = most < fp8::least_row;
  // An infinite row gives 0 x infinity: NaN, which the next norm reports.
  const float inverse = zeros ? 0.0F : __fdiv_rn(fp8::largest, most);
  if (thread == 0) scales[row] = zeros ? 0.0F : __fdiv_rn(most, fp8::largest);
#pragma unroll
  for (int k = 0; k < Fp8Policy::kept_units; ++k) {
    const int unit = thread + k * step;
    if (unit < units) to[unit] = e4m3_unit(kept[k], inverse);
  }
  for (int unit = thread + Fp8Policy::kept_units * step; unit < units; unit += step) {
    to[unit] = e4m3_unit(from[unit], inverse);
  }
}

/// One NF4 matrix of a group, in units of 16 codes.
struct Fp8Weight : Nf4Matrix<uint2> {
  std::uint8_t* out = nullptr;
};
struct Fp8Weights {
  Fp8Weight part[Fp8Policy::max_parts];
  std::uint32_t begin[Fp8Policy::max_parts] = {0, 0xFFFFFFFFU, 0xFFFFFFFFU};  ///< first block of threads of each
  float inverse = 0.0F;
  float scale = 0.0F;
  float* scales = nullptr;
  std::uint32_t count = 0;      ///< of scales
  std::uint32_t row_units = 0;  ///< K / 16; transposed only
  std::uint32_t rows = 0;       ///< sum N, of a row of W^T; transposed only
};

/// A block's 16 values in e4m3, those of code 4 i + j in byte j of word i. The four lanes of the block call it
/// together, and with them the warp.
__device__ __forceinline__ uint4 block_values(float absmax, DType state, float inverse) {
  const unsigned quarter = threadIdx.x % 4;
  float values[4];
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) {
    values[i] = in_state(__fmul_rn(codebook.value[4 * quarter + i], absmax), state);
  }
  const std::uint32_t own = e4m3_word(values[0], values[1], values[2], values[3], inverse);
  return {__shfl_sync(0xFFFFFFFFU, own, 0, 4), __shfl_sync(0xFFFFFFFFU, own, 1, 4), __shfl_sync(0xFFFFFFFFU, own, 2, 4),
          __shfl_sync(0xFFFFFFFFU, own, 3, 4)};
}

/// The values of four codes: the nibbles of the lower half of `codes`, the first in the lowest.
__device__ __forceinline__ std::uint32_t four_values(const uint4& values, std::uint32_t codes) {
  const std::uint32_t low = permute_bytes(values.x, values.y, codes & 0x7777U);
  const std::uint32_t high = permute_bytes(values.z, values.w, codes & 0x7777U);
  const std::uint32_t upper = permute_bytes(0x0000FF00U, 0U, (codes >> 3) & 0x1111U);
  return (low & ~upper) | (high & upper);
}
/// The values of eight codes; the first of two is in a byte's high nibble.
__device__ __forceinline__ uint2 eight_values(const uint4& values, std::uint32_t word) {
  const std::uint32_t codes = ((word >> 4) & 0x0F0F0F0FU) | ((word & 0x0F0F0F0FU) << 4);
  return {four_values(values, codes), four_values(values, codes >> 16)};
}
__device__ __forceinline__ uint4 sixteen_values(const uint4& values, const uint2& codes) {
  const uint2 first = eight_values(values, codes.x);
  const uint2 second = eight_values(values, codes.y);
  return {first.x, first.y, second.x, second.y};
}

__device__ __forceinline__ int part_of(const Fp8Weights& args) {
  return (blockIdx.x >= args.begin[1] ? 1 : 0) + (blockIdx.x >= args.begin[2] ? 1 : 0);
}
__device__ __forceinline__ void fill_scales(const Fp8Weights& args) {
  const std::uint32_t at = blockIdx.x * Fp8Policy::threads + threadIdx.x;
  const std::uint32_t all = gridDim.x * Fp8Policy::threads;
  for (std::uint32_t i = at; i < args.count; i += all) args.scales[i] = args.scale;
}

static __global__ void __launch_bounds__(Fp8Policy::threads) dequantize_fp8(const __grid_constant__ Fp8Weights args) {
  fill_scales(args);
  const int part = part_of(args);
  const Fp8Weight& w = args.part[part];
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t warp = (blockIdx.x - args.begin[part]) * (Fp8Policy::threads / 32) + threadIdx.x / 32;
  const std::uint32_t first = warp * 32 * Fp8Policy::steps + lane;
  uint2 codes[Fp8Policy::steps];
#pragma unroll
  for (unsigned s = 0; s < Fp8Policy::steps; ++s) {
    codes[s] = first + 32 * s < w.units ? __ldcs(w.codes + first + 32 * s) : uint2{0, 0};
  }
  const std::uint32_t block = warp * 8 * Fp8Policy::steps + lane;  // lane l has the scale of the l-th of 32 blocks
  const float scale = block * 4 < w.units ? block_scale(w, block) : 0.0F;
#pragma unroll
  for (unsigned s = 0; s < Fp8Policy::steps; ++s) {
    const float absmax = __shfl_sync(0xFFFFFFFFU, scale, static_cast<int>(8 * s + lane / 4));
    const uint4 values = block_values(absmax, w.state, args.inverse);
    const std::uint32_t unit = first + 32 * s;
    if (unit < w.units) reinterpret_cast<uint4*>(w.out)[unit] = sixteen_values(values, codes[s]);
  }
}
static_assert(Fp8Policy::steps * 8 == 32, "one scale for each lane");

/// Bytes j of four words as the words of bytes: row j of `out` has byte j of a, b, c, d.
__device__ __forceinline__ void transpose_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d,
                                                std::uint32_t (&out)[4]) {
  const std::uint32_t low_ab = permute_bytes(a, b, 0x5140U);
  const std::uint32_t low_cd = permute_bytes(c, d, 0x5140U);
  const std::uint32_t high_ab = permute_bytes(a, b, 0x7362U);
  const std::uint32_t high_cd = permute_bytes(c, d, 0x7362U);
  out[0] = permute_bytes(low_ab, low_cd, 0x5410U);
  out[1] = permute_bytes(low_ab, low_cd, 0x7632U);
  out[2] = permute_bytes(high_ab, high_cd, 0x5410U);
  out[3] = permute_bytes(high_ab, high_cd, 0x7632U);
}

/// A tile of W, dequantized and written as a tile of W^T.
static __global__ void __launch_bounds__(Fp8Policy::threads)
    dequantize_fp8_transposed(const __grid_constant__ Fp8Weights args) {
  constexpr std::uint32_t tile_rows = Fp8Policy::tile_rows;
  constexpr std::uint32_t in_row = Fp8Policy::tile_cols / 16;  // units
  constexpr std::uint32_t words = in_row * 4;
  constexpr std::uint32_t groups = tile_rows / 16;
  __shared__ uint4 shared[tile_rows * in_row];
  fill_scales(args);
  const int part = part_of(args);
  const Fp8Weight& w = args.part[part];
  const std::uint32_t rows = w.units / args.row_units;
  const std::uint32_t tiles = (rows + tile_rows - 1) / tile_rows;  // blocks that run together write neighbouring bytes
  const std::uint32_t at = blockIdx.x - args.begin[part];
  const std::uint32_t first_n = at % tiles * tile_rows;
  const std::uint32_t first_unit = at / tiles * in_row;
  const std::uint32_t thread = threadIdx.x;
  const std::uint32_t column = thread % in_row;
  constexpr std::uint32_t steps = tile_rows * in_row / Fp8Policy::threads;
  uint2 codes[steps];
  float absmax[steps];
#pragma unroll
  for (std::uint32_t s = 0; s < steps; ++s) {
    const std::uint32_t row = (s * Fp8Policy::threads + thread) / in_row;
    const bool inside = first_n + row < rows && first_unit + column < args.row_units;
    const std::uint32_t unit = (first_n + row) * args.row_units + first_unit + column;
    codes[s] = inside ? __ldcs(w.codes + unit) : uint2{0, 0};
    absmax[s] = inside ? block_scale(w, unit / 4) : 0.0F;
  }
#pragma unroll
  for (std::uint32_t s = 0; s < steps; ++s) {
    const std::uint32_t row = (s * Fp8Policy::threads + thread) / in_row;
    const uint4 values = block_values(absmax[s], w.state, args.inverse);
    shared[row * in_row + (column ^ (row / 16))] = sixteen_values(values, codes[s]);
  }
  __syncthreads();
  const std::uint32_t group = thread % groups;  // of 16 rows
  const std::uint32_t n = first_n + group * 16;
#pragma unroll
  for (std::uint32_t word = thread / groups; word < words; word += Fp8Policy::threads / groups) {  // four columns
    const auto* from = reinterpret_cast<const std::uint32_t*>(shared) + group * 16 * words + (word ^ (group * 4));
    std::uint32_t out[4][4];
#pragma unroll
    for (std::uint32_t quad = 0; quad < 4; ++quad) {
      std::uint32_t turned[4];
      const auto* four = from + quad * 4 * words;
      transpose_bytes(four[0], four[words], four[2 * words], four[3 * words], turned);
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i][quad] = turned[i];
    }
    const std::uint32_t k = first_unit * 16 + word * 4;
    if (n >= rows || k >= args.row_units * 16) continue;
#pragma unroll
    for (std::uint32_t i = 0; i < 4; ++i) {
      *reinterpret_cast<uint4*>(w.out + std::uint64_t{k + i} * args.rows + n) =
          uint4{out[i][0], out[i][1], out[i][2], out[i][3]};
    }
  }
}

[[nodiscard]] inline Fp8Weight fp8_weight(const Weight<bf16>& weight, int in, const Quant& quant) {
  const Nf4View& w = weight.nf4;
  QLORA_EXPECTS(weight.dense == nullptr && w.codes != nullptr, "fp8 products read weights in NF4");
  QLORA_EXPECTS(in % 64 == 0 && weight.rows % 16 == 0, "a weight of ", weight.rows, " x ", in,
                " for fp8 products; they read multiples of 16 x 64");
  return {nf4_matrix<uint2>(w, std::int64_t{weight.rows} * in, quant)};
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void quantize_rows_fp8(Context& context, int rows, int cols, Rows<const bf16> x, std::uint8_t* out,
                                           float* scales) {
  if (rows == 0) return;
  QLORA_EXPECTS(cols > 0 && cols % 8 == 0 && x.stride % 8 == 0 && reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0,
                "rows of ", cols, " at a stride of ", x.stride,
                "; both are multiples of 8, and rows begin on 16 bytes");
  const auto launch = [&]<int Threads>(std::integral_constant<int, Threads> /*threads*/) {
    detail::quantize_rows<Threads>
        <<<static_cast<unsigned>(rows), Threads, 0, context.stream>>>(cols / 8, x.data, x.stride, out, scales);
  };
  const int threads = (cols / 8 + Fp8Policy::kept_units - 1) / Fp8Policy::kept_units;
  if (threads <= Fp8Policy::most_row_threads / 4) {
    launch(std::integral_constant<int, Fp8Policy::most_row_threads / 4>{});
  } else if (threads <= Fp8Policy::most_row_threads / 2) {
    launch(std::integral_constant<int, Fp8Policy::most_row_threads / 2>{});
  } else {
    launch(std::integral_constant<int, Fp8Policy::most_row_threads>{});
  }
  check_launch("quantize_rows_fp8");
}

QLORA_CUDA_LAUNCHER void dequantize_group_fp8(Context& context, const GroupArgs& group, std::span<const Part> parts,
                                              bool transposed, std::uint8_t* out, float* scales) {
  QLORA_EXPECTS(!parts.empty() && parts.size() <= std::size_t{Fp8Policy::max_parts}, "a group of ", parts.size(),
                " parts");
  detail::Fp8Weights args;
  float most = 0.0F;
  std::int64_t row = 0;
  std::uint32_t blocks = 0;
  const auto rounded_up = [](std::int64_t count, std::int64_t by) {
    return static_cast<std::uint32_t>((count + by - 1) / by);
  };
  for (std::size_t p = 0; p < parts.size(); ++p) {
    detail::Fp8Weight& w = args.part[p];
    w = detail::fp8_weight(parts[p].weight, group.in, group.quant);
    w.out = out + (transposed ? row : row * group.in);
    args.begin[p] = blocks;
    blocks += transposed
                  ? rounded_up(parts[p].weight.rows, Fp8Policy::tile_rows) * rounded_up(group.in, Fp8Policy::tile_cols)
                  : rounded_up(w.units, Fp8Policy::threads * Fp8Policy::steps);
    most = std::max(most, parts[p].weight.nf4.largest);
    row += parts[p].weight.rows;
  }
  const fp8::Scale scale = fp8::scale_of(most);
  args.inverse = scale.inverse;
  args.scale = scale.scale;
  args.scales = scales;
  args.count = static_cast<std::uint32_t>(transposed ? group.in : row);
  args.row_units = static_cast<std::uint32_t>(group.in / 16);
  args.rows = static_cast<std::uint32_t>(row);
  if (transposed) {
    detail::dequantize_fp8_transposed<<<blocks, Fp8Policy::threads, 0, context.stream>>>(args);
  } else {
    detail::dequantize_fp8<<<blocks, Fp8Policy::threads, 0, context.stream>>>(args);
  }
  check_launch("dequantize_group_fp8");
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
