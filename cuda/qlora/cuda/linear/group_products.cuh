// qlora/cuda/linear/group_products.cuh — what the passes through a group of linear layers are made of: the sizes of a
// call, operands as products read them, and the products with A and B.
// Math Shapes Needs Numbers   as linear.cuh
// Reference  cpu/linear_parts.hpp; the parity tests of linear groups
#pragma once

#include <algorithm>
#include <array>

#include "qlora/cuda/context/context.cuh"
#include "qlora/gpu_storage.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Whether adapters have lengths of rows (DoRA).
[[nodiscard]] inline bool has_row_factors(std::span<const Part> parts) {
  return std::any_of(parts.begin(), parts.end(), [](const Part& part) { return part.row_factors != nullptr; });
}
[[nodiscard]] inline bool has_row_factors(const RowAdapters<float>& range) {
  return std::any_of(range.parts.begin(), range.parts.end(), [](const auto& part) { return part.row_factors; });
}

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

/// y += XA (s B)^T.
inline void add_adapters(Context& context, const GroupArgs& group, const GroupShape& shape, Rows<const bf16> b,
                         int tokens, Rows<const bf16> x, bf16* y) {
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

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
