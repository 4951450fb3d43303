// qlora/cpu/fp8.hpp — what fp8 products read, rounded as a GPU rounds it and kept in float.
// Math       row r of X: s_r e4m3(x / s_r), s_r = max |x| / 448
//            W: s e4m3(w / s), s = (a bound of the group's |w|) / 448
// Shapes     X (T,K) or gY (T, sum N), W (N,K)
// Writes     copies in scratch; X and W stay as they are
// Numbers    the quotients are products with 448 / max |x|, as on the GPU; products and sums are those of float
// Reference  tests/cpu/fp8_test.cpp
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "qlora/cpu/numbers.hpp"
#include "qlora/cpu/threads.hpp"
#include "qlora/fp8.hpp"
#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// `count` numbers in place, as they come back from e4m3 with this scale.
inline void round_fp8(float* values, std::int64_t count, fp8::Scale by) {
  for (std::int64_t i = 0; i < count; ++i) values[i] = fp8::rounded(values[i] * by.inverse) * by.scale;
}

/// to (rows,cols) = from, each row rounded with a scale of its own.
inline void round_rows_fp8(ThreadPool& pool, int rows, int cols, Block<const float> from, float* to) {
  for_ranges(pool, rows, 16, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const float* row = from.row(t);
      float most = 0.0F;
      for (int i = 0; i < cols; ++i) most = std::max(most, std::abs(row[i]));
      std::copy_n(row, cols, to + t * cols);
      round_fp8(to + t * cols, cols, fp8::scale_of(most));
    }
  });
}

/// A bound of the weights of a group: its parts share a scale.
template <class S>
[[nodiscard]] float largest_weight(std::span<const LinearPart<S>> parts) {
  float most = 0.0F;
  for (const LinearPart<S>& part : parts) most = std::max(most, part.weight.nf4.largest);
  return most;
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
