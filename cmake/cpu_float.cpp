// The float operators of the CPU backend, compiled once for all programs of this build: see qlora/cpu/instances.hpp.
#define QLORA_INSTANCE template
#include "qlora/cpu/instances.hpp"
