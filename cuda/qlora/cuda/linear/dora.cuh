// qlora/cuda/linear/dora.cuh — groups of linear layers whose rows have lengths (DoRA): passes of a training, of a
// decoder, and the lengths themselves.
// Math       L[n] = |W[n,:] + s B[n,:] A|, a constant in the backward pass; f = m / L; X' = mask o X / keep
//            trained    Y = [residual +] (X - X') W^T + f o (X' W^T + s XA B^T)
//                       gm += (1 / L) sum over t of gY o (X' W^T + s XA B^T);  gXA = s (f o gY) B;
//                       gB += s (f o gY)^T XA;  gX = gY W + mask o (((f - 1) o gY) W + gXA A) / keep, without dropout
//                       (f o gY) W + gXA A
//            held       Y = [residual +] (1 + strength (f - 1)) o X W^T + s XA B^T, B with f in it
// Shapes     those of linear.cuh · m L f (N) float
// Writes     y, XA columns of x, gx, lengths with = ; gm gA gB with +=
// Split      without dropout one product forward, in float in halves of the rows, and two backward, since U = X' W^T +
//            s XA B^T is made again for gm; with dropout two forward and three backward. Decoders make the product with
//            W as the base does, and a kernel with f adds the adapters' share: the kernels that read codes know of none
// Needs      as linear.cuh; training: output_scratch, and with dropout input_scratch, as gpu_workspace_bytes says
// Numbers    fp32 sums. Without dropout Y is rounded once: rounded before it is multiplied by f, a row would not notice
//            changes of m below 1/256. With dropout (f - 1) o X' W^T is rounded for itself, and added in the product.
//            U, f o gY and (f - 1) o gY are rounded to bf16; gm sums tokens in a fixed order. L from |W|^2 + 2 s B (W
//            A^T) + s^2 B (A A^T) B^T, of W and A as products read them, summed in double
// Cost       without dropout half more products than LoRA in a step, with dropout two and a half times as many
// Reference  cpu/dora.hpp; the parity tests of linear groups
#pragma once

#include <algorithm>
#include <vector>

#include "qlora/cuda/linear/dora_kernels.cuh"
#include "qlora/cuda/linear/group_products.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// X' where the products with W read it: made by product_a already where that does not make it in registers.
[[nodiscard]] inline Rows<const bf16> stored_input(Context& context, const GroupArgs& group, const GroupShape& shape,
                                                   int tokens, Rows<const bf16> x) {
  if (fuses_dropout(group, shape, x.stride)) return dropped_input(context, group, tokens, x);
  return {group.input_scratch, group.in};
}

/// The forward pass of a training.
inline void dora_training_forward(Context& context, const GroupArgs& group, std::span<const Part> parts, int tokens,
                                  Rows<bf16> x, const bf16* residual, bf16* y) {
  const GroupShape shape = group_shape(group, parts);
  QLORA_EXPECTS(!shape.fp8, "training with DoRA reads weights in 16 bits, and not in fp8");
  const DoraRows rows = dora_rows(parts);
  const Rows<const bf16> input{x.data, x.stride};
  prepare(context, group, parts, shape, true, true);
  product_a(context, group, shape, tokens, x);
  Matmul product{.m = tokens, .n = shape.outputs, .k = group.in, .b = shape.wide, .c = y, .c_stride = shape.outputs};
  if (group.dropout.threshold == 0) {
    auto* sums = reinterpret_cast<float*>(group.output_scratch);
    const int at_once = (tokens + 1) / 2;
    product.k += shape.adapters;
    product.c = sums;
    product.c_float = true;
    for (int first = 0; first < tokens; first += at_once) {
      product.m = std::min(at_once, tokens - first);
      product.a = {input.data + std::int64_t{first} * input.stride, input.stride};
      {
        const Phase phase(context, "base products");
        matmul(context, product);
      }
      const std::int64_t at = std::int64_t{first} * shape.outputs;
      scale_outputs(context, product.m, shape.outputs, rows, 0.0F, sums, false,
                    residual == nullptr ? nullptr : residual + at, y + at);
    }
    return;
  }
  product.a = stored_input(context, group, shape, tokens, input);
  {
    const Phase phase(context, "base products");
    matmul(context, product);
  }
  scale_outputs(context, tokens, shape.outputs, rows, -1.0F, y, false, nullptr, y);
  product.a = input;
  product.source = y;
  {
    const Phase phase(context, "base products");
    matmul(context, product);
  }
  product.k = shape.adapters;
  product.a = {input.data + group.in, input.stride};
  product.b = {shape.wide.data + group.in, shape.wide.stride};
  product.source = nullptr;
  product.c = group.output_scratch;
  {
    const Phase phase(context, "LoRA products");
    matmul(context, product);
  }
  scale_outputs(context, tokens, shape.outputs, rows, 0.0F, group.output_scratch, true, residual, y);
}

/// Rows with one set of adapters, which may be all: `parts` without adapters, x, residual and y from the first on.
inline void dora_range(Context& context, const GroupArgs& group, std::span<const Part> parts,
                       const RowAdapters<float>& range, int tokens, Rows<bf16> x, const bf16* residual, bf16* y) {
  std::vector<Part> own(parts.begin(), parts.end());
  for (Part& part : own) {
    part = {.weight = part.weight};
  }
  linear_forward(context, group, own, tokens, x, nullptr, y);
  DoraOutputArgs args;
  args.tokens = tokens;
  args.rank = group.rank;
  args.xa = {x.data + group.in, x.stride};
  args.residual = residual;
  args.y = y;
  int slot = 0;
  for (std::size_t p = 0; p < own.size(); ++p) {
    const auto& from = range.parts[p];
    args.outputs += own[p].weight.rows;
    if (from.a == nullptr) continue;
    own[p].a = from.a;
    own[p].b = from.b;
    own[p].scale = from.scale;
    own[p].row_factors = from.row_factors;
    const bool trained = from.inverse_lengths != nullptr;
    if (trained) expect_whole(from.strength);
    args.adapter[p] = {from.b, from.scale, from.strength, trained, slot};
    slot += group.rank;
  }
  args.rows = dora_rows(own);
  adapter_input(context, group, own, tokens, x);
  const Phase phase(context, "LoRA products");
  const dim3 grid(static_cast<unsigned>((args.outputs + DoraOutputArgs::columns - 1) / DoraOutputArgs::columns),
                  static_cast<unsigned>((tokens + DoraOutputArgs::rows_of_block - 1) / DoraOutputArgs::rows_of_block));
  dora_outputs_kernel<<<grid, row_threads, 0, context.stream>>>(args);
  check_launch("dora_outputs");
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void dora_forward(Context& context, const GroupArgs& group, std::span<const Part> parts, int tokens,
                                      Rows<bf16> x, const bf16* residual, bf16* y) {
  bool trained = false;
  RowAdapters<float> all{.first = 0, .count = tokens};
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const Part& part = parts[p];
    all.parts[p] = {part.a, part.b, part.scale, part.row_factors, part.strength, part.inverse_lengths};
    if (part.inverse_lengths == nullptr) continue;
    trained = true;
    expect_whole(part.strength);
  }
  if (trained && group.output_scratch != nullptr) {
    return detail::dora_training_forward(context, group, parts, tokens, x, residual, y);
  }
  detail::dora_range(context, group, parts, all, tokens, x, residual, y);
}

QLORA_CUDA_LAUNCHER void dora_forward_mixed(Context& context, const GroupArgs& group, std::span<const Part> parts,
                                            std::span<const RowAdapters<float>> ranges, int tokens, Rows<bf16> x,
                                            const bf16* residual, bf16* y) {
  std::vector<RowAdapters<float>> plain;
  int others = tokens;
  for (const RowAdapters<float>& range : ranges) {
    if (detail::has_row_factors(range)) {
      others -= range.count;
    } else {
      plain.push_back(range);
    }
  }
  // Rows without factors have the bits that they have beside others: the kernels that serve them see all rows.
  if (others > 0) linear_forward_mixed(context, group, parts, plain, tokens, x, residual, y);
  const int outputs = detail::group_shape(group, parts).outputs;
  for (const RowAdapters<float>& range : ranges) {
    if (!detail::has_row_factors(range)) continue;
    const std::int64_t at = std::int64_t{range.first} * outputs;
    detail::dora_range(context, group, parts, range, range.count,
                       {x.data + std::int64_t{range.first} * x.stride, x.stride},
                       residual == nullptr ? nullptr : residual + at, y + at);
  }
}

QLORA_CUDA_LAUNCHER void dora_backward(Context& context, const GroupArgs& group, std::span<const Part> parts,
                                       std::span<const PartGradient> gradients, int tokens, const bf16* gy,
                                       Rows<const bf16> x, bool needs_input, Rows<bf16> gx) {
  const detail::GroupShape shape = detail::group_shape(group, parts);
  const bool drops = group.dropout.threshold != 0;
  QLORA_EXPECTS(group.output_scratch != nullptr && !shape.fp8,
                "training with DoRA needs output_scratch, and weights in 16 bits");
  detail::DoraGradientArgs args;
  args.rows = detail::dora_rows(parts);
  args.tokens = tokens;
  args.outputs = shape.outputs;
  args.gy = gy;
  args.u = group.output_scratch;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    args.inverse_lengths[p] = parts[p].inverse_lengths;
    args.magnitude[p] = parts[p].inverse_lengths != nullptr ? gradients[p].magnitude : nullptr;
  }
  detail::prepare(context, group, parts, shape, true, needs_input);
  const Rows<const bf16> input = detail::dropped_input(context, group, tokens, x);
  {
    const Phase phase(context, "base products");
    matmul(context, {.m = tokens,
                     .n = shape.outputs,
                     .k = group.in + (drops ? 0 : shape.adapters),
                     .a = input,
                     .b = shape.wide,
                     .c = args.u,
                     .c_stride = shape.outputs});
  }
  const Rows<const bf16> b{shape.wide.data + group.in, shape.wide.stride};
  if (drops) detail::add_adapters(context, group, shape, b, tokens, x, args.u);
  {
    const Phase phase(context, "elementwise");
    const auto blocks = static_cast<unsigned>((shape.outputs + args.columns - 1) / args.columns);
    detail::dora_gradient_kernel<<<blocks, row_threads, 0, context.stream>>>(args);
    check_launch("dora_gradient");
  }
  const auto product = [&](const bf16* from, int column, int columns, Rows<bf16> to) {
    const Phase phase(context, "base products");
    matmul(context, {.product = Product::nn,
                     .m = tokens,
                     .n = columns,
                     .k = shape.outputs,
                     .a = {from, shape.outputs},
                     .b = {shape.wide.data + column, shape.wide.stride},
                     .c = to.data,
                     .c_stride = to.stride});
  };
  const bool whole = needs_input && !drops;
  product(args.u, whole ? 0 : group.in, shape.adapters + (whole ? group.in : 0),
          {gx.data + (whole ? 0 : group.in), gx.stride});
  const detail::AdapterSlots slots = detail::adapter_slots(group, parts, gradients);
  detail::gradient_b(context, group, shape, slots, tokens, args.u, x);
  detail::gradient_a(context, group, shape, slots.ga, tokens, {gx.data, gx.stride}, x);
  if (!needs_input) return;
  if (!drops) return detail::input_gradient_a(context, group, shape, tokens, gx);
  product(gy, 0, group.in, gx);
  detail::scale_outputs(context, tokens, shape.outputs, args.rows, -1.0F, gy, false, nullptr, args.u);
  product(args.u, 0, group.in, {group.input_scratch, group.in});
  {
    const Phase phase(context, "LoRA products");
    matmul(context, {.product = Product::nn,
                     .m = tokens,
                     .n = group.in,
                     .k = shape.adapters,
                     .a = {gx.data + group.in, gx.stride},
                     .b = {group.adapter_scratch, group.in},
                     .source = group.input_scratch,
                     .c = group.input_scratch,
                     .c_stride = group.in});
  }
  const Phase phase(context, "elementwise");
  add_dropped(context, tokens, group.in, group.dropout, group.input_scratch, gx);
}

QLORA_CUDA_LAUNCHER void measure_rows(Context& context, const GroupArgs& group, const Part& part,
                                      const RowLengths<float>& lengths) {
  const Phase phase(context, "lengths of rows");
  QLORA_EXPECTS(part.a != nullptr && part.b != nullptr && group.output_scratch != nullptr,
                "lengths of rows need an adapter and output_scratch");
  GroupArgs one = group;
  one.adapted = 1;
  const RowLengthLayout at = row_length_layout(part.weight.rows, group.rank);
  auto* scratch = reinterpret_cast<std::byte*>(group.output_scratch);
  auto* wa = reinterpret_cast<float*>(scratch);
  auto* aa = reinterpret_cast<float*>(scratch + at.squares);
  const std::span<const Part> parts(&part, 1);
  prepare_group(context, one, parts, true, true, {reinterpret_cast<bf16*>(scratch + at.adapter), group.rank});
  detail::DoraLengthArgs args;
  args.rows = part.weight.rows;
  args.width = group.in;
  args.rank = group.rank;
  args.scale = part.scale;
  args.w = part.weight.dense != nullptr ? Rows<const bf16>{part.weight.dense, part.weight.stride}
                                        : Rows<const bf16>{group.weight_scratch, group.in + group.rank};
  args.b = part.b;
  args.wa = wa;
  args.aa = aa;
  args.to = lengths;
  const Rows<const bf16> a{group.adapter_scratch, group.in};
  Matmul product{.m = part.weight.rows, .n = group.rank, .k = group.in, .a = args.w, .b = a, .c = wa};
  product.c_stride = group.rank;
  product.c_float = true;
  matmul(context, product);
  product.m = group.rank;
  product.a = a;
  product.c = aa;
  matmul(context, product);
  constexpr int warps = row_threads / 32;
  const auto blocks = static_cast<unsigned>((args.rows + warps - 1) / warps);
  detail::row_lengths_kernel<<<blocks, row_threads, 0, context.stream>>>(args);
  check_launch("row_lengths");
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
