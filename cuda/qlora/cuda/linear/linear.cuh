// qlora/cuda/linear/linear.cuh — a group of linear layers with the same input; the adapters' B side is part of the base
// products.
// Math       [Y] = [X | XA] [W | s B]^T [+ residual],  XA = X' A^T,  X' = mask o X / keep
//            [gX | gXA] = gY [W | s B];  gB_p += s_p gY_p^T XA_p;  gA += gXA^T X';  gX += mask o (gXA A) / keep
//            B is block-diagonal: part p's rows have s_p B_p in the R columns of its slot, zeros elsewhere
// Shapes     x gx (T, K | XA) bf16, rows x.stride apart · y gy residual (T, sum N) bf16 · W|sB (sum N, K | XA) bf16 · A
//            (XA, K) stacked, B_p (N_p, R), gA, gB float · XA = adapted parts x R; 0 with all adapters off
// Writes     y, XA columns of x, gx with = ; gA gB with +=
// Split      one product for the base and the B side of all parts, one for the stacked A, one batched product for each
//            run of parts of equal height (q k v of multi-head attention, gate|up). With dropout the products with A
//            are those of lora_a_*.cuh, which apply the mask as they read X
//            With fp8 products the base is a product in e4m3 (fp8.cuh), and the B side one in bf16 that adds to it
// Needs      weight_scratch (sum N, K | XA), with fp8 products as Fp8Layout says, unless weights are dense,
//            adapter_scratch (XA, K), input_scratch (T, K) for dropout of widths that lora_a_*.cuh do not support.
//            Dense weights are in one matrix (sum N, K | XA), the parts one below the other
// Numbers    fp32 accumulation; XA, gXA, s B and A are rounded to bf16; gX is rounded before gXA A is added to it and
//            again after. Where X' and gXA A are stored, they are rounded too. Masks are recomputed, never stored
// Cost       forward 2 T (K + XA) sum N + 2 T K XA FLOP, backward twice that: bound by tensor cores for thousands of
//            tokens
// DoRA       groups with row factors go to dora.cuh
// Reference  cpu/linear.hpp; the parity tests of linear groups
#pragma once

#include <vector>

#include "qlora/cuda/linear/few_tokens.cuh"
#include "qlora/cuda/linear/group_products.cuh"
#include "qlora/cuda/linear/several_tokens.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Passes of the kernel for several tokens; ranges as in linear_forward_mixed, y as in launch_several_tokens.
inline void forward_several_tokens(Context& context, const GroupArgs& group, std::span<const Part> parts,
                                   std::span<const RowAdapters<float>> ranges, int outputs, int at_once, int tokens,
                                   Rows<bf16> x, const bf16* residual, bf16* y) {
  const Phase phase(context, "several tokens");
  std::vector<RowAdapters<float>> here;
  for (int first = 0; first < tokens; first += at_once) {
    const int count = std::min(at_once, tokens - first);
    here.clear();
    for (RowAdapters<float> range : ranges) {
      const int begin = std::max(range.first, first);
      const int end = std::min(range.first + range.count, first + count);
      if (begin >= end) continue;
      range.first = begin - first;
      range.count = end - begin;
      here.push_back(range);
    }
    const std::int64_t in_y = std::int64_t{first} * outputs;
    launch_several_tokens(context, group, parts, here, outputs, count,
                          {x.data + std::int64_t{first} * x.stride, x.stride},
                          residual == nullptr ? nullptr : residual + in_y, y == nullptr ? nullptr : y + in_y);
  }
}

/// The forward pass, or where y is null XA alone, by the kernels that read codes; false: not served, nothing was done.
/// A pass reads 0.516 bytes per weight; dequantization reads as many and writes 2, and the product reads these.
inline bool forward_from_codes(Context& context, const GroupArgs& group, std::span<const Part> parts,
                               const GroupShape& shape, int tokens, Rows<bf16> x, const bf16* residual, bf16* y) {
  if (shape.dense || shape.fp8 || context.order == RowOrder::prompt) return false;
  const bool newest = context.order == RowOrder::newest;
  // With adapters a second pass costs more than dequantization saves.
  if (!newest && tokens > (shape.adapters > 0 ? SeveralTokens::most : most_several_tokens)) return false;
  const int several = several_tokens_at_once(context, group, parts, shape.outputs);
  if (newest && several == 0) return false;
  if (several > 0 && (newest || tokens > (shape.adapters > 0 ? most_few_tokens / 2 : most_few_tokens))) {
    RowAdapters<float> all{.first = 0, .count = tokens};
    for (std::size_t p = 0; p < parts.size(); ++p) all.parts[p] = {parts[p].a, parts[p].b, parts[p].scale};
    forward_several_tokens(context, group, parts, std::span(&all, shape.adapters > 0 ? 1 : 0), shape.outputs, several,
                           tokens, x, residual, y);
    return true;
  }
  const int at_once = few_tokens_at_once(context, group, parts, shape.outputs, shape.adapters);
  if (at_once == 0 || tokens > most_few_passes * at_once) return false;
  const Phase phase(context, "few tokens");
  for (int first = 0; first < tokens; first += at_once) {
    const std::int64_t in_y = std::int64_t{first} * shape.outputs;
    launch_few_tokens(context, group, parts, shape.outputs, shape.adapters, std::min(at_once, tokens - first),
                      {x.data + std::int64_t{first} * x.stride, x.stride},
                      residual == nullptr ? nullptr : residual + in_y, y == nullptr ? nullptr : y + in_y);
  }
  return true;
}

/// The forward pass with fp8 products; XA and s B are there.
inline void forward_fp8(Context& context, const GroupArgs& group, std::span<const Part> parts, const GroupShape& shape,
                        int tokens, Rows<bf16> x, const bf16* residual, bf16* y) {
  product_fp8(context, group, parts, shape, false, tokens, {x.data, x.stride}, residual, {y, shape.outputs});
  if (shape.adapters == 0) return;
  add_adapters(context, group, shape, {shape.slots.data, shape.slots.stride}, tokens, {x.data, x.stride}, y);
}

/// y += XA (s B)^T for the rows of a range, XA made on the way, by plain products.
inline void add_range(Context& context, const GroupArgs& group, std::span<const Part> parts,
                      const RowAdapters<float>& range, Rows<bf16> x, bf16* y) {
  std::vector<Part> own(parts.begin(), parts.end());
  for (std::size_t p = 0; p < own.size(); ++p) {
    own[p].a = range.parts[p].a;
    own[p].b = range.parts[p].b;
    own[p].scale = range.parts[p].scale;
  }
  const GroupShape shape = group_shape(group, own);
  if (shape.adapters == 0) return;
  const Rows<bf16> rows{x.data + std::int64_t{range.first} * x.stride, x.stride};
  prepare(context, group, own, shape, false, true);
  product_a(context, group, shape, range.count, rows);
  add_adapters(context, group, shape, {shape.wide.data + group.in, shape.wide.stride}, range.count,
               {rows.data, rows.stride}, y + std::int64_t{range.first} * shape.outputs);
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void linear_forward(Context& context, const GroupArgs& group, std::span<const Part> parts,
                                        int tokens, Rows<bf16> x, const bf16* residual, bf16* y) {
  if (tokens == 0) return;
  if (detail::has_row_factors(parts)) return dora_forward(context, group, parts, tokens, x, residual, y);
  const detail::GroupShape shape = detail::group_shape(group, parts);
  const int width = group.in + shape.adapters;
  QLORA_EXPECTS(x.stride >= width, "rows of x have ", x.stride, " elements, the group reads ", width);
  if (detail::forward_from_codes(context, group, parts, shape, tokens, x, residual, y)) return;
  if (shape.adapters > 0 && context.order != RowOrder::any) {  // as beside rows of other adapters
    RowAdapters<float> all{.first = 0, .count = tokens};
    std::vector<Part> base(parts.begin(), parts.end());
    for (std::size_t p = 0; p < parts.size(); ++p) {
      all.parts[p] = {parts[p].a, parts[p].b, parts[p].scale};
      base[p].a = nullptr;
      base[p].b = nullptr;
    }
    linear_forward(context, group, base, tokens, x, residual, y);
    return detail::add_range(context, group, parts, all, x, y);
  }
  detail::prepare(context, group, parts, shape, true, shape.adapters > 0);
  if (shape.adapters > 0) detail::product_a(context, group, shape, tokens, x);
  if (shape.fp8) return detail::forward_fp8(context, group, parts, shape, tokens, x, residual, y);
  const Phase phase(context, "base products");
  matmul(context, {.product = Product::nt,
                   .m = tokens,
                   .n = shape.outputs,
                   .k = width,
                   .a = {x.data, x.stride},
                   .b = shape.wide,
                   .source = residual,
                   .c = y,
                   .c_stride = shape.outputs});
}

QLORA_CUDA_LAUNCHER void linear_forward_mixed(Context& context, const GroupArgs& group, std::span<const Part> parts,
                                              std::span<const RowAdapters<float>> ranges, int tokens, Rows<bf16> x,
                                              const bf16* residual, bf16* y) {
  if (tokens == 0) return;
  const detail::GroupShape shape = detail::group_shape(group, parts);
  QLORA_EXPECTS(shape.adapters == 0 && group.dropout.threshold == 0,
                "rows have the adapters of their ranges, and no dropout");
  QLORA_EXPECTS(x.stride >= group.in + group.adapter_width(), "rows of x have ", x.stride,
                " elements, the group writes ", group.in + group.adapter_width());
  for (const RowAdapters<float>& range : ranges) {
    QLORA_EXPECTS(range.first >= 0 && range.count > 0 && range.first + range.count <= tokens, "rows ", range.first,
                  " to ", range.first + range.count, " of ", tokens);
  }
  if (std::any_of(ranges.begin(), ranges.end(), [](const auto& range) { return detail::has_row_factors(range); })) {
    return dora_forward_mixed(context, group, parts, ranges, tokens, x, residual, y);
  }
  const bool from_codes = !shape.dense && (context.order == RowOrder::any ? tokens <= most_several_tokens
                                                                          : context.order == RowOrder::newest);
  const int at_once = from_codes ? detail::several_tokens_at_once(context, group, parts, shape.outputs) : 0;
  if (at_once > 0) {
    return detail::forward_several_tokens(context, group, parts, ranges, shape.outputs, at_once, tokens, x, residual,
                                          y);
  }
  linear_forward(context, group, parts, tokens, x, residual, y);
  for (const RowAdapters<float>& range : ranges) detail::add_range(context, group, parts, range, x, y);
}

QLORA_CUDA_LAUNCHER void adapter_input(Context& context, const GroupArgs& group, std::span<const Part> parts,
                                       int tokens, Rows<bf16> x) {
  const detail::GroupShape shape = detail::group_shape(group, parts);
  if (tokens == 0 || shape.adapters == 0) return;
  QLORA_EXPECTS(x.stride >= group.in + shape.adapters, "rows of x have ", x.stride, " elements, the group writes ",
                group.in + shape.adapters);
  if (detail::forward_from_codes(context, group, parts, shape, tokens, x, nullptr, nullptr)) return;
  detail::prepare(context, group, parts, shape, false, true);
  detail::product_a(context, group, shape, tokens, x);
}

QLORA_CUDA_LAUNCHER void linear_backward(Context& context, const GroupArgs& group, std::span<const Part> parts,
                                         std::span<const PartGradient> gradients, int tokens, const bf16* gy,
                                         Rows<const bf16> x, bool needs_input, Rows<bf16> gx) {
  const detail::GroupShape shape = detail::group_shape(group, parts);
  if (tokens == 0 || (shape.adapters == 0 && !needs_input)) return;
  const int width = group.in + shape.adapters;
  QLORA_EXPECTS(gradients.size() == parts.size(), parts.size(), " parts, ", gradients.size(), " gradients");
  QLORA_EXPECTS(x.stride >= width && gx.stride >= width, "rows of x and gx have ", x.stride, " and ", gx.stride,
                " elements, the group needs ", width);
  for (const PartGradient& gradient : gradients) {
    QLORA_EXPECTS(gradient.weight == nullptr, "gradients of base weights are not made on the GPU");
  }
  if (detail::has_row_factors(parts)) {
    return dora_backward(context, group, parts, gradients, tokens, gy, x, needs_input, gx);
  }
  detail::prepare(context, group, parts, shape, needs_input, needs_input && shape.adapters > 0);
  const bool whole = needs_input && !shape.fp8;  // else gXA = gY (s B) by itself
  if (needs_input && shape.fp8) {
    detail::product_fp8(context, group, parts, shape, true, tokens, {gy, shape.outputs}, nullptr, gx);
  }
  if (whole || shape.adapters > 0) {
    const Phase phase(context, whole ? "base products" : "LoRA products");
    const int skipped = whole ? 0 : group.in;
    matmul(context, {.product = Product::nn,
                     .m = tokens,
                     .n = width - skipped,
                     .k = shape.outputs,
                     .a = {gy, shape.outputs},
                     .b = shape.fp8 ? Rows<const bf16>{shape.slots.data, shape.slots.stride}
                                    : Rows<const bf16>{shape.wide.data + skipped, shape.wide.stride},
                     .c = gx.data + skipped,
                     .c_stride = gx.stride});
  }
  if (shape.adapters == 0) return;
  const detail::AdapterSlots slots = detail::adapter_slots(group, parts, gradients);
  detail::gradient_b(context, group, shape, slots, tokens, gy, x);
  detail::gradient_a(context, group, shape, slots.ga, tokens, {gx.data, gx.stride}, x);
  if (needs_input) detail::input_gradient_a(context, group, shape, tokens, gx);
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
