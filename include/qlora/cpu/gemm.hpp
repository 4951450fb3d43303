// qlora/cpu/gemm.hpp — the three matrix products that training needs, on Eigen, in tiles.
// Math       nt: C (m,n) += a A (m,k) B (n,k)^T      nn: C += a A (m,k) B (k,n)      tn: C += a A (k,m)^T B (k,n)
// Shapes     row-major, with leading dimensions; m n k and the tile shape are run-time ints, so each product is
//            compiled once per scalar type, whatever the configs
// Writes     C with += ; `beta` 0 clears the tile first
// Split      tiles of tile_rows x tile_cols of C, chosen from m and n alone; k is never split
// Numbers    one Eigen product per tile: a fixed order for given sizes, so the same bits for any thread count
// Cost       2 m n k FLOP; bench/gemm_bench.cpp shows the rate beside Eigen's own on one thread
#pragma once

#include <algorithm>
#include <cstdint>

#include "qlora/cpu/numbers.hpp"
#include "qlora/cpu/threads.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

template <class S>
using DenseMap = Eigen::Map<Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>, 0, Eigen::OuterStride<>>;
template <class S>
using ConstDenseMap =
    Eigen::Map<const Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>, 0, Eigen::OuterStride<>>;

template <class S>
[[nodiscard]] DenseMap<S> dense(S* data, std::int64_t rows, std::int64_t cols, std::int64_t stride) {
  return {data, rows, cols, Eigen::OuterStride<>(stride)};
}
template <class S>
[[nodiscard]] ConstDenseMap<S> dense(const S* data, std::int64_t rows, std::int64_t cols, std::int64_t stride) {
  return {data, rows, cols, Eigen::OuterStride<>(stride)};
}

namespace detail {

struct Tiling {
  int rows = 0;
  int cols = 0;
};
/// Tiles as large as they can be (packing is paid once per tile) while there are sixteen of them to share.
[[nodiscard]] constexpr Tiling tiling(int m, int n) {
  Tiling tile{512, 512};
  const auto count = [&] { return ((m + tile.rows - 1) / tile.rows) * ((n + tile.cols - 1) / tile.cols); };
  while (count() < 16 && (tile.rows > 128 || tile.cols > 128)) {
    if (tile.rows > 128 && (tile.rows >= tile.cols || tile.cols <= 128)) {
      tile.rows /= 2;
    } else {
      tile.cols /= 2;
    }
  }
  return tile;
}

/// Calls tile(row, rows, col, cols) for each tile of an m x n matrix, on the workers of `pool`.
template <class Tile>
void for_product_tiles(ThreadPool& pool, int m, int n, Tile&& tile) {
  const Tiling size = tiling(m, n);
  const int tiles_n = (n + size.cols - 1) / size.cols;
  const int tiles_m = (m + size.rows - 1) / size.rows;
  pool.for_tiles(tiles_m * tiles_n, [&](int index, int) {
    const int row = (index / tiles_n) * size.rows;
    const int col = (index % tiles_n) * size.cols;
    tile(row, std::min(size.rows, m - row), col, std::min(size.cols, n - col));
  });
}

/// The matrix to add to, cleared first where beta is 0.
template <class S>
[[nodiscard]] DenseMap<S> target(int m, int n, int beta, Block<S> c) {
  auto map = dense(c.data, m, n, c.stride);
  if (beta == 0) map.setZero();
  return map;
}

}  // namespace detail

/// C (m,n) = beta C + alpha A (m,k) B (n,k)^T, beta 0 or 1, by the calling thread. Every product of the CPU backend is
/// one of these three: each further form of an Eigen product would cost a second of compile time.
template <class S>
void tile_nt(int m, int n, int k, S alpha, Block<const S> a, Block<const S> b, int beta, Block<S> c) {
  detail::target(m, n, beta, c).noalias() +=
      alpha * dense(a.data, m, k, a.stride) * dense(b.data, n, k, b.stride).transpose();
}

/// C (m,n) = beta C + alpha A (m,k) B (k,n), beta 0 or 1, by the calling thread.
template <class S>
void tile_nn(int m, int n, int k, S alpha, Block<const S> a, Block<const S> b, int beta, Block<S> c) {
  detail::target(m, n, beta, c).noalias() += alpha * dense(a.data, m, k, a.stride) * dense(b.data, k, n, b.stride);
}

/// C (m,n) = beta C + alpha A (k,m)^T B (k,n), beta 0 or 1, by the calling thread.
template <class S>
void tile_tn(int m, int n, int k, S alpha, Block<const S> a, Block<const S> b, int beta, Block<S> c) {
  detail::target(m, n, beta, c).noalias() +=
      alpha * dense(a.data, k, m, a.stride).transpose() * dense(b.data, k, n, b.stride);
}

/// C (m,n) = beta C + alpha A (m,k) B (n,k)^T, beta 0 or 1.
template <class S>
void product_nt(ThreadPool& pool, int m, int n, int k, S alpha, Block<const S> a, Block<const S> b, int beta,
                Block<S> c) {
  detail::for_product_tiles(pool, m, n, [&](int row, int rows, int col, int cols) {
    tile_nt<S>(rows, cols, k, alpha, {a.row(row), a.stride}, {b.row(col), b.stride}, beta,
               {c.row(row) + col, c.stride});
  });
}

/// C (m,n) = beta C + alpha A (m,k) B (k,n), beta 0 or 1.
template <class S>
void product_nn(ThreadPool& pool, int m, int n, int k, S alpha, Block<const S> a, Block<const S> b, int beta,
                Block<S> c) {
  detail::for_product_tiles(pool, m, n, [&](int row, int rows, int col, int cols) {
    tile_nn<S>(rows, cols, k, alpha, {a.row(row), a.stride}, {b.data + col, b.stride}, beta,
               {c.row(row) + col, c.stride});
  });
}

/// C (m,n) = beta C + alpha A (k,m)^T B (k,n), beta 0 or 1.
template <class S>
void product_tn(ThreadPool& pool, int m, int n, int k, S alpha, Block<const S> a, Block<const S> b, int beta,
                Block<S> c) {
  detail::for_product_tiles(pool, m, n, [&](int row, int rows, int col, int cols) {
    tile_tn<S>(rows, cols, k, alpha, {a.data + row, a.stride}, {b.data + col, b.stride}, beta,
               {c.row(row) + col, c.stride});
  });
}

#ifdef QLORA_INSTANCE  // numbers.hpp
QLORA_INSTANCE void product_nt<float>(ThreadPool&, int, int, int, float, Block<const float>, Block<const float>, int,
                                      Block<float>);
QLORA_INSTANCE void product_nn<float>(ThreadPool&, int, int, int, float, Block<const float>, Block<const float>, int,
                                      Block<float>);
QLORA_INSTANCE void product_tn<float>(ThreadPool&, int, int, int, float, Block<const float>, Block<const float>, int,
                                      Block<float>);
#endif

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
