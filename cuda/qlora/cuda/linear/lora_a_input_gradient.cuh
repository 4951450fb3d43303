// qlora/cuda/linear/lora_a_input_gradient.cuh — the adapters' contribution to the gradient of their input, with the
// dropout mask.
// Math       gX += scale mask o (gXA A), scale = 1 / keep, mask as in the forward pass
// Shapes     gx (T,K) bf16, rows gx.stride apart · gxa (T,XA) bf16, may be columns after gX in the same rows · a (XA,K)
//            bf16
// Writes     gx with +=
// Split      a block has 128 columns, keeps up to 192 rows of A in shared memory and loops over tiles of 64 tokens, two
//            stages; a warp has 32 tokens and 32 columns. Wider A takes several launches
// Fragments  the columns of a product may be permuted: column 8t + 2n + e of 32 is column 2t + e of column tile n, so
//            that a thread's sums of four column tiles are eight neighbouring columns: one Philox call, 16-byte loads
//            and stores. A is stored in this order once, in lane order
// Needs      sm_80; K a multiple of 64, XA of 8; 16-byte alignment; up to 96 KiB of shared memory
// Numbers    the mask equals the CPU's bit for bit; gXA A stays in fp32; gX is rounded once more per 192 columns of XA,
//            as it is read and written
// Cost       4 T K bytes and 2 T K XA FLOP: bound by memory
// Reference  linear_backward in cpu/linear.hpp; the parity tests of linear groups
#pragma once

#include "qlora/cuda/linear/lora_a_tiles.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// add_product_kernel keeps A as fragments and has two stages of gXA as rows.
template <int Narrow>
struct AddProductTiles : LoraATiles<Narrow> {
  using Base = LoraATiles<Narrow>;
  static constexpr int resident = 2;
  static constexpr int a_bytes = Narrow * Base::wide * 2;
  static constexpr int stage_bytes = Base::step * Narrow * 2;
  static constexpr int shared_bytes = a_bytes + 2 * stage_bytes;
};

/// adapters: at most the tile's; steps: tiles of tokens.
struct AddProductArgs : LoraAArgs {
  Rows<const bf16> gxa{};
  const bf16* a = nullptr;
  Rows<bf16> gx{};
};

/// Stores columns [first, first + 128) of A as fragments: for each 16 rows and 32 columns four column tiles, two per
/// 512 bytes in lane order. Column 8 (g / 2) + 2n + g % 2 of the 32 is column g of tile n.
template <class Tiles>
__device__ __forceinline__ void lay_out_adapter(const AddProductArgs& args, int first, unsigned char* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int octet = lane % 4;      // of the 32 columns
  const int t = lane / 4 % 4;      // rows 2t 2t+1 ...
  const int upper = lane / 4 / 4;  // ... of the first or the last eight
  for (int piece = static_cast<int>(threadIdx.x) / 32; piece < Tiles::narrow / 16 * 4; piece += Tiles::warps) {
    const int row = piece / 4 * 16 + upper * 8 + t * 2;
    const int column = first + piece % 4 * 32 + octet * 8;
    const bf16* p = args.a + static_cast<std::int64_t>(row) * args.width + column;
    const uint4 even = device::load_words(p, row < args.adapters && column < args.width);
    const uint4 odd = device::load_words(p + args.width, row + 1 < args.adapters && column < args.width);
    const std::uint32_t word[2][4] = {{even.x, even.y, even.z, even.w}, {odd.x, odd.y, odd.z, odd.w}};
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const int n = c / 2;
      const int at = (octet * 2 + c % 2) * 4 + t;  // the lane that uses this pair of rows
      const std::uint32_t pair = __byte_perm(word[0][n], word[1][n], c % 2 == 0 ? 0x5410U : 0x7632U);
      *reinterpret_cast<std::uint32_t*>(to + piece * 1024 + n / 2 * 512 + at * 16 + n % 2 * 8 + upper * 4) = pair;
    }
  }
}

template <class Tiles>
static __global__ void __launch_bounds__(Tiles::threads, Tiles::resident)
    add_product_kernel(const AddProductArgs args) {
  static_assert(Tiles::warps == 8 && Tiles::step == 64 && Tiles::wide == 128,
                "add_product: a warp has 32 tokens and 32 columns");
  extern __shared__ __align__(128) unsigned char lora_a_shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_step = static_cast<int>(blockIdx.y) * args.steps;
  const int steps = min(args.steps, (args.tokens + Tiles::step - 1) / Tiles::step - first_step);
  const std::uint32_t stages = device::shared_address(lora_a_shared) + Tiles::a_bytes;
  const int first_column = static_cast<int>(blockIdx.x) * Tiles::wide;
  const int column = first_column + warp / 2 * 32 + lane % 4 * 8;
  const int rows = column < args.width ? args.tokens : 0;  // a warp's columns are all inside or all outside
  int token = first_step * Tiles::step + warp % 2 * 32 + lane / 4;
  bf16* gx = args.gx.data + static_cast<std::int64_t>(token) * args.gx.stride + column;
  const std::int64_t down = static_cast<std::int64_t>(args.gx.stride) * 8;

  uint4 next[4];  // rows g + 8i of the warp's 32, eight neighbouring columns
#pragma unroll
  for (int i = 0; i < 4; ++i) next[i] = device::load_words(gx + i * down, token + i * 8 < rows);
  device::copy_narrow<Tiles>(stages, args.gxa.data, args.gxa.stride, first_step * Tiles::step, args.tokens,
                             args.adapters);
  device::copies_commit();
  lay_out_adapter<Tiles>(args, first_column, lora_a_shared);

  // Matrices in the order tokens 0-7, tokens 8-15, then the same with columns 8-15 of gXA.
  const int left_at = device::flipped_chunk<Tiles::narrow>(warp % 2 * 32 + lane % 16, lane / 16);
  const unsigned char* right_at = lora_a_shared + warp / 2 * 1024 + lane * 16;
  for (int s = 0; s < steps; ++s) {
    device::copies_wait();
    __syncthreads();  // this stage (in the first step also A) is complete, and all warps have finished with the other
    uint4 base[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) base[i] = next[i];
    if (s + 1 < steps) {
      device::copy_narrow<Tiles>(stages + static_cast<std::uint32_t>((s + 1) % 2 * Tiles::stage_bytes), args.gxa.data,
                                 args.gxa.stride, (first_step + s + 1) * Tiles::step, args.tokens, args.adapters);
      device::copies_commit();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        next[i] = device::load_words(gx + (8 + i) * down, token + Tiles::step + i * 8 < rows);
      }
    }
    float sum[2][4][4] = {};
    const std::uint32_t stage = stages + static_cast<std::uint32_t>(s % 2 * Tiles::stage_bytes);
#pragma unroll
    for (int k = 0; k < Tiles::narrow / 16; ++k) {
      std::uint32_t left[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = (left_at ^ (k % 4 * 32)) + k / 4 * 128 + i * 16 * Tiles::narrow * 2;
        device::load_matrices(left[i], stage + static_cast<std::uint32_t>(at));
      }
      device::add_fragments(sum, left, right_at + k * 4096);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 words = device::mask_words(args.site, token + i * 8, column / 8);
      const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
      const std::uint32_t before[4] = {base[i].x, base[i].y, base[i].z, base[i].w};
      std::uint32_t after[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float2 value = device::unpack2(before[n]);
        const float low = word[n] << 16 >= args.site.least ? args.site.scale : 0.0F;
        const float high = word[n] >= args.site.least ? args.site.scale : 0.0F;
        after[n] = device::pack2(fmaf(sum[i / 2][n][i % 2 * 2], low, value.x),
                                 fmaf(sum[i / 2][n][i % 2 * 2 + 1], high, value.y));
      }
      if (token + i * 8 < rows) {  // no branch before this: masks are computed between the products
        *reinterpret_cast<uint4*>(gx + i * down) = uint4{after[0], after[1], after[2], after[3]};
      }
    }
    token += Tiles::step;
    gx += 8 * down;
  }
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void add_dropped_product(Context& context, int tokens, int width, int adapters,
                                             const DropoutSite& site, Rows<const bf16> gxa, const bf16* a,
                                             Rows<bf16> gx) {
  if (tokens <= 0) return;
  detail::expect_lora_a("add_dropped_product", width, adapters);
  expect_packs("add_dropped_product", "gxa", gxa, adapters);
  expect_packs("add_dropped_product", "a", Rows<const bf16>{a, width}, width);
  expect_packs("add_dropped_product", "gx", gx, width);
  const NarrowTiles narrow = narrow_tiles(adapters);
  detail::for_narrow(narrow.width, [&](auto columns) {
    using Tiles = detail::AddProductTiles<columns()>;
    const int tiles = (width + Tiles::wide - 1) / Tiles::wide;
    const int steps = (tokens + Tiles::step - 1) / Tiles::step;
    constexpr int laying_out = 2;  // cost of storing the fragments of A, in steps
    const SumSplit split = split_sum(tiles, steps, context.sm_count * Tiles::resident, steps, laying_out);
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(split.count));
    for (int first = 0; first < adapters; first += Tiles::narrow) {  // in order on the stream
      const int rows = std::min(adapters - first, Tiles::narrow);
      const detail::AddProductArgs args{{tokens, width, rows, split.steps, device::mask_site(site)},
                                        {gxa.data + first, gxa.stride},
                                        a + std::int64_t{first} * width,
                                        gx};
      detail::launch_lora_a<Tiles>(context, "add_dropped_product", detail::add_product_kernel<Tiles>, grid, args);
    }
  });
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
