// Heads that the backend can only read with cannot be trained; the positive case has kernels for both.
// expect: satisfaction of .HeadDimHasBackwardKernels<.*satisfaction of .CanTrain<
#include "case.hpp"
#include "qlora/cuda.hpp"
#include "qlora/train/trainer.hpp"

constexpr qlora::Config config = [] {
  qlora::Config c = sound;
  c.shape.head_dim = right ? 32 : 48;
  return c;
}();
using Reading = qlora::Model<config, qlora::Cuda>;
using Training = qlora::Trainer<config, qlora::Cuda>;
int size = sizeof(Reading*) + sizeof(Training*);
