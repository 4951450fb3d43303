// A fixed rank cap is one that the backend has.
// expect: satisfaction of .RankIsMultipleOfStep<.*satisfaction of .RunsOn<
#include "case.hpp"
#include "qlora/cuda.hpp"
#include "qlora/model/model.hpp"

constexpr qlora::Config config = [] {
  qlora::Config c = sound;
  c.shape.head_dim = 16;
  c.lora.rank = right ? 8 : 12;
  return c;
}();
int size = sizeof(qlora::Model<config, qlora::Cuda>*);
