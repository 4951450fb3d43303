// pareto_front_test.cpp — trials of two methods: points over seeds, and what is kept at a gain, by hand.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/eval/pareto_front.hpp"

#include <doctest/doctest.h>

using namespace qlora::eval;

namespace {

const std::vector<Trial> trials{
    {"qlora", "slow", 1, 0.30, 0.99, 0.95, 1.0},
    {"qlora", "slow", 2, 0.50, 0.97, 0.93, 0.98},
    {"qlora", "quick", 1, 0.80, 0.90, 0.8, 0.95},
    {"qlora", "quick", 2, 0.70, 0.80},
    {"full", "slow", 1, 0.60, 0.95},
    {"full", "slow", 2, NAN, 0.95},
};

}  // namespace

TEST_CASE("settings are means over seeds, by rising gain") {
  const auto groups = settings_of(trials);
  REQUIRE(groups.size() == 2);
  const std::vector<SettingPoint>& points = groups.at("qlora");
  REQUIRE(points.size() == 2);
  CHECK(points[0].setting == "slow");
  CHECK(points[0].gain.mean == doctest::Approx(0.4));
  CHECK(points[0].kept.over.mean == doctest::Approx(0.98));
  CHECK(points[0].kept.over.least == 0.97);
  CHECK(points[0].kept.over.most == 0.99);
  CHECK(points[1].gain.mean == doctest::Approx(0.75));
  CHECK(points[1].gain.seeds == 2);
  CHECK(points[0].kept.lower == doctest::Approx(0.94));
  CHECK(points[0].kept.upper == doctest::Approx(0.99));
  CHECK(std::isnan(points[1].kept.lower));         // one of its seeds has no interval
  CHECK(groups.at("full").at(0).gain.seeds == 1);  // what was not measured does not count
}

TEST_CASE("at a gain, each seed has the best of the settings that reached it") {
  const OverSeeds low = kept_at(trials, "qlora", 0.30);  // both settings of both seeds
  CHECK(low.seeds == 2);
  CHECK(low.mean == doctest::Approx((0.99 + 0.97) / 2));
  const OverSeeds middle = kept_at(trials, "qlora", 0.45);  // seed 1 needs its quick setting
  CHECK(middle.least == 0.90);
  CHECK(middle.most == 0.97);
  const OverSeeds high = kept_at(trials, "qlora", 0.75);  // one seed gets so far
  CHECK(high.seeds == 1);
  CHECK(high.mean == 0.90);
  CHECK(kept_at(trials, "qlora", 0.81).seeds == 0);
  CHECK(std::isnan(kept_at(trials, "qlora", 0.81).mean));
  CHECK(kept_at(trials, "full", 0.5).mean == 0.95);
  CHECK(kept_at(trials, "other", 0.0).seeds == 0);
}
