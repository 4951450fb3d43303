// qlora/cuda/loss/pick.cuh — the likeliest id of each row of logits.
// Math       id_t = the smallest v < among with z_tv = max_u<among z_tu
// Shapes     logits (T,V) float · ids (T)
// Writes     ids with =
// Split      a block per row: a row of 32,000 is read in 2 us, and rows are few while decoding
// Needs      nothing
// Numbers    exact; NaN is never the largest
// Reference  cpu/pick.hpp
#pragma once

#include "qlora/cuda/loss/keys.cuh"
#include "qlora/cuda/rowwise/rows.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

inline constexpr int pick_threads = 1024;
inline constexpr int pick_ahead = 8;  ///< loads that a thread has in flight

static __global__ void __launch_bounds__(pick_threads)
    pick_kernel(int vocab, int among, const float* __restrict__ logits, std::int32_t* __restrict__ ids) {
  __shared__ std::uint64_t part[pick_threads / 32];
  const int thread = static_cast<int>(threadIdx.x);
  const float* z = logits + std::int64_t{blockIdx.x} * vocab;
  device::let_next_start();
  device::wait_for_previous();
  std::uint64_t key = 0;
  for (int base = thread; base < among; base += pick_threads * pick_ahead) {
    float value[pick_ahead];
#pragma unroll
    for (int i = 0; i < pick_ahead; ++i) {
      const int at = base + i * pick_threads;
      value[i] = at < among ? z[at] : -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < pick_ahead; ++i) {
      const int at = base + i * pick_threads;
      const std::uint64_t here = at < among ? pick_key(value[i], at) : 0;
      key = here > key ? here : key;
    }
  }
  key = warp_most(key);
  if (thread % 32 == 0) part[thread / 32] = key;
  __syncthreads();
  if (thread >= 32) return;
  key = warp_most(part[thread]);
  if (thread == 0) ids[blockIdx.x] = static_cast<std::int32_t>(0xFFFFFFFFU - static_cast<std::uint32_t>(key));
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void pick(Context& context, int tokens, int vocab, int among, const float* logits,
                              std::int32_t* ids) {
  const Phase phase(context, "elementwise");
  if (tokens <= 0) return;
  QLORA_EXPECTS(among > 0 && among <= vocab, "pick: ", among, " of ", vocab, " logits");
  launch(context, true, "pick", detail::pick_kernel, dim3(static_cast<unsigned>(tokens)), dim3(detail::pick_threads), 0,
         vocab, among, logits, ids);
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
