// qlora/cuda/attention/ranges.hpp — which tiles of keys a tile of queries meets and the reverse, which of them need no
// mask, where a tile's 16-byte chunks lie in shared memory, and the order in which tiles are started.
// Math       key j is seen by query t when start[t] <= j <= t; start = t - positions[t] never falls with t, nor do ends
// Numbers    integers only, on both sides of the seam: no CUDA here
// Reference  tests/cuda/attention_tiles_test.cpp walks random segments and counts every visible pair once
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

/// What a warp does with a tile of scores: nothing is visible, some pairs are, or all.
enum class TileUse : std::uint8_t { none, part, full };

/// Rows [first, last), where `first` is a tile's boundary.
struct TileRange {
  int first = 0;
  int last = 0;
  [[nodiscard]] QLORA_HOST_DEVICE constexpr int tiles(int size) const { return (last - first + size - 1) / size; }
};

/// The keys that queries up to `rows_end` meet, when their first one's piece begins at `first_start`.
[[nodiscard]] QLORA_HOST_DEVICE constexpr TileRange key_range(int first_start, int rows_end, int tile) {
  return {first_start / tile * tile, rows_end};
}
/// The queries that keys from `first_key` on meet, when their last one's piece ends at `last_end`.
[[nodiscard]] QLORA_HOST_DEVICE constexpr TileRange query_range(int first_key, int last_end, int tile) {
  return {first_key / tile * tile, last_end};
}
/// Queries first_row ... last_row, whose pieces begin at first_start ... last_start, against keys [key, key + count).
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

/// What a row's chunk numbers are xored with, so that the same chunk of 8 neighbouring rows lies in 8 different groups
/// of 4 banks. Rows of 32 elements lie two to a line of 128 bytes. Depends on row % 8 alone.
[[nodiscard]] QLORA_HOST_DEVICE constexpr int chunk_flip(int head_dim, int row) {
  return head_dim == 32 ? (row >> 1) & 3 : row & 7;
}
/// Byte offset of 16-byte chunk `chunk` of row `row` in a tile of rows of head_dim bf16.
[[nodiscard]] QLORA_HOST_DEVICE constexpr int chunk_offset(int head_dim, int row, int chunk) {
  return row * head_dim * 2 + (chunk ^ chunk_flip(head_dim, row)) * 16;
}

/// The order in which blocks take tiles: those with the longest loops first, so that the last blocks to start are short
/// ones. Travels as a kernel argument (2 KiB of at most 4). count 0: in natural order.
struct TileOrder {
  static constexpr int capacity = 1024;
  int count = 0;
  std::uint16_t tile[capacity] = {};
};

/// `by_key`: tiles of keys, which loop over the queries behind them; else tiles of queries, over the keys before.
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
