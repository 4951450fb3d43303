// qlora/cuda/context/context.cuh — one GPU as the launchers see it: stream, library handles, workspaces, fault word,
// profile. One host thread at a time uses a context; its current device must be the context's (use_device). Forks of a
// context serve other threads; what they share, counts of bytes and algorithms, is safe for all of them.
#pragma once

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "qlora/cuda/launch.hpp"
#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {

/// Throws Error (resource) with the CUDA runtime's message; `what` names the operation.
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    (void)cudaGetLastError();  // else the next check_launch of this thread would report it again
    throw Error(concat("CUDA: ", what, ": ", cudaGetErrorString(status)), ErrorKind::resource);
  }
}
/// After a launch: a bad launch configuration is reported at once, a failing kernel by the next call that waits.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }
inline void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw Error(concat("cuBLASLt: ", what, ": ", cublasLtGetStatusString(status)), ErrorKind::resource);
  }
}

struct GemmState;   // linear/gemm.cuh: the table of chosen algorithms
struct FusedState;  // attention/cudnn.hpp: the cuDNN handle and the built plans
std::shared_ptr<GemmState> new_gemm_state();

/// Where a kernel reports the first NaN or infinity.
struct Fault {
  std::uint32_t* word = nullptr;
  std::uint32_t place = 0;
};

/// Staging ring for small host data: written to `host`, copied to the same offset of `device`.
struct StagingRing {
  std::byte* host = nullptr;  ///< pinned
  std::byte* device = nullptr;
  std::int64_t at = 0;  ///< offset of the next piece
};
/// Double-buffered pinned memory: a host thread fills or empties one half while the copy engine works on the other.
struct TransferLane {
  std::byte* half[2] = {nullptr, nullptr};
  cudaEvent_t copied[2] = {nullptr, nullptr};
};

/// The executable graph of recorded launches, which begins with a copy of the staged arrays.
class Recording {
 public:
  struct Piece {
    const void* from = nullptr;  ///< the caller's array
    std::int64_t bytes = 0;
    std::int64_t at = 0;
  };

  cudaGraphExec_t graph = nullptr;
  std::byte* host = nullptr;      ///< pinned
  std::span<std::byte> device{};  ///< the caller's
  std::int64_t used = 0;
  std::vector<Piece> pieces;

  Recording() = default;
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  ~Recording() {
    if (graph != nullptr) (void)cudaGraphExecDestroy(graph);
    (void)cudaFreeHost(host);
  }
};

/// Profile marks: pairs of events on the stream. Events are created when first needed and reused.
struct Profile {
  struct Span {
    const char* name = nullptr;
    cudaEvent_t first = nullptr;
    cudaEvent_t last = nullptr;
  };
  bool on = false;
  bool open = false;  ///< inside a phase
  std::vector<Span> spans;
  std::size_t used = 0;  ///< spans recorded since the last report
};

/// Bytes of device memory of a context and its forks.
struct Counts {
  std::atomic<std::int64_t> allocated{0};  ///< by allocate()
  std::atomic<std::int64_t> overhead{0};   ///< own_bytes of all
};

inline constexpr int most_arrivals = 4096;

/// Created by create_context or fork_context, destroyed by destroy_context; launchers read the members.
class Context {
 public:
  ContextOptions options{};
  std::string name;  ///< name of the card
  cudaStream_t stream = nullptr;
  cublasLtHandle_t blas = nullptr;
  int sm_count = 0;
  int capability = 0;          ///< 90 for sm_90
  int max_shared_bytes = 0;    ///< per block, opt-in
  std::int64_t others = 0;     ///< bytes of the card in use by other processes when the first context was created
  std::int64_t own_bytes = 0;  ///< device memory of workspace, staging ring, fault word and arrivals
  std::shared_ptr<Counts> counts = std::make_shared<Counts>();
  std::uint32_t place = 0;
  RowOrder order = RowOrder::any;       ///< of linear layers and heads
  std::uint32_t* fault_word = nullptr;  ///< device memory
  /// device: counters of blocks that share a piece of work, most_arrivals of them; 0 between launches
  unsigned* arrivals = nullptr;
  std::byte* workspace = nullptr;  ///< shared by all libraries on this stream
  std::int64_t workspace_bytes = 0;
  StagingRing ring{};
  std::byte* lane_memory = nullptr;  ///< pinned; allocated while large tensors are loaded
  std::vector<TransferLane> lanes;
  std::byte* load_memory = nullptr;  ///< device: a tensor in its stored type, while loading; see weights/load.cuh
  std::int64_t load_bytes = 0;
  Profile profile{};
  std::unique_ptr<Recording> recording;  ///< while launches are recorded
  std::shared_ptr<GemmState> gemm;
  std::shared_ptr<FusedState> fused;

  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() {
    if (stream != nullptr) (void)cudaStreamSynchronize(stream);
    fused.reset();
    gemm.reset();
    close_lanes();
    for (const Profile::Span& span : profile.spans) {
      (void)cudaEventDestroy(span.first);
      (void)cudaEventDestroy(span.last);
    }
    if (blas != nullptr) (void)cublasLtDestroy(blas);
    (void)cudaFreeHost(ring.host);
    (void)cudaFree(ring.device);
    (void)cudaFree(workspace);
    (void)cudaFree(fault_word);
    (void)cudaFree(arrivals);
    (void)cudaFree(load_memory);
    if (stream != nullptr) (void)cudaStreamDestroy(stream);
    counts->overhead -= own_bytes;
  }

  void close_lanes() {
    for (const TransferLane& lane : lanes) {
      for (const cudaEvent_t event : lane.copied) {
        if (event != nullptr) (void)cudaEventDestroy(event);
      }
    }
    lanes.clear();
    (void)cudaFreeHost(lane_memory);
    lane_memory = nullptr;
  }

  [[nodiscard]] Fault fault() const { return {fault_word, place}; }

  /// Bytes of the card that this process uses, including the driver's context and loaded kernels.
  [[nodiscard]] std::int64_t taken() const {
    std::size_t free = 0;
    std::size_t total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for free memory");
    return static_cast<std::int64_t>(total - free) - others;
  }
  /// Allocates device memory outside the count; null where the card or the cap has no room.
  [[nodiscard]] std::byte* try_allocate(std::int64_t bytes) const {
    if (options.memory_cap > 0 && taken() + bytes > options.memory_cap) return nullptr;
    void* memory = nullptr;
    if (cudaMalloc(&memory, static_cast<std::size_t>(bytes > 0 ? bytes : 1)) != cudaSuccess) {
      (void)cudaGetLastError();  // failure is a valid result here; clear it for the next check_launch
      return nullptr;
    }
    return static_cast<std::byte*>(memory);
  }
};

/// What allow_shared asks of L1.
enum class Carveout : std::uint8_t { usual, most_shared };
/// Lets blocks of a kernel have up to `bytes` of shared memory, always the same for a kernel. Done once: the limit
/// belongs to the kernel on its device, and while it is set a launch by another thread fails ("invalid argument").
template <class... Params>
void allow_shared(const Context& context, void (*kernel)(Params...), int bytes, Carveout carveout, const char* name) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> done;  // kernels belong to the process, as this does
  const std::pair<const void*, int> entry{reinterpret_cast<const void*>(kernel), context.options.device};
  const std::lock_guard lock(mutex);
  if (done.contains(entry)) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), name);
  if (carveout == Carveout::most_shared) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
          name);
  }
  done.insert(entry);
}

/// Tokens up to which the kernel for few tokens is the fastest, half as many with adapters.
inline constexpr int most_few_tokens = 4;
/// Passes of that kernel up to which it is used where no other reads the codes.
inline constexpr int most_few_passes = 2;
/// Tokens up to which ops are for decoding, where launches take as long as kernels.
inline constexpr int most_several_tokens = 64;

/// Launches a kernel that, if `early`, may start while the previous one on the stream is still running: it must call
/// device::wait_for_previous before it reads what that one writes, and before it writes anything.
template <class... Params, class... Args>
void launch(const Context& context, bool early, const char* name, void (*kernel)(Params...), dim3 grid, dim3 threads,
            int shared_bytes, const Args&... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = context.stream;
  config.attrs = &attribute;
  config.numAttrs = early && context.capability >= 90 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), name);
}

/// Launches in the scope of this object belong to phase `name`. Costs two tests of a flag when profiling is off. A
/// nested phase counts as part of the outer one, so that times add up.
class Phase {
 public:
  Phase(Context& context, const char* name) {
    Profile& profile = context.profile;
    if (!profile.on || profile.open) return;
    if (profile.used == profile.spans.size()) {
      profile.spans.emplace_back();
      check(cudaEventCreate(&profile.spans.back().first), "making an event");
      check(cudaEventCreate(&profile.spans.back().last), "making an event");
    }
    profile.spans[profile.used].name = name;
    check(cudaEventRecord(profile.spans[profile.used].first, context.stream), "recording an event");
    profile.open = true;
    context_ = &context;
  }
  Phase(const Phase&) = delete;
  Phase& operator=(const Phase&) = delete;
  ~Phase() {
    if (context_ == nullptr) return;
    Profile& profile = context_->profile;
    (void)cudaEventRecord(profile.spans[profile.used].last, context_->stream);
    ++profile.used;
    profile.open = false;
  }

 private:
  Context* context_ = nullptr;
};

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
