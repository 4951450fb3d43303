// LLaMA-2 70B in four bits is 35 GB: it fits into 80 GB and not into 24 GB.
// expect: static assertion failed: the run does not fit
#include "case.hpp"
#include "qlora/configs/llama2.hpp"
#include "qlora/model/cards.hpp"

constexpr qlora::Gpu card = right ? qlora::gpu::a100_80gb : qlora::gpu::a10g_24gb;
static_assert(qlora::fits<qlora::llama2_70b>(card, {.batch = 1, .seq = 512}), "the run does not fit");
