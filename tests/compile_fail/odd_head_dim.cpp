// Rotary embedding turns pairs of numbers.
// expect: satisfaction of .HeadDimIsEven<
#include "case.hpp"

constexpr qlora::Config config = [] {
  qlora::Config c = sound;
  c.shape.head_dim = right ? 8 : 7;
  return c;
}();
User<config> user;
