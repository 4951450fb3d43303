// qlora/cuda/attention/tiles.cuh — building blocks of the attention kernels: tiles of rows in shared memory, fragments,
// and products of a warp's 16-row blocks with a tile.
// Shapes     a tile is rows of E bf16; chunk c of row r lies where chunk_offset of ranges.hpp says
//            fragments as the PTX ISA lays them out for mma.m16n8k16: with g = lane / 4 and t = lane % 4,
//            A (16 x 16): {row g, columns 2t 2t+1} {row g+8, same} {row g, columns 2t+8 2t+9} {row g+8, same}
//            B (16 x 8): {rows 2t 2t+1, column g} {rows 2t+8 2t+9, column g}
//            C (16 x 8): c0 c1 in row g, columns 2t 2t+1; c2 c3 in row g+8
// Needs      sm_80: mma.sync with bf16, ldmatrix, cp.async
// Numbers    bf16 operands, fp32 accumulators; the lower half of a register is the lower column (or row)
// Cost       one ldmatrix.x4 loads two neighbouring column tiles of B, without bank conflicts
// Reference  tests/cuda/attention_tiles_test.cpp for offsets and lane addresses
#pragma once

#include "qlora/cuda/arch/primitives.cuh"
#include "qlora/cuda/attention/ranges.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace device {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// Copies 16 bytes from global to shared memory, or writes zeros.
__device__ __forceinline__ void copy_async16(std::uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_async4(std::uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(inside ? 4 : 0) : "memory");
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits for this thread's copies; a barrier then makes them visible to other threads.
__device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
/// The same for all but the last `groups` that were committed; for more than 4 of them it may wait for more.
__device__ __forceinline__ void copies_wait_but(int groups) {
  if (groups >= 4) {
    asm volatile("cp.async.wait_group 4;" ::: "memory");
  } else if (groups == 3) {
    asm volatile("cp.async.wait_group 3;" ::: "memory");
  } else if (groups == 2) {
    asm volatile("cp.async.wait_group 2;" ::: "memory");
  } else if (groups == 1) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  } else {
    copies_wait();
  }
}

/// 2^x, with 2^-inf = 0; denormal results become 0.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ std::uint32_t pack2(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&both);
}
__device__ __forceinline__ float2 unpack2(std::uint32_t both) {
  return {__uint_as_float(both << 16), __uint_as_float(both & 0xFFFF0000U)};
}

/// Copies rows [first, first + Rows) of a head from global memory to a tile; rows from `limit` on are zeros and are not
/// read.
template <int E, int Rows, int Threads>
__device__ __forceinline__ void load_tile(std::uint32_t tile, const bf16* from, int stride, int first, int limit) {
  constexpr int chunks = E / 8;
  constexpr int step = Threads / chunks;  // rows that the block copies in one pass
  static_assert(Threads % chunks == 0 && step % 8 == 0 && Rows % step == 0, "whole steps, and one flip per thread");
  const int row = static_cast<int>(threadIdx.x) / chunks;
  const int chunk = static_cast<int>(threadIdx.x) % chunks;
  const std::uint32_t to = tile + static_cast<std::uint32_t>(chunk_offset(E, row, chunk));
  const bf16* p = from + static_cast<std::int64_t>(first + row) * stride + chunk * 8;
#pragma unroll
  for (int i = 0; i < Rows; i += step) {
    const bool inside = first + row + i < limit;
    copy_async16(to + static_cast<std::uint32_t>(i * E * 2), inside ? p : from, inside);
    p += step * stride;
  }
}

/// The address that a lane passes to ldmatrix.x4 for a 16 x 16 block at any multiple of 8 rows and 16 columns. Tiles
/// are aligned to 256 bytes, so a column can be xored into the whole address: one register and one instruction.
template <int E>
struct LaneRow {
  std::uint32_t address;
  __device__ __forceinline__ LaneRow(std::uint32_t tile, int row, int half)
      : address(tile + static_cast<std::uint32_t>(chunk_offset(E, row, half))) {}
  /// `rows` below the tile's first row, columns 16 * block ...: chunk 2 block + half, swizzled.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t at(int rows, int block) const {
    return (address ^ static_cast<std::uint32_t>(block * 32)) + static_cast<std::uint32_t>(rows * E * 2);
  }
};
/// Matrices in the order rows 0-7, rows 8-15, then the same with columns 8-15: A fragments or, with .trans, two B
/// fragments of a tile that is summed over its rows.
template <int E>
__device__ __forceinline__ LaneRow<E> lanes_down(std::uint32_t tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return {tile, lane % 16, lane / 16};
}
/// Matrices in the order columns 0-7, columns 8-15, then the same with rows 8-15: two B fragments of a tile that is
/// summed over its columns.
template <int E>
__device__ __forceinline__ LaneRow<E> lanes_across(std::uint32_t tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return {tile, lane / 16 * 8 + lane % 8, lane / 8 % 2};
}

__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// C = A B^T over E: A is the warp's Blocks * 16 rows of one tile, B the rows of another tile, 8 per column tile.
template <int E, int Blocks, int Columns>
__device__ __forceinline__ void product_nt(float (&c)[Blocks][Columns][4], const LaneRow<E>& a, const LaneRow<E>& b) {
  static_assert(Columns % 2 == 0, "column tiles come in pairs");
#pragma unroll
  for (int i = 0; i < Blocks; ++i) {
#pragma unroll
    for (int n = 0; n < Columns; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) c[i][n][e] = 0.0F;
    }
  }
#pragma unroll 4  // unrolling all eight steps of E = 128 exceeds the register limit
  for (int k = 0; k < E / 16; ++k) {
    std::uint32_t left[Blocks][4];
#pragma unroll
    for (int i = 0; i < Blocks; ++i) load_matrices(left[i], a.at(i * 16, k));
#pragma unroll
    for (int n = 0; n < Columns; n += 2) {
      std::uint32_t right[4];
      load_matrices(right, b.at(n * 8, k));
#pragma unroll
      for (int i = 0; i < Blocks; ++i) {
        mma(c[i][n], left[i], right[0], right[1]);
        mma(c[i][n + 1], left[i], right[2], right[3]);
      }
    }
  }
}

/// C += A B over the rows of B's tile: A (Blocks * 16, 8 Columns) is packed accumulators, B has rows of E.
template <int E, int Blocks, int Columns>
__device__ __forceinline__ void product_nn(float (&c)[Blocks][E / 8][4], const std::uint32_t (&a)[Blocks][Columns][2],
                                           const LaneRow<E>& b) {
#pragma unroll
  for (int k = 0; k < Columns / 2; ++k) {
    std::uint32_t left[Blocks][4];
#pragma unroll
    for (int i = 0; i < Blocks; ++i) {
      // Accumulators of two neighbouring column tiles have the layout of an A fragment.
      left[i][0] = a[i][2 * k][0];
      left[i][1] = a[i][2 * k][1];
      left[i][2] = a[i][2 * k + 1][0];
      left[i][3] = a[i][2 * k + 1][1];
    }
#pragma unroll
    for (int n = 0; n < E / 8; n += 2) {
      std::uint32_t right[4];
      load_transposed(right, b.at(k * 16, n / 2));
#pragma unroll
      for (int i = 0; i < Blocks; ++i) {
        mma(c[i][n], left[i], right[0], right[1]);
        mma(c[i][n + 1], left[i], right[2], right[3]);
      }
    }
  }
}

/// Stores a warp's accumulators, rounded, to rows [first, limit) of a head in 16-byte stores. They pass through `own`,
/// Blocks * 16 rows of a tile that only this warp uses and whose contents are lost.
template <int E, int Blocks>
__device__ __forceinline__ void store_tile(const float (&c)[Blocks][E / 8][4], unsigned char* own, bf16* to, int stride,
                                           int first, int limit) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  __syncwarp();  // every lane has finished reading these rows
#pragma unroll
  for (int i = 0; i < Blocks; ++i) {
#pragma unroll
    for (int n = 0; n < E / 8; ++n) {
      const int row = i * 16 + lane / 4;
      const int byte = lane % 4 * 4;
      *reinterpret_cast<std::uint32_t*>(own + chunk_offset(E, row, n) + byte) = pack2(c[i][n][0], c[i][n][1]);
      *reinterpret_cast<std::uint32_t*>(own + chunk_offset(E, row + 8, n) + byte) = pack2(c[i][n][2], c[i][n][3]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < Blocks * 16 * E / 8; i += 32) {
    const int row = (i + lane) / (E / 8);
    const int chunk = (i + lane) % (E / 8);
    if (first + row < limit) {
      store8(to + static_cast<std::int64_t>(first + row) * stride + chunk * 8,
             *reinterpret_cast<const Pack8*>(own + chunk_offset(E, row, chunk)));
    }
  }
}

}  // namespace device
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
