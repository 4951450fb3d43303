// qlora/cuda/attention/cudnn_state.hpp — state of cuDNN's attention kept between calls: handle, workspace, plans,
// offset tables.
// Shapes     tables (1 + 8, pieces + 1) int32: lengths of the document pieces, then for each row stride the element
//            offsets at which they begin
// Cost       a batch stages its tables once; every layer finds them by comparing pieces on the host
// Needs      cuDNN 9.12, the first version that writes strided statistics
#pragma once

#include <algorithm>
#include <vector>

#include "qlora/cuda/attention/cudnn_plan.hpp"
#include "qlora/cuda/context/context.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

namespace fused {

/// Limits of a ragged batch: number of pieces, and size of its padded grid relative to T. In larger grids most blocks
/// have no work.
inline constexpr int max_pieces = 1024;
inline constexpr int max_padding = 8;
/// Number of plans kept; the least recently used one is dropped.
inline constexpr std::size_t max_plans = 64;
/// Number of row strides for which a ragged batch has offset tables; one launch needs those of lse, qkv, o and go.
inline constexpr int max_tables = 8;
inline constexpr int launch_tables = 4;
inline constexpr std::int64_t table_entries = max_pieces + 1;

/// The pieces whose lengths and offsets are in device memory.
struct Tables {
  std::vector<Segment> pieces;
  std::vector<int> strides;
  std::int32_t* memory = nullptr;  ///< (1 + max_tables, table_entries): lengths, then the table of each stride
};

}  // namespace fused

struct FusedState {
  cudnnHandle_t handle = nullptr;  ///< null: cuDNN is missing or too old
  std::byte* workspace = nullptr;
  std::int64_t workspace_bytes = 0;
  std::int64_t workspace_limit = 0;
  std::vector<fused::Plan> plans;
  fused::Tables tables;
  std::uint64_t clock = 0;

  FusedState() = default;
  FusedState(const FusedState&) = delete;
  FusedState& operator=(const FusedState&) = delete;
  ~FusedState() {
    plans.clear();
    if (workspace != nullptr) cudaFree(workspace);
    if (tables.memory != nullptr) cudaFree(tables.memory);
    if (handle != nullptr) cudnnDestroy(handle);
  }
};

namespace fused {

/// The state of the context, created at first use.
[[nodiscard]] inline FusedState& state_of(Context& context) {
  if (context.fused != nullptr) return *context.fused;
  context.fused = std::make_shared<FusedState>();
  FusedState& state = *context.fused;
  constexpr std::size_t strided_statistics = 91200;
  if (!context.options.use_cudnn || context.capability < 80 || cudnnGetVersion() < strided_statistics) return state;
  if (cudnnCreate(&state.handle) != CUDNN_STATUS_SUCCESS) {
    state.handle = nullptr;
    return state;
  }
  if (cudnnSetStream(state.handle, context.stream) != CUDNN_STATUS_SUCCESS) {
    cudnnDestroy(state.handle);
    state.handle = nullptr;
    return state;
  }
  std::size_t available = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&available, &total), "the size of device memory");
  state.workspace_limit = std::min(context.options.attention_workspace, static_cast<std::int64_t>(total / 64));
  return state;
}

/// The workspace, at least `bytes` long; false when the card or the cap has no room. Growing it waits for the stream.
[[nodiscard]] inline bool reserve(Context& context, FusedState& state, std::int64_t bytes) {
  if (bytes <= state.workspace_bytes) return true;
  synchronize(context);
  check(cudaFree(state.workspace), "freeing the workspace of cuDNN");
  state.workspace_bytes = 0;
  state.workspace = context.try_allocate(bytes);
  if (state.workspace == nullptr) return false;  // this library's kernels are used instead
  state.workspace_bytes = bytes;
  return true;
}

[[nodiscard]] constexpr std::int64_t aligned(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }
/// Bytes of dense statistics after the workspace: (B,H,S), for the backward pass over several windows.
[[nodiscard]] constexpr std::int64_t dense_stats(const Problem& problem) {
  if (!problem.backward || problem.ragged || problem.windows == 1) return 0;
  return std::int64_t{problem.heads} * problem.tokens * static_cast<std::int64_t>(sizeof(float));
}

/// The plan for a problem, built at first use; null: declined.
[[nodiscard]] inline const Plan* plan_for(Context& context, const Problem& problem) {
  FusedState& state = state_of(context);
  if (state.handle == nullptr) return nullptr;
  ++state.clock;
  auto found = std::ranges::find(state.plans, problem, &Plan::problem);
  if (found == state.plans.end()) {
    if (state.plans.size() == max_plans) state.plans.erase(std::ranges::min_element(state.plans, {}, &Plan::used));
    state.plans.push_back(build(state.handle, problem, state.workspace_limit));
    found = state.plans.end() - 1;
  }
  found->used = state.clock;
  if (found->graph == nullptr) return nullptr;
  if (!reserve(context, state, aligned(found->workspace) + dense_stats(problem))) {
    found->graph = nullptr;
    return nullptr;
  }
  return &*found;
}

/// Writes numbers into row `row` of the tables in stream order, so kernels in flight read the old values.
inline void write_row(Context& context, Tables& tables, std::size_t row, const std::vector<std::int32_t>& numbers) {
  const std::size_t bytes = numbers.size() * sizeof(std::int32_t);
  const void* from = stage(context, numbers.data(), static_cast<std::int64_t>(bytes));
  std::int32_t* to = tables.memory + static_cast<std::int64_t>(row) * table_entries;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, context.stream), "attention offsets");
}
/// Lengths of the pieces (B); the remaining ones are empty.
[[nodiscard]] inline std::int32_t* piece_lengths(Context& context, const TokenBatch& batch, int windows) {
  Tables& tables = context.fused->tables;
  if (tables.memory == nullptr) {
    const std::size_t bytes = (1 + max_tables) * table_entries * sizeof(std::int32_t);
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "attention offsets");
    tables.memory = static_cast<std::int32_t*>(memory);
  }
  if (!std::ranges::equal(tables.pieces, batch.segments)) {
    tables.pieces.assign(batch.segments.begin(), batch.segments.end());
    tables.strides.clear();
    std::vector<std::int32_t> numbers(static_cast<std::size_t>(windows), 0);
    std::ranges::transform(tables.pieces, numbers.begin(), [](const Segment& s) { return s.last - s.first; });
    write_row(context, tables, 0, numbers);
  }
  return tables.memory;
}
/// First elements of the pieces (B+1) in rows `stride` apart; the last entry is the total. Called after piece_lengths.
[[nodiscard]] inline std::int32_t* piece_offsets(Context& context, int tokens, int windows, int stride) {
  Tables& tables = context.fused->tables;
  auto found = std::ranges::find(tables.strides, stride);
  if (found == tables.strides.end()) {
    std::vector<std::int32_t> numbers(static_cast<std::size_t>(windows) + 1, tokens * stride);
    std::ranges::transform(tables.pieces, numbers.begin(), [&](const Segment& s) { return s.first * stride; });
    tables.strides.push_back(stride);
    found = tables.strides.end() - 1;
    write_row(context, tables, tables.strides.size(), numbers);
  }
  return tables.memory + (found - tables.strides.begin() + 1) * table_entries;
}

}  // namespace fused
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
