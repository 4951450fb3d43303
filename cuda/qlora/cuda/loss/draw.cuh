// qlora/cuda/loss/draw.cuh — an id of each row of logits, drawn at random as the row says.
// Math       p_v ~ exp(z_v / temperature) over v < among; of these the top_k largest, of these the fewest largest that
//            have a share of top_p, of these all with at least min_p of the largest; from the largest down, the first
//            id with which the share of the kept reaches the random number. Equal logits: the lower id is the larger
// Shapes     logits (T,V) float · rows (T) · ids (T)
// Writes     ids with =
// Split      a block per row. Each set is found by the least logit in it, by a search over the bits of logits, two at a
//            time: a pass over the row adds what lies above three bounds
// Needs      nothing
// Numbers    weights are fixed-point numbers of 40 binary digits, the largest 1, and are added as integers: no sum
//            depends on an order. An id of a weight below 2^-41 is not drawn
// Cost       some 12 passes over the row for each set, from L1 and L2: 20 to 60 us in all, for all rows at once
// Reference  cpu/draw.hpp
#pragma once

#include "qlora/cuda/loss/keys.cuh"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

inline constexpr int draw_threads = 1024;
inline constexpr int draw_bounds = 3;  ///< that a pass of a search adds above
inline constexpr float draw_one = 0x1p40F;
inline constexpr float draw_widest = 29.0F;  ///< exp(-29) is less than 2^-41

/// The logit that pick_key orders as `bits`.
__device__ __forceinline__ float draw_value(std::uint32_t bits) {
  return __uint_as_float((bits & 0x80000000U) != 0 ? bits & 0x7FFFFFFFU : ~bits);
}

/// Sums over the block, in every thread.
template <int Count>
__device__ __forceinline__ void block_sums(std::uint64_t (&value)[Count]) {
  __shared__ std::uint64_t part[draw_threads / 32][Count];
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < Count; ++i) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value[i] += __shfl_xor_sync(0xffffffffU, value[i], distance);
  }
  __syncthreads();  // reads of an earlier call are complete
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < Count; ++i) part[threadIdx.x / 32][i] = value[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    value[i] = part[lane][i];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value[i] += __shfl_xor_sync(0xffffffffU, value[i], distance);
  }
}

/// A row, and what of it can be drawn: keys from `floor` on, weights from `least` on. All members by all threads.
class DrawnRow {
 public:
  __device__ __forceinline__ DrawnRow(const float* logits, const DrawRow& how) : z_(logits), how_(how) {
    std::uint64_t most = 0;
    for (int v = static_cast<int>(threadIdx.x); v < how.among; v += draw_threads) {
      const std::uint64_t key = pick_key(z_[v], v);
      most = key > most ? key : most;
    }
    __shared__ std::uint64_t part[draw_threads / 32];
    most = warp_most(most);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = most;
    __syncthreads();
    most_ = warp_most(part[threadIdx.x % 32]);
    largest_ = draw_value(bits_of(most_));
    inverse_ = 1.0F / how.temperature;
  }
  /// The id of a key.
  [[nodiscard]] static __device__ __forceinline__ int id_of(std::uint64_t key) {
    return static_cast<int>(0xFFFFFFFFU - static_cast<std::uint32_t>(key));
  }
  [[nodiscard]] __device__ __forceinline__ std::uint64_t most() const { return most_; }
  /// Whether weights are numbers; they are none where the temperature is too small, or a logit infinite.
  [[nodiscard]] __device__ __forceinline__ bool can_draw() const {
    return how_.temperature > 0.0F && isfinite(inverse_) && isfinite(largest_) && bits_of(most_) != 0;
  }
  __device__ __forceinline__ void keep_from(std::uint64_t floor) { floor_ = floor; }
  __device__ __forceinline__ void keep_weights(float least) { least_ = least; }

  /// The key with which the sum, from the largest key down, reaches `target`: of weights, or with Count of ids.
  template <bool Count>
  [[nodiscard]] __device__ __forceinline__ std::uint64_t reach(std::uint64_t target) const {
    // Weights below the range are 0.
    const float lowest = largest_ - draw_widest * how_.temperature;
    std::uint32_t low = Count ? 1U : max(bits_of(pick_key(lowest, 0)), 1U);
    std::uint32_t high = bits_of(most_);
    while (low < high) {
      const std::uint32_t width = high - low;
      const std::uint32_t bound[draw_bounds] = {low + (width + 3) / 4, low + (width + 1) / 2, high - width / 4};
      std::uint64_t sum[draw_bounds];
      sums_from<Count>(bound, sum);
      if (sum[2] >= target) {
        low = bound[2];
      } else if (sum[1] >= target) {
        low = bound[1];
        high = bound[2] - 1;
      } else if (sum[0] >= target) {
        low = bound[0];
        high = bound[1] - 1;
      } else {
        high = bound[0] - 1;
      }
    }
    // Of the ids with this logit as many as are needed, the lowest first.
    const std::uint32_t above[1] = {low + 1};
    std::uint64_t sum[1];
    sums_from<Count>(above, sum);
    const std::uint64_t each = Count ? 1 : max(weight(draw_value(low)), std::uint64_t{1});
    const std::uint64_t rest = target > sum[0] ? target - sum[0] : 1;
    const std::uint64_t nth = (rest + each - 1) / each;
    int first = 0;
    int last = how_.among - 1;
    if (nth == 1) {  // as nearly always: logits are seldom equal
      first = last = first_with(low);
    }
    while (first < last) {  // the least id up to which there are `nth`
      const int middle = first + (last - first) / 2;
      std::uint64_t count[1] = {0};
      for (int v = static_cast<int>(threadIdx.x); v <= middle; v += draw_threads) {
        const std::uint64_t key = pick_key(z_[v], v);
        if (bits_of(key) == low && key >= floor_) ++count[0];
      }
      block_sums(count);
      if (count[0] >= nth) {
        last = middle;
      } else {
        first = middle + 1;
      }
    }
    return std::uint64_t{low} << 32 | (0xFFFFFFFFU - static_cast<std::uint32_t>(first));
  }
  /// The weight of all that is kept.
  [[nodiscard]] __device__ __forceinline__ std::uint64_t total() const {
    const std::uint32_t all[1] = {0U};
    std::uint64_t sum[1];
    sums_from<false>(all, sum);
    return sum[0];
  }

 private:
  /// The least id with such a logit.
  [[nodiscard]] __device__ __forceinline__ int first_with(std::uint32_t bits) const {
    __shared__ int least;
    __syncthreads();  // reads of an earlier call are complete
    if (threadIdx.x == 0) least = how_.among - 1;
    __syncthreads();
    for (int v = static_cast<int>(threadIdx.x); v < how_.among; v += draw_threads) {
      const std::uint64_t key = pick_key(z_[v], v);
      if (bits_of(key) != bits || key < floor_) continue;
      atomicMin(&least, v);
      break;
    }
    __syncthreads();
    return least;
  }
  [[nodiscard]] static __device__ __forceinline__ std::uint32_t bits_of(std::uint64_t key) {
    return static_cast<std::uint32_t>(key >> 32);
  }
  [[nodiscard]] __device__ __forceinline__ std::uint64_t weight(float z) const {
    const float w = expf((z - largest_) * inverse_);
    return w >= least_ ? __float2ull_rn(w * draw_one) : 0;
  }
  template <bool Count, int Bounds>
  __device__ __forceinline__ void sums_from(const std::uint32_t (&bound)[Bounds], std::uint64_t (&sum)[Bounds]) const {
#pragma unroll
    for (int i = 0; i < Bounds; ++i) sum[i] = 0;
    for (int v = static_cast<int>(threadIdx.x); v < how_.among; v += draw_threads) {
      const float z = z_[v];
      const std::uint64_t key = pick_key(z, v);
      const std::uint32_t bits = bits_of(key);
      if (bits < bound[0] || bits == 0 || key < floor_) continue;
      const std::uint64_t w = Count ? 1 : weight(z);
#pragma unroll
      for (int i = 0; i < Bounds; ++i) {
        if (bits >= bound[i]) sum[i] += w;
      }
    }
    block_sums(sum);
  }

  const float* z_;
  const DrawRow& how_;
  std::uint64_t most_ = 0;
  float largest_ = 0.0F;
  float inverse_ = 0.0F;
  std::uint64_t floor_ = 0;
  float least_ = 0.0F;
};

/// The share of a sum that must be reached: at least 1, at most all.
__device__ __forceinline__ std::uint64_t share_of_sum(double share, std::uint64_t all) {
  const double target = ceil(share * static_cast<double>(all));
  if (!(target > 1.0)) return 1;
  return target < static_cast<double>(all) ? static_cast<std::uint64_t>(target) : all;
}

static __global__ void __launch_bounds__(draw_threads)
    draw_kernel(int vocab, const float* __restrict__ logits, const DrawRow* __restrict__ rows,
                std::int32_t* __restrict__ ids) {
  device::let_next_start();
  device::wait_for_previous();
  const DrawRow how = rows[blockIdx.x];
  DrawnRow row(logits + std::int64_t{blockIdx.x} * vocab, how);
  std::uint64_t drawn = row.most();
  if (row.can_draw()) {
    if (how.top_k > 0 && how.top_k < how.among) row.keep_from(row.reach<true>(static_cast<std::uint64_t>(how.top_k)));
    if (how.top_p < 1.0F) {
      row.keep_from(row.reach<false>(share_of_sum(static_cast<double>(how.top_p), row.total())));
    }
    row.keep_weights(how.min_p);
    const double random = (static_cast<double>(how.random) + 0.5) * 0x1p-32;
    drawn = row.reach<false>(share_of_sum(random, row.total()));
  }
  if (threadIdx.x == 0) ids[blockIdx.x] = DrawnRow::id_of(drawn);
}

}  // namespace detail

QLORA_CUDA_LAUNCHER void draw(Context& context, int tokens, int vocab, const float* logits, const DrawRow* rows,
                              std::int32_t* ids) {
  const Phase phase(context, "elementwise");
  if (tokens <= 0) return;
  launch(context, true, "draw", detail::draw_kernel, dim3(static_cast<unsigned>(tokens)), dim3(detail::draw_threads), 0,
         vocab, logits, rows, ids);
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
