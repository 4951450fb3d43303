// A model without layers.
// expect: satisfaction of .ShapeIsPositive<
#include "case.hpp"

constexpr qlora::Config config = [] {
  qlora::Config c = sound;
  c.shape.layers = right ? 2 : 0;
  return c;
}();
User<config> user;
