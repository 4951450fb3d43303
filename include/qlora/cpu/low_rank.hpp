// qlora/cpu/low_rank.hpp — the best approximation of a matrix by a product of two narrow ones: its truncated singular
// value decomposition, by subspace iteration from random columns.
// Math       M (m,n) ~ L R with L = U sqrt(S), R = sqrt(S) V^T of the `rank` largest singular values. The subspace has
//            `spare` columns more than the rank and is multiplied by M M^T `rounds` times; of a matrix with a side of
//            `whole` or less it is the whole space, and the result is exact.
// Shapes     M (m,n) L (m,rank) R (rank,n), row-major
// Writes     L R with =
// Numbers    products in float, what is (k,k) in double; the same bits for any thread count, since products are in
//            tiles and the rest is one thread's
// Cost       (2 rounds + 2) 2 m n k FLOP with k = rank + spare; beside M some 4 (m + n) k floats
// Reference  Halko, Martinsson, Tropp, "Finding structure with randomness" (2011), algorithm 4.4; numpy's SVD in
//            tests/io/residual_init_test.cpp
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "qlora/cpu/gemm.hpp"
#include "qlora/error.hpp"
#include "qlora/rng.hpp"
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push  // as in numbers.hpp
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

namespace qlora {
inline namespace v0 {
namespace cpu {

/// L (m,rank) and R (rank,n) of an approximation L R.
struct LowRank {
  std::vector<float> left;   ///< L, (m, rank)
  std::vector<float> right;  ///< R, (rank, n)
};

namespace detail {

inline constexpr int low_rank_spare = 16;   // Halko et al. take 5 to 10; more costs a little and gains a little
inline constexpr int low_rank_rounds = 4;   // what peft takes for its fast PiSSA; residuals have slowly falling values
inline constexpr int low_rank_whole = 256;  // up to here the exact decomposition is no slower

/// Replaces the columns of a (rows, cols) by an orthonormal basis of theirs; cols <= rows.
inline void orthonormalize(std::vector<float>& matrix, int rows, int cols) {
  auto view = dense(matrix.data(), rows, cols, cols);
  const Eigen::HouseholderQR<Eigen::MatrixXf> qr(view);
  view = qr.householderQ() * Eigen::MatrixXf::Identity(rows, cols);
}

/// Normal numbers that depend on the seed and on their index alone.
[[nodiscard]] inline std::vector<float> low_rank_start(std::int64_t count, std::uint64_t seed) {
  std::vector<float> start(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < start.size(); ++i) {
    const auto words = philox(
        {static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(i >> 32), 0, use_word(RandomUse::low_rank)}, seed);
    start[i] = std::sqrt(-2.0F * std::log(1.0F - unit_float(words[0]))) *
               std::cos(2.0F * std::numbers::pi_v<float> * unit_float(words[1]));
  }
  return start;
}

}  // namespace detail

/// The approximation of M (rows, cols), whose numbers are finite. Throws Error (usage) for a rank below 1 or above the
/// shorter side.
[[nodiscard]] inline LowRank low_rank(ThreadPool& pool, const std::vector<float>& matrix, int rows, int cols, int rank,
                                      std::uint64_t seed) {
  using In = Block<const float>;
  const int shorter = std::min(rows, cols);
  QLORA_EXPECTS(rank >= 1 && rank <= shorter, "an approximation of rank ", rank, " of a matrix of ", rows, " x ", cols);
  QLORA_EXPECTS(matrix.size() == static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols), "a matrix of ", rows,
                " x ", cols, " with ", matrix.size(), " numbers");
  const bool whole = shorter <= detail::low_rank_whole;
  const int width = whole ? shorter : std::min(rank + detail::low_rank_spare, shorter);
  const In m{matrix.data(), cols};
  std::vector<float> across = detail::low_rank_start(std::int64_t{cols} * width, seed);        // (n,k)
  std::vector<float> basis(static_cast<std::size_t>(rows) * static_cast<std::size_t>(width));  // (m,k)
  const auto multiply = [&] {
    product_nn<float>(pool, rows, width, cols, 1.0F, m, In{across.data(), width}, 0, {basis.data(), width});
    detail::orthonormalize(basis, rows, width);
  };
  multiply();
  for (int round = 0; round < (whole ? 0 : detail::low_rank_rounds); ++round) {
    product_tn<float>(pool, cols, width, rows, 1.0F, m, In{basis.data(), width}, 0, {across.data(), width});
    detail::orthonormalize(across, cols, width);
    multiply();
  }
  std::vector<float> inside(static_cast<std::size_t>(width) * static_cast<std::size_t>(cols));  // Q^T M, (k,n)
  product_tn<float>(pool, width, cols, rows, 1.0F, In{basis.data(), width}, m, 0, {inside.data(), cols});
  const Eigen::MatrixXd b = dense(static_cast<const float*>(inside.data()), width, cols, cols).cast<double>();
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solved(Eigen::MatrixXd(b * b.transpose()));
  const Eigen::MatrixXd directions = solved.eigenvectors().rightCols(rank).rowwise().reverse();
  const Eigen::VectorXd values = solved.eigenvalues().tail(rank).reverse().cwiseMax(0.0).cwiseSqrt();
  Eigen::VectorXd root = values.cwiseSqrt();
  Eigen::VectorXd inverse(rank);
  const double least = values.size() > 0 ? values(0) * 1e-7 : 0.0;  // what is below is rounding, and has no direction
  for (int i = 0; i < rank; ++i) {
    if (values(i) <= least) root(i) = 0.0;
    inverse(i) = root(i) > 0.0 ? 1.0 / root(i) : 0.0;
  }
  LowRank out;
  out.left.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(rank));
  out.right.resize(static_cast<std::size_t>(rank) * static_cast<std::size_t>(cols));
  const Eigen::MatrixXf turned = (directions * root.asDiagonal()).cast<float>();
  dense(out.left.data(), rows, rank, rank).noalias() =
      dense(static_cast<const float*>(basis.data()), rows, width, width) * turned;
  dense(out.right.data(), rank, cols, cols) = (inverse.asDiagonal() * (directions.transpose() * b)).cast<float>();
  return out;
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
