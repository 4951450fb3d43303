// qlora/cuda/rowwise/turn.cuh — the rotation of the rotary embedding, for the kernels that turn queries and keys.
// Math       (a, b) -> (a c - b s, b c + a s)
// Numbers    in this order of roundings everywhere, so that a key has the same bits whichever kernel turns it
// Reference  cpu/rope.hpp
#pragma once

#include "qlora/cuda/rowwise/rows.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Turns 8 pairs (a, b) by angles with cosines c and sines s.
__device__ __forceinline__ void turn8(float (&a)[8], float (&b)[8], const float (&c)[8], const float (&s)[8]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float turned = __fmaf_rn(a[j], c[j], -__fmul_rn(b[j], s[j]));
    b[j] = __fmaf_rn(b[j], c[j], __fmul_rn(a[j], s[j]));
    a[j] = turned;
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace qlora
