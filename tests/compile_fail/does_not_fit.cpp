// LLaMA-2 70B in four bits is 35 GB: it fits into 80 GB and not into 24 GB, and the compiler says both numbers.
// expect: Needed <= Available .with .*[0-9][0-9]+.*[0-9][0-9]+
#include "case.hpp"
#include "qlora/configs/llama2.hpp"
#include "qlora/train/fits.hpp"

constexpr qlora::Gpu card = right ? qlora::gpu::a100_80gb : qlora::gpu::a10g_24gb;
static_assert(qlora::FitsInto<qlora::training_bytes<qlora::llama2_70b>({.batch = 1, .seq = 512}), card.bytes>);
