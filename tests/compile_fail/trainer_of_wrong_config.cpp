// The public classes ask for a valid config themselves, and the reason is in the message.
// expect: satisfaction of .KvHeadsDivideHeads<.*satisfaction of .CanTrain<
#include "case.hpp"
#include "qlora/llama2.hpp"

constexpr qlora::Config config = [] {
  qlora::Config c = sound;
  c.shape.kv_heads = right ? 2 : 3;
  return c;
}();
using Training = qlora::Trainer<config, qlora::Cpu<float>>;
int size = sizeof(Training*);
