// The NF4 layout has blocks of 64.
// expect: satisfaction of .QuantBlocksAreKnown<
#include "case.hpp"

constexpr qlora::Config config = [] {
  qlora::Config c = sound;
  c.quant.block = right ? 64 : 128;
  return c;
}();
User<config> user;
