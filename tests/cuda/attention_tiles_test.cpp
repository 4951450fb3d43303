// The arithmetic of the attention kernels' tiles, on the host: every visible pair is met once and masked where it must
// be, chunks in shared memory neither collide nor share banks, and lanes address what the tensor cores expect.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <random>
#include <set>
#include <vector>

#include "qlora/cuda/attention/ranges.hpp"

using namespace qlora;
using namespace qlora::cuda;

namespace {

struct Pieces {
  int tokens = 0;
  std::vector<Segment> segments;
  std::vector<int> start, end;
  [[nodiscard]] bool visible(int query, int key) const {
    return key <= query && key >= start[static_cast<std::size_t>(query)];
  }
};

Pieces make_pieces(std::mt19937& random, int tokens, int longest) {
  Pieces pieces;
  pieces.tokens = tokens;
  for (int first = 0; first < tokens;) {
    const int length = 1 + static_cast<int>(random() % static_cast<unsigned>(longest));
    const int last = std::min(tokens, first + length);
    pieces.segments.push_back({first, last});
    pieces.start.insert(pieces.start.end(), static_cast<std::size_t>(last - first), first);
    pieces.end.insert(pieces.end.end(), static_cast<std::size_t>(last - first), last);
    first = last;
  }
  return pieces;
}

/// Pairs that the loops over (block's tile, loop's tile, warp) come to, with their masks; `by_key`: blocks own keys.
std::vector<int> count_pairs(const Pieces& pieces, bool by_key, int block_rows, int warp_rows, int tile) {
  const int tokens = pieces.tokens;
  std::vector<int> met(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(tokens));
  for (int block = 0; block < tokens; block += block_rows) {
    const int block_end = std::min(block + block_rows, tokens);
    const TileRange range = by_key ? query_range(block, pieces.end[static_cast<std::size_t>(block_end - 1)], tile)
                                   : key_range(pieces.start[static_cast<std::size_t>(block)], block_end, tile);
    int seen = 0;
    for (int other = range.first; other < range.last; other += tile, ++seen) {
      for (int row = block; row < block + block_rows; row += warp_rows) {
        const int last = std::min(row + warp_rows, tokens) - 1;
        if (row > last) continue;  // the kernels' rows beyond the last token
        const std::vector<int>& bound = by_key ? pieces.end : pieces.start;
        const int low = bound[static_cast<std::size_t>(row)];
        const int high = bound[static_cast<std::size_t>(last)];
        const TileUse use =
            by_key ? queries_use(row, last, low, high, other, tile) : keys_use(row, last, low, high, other, tile);
        if (use == TileUse::none) continue;
        for (int i = row; i <= last; ++i) {
          for (int j = other; j < other + tile; ++j) {
            const bool inside = j < tokens;
            if (use == TileUse::full) CHECK(inside);
            const int query = by_key ? j : i;
            const int key = by_key ? i : j;
            const bool counted = use == TileUse::full || (inside && pieces.visible(query, key));
            if (counted && inside) {
              ++met[static_cast<std::size_t>(query) * static_cast<std::size_t>(tokens) + static_cast<std::size_t>(key)];
            }
          }
        }
      }
    }
    CHECK(seen == range.tiles(tile));
  }
  return met;
}

void check_pairs(const Pieces& pieces, bool by_key, int block_rows, int warp_rows, int tile) {
  const std::vector<int> met = count_pairs(pieces, by_key, block_rows, warp_rows, tile);
  int wrong = 0;
  for (int query = 0; query < pieces.tokens; ++query) {
    for (int key = 0; key < pieces.tokens; ++key) {
      const auto at =
          static_cast<std::size_t>(query) * static_cast<std::size_t>(pieces.tokens) + static_cast<std::size_t>(key);
      if (met[at] != (pieces.visible(query, key) ? 1 : 0)) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("every visible pair of a query and a key is met once, and no other") {
  std::mt19937 random(7);
  for (const int tokens : {1, 2, 31, 63, 64, 65, 127, 128, 129, 300, 517}) {
    for (const int longest : {1, 5, 70, 1000}) {
      const Pieces pieces = make_pieces(random, tokens, longest);
      check_pairs(pieces, false, 128, 32, 64);  // forward
      check_pairs(pieces, false, 128, 32, 32);  // gQ
      check_pairs(pieces, true, 64, 16, 64);    // gK and gV, E = 128
      check_pairs(pieces, true, 128, 32, 32);   // gK and gV, E = 32 and 64
    }
  }
}

TEST_CASE("a long document's inner tiles need no mask") {
  CHECK(keys_use(256, 287, 0, 0, 192, 64) == TileUse::full);
  CHECK(keys_use(256, 287, 0, 0, 256, 64) == TileUse::part);
  CHECK(keys_use(256, 287, 0, 0, 320, 64) == TileUse::none);
  CHECK(keys_use(256, 287, 200, 200, 128, 64) == TileUse::none);
  CHECK(queries_use(64, 79, 1000, 1000, 128, 64) == TileUse::full);
  CHECK(queries_use(64, 79, 1000, 1000, 64, 64) == TileUse::part);
  CHECK(queries_use(64, 79, 150, 150, 128, 64) == TileUse::part);
}

TEST_CASE("chunks of a tile fill it without gaps, and eight rows of a matrix lie in eight groups of banks") {
  for (const int head_dim : {32, 64, 128}) {
    const int chunks = head_dim / 8;
    std::set<int> offsets;
    for (int row = 0; row < 64; ++row) {
      for (int chunk = 0; chunk < chunks; ++chunk) offsets.insert(chunk_offset(head_dim, row, chunk));
    }
    CHECK(offsets.size() == static_cast<std::size_t>(64 * chunks));
    CHECK(*offsets.begin() == 0);
    CHECK(*offsets.rbegin() == 64 * head_dim * 2 - 16);
    for (int row = 0; row < 64; row += 8) {
      for (int chunk = 0; chunk < chunks; ++chunk) {
        std::set<int> banks;
        for (int i = 0; i < 8; ++i) banks.insert(chunk_offset(head_dim, row + i, chunk) / 16 % 8);
        CHECK(banks.size() == 8);
      }
    }
  }
}

TEST_CASE("a lane's address, moved by rows and xored with columns, is the chunk's offset") {
  constexpr int tile = 512;  // any multiple of 256
  for (const int head_dim : {32, 64, 128}) {
    for (int row = 0; row < 16; ++row) {
      for (int half = 0; half < 2; ++half) {
        const int lane = tile + chunk_offset(head_dim, row, half);
        for (int block = 0; block < head_dim / 16; ++block) {
          for (int down = 0; down < 64; down += 8) {
            const int address = (lane ^ (block * 32)) + down * head_dim * 2;
            CHECK(address == tile + chunk_offset(head_dim, row + down, 2 * block + half));
          }
        }
      }
    }
  }
}

TEST_CASE("tiles are started in falling order of their loops, each once") {
  std::mt19937 random(3);
  for (const bool by_key : {false, true}) {
    for (const int tokens : {1, 64, 1000, 4096}) {
      const Pieces pieces = make_pieces(random, tokens, 900);
      const TileOrder order = heavy_first(tokens, 64, by_key, pieces.segments);
      CHECK(order.count == (tokens + 63) / 64);
      std::set<int> seen;
      int before = tokens + 64;
      for (int i = 0; i < order.count; ++i) {
        const int first = order.tile[i] * 64;
        const int last = std::min(first + 64, tokens);
        const int length = by_key ? pieces.end[static_cast<std::size_t>(last - 1)] - first
                                  : last - pieces.start[static_cast<std::size_t>(first)];
        CHECK(length <= before);
        before = length;
        seen.insert(order.tile[i]);
      }
      CHECK(seen.size() == static_cast<std::size_t>(order.count));
    }
  }
  CHECK(heavy_first(100, 64, false, {}).count == 0);
}
