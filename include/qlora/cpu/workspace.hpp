// qlora/cpu/workspace.hpp — the workspace of the CPU backend, and how it stores a model in float: for plans that are
// made without compiling it.
#pragma once

#include "qlora/workspace.hpp"

namespace qlora {
inline namespace v0 {
namespace cpu {

/// A product reads one matrix at a time, W and the adapters apart; with Rounds a rounded copy of an adapter matrix. fp8
/// products read rounded copies of W, also where it is dense, and of the rows that it is multiplied with.
/// Every worker holds two tiles of scores, while decoding one. Gradients of logits take the place of the logits.
template <int ScalarBytes, bool Rounds>
[[nodiscard]] constexpr WorkspaceBytes workspace_bytes(const WorkspaceNeeds& needs) {
  std::int64_t matrix = 0;
  std::int64_t adapter = 0;
  std::int64_t rows = 0;  // of activations or gradients, as fp8 products read them
  int input = 0;
  int tallest = 0;
  for (const GroupSize& group : needs.groups) {
    matrix = std::max(matrix, std::int64_t{group.tallest} * group.in);
    adapter = std::max({adapter, std::int64_t{group.adapters} * group.in, std::int64_t{group.tallest} * needs.rank});
    if (needs.products == Products::fp8) rows = std::max<std::int64_t>({rows, group.in, group.out});
    if (group.adapters > 0) input = std::max(input, group.in);
    if (group.adapters > 0) tallest = std::max(tallest, group.tallest);
  }
  const auto scalars = [](std::int64_t count) { return arena_bytes(count * ScalarBytes); };
  return {.weight = (needs.dequantizes || rows > 0 ? scalars(matrix) : 0) + scalars(needs.tokens * rows),
          .adapter = Rounds ? scalars(adapter) : 0,
          .input = needs.dropout ? scalars(needs.tokens * input) : 0,
          .output = needs.dora ? scalars(std::max<std::int64_t>(needs.tokens, needs.rank) * tallest +
                                         std::int64_t{needs.rank} * needs.rank)
                               : 0,
          .attention = needs.workers * scalars(std::int64_t{needs.cached ? 1 : 2} * attention_tile * needs.longest),
          .loss_rows = scalars(std::int64_t{needs.loss_chunk} * needs.dim),
          .logits = scalars(std::int64_t{needs.loss_chunk} * needs.vocab)};
}

/// What storage_of says of the CPU backend in float.
[[nodiscard]] constexpr Storage storage(int workers) {
  return {.activation = 4, .parameter = 4, .workspace = &workspace_bytes<4, false>, .workers = workers};
}

}  // namespace cpu
}  // namespace v0
}  // namespace qlora
