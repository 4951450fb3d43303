// qlora/cuda/linear/lora_a_gradient.cuh — the gradient of the adapters' A; dropout is applied as X is read.
// Math       gA += scale gXA^T (mask o X), scale = 1 / keep, mask as in the forward pass
// Shapes     x (T,K) bf16, rows x.stride apart · gxa (T,XA) bf16, rows gxa.stride apart · gA (XA,K) float ·
//            partial (splits, XA, K) float in the context's workspace
// Writes     gA with +=
// Split      a block has up to 192 rows and 128 columns of gA and loops over its share of the tokens, 64 between two
//            barriers, two stages; a second kernel adds the shares in order
// Fragments  the columns of a product may be permuted: a thread masks eight neighbouring columns (one Philox call) of
//            tokens 2t 2t+1 2t+8 2t+9 and pairs tokens in registers, so that column 8g + n of 64 is column g of column
//            tile n. Fragments pass to the other warps through shared memory in lane order; a thread's sums are 16
//            neighbouring columns
// Needs      sm_80; K a multiple of 64, XA of 8; 16-byte alignment; up to 80 KiB of shared memory
// Numbers    the mask equals the CPU's bit for bit. mask o X is exact in bf16 and scale is applied to the fp32 sum, so
//            X' is not rounded
// Cost       2 T K bytes and 2 T K XA FLOP: bound by memory and instruction issue (Philox) up to XA = 64, above that by
//            mma.sync and reads from shared memory
// Reference  linear_backward in cpu/linear.hpp; the parity tests of linear groups
#pragma once

#include "qlora/cuda/linear/lora_a_tiles.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// gradient_a_kernel has two stages of X as fragments and of gXA as rows. Registers as in adapter_input_kernel.
template <int Narrow>
struct GradientATiles : LoraATiles<Narrow> {
  using Base = LoraATiles<Narrow>;
  static constexpr int resident = Narrow > 64 ? 1 : 2;
  static constexpr int x_bytes = Base::step * Base::wide * 2;
  static constexpr int stage_bytes = x_bytes + Base::step * Narrow * 2;
  static constexpr int shared_bytes = 2 * stage_bytes;
};

struct GradientAArgs : LoraAArgs {
  Rows<const bf16> gxa{};
  Rows<const bf16> x{};
  float* ga = nullptr;
  float* partial = nullptr;  ///< null: the sum is not split, and the result is added to ga
};

/// 16 tokens x 64 columns of X, one octet of four tokens per lane.
struct OctetsOfTokens {
  uint4 token[4];  ///< 2t 2t+1 2t+8 2t+9
  /// `from`: the lane's octet of its first token; `left`: tokens from that one to the end.
  __device__ __forceinline__ void load(const bf16* from, int stride, int left) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = i / 2 * 8 + i % 2;
      token[i] = device::load_words(from + static_cast<std::int64_t>(row) * stride, row < left);
    }
  }
  /// Masks, pairs tokens and writes the fragments of eight column tiles, two per 512 bytes.
  __device__ __forceinline__ void store(const device::MaskSite& site, int first, int column, unsigned char* to) {
    std::uint32_t word[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 kept = device::masked(token[i], site, first + i / 2 * 8 + i % 2, column / 8);
      word[i][0] = kept.x;
      word[i][1] = kept.y;
      word[i][2] = kept.z;
      word[i][3] = kept.w;
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      // The lower token goes to the lower half: first the even columns of both tokens, then the odd ones.
      const uint4 pairs{__byte_perm(word[0][n], word[1][n], 0x5410U), __byte_perm(word[2][n], word[3][n], 0x5410U),
                        __byte_perm(word[0][n], word[1][n], 0x7632U), __byte_perm(word[2][n], word[3][n], 0x7632U)};
      *reinterpret_cast<uint4*>(to + n * 512) = pairs;
    }
  }
};

/// Writes a warp's sums (Narrow / 4 rows, 64 columns) to partial sums or adds them, scaled, to ga.
template <class Tiles>
__device__ __forceinline__ void store_gradient_a(const GradientAArgs& args,
                                                 const float (&sum)[Tiles::narrow / 64][8][4], int first_row,
                                                 int first_column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (first_column >= args.width) return;
  const float scale = args.site.scale;
#pragma unroll
  for (int i = 0; i < Tiles::narrow / 64; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + i * 16 + half * 8 + lane / 4;
      if (row >= args.adapters) continue;
      const int column = first_column + lane % 4 * 16;  // columns 2t and 2t+1 of all tiles: 16 neighbouring columns
      const std::int64_t in_ga = static_cast<std::int64_t>(row) * args.width + column;
      const std::int64_t part = static_cast<std::int64_t>(blockIdx.y) * args.adapters * args.width;
#pragma unroll
      for (int n = 0; n < 16; n += 4) {
        const int e = half * 2 + n / 8;
        float4 four{sum[i][n % 8][e], sum[i][n % 8 + 1][e], sum[i][n % 8 + 2][e], sum[i][n % 8 + 3][e]};
        if (args.partial != nullptr) {
          *reinterpret_cast<float4*>(args.partial + part + in_ga + n) = four;
        } else {
          auto* to = reinterpret_cast<float4*>(args.ga + in_ga + n);
          const float4 before = *to;
          *to = float4{fmaf(four.x, scale, before.x), fmaf(four.y, scale, before.y), fmaf(four.z, scale, before.z),
                       fmaf(four.w, scale, before.w)};
        }
      }
    }
  }
}

template <class Tiles>
static __global__ void __launch_bounds__(Tiles::threads, Tiles::resident) gradient_a_kernel(const GradientAArgs args) {
  constexpr int blocks = Tiles::narrow / 64;  // of 16 rows of gA, per warp
  static_assert(Tiles::warps == 8 && Tiles::step == 64 && Tiles::wide == 128,
                "gradient_a: a warp masks 16 tokens x 64 columns and sums a quarter of the rows x 64 columns");
  extern __shared__ __align__(128) unsigned char lora_a_shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int narrow = static_cast<int>(blockIdx.z) * Tiles::narrow;
  const int first = static_cast<int>(blockIdx.y) * args.steps * Tiles::step;
  const int steps = min(args.steps, (args.tokens - first + Tiles::step - 1) / Tiles::step);
  const std::uint32_t shared = device::shared_address(lora_a_shared);
  const bf16* gxa = args.gxa.data + narrow;

  // The warp masks tokens 16 (warp % 4) ... of a step, columns 64 (warp / 4) ... of the block. It sums over all tokens
  // for the same columns.
  const int group = static_cast<int>(blockIdx.x) * Tiles::wide + warp / 4 * 64;
  const int column = group + lane / 4 * 8;
  const int token = first + warp % 4 * 16 + lane % 4 * 2;
  const int own = (warp % 4 * 2 + warp / 4) * 2048 + lane * 16;
  const int end = group < args.width ? args.tokens : 0;
  const bf16* from = args.x.data + static_cast<std::int64_t>(token) * args.x.stride + column;
  OctetsOfTokens x;
  x.load(from, args.x.stride, end - token);
  device::copy_narrow<Tiles>(shared + Tiles::x_bytes, gxa, args.gxa.stride, first, args.tokens, args.adapters - narrow);
  device::copies_commit();
  x.store(args.site, token, column, lora_a_shared + own);

  // Where the lane reads gXA: matrices in the order tokens 0-7, the same with rows of gA 8-15, then both with tokens
  // 8-15.
  const int first_row = warp % 4 * (Tiles::narrow / 4);
  std::uint32_t left_at[blocks];
#pragma unroll
  for (int i = 0; i < blocks; ++i) {
    left_at[i] = shared + Tiles::x_bytes +
                 static_cast<std::uint32_t>(device::flipped_chunk<Tiles::narrow>(lane / 16 * 8 + lane % 8,
                                                                                 first_row / 8 + i * 2 + lane / 8 % 2));
  }
  float sum[blocks][8][4] = {};
  for (int s = 0; s < steps; ++s) {
    const bool more = s + 1 < steps;
    const int other = (s + 1) % 2 * Tiles::stage_bytes;
    device::copies_wait();
    __syncthreads();  // this stage is complete, and all warps have finished with the other
    if (more) {
      const int next = (s + 1) * Tiles::step;
      device::copy_narrow<Tiles>(shared + static_cast<std::uint32_t>(other + Tiles::x_bytes), gxa, args.gxa.stride,
                                 first + next, args.tokens, args.adapters - narrow);
      device::copies_commit();
      from += static_cast<std::int64_t>(Tiles::step) * args.x.stride;
      x.load(from, args.x.stride, end - token - next);
    }
    const int stage = s % 2 * Tiles::stage_bytes;
    const unsigned char* right_at = lora_a_shared + stage + warp / 4 * 2048 + lane * 16;
#pragma unroll
    for (int k = 0; k < Tiles::step / 16; ++k) {
      std::uint32_t left[blocks][4];
#pragma unroll
      for (int i = 0; i < blocks; ++i) {
        device::load_transposed(left[i], left_at[i] + static_cast<std::uint32_t>(stage + k * 16 * Tiles::narrow * 2));
      }
      device::add_fragments(sum, left, right_at + k * 4096);
    }
    // Also runs after the last step, without use: without a branch the masks are computed between the products.
    x.store(args.site, token + (s + 1) * Tiles::step, column, lora_a_shared + other + own);
  }
  store_gradient_a<Tiles>(args, sum, narrow + first_row, group);
}

/// ga += scale * sum of partial sums, eight columns per thread.
static __global__ void __launch_bounds__(row_threads)
    gradient_a_sum_kernel(int packs, int parts, const float* __restrict__ partial, float scale, float* ga) {
  const int pack = static_cast<int>(blockIdx.x) * row_threads + static_cast<int>(threadIdx.x);
  if (pack >= packs) return;
  float sum[8];
  float before[8];
  device::sum_parts(partial, packs, parts, pack, sum);
  float* to = ga + static_cast<std::int64_t>(pack) * 8;
  device::load8(to, before);
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = fmaf(sum[i], scale, before[i]);
  device::store8(to, sum);
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void dropped_gradient_a(Context& context, int tokens, int width, int adapters,
                                            const DropoutSite& site, Rows<const bf16> gxa, Rows<const bf16> x,
                                            float* ga) {
  if (tokens <= 0) return;
  detail::expect_lora_a("dropped_gradient_a", width, adapters);
  expect_packs("dropped_gradient_a", "gxa", gxa, adapters);
  expect_packs("dropped_gradient_a", "x", x, width);
  expect_packs("dropped_gradient_a", "ga", Rows<float>{ga, width}, width);
  const NarrowTiles narrow = narrow_tiles(adapters);
  detail::for_narrow(narrow.width, [&](auto columns) {
    using Tiles = detail::GradientATiles<columns()>;
    const int tiles = (width + Tiles::wide - 1) / Tiles::wide;
    const detail::GradientAArgs args{{tokens, width, adapters, 0, device::mask_site(site)}, gxa, x, ga};
    detail::launch_split<Tiles>(context, "dropped_gradient_a", detail::gradient_a_kernel<Tiles>, tiles, narrow.count,
                                (tokens + Tiles::step - 1) / Tiles::step, std::int64_t{adapters} * width, args,
                                detail::gradient_a_sum_kernel, site.keep_scale, ga);
  });
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
