// qlora/cpu/linear.hpp — a group of linear layers that read the same input: frozen weights plus low-rank adapters.
// Math       part p of the group: Y_p = X W_p^T + s_p (X' A_p^T) B_p^T,  X' = mask o X / keep (one mask a group)
//            gXA_p = s_p gY_p B_p;  gB_p += s_p gY_p^T XA_p;  gA_p += gXA_p^T X'
//            gX = sum_p gY_p W_p + mask o (gXA A) / keep
// Shapes     X gX (T,K) · Y gY (T, sum N_p) · W_p (N_p,K) NF4 or dense · A (parts x R, K) stacked · B_p (N_p,R)
//            XA gXA (T, parts x R)
// Writes     Y XA gX with = ; gA gB gW with +=
// Numbers    a frozen NF4 weight is dequantized whole before its product; masks are made again, never stored
// Reference  complex step in tests/derivative_test.cpp; golden LoRA logits and gradients
#pragma once

#include <array>
#include <span>

#include "qlora/cpu/gemm.hpp"
#include "qlora/cpu/nf4.hpp"
#include "qlora/ops.hpp"
#include "qlora/rng.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

namespace detail {

template <class N, class S = typename N::S>
[[nodiscard]] const S* dense_weight(ThreadPool& pool, const LinearGroup<S>& group, const Weight<S>& weight) {
  if (weight.dense != nullptr) return weight.dense;
  dequantize_nf4<N>(pool, weight.nf4, std::int64_t{weight.rows} * group.in, group.quant, group.weight_scratch);
  return group.weight_scratch;
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
[[nodiscard]] const S* dropped_input(ThreadPool& pool, const LinearGroup<S>& group, int tokens, const S* x) {
  if (group.dropout.threshold == 0) return x;
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const S* from = x + t * group.in;
      S* to = group.input_scratch + t * group.in;
      for_dropout_row<S>(group.dropout, static_cast<std::uint32_t>(t), group.in,
                         [&](int i, S factor) { to[i] = from[i] * factor; });
      N::store(to, group.in);
    }
  });
  return group.input_scratch;
}

}  // namespace detail

/// XA = X' A^T for the stacked A of the group.
template <class N, class S = typename N::S>
void adapter_input(ThreadPool& pool, const LinearGroup<S>& group, int tokens, const S* x, const S* a, S* xa) {
  using In = Block<const S>;
  const int width = group.adapted * group.rank;
  const S* dropped = detail::dropped_input<N>(pool, group, tokens, x);
  const S* stacked = detail::adapter_operand<N>(group, a, std::int64_t{width} * group.in, S(1));
  product_nt<S>(pool, tokens, width, group.in, S(1), In{dropped, group.in}, In{stacked, group.in}, 0, {xa, width});
  N::store(xa, std::int64_t{tokens} * width);
}

template <class N, class S = typename N::S>
void linear_forward(ThreadPool& pool, const LinearGroup<S>& group, std::span<const LinearPart<S>> parts, int tokens,
                    const S* x, S* xa, S* y) {
  using In = Block<const S>;
  int width = 0;
  for (const LinearPart<S>& part : parts) width += part.weight.rows;
  const S* stacked = nullptr;
  for (const LinearPart<S>& part : parts) {
    if (stacked == nullptr) stacked = part.a;
  }
  if (stacked != nullptr) adapter_input<N>(pool, group, tokens, x, stacked, xa);
  const int xa_width = group.adapted * group.rank;
  int column = 0;
  int slot = 0;
  for (const LinearPart<S>& part : parts) {
    const int rows = part.weight.rows;
    const S* w = detail::dense_weight<N>(pool, group, part.weight);
    product_nt<S>(pool, tokens, rows, group.in, S(1), In{x, group.in}, In{w, group.in}, 0, {y + column, width});
    if (part.a != nullptr) {
      const S* b = detail::adapter_operand<N>(group, part.b, std::int64_t{rows} * group.rank, part.scale);
      product_nt<S>(pool, tokens, rows, group.rank, N::rounds ? S(1) : part.scale,
                    In{xa + std::int64_t{slot} * group.rank, xa_width}, In{b, group.rank}, 1, {y + column, width});
      ++slot;
    }
    column += rows;
  }
  N::store(y, std::int64_t{tokens} * width);
}

/// `gx` may be null: nothing below this group is trained. gxa is workspace (T, parts x R).
template <class N, class S = typename N::S>
void linear_backward(ThreadPool& pool, const LinearGroup<S>& group, std::span<const LinearPart<S>> parts,
                     std::span<const LinearGradient<S>> gradients, int tokens, const S* gy, const S* x, const S* xa,
                     S* gxa, S* gx) {
  using In = Block<const S>;
  int width = 0;
  for (const LinearPart<S>& part : parts) width += part.weight.rows;
  const int xa_width = group.adapted * group.rank;
  int column = 0;
  int slot = 0;
  int beta = 0;
  const S* stacked = nullptr;
  S* stacked_gradient = nullptr;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const LinearPart<S>& part = parts[p];
    const int rows = part.weight.rows;
    if (part.a != nullptr) {
      if (stacked == nullptr) {
        stacked = part.a;
        stacked_gradient = gradients[p].a;
      }
      const std::int64_t at = std::int64_t{slot} * group.rank;
      const S* b = detail::adapter_operand<N>(group, part.b, std::int64_t{rows} * group.rank, part.scale);
      product_nn<S>(pool, tokens, group.rank, rows, N::rounds ? S(1) : part.scale, In{gy + column, width},
                    In{b, group.rank}, 0, {gxa + at, xa_width});
      product_tn<S>(pool, rows, group.rank, tokens, part.scale, In{gy + column, width}, In{xa + at, xa_width}, 1,
                    {gradients[p].b, group.rank});
      ++slot;
    }
    if (gradients[p].weight != nullptr) {
      product_tn<S>(pool, rows, group.in, tokens, S(1), In{gy + column, width}, In{x, group.in}, 1,
                    {gradients[p].weight, group.in});
    }
    if (gx != nullptr) {
      const S* w = detail::dense_weight<N>(pool, group, part.weight);
      product_nn<S>(pool, tokens, group.in, rows, S(1), In{gy + column, width}, In{w, group.in}, beta, {gx, group.in});
      beta = 1;
    }
    column += rows;
  }
  if (stacked != nullptr) {
    N::store(gxa, std::int64_t{tokens} * xa_width);
    const S* dropped = detail::dropped_input<N>(pool, group, tokens, x);
    product_tn<S>(pool, xa_width, group.in, tokens, S(1), In{gxa, xa_width}, In{dropped, group.in}, 1,
                  {stacked_gradient, group.in});
    if (gx != nullptr) {
      const S* a = detail::adapter_operand<N>(group, stacked, std::int64_t{xa_width} * group.in, S(1));
      const bool masked = group.dropout.threshold != 0;
      S* target = masked ? group.input_scratch : gx;
      product_nn<S>(pool, tokens, group.in, xa_width, S(1), In{gxa, xa_width}, In{a, group.in}, masked ? 0 : 1,
                    {target, group.in});
      if (masked) {
        for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
          for (std::int64_t t = first; t < last; ++t) {
            S* to = gx + t * group.in;
            const S* from = group.input_scratch + t * group.in;
            detail::for_dropout_row<S>(group.dropout, static_cast<std::uint32_t>(t), group.in,
                                       [&](int i, S factor) { to[i] += from[i] * factor; });
          }
        });
      }
    }
  }
  if (gx != nullptr) N::store(gx, std::int64_t{tokens} * group.in);
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
