// qlora/workspace.hpp — the memory that a backend works in beside weights and activations, and how it stores both. A
// backend states the sizes in one constexpr function and hands out the pieces itself; the memory plan adds up what the
// same function says, so that plans and arenas agree.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "qlora/ops.hpp"

namespace qlora {
inline namespace v0 {

/// One group of linear layers, as far as its workspace is concerned.
struct GroupSize {
  int in = 0;        ///< K
  int out = 0;       ///< N of all parts together
  int tallest = 0;   ///< the largest N of a part
  int adapters = 0;  ///< columns of XA
};

/// What a workspace serves: one pass of a training or of a decoder through the network.
struct WorkspaceNeeds {
  std::array<GroupSize, 4> groups{};   ///< qkv, o, gate|up, down
  int rank = 0;                        ///< R, the rank cap; 0 in full training
  int heads = 0;                       ///< H, query heads
  int dim = 0;                         ///< D, width of the residual stream
  int vocab = 0;                       ///< V, columns of the logits
  std::int64_t tokens = 0;             ///< of the largest micro-batch or call
  int longest = 0;                     ///< keys that a token can see at most
  bool cached = false;                 ///< attention reads caches, and there is no backward pass
  int layers = 0;                      ///< with caches
  int sequences = 0;                   ///< that have caches
  bool dequantizes = false;            ///< products read weights in 4 bits
  bool dropout = false;                ///< dropped inputs of adapters need room
  bool dora = false;                   ///< adapters have magnitudes that are trained
  Products products = Products::bf16;  ///< of frozen weights
  int loss_chunk = 0;                  ///< rows whose logits exist at once; 0: no loss
  int workers = 0;                     ///< as the backend says
};

/// Bytes by purpose, each a multiple of arena_alignment. The loss runs while no product of a block does, and works in
/// the same memory.
struct WorkspaceBytes {
  std::int64_t weight = 0;           ///< the dequantized weight of the product at hand
  std::int64_t adapter = 0;          ///< its adapters as products read them
  std::int64_t input = 0;            ///< its dropped input
  std::int64_t output = 0;           ///< with DoRA its output once more, or that of its gradient
  std::int64_t attention = 0;        ///< scores and partial sums of attention
  std::int64_t staged = 0;           ///< host arrays that a repeated step reads
  std::int64_t loss_rows = 0;        ///< rows of the loss's input, and as much for their gradients
  std::int64_t logits = 0;           ///< of `loss_chunk` rows
  std::int64_t logit_gradients = 0;  ///< 0: they take the place of the logits

  /// Bytes of the pieces that a product of a block uses.
  [[nodiscard]] constexpr std::int64_t products() const { return weight + adapter + input + output; }
  /// Bytes of the pieces that the loss uses.
  [[nodiscard]] constexpr std::int64_t loss() const { return 2 * loss_rows + logits + logit_gradients; }
  /// Bytes of the workspace: what products and loss share, and what is not shared.
  [[nodiscard]] constexpr std::int64_t total() const { return std::max(products(), loss()) + attention + staged; }
};

/// Workspaces that all groups share; one product runs at a time.
template <class Act>
struct LinearScratch {
  Products products = Products::bf16;  ///< what it has room for
  Act* weight = nullptr;   ///< the dequantized weight of the product at hand; not owned, as all pointers here
  Act* input = nullptr;    ///< its dropped input; null without dropout
  Act* adapter = nullptr;  ///< its adapters as products read them
  Act* output = nullptr;   ///< with DoRA its output once more
};

/// A workspace in pieces.
template <class Act, class Param = Act>
struct Workspace {
  LinearScratch<Act> linear{};       ///< for products
  LossScratch<Act, Param> loss{};    ///< for the loss; shares its memory with `linear`
  std::byte* attention = nullptr;    ///< for attention; not shared
  std::int64_t attention_bytes = 0;  ///< bytes at `attention`
  std::span<std::byte> staged{};     ///< for repeated steps; not shared
};

/// Cuts `memory`, of bytes.total(), into pieces.
template <class Act, class Param>
[[nodiscard]] Workspace<Act, Param> carve_workspace(const WorkspaceBytes& bytes, const WorkspaceNeeds& needs,
                                                    std::byte* memory) {
  Workspace<Act, Param> out;
  out.linear.products = needs.products;
  std::byte* at = memory;
  const auto next = [&]<class T>(T*& pointer, std::int64_t size) {
    pointer = reinterpret_cast<T*>(at);
    at += size;
  };
  next(out.linear.weight, bytes.weight);
  next(out.linear.adapter, bytes.adapter);
  if (bytes.input > 0) next(out.linear.input, bytes.input);
  if (bytes.output > 0) next(out.linear.output, bytes.output);
  at = memory;
  out.loss.chunk = needs.loss_chunk;
  next(out.loss.rows, bytes.loss_rows);
  next(out.loss.grads, bytes.loss_rows);
  next(out.loss.logits, bytes.logits);
  if constexpr (std::is_same_v<Act, Param>) out.loss.logit_grads = out.loss.logits;
  if (bytes.logit_gradients > 0) next(out.loss.logit_grads, bytes.logit_gradients);
  out.attention = memory + std::max(bytes.products(), bytes.loss());
  out.attention_bytes = bytes.attention;
  out.staged = {out.attention + bytes.attention, static_cast<std::size_t>(bytes.staged)};
  return out;
}

/// How a backend stores a model, and what it works in: all that the memory plan asks of it.
struct Storage {
  int activation = 0;        ///< bytes of an activation, and of a frozen dense weight
  int parameter = 0;         ///< bytes of a trained parameter, a moment and a statistic
  bool wide_groups = false;  ///< dense weights of a group lie in one matrix, with room for adapters behind each row
  /// the backend's function for its sizes
  WorkspaceBytes (*workspace)(const WorkspaceNeeds& needs) = nullptr;
  int workers = 0;           ///< that a workspace has scratch for
  std::int64_t context = 0;  ///< bytes that the driver takes for an empty process
  std::int64_t library = 0;  ///< bytes of libraries' workspaces
  friend constexpr bool operator==(const Storage&, const Storage&) = default;
};

/// How a backend stores things; its own arenas are planned with it. `workers` as the backend says.
template <class B>
[[nodiscard]] constexpr Storage storage_of(int workers) {
  return {.activation = sizeof(typename B::Act),
          .parameter = sizeof(typename B::Param),
          .wide_groups = B::wide_groups,
          .workspace = B::workspace_bytes,
          .workers = workers};
}

}  // namespace v0
}  // namespace qlora
