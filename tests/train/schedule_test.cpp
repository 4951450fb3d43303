// Learning rates against the formulas of transformers' get_scheduler, evaluated in Python.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/train/schedule.hpp"

#include <doctest/doctest.h>

using namespace qlora;

TEST_CASE("linear, cosine and constant, with and without warm-up") {
  struct Row {
    Schedule schedule;
    int step;
    int warmup;
    int total;
    double rate;
  };
  const Row rows[] = {
      {Schedule::linear, 0, 0, 24, 0.0002},
      {Schedule::linear, 1, 0, 24, 0.00019166666666666667},
      {Schedule::linear, 2, 0, 24, 0.00018333333333333334},
      {Schedule::linear, 12, 0, 24, 0.0001},
      {Schedule::linear, 23, 0, 24, 8.333333333333334e-06},
      {Schedule::linear, 0, 3, 20, 0.0},
      {Schedule::linear, 1, 3, 20, 6.666666666666667e-05},
      {Schedule::linear, 2, 3, 20, 0.00013333333333333334},
      {Schedule::linear, 3, 3, 20, 0.0002},
      {Schedule::linear, 4, 3, 20, 0.00018823529411764707},
      {Schedule::linear, 10, 3, 20, 0.00011764705882352942},
      {Schedule::linear, 19, 3, 20, 1.1764705882352942e-05},
      {Schedule::linear, 0, 10, 160, 0.0},
      {Schedule::linear, 1, 10, 160, 2e-05},
      {Schedule::linear, 2, 10, 160, 4e-05},
      {Schedule::linear, 10, 10, 160, 0.0002},
      {Schedule::linear, 11, 10, 160, 0.00019866666666666668},
      {Schedule::linear, 80, 10, 160, 0.00010666666666666667},
      {Schedule::linear, 159, 10, 160, 1.3333333333333334e-06},
      {Schedule::linear, 0, 5, 5, 0.0},
      {Schedule::linear, 1, 5, 5, 4e-05},
      {Schedule::linear, 2, 5, 5, 8e-05},
      {Schedule::linear, 4, 5, 5, 0.00016},
      {Schedule::cosine, 0, 0, 24, 0.0002},
      {Schedule::cosine, 1, 0, 24, 0.00019914448613738106},
      {Schedule::cosine, 2, 0, 24, 0.00019659258262890683},
      {Schedule::cosine, 12, 0, 24, 0.0001},
      {Schedule::cosine, 23, 0, 24, 8.555138626189618e-07},
      {Schedule::cosine, 0, 3, 20, 0.0},
      {Schedule::cosine, 1, 3, 20, 6.666666666666667e-05},
      {Schedule::cosine, 2, 3, 20, 0.00013333333333333334},
      {Schedule::cosine, 3, 3, 20, 0.0002},
      {Schedule::cosine, 4, 3, 20, 0.0001982973099683902},
      {Schedule::cosine, 10, 3, 20, 0.0001273662990072083},
      {Schedule::cosine, 19, 3, 20, 1.7026900316098215e-06},
      {Schedule::cosine, 0, 10, 160, 0.0},
      {Schedule::cosine, 1, 10, 160, 2e-05},
      {Schedule::cosine, 2, 10, 160, 4e-05},
      {Schedule::cosine, 10, 10, 160, 0.0002},
      {Schedule::cosine, 11, 10, 160, 0.00019997806834748456},
      {Schedule::cosine, 80, 10, 160, 0.00011045284632676536},
      {Schedule::cosine, 159, 10, 160, 2.193165251545004e-08},
      {Schedule::cosine, 0, 5, 5, 0.0},
      {Schedule::cosine, 1, 5, 5, 4e-05},
      {Schedule::cosine, 2, 5, 5, 8e-05},
      {Schedule::cosine, 4, 5, 5, 0.00016},
      {Schedule::constant, 0, 3, 20, 0.0},
      {Schedule::constant, 1, 3, 20, 6.666666666666667e-05},
      {Schedule::constant, 2, 3, 20, 0.00013333333333333334},
      {Schedule::constant, 3, 3, 20, 0.0002},
      {Schedule::constant, 4, 3, 20, 0.0002},
      {Schedule::constant, 10, 3, 20, 0.0002},
      {Schedule::constant, 19, 3, 20, 0.0002},
  };
  for (const Row& row : rows) {
    CAPTURE(row.step);
    CAPTURE(row.total);
    CHECK(learning_rate(row.schedule, 2e-4, row.step, row.warmup, row.total) ==
          doctest::Approx(row.rate).epsilon(1e-12).scale(1e-9));
  }
}

TEST_CASE("after its last step a schedule stays at its end") {
  for (const int step : {24, 25, 1000}) {
    CHECK(learning_rate(Schedule::linear, 1.0, step, 0, 24) == 0.0);
    CHECK(learning_rate(Schedule::cosine, 1.0, step, 0, 24) == 0.0);
    CHECK(learning_rate(Schedule::constant, 1.0, step, 0, 24) == 1.0);
  }
  CHECK(learning_rate(Schedule::linear, 1.0, 0, 0, 0) == 0.0);
}
