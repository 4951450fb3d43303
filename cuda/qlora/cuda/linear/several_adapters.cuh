// qlora/cuda/linear/several_adapters.cuh — the products with A of several_tokens.cuh, for the adapters of up to eight
// sets: each set has tokens of its own.
// Math       XA = X A^T for the tokens of a set and its A
// Shapes     x (T, K | XA) bf16, rows x.stride apart, T up to 32 · A (XA,K) float, stacked · partial (slices, T, XA)
//            float in the context's workspace
// Writes     the XA columns of x with =
// Split      a block of 8 warps per 16 rows of A, slice of 1024 columns and set; a warp has 128 columns. The block that
//            comes last to 16 rows adds the slices in order
// Fragments  mma of 16 x 16 by 16 x 8; the lane q of a row has columns 8 q to 8 q + 7 of each 32, on both sides: half
//            of them for each of two mma
// Needs      sm_80; K a multiple of 128; XA of 8
// Numbers    A is rounded to bf16; fp32 sums; XA is rounded to bf16. The order of a token's sums depends on K only
// Cost       4 bytes per value of A
// Reference  cpu/linear.hpp; the parity tests of linear groups
#pragma once

#include <algorithm>

#include "qlora/cuda/linear/few_tokens_steps.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

struct SeveralAdapters {
  static constexpr int warps = 8;
  static constexpr int threads = warps * 32;
  static constexpr int most = 8;       ///< sets
  static constexpr int columns = 128;  ///< of a warp
  static constexpr int steps = columns / 32;
  static constexpr int slice = warps * columns;
};

struct SeveralAdaptersArgs {
  struct Set {
    const float* a = nullptr;
    int first = 0;  ///< token
    int tokens = 0;
  };
  Set set[SeveralAdapters::most];
  int tokens = 0;    ///< of all sets, and those without an adapter
  int width = 0;     ///< K
  int adapters = 0;  ///< XA
  int slices = 0;
  Rows<bf16> x{};
  float* partial = nullptr;
  unsigned* arrivals = nullptr;
};

/// Columns: tokens of the largest set, in eights.
template <int Columns>
static __global__ void __launch_bounds__(SeveralAdapters::threads)
    several_adapters_kernel(const __grid_constant__ SeveralAdaptersArgs args) {
  __shared__ float sums[SeveralAdapters::warps][Columns * 8][16];
  __shared__ bool last;
  const SeveralAdaptersArgs::Set& set = args.set[blockIdx.z];
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int g = thread % 32 / 4;
  const int q = thread % 4;
  const int slice = static_cast<int>(blockIdx.y);
  const int first_row = static_cast<int>(blockIdx.x) * 16;
  const int column = slice * SeveralAdapters::slice + warp * SeveralAdapters::columns + q * 8;
  const bool inside = column < args.width;
  std::uint32_t a[SeveralAdapters::steps][2][4];  // two fragments of a step
#pragma unroll
  for (int s = 0; s < SeveralAdapters::steps; ++s) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + half * 8 + g;
      float4 low{};
      float4 high{};
      if (inside && row < args.adapters) {
        const float* from = set.a + std::int64_t{row} * args.width + column + s * 32;
        low = __ldcs(reinterpret_cast<const float4*>(from));
        high = __ldcs(reinterpret_cast<const float4*>(from + 4));
      }
      a[s][0][half] = device::pack2(low.x, low.y);
      a[s][0][half + 2] = device::pack2(low.z, low.w);
      a[s][1][half] = device::pack2(high.x, high.y);
      a[s][1][half + 2] = device::pack2(high.z, high.w);
    }
  }
  device::let_next_start();
  device::wait_for_previous();  // A is constant; x is not
  uint4 x[SeveralAdapters::steps][Columns];
#pragma unroll
  for (int c = 0; c < Columns; ++c) {
    const int token = c * 8 + g;
    const bool there = inside && token < set.tokens;
    const bf16* from = args.x.data + std::int64_t{set.first + (there ? token : 0)} * args.x.stride + column;
#pragma unroll
    for (int s = 0; s < SeveralAdapters::steps; ++s) {
      x[s][c] = there ? *reinterpret_cast<const uint4*>(from + s * 32) : uint4{0U, 0U, 0U, 0U};
    }
  }
  float sum[Columns][4] = {};
#pragma unroll
  for (int s = 0; s < SeveralAdapters::steps; ++s) {
#pragma unroll
    for (int c = 0; c < Columns; ++c) {
      device::mma(sum[c], a[s][0], x[s][c].x, x[s][c].y);
      device::mma(sum[c], a[s][1], x[s][c].z, x[s][c].w);
    }
  }
#pragma unroll
  for (int c = 0; c < Columns; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[warp][c * 8 + q * 2 + i % 2][i / 2 * 8 + g] = sum[c][i];
  }
  __syncthreads();
  const int row = thread % 16;
  const bool there = first_row + row < args.adapters;
  const auto at = [&](int from, int token) {
    return args.partial + (std::int64_t{from} * args.tokens + set.first + token) * args.adapters + first_row + row;
  };
  for (int token = thread / 16; token < set.tokens && there; token += SeveralAdapters::threads / 16) {
    float all = sums[0][token][row];
#pragma unroll
    for (int i = 1; i < SeveralAdapters::warps; ++i) all += sums[i][token][row];
    *at(slice, token) = all;
  }
  __threadfence();
  __syncthreads();
  if (thread == 0) {
    unsigned* counter = args.arrivals + blockIdx.z * gridDim.x + blockIdx.x;
    last = atomicAdd(counter, 1U) + 1 == gridDim.y;
    if (last) *counter = 0;  // for the next launch
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  for (int token = thread / 16; token < set.tokens && there; token += SeveralAdapters::threads / 16) {
    float all = __ldcg(at(0, token));
    for (int i = 1; i < args.slices; ++i) all += __ldcg(at(i, token));
    device::native(args.x.data)[std::int64_t{set.first + token} * args.x.stride + args.width + first_row + row] =
        __float2bfloat16_rn(all);
  }
}

/// Fills the XA columns of the tokens of all sets.
inline void launch_several_adapters(const Context& context, SeveralAdaptersArgs args, int sets) {
  args.slices = (args.width + SeveralAdapters::slice - 1) / SeveralAdapters::slice;
  args.partial = reinterpret_cast<float*>(context.workspace);
  args.arrivals = context.arrivals;
  const int tiles = (args.adapters + 15) / 16;
  QLORA_EXPECTS(tiles * sets <= most_arrivals &&
                    std::int64_t{args.slices} * args.tokens * args.adapters * 4 <= context.workspace_bytes,
                sets, " sets of adapters of ", args.adapters, " columns are more than the workspace holds");
  int longest = 0;
  for (int i = 0; i < sets; ++i) longest = std::max(longest, args.set[i].tokens);
  const auto launch_for = [&](auto kernel) {
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(args.slices), static_cast<unsigned>(sets));
    launch(context, true, "linear, several tokens, A", kernel, grid, dim3(SeveralAdapters::threads), 0, args);
  };
  launch_for(longest <= 8    ? several_adapters_kernel<1>
             : longest <= 16 ? several_adapters_kernel<2>
                             : several_adapters_kernel<4>);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
