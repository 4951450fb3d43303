// qlora/cuda/weights/merge.cuh — merges adapters into weights: the GPU lanes of io/merge.hpp.
// Math       out = W + s (sum over r of B[n,r] A[r,k]), rounded to the type of out
// Shapes     w (N,K) of f32, f16 or bf16, a piece of whole rows at a time; a (R,K), b (N,R) float; out (N,K) f16,
//            bf16 or f32
// Writes     out with =; *bad = 1 when a value is not finite in the type of out
// Split      a block computes 64 rows x 128 columns, a thread 8 x 4 of them, neighbouring threads neighbouring columns.
//            On the host each lane is one thread with pinned memory and a stream: while it copies from the mapped file
//            or to the output file, the streams of the others copy and compute
// Needs      any N, K and R; element alignment only
// Numbers    products and sums are rounded separately (no fused multiply-add), over r in order: the bits of the CPU
//            merge where that is compiled without fused multiply-add; elsewhere a sum differs by at most R float
//            roundings
// Cost       4 R FLOP per element, 1.7 TFLOP for 13B at rank 64, about 0.1 s; the bus and the files take seconds
// Reference  HostMergeLane in cpu/merge.hpp; tests/cuda/cuda_merge_test.cpp
#pragma once

#include <cstring>
#include <memory>

#include "qlora/cuda/arch/primitives.cuh"
#include "qlora/merging.hpp"
#include "qlora/tensor.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Sizes of the merge kernel's tiles.
struct MergeTile {
  static constexpr int threads = 256;
  static constexpr int rows = 64;
  static constexpr int cols = 128;
  static constexpr int rank = 16;                          ///< ranks in shared memory at a time
  static constexpr int row_count = rows / (threads / 32);  ///< per thread
  static constexpr int col_count = cols / 32;
};
static_assert(MergeTile::row_count * (MergeTile::threads / 32) == MergeTile::rows, "every row has its warp");

__device__ __forceinline__ float merge_float(float value) { return value; }
__device__ __forceinline__ float merge_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float merge_float(__nv_bfloat16 value) { return __bfloat162float(value); }

/// Writes a value to nearest even. The result is whether it is finite in that type.
__device__ __forceinline__ bool merge_store(float value, float* out) {
  *out = value;
  return isfinite(value);
}
__device__ __forceinline__ bool merge_store(float value, __half* out) {
  const __half stored = __float2half_rn(value);
  *out = stored;
  return (__half_as_ushort(stored) & 0x7c00U) != 0x7c00U;
}
__device__ __forceinline__ bool merge_store(float value, __nv_bfloat16* out) {
  const __nv_bfloat16 stored = __float2bfloat16_rn(value);
  *out = stored;
  return (__bfloat16_as_ushort(stored) & 0x7f80U) != 0x7f80U;
}

/// A tile of A (rank, cols) and of B, transposed (rank, rows); zeros outside the matrices.
static __device__ __forceinline__ void load_adapter_tile(int rows, int cols, int rank, int first_rank, int row0,
                                                         int col0, const float* __restrict__ a,
                                                         const float* __restrict__ b,
                                                         float (&as)[MergeTile::rank][MergeTile::cols],
                                                         float (&bs)[MergeTile::rank][MergeTile::rows + 4]) {
  for (int i = static_cast<int>(threadIdx.x); i < MergeTile::rank * MergeTile::cols; i += MergeTile::threads) {
    const int r = i / MergeTile::cols;
    const int c = i % MergeTile::cols;
    const bool inside = first_rank + r < rank && col0 + c < cols;
    as[r][c] = inside ? a[std::int64_t{first_rank + r} * cols + col0 + c] : 0.0F;
  }
  for (int i = static_cast<int>(threadIdx.x); i < MergeTile::rank * MergeTile::rows; i += MergeTile::threads) {
    const int r = i % MergeTile::rank;
    const int n = i / MergeTile::rank;
    const bool inside = first_rank + r < rank && row0 + n < rows;
    bs[r][n] = inside ? b[std::int64_t{row0 + n} * rank + first_rank + r] : 0.0F;
  }
}

template <class From, class To>
static __global__ void __launch_bounds__(MergeTile::threads)
    merge_kernel(int rows, int cols, int rank, float scale, const From* __restrict__ w, const float* __restrict__ a,
                 const float* __restrict__ b, To* __restrict__ out, std::uint32_t* bad) {
  __shared__ float as[MergeTile::rank][MergeTile::cols];
  __shared__ float bs[MergeTile::rank][MergeTile::rows + 4];  // + 4: fewer threads write to the same bank
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = static_cast<int>(threadIdx.x) / 32 * MergeTile::row_count;  // inside the tile
  const int col0 = static_cast<int>(blockIdx.x) * MergeTile::cols;
  const int row0 = static_cast<int>(blockIdx.y) * MergeTile::rows;
  float sum[MergeTile::row_count][MergeTile::col_count] = {};
  for (int first_rank = 0; first_rank < rank; first_rank += MergeTile::rank) {
    __syncthreads();  // reads of the previous tile are complete
    load_adapter_tile(rows, cols, rank, first_rank, row0, col0, a, b, as, bs);
    __syncthreads();
#pragma unroll 4
    for (int r = 0; r < MergeTile::rank; ++r) {  // past the rank are zeros, which do not change sums
      float row[MergeTile::col_count];
#pragma unroll
      for (int j = 0; j < MergeTile::col_count; ++j) row[j] = as[r][lane + 32 * j];
#pragma unroll
      for (int i = 0; i < MergeTile::row_count; ++i) {
        const float factor = bs[r][first_row + i];
#pragma unroll
        for (int j = 0; j < MergeTile::col_count; ++j) sum[i][j] = __fadd_rn(sum[i][j], __fmul_rn(factor, row[j]));
      }
    }
  }
  bool finite = true;
#pragma unroll
  for (int i = 0; i < MergeTile::row_count; ++i) {
#pragma unroll
    for (int j = 0; j < MergeTile::col_count; ++j) {
      const int row = row0 + first_row + i;
      const int col = col0 + lane + 32 * j;
      if (row >= rows || col >= cols) continue;
      const std::int64_t at = std::int64_t{row} * cols + col;
      float value = merge_float(w[at]);
      if (rank > 0) value = __fadd_rn(value, __fmul_rn(scale, sum[i][j]));
      if (!merge_store(value, out + at)) finite = false;
    }
  }
  if (!finite) *bad = 1;  // all writers write the same value
}

/// Pinned and device memory of one lane: the stored piece, its result, and after that the flag.
class DeviceMergeLane final : public MergeLane {
 public:
  explicit DeviceMergeLane(const Context& context) : device_(context.options.device) {
    try {
      check(cudaSetDevice(device_), "choosing the device");
      check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
      check(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming | cudaEventBlockingSync), "making an event");
      check(cudaMallocHost(&pinned_in_, in_bytes), "pinning host memory");
      check(cudaMallocHost(&pinned_out_, out_bytes + flag_bytes), "pinning host memory");
      check(cudaMalloc(&in_, in_bytes), "allocating memory to merge in");
      check(cudaMalloc(&out_, out_bytes + flag_bytes), "allocating memory to merge in");
    } catch (...) {
      close();
      throw;
    }
  }
  ~DeviceMergeLane() override { close(); }

  void begin(const MergeAdapter& adapter) override {
    QLORA_EXPECTS(adapter.cols > 0 && adapter.cols <= merge_piece, "rows of ", adapter.cols, " elements");
    QLORA_EXPECTS(adapter.rank >= 0 && adapter.a.size() >= a_count(adapter) &&
                      (adapter.rank == 0 || adapter.b.size() % static_cast<std::size_t>(adapter.rank) == 0),
                  "an adapter of rank ", adapter.rank, " with ", adapter.a.size(), " and ", adapter.b.size(),
                  " values");
    check(cudaSetDevice(device_), "choosing the device");  // for the calling thread
    adapter_ = adapter;
    if (adapter.rank == 0) return;
    const std::size_t a_bytes = adapter.a.size_bytes();
    const std::size_t b_bytes = adapter.b.size_bytes();
    if (a_bytes + b_bytes > adapter_bytes_) {
      (void)cudaFree(a_);  // the lane's stream is idle between calls
      a_ = nullptr;
      adapter_bytes_ = 0;
      check(cudaMalloc(&a_, a_bytes + b_bytes), "allocating memory to merge in");
      adapter_bytes_ = a_bytes + b_bytes;
    }
    to_device(a_, adapter.a.data(), a_bytes);
    to_device(static_cast<std::byte*>(a_) + a_bytes, adapter.b.data(), b_bytes);
  }

  [[nodiscard]] std::span<const std::byte> merge(DType dtype, std::span<const std::byte> w, int first,
                                                 int rows) override {
    const std::int64_t elements = std::int64_t{rows} * adapter_.cols;
    QLORA_EXPECTS(
        rows > 0 && elements <= merge_piece && w.size() == static_cast<std::size_t>(elements) * size_of(dtype), rows,
        " rows of ", adapter_.cols, " elements in ", w.size(), " bytes");
    QLORA_EXPECTS(
        first >= 0 && (adapter_.rank == 0 ||
                       (std::size_t(first) + std::size_t(rows)) * std::size_t(adapter_.rank) <= adapter_.b.size()),
        "rows ", first, " to ", first + rows, " of an adapter with ", adapter_.b.size(), " values in B");
    std::size_t bytes = w.size();
    if (dtype == DType::f64) {  // as the CPU reads it
      bytes = static_cast<std::size_t>(elements) * sizeof(float);
      read_floats({dtype, {elements}, w}, 0, {static_cast<float*>(pinned_in_), static_cast<std::size_t>(elements)});
      dtype = DType::f32;
    } else {
      std::memcpy(pinned_in_, w.data(), bytes);
    }
    check(cudaMemcpyAsync(in_, pinned_in_, bytes, cudaMemcpyHostToDevice, stream_), "copying a piece to merge");
    check(cudaMemsetAsync(flag(out_), 0, flag_bytes, stream_), "merging");
    switch (dtype) {
      case DType::f32:
        launch<float>(first, rows);
        break;
      case DType::f16:
        launch<__half>(first, rows);
        break;
      case DType::bf16:
        launch<__nv_bfloat16>(first, rows);
        break;
      default:
        QLORA_EXPECTS(false, "weights to merge are floating-point numbers, these are ", name_of(dtype));
    }
    const std::size_t made = static_cast<std::size_t>(elements) * size_of(adapter_.to);
    check(cudaMemcpyAsync(pinned_out_, out_, made, cudaMemcpyDeviceToHost, stream_), "copying a merged piece");
    check(cudaMemcpyAsync(flag(pinned_out_), flag(out_), flag_bytes, cudaMemcpyDeviceToHost, stream_), "merging");
    wait();
    if (*flag(pinned_out_) != 0) return {};
    return {static_cast<const std::byte*>(pinned_out_), made};
  }

 private:
  static constexpr std::size_t in_bytes = merge_piece * sizeof(float);
  static constexpr std::size_t out_bytes = merge_piece * sizeof(float);
  static constexpr std::size_t flag_bytes = sizeof(std::uint32_t);

  [[nodiscard]] static std::uint32_t* flag(void* out) {
    return reinterpret_cast<std::uint32_t*>(static_cast<std::byte*>(out) + out_bytes);
  }
  [[nodiscard]] static std::size_t a_count(const MergeAdapter& adapter) {
    return static_cast<std::size_t>(adapter.rank) * static_cast<std::size_t>(adapter.cols);
  }

  /// Copies through the pinned buffer, which is free between calls.
  void to_device(void* to, const void* from, std::size_t bytes) {
    for (std::size_t done = 0; done < bytes; done += in_bytes) {
      const std::size_t here = bytes - done < in_bytes ? bytes - done : in_bytes;
      std::memcpy(pinned_in_, static_cast<const std::byte*>(from) + done, here);
      check(cudaMemcpyAsync(static_cast<std::byte*>(to) + done, pinned_in_, here, cudaMemcpyHostToDevice, stream_),
            "copying an adapter");
      wait();
    }
  }

  template <class From>
  void launch(int first, int rows) {
    switch (adapter_.to) {
      case DType::f16:
        return launch_to<From, __half>(first, rows);
      case DType::bf16:
        return launch_to<From, __nv_bfloat16>(first, rows);
      case DType::f32:
        return launch_to<From, float>(first, rows);
      default:
        QLORA_EXPECTS(false, "merged weights are f16, bf16 or f32, not ", name_of(adapter_.to));
    }
  }
  template <class From, class To>
  void launch_to(int first, int rows) {
    const auto tiles = [](int count, int tile) { return static_cast<unsigned>((count + tile - 1) / tile); };
    const dim3 grid(tiles(adapter_.cols, MergeTile::cols), tiles(rows, MergeTile::rows));
    const auto* a = static_cast<const float*>(a_);
    const float* b = nullptr;
    if (adapter_.rank > 0) b = a + adapter_.a.size() + std::int64_t{first} * adapter_.rank;
    merge_kernel<<<grid, MergeTile::threads, 0, stream_>>>(rows, adapter_.cols, adapter_.rank, adapter_.scale,
                                                           static_cast<const From*>(in_), a, b, static_cast<To*>(out_),
                                                           flag(out_));
    check_launch("merge");
  }

  /// Sleeps while it waits, to leave the processors to the lanes that copy.
  void wait() {
    check(cudaEventRecord(done_, stream_), "merging");
    check(cudaEventSynchronize(done_), "merging");
  }

  void close() {
    (void)cudaSetDevice(device_);
    if (stream_ != nullptr) (void)cudaStreamSynchronize(stream_);
    (void)cudaFree(in_);
    (void)cudaFree(out_);
    (void)cudaFree(a_);
    (void)cudaFreeHost(pinned_in_);
    (void)cudaFreeHost(pinned_out_);
    if (done_ != nullptr) (void)cudaEventDestroy(done_);
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  }

  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t done_ = nullptr;
  void* pinned_in_ = nullptr;
  void* pinned_out_ = nullptr;
  void* in_ = nullptr;
  void* out_ = nullptr;
  void* a_ = nullptr;  ///< A, followed by B
  std::size_t adapter_bytes_ = 0;
  MergeAdapter adapter_;
};

}  // namespace detail

QLORA_CUDA_LAUNCHER std::unique_ptr<MergeLane> merge_lane(Context& context) {
  return std::make_unique<detail::DeviceMergeLane>(context);
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
