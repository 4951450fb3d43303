// qlora/cuda/attention/ranges.hpp — which tiles of keys a tile of queries sees and vice versa, which of them need no
// mask, where the 16-byte chunks of a tile are in shared memory, and the order in which tiles are started.
// Math       key j is seen by query t when start[t] <= j <= t; start = t - positions[t] never decreases with t, nor do
//            ends
// Numbers    integers only; compiles without CUDA
// Reference  tests/cuda/attention_tiles_test.cpp checks on random segments that every visible pair is counted once
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "qlora/ops.hpp"

#ifdef __CUDACC__
#define QLORA_HOST_DEVICE __host__ __device__
#else
#define QLORA_HOST_DEVICE
#endif

namespace qlora {
inline namespace v0 {
namespace cuda {

/// Visibility of a tile of scores to a warp: none, some, or all pairs.
enum class TileUse : std::uint8_t { none, part, full };

/// Rows [first, last); `first` is the start of a tile.
struct TileRange {
  int first = 0;
  int last = 0;
  [[nodiscard]] QLORA_HOST_DEVICE constexpr int tiles(int size) const { return (last - first + size - 1) / size; }
};

/// The keys that queries up to `rows_end` see, when the piece of the first query starts at `first_start`.
[[nodiscard]] QLORA_HOST_DEVICE constexpr TileRange key_range(int first_start, int rows_end, int tile) {
  return {first_start / tile * tile, rows_end};
}
/// The queries that see keys from `first_key` on, when the piece of the last key ends at `last_end`.
[[nodiscard]] QLORA_HOST_DEVICE constexpr TileRange query_range(int first_key, int last_end, int tile) {
  return {first_key / tile * tile, last_end};
}
/// Queries first_row ... last_row, whose pieces start at first_start ... last_start, against keys [key, key + count).
[[nodiscard]] QLORA_HOST_DEVICE constexpr TileUse keys_use(int first_row, int last_row, int first_start, int last_start,
                                                           int key, int count) {
  if (first_row > last_row || key > last_row || key + count <= first_start) return TileUse::none;
  return key + count - 1 <= first_row && key >= last_start ? TileUse::full : TileUse::part;
}
/// Keys first_key ... last_key, whose pieces end at first_end ... last_end, against queries [query, query + count).
[[nodiscard]] QLORA_HOST_DEVICE constexpr TileUse queries_use(int first_key, int last_key, int first_end, int last_end,
                                                              int query, int count) {
  if (first_key > last_key || query + count <= first_key || query >= last_end) return TileUse::none;
  return query >= last_key && query + count <= first_end ? TileUse::full : TileUse::part;
}

/// The xor mask of a row's chunk numbers: it puts the same chunk of 8 neighbouring rows into 8 different groups of 4
/// banks. Two rows of 32 elements share a line of 128 bytes. Depends on row % 8 only.
[[nodiscard]] QLORA_HOST_DEVICE constexpr int chunk_flip(int head_dim, int row) {
  return head_dim == 32 ? (row >> 1) & 3 : row & 7;
}
/// Byte offset of the 16-byte chunk `chunk` of row `row` in a tile with rows of head_dim bf16.
[[nodiscard]] QLORA_HOST_DEVICE constexpr int chunk_offset(int head_dim, int row, int chunk) {
  return row * head_dim * 2 + (chunk ^ chunk_flip(head_dim, row)) * 16;
}

/// The order in which blocks take tiles: longest loops first, so that the last blocks to start are short. Passed as a
/// kernel argument (2 KiB of the 4 KiB limit). count 0: natural order.
struct TileOrder {
  static constexpr int capacity = 1024;
  int count = 0;
  std::uint16_t tile[capacity] = {};
};

/// `by_key`: tiles of keys, which loop over later queries; otherwise tiles of queries, which loop over earlier keys.
[[nodiscard]] inline TileOrder heavy_first(int tokens, int size, bool by_key, std::span<const Segment> segments) {
  TileOrder order;
  const int tiles = (tokens + size - 1) / size;
  if (tiles > TileOrder::capacity || segments.empty() || segments.back().last < tokens) return order;
  std::array<int, TileOrder::capacity> length{};
  std::size_t piece = 0;
  for (int i = 0; i < tiles; ++i) {
    const int first = i * size;
    const int last = std::min(first + size, tokens) - 1;
    const int deciding = by_key ? last : first;  // the row whose piece bounds the loop
    while (segments[piece].last <= deciding) ++piece;
    length[static_cast<std::size_t>(i)] = by_key ? segments[piece].last - first : last + 1 - segments[piece].first;
    order.tile[i] = static_cast<std::uint16_t>(i);
  }
  std::sort(order.tile, order.tile + tiles,
            [&](std::uint16_t a, std::uint16_t b) { return length[a] != length[b] ? length[a] > length[b] : a < b; });
  order.count = tiles;
  return order;
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
