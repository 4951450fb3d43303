// qlora/cuda.cuh — the CUDA backend for a program that nvcc compiles whole: kernels and launchers are part of it, inline,
// and it links the CUDA runtime and cuBLASLt only. A program that g++ compiles includes qlora/cuda.hpp and links
// qlora::cuda. (nvcc takes some of this library's files through g++ only: those of Eigen, JSON and TOML.)
#pragma once

#include "qlora/cuda.hpp"
#include "qlora/cuda/adamw.cuh"
#include "qlora/cuda/adamw8.cuh"
#include "qlora/cuda/attention.cuh"
#include "qlora/cuda/attention_backward.cuh"
#include "qlora/cuda/attention_dispatch.cuh"
#include "qlora/cuda/context_launchers.cuh"
#include "qlora/cuda/cudnn.hpp"
#include "qlora/cuda/decode.cuh"
#include "qlora/cuda/dropout.cuh"
#include "qlora/cuda/gemm.cuh"
#include "qlora/cuda/linear.cuh"
#include "qlora/cuda/load.cuh"
#include "qlora/cuda/loss.cuh"
#include "qlora/cuda/merge.cuh"
#include "qlora/cuda/nf4.cuh"
#include "qlora/cuda/norm.cuh"
#include "qlora/cuda/quantize.cuh"
#include "qlora/cuda/rope.cuh"
#include "qlora/cuda/skinny.cuh"
#include "qlora/cuda/skinny_backward.cuh"
#include "qlora/cuda/skinny_input.cuh"
#include "qlora/cuda/swiglu.cuh"
