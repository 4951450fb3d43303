// A backend states its workspace when a program is compiled.
// expect: satisfaction of .MemoryBackend<.*satisfaction of .Backend<
#include "case.hpp"
#include "qlora/cpu.hpp"
#include "qlora/model/model.hpp"

struct Partial : qlora::Cpu<float> {
  [[nodiscard]] Partial fork() const { return {}; }
#ifndef POSITIVE
  static qlora::WorkspaceBytes workspace_bytes(const qlora::WorkspaceNeeds& needs) {  // not known to a memory plan
    return qlora::cpu::workspace_bytes<4, false>(needs);
  }
#endif
};
int size = sizeof(qlora::Model<sound, Partial>*);
