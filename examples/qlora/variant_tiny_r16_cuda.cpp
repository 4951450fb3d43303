// variant_tiny_r16_cuda.cpp — the small chat model of examples/models, adapters up to rank 16; on a GPU.
#include "qlora/configs/tiny.hpp"
#include "variant_impl.hpp"

static const qlora::program::Registered<qlora::tiny_chat.with(qlora::Lora{.rank = 16}), qlora::Cuda> registered;
