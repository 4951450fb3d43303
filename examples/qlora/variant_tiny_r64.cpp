// variant_tiny_r64.cpp — the small chat model of examples/models, adapters up to rank 64.
#include "qlora/configs/tiny.hpp"
#include "variant_impl.hpp"

static const qlora::program::Registered<qlora::tiny_chat.with(qlora::Lora{.rank = 64})> registered;
