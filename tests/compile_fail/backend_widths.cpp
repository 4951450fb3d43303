// A model runs where the backend has kernels for its widths. cuda.hpp needs no CUDA to be read.
// expect: satisfaction of .WidthsAreMultiplesOfStep<.*satisfaction of .RunsOn<
#include "case.hpp"
#include "qlora/cuda.hpp"
#include "qlora/model/model.hpp"

constexpr qlora::Config config = [] {
  qlora::Config c = sound;
  c.shape.head_dim = 16;
  c.shape.ffn = right ? 96 : 100;
  return c;
}();
int size = sizeof(qlora::Model<config, qlora::Cuda>*);
