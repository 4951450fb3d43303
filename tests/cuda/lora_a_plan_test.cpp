// How products with a narrow side are cut: nothing is left out, nothing is empty, and the GPU is full.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <initializer_list>

#include "qlora/cuda/linear/lora_a_plan.hpp"

using namespace qlora::cuda;

TEST_CASE("adapter columns are cut into tiles that hold them all") {
  for (int columns = 8; columns <= 384; columns += 8) {
    const NarrowTiles tiles = narrow_tiles(columns);
    CAPTURE(columns);
    CHECK((tiles.width == 64 || tiles.width == 128 || tiles.width == 192));
    CHECK(tiles.width * tiles.count >= columns);
    CHECK(tiles.width * (tiles.count - 1) < columns);  // the last tile is not empty
  }
}

TEST_CASE("a split sum covers its steps, and no part is empty") {
  for (const int tiles : {1, 2, 5, 32, 40, 108, 500}) {
    for (const int steps : {1, 2, 3, 7, 20, 64, 80, 216}) {
      for (const std::int64_t most : {std::int64_t{0}, std::int64_t{1}, std::int64_t{3}, std::int64_t{16}}) {
        const SumSplit split = split_sum(tiles, steps, 132, most, 5);
        CAPTURE(tiles);
        CAPTURE(steps);
        CHECK(split.count >= 1);
        CHECK((split.count == 1 || split.count <= most));
        CHECK(split.count * split.steps >= steps);
        CHECK((split.count - 1) * split.steps < steps);
      }
    }
  }
}

TEST_CASE("shapes of 13B fill the multiprocessors of an H200") {
  const auto blocks = [](int tiles, int steps, int places) {
    return tiles * split_sum(tiles, steps, places, 16, 5).count;
  };
  CHECK(blocks(4096 / 128, 5120 / 64, 132) == 128);   // XA of q k v
  CHECK(blocks(4096 / 128, 13824 / 64, 264) == 256);  // XA of down
  CHECK(blocks(5120 / 128, 4096 / 64, 132) == 120);   // gA of q k v
  CHECK(blocks(13824 / 128, 4096 / 64, 264) >= 216);  // gA of down
}
