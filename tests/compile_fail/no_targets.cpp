// Adapters that adapt nothing.
// expect: satisfaction of .AdaptersHaveTargets<
#include "case.hpp"

constexpr qlora::Config config = [] {
  qlora::Config c = sound;
  c.lora.targets = right ? qlora::Proj::q : qlora::Proj::none;
  return c;
}();
User<config> user;
