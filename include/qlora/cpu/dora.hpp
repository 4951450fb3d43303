// qlora/cpu/dora.hpp — groups of linear layers whose adapters have trained magnitudes (DoRA).
// Math       L[n] = |W[n,:] + s B[n,:] A|, a constant in the backward pass; f = m / L
//            Y = [residual +] (X - X') W^T + f o (X' W^T + s (X' A^T) B^T), X' = mask o X / keep
//            gm += (1 / L) sum over t of gY o (X' W^T + s XA B^T);  gXA = s (f o gY) B;  gB += s (f o gY)^T XA
//            gX = gY W + mask o (((f - 1) o gY) W + gXA A) / keep, without dropout (f o gY) W + gXA A
// Shapes     those of linear.hpp · m L f (N)
// Writes     Y XA gX and lengths with = ; gm gB with +=
// Numbers    L from |W|^2 + 2 s B (W A^T) + s^2 B (A A^T) B^T, sums in double, so that W + s B A is never there
// Reference  complex step in tests/cpu/derivative_test.cpp; peft's in tests/train/dora_training_test.cpp;
//            Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation" (2024), 4.3
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "qlora/cpu/linear_parts.hpp"
#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

namespace detail {

/// Whether the group's adapters have magnitudes that are trained.
template <class S>
[[nodiscard]] bool has_trained_dora(std::span<const LinearPart<S>> parts) {
  for (const LinearPart<S>& part : parts) {
    if (part.a != nullptr && part.inverse_lengths != nullptr) return true;
  }
  return false;
}
/// The products of one part with X' and XA, without factors, into `to` (T,N).
template <class N, class S = typename N::S>
void add_adapter_product(ThreadPool& pool, const LinearGroup<S>& group, const LinearPart<S>& part, int tokens,
                         Block<const S> xa, Block<S> to) {
  const int rows = part.weight.rows;
  const S* b = adapter_operand<N>(group, part.b, std::int64_t{rows} * group.rank, part.scale);
  product_nt<S>(pool, tokens, rows, group.rank, N::rounds ? S(1) : part.scale, xa, {b, group.rank}, 1, to);
}

/// gm, and f o gY in the group's output scratch (T,N). `at`: column of x where the part's XA begins.
template <class N, class S = typename N::S>
[[nodiscard]] Block<const S> dora_output_gradient(ThreadPool& pool, const LinearGroup<S>& group,
                                                  const LinearPart<S>& part, int tokens, Block<const S> gy,
                                                  Block<const S> x, std::int64_t at, S* magnitude) {
  const int rows = part.weight.rows;
  const Block<S> out{group.output_scratch, rows};
  const Block<const S> dropped = dropped_input<N>(pool, group, tokens, x);
  product_nt<S>(pool, tokens, rows, group.in, S(1), dropped, dense_weight<N>(pool, group, part.weight), 0, out);
  add_adapter_product<N>(pool, group, part, tokens, {x.data + at, x.stride}, out);
  N::store(out, tokens, rows);
  constexpr int columns = 64;
  for_ranges(pool, rows, columns, [&](std::int64_t first, std::int64_t last, int) {
    std::array<S, columns> sums{};
    for (int t = 0; t < tokens; ++t) {
      for (std::int64_t n = first; n < last; ++n) {
        sums[static_cast<std::size_t>(n - first)] += gy.row(t)[n] * out.row(t)[n];
        out.row(t)[n] = part.row_factors[n] * gy.row(t)[n];
      }
    }
    for (std::int64_t n = first; n < last; ++n) {
      magnitude[n] += part.inverse_lengths[n] * sums[static_cast<std::size_t>(n - first)];
    }
  });
  N::store(out, tokens, rows);
  return {out.data, out.stride};
}

/// gX += mask o ((f o gY - gY) W) / keep, where f o gY is in the output scratch, which is used up.
template <class N, class S = typename N::S>
void dora_dropped_gradient(ThreadPool& pool, const LinearGroup<S>& group, int tokens, int rows, Block<const S> gy,
                           Block<const S> w, Block<S> gx) {
  const Block<S> out{group.output_scratch, rows};
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      for (int n = 0; n < rows; ++n) out.row(t)[n] -= gy.row(t)[n];
      N::store(out.row(t), rows);
    }
  });
  const Block<S> product{group.input_scratch, group.in};
  product_nn<S>(pool, tokens, group.in, rows, S(1), {out.data, out.stride}, w, 0, product);
  N::store(product, tokens, group.in);
  add_dropped(pool, group, tokens, Block<const S>{product.data, product.stride}, gx);
}

}  // namespace detail

/// y (T,N) of a group with trained DoRA, and XA behind X; `residual` may be null.
template <class N, class S = typename N::S>
void dora_forward(ThreadPool& pool, const LinearGroup<S>& group, std::span<const LinearPart<S>> parts, int tokens,
                  Block<S> x, const S* residual, S* y) {
  using In = Block<const S>;
  const int width = detail::output_width(parts);
  const bool drops = group.dropout.threshold != 0;
  const In whole{x.data, x.stride};
  adapter_input<N>(pool, group, parts, tokens, x);  // leaves X' where it was dropped
  const In dropped = drops ? In{group.input_scratch, group.in} : whole;
  int column = 0;
  int slot = 0;
  for (const LinearPart<S>& part : parts) {
    const int rows = part.weight.rows;
    const Block<S> out{y + column, width};
    const In w = detail::dense_weight<N>(pool, group, part.weight);
    product_nt<S>(pool, tokens, rows, group.in, S(1), part.a != nullptr ? dropped : whole, w, 0, out);
    if (part.a != nullptr) {
      expect_whole(part.strength);
      const In xa{x.data + group.in + std::int64_t{slot} * group.rank, x.stride};
      detail::add_adapter_product<N>(pool, group, part, tokens, xa, out);
      detail::scale_columns(pool, tokens, rows, part.row_factors, S(1), out.data, width);
      ++slot;
    }
    column += rows;
  }
  if (drops) {
    for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = first; t < last; ++t) {
        S* rest = group.input_scratch + t * group.in;
        for (int i = 0; i < group.in; ++i) rest[i] = x.row(t)[i] - rest[i];
        N::store(rest, group.in);
      }
    });
    column = 0;
    for (const LinearPart<S>& part : parts) {
      const Block<S> out{y + column, width};
      column += part.weight.rows;
      if (part.a == nullptr) continue;
      const In w = detail::dense_weight<N>(pool, group, part.weight);
      product_nt<S>(pool, tokens, part.weight.rows, group.in, S(1), dropped, w, 1, out);
    }
  }
  detail::finish_output<N>(pool, tokens, width, residual, y);
}

/// Lengths of the rows of W + s B A, and what is made of them. Works in the group's output scratch.
template <class N, class S = typename N::S>
void measure_rows(ThreadPool& pool, const LinearGroup<S>& group, const LinearPart<S>& part,
                  const RowLengths<S>& lengths) {
  const int rows = part.weight.rows;
  const int rank = group.rank;
  const Block<const S> w = detail::dense_weight<N>(pool, group, part.weight);
  const Block<const S> a{part.a, group.in};
  const Block<S> wa{group.output_scratch, rank};                              // (N,R)
  const Block<S> aa{group.output_scratch + std::int64_t{rows} * rank, rank};  // (R,R)
  product_nt<S>(pool, rows, rank, group.in, S(1), w, a, 0, wa);
  product_nt<S>(pool, rank, rank, group.in, S(1), a, a, 0, aa);
  const auto number = [](const S& value) { return static_cast<double>(real_part(value)); };
  const double s = number(part.scale);
  for_ranges(pool, rows, 16, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t n = first; n < last; ++n) {
      const S* b = part.b + n * rank;
      double squares = 0.0, mixed = 0.0, low = 0.0;
      for (int k = 0; k < group.in; ++k) squares += number(w.row(n)[k]) * number(w.row(n)[k]);
      for (int r = 0; r < rank; ++r) {
        double sum = 0.0;
        for (int q = 0; q < rank; ++q) sum += number(b[q]) * number(aa.row(r)[q]);
        mixed += number(b[r]) * number(wa.row(n)[r]);
        low += number(b[r]) * sum;
      }
      const double length = std::sqrt(std::max(0.0, squares + 2.0 * s * mixed + s * s * low));
      if (lengths.begins) lengths.magnitude[n] = S(length);
      lengths.inverse_lengths[n] = length > 0.0 ? S(1.0 / length) : S(0);
      lengths.row_factors[n] = length > 0.0 ? lengths.magnitude[n] * lengths.inverse_lengths[n] : S(1);
    }
  });
}

#ifdef QLORA_INSTANCE  // numbers.hpp
QLORA_INSTANCE void measure_rows<Numbers<float>>(ThreadPool&, const LinearGroup<float>&, const LinearPart<float>&,
                                                 const RowLengths<float>&);
#endif

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
