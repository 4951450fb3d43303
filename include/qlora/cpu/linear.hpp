// qlora/cpu/linear.hpp — a group of linear layers that read the same input: frozen weights plus low-rank adapters.
// Math       part p of the group: Y_p = [residual +] X W_p^T + s_p (X' A_p^T) B_p^T,
//            X' = mask o X / keep, one mask for the group
//            with row factors f (DoRA that is not trained) X W_p^T o (1 + strength (f - 1)) in the place of X W_p^T;
//            dora.hpp has DoRA that is trained
//            gXA_p = s_p gY_p B_p;  gB_p += s_p gY_p^T XA_p;  gA_p += gXA_p^T X'
//            gX = sum_p gY_p W_p + mask o (gXA A) / keep
// Shapes     [X | XA] [gX | gXA] (T, K + parts x R), one behind the other in each row · Y gY (T, sum N_p)
//            W_p (N_p,K) NF4 or dense · A (parts x R, K) stacked · B_p (N_p,R)
// Writes     Y XA gX with = ; gA gB gW with +=
// Products   with fp8 those with W_p read X, gY and W_p as fp8.hpp rounds them; all others read them as they are
// Numbers    a frozen NF4 weight is dequantized whole before its product; masks are made again, never stored
// Reference  complex step in tests/cpu/derivative_test.cpp; golden LoRA logits and gradients
#pragma once

#include <span>
#include <vector>

#include "qlora/cpu/dora.hpp"
#include "qlora/cpu/linear_parts.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// `residual` may be null. With ranges the parts have no adapters, and rows those of their range.
template <class N, class S = typename N::S>
void linear_forward(ThreadPool& pool, const LinearGroup<S>& group, std::span<const LinearPart<S>> parts,
                    std::span<const RowAdapters<S>> ranges, int tokens, Block<S> x, const S* residual, S* y) {
  using In = Block<const S>;
  if (detail::has_trained_dora(parts)) return dora_forward<N>(pool, group, parts, tokens, x, residual, y);
  const int width = detail::output_width(parts);
  adapter_input<N>(pool, group, parts, tokens, x);
  for (const RowAdapters<S>& range : ranges) {
    const std::vector<LinearPart<S>> own = detail::parts_of(parts, range);
    adapter_input<N>(pool, group, std::span<const LinearPart<S>>(own), range.count, {x.row(range.first), x.stride});
  }
  const In input = detail::product_rows<S>(pool, group, tokens, group.in, In{x.data, x.stride});
  int column = 0;
  int slot = 0;
  for (const LinearPart<S>& part : parts) {
    const int rows = part.weight.rows;
    const In w = detail::product_weight<N>(pool, group, parts, part.weight, std::int64_t{tokens} * group.in);
    product_nt<S>(pool, tokens, rows, group.in, S(1), input, w, 0, {y + column, width});
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
      const auto& own = range.parts[p];
      const auto scale = [&] {
        if (own.row_factors == nullptr) return;
        detail::scale_columns(pool, range.count, rows, own.row_factors, own.strength,
                              y + std::int64_t{range.first} * width + column, width);
      };
      if (own.inverse_lengths == nullptr) scale();
      add(own.b, own.scale, range.first, range.count);
      if (own.inverse_lengths == nullptr) continue;
      expect_whole(own.strength);
      scale();
    }
    slot += adapted ? 1 : 0;
    column += rows;
  }
  detail::finish_output<N>(pool, tokens, width, residual, y);
}

namespace detail {

/// gXA, gB and the gradient of full weights, part by part; gX without the adapters' share.
template <class N, class S = typename N::S>
void backward_parts(ThreadPool& pool, const LinearGroup<S>& group, std::span<const LinearPart<S>> parts,
                    std::span<const LinearGradient<S>> gradients, int tokens, const S* gy, Block<const S> x,
                    bool needs_input, Block<S> gx) {
  using In = Block<const S>;
  const int width = output_width(parts);
  const In outputs = needs_input ? product_rows<S>(pool, group, tokens, width, In{gy, width}) : In{};
  int column = 0;
  int slot = 0;
  int beta = 0;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const LinearPart<S>& part = parts[p];
    const int rows = part.weight.rows;
    const In whole{gy + column, width};
    const std::int64_t at = group.in + std::int64_t{slot} * group.rank;
    const bool dora = part.inverse_lengths != nullptr;
    const In g =
        dora ? dora_output_gradient<N>(pool, group, part, tokens, whole, x, at, gradients[p].magnitude) : whole;
    if (part.a != nullptr) {
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
      const bool apart = dora && group.dropout.threshold != 0;  // the dropped input has a gradient of its own
      const In w = product_weight<N>(pool, group, parts, part.weight, std::int64_t{tokens} * width);
      const In by = dora && !apart ? g : In{outputs.data + column, width};
      product_nn<S>(pool, tokens, group.in, rows, S(1), by, w, beta, gx);
      beta = 1;
      if (apart) dora_dropped_gradient<N>(pool, group, tokens, rows, whole, w, gx);
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
        detail::add_dropped(pool, group, tokens, In{target.data, target.stride}, gx);
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
