// qlora/cuda/context/launchers.cuh — context creation and destruction, device memory, host-device copies, profile.
// Memory     the cap applies to the driver's count: total minus free, minus the memory that other processes used at the
//            start
// Copies     large copies run in lanes: a host thread copies a chunk between the caller's memory (possibly mapped and
//            not yet read from disk) and pinned memory while the copy engine moves another; threads take chunks in turn
// Staging    pieces are written to a ring; at its end the stream is waited for, so pinned bytes are not overwritten
//            before their copy is complete. Stream order protects the device's bytes
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <system_error>
#include <thread>

#include "qlora/cuda/context/context.cuh"
#include "qlora/gpu_storage.hpp"

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// NVIDIA's recommended cuBLAS workspace for Hopper (cuBLAS manual, cublasSetWorkspace).
inline constexpr std::int64_t blas_workspace_bytes = std::int64_t{32} << 20;
inline constexpr std::int64_t staging_bytes = std::int64_t{16} << 20;
inline constexpr std::int64_t staging_alignment = 256;  // the alignment of cudaMalloc
/// A chunk of 4 MiB takes the copy engine about 80 us at 50 GB/s, far longer than a launch. Eight threads of 3 to 6
/// GB/s each saturate it; mapped files get sixteen, since the first access to a page costs a page fault.
inline constexpr std::int64_t chunk_bytes = std::int64_t{4} << 20;
inline constexpr unsigned most_lanes = 16;
/// A new context with its loaded kernels takes 0.3 to 0.6 GB; if the card has more than `fresh_most` in use at that
/// time, the rest is attributed to other processes.
inline constexpr std::int64_t fresh_most = std::int64_t{1} << 30;
inline constexpr std::int64_t fresh_usual = std::int64_t{1} << 29;

inline void open_device(Context& context) {
  int count = 0;
  check(cudaGetDeviceCount(&count), "counting devices");
  const int device = context.options.device;
  QLORA_EXPECTS(device >= 0 && device < count, "device ", device, " was asked for, there are ", count);
  check(cudaSetDevice(device), "choosing the device");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "asking for the device's properties");
  context.name = properties.name;
  context.sm_count = properties.multiProcessorCount;
  context.capability = properties.major * 10 + properties.minor;
  context.max_shared_bytes = static_cast<int>(properties.sharedMemPerBlockOptin);
  if (properties.major < 8) {
    throw Error(concat(context.name, " has compute capability ", properties.major, ".", properties.minor,
                       "; bf16 tensor cores begin with 8.0"),
                ErrorKind::resource);
  }
  check(cudaFree(nullptr), "making the driver's context");
  const std::int64_t used = context.taken();
  context.others = used > fresh_most ? used - fresh_usual : 0;
}

/// Device memory that the context itself needs.
[[nodiscard]] inline std::byte* own_memory(Context& context, std::int64_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, static_cast<std::size_t>(bytes)), "allocating workspaces");
  context.own_bytes += bytes;
  context.counts->overhead += bytes;
  return static_cast<std::byte*>(memory);
}

/// Stream, handle, workspaces and staging ring.
inline void open_stream(Context& context) {
  check(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking), "making a stream");
  context.fault_word = reinterpret_cast<std::uint32_t*>(own_memory(context, staging_alignment));
  check(cudaMemsetAsync(context.fault_word, 0, staging_alignment, context.stream), "clearing the fault word");
  constexpr std::int64_t arrival_bytes = most_arrivals * std::int64_t{sizeof(unsigned)};
  context.arrivals = reinterpret_cast<unsigned*>(own_memory(context, arrival_bytes));
  check(cudaMemsetAsync(context.arrivals, 0, arrival_bytes, context.stream), "clearing the counters of arrivals");
  context.workspace = own_memory(context, blas_workspace_bytes);
  context.workspace_bytes = blas_workspace_bytes;
  context.ring.device = own_memory(context, staging_bytes);
  void* pinned = nullptr;
  check(cudaMallocHost(&pinned, static_cast<std::size_t>(staging_bytes)), "pinning host memory");
  context.ring.host = static_cast<std::byte*>(pinned);
  check(cublasLtCreate(&context.blas), "making a handle");
  check(cudaStreamSynchronize(context.stream), "making a context");
}

inline void open_lanes(Context& context) {
  if (!context.lanes.empty()) return;
  const unsigned count = std::clamp(std::thread::hardware_concurrency(), 1U, most_lanes);
  void* memory = nullptr;
  check(cudaMallocHost(&memory, static_cast<std::size_t>(chunk_bytes) * 2 * count), "pinning host memory");
  context.lane_memory = static_cast<std::byte*>(memory);
  context.lanes.resize(count);
  std::byte* at = context.lane_memory;
  for (TransferLane& lane : context.lanes) {
    for (int half = 0; half < 2; ++half, at += chunk_bytes) {
      lane.half[half] = at;
      check(cudaEventCreateWithFlags(&lane.copied[half], cudaEventDisableTiming), "making an event");
    }
  }
}

/// The chunks that the threads of one copy share.
struct Transfer {
  int device = 0;
  cudaStream_t stream = nullptr;
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  std::int64_t bytes = 0;
  bool up = false;  ///< host to device
  std::atomic<std::int64_t> next{0};
  std::atomic<cudaError_t> failure{cudaSuccess};
};

[[nodiscard]] inline cudaError_t move_chunk(const Transfer& work, std::int64_t first, std::byte* pinned,
                                            cudaEvent_t copied) {
  const auto bytes = static_cast<std::size_t>(std::min(chunk_bytes, work.bytes - first));
  cudaError_t status = cudaSuccess;
  if (work.up) {
    status = cudaEventSynchronize(copied);  // the last copy from this half; returns at once when there was none
    if (status != cudaSuccess) return status;
    std::memcpy(pinned, work.from + first, bytes);
    status = cudaMemcpyAsync(work.to + first, pinned, bytes, cudaMemcpyHostToDevice, work.stream);
    return status != cudaSuccess ? status : cudaEventRecord(copied, work.stream);
  }
  status = cudaMemcpyAsync(pinned, work.from + first, bytes, cudaMemcpyDeviceToHost, work.stream);
  if (status == cudaSuccess) status = cudaEventRecord(copied, work.stream);
  if (status == cudaSuccess) status = cudaEventSynchronize(copied);
  if (status == cudaSuccess) std::memcpy(work.to + first, pinned, bytes);
  return status;
}

inline void run_lane(Transfer& work, const TransferLane& lane) {
  cudaError_t status = cudaSetDevice(work.device);
  for (int half = 0; status == cudaSuccess && work.failure.load() == cudaSuccess; half ^= 1) {
    const std::int64_t first = work.next.fetch_add(chunk_bytes);
    if (first >= work.bytes) return;
    status = move_chunk(work, first, lane.half[half], lane.copied[half]);
  }
  if (status != cudaSuccess) work.failure.store(status);
}

inline void transfer(Context& context, const void* from, std::int64_t bytes, void* to, bool up) {
  QLORA_EXPECTS(bytes >= 0 && (bytes == 0 || (from != nullptr && to != nullptr)), "copying ", bytes, " bytes");
  if (bytes <= 2 * chunk_bytes) {  // below this size, starting threads costs more than the driver's own staging
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes),
                          up ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, context.stream),
          "copying");
    check(cudaStreamSynchronize(context.stream), "copying");
    return;
  }
  open_lanes(context);
  Transfer work;
  work.device = context.options.device;
  work.stream = context.stream;
  work.from = static_cast<const std::byte*>(from);
  work.to = static_cast<std::byte*>(to);
  work.bytes = bytes;
  work.up = up;
  const auto chunks = static_cast<std::size_t>((bytes + chunk_bytes - 1) / chunk_bytes);
  std::vector<std::thread> threads;
  threads.reserve(context.lanes.size());
  try {
    for (std::size_t i = 1; i < std::min(context.lanes.size(), chunks); ++i) {
      threads.emplace_back([&work, &lane = context.lanes[i]] { run_lane(work, lane); });
    }
  } catch (const std::system_error&) {
    // The system gives no more threads: the existing ones take all chunks.
  }
  run_lane(work, context.lanes[0]);
  for (std::thread& thread : threads) thread.join();
  check(work.failure.load(), "copying");
  check(cudaStreamSynchronize(context.stream), "copying");
}

/// Room for a staged array in a recording; replay fills it.
[[nodiscard]] inline const void* stage_recorded(Recording& recording, const void* from, std::int64_t bytes) {
  const std::int64_t at = recording.used;
  QLORA_EXPECTS(at + bytes <= static_cast<std::int64_t>(recording.device.size()), "a recording stages more than ",
                recording.device.size(), " bytes");
  recording.pieces.push_back({from, bytes, at});
  recording.used += (bytes + staged_alignment - 1) / staged_alignment * staged_alignment;
  return recording.device.data() + at;
}

}  // namespace detail

QLORA_CUDA_LAUNCHER int device_count(std::string* why) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    if (why != nullptr) *why = cudaGetErrorString(status);
    return 0;
  }
  if (count == 0 && why != nullptr) *why = "no CUDA device";
  return count;
}

QLORA_CUDA_LAUNCHER Card card_at(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "asking for the device's properties");
  return {properties.name, properties.major * 10 + properties.minor};
}

QLORA_CUDA_LAUNCHER Context* create_context(const ContextOptions& options) {
  auto context = std::make_unique<Context>();
  context->options = options;
  detail::open_device(*context);
  context->gemm = new_gemm_state();
  detail::open_stream(*context);
  return context.release();
}

QLORA_CUDA_LAUNCHER Context* fork_context(const Context& from) {
  use_device(from);
  auto context = std::make_unique<Context>();
  context->options = from.options;
  context->name = from.name;
  context->sm_count = from.sm_count;
  context->capability = from.capability;
  context->max_shared_bytes = from.max_shared_bytes;
  context->others = from.others;
  context->counts = from.counts;
  context->gemm = from.gemm;
  detail::open_stream(*context);
  return context.release();
}

QLORA_CUDA_LAUNCHER void use_device(const Context& context) {
  check(cudaSetDevice(context.options.device), "choosing the device");
}

QLORA_CUDA_LAUNCHER void destroy_context(Context* context) { delete context; }

QLORA_CUDA_LAUNCHER DeviceInfo device_info(const Context& context) {
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for free memory");
  DeviceInfo info;
  info.name = context.name;
  info.sm_count = context.sm_count;
  info.compute_capability = context.capability;
  info.total = static_cast<std::int64_t>(total);
  info.driver_used = static_cast<std::int64_t>(total - free);
  info.allocated = context.counts->allocated;
  info.workspace = context.counts->overhead + fused_workspace(context);
  return info;
}

QLORA_CUDA_LAUNCHER std::byte* allocate(Context& context, std::int64_t bytes) {
  QLORA_EXPECTS(bytes >= 0, "allocating ", bytes, " bytes");
  std::byte* memory = context.try_allocate(bytes);
  if (memory == nullptr) {
    const std::int64_t cap = context.options.memory_cap;
    const DeviceInfo info = device_info(context);
    throw Error(
        concat("no room on ", context.name, ": ", bytes, " bytes are needed in one block; ", context.taken(),
               " are taken by this process, ", info.driver_used, " of ", info.total, " in all",
               cap > 0 ? concat(", the cap is ", cap) : "", "; a smaller batch or more recomputation needs less"),
        ErrorKind::resource);
  }
  context.counts->allocated += bytes;
  zero(context, memory, bytes);
  synchronize(context);
  return memory;
}

QLORA_CUDA_LAUNCHER void release(Context& context, std::byte* memory, std::int64_t bytes) {
  if (memory == nullptr) return;
  context.counts->allocated -= bytes;
  (void)cudaStreamSynchronize(context.stream);
  (void)cudaFree(memory);  // called from destructors; the next call reports a pending error
}

QLORA_CUDA_LAUNCHER void upload(Context& context, const void* from, std::int64_t bytes, void* to) {
  detail::transfer(context, from, bytes, to, true);
}
QLORA_CUDA_LAUNCHER void download(Context& context, const void* from, std::int64_t bytes, void* to) {
  detail::transfer(context, from, bytes, to, false);
}

QLORA_CUDA_LAUNCHER void zero(Context& context, void* data, std::int64_t bytes) {
  check(cudaMemsetAsync(data, 0, static_cast<std::size_t>(bytes), context.stream), "clearing memory");
}
QLORA_CUDA_LAUNCHER void copy(Context& context, const void* from, std::int64_t bytes, void* to) {
  check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, context.stream),
        "copying memory");
}
QLORA_CUDA_LAUNCHER void synchronize(Context& context) {
  check(cudaStreamSynchronize(context.stream), "waiting for the stream");
}

QLORA_CUDA_LAUNCHER const void* stage(Context& context, const void* from, std::int64_t bytes) {
  QLORA_EXPECTS(bytes >= 0 && bytes <= detail::staging_bytes, "staging ", bytes, " bytes; the ring has ",
                detail::staging_bytes);
  if (context.recording != nullptr) return detail::stage_recorded(*context.recording, from, bytes);
  StagingRing& ring = context.ring;
  if (ring.at + bytes > detail::staging_bytes) {
    synchronize(context);
    ring.at = 0;
  }
  std::byte* host = ring.host + ring.at;
  std::byte* device = ring.device + ring.at;
  ring.at += (bytes + detail::staging_alignment - 1) / detail::staging_alignment * detail::staging_alignment;
  if (bytes == 0) return device;
  std::memcpy(host, from, static_cast<std::size_t>(bytes));
  check(cudaMemcpyAsync(device, host, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, context.stream),
        "staging");
  return device;
}

QLORA_CUDA_LAUNCHER bool may_record(const Context& context) { return !context.profile.on; }
QLORA_CUDA_LAUNCHER void begin_recording(Context& context, std::span<std::byte> staged) {
  QLORA_EXPECTS(may_record(context) && context.recording == nullptr, "launches are recorded or measured already");
  synchronize(context);
  auto made = std::make_unique<Recording>();
  void* memory = nullptr;
  check(cudaMallocHost(&memory, staged.size()), "pinning host memory");
  made->host = static_cast<std::byte*>(memory);
  made->device = staged;
  // relaxed: another thread of the process may work on another context meanwhile
  check(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeRelaxed), "recording launches");
  context.recording = std::move(made);
  // all of it, since how much is staged is not known yet; it is a few KB
  check(cudaMemcpyAsync(staged.data(), memory, staged.size(), cudaMemcpyHostToDevice, context.stream), "staging");
}
QLORA_CUDA_LAUNCHER void abandon_recording(Context& context) {
  context.recording.reset();
  cudaGraph_t graph = nullptr;
  (void)cudaStreamEndCapture(context.stream, &graph);
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  (void)cudaGetLastError();
}
QLORA_CUDA_LAUNCHER Recording* end_recording(Context& context) {
  std::unique_ptr<Recording> made = std::move(context.recording);
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(context.stream, &graph), "recording launches");
  const cudaError_t status = cudaGraphInstantiate(&made->graph, graph, 0);
  (void)cudaGraphDestroy(graph);
  check(status, "recording launches");
  return made.release();
}
QLORA_CUDA_LAUNCHER void replay(Context& context, Recording& recording) {
  synchronize(context);  // the copy of the last replay has left the pinned memory
  for (const Recording::Piece& piece : recording.pieces) {
    if (piece.bytes > 0) std::memcpy(recording.host + piece.at, piece.from, static_cast<std::size_t>(piece.bytes));
  }
  check(cudaGraphLaunch(recording.graph, context.stream), "repeating launches");
}
QLORA_CUDA_LAUNCHER void destroy_recording(Recording* recording) { delete recording; }

QLORA_CUDA_LAUNCHER void set_place(Context& context, std::uint32_t place) { context.place = place; }
QLORA_CUDA_LAUNCHER void set_order(Context& context, RowOrder order) { context.order = order; }

QLORA_CUDA_LAUNCHER void set_profile(Context& context, bool on) {
  context.profile.on = on;
  context.profile.used = 0;
}

QLORA_CUDA_LAUNCHER std::vector<std::pair<std::string, double>> take_profile(Context& context) {
  std::vector<std::pair<std::string, double>> phases;  // in order of first appearance
  synchronize(context);
  for (std::size_t i = 0; i < context.profile.used; ++i) {
    const Profile::Span& span = context.profile.spans[i];
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, span.first, span.last), "reading an event");
    const auto same = [&](const auto& phase) { return phase.first == span.name; };
    const auto found = std::find_if(phases.begin(), phases.end(), same);
    if (found == phases.end()) {
      phases.emplace_back(span.name, ms);
    } else {
      found->second += ms;
    }
  }
  context.profile.used = 0;
  return phases;
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora
