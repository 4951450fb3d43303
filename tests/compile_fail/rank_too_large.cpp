// A rank above the smallest width of a target.
// expect: satisfaction of .RankFitsEveryTarget<
#include "case.hpp"

constexpr qlora::Config config = [] {
  qlora::Config c = sound;
  c.lora.rank = right ? 32 : 33;
  return c;
}();
User<config> user;
