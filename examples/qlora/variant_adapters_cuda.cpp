// variant_adapters_cuda.cpp — adapters on an NF4 base, on a GPU: any shape, rank and targets.
#include "variant_impl.hpp"

static constexpr qlora::Config any{.shape = qlora::dynamic_shape, .lora = qlora::dynamic_lora};
static const qlora::program::Registered<any, qlora::Cuda> registered;
