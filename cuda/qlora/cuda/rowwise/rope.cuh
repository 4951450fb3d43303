// qlora/cuda/rowwise/rope.cuh — rotary embedding of queries and keys, in place, and its tables.
// Math       (x_i, x_{i+E/2}) rotated by direction * position * frequency, half-split as in LLaMA
// Shapes     qkv (T,(H+2K)E) bf16 · position (T) · cosine sine (positions, E/2) float
// Writes     the first H + K heads of qkv, in place
// Split      a block per token; a thread keeps the angles of 8 pairs and rotates them in every 256 / (E/16)-th head
// Needs      E a multiple of 16, at most 4096; 16-byte alignment
// Numbers    tables as in cpu/rope.hpp; results rounded once
// Cost       bound by memory: 4 bytes per element of queries and keys
// Reference  rope and rope_table in cpu/rope.hpp
#pragma once

#include <cmath>
#include <span>

#include "qlora/cuda/rowwise/turn.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {

namespace detail {

/// Heads whose loads a thread has in flight: at E = 128 a block rotates 32 heads at a time, and LLaMA-2 has 64, 80 or
/// 72 query and key heads.
inline constexpr int rope_heads = 3;

static __global__ void __launch_bounds__(row_threads, 3)
    rope_kernel(int heads, int head_dim, int width, const float* __restrict__ cosine, const float* __restrict__ sine,
                const std::int32_t* __restrict__ position, float sign, bf16* qkv) {
  const int half = head_dim / 2;
  const int octets = half / 8;
  const int octet = static_cast<int>(threadIdx.x) % octets;
  const int first = static_cast<int>(threadIdx.x) / octets;
  const int step = row_threads / octets;
  device::let_next_start();
  if (first >= step) return;  // idle threads when octets does not divide the block
  device::wait_for_previous();
  const std::int64_t t = blockIdx.x;
  const std::int64_t angle = std::int64_t{position[t]} * half + octet * 8;
  float c[8];
  float s[8];
  device::load8(cosine + angle, c);
  device::load8(sine + angle, s);
#pragma unroll
  for (int i = 0; i < 8; ++i) s[i] *= sign;
  bf16* row = qkv + t * width + octet * 8;
  for (int base = first; base < heads; base += step * rope_heads) {
    device::Pack8 low[rope_heads];
    device::Pack8 high[rope_heads];
#pragma unroll
    for (int i = 0; i < rope_heads; ++i) {
      const int head = base + i * step;
      if (head < heads) {
        low[i] = device::load8(row + head * head_dim);
        high[i] = device::load8(row + head * head_dim + half);
      }
    }
#pragma unroll
    for (int i = 0; i < rope_heads; ++i) {
      const int head = base + i * step;
      if (head < heads) {
        float a[8];
        float b[8];
        device::to_floats(low[i], a);
        device::to_floats(high[i], b);
        turn8(a, b, c, s);
        device::store8(row + head * head_dim, device::to_pack(a));
        device::store8(row + head * head_dim + half, device::to_pack(b));
      }
    }
  }
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void rope_table(Context& context, int positions, std::span<const float> frequencies,
                                    float attention, float* cosine, float* sine) {
  const auto half = static_cast<int>(frequencies.size());
  const auto times = static_cast<double>(attention);
  const std::size_t count = static_cast<std::size_t>(positions) * static_cast<std::size_t>(half);
  std::vector<float> cosines(count);
  std::vector<float> sines(count);
  for (int i = 0; i < half; ++i) {
    const float frequency = frequencies[static_cast<std::size_t>(i)];
    for (int p = 0; p < positions; ++p) {
      const double angle = static_cast<double>(static_cast<float>(p) * frequency);
      const auto at = static_cast<std::size_t>(std::int64_t{p} * half + i);
      cosines[at] = static_cast<float>(std::cos(angle) * times);
      sines[at] = static_cast<float>(std::sin(angle) * times);
    }
  }
  const auto bytes = static_cast<std::int64_t>(count * sizeof(float));
  upload(context, cosines.data(), bytes, cosine);
  upload(context, sines.data(), bytes, sine);
}

QLORA_CUDA_LAUNCHER void rope(Context& context, int tokens, const AttentionShape& shape, const float* cosine,
                              const float* sine, const std::int32_t* position, int direction, bf16* qkv) {
  const Phase phase(context, "elementwise");
  if (tokens <= 0) return;
  QLORA_EXPECTS(shape.head_dim % 16 == 0 && shape.head_dim > 0 && shape.head_dim <= 16 * row_threads,
                "rope: the head dimension ", shape.head_dim, " is not a multiple of 16");
  QLORA_EXPECTS(direction == 1 || direction == -1, "rope: direction is ", direction, ", not 1 or -1");
  expect_packs("rope", "qkv", Rows<bf16>{qkv, shape.width()}, shape.width());
  expect_packs("rope", "the table of cosines", Rows<const float>{cosine, shape.head_dim / 2}, shape.head_dim / 2);
  expect_packs("rope", "the table of sines", Rows<const float>{sine, shape.head_dim / 2}, shape.head_dim / 2);
  launch(context, tokens <= most_several_tokens, "rope", detail::rope_kernel, dim3(static_cast<unsigned>(tokens)),
         dim3(row_threads), 0, shape.heads + shape.kv_heads, shape.head_dim, shape.width(), cosine, sine, position,
         static_cast<float>(direction), qkv);
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
