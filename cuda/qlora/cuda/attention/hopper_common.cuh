// qlora/cuda/attention/hopper_common.cuh — shared by the two Hopper backward kernels: work distribution over blocks,
// the ring of tiles between producer and consumer warps, stores of results.
// Shapes     a tile is rows of 128 bf16 as two panels of 64 columns (arch/hopper.cuh)
// Split      persistent kernels: one block per multiprocessor, each of which processes a list of items (a head and a
//            tile of 128 own rows). One producer warpgroup copies, two consumer warpgroups have 64 own rows each. Tiles
//            of the other side pass through a ring of stages; each consumer has one buffer for its own rows, which is
//            refilled for the next item as soon as that warpgroup has finished, so that neither copies nor stores stall
//            the tensor cores
// Needs      sm_90a; E 128
// Reference  backward.cuh; Shah et al., FlashAttention-3 (2024)
#pragma once

#include <cudaTypedefs.h>

#include "qlora/cuda/arch/hopper.cuh"
#include "qlora/cuda/attention/common.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Rows and threads of a block, and sizes in bytes of its copies.
struct HopperSplit {
  static constexpr int head_dim = 128;
  static constexpr int groups = 2;                  // consumer warpgroups
  static constexpr int group_rows = 64;             // own rows of each; also the rows of a TMA box
  static constexpr int rows = groups * group_rows;  // own rows of a block
  static constexpr int threads = 128 * (1 + groups);
  static constexpr int panel_columns = 64;
  static constexpr int own_panel = group_rows * 128;
  static constexpr int own_tile = 2 * own_panel;           // Q, gO, K or V of one warpgroup
  static constexpr int own_bytes = groups * 2 * own_tile;  // both tiles of all consumers
  static constexpr int copy_registers = 24;                // per thread: 128 of them and 256 with 240 average to 168,
  static constexpr int multiply_registers = 240;           // with which each thread of a block of 384 starts
};

/// The block's item of a round. Items are sorted longest first and assigned in alternating direction, so that a block
/// with a long item gets a short one next. May exceed the last item.
__device__ __forceinline__ int item_of(int round) {
  const auto blocks = static_cast<int>(gridDim.x);
  const auto block = static_cast<int>(blockIdx.x);
  return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
}

/// A ring of stages with two barriers each: `full`, completed by copies, and `empty`, on which consumers arrive.
template <int Stages>
struct HopperRing {
  static_assert((Stages & (Stages - 1)) == 0, "the steps of a ring wrap around");
  std::uint32_t barriers;
  std::uint32_t step = 0;
  __device__ __forceinline__ explicit HopperRing(std::uint32_t at) : barriers(at) {}
  [[nodiscard]] __device__ __forceinline__ std::uint32_t stage() const { return step % Stages; }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t parity() const { return step / Stages % 2; }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t full() const { return barriers + stage() * 16; }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t empty() const { return full() + 8; }
  /// The empty barrier of the previous step.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t empty_before() const {
    return barriers + (step - 1) % Stages * 16 + 8;
  }
  __device__ __forceinline__ void wait_full() const { device::barrier_wait(full(), parity()); }
  __device__ __forceinline__ void wait_empty() const { device::barrier_wait(empty(), parity() ^ 1U); }
  __device__ __forceinline__ void advance() { ++step; }
};

/// Calls use(item, parity) for the block's items of `items`. The parity, of barriers that are completed once per item,
/// alternates.
template <class Use>
__device__ __forceinline__ void for_items(int items, const Use& use) {
  std::uint32_t parity = 0;
  for (int round = 0; round * static_cast<int>(gridDim.x) < items; ++round) {
    const int item = item_of(round);
    if (item >= items) continue;
    use(item, parity);
    parity ^= 1U;
  }
}

/// The warp has finished with what the barrier guards. Arrivals of a warpgroup: 4, one per warp, or 128, one a thread.
template <int Arrivals = 4>
__device__ __forceinline__ void release(std::uint32_t barrier) {
  static_assert(Arrivals == 4 || Arrivals == 128, "each warp or each thread arrives");
  if constexpr (Arrivals == 128) {
    device::barrier_arrive(barrier);
  } else {
    __syncwarp();
    if (threadIdx.x % 32 == 0) device::barrier_arrive(barrier);
  }
}

/// Shared memory of a block: tiles (own rows, then stages), what else the stages hold, and barriers (stages, then own
/// rows).
struct HopperShared {
  std::uint32_t own;
  float* statistics;
  std::uint32_t barriers;
};
template <class Tiles>
__device__ __forceinline__ std::uint32_t stage_at(const HopperShared& shared, const HopperRing<Tiles::stages>& ring) {
  return shared.own + Tiles::own_bytes + ring.stage() * Tiles::stage_bytes;
}

/// Where a consumer warpgroup's own rows and their barriers are.
template <class Tiles>
struct HopperConsumer {
  int row;  ///< first of its rows in the block's item
  std::uint32_t own;
  std::uint32_t own_full;
  __device__ __forceinline__ explicit HopperConsumer(const HopperShared& shared) {
    const int group = static_cast<int>(threadIdx.x) / 128 - 1;
    row = group * Tiles::group_rows;
    own = shared.own + static_cast<std::uint32_t>(group * 2 * Tiles::own_tile);
    own_full = shared.barriers + static_cast<std::uint32_t>((Tiles::stages + group) * 16);
  }
};

/// Gives back the stages of rows [at, last) unread; returns the row after them.
template <class Tiles>
__device__ __forceinline__ int skip_stages(HopperRing<Tiles::stages>& ring, int at, int last) {
  for (; at < last; at += Tiles::stage_rows) {
    ring.wait_full();
    release<Tiles::arrivals>(ring.empty());
    ring.advance();
  }
  return at;
}

/// Starts s = own first tile x first tile of the stage and dp = own second tile x second tile of the stage, both summed
/// over E. On return s is complete, and so are the products of the previous stage, which is released unless this one is
/// the `first`.
template <class Tiles, int Columns>
__device__ __forceinline__ void multiply_stage(float (&s)[Columns][4], float (&dp)[Columns][4], std::uint32_t own,
                                               std::uint32_t stage, const HopperRing<Tiles::stages>& ring, bool first) {
  device::products_begin();
  device::product_along(s, device::operand_along(own), Tiles::own_panel, device::operand_along(stage), Tiles::panel);
  device::products_commit();
  device::products_wait<1>();
  if (!first) release<Tiles::arrivals>(ring.empty_before());
  device::products_begin();
  device::product_along(dp, device::operand_along(own + Tiles::own_tile), Tiles::own_panel,
                        device::operand_along(stage + Tiles::tile), Tiles::panel);
  device::products_commit();
  device::products_wait<1>();
  device::settled(s);
}

/// Initialises the barriers of a ring, then `full` and `empty` of each warpgroup's own rows.
template <class Tiles>
__device__ __forceinline__ void init_barriers(std::uint32_t barriers) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tiles::stages + Tiles::groups; ++i) {
      const std::uint32_t at = barriers + static_cast<std::uint32_t>(i * 16);
      device::barrier_init(at, i < Tiles::stages ? Tiles::fills : 1);
      device::barrier_init(at + 8, i < Tiles::stages ? Tiles::groups * Tiles::arrivals : 4);
    }
    device::barriers_ready();
  }
  __syncthreads();
}

/// Copies rows [row, row + Rows) of the 128 columns from `column` on, as two panels. Called by one thread.
template <int Rows>
__device__ __forceinline__ void copy_tile(std::uint32_t to, const CUtensorMap& map, int column, int row,
                                          std::uint32_t barrier) {
#pragma unroll
  for (int panel = 0; panel < 2; ++panel) {
#pragma unroll
    for (int i = 0; i < Rows; i += HopperSplit::group_rows) {
      device::copy_box(to + static_cast<std::uint32_t>((panel * Rows + i) * 128), &map,
                       column + panel * HopperSplit::panel_columns, row + i, barrier);
    }
  }
}

/// Copies the own rows of both warpgroups, each as soon as it has finished with those of the previous item. Called by
/// one thread.
__device__ __forceinline__ void copy_own(std::uint32_t own, std::uint32_t barriers, std::uint32_t parity,
                                         const CUtensorMap& first, int first_column, const CUtensorMap& second,
                                         int second_column, int row) {
  using Split = HopperSplit;
  for (int group = 0; group < Split::groups; ++group) {
    const std::uint32_t full = barriers + static_cast<std::uint32_t>(group * 16);
    const std::uint32_t to = own + static_cast<std::uint32_t>(group * 2 * Split::own_tile);
    device::barrier_wait(full + 8, parity ^ 1U);
    device::barrier_expect(full, 2 * Split::own_tile);
    copy_tile<Split::group_rows>(to, first, first_column, row + group * Split::group_rows, full);
    copy_tile<Split::group_rows>(to + Split::own_tile, second, second_column, row + group * Split::group_rows, full);
  }
}

/// Packs d (64, 8 Columns) into operands of 16 columns each.
template <int Columns>
__device__ __forceinline__ void pack_operands(const float (&d)[Columns][4], std::uint32_t (&a)[Columns / 2][4]) {
#pragma unroll
  for (int k = 0; k < Columns / 2; ++k) {
    a[k][0] = device::pack2(d[2 * k][0], d[2 * k][1]);
    a[k][1] = device::pack2(d[2 * k][2], d[2 * k][3]);
    a[k][2] = device::pack2(d[2 * k + 1][0], d[2 * k + 1][1]);
    a[k][3] = device::pack2(d[2 * k + 1][2], d[2 * k + 1][3]);
  }
}

/// Transposes words over the four lanes of a quad: before, each lane holds 4 bytes of four 16-byte chunks; after, each
/// lane holds one whole chunk.
__device__ __forceinline__ void transpose_quad(std::uint32_t (&r)[4]) {
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    const bool upper = (threadIdx.x & static_cast<unsigned>(distance)) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & distance) != 0) continue;
      const std::uint32_t got = __shfl_xor_sync(0xffffffffU, upper ? r[i] : r[i + distance], distance);
      if (upper) {
        r[i] = got;
      } else {
        r[i + distance] = got;
      }
    }
  }
}

/// Stores a warpgroup's accumulators times `factor`, rounded, to rows [row, limit) of a head, in 16-byte stores.
__device__ __forceinline__ void store_rows(const float (&d)[16][4], float factor, bf16* to, int stride, int row,
                                           int limit) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = row + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int t = first + half * 8;
#pragma unroll
    for (int n = 0; n < 16; n += 4) {
      std::uint32_t r[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        r[i] = device::pack2(d[n + i][half * 2] * factor, d[n + i][half * 2 + 1] * factor);
      }
      transpose_quad(r);
      if (t < limit) {
        *reinterpret_cast<uint4*>(to + static_cast<std::int64_t>(t) * stride + (n + lane % 4) * 8) =
            uint4{r[0], r[1], r[2], r[3]};
      }
    }
  }
}

/// One of the two kernels. Side has its Tiles and the two roles: copy() for the producer's first `copiers` threads,
/// compute() for the consumers. Without sm_90a it has no body and no static shared memory.
template <class Side>
__global__ static void __launch_bounds__(HopperSplit::threads, 1)
    attention_hopper_kernel(const __grid_constant__ CUtensorMap qkv, const __grid_constant__ CUtensorMap go,
                            const BackwardArgs args, const __grid_constant__ TileOrder order, const int items) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Tiles = typename Side::Tiles;
  static_assert(Tiles::shared_bytes <= 226 * 1024, "attention: a block's shared memory on sm_90");
  extern __shared__ __align__(1024) unsigned char hopper_shared[];
  __shared__ __align__(16) std::uint64_t barrier_words[2 * (Tiles::stages + Tiles::groups)];
  const std::uint32_t start = device::shared_address(hopper_shared);
  const std::uint32_t tiles = (start + 1023U) & ~1023U;
  const HopperShared shared{
      tiles,
      reinterpret_cast<float*>(hopper_shared + (tiles - start) + Tiles::own_bytes + Tiles::stages * Tiles::stage_bytes),
      device::shared_address(barrier_words)};
  init_barriers<Tiles>(shared.barriers);
  if (threadIdx.x < 128) {
    device::registers_give<Tiles::copy_registers>();
    if (threadIdx.x < Side::copiers) Side::copy(args, order, qkv, go, items, shared);
  } else {
    device::registers_take<Tiles::multiply_registers>();
    Side::compute(args, order, items, shared);
  }
#endif
}

/// A tensor map with boxes of 64 rows and one panel, for a (rows, columns) matrix whose rows are `stride` apart.
[[nodiscard]] inline CUtensorMap panel_map(const bf16* data, int columns, int rows, int stride) {
  static const auto encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found),
          "looking for cuTensorMapEncodeTiled");
#else
    check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found),
          "looking for cuTensorMapEncodeTiled");
#endif
    QLORA_EXPECTS(found == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
  }();
  CUtensorMap map{};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride) * sizeof(bf16)};
  const cuuint32_t box[2] = {HopperSplit::panel_columns, HopperSplit::group_rows};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult made = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<bf16*>(data), sizes, strides, box,
                               steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  QLORA_EXPECTS(made == CUDA_SUCCESS, "cuTensorMapEncodeTiled: error ", static_cast<int>(made), " for ", rows,
                " rows of ", columns, ", ", stride, " apart");
  return map;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
