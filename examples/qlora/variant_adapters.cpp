// variant_adapters.cpp — adapters on an NF4 base, on the CPU: any shape, rank and targets.
#include "variant_impl.hpp"

static constexpr qlora::Config any{.shape = qlora::dynamic_shape, .lora = qlora::dynamic_lora};
static const qlora::program::Registered<any> registered;
