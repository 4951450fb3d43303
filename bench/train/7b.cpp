// bench/train/7b.cpp — LLaMA-2 7B, adapters of rank 64 on every linear layer. The build makes the files of the other
// models from this one.
#include "measure.hpp"

qlora::bench::Figures qlora::bench::measure_7b(const Settings& settings) { return measure<qlora::llama2_7b>(settings); }
