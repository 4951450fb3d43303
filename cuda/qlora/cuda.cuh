// qlora/cuda.cuh — the CUDA backend for a program that nvcc compiles whole: kernels and launchers are part of it,
// inline, and it links the CUDA runtime and cuBLASLt only. A program that g++ compiles includes qlora/cuda.hpp and
// links qlora::cuda. (nvcc takes some of this library's files through g++ only: those of Eigen, JSON and TOML.)
#pragma once

#include "qlora/cuda.hpp"
#include "qlora/cuda/attention/attention.cuh"
#include "qlora/cuda/attention/backward.cuh"
#include "qlora/cuda/attention/cudnn.hpp"
#include "qlora/cuda/attention/forward.cuh"
#include "qlora/cuda/context/launchers.cuh"
#include "qlora/cuda/decode/decode.cuh"
#include "qlora/cuda/linear/dropout.cuh"
#include "qlora/cuda/linear/gemm.cuh"
#include "qlora/cuda/linear/linear.cuh"
#include "qlora/cuda/linear/lora_a_forward.cuh"
#include "qlora/cuda/linear/lora_a_gradient.cuh"
#include "qlora/cuda/linear/lora_a_input_gradient.cuh"
#include "qlora/cuda/loss/loss.cuh"
#include "qlora/cuda/nf4/nf4.cuh"
#include "qlora/cuda/nf4/quantize.cuh"
#include "qlora/cuda/optimizer/adamw.cuh"
#include "qlora/cuda/optimizer/adamw8bit.cuh"
#include "qlora/cuda/rowwise/embed.cuh"
#include "qlora/cuda/rowwise/norm.cuh"
#include "qlora/cuda/rowwise/rope.cuh"
#include "qlora/cuda/rowwise/swiglu.cuh"
#include "qlora/cuda/weights/load.cuh"
#include "qlora/cuda/weights/merge.cuh"
