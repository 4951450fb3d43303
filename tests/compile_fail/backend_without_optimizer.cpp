// A backend that lacks an op of the optimizer is refused by the part of the contract that it breaks.
// expect: satisfaction of .OptimizerBackend<.*satisfaction of .Backend<
#include "case.hpp"
#include "qlora/cpu.hpp"
#include "qlora/model/model.hpp"

struct Partial : qlora::Cpu<float> {
  [[nodiscard]] Partial fork() const { return {}; }
#ifndef POSITIVE
  void adamw8bit() = delete;  // hides the op
#endif
};
int size = sizeof(qlora::Model<sound, Partial>*);
