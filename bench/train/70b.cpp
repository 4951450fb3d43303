// bench/train/70b.cpp — LLaMA-2 70B, adapters of rank 64 on every linear layer.
#include "measure.hpp"

qlora::bench::Figures qlora::bench::measure_70b(const Settings& settings) {
  return measure<qlora::llama2_70b>(settings);
}
