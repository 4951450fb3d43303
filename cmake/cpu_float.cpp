// The float operators of the CPU backend, compiled once for all programs of this build: see qlora/cpu/numbers.hpp.
// The order of the lines below is the order of the object code, on which inlining depends.
#define QLORA_INSTANCE template
// clang-format off
#include "qlora/cpu/gemm.hpp"
#include "qlora/cpu/nf4.hpp"
#include "qlora/cpu/norm.hpp"
#include "qlora/cpu/swiglu.hpp"
#include "qlora/cpu/rope.hpp"
#include "qlora/cpu/attention.hpp"
#include "qlora/cpu/decode.hpp"
#include "qlora/cpu/loss.hpp"
#include "qlora/cpu/linear.hpp"
#include "qlora/cpu/adamw.hpp"
// clang-format on
