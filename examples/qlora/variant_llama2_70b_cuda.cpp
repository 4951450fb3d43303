// variant_llama2_70b_cuda.cpp — LLaMA-2 70B and its chat form, adapters up to rank 64, on a GPU.
#include "variant_impl.hpp"

static const qlora::program::Registered<qlora::llama2_70b, qlora::Cuda> registered;
