// qlora/cuda/linear/lora_a_forward.cuh — the input of a group's adapters; dropout is applied as X is read into
// registers.
// Math       XA = scale (mask o X) A^T, scale = 1 / keep;  mask: Philox of (seed, step, layer, group, token, column)
// Shapes     x (T,K) bf16, rows x.stride apart · a (XA,K) bf16 · xa (T,XA) bf16, rows xa.stride apart; may be columns
//            after X in the same rows · partial (splits, T, XA) float in the context's workspace
// Writes     xa with =
// Split      8 warps of 16 tokens each and up to 192 columns of XA; tiles of A in shared memory, two stages of 64
//            columns; the sum over K is split over blocks until the GPU is full, then a second kernel adds the parts in
//            order
// Fragments  the order of columns inside a sum is free if both operands use the same one. A thread loads eight
//            neighbouring columns of a token (16 bytes, one Philox call) and uses them unchanged as fragments of two
//            mma: columns 8t ... 8t+3 act as 2t 2t+1 2t+8 2t+9 of the first, 8t+4 ... 8t+7 of the second. Rows of A
//            likewise: X does not pass through shared memory, and each of its elements is masked once
// Needs      sm_80; K a multiple of 64, XA of 8; 16-byte alignment
// Numbers    the mask equals the CPU's bit for bit. mask o X is exact in bf16; scale is applied to the fp32 sum, so X'
//            is not rounded; one rounding to bf16
// Cost       2 T K bytes and 2 T K XA FLOP: bound by memory and instruction issue up to XA = 64 (85 instructions per 8
//            elements, most of them Philox, in the sm_90 loop), above that by mma.sync and reads of A from shared
//            memory
// Reference  adapter_input in cpu/linear.hpp; the parity tests of linear groups
#pragma once

#include "qlora/cuda/linear/lora_a_tiles.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// adapter_input_kernel has two stages of A in shared memory. Sums take Narrow / 2 registers per thread, and as many
/// again hold loads and Philox state: two blocks fit a multiprocessor up to 64.
template <int Narrow>
struct AdapterInputTiles : LoraATiles<Narrow> {
  static constexpr int resident = Narrow > 64 ? 1 : 2;
  static constexpr int stage_bytes = Narrow * LoraATiles<Narrow>::step * 2;
  static constexpr int shared_bytes = 2 * stage_bytes;
};

struct AdapterInputArgs : LoraAArgs {
  Rows<const bf16> x{};
  const bf16* a = nullptr;
  Rows<bf16> xa{};
  float* partial = nullptr;  ///< null: the sum is not split, and the result is written to xa
};

/// Loads rows [0, rows) of A, 64 columns each, zeros below; chunk c of row n is stored at c ^ 4 (n % 2), so that the
/// eight lanes that read together (two rows, four neighbouring chunks) access all banks.
template <class Tiles>
__device__ __forceinline__ void copy_adapter(std::uint32_t tile, const bf16* a, int width, int rows) {
  constexpr int at_once = Tiles::threads / 8;  // rows; even, so that all rows of a thread have the same parity
  const int first = static_cast<int>(threadIdx.x) / 8;
  const int chunk = static_cast<int>(threadIdx.x) % 8;
  const std::uint32_t to = tile + static_cast<std::uint32_t>(first * 128 + (chunk ^ (first % 2 * 4)) * 16);
  const bf16* from = a + static_cast<std::int64_t>(first) * width + chunk * 8;
#pragma unroll
  for (int i = 0; i < Tiles::narrow; i += at_once) {
    const bool inside = first + i < rows;
    device::copy_async16(to + static_cast<std::uint32_t>(i * 128), from, inside);
    from += static_cast<std::int64_t>(at_once) * width;
  }
}

/// sum += X A^T over 64 columns: octets of rows g and g + 8 in columns 8t and 32 + 8t, a stage of A.
template <class Tiles>
__device__ __forceinline__ void add_products(float (&sum)[Tiles::narrow / 8][4], const uint4 (&x)[2][2],
                                             const unsigned char* stage, int lane_chunk) {
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    const uint4 low = x[q][0];
    const uint4 high = x[q][1];
    const std::uint32_t left[2][4] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
#pragma unroll
    for (int n = 0; n < Tiles::narrow / 8; ++n) {
      const uint4 b = *reinterpret_cast<const uint4*>(stage + (lane_chunk ^ (q * 64)) + n * 1024);
      device::mma(sum[n], left[0], b.x, b.y);
      device::mma(sum[n], left[1], b.z, b.w);
    }
  }
}

/// Writes the sums (16 tokens, Narrow) of a warp to partial sums or, scaled, to xa.
template <class Tiles>
__device__ __forceinline__ void store_adapter_input(const AdapterInputArgs& args,
                                                    const float (&sum)[Tiles::narrow / 8][4], int first_token,
                                                    int first_column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float scale = args.site.scale;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = first_token + lane / 4 + half * 8;
    if (token >= args.tokens) continue;
    const std::int64_t row =
        static_cast<std::int64_t>(blockIdx.y) * args.tokens + token;  // without partial, only split 0 exists
    float* partial = args.partial + row * args.adapters;
    bf16* out = args.xa.data + static_cast<std::int64_t>(token) * args.xa.stride;
#pragma unroll
    for (int n = 0; n < Tiles::narrow / 8; ++n) {
      const int column = first_column + n * 8 + lane % 4 * 2;
      if (column >= args.adapters) continue;
      if (args.partial != nullptr) {
        *reinterpret_cast<float2*>(partial + column) = float2{sum[n][half * 2], sum[n][half * 2 + 1]};
      } else {
        *reinterpret_cast<std::uint32_t*>(out + column) =
            device::pack2(sum[n][half * 2] * scale, sum[n][half * 2 + 1] * scale);
      }
    }
  }
}

template <class Tiles>
static __global__ void __launch_bounds__(Tiles::threads, Tiles::resident)
    adapter_input_kernel(const AdapterInputArgs args) {
  static_assert(Tiles::wide == Tiles::warps * 16 && Tiles::step == 64,
                "adapter_input: 16 tokens a warp, two octet rows");
  extern __shared__ __align__(128) unsigned char lora_a_shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int token = static_cast<int>(blockIdx.x) * Tiles::wide + static_cast<int>(threadIdx.x) / 32 * 16;
  const int narrow = static_cast<int>(blockIdx.z) * Tiles::narrow;
  const int first_step = static_cast<int>(blockIdx.y) * args.steps;
  const int steps = min(args.steps, args.width / Tiles::step - first_step);
  const std::uint32_t tiles = device::shared_address(lora_a_shared);
  const bf16* a = args.a + static_cast<std::int64_t>(narrow) * args.width + first_step * Tiles::step;

  // The lane's octets: rows g and g + 8, columns 8t and 32 + 8t of each step.
  const int row[2] = {token + lane / 4, token + lane / 4 + 8};
  const bool inside[2] = {row[0] < args.tokens, row[1] < args.tokens};
  int octet = first_step * (Tiles::step / 8) + lane % 4;
  const bf16* from = args.x.data + static_cast<std::int64_t>(row[0]) * args.x.stride + octet * 8;
  uint4 x[2][2];
  uint4 next[2][2];
  const auto load_next = [&] {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      next[i / 2][i % 2] =
          device::load_words(from + i % 2 * 8 * std::int64_t{args.x.stride} + i / 2 * 32, inside[i % 2]);
    }
  };
  const auto mask_next = [&] {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i / 2][i % 2] = device::masked(next[i / 2][i % 2], args.site, row[i % 2], octet + i / 2 * 4);
    }
  };
  load_next();
  copy_adapter<Tiles>(tiles, a, args.width, args.adapters - narrow);
  device::copies_commit();
  mask_next();

  const int lane_chunk = lane / 4 * 128 + ((lane % 4) ^ (lane / 4 % 2 * 4)) * 16;
  float sum[Tiles::narrow / 8][4] = {};
  for (int s = 0; s < steps; ++s) {
    device::copies_wait();
    __syncthreads();  // this stage has arrived, and all warps have finished with the other
    octet += Tiles::step / 8;
    if (s + 1 < steps) {
      a += Tiles::step;
      copy_adapter<Tiles>(tiles + static_cast<std::uint32_t>((s + 1) % 2 * Tiles::stage_bytes), a, args.width,
                          args.adapters - narrow);
      device::copies_commit();
      from += Tiles::step;
      load_next();
    }
    add_products<Tiles>(sum, x, lora_a_shared + s % 2 * Tiles::stage_bytes, lane_chunk);
    // Also runs after the last step, without use: without a branch the masks are computed between the products.
    mask_next();
  }
  store_adapter_input<Tiles>(args, sum, token, narrow);
}

/// xa = scale * sum of partial sums, eight columns per thread.
static __global__ void __launch_bounds__(row_threads)
    adapter_input_sum_kernel(int packs, int parts, const float* __restrict__ partial, float scale, int packs_in_row,
                             Rows<bf16> xa) {
  const int pack = static_cast<int>(blockIdx.x) * row_threads + static_cast<int>(threadIdx.x);
  if (pack >= packs) return;
  float sum[8];
  device::sum_parts(partial, packs, parts, pack, sum);
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] *= scale;
  const int row = pack / packs_in_row;
  bf16* to = xa.data + static_cast<std::int64_t>(row) * xa.stride + (pack - row * packs_in_row) * 8;
  device::store8(to, device::to_pack(sum));
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void dropped_adapter_input(Context& context, int tokens, int width, int adapters,
                                               const DropoutSite& site, Rows<const bf16> x, const bf16* a,
                                               Rows<bf16> xa) {
  if (tokens <= 0) return;
  detail::expect_lora_a("dropped_adapter_input", width, adapters);
  expect_packs("dropped_adapter_input", "x", x, width);
  expect_packs("dropped_adapter_input", "a", Rows<const bf16>{a, width}, width);
  expect_packs("dropped_adapter_input", "xa", xa, adapters);
  const NarrowTiles narrow = narrow_tiles(adapters);
  detail::for_narrow(narrow.width, [&](auto columns) {
    using Tiles = detail::AdapterInputTiles<columns()>;
    const int tiles = (tokens + Tiles::wide - 1) / Tiles::wide;
    const detail::AdapterInputArgs args{{tokens, width, adapters, 0, device::mask_site(site)}, x, a, xa};
    detail::launch_split<Tiles>(context, "dropped_adapter_input", detail::adapter_input_kernel<Tiles>, tiles,
                                narrow.count, width / Tiles::step, std::int64_t{tokens} * adapters, args,
                                detail::adapter_input_sum_kernel, site.keep_scale, adapters / 8, xa);
  });
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
