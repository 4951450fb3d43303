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

template <class S, class Product>
void for_product_tiles(ThreadPool& pool, int m, int n, Block<S> c, int beta, Product&& product) {
  const Tiling tile = tiling(m, n);
  const int tiles_n = (n + tile.cols - 1) / tile.cols;
  const int tiles_m = (m + tile.rows - 1) / tile.rows;
  pool.for_tiles(tiles_m * tiles_n, [&](int index, int) {
    const int row = (index / tiles_n) * tile.rows;
    const int col = (index % tiles_n) * tile.cols;
    const int rows = std::min(tile.rows, m - row);
    const int cols = std::min(tile.cols, n - col);
    auto target = dense(c.data + row * c.stride + col, rows, cols, c.stride);
    if (beta == 0) target.setZero();
    product(target, row, rows, col, cols);
  });
}

}  // namespace detail

/// C (m,n) = beta C + alpha A (m,k) B (n,k)^T, beta 0 or 1.
template <class S>
void product_nt(ThreadPool& pool, int m, int n, int k, S alpha, Block<const S> a, Block<const S> b, int beta,
                Block<S> c) {
  detail::for_product_tiles(pool, m, n, c, beta, [&](auto& target, int row, int rows, int col, int cols) {
    target.noalias() += alpha * dense(a.data + row * a.stride, rows, k, a.stride) *
                        dense(b.data + col * b.stride, cols, k, b.stride).transpose();
  });
}

/// C (m,n) = beta C + alpha A (m,k) B (k,n), beta 0 or 1.
template <class S>
void product_nn(ThreadPool& pool, int m, int n, int k, S alpha, Block<const S> a, Block<const S> b, int beta,
                Block<S> c) {
  detail::for_product_tiles(pool, m, n, c, beta, [&](auto& target, int row, int rows, int col, int cols) {
    target.noalias() +=
        alpha * dense(a.data + row * a.stride, rows, k, a.stride) * dense(b.data + col, k, cols, b.stride);
  });
}

/// C (m,n) = beta C + alpha A (k,m)^T B (k,n), beta 0 or 1.
template <class S>
void product_tn(ThreadPool& pool, int m, int n, int k, S alpha, Block<const S> a, Block<const S> b, int beta,
                Block<S> c) {
  detail::for_product_tiles(pool, m, n, c, beta, [&](auto& target, int row, int rows, int col, int cols) {
    target.noalias() +=
        alpha * dense(a.data + row, k, rows, a.stride).transpose() * dense(b.data + col, k, cols, b.stride);
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
