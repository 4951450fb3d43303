// qlora/cuda/linear/lora_a_tiles.cuh — building blocks of the products with an adapter's A: masks on packed values,
// tiles with a narrow side, launches.
// Math       mask: Philox of (seed, step, layer, group, token, column), eight neighbouring columns per call
// Shapes     XA is split into tiles of 64, 128 or 192 columns; columns past XA are zeros in shared memory and are not
//            stored
// Numbers    masks equal the CPU's bit for bit
// Reference  dropout_words in rng.hpp
#pragma once

#include "qlora/cuda/attention/tiles.cuh"
#include "qlora/cuda/linear/lora_a_plan.hpp"
#include "qlora/cuda/rowwise/rows.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace device {

/// A dropout site with the keys of all Philox rounds as a kernel argument: instructions read them from constant memory,
/// whereas deriving them from the seed would cost additions or registers.
struct MaskSite {
  std::uint32_t key[10][2] = {};
  std::uint32_t first_token = 0;
  std::uint32_t step = 0;
  std::uint32_t use = 0;    ///< last word of the counter
  std::uint32_t least = 0;  ///< threshold, in the upper half
  float scale = 1.0F;
};
[[nodiscard]] inline MaskSite mask_site(const DropoutSite& site) {
  MaskSite mask;
  for (std::uint32_t round = 0; round < 10; ++round) {
    mask.key[round][0] = static_cast<std::uint32_t>(site.seed) + round * 0x9E3779B9U;
    mask.key[round][1] = static_cast<std::uint32_t>(site.seed >> 32) + round * 0xBB67AE85U;
  }
  mask.first_token = site.first_token;
  mask.step = site.step;
  mask.use = use_word(RandomUse::dropout, (site.layer << 2) | site.group);
  mask.least = site.threshold << 16;
  mask.scale = site.keep_scale;
  return mask;
}
/// The four words that dropout_words in rng.hpp gives.
__device__ __forceinline__ uint4 mask_words(const MaskSite& site, int token, int octet) {
  uint4 c{static_cast<std::uint32_t>(octet), site.first_token + static_cast<std::uint32_t>(token), site.step, site.use};
#pragma unroll
  for (int round = 0; round < 10; ++round) c = philox_round(c, site.key[round][0], site.key[round][1]);
  return c;
}
/// Keeps each of two bf16 whose half of a Philox word is at least the threshold; the others become 0.
__device__ __forceinline__ std::uint32_t kept(std::uint32_t pair, std::uint32_t word, std::uint32_t least) {
  pair = word >= least ? pair : pair & 0x0000FFFFU;
  return word << 16 >= least ? pair : pair & 0xFFFF0000U;
}
/// mask o x for eight neighbouring columns of a token, two bf16 per word.
__device__ __forceinline__ uint4 masked(const uint4& x, const MaskSite& site, int token, int octet) {
  const uint4 words = mask_words(site, token, octet);
  return uint4{kept(x.x, words.x, site.least), kept(x.y, words.y, site.least), kept(x.z, words.z, site.least),
               kept(x.w, words.w, site.least)};
}
__device__ __forceinline__ uint4 load_words(const bf16* p, bool inside) {
  return inside ? *reinterpret_cast<const uint4*>(p) : uint4{0U, 0U, 0U, 0U};
}

/// Layout of bf16 rows in shared memory, Columns (a multiple of 64) each: the place of a row's 16-byte chunk. The same
/// chunk of eight neighbouring rows falls into different groups of 4 banks.
template <int Columns>
[[nodiscard]] __device__ __forceinline__ int flipped_chunk(int row, int chunk) {
  static_assert(Columns % 64 == 0, "rows of whole lines of 128 bytes");
  return row * Columns * 2 + (chunk ^ (row & 7)) * 16;
}
/// Loads rows [first, first + 64) of a matrix of `rows` rows and `columns` (at most Tiles::narrow) columns; zeros
/// outside.
template <class Tiles>
__device__ __forceinline__ void copy_narrow(std::uint32_t tile, const bf16* from, int stride, int first, int rows,
                                            int columns) {
  constexpr int chunks = Tiles::narrow / 8;
#pragma unroll
  for (int i = 0; i < Tiles::step * chunks; i += Tiles::threads) {
    const int at = i + static_cast<int>(threadIdx.x);
    const int row = at / chunks;
    const int chunk = at % chunks;
    const bool inside = first + row < rows && chunk * 8 < columns;
    const bf16* p = from + static_cast<std::int64_t>(first + row) * stride + chunk * 8;
    copy_async16(tile + static_cast<std::uint32_t>(flipped_chunk<Tiles::narrow>(row, chunk)), p, inside);
  }
}
/// sum += left right for 16 rows of `right`: fragments of its column tiles, two per 512 bytes, from the lane's on.
template <int Blocks, int Columns>
__device__ __forceinline__ void add_fragments(float (&sum)[Blocks][Columns][4], const std::uint32_t (&left)[Blocks][4],
                                              const unsigned char* right) {
#pragma unroll
  for (int n = 0; n < Columns / 2; ++n) {
    const uint4 both = *reinterpret_cast<const uint4*>(right + n * 512);
#pragma unroll
    for (int i = 0; i < Blocks; ++i) {
      mma(sum[i][2 * n], left[i], both.x, both.y);
      mma(sum[i][2 * n + 1], left[i], both.z, both.w);
    }
  }
}

/// Sum of a pack over `parts` partial results of `packs` packs each, in order.
__device__ __forceinline__ void sum_parts(const float* partial, int packs, int parts, int pack, float (&sum)[8]) {
  load8_constant(partial + static_cast<std::int64_t>(pack) * 8, sum);
#pragma unroll 4
  for (int part = 1; part < parts; ++part) {
    float more[8];
    load8_constant(partial + (static_cast<std::int64_t>(part) * packs + pack) * 8, more);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += more[i];
  }
}

}  // namespace device

namespace detail {

/// What all kernels of lora_a_*.cuh take.
struct LoraAArgs {
  int tokens = 0;
  int width = 0;     ///< K
  int adapters = 0;  ///< XA
  int steps = 0;     ///< per block
  device::MaskSite site{};
};

/// Shared by the kernels with a narrow side. Narrow: columns of XA that a block computes or reads.
template <int Narrow>
struct LoraATiles {
  static constexpr int narrow = Narrow;
  static constexpr int warps = 8;
  static constexpr int threads = warps * 32;
  static constexpr int wide = 128;  ///< tokens or columns per block
  static constexpr int step = 64;   ///< columns or tokens summed between two barriers
  static_assert(Narrow % 64 == 0 && Narrow <= most_narrow, "lora_a: tiles of 64, 128 or 192 columns");
};

/// Calls run(std::integral_constant<int, width>).
template <class Run>
void for_narrow(int width, const Run& run) {
  if (width == 64) run(std::integral_constant<int, 64>());
  if (width == 128) run(std::integral_constant<int, 128>());
  if (width == 192) run(std::integral_constant<int, 192>());
}

template <class Tiles, class Args>
void launch_lora_a(Context& context, const char* name, void (*kernel)(Args), dim3 grid, const Args& args) {
  QLORA_EXPECTS(Tiles::shared_bytes <= context.max_shared_bytes, name, ": a block needs ", Tiles::shared_bytes,
                " bytes of shared memory, this GPU gives ", context.max_shared_bytes);
  // room for all resident blocks; L1 is not needed, since nothing is read twice
  allow_shared(context, kernel, Tiles::shared_bytes, Carveout::most_shared, name);
  kernel<<<grid, Tiles::threads, Tiles::shared_bytes, context.stream>>>(args);
  check_launch(name);
}

/// Cost of writing a block's partial sums and reading them again, in steps: 98 KiB twice at 30 bytes per clock and
/// multiprocessor from L2, against steps of 1000 to 1300 clocks.
inline constexpr int partial_steps = 5;

/// Launches a kernel with `tiles` x `narrow` results, each a sum of `steps`. The sum is split until the GPU is full; if
/// it is, args.partial is set, and `sum` is launched to add up the parts of `floats`: sum(packs, parts, partial, ...).
template <class Tiles, class Args, class... SumArgs>
void launch_split(Context& context, const char* name, void (*kernel)(Args), int tiles, int narrow, int steps,
                  std::int64_t floats, Args args, void (*sum)(int, int, const float*, SumArgs...),
                  const std::type_identity_t<SumArgs>&... sum_args) {
  const SumSplit split = split_sum(tiles * narrow, steps, context.sm_count * Tiles::resident,
                                   context.workspace_bytes / (floats * 4), partial_steps);
  args.steps = split.steps;
  args.partial = split.count > 1 ? reinterpret_cast<float*>(context.workspace) : nullptr;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(split.count), static_cast<unsigned>(narrow));
  launch_lora_a<Tiles>(context, name, kernel, grid, args);
  if (args.partial == nullptr) return;
  const auto packs = static_cast<int>(floats / 8);  // the workspace holds them, so at most 2^20
  const auto blocks = static_cast<unsigned>((packs + row_threads - 1) / row_threads);
  sum<<<blocks, row_threads, 0, context.stream>>>(packs, split.count, args.partial, sum_args...);
  check_launch(name);
}

inline void expect_lora_a(const char* op, int width, int adapters) {
  QLORA_EXPECTS(width > 0 && width % 64 == 0, op, ": rows have ", width, " columns, not a multiple of 64");
  QLORA_EXPECTS(adapters > 0 && adapters % 8 == 0, op, ": the adapters have ", adapters,
                " columns, not a multiple of 8");
}

}  // namespace detail

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
