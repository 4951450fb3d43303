// qlora/gpu_storage.hpp — how the GPU backend stores a model and what it works in: for plans that are made where there
// is no GPU. The backend's own sizes come from here.
#pragma once

#include <string_view>

#include "qlora/error.hpp"
#include "qlora/workspace.hpp"

namespace qlora {
inline namespace v0 {

/// Bytes of one piece that a repeated step stages.
inline constexpr std::int64_t staged_alignment = 16;

/// Whether dropout is part of the products with A, for inputs of width K and XA columns of adapters; else the dropped
/// input is stored. (Beyond 384 columns products on a stored input are faster than recomputing masks.)
[[nodiscard]] constexpr bool fuses_dropout(int in, int adapter_width) {
  return in % 64 == 0 && adapter_width % 8 == 0 && adapter_width <= 384;
}

/// What a step of one token for each of `sequences` stages: ids, positions, how ids are drawn, and the sequences of
/// every layer.
[[nodiscard]] constexpr std::int64_t staged_bytes(int layers, int sequences) {
  const auto piece = [](std::int64_t bytes) {
    return (bytes + staged_alignment - 1) / staged_alignment * staged_alignment;
  };
  return 2 * piece(std::int64_t{4} * sequences) + piece(static_cast<std::int64_t>(sizeof(DrawRow)) * sequences) +
         layers * piece(static_cast<std::int64_t>(sizeof(CachedSequence<bf16>)) * sequences);
}

/// Throws Error (resource) where a card cannot multiply in fp8. `capability`: its compute capability, 90 for 9.0.
[[gnu::cold]] inline void expect_fp8_card(std::string_view name, int capability) {
  if (capability >= 90) return;
  throw Error(concat("products in fp8 (--products, TrainOptions::products) run on Hopper and newer cards, of compute "
                     "capability 9.0 and more; ",
                     name, " has ", capability / 10, ".", capability % 10),
              ErrorKind::resource);
}

/// The scratch of a group's fp8 products in bytes from its begin, for `tokens` rows: all that products read beside A.
struct Fp8Layout {
  std::int64_t weight = 0;        ///< W (sum N, K) in e4m3, or W^T (K, sum N) in the backward pass
  std::int64_t adapter = 0;       ///< s B (sum N, XA) in bf16, block-diagonal
  std::int64_t weight_scale = 0;  ///< floats, one for each row of W or W^T, all the same
  std::int64_t row_scale = 0;     ///< floats, one for each row of activations or gradients
  std::int64_t rows = 0;          ///< X (T, K) or gY (T, sum N) in e4m3
  std::int64_t end = 0;           ///< bytes of all
};
/// Of a group with inputs of width `in`, outputs of `out` and `adapters` columns of XA.
[[nodiscard]] constexpr Fp8Layout fp8_layout(std::int64_t in, std::int64_t out, std::int64_t adapters,
                                             std::int64_t tokens) {
  const std::int64_t wider = std::max(in, out);
  Fp8Layout at;
  at.adapter = arena_bytes(in * out);
  at.weight_scale = at.adapter + arena_bytes(2 * out * adapters);
  at.row_scale = at.weight_scale + arena_bytes(4 * wider);
  at.rows = at.row_scale + arena_bytes(4 * tokens);
  at.end = at.rows + arena_bytes(tokens * wider);
  return at;
}

/// The scratch of DoRA in bytes from its begin, while lengths of rows are measured.
struct RowLengthLayout {
  std::int64_t squares = 0;  ///< A A^T (R, R), floats
  std::int64_t adapter = 0;  ///< s B (N, R) in bf16
  std::int64_t end = 0;      ///< bytes of all; first of all W A^T (N, R), floats
};
/// Of a part with N rows and adapters of rank R.
[[nodiscard]] constexpr RowLengthLayout row_length_layout(std::int64_t rows, std::int64_t rank) {
  RowLengthLayout at;
  at.squares = arena_bytes(4 * rows * rank);
  at.adapter = at.squares + arena_bytes(4 * rank * rank);
  at.end = at.adapter + arena_bytes(2 * rows * rank);
  return at;
}

/// Activations in 16 bits, statistics in 32. A group is one product: its weight is [W | s B] of all parts, and its
/// adapters are a 16-bit copy of the stacked A. With DoRA the output of the tallest group has room once more in 16
/// bits, which is that of half its rows in 32, and dropped inputs are stored. Attention keeps a sum for each token and
/// head in the backward pass, and takes its scratch from the context while decoding.
[[nodiscard]] constexpr WorkspaceBytes gpu_workspace_bytes(const WorkspaceNeeds& needs) {
  std::int64_t weight = 0;
  std::int64_t adapter = 0;
  std::int64_t output = 0;
  int input = 0;
  for (const GroupSize& group : needs.groups) {
    weight = std::max(weight, needs.products == Products::fp8
                                  ? fp8_layout(group.in, group.out, group.adapters, needs.tokens).end
                                  : 2 * std::int64_t{group.out} * (group.in + group.adapters));
    adapter = std::max(adapter, std::int64_t{group.adapters} * group.in);
    if (group.adapters == 0) continue;
    if (needs.dora || !fuses_dropout(group.in, group.adapters)) input = std::max(input, group.in);
    if (!needs.dora) continue;
    output = std::max({output, 2 * (needs.tokens + 1) * group.out, row_length_layout(group.tallest, needs.rank).end});
  }
  const auto halves = [](std::int64_t count) { return arena_bytes(count * 2); };
  const auto floats = [](std::int64_t count) { return arena_bytes(count * 4); };
  const std::int64_t logits = std::int64_t{needs.loss_chunk} * needs.vocab;
  return {.weight = needs.dequantizes ? arena_bytes(weight) : 0,
          .adapter = halves(adapter),
          .input = needs.dropout ? halves(needs.tokens * input) : 0,
          .output = arena_bytes(output),
          .attention = needs.cached ? 0 : floats(needs.tokens * needs.heads),
          .staged = needs.cached ? arena_bytes(staged_bytes(needs.layers, needs.sequences)) : 0,
          .loss_rows = halves(std::int64_t{needs.loss_chunk} * needs.dim),
          .logits = floats(logits),
          .logit_gradients = halves(logits)};
}

/// One GPU. Context: 500 MB measured for an empty process with cuBLAS loaded on an H200, rounded up; libraries: the 32
/// MiB that NVIDIA's guide gives cuBLASLt on Hopper, the ring that small host data passes through, and what fused
/// attention asks for.
inline constexpr Storage gpu_storage{.activation = 2,
                                     .parameter = 4,
                                     .wide_groups = true,
                                     .workspace = &gpu_workspace_bytes,
                                     .context = 550'000'000,
                                     .library = 128 * 1024 * 1024};

}  // namespace v0
}  // namespace qlora
