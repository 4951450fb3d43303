// bench/train/13b.cpp — LLaMA-2 13B, adapters of rank 64 on every linear layer.
#include "measure.hpp"

qlora::bench::Figures qlora::bench::measure_13b(const Settings& settings) {
  return measure<qlora::llama2_13b>(settings);
}
