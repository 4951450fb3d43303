// qlora/cuda/linear/dora_kernels.cuh — the kernels of dora.cuh.
// Math Shapes   as dora.cuh
// Split      scale_outputs: rows.cuh, two packs per thread. dora_gradient: 32 columns per block, whose 64 groups of
//            threads share the tokens and add their sums in order. dora_outputs: 64 columns by 16 tokens per block, a
//            thread per column with four of the tokens. row_lengths: a warp per row
// Needs      widths and heights that are multiples of 8, R of 4; 16-byte alignment
// Cost       bound by memory: 8 and 6 bytes an output, 4 and what adapters take, 2 a weight
// Reference  cpu/dora.hpp; the parity tests of linear groups
#pragma once

#include "qlora/cuda/attention/tiles.cuh"
#include "qlora/cuda/rowwise/rows.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The factors of all rows of a group.
struct DoraRows {
  const float* factors[3] = {};  ///< (N) of a part; null: 1
  int first[3] = {};             ///< row in the group; of parts that there are not the end
};
/// The part that has an output of the group.
__device__ __forceinline__ int dora_part(const DoraRows& rows, int column) {
  return (column >= rows.first[1] ? 1 : 0) + (column >= rows.first[2] ? 1 : 0);
}
__device__ __forceinline__ void load_factors(const DoraRows& rows, int column, float (&factor)[8]) {
  const int part = dora_part(rows, column);
  if (rows.factors[part] != nullptr)
    return device::load8_constant(rows.factors[part] + column - rows.first[part], factor);
#pragma unroll
  for (float& one : factor) one = 1.0F;
}
[[nodiscard]] inline DoraRows dora_rows(std::span<const Part> parts) {
  QLORA_EXPECTS(parts.size() <= 3, "a group has ", parts.size(), " parts, at most 3 fit");
  DoraRows rows;
  int row = 0;
  for (std::size_t p = 0; p < 3; ++p) {
    rows.first[p] = row;
    if (p >= parts.size()) continue;
    rows.factors[p] = parts[p].row_factors;
    row += parts[p].weight.rows;
  }
  return rows;
}

/// Packs of each operand that a thread has in flight.
inline constexpr int dora_packs = 2;

__device__ __forceinline__ void load_values(const float* p, float (&out)[8]) { device::load8(p, out); }
__device__ __forceinline__ void load_values(const bf16* p, float (&out)[8]) {
  device::to_floats(device::load8(p), out);
}

/// y (T,N) = (f + shift) o u [+ y] [+ residual], all without gaps; u may be y.
template <class T>
static __global__ void __launch_bounds__(row_threads)
    scale_outputs_kernel(int packs, DoraRows rows, float shift, const T* u, bool adds, const bf16* residual, bf16* y) {
  const device::RowTile tile = device::row_tile<dora_packs>(packs);
  const std::int64_t begin = tile.row * packs * 8;
  device::for_packs<dora_packs>(tile.first, packs, [&](int, int at) {
    float value[8];
    float factor[8];
    load_values(u + begin + at * 8, value);
    load_factors(rows, at * 8, factor);
#pragma unroll
    for (int j = 0; j < 8; ++j) value[j] *= factor[j] + shift;
    const auto add = [&](const bf16* from) {
      float more[8];
      load_values(from + begin + at * 8, more);
#pragma unroll
      for (int j = 0; j < 8; ++j) value[j] += more[j];
    };
    if (adds) add(y);
    if (residual != nullptr) add(residual);
    device::store8(y + begin + at * 8, device::to_pack(value));
  });
}
template <class T>
void scale_outputs(Context& context, int tokens, int outputs, const DoraRows& rows, float shift, const T* u, bool adds,
                   const bf16* residual, bf16* y) {
  const Phase phase(context, "elementwise");
  expect_packs("DoRA", "y", Rows<bf16>{y, outputs}, outputs);
  const unsigned blocks = row_blocks<dora_packs>(tokens, outputs / 8);
  scale_outputs_kernel<T><<<blocks, row_threads, 0, context.stream>>>(outputs / 8, rows, shift, u, adds, residual, y);
  check_launch("scale_outputs");
}

/// Gradients of magnitudes, and f o gY in the place of U.
struct DoraGradientArgs {
  static constexpr int columns = 32;                         ///< of a block: 4 packs
  static constexpr int lanes = row_threads / (columns / 8);  ///< threads that share the tokens of a pack
  DoraRows rows{};
  const float* inverse_lengths[3] = {};
  float* magnitude[3] = {};  ///< += the gradient; null: the part has none
  int tokens = 0;
  int outputs = 0;
  const bf16* gy = nullptr;
  bf16* u = nullptr;
};
static __global__ void __launch_bounds__(row_threads)
    dora_gradient_kernel(const __grid_constant__ DoraGradientArgs args) {
  __shared__ float sums[DoraGradientArgs::lanes][DoraGradientArgs::columns];
  const int pack = static_cast<int>(threadIdx.x) % (DoraGradientArgs::columns / 8);
  const int lane = static_cast<int>(threadIdx.x) / (DoraGradientArgs::columns / 8);
  const int first = static_cast<int>(blockIdx.x) * DoraGradientArgs::columns;
  const int column = first + pack * 8;
  float sum[8] = {};
  if (column < args.outputs) {
    float factor[8];
    load_factors(args.rows, column, factor);
#pragma unroll 2
    for (int token = lane; token < args.tokens; token += DoraGradientArgs::lanes) {
      const std::int64_t at = std::int64_t{token} * args.outputs + column;
      float gy[8];
      float u[8];
      load_values(args.gy + at, gy);
      load_values(args.u + at, u);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sum[j] = fmaf(gy[j], u[j], sum[j]);
        gy[j] *= factor[j];
      }
      device::store8(args.u + at, device::to_pack(gy));
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) sums[lane][pack * 8 + j] = sum[j];
  __syncthreads();
  const int n = first + static_cast<int>(threadIdx.x);
  if (threadIdx.x >= DoraGradientArgs::columns || n >= args.outputs) return;
  const int part = dora_part(args.rows, n);
  if (args.magnitude[part] == nullptr) return;
  float all = 0.0F;
  for (int i = 0; i < DoraGradientArgs::lanes; ++i) all += sums[i][threadIdx.x];
  const int row = n - args.rows.first[part];
  args.magnitude[part][row] += args.inverse_lengths[part][row] * all;
}

/// y = c o y + d o (s XA B^T) [+ residual] for the rows of one set of adapters.
struct DoraOutputArgs {
  static constexpr int columns = 64;  ///< of a block
  static constexpr int lanes = row_threads / columns;
  static constexpr int held = 4;  ///< tokens of a thread
  static constexpr int rows_of_block = lanes * held;
  struct Adapter {
    const float* b = nullptr;  ///< (N,R); null: none
    float scale = 0.0F;
    float strength = 0.0F;  ///< c = 1 + strength (f - 1)
    bool trained = false;   ///< c = d = f, else d = 1
    int slot = 0;           ///< its first column of XA
  };
  DoraRows rows{};
  Adapter adapter[3];
  int tokens = 0;
  int outputs = 0;
  int rank = 0;
  Rows<const bf16> xa{};
  const bf16* residual = nullptr;
  bf16* y = nullptr;
};
static __global__ void __launch_bounds__(row_threads) dora_outputs_kernel(const __grid_constant__ DoraOutputArgs args) {
  const int n =
      static_cast<int>(blockIdx.x) * DoraOutputArgs::columns + static_cast<int>(threadIdx.x) % DoraOutputArgs::columns;
  if (n >= args.outputs) return;
  const int first = static_cast<int>(blockIdx.y) * DoraOutputArgs::rows_of_block +
                    static_cast<int>(threadIdx.x) / DoraOutputArgs::columns;
  const int part = dora_part(args.rows, n);
  const int row = n - args.rows.first[part];
  const DoraOutputArgs::Adapter& adapter = args.adapter[part];
  float share[DoraOutputArgs::held] = {};
  if (adapter.b != nullptr) {
    const float* b = adapter.b + std::int64_t{row} * args.rank;
    for (int r = 0; r < args.rank; r += 4) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(b + r));
#pragma unroll
      for (int i = 0; i < DoraOutputArgs::held; ++i) {
        const int token = first + i * DoraOutputArgs::lanes;
        if (token >= args.tokens) continue;
        const uint2 two =
            *reinterpret_cast<const uint2*>(args.xa.data + std::int64_t{token} * args.xa.stride + adapter.slot + r);
        const float2 low = device::unpack2(two.x);
        const float2 high = device::unpack2(two.y);
        share[i] = fmaf(four.x, low.x, share[i]);
        share[i] = fmaf(four.y, low.y, share[i]);
        share[i] = fmaf(four.z, high.x, share[i]);
        share[i] = fmaf(four.w, high.y, share[i]);
      }
    }
  }
  const float factor = args.rows.factors[part] != nullptr ? args.rows.factors[part][row] : 1.0F;
  const float c = adapter.trained ? factor : 1.0F + adapter.strength * (factor - 1.0F);
  const float d = adapter.trained ? factor * adapter.scale : adapter.scale;
#pragma unroll
  for (int i = 0; i < DoraOutputArgs::held; ++i) {
    const int token = first + i * DoraOutputArgs::lanes;
    if (token >= args.tokens) continue;
    const std::int64_t at = std::int64_t{token} * args.outputs + n;
    float value = c * __bfloat162float(device::native(args.y)[at]) + d * share[i];
    if (args.residual != nullptr) value += __bfloat162float(device::native(args.residual)[at]);
    device::native(args.y)[at] = __float2bfloat16_rn(value);
  }
}

/// Lengths of rows, a warp for each.
struct DoraLengthArgs {
  int rows = 0;
  int width = 0;  ///< K
  int rank = 0;
  float scale = 0.0F;
  Rows<const bf16> w{};
  const float* b = nullptr;   ///< (N,R)
  const float* wa = nullptr;  ///< (N,R), W A^T
  const float* aa = nullptr;  ///< (R,R), A A^T
  RowLengths<float> to{};
};
static __global__ void __launch_bounds__(row_threads) row_lengths_kernel(const __grid_constant__ DoraLengthArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int n = static_cast<int>(blockIdx.x) * (row_threads / 32) + static_cast<int>(threadIdx.x) / 32;
  if (n >= args.rows) return;
  const bf16* w = args.w.data + std::int64_t{n} * args.w.stride;
  float squares = 0.0F;
  for (int at = lane * 8; at < args.width; at += 32 * 8) {
    float value[8];
    load_values(w + at, value);
#pragma unroll
    for (int j = 0; j < 8; ++j) squares = fmaf(value[j], value[j], squares);
  }
  const float* b = args.b + std::int64_t{n} * args.rank;
  double low = 0.0;
  double mixed = 0.0;
  for (int r = lane; r < args.rank; r += 32) {
    float sum = 0.0F;
    // A A^T is symmetric: of its rows neighbouring lanes read neighbours.
    for (int q = 0; q < args.rank; ++q) sum = fmaf(b[q], args.aa[q * args.rank + r], sum);
    low += static_cast<double>(b[r]) * static_cast<double>(sum);
    mixed += static_cast<double>(b[r]) * static_cast<double>(args.wa[std::int64_t{n} * args.rank + r]);
  }
  const double scale = static_cast<double>(args.scale);
  const double square = device::warp_sum(static_cast<double>(squares)) + 2.0 * scale * device::warp_sum(mixed) +
                        scale * scale * device::warp_sum(low);
  if (lane != 0) return;
  const double length = sqrt(fmax(0.0, square));
  const float inverse = length > 0.0 ? static_cast<float>(1.0 / length) : 0.0F;
  if (args.to.begins) args.to.magnitude[n] = static_cast<float>(length);
  args.to.inverse_lengths[n] = inverse;
  args.to.row_factors[n] = length > 0.0 ? args.to.magnitude[n] * inverse : 1.0F;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
