// qlora/cpu/linear.hpp — a group of linear layers that read the same input: frozen weights plus low-rank adapters.
// Math       part p of the group: Y_p = [residual +] X W_p^T + s_p (X' A_p^T) B_p^T,
//            X' = mask o X / keep, one mask for the group
//            with row factors f (DoRA, forward alone) X W_p^T o (1 + strength (f - 1)) in the place of X W_p^T
//            gXA_p = s_p gY_p B_p;  gB_p += s_p gY_p^T XA_p;  gA_p += gXA_p^T X'
//            gX = sum_p gY_p W_p + mask o (gXA A) / keep
// Shapes     [X | XA] [gX | gXA] (T, K + parts x R), one behind the other in each row · Y gY (T, sum N_p)
//            W_p (N_p,K) NF4 or dense · A (parts x R, K) stacked · B_p (N_p,R)
// Writes     Y XA gX with = ; gA gB gW with +=
// Numbers    a frozen NF4 weight is dequantized whole before its product; masks are made again, never stored
// Reference  complex step in tests/cpu/derivative_test.cpp; golden LoRA logits and gradients
#pragma once

#include <array>
#include <span>
#include <vector>

#include "qlora/cpu/gemm.hpp"
#include "qlora/cpu/nf4.hpp"
#include "qlora/ops.hpp"
#include "qlora/rng.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

namespace detail {

template <class N, class S = typename N::S>
[[nodiscard]] Block<const S> dense_weight(ThreadPool& pool, const LinearGroup<S>& group, const Weight<S>& weight) {
  if (weight.dense != nullptr) return {weight.dense, weight.stride};
  dequantize_nf4<N>(pool, weight.nf4, std::int64_t{weight.rows} * group.in, group.quant, group.weight_scratch);
  return {group.weight_scratch, group.in};
}

/// The adapter matrix as products read it: in place, or rounded into scratch with `scale` folded in.
template <class N, class S = typename N::S>
[[nodiscard]] const S* adapter_operand(const LinearGroup<S>& group, const S* matrix, std::int64_t count, S scale) {
  if constexpr (N::rounds) {
    row_array(group.adapter_scratch, count) = row_array(matrix, count) * scale;
    N::store(group.adapter_scratch, count);
    return group.adapter_scratch;
  }
  return matrix;
}

/// 16-bit keep decisions for eight columns at a time, as multipliers 0 or keep_scale. Sixteen Philox calls side by
/// side, so that the compiler can use vector registers.
template <class S, class Apply>
void for_dropout_row(const DropoutSite& site, std::uint32_t token, int columns, Apply&& apply) {
  constexpr int lanes = 16;
  const auto keep = site.keep_scale;
  for (int first = 0; first < columns; first += 8 * lanes) {
    std::array<std::array<std::uint32_t, lanes>, 4> c;
    for (std::uint32_t lane = 0; lane < lanes; ++lane) {
      c[0][lane] = static_cast<std::uint32_t>(first) / 8U + lane;
      c[1][lane] = site.first_token + token;
      c[2][lane] = site.step;
      c[3][lane] = use_word(RandomUse::dropout, (site.layer << 2) | site.group);
    }
    auto key0 = static_cast<std::uint32_t>(site.seed);
    auto key1 = static_cast<std::uint32_t>(site.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (std::size_t lane = 0; lane < lanes; ++lane) {
        const std::uint64_t p0 = std::uint64_t{0xD2511F53U} * c[0][lane];
        const std::uint64_t p1 = std::uint64_t{0xCD9E8D57U} * c[2][lane];
        c[0][lane] = static_cast<std::uint32_t>(p1 >> 32) ^ c[1][lane] ^ key0;
        c[1][lane] = static_cast<std::uint32_t>(p1);
        c[2][lane] = static_cast<std::uint32_t>(p0 >> 32) ^ c[3][lane] ^ key1;
        c[3][lane] = static_cast<std::uint32_t>(p0);
      }
      key0 += 0x9E3779B9U;
      key1 += 0xBB67AE85U;
    }
    float factor[8 * lanes];
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      for (std::size_t word = 0; word < 4; ++word) {
        factor[lane * 8 + word * 2] = (c[word][lane] & 0xFFFFU) >= site.threshold ? keep : 0.0F;
        factor[lane * 8 + word * 2 + 1] = (c[word][lane] >> 16) >= site.threshold ? keep : 0.0F;
      }
    }
    const int count = std::min(columns - first, 8 * lanes);
    for (int i = 0; i < count; ++i) apply(first + i, S(factor[i]));
  }
}

/// X' = mask o X / keep, or X itself without dropout.
template <class N, class S = typename N::S>
[[nodiscard]] Block<const S> dropped_input(ThreadPool& pool, const LinearGroup<S>& group, int tokens,
                                           Block<const S> x) {
  if (group.dropout.threshold == 0) return x;
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const S* from = x.row(t);
      S* to = group.input_scratch + t * group.in;
      for_dropout_row<S>(group.dropout, static_cast<std::uint32_t>(t), group.in,
                         [&](int i, S factor) { to[i] = from[i] * factor; });
      N::store(to, group.in);
    }
  });
  return {group.input_scratch, group.in};
}

/// The stacked A of the group, or null when its adapters are off.
template <class S>
[[nodiscard]] const S* stacked_a(std::span<const LinearPart<S>> parts) {
  for (const LinearPart<S>& part : parts) {
    if (part.a != nullptr) return part.a;
  }
  return nullptr;
}
/// The parts with the adapters of a range.
template <class S>
[[nodiscard]] std::vector<LinearPart<S>> parts_of(std::span<const LinearPart<S>> parts, const RowAdapters<S>& range) {
  std::vector<LinearPart<S>> own(parts.begin(), parts.end());
  for (std::size_t p = 0; p < own.size(); ++p) {
    own[p].a = range.parts[p].a;
    own[p].b = range.parts[p].b;
    own[p].scale = range.parts[p].scale;
  }
  return own;
}
/// What DoRA does to products with W: columns of y (count,N), `width` apart, times 1 + strength (factor - 1).
template <class S>
void scale_columns(ThreadPool& pool, int count, int columns, const S* factors, S strength, S* y, int width) {
  for_ranges(pool, count, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      for (int i = 0; i < columns; ++i) y[t * width + i] *= S(1) + strength * (factors[i] - S(1));
    }
  });
}
template <class S>
[[nodiscard]] int output_width(std::span<const LinearPart<S>> parts) {
  int width = 0;
  for (const LinearPart<S>& part : parts) width += part.weight.rows;
  return width;
}

}  // namespace detail

/// XA = X' A^T for the stacked A of the group, into the columns behind X.
template <class N, class S = typename N::S>
void adapter_input(ThreadPool& pool, const LinearGroup<S>& group, std::span<const LinearPart<S>> parts, int tokens,
                   Block<S> x) {
  using In = Block<const S>;
  const S* a = detail::stacked_a(parts);
  if (a == nullptr) return;
  const int width = group.adapter_width();
  const In dropped = detail::dropped_input<N>(pool, group, tokens, In{x.data, x.stride});
  const S* stacked = detail::adapter_operand<N>(group, a, std::int64_t{width} * group.in, S(1));
  const Block<S> xa{x.data + group.in, x.stride};
  product_nt<S>(pool, tokens, width, group.in, S(1), dropped, In{stacked, group.in}, 0, xa);
  N::store(xa, tokens, width);
}

/// `residual` may be null. With ranges the parts have no adapters, and rows those of their range.
template <class N, class S = typename N::S>
void linear_forward(ThreadPool& pool, const LinearGroup<S>& group, std::span<const LinearPart<S>> parts,
                    std::span<const RowAdapters<S>> ranges, int tokens, Block<S> x, const S* residual, S* y) {
  using In = Block<const S>;
  const int width = detail::output_width(parts);
  adapter_input<N>(pool, group, parts, tokens, x);
  for (const RowAdapters<S>& range : ranges) {
    const std::vector<LinearPart<S>> own = detail::parts_of(parts, range);
    adapter_input<N>(pool, group, std::span<const LinearPart<S>>(own), range.count, {x.row(range.first), x.stride});
  }
  int column = 0;
  int slot = 0;
  for (const LinearPart<S>& part : parts) {
    const int rows = part.weight.rows;
    const In w = detail::dense_weight<N>(pool, group, part.weight);
    product_nt<S>(pool, tokens, rows, group.in, S(1), In{x.data, x.stride}, w, 0, {y + column, width});
    const auto add = [&](const S* matrix, S scale, int first, int count) {
      const S* b = detail::adapter_operand<N>(group, matrix, std::int64_t{rows} * group.rank, scale);
      const In xa{x.row(first) + group.in + std::int64_t{slot} * group.rank, x.stride};
      product_nt<S>(pool, count, rows, group.rank, N::rounds ? S(1) : scale, xa, In{b, group.rank}, 1,
                    {y + std::int64_t{first} * width + column, width});
    };
    const auto p = static_cast<std::size_t>(&part - parts.data());
    bool adapted = part.a != nullptr;
    if (part.row_factors != nullptr) {
      detail::scale_columns(pool, tokens, rows, part.row_factors, part.strength, y + column, width);
    }
    if (adapted) add(part.b, part.scale, 0, tokens);
    for (const RowAdapters<S>& range : ranges) {
      if (range.parts[p].a == nullptr) continue;
      adapted = true;
      if (range.parts[p].row_factors != nullptr) {
        detail::scale_columns(pool, range.count, rows, range.parts[p].row_factors, range.parts[p].strength,
                              y + std::int64_t{range.first} * width + column, width);
      }
      add(range.parts[p].b, range.parts[p].scale, range.first, range.count);
    }
    slot += adapted ? 1 : 0;
    column += rows;
  }
  for_ranges(pool, std::int64_t{tokens} * width, 1 << 14, [&](std::int64_t first, std::int64_t last, int) {
    if (residual != nullptr) row_array(y + first, last - first) += row_array(residual + first, last - first);
    N::store(y + first, last - first);
  });
}

namespace detail {

/// gXA, gB and the gradient of full weights, part by part; gX without the adapters' share.
template <class N, class S = typename N::S>
void backward_parts(ThreadPool& pool, const LinearGroup<S>& group, std::span<const LinearPart<S>> parts,
                    std::span<const LinearGradient<S>> gradients, int tokens, const S* gy, Block<const S> x,
                    bool needs_input, Block<S> gx) {
  using In = Block<const S>;
  const int width = output_width(parts);
  int column = 0;
  int slot = 0;
  int beta = 0;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const LinearPart<S>& part = parts[p];
    const int rows = part.weight.rows;
    const In g{gy + column, width};
    if (part.a != nullptr) {
      const std::int64_t at = group.in + std::int64_t{slot} * group.rank;
      const S* b = adapter_operand<N>(group, part.b, std::int64_t{rows} * group.rank, part.scale);
      product_nn<S>(pool, tokens, group.rank, rows, N::rounds ? S(1) : part.scale, g, In{b, group.rank}, 0,
                    {gx.data + at, gx.stride});
      product_tn<S>(pool, rows, group.rank, tokens, part.scale, g, In{x.data + at, x.stride}, 1,
                    {gradients[p].b, group.rank});
      ++slot;
    }
    if (gradients[p].weight != nullptr) {
      product_tn<S>(pool, rows, group.in, tokens, S(1), g, x, 1, {gradients[p].weight, group.in});
    }
    if (needs_input) {
      product_nn<S>(pool, tokens, group.in, rows, S(1), g, dense_weight<N>(pool, group, part.weight), beta, gx);
      beta = 1;
    }
    column += rows;
  }
}

}  // namespace detail

/// gx gets gX in its first K columns (with needs_input) and gXA behind them.
template <class N, class S = typename N::S>
void linear_backward(ThreadPool& pool, const LinearGroup<S>& group, std::span<const LinearPart<S>> parts,
                     std::span<const LinearGradient<S>> gradients, int tokens, const S* gy, Block<const S> x,
                     bool needs_input, Block<S> gx) {
  using In = Block<const S>;
  detail::backward_parts<N>(pool, group, parts, gradients, tokens, gy, x, needs_input, gx);
  const S* stacked = detail::stacked_a(parts);
  if (stacked != nullptr) {
    const int width = group.adapter_width();
    const Block<S> gxa{gx.data + group.in, gx.stride};
    N::store(gxa, tokens, width);
    S* gradient = nullptr;
    for (std::size_t p = 0; p < parts.size() && gradient == nullptr; ++p) gradient = gradients[p].a;
    const In dropped = detail::dropped_input<N>(pool, group, tokens, x);
    product_tn<S>(pool, width, group.in, tokens, S(1), In{gxa.data, gxa.stride}, dropped, 1, {gradient, group.in});
    if (needs_input) {
      const S* a = detail::adapter_operand<N>(group, stacked, std::int64_t{width} * group.in, S(1));
      const bool masked = group.dropout.threshold != 0;
      const Block<S> target = masked ? Block<S>{group.input_scratch, group.in} : gx;
      product_nn<S>(pool, tokens, group.in, width, S(1), In{gxa.data, gxa.stride}, In{a, group.in}, masked ? 0 : 1,
                    target);
      if (masked) {
        for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
          for (std::int64_t t = first; t < last; ++t) {
            S* to = gx.row(t);
            const S* from = target.row(t);
            detail::for_dropout_row<S>(group.dropout, static_cast<std::uint32_t>(t), group.in,
                                       [&](int i, S factor) { to[i] += from[i] * factor; });
          }
        });
      }
    }
  }
  if (needs_input) N::store(gx, tokens, group.in);
}

#ifdef QLORA_INSTANCE  // numbers.hpp
QLORA_INSTANCE void adapter_input<Numbers<float>>(ThreadPool&, const LinearGroup<float>&,
                                                  std::span<const LinearPart<float>>, int, Block<float>);
QLORA_INSTANCE void linear_forward<Numbers<float>>(ThreadPool&, const LinearGroup<float>&,
                                                   std::span<const LinearPart<float>>,
                                                   std::span<const RowAdapters<float>>, int, Block<float>, const float*,
                                                   float*);
QLORA_INSTANCE void linear_backward<Numbers<float>>(ThreadPool&, const LinearGroup<float>&,
                                                    std::span<const LinearPart<float>>,
                                                    std::span<const LinearGradient<float>>, int, const float*,
                                                    Block<const float>, bool, Block<float>);
#endif

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
