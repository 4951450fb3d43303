// qlora/cpu/linear_parts.hpp — what the passes through a group of linear layers are made of: weights and adapters as
// products read them, dropped inputs, and the products of inputs with A. linear.hpp has the shapes.
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <type_traits>
#include <vector>

#include "qlora/cpu/fp8.hpp"
#include "qlora/cpu/gemm.hpp"
#include "qlora/cpu/nf4.hpp"
#include "qlora/error.hpp"
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

/// `rows` (tokens,cols) as the products with W read them; fp8: a rounded copy at the begin of weight_scratch.
template <class S>
[[nodiscard]] Block<const S> product_rows(ThreadPool& pool, const LinearGroup<S>& group, int tokens, int cols,
                                          Block<const S> rows) {
  if (group.products == Products::bf16) return rows;
  if constexpr (std::is_same_v<S, float>) {
    round_rows_fp8(pool, tokens, cols, rows, group.weight_scratch);
    return {group.weight_scratch, cols};
  }
  throw Error("fp8 products are made from float", ErrorKind::usage);
}
/// W of one part as the products of its group read it; fp8: a rounded copy, `used` numbers into weight_scratch.
template <class N, class S = typename N::S>
[[nodiscard]] Block<const S> product_weight(ThreadPool& pool, const LinearGroup<S>& group,
                                            std::span<const LinearPart<S>> parts, const Weight<S>& weight,
                                            std::int64_t used) {
  if (group.products == Products::bf16) return dense_weight<N>(pool, group, weight);
  LinearGroup<S> here = group;
  here.weight_scratch += used;
  const Block<const S> from = dense_weight<N>(pool, here, weight);
  if constexpr (std::is_same_v<S, float>) {
    const fp8::Scale scale = fp8::scale_of(largest_weight(parts));
    for_ranges(pool, weight.rows, 32, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t n = first; n < last; ++n) {
        S* row = here.weight_scratch + n * group.in;
        if (from.row(n) != row) std::copy_n(from.row(n), group.in, row);
        round_fp8(row, group.in, scale);
      }
    });
  }
  return {here.weight_scratch, group.in};
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
/// to += mask o from / keep, with the mask of the group; of rows of the group's input.
template <class S>
void add_dropped(ThreadPool& pool, const LinearGroup<S>& group, int tokens, Block<const S> from, Block<S> to) {
  for_ranges(pool, tokens, 32, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      S* sum = to.row(t);
      const S* part = from.row(t);
      for_dropout_row<S>(group.dropout, static_cast<std::uint32_t>(t), group.in,
                         [&](int i, S factor) { sum[i] += part[i] * factor; });
    }
  });
}
/// y (tokens,width) = [residual +] y, as it is stored; `residual` may be null.
template <class N, class S = typename N::S>
void finish_output(ThreadPool& pool, int tokens, int width, const S* residual, S* y) {
  for_ranges(pool, std::int64_t{tokens} * width, 1 << 14, [&](std::int64_t first, std::int64_t last, int) {
    if (residual != nullptr) row_array(y + first, last - first) += row_array(residual + first, last - first);
    N::store(y + first, last - first);
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

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
