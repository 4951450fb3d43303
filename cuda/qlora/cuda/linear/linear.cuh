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
// Reference  cpu/linear.hpp; the parity tests of linear groups
#pragma once

#include <array>
#include <vector>

#include "qlora/cuda/linear/few_tokens.cuh"
#include "qlora/cuda/linear/several_tokens.cuh"
#include "qlora/gpu_storage.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Sizes of a group in this call, and the matrix [W | s B] that its products read.
struct GroupShape {
  int outputs = 0;   ///< sum N
  int adapters = 0;  ///< columns of XA; 0 with the adapters off
  bool dense = false;
  bool fp8 = false;         ///< products with W
  Rows<const bf16> wide{};  ///< (outputs, K | XA); not with fp8
  Rows<bf16> slots{};       ///< s B (outputs, XA); with fp8 alone
};

[[nodiscard]] inline GroupShape group_shape(const GroupArgs& group, std::span<const Part> parts) {
  QLORA_EXPECTS(!parts.empty() && group.in > 0 && group.in % 8 == 0, "a group of ", parts.size(), " parts of width ",
                group.in, "; widths are multiples of 8");
  GroupShape shape;
  int adapted = 0;
  shape.dense = parts[0].weight.dense != nullptr;
  for (const Part& part : parts) {
    QLORA_EXPECTS(part.weight.rows > 0 && part.weight.rows % 8 == 0, "a weight has ", part.weight.rows,
                  " rows; heights are multiples of 8");
    if (shape.dense) {
      const std::int64_t above = std::int64_t{shape.outputs} * parts[0].weight.stride;
      QLORA_EXPECTS(part.weight.dense == parts[0].weight.dense + above && part.weight.stride == parts[0].weight.stride,
                    "dense weights of a group lie one below the other in one matrix");
    } else {
      QLORA_EXPECTS(part.weight.dense == nullptr, "a group has dense and quantized weights");
    }
    shape.outputs += part.weight.rows;
    adapted += part.a != nullptr ? 1 : 0;
  }
  QLORA_EXPECTS(adapted == 0 || adapted == group.adapted, adapted, " parts have an adapter, ", group.adapted,
                " are planned");
  shape.adapters = adapted * group.rank;
  if (group.products == Products::fp8) {
    QLORA_EXPECTS(!shape.dense && group.weight_scratch != nullptr, "fp8 products read weights in NF4, in scratch");
    shape.fp8 = true;
    const std::int64_t at = fp8_layout(group.in, shape.outputs, shape.adapters, 0).adapter;
    if (shape.adapters > 0) shape.slots = {group.weight_scratch + at / 2, shape.adapters};
    return shape;
  }
  shape.wide = shape.dense ? Rows<const bf16>{parts[0].weight.dense, parts[0].weight.stride}
                           : Rows<const bf16>{group.weight_scratch, group.in + shape.adapters};
  QLORA_EXPECTS(shape.wide.data != nullptr && shape.wide.stride >= group.in + shape.adapters,
                "the wide weight matrix has rows of ", shape.wide.stride, " for ", group.in, " + ", shape.adapters);
  return shape;
}

/// Fills the scratch matrices that the products of this call read.
inline void prepare(Context& context, const GroupArgs& group, std::span<const Part> parts, const GroupShape& shape,
                    bool weights, bool stacked_a) {
  if (shape.adapters == 0 && (shape.dense || shape.fp8 || !weights)) return;
  const Phase phase(context, "dequantization");
  prepare_group(context, group, parts, weights && !shape.fp8, stacked_a, shape.slots);
}

/// c (T,n) = [source +] `rows` (T,k) times W^T, or with `transposed` times W, in e4m3.
inline void product_fp8(Context& context, const GroupArgs& group, std::span<const Part> parts, const GroupShape& shape,
                        bool transposed, int tokens, Rows<const bf16> rows, const bf16* source, Rows<bf16> c) {
  const Fp8Layout at = fp8_layout(group.in, shape.outputs, shape.adapters, tokens);
  auto* scratch = reinterpret_cast<std::uint8_t*>(group.weight_scratch);
  auto* weight_scales = reinterpret_cast<float*>(scratch + at.weight_scale);
  auto* row_scales = reinterpret_cast<float*>(scratch + at.row_scale);
  const int k = transposed ? shape.outputs : group.in;
  {
    const Phase phase(context, "dequantization");
    dequantize_group_fp8(context, group, parts, transposed, scratch + at.weight, weight_scales);
  }
  {
    const Phase phase(context, "quantization");
    quantize_rows_fp8(context, tokens, k, rows, scratch + at.rows, row_scales);
  }
  const Phase phase(context, "base products");
  matmul(context, {.product = Product::nt_fp8,
                   .m = tokens,
                   .n = transposed ? group.in : shape.outputs,
                   .k = k,
                   .a = {reinterpret_cast<const bf16*>(scratch + at.rows), k},
                   .b = {reinterpret_cast<const bf16*>(scratch + at.weight), k},
                   .source = source,
                   .c = c.data,
                   .c_stride = c.stride,
                   .a_scales = row_scales,
                   .b_scales = weight_scales});
}

/// Whether the products with A apply dropout themselves (lora_a_*.cuh); otherwise X' and gXA A pass through
/// input_scratch.
[[nodiscard]] inline bool fuses_dropout(const GroupArgs& group, const GroupShape& shape, int stride) {
  return group.dropout.threshold != 0 && qlora::fuses_dropout(group.in, shape.adapters) && stride % 8 == 0;
}

/// X' (T,K): recomputed in input_scratch, or X itself without dropout.
[[nodiscard]] inline Rows<const bf16> dropped_input(Context& context, const GroupArgs& group, int tokens,
                                                    Rows<const bf16> x) {
  if (group.dropout.threshold == 0) return x;
  QLORA_EXPECTS(group.input_scratch != nullptr, "dropout needs input_scratch");
  const Phase phase(context, "elementwise");
  dropout(context, tokens, group.in, group.dropout, x, group.input_scratch);
  return {group.input_scratch, group.in};
}

/// XA = X' A^T into the columns after X; adapter_scratch must be filled.
inline void product_a(Context& context, const GroupArgs& group, const GroupShape& shape, int tokens, Rows<bf16> x) {
  if (fuses_dropout(group, shape, x.stride)) {
    const Phase phase(context, "LoRA products");
    dropped_adapter_input(context, tokens, group.in, shape.adapters, group.dropout, {x.data, x.stride},
                          group.adapter_scratch, {x.data + group.in, x.stride});
    return;
  }
  const Rows<const bf16> dropped = dropped_input(context, group, tokens, {x.data, x.stride});
  const Phase phase(context, "LoRA products");
  matmul(context, {.product = Product::nt,
                   .m = tokens,
                   .n = shape.adapters,
                   .k = group.in,
                   .a = dropped,
                   .b = {group.adapter_scratch, group.in},
                   .c = x.data + group.in,
                   .c_stride = x.stride});
}

/// The operands of gB of one adapted part.
struct AdapterSlot {
  int rows = 0;                ///< N
  std::int64_t gy_column = 0;  ///< first column of the part in gY
  std::int64_t xa_column = 0;  ///< first column of its slot in a row of x
  float scale = 0.0F;
  float* gb = nullptr;  ///< (N,R)
};
inline constexpr std::size_t most_parts = 8;
struct AdapterSlots {
  std::array<AdapterSlot, most_parts> list{};
  std::size_t count = 0;
  float* ga = nullptr;  ///< (XA,K), all slots
};
[[nodiscard]] inline AdapterSlots adapter_slots(const GroupArgs& group, std::span<const Part> parts,
                                                std::span<const PartGradient> gradients) {
  QLORA_EXPECTS(parts.size() <= most_parts, "a group has ", parts.size(), " parts, at most ", most_parts, " fit");
  AdapterSlots slots;
  std::int64_t column = 0;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    if (parts[p].a != nullptr) {
      const auto at = static_cast<std::int64_t>(slots.count) * group.rank;
      if (slots.count == 0) slots.ga = gradients[p].a;
      QLORA_EXPECTS(gradients[p].b != nullptr && slots.ga != nullptr && gradients[p].a == slots.ga + at * group.in,
                    "gradients of a group's A matrices lie one behind the other");
      slots.list[slots.count] = {parts[p].weight.rows, column, group.in + at, parts[p].scale, gradients[p].b};
      ++slots.count;
    }
    column += parts[p].weight.rows;
  }
  return slots;
}

/// Whether slots first ... last-1 have the same height and scale and equal distances everywhere: one batched product.
[[nodiscard]] inline std::size_t run_end(const AdapterSlots& slots, std::size_t first) {
  const auto distance = [&](std::size_t i) { return slots.list[i + 1].gb - slots.list[i].gb; };
  const auto columns = [&](std::size_t i) { return slots.list[i + 1].gy_column - slots.list[i].gy_column; };
  std::size_t last = first + 1;
  while (last < slots.count && slots.list[last].rows == slots.list[first].rows &&
         slots.list[last].scale == slots.list[first].scale && distance(last - 1) == distance(first) &&
         distance(first) > 0 && columns(last - 1) == columns(first)) {
    ++last;
  }
  return last;
}

/// gB_p += s_p gY_p^T XA_p.
inline void gradient_b(Context& context, const GroupArgs& group, const GroupShape& shape, const AdapterSlots& slots,
                       int tokens, const bf16* gy, Rows<const bf16> x) {
  const Phase phase(context, "LoRA products");
  for (std::size_t first = 0; first < slots.count;) {
    const std::size_t last = run_end(slots, first);
    const AdapterSlot& slot = slots.list[first];
    Matmul product{.product = Product::tn,
                   .m = slot.rows,
                   .n = group.rank,
                   .k = tokens,
                   .a = {gy + slot.gy_column, shape.outputs},
                   .b = {x.data + slot.xa_column, x.stride},
                   .alpha = slot.scale,
                   .source = slot.gb,
                   .c = slot.gb,
                   .c_stride = group.rank,
                   .c_float = true};
    if (last - first > 1) {
      product.batch = static_cast<int>(last - first);
      product.a_step = slots.list[first + 1].gy_column - slot.gy_column;
      product.b_step = group.rank;
      product.c_step = slots.list[first + 1].gb - slot.gb;
    }
    matmul(context, product);
    first = last;
  }
}

/// gA += gXA^T X', all parts at once.
inline void gradient_a(Context& context, const GroupArgs& group, const GroupShape& shape, float* ga, int tokens,
                       Rows<const bf16> gx, Rows<const bf16> x) {
  if (fuses_dropout(group, shape, x.stride) && gx.stride % 8 == 0) {
    const Phase phase(context, "LoRA products");
    dropped_gradient_a(context, tokens, group.in, shape.adapters, group.dropout, {gx.data + group.in, gx.stride}, x,
                       ga);
    return;
  }
  const Rows<const bf16> dropped = dropped_input(context, group, tokens, x);
  const Phase phase(context, "LoRA products");
  matmul(context, {.product = Product::tn,
                   .m = shape.adapters,
                   .n = group.in,
                   .k = tokens,
                   .a = {gx.data + group.in, gx.stride},
                   .b = dropped,
                   .source = ga,
                   .c = ga,
                   .c_stride = group.in,
                   .c_float = true});
}

/// gX += mask o (gXA A) / keep; adapter_scratch must be filled, input_scratch (if needed) must be free.
inline void input_gradient_a(Context& context, const GroupArgs& group, const GroupShape& shape, int tokens,
                             Rows<bf16> gx) {
  if (fuses_dropout(group, shape, gx.stride)) {
    const Phase phase(context, "LoRA products");
    add_dropped_product(context, tokens, group.in, shape.adapters, group.dropout, {gx.data + group.in, gx.stride},
                        group.adapter_scratch, gx);
    return;
  }
  const bool masked = group.dropout.threshold != 0;
  {
    const Phase phase(context, "LoRA products");
    matmul(context, {.product = Product::nn,
                     .m = tokens,
                     .n = group.in,
                     .k = shape.adapters,
                     .a = {gx.data + group.in, gx.stride},
                     .b = {group.adapter_scratch, group.in},
                     .source = masked ? nullptr : gx.data,
                     .c = masked ? group.input_scratch : gx.data,
                     .c_stride = masked ? group.in : gx.stride});
  }
  if (!masked) return;
  const Phase phase(context, "elementwise");
  add_dropped(context, tokens, group.in, group.dropout, group.input_scratch, gx);
}

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

/// y += XA (s B)^T.
inline void add_adapters(Context& context, const GroupArgs& group, const GroupShape& shape, Rows<const bf16> b,
                         int tokens, Rows<bf16> x, bf16* y) {
  const Phase phase(context, "LoRA products");
  matmul(context, {.product = Product::nt,
                   .m = tokens,
                   .n = shape.outputs,
                   .k = shape.adapters,
                   .a = {x.data + group.in, x.stride},
                   .b = b,
                   .source = y,
                   .c = y,
                   .c_stride = shape.outputs});
}

/// The forward pass with fp8 products; XA and s B are there.
inline void forward_fp8(Context& context, const GroupArgs& group, std::span<const Part> parts, const GroupShape& shape,
                        int tokens, Rows<bf16> x, const bf16* residual, bf16* y) {
  product_fp8(context, group, parts, shape, false, tokens, {x.data, x.stride}, residual, {y, shape.outputs});
  if (shape.adapters == 0) return;
  add_adapters(context, group, shape, {shape.slots.data, shape.slots.stride}, tokens, x, y);
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
  add_adapters(context, group, shape, {shape.wide.data + group.in, shape.wide.stride}, range.count, rows,
               y + std::int64_t{range.first} * shape.outputs);
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void linear_forward(Context& context, const GroupArgs& group, std::span<const Part> parts,
                                        int tokens, Rows<bf16> x, const bf16* residual, bf16* y) {
  if (tokens == 0) return;
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
