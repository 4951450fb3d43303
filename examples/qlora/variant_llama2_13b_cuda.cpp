// variant_llama2_13b_cuda.cpp — LLaMA-2 13B and its chat form, adapters up to rank 64, on a GPU.
#include "variant_impl.hpp"

static const qlora::program::Registered<qlora::llama2_13b, qlora::Cuda> registered;
