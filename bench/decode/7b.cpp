// bench/decode/7b.cpp — LLaMA-2 7B, adapters of rank 64 on every linear layer. The build makes the files of the other
// models from this one.
#include "measure.hpp"

qlora::bench::DecodeFigures qlora::bench::decode_7b(const DecodeSettings& settings) {
  return decode<qlora::llama2_7b>(settings);
}
