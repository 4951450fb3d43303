// What is trained in full cannot be frozen in four bits.
// expect: satisfaction of .FullTrainingIsUnquantized<
#include "case.hpp"

constexpr qlora::Config config = [] {
  qlora::Config c = sound;
  c.trainable = right ? qlora::Trainable::adapters : qlora::Trainable::all;
  return c;
}();
User<config> user;
