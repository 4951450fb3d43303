// variant_llama2_7b_cuda.cpp — LLaMA-2 7B and its chat form, adapters up to rank 64, on a GPU.
#include "variant_impl.hpp"

static const qlora::program::Registered<qlora::llama2_7b, qlora::Cuda> registered;
