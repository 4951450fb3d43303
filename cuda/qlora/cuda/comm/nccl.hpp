// qlora/cuda/comm/nccl.hpp — the Comm of processes with a GPU each, where NCCL was built in (QLORA_WITH_NCCL).
// Job        pieces of device memory between ranks, as grouped sends and receives on the context's stream. NCCL adds
//            nothing up here: its sums have an order that depends on the number of ranks (train/rank_sums.hpp)
// Meeting    ranks that have the same id find each other: NCCL's own rendezvous at the address in it
// Waiting    no call blocks: a waiting caller polls the stream and NCCL's asynchronous errors, and asks the watch. On a
//            failure the communicator is aborted first, which ends kernels that wait for a rank that is gone
// Needs      NCCL 2.14, the first with calls that do not block
// Reference  dist/mpi.hpp; tests/dist/ranks.sh, which `tests/gpu.sh multi` runs on GPUs
// Plain C++: g++ compiles this header in one translation unit of the library.
#pragma once

#include "qlora/comm.hpp"
#include "qlora/comm_wait.hpp"
#include "qlora/cuda/context/context.cuh"
#include "qlora/error.hpp"

#ifdef QLORA_WITH_NCCL

#include <nccl.h>

#include <cstdlib>
#include <cstring>
#include <exception>

namespace qlora {
inline namespace v0 {
namespace cuda {
namespace detail {

/// One rank's end of a communicator.
class NcclComm final : public Comm {
 public:
  NcclComm(std::shared_ptr<Context> context, int rank, int size, const std::string& id, Watch watch)
      : Comm(rank, size), context_(std::move(context)) {
    set_watch(std::move(watch));
    ncclUniqueId unique{};
    QLORA_EXPECTS(id.size() == sizeof unique.internal, "an id of ", id.size(), " bytes");
    std::memcpy(unique.internal, id.data(), id.size());
    cuda::check(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "making an event");
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    try {
      begin(ncclCommInitRankConfig(&comm_, size, unique, rank, &config), "meeting the other ranks");
      const auto bytes = static_cast<std::size_t>(chunk) * static_cast<std::size_t>(size);
      cuda::check(cudaMalloc(&staging_, bytes), "allocating memory for messages");
      context_->own_bytes += static_cast<std::int64_t>(bytes);
      context_->counts->overhead += static_cast<std::int64_t>(bytes);
      barrier();  // takes the memory of the connections now, so that what is planned later knows of it
    } catch (...) {
      abort();  // parting in order would wait for the others
      close();
      throw;
    }
  }
  ~NcclComm() override {
    if (std::uncaught_exceptions() > 0) abort();
    close();
  }

  void exchange(const std::vector<Piece>& pieces) override {
    expect_open();
    guarded([&] {
      ncclResult_t result = ncclGroupStart();
      for (const Piece& piece : pieces) {
        if (result == ncclSuccess && !piece.send.empty()) {
          result = ncclSend(piece.send.data(), piece.send.size(), ncclInt8, piece.peer, comm_, context_->stream);
        }
        if (result == ncclSuccess && !piece.receive.empty()) {
          result = ncclRecv(piece.receive.data(), piece.receive.size(), ncclInt8, piece.peer, comm_, context_->stream);
        }
      }
      const ncclResult_t end = ncclGroupEnd();
      begin(result == ncclSuccess || result == ncclInProgress ? end : result, "sending to other ranks");
    });
  }
  void wait() override {
    expect_open();
    cuda::check(cudaEventRecord(done_, context_->stream), "recording an event");
    guarded([&] {
      qlora::detail::wait_for(watch(), [&] {
        const cudaError_t status = cudaEventQuery(done_);
        if (status == cudaErrorNotReady) {
          (void)settled("a message");
          return false;
        }
        cuda::check(status, "waiting for other ranks");
        return true;
      });
    });
  }
  void gather_bytes(const void* mine, std::size_t each, void* all) override {
    auto* const device = static_cast<std::byte*>(staging_);
    for (std::size_t at = 0; at < each; at += chunk) {
      const std::size_t bytes = std::min(chunk, each - at);
      const auto part = [&](int rank) { return std::span(device + static_cast<std::size_t>(rank) * chunk, bytes); };
      cuda::check(cudaMemcpyAsync(part(rank()).data(), static_cast<const std::byte*>(mine) + at, bytes,
                                  cudaMemcpyHostToDevice, context_->stream),
                  "copying a message");
      pieces_.clear();
      for (int peer = 0; peer < size(); ++peer) {
        if (peer != rank()) pieces_.push_back({peer, part(rank()), part(peer)});
      }
      exchange(pieces_);
      wait();
      for (int peer = 0; peer < size(); ++peer) {
        cuda::check(cudaMemcpy(static_cast<std::byte*>(all) + static_cast<std::size_t>(peer) * each + at,
                               part(peer).data(), bytes, cudaMemcpyDeviceToHost),
                    "copying a message");
      }
    }
  }
  void abort() noexcept override {
    if (comm_ != nullptr) (void)ncclCommAbort(comm_);
    comm_ = nullptr;
  }

 private:
  static constexpr std::size_t chunk = std::size_t{64} << 10;  ///< bytes of a value of the host that are sent at a time

  void expect_open() const {
    if (comm_ == nullptr) throw Error("the ranks have parted after an error", ErrorKind::resource);
  }
  [[noreturn]] void fail(ncclResult_t result, const char* what) const {
    throw Error(concat("NCCL: ", what, ": ", ncclGetErrorString(result), "; ", ncclGetLastError(comm_),
                       "; NCCL_DEBUG=WARN says more"),
                ErrorKind::resource);
  }
  /// Whether nothing is under way any more. Throws Error for what has failed meanwhile.
  [[nodiscard]] bool settled(const char* what) const {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    if (asked != ncclSuccess) fail(asked, what);
    if (state != ncclSuccess && state != ncclInProgress) fail(state, what);
    return state == ncclSuccess;
  }
  /// Waits until a call that may go on in the background is done.
  void begin(ncclResult_t result, const char* what) const {
    if (result != ncclSuccess && result != ncclInProgress) fail(result, what);
    qlora::detail::wait_for(watch(), [&] { return settled(what); });
  }
  template <class Call>
  void guarded(Call&& call) {
    try {
      call();
    } catch (...) {
      abort();
      throw;
    }
  }
  void close() noexcept {
    if (comm_ != nullptr) {
      try {
        begin(ncclCommFinalize(comm_), "parting");
        (void)ncclCommDestroy(comm_);
        comm_ = nullptr;
      } catch (...) {
        abort();
      }
    }
    if (staging_ != nullptr) {
      const std::int64_t bytes = static_cast<std::int64_t>(chunk) * size();
      context_->own_bytes -= bytes;
      context_->counts->overhead -= bytes;
      (void)cudaFree(staging_);
    }
    if (done_ != nullptr) (void)cudaEventDestroy(done_);
    staging_ = nullptr;
    done_ = nullptr;
  }

  std::shared_ptr<Context> context_;
  ncclComm_t comm_ = nullptr;
  cudaEvent_t done_ = nullptr;
  void* staging_ = nullptr;  ///< device: a chunk for each rank
  std::vector<Piece> pieces_;
};

}  // namespace detail

/// The bytes by which ranks find each other. With NCCL_COMM_ID=host:port in the environment every rank makes the same;
/// without, one makes them and gives them to the others.
QLORA_CUDA_LAUNCHER std::string nccl_id() {
  ncclUniqueId id{};
  const ncclResult_t result = ncclGetUniqueId(&id);
  if (result != ncclSuccess) {
    throw Error(concat("NCCL: making an id: ", ncclGetErrorString(result), "; NCCL_DEBUG=WARN says more"),
                ErrorKind::resource);
  }
  return {id.internal, sizeof id.internal};
}
QLORA_CUDA_LAUNCHER std::unique_ptr<Comm> nccl_comm(std::shared_ptr<Context> context, int rank, int size,
                                                    const std::string& id, Comm::Watch watch) {
  use_device(*context);
  return std::make_unique<detail::NcclComm>(std::move(context), rank, size, id, std::move(watch));
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora

#else

namespace qlora {
inline namespace v0 {
namespace cuda {

QLORA_CUDA_LAUNCHER std::string nccl_id() {
  throw Error("this program was built without NCCL, so it trains on one GPU; build it where nccl.h and libnccl are",
              ErrorKind::resource);
}
QLORA_CUDA_LAUNCHER std::unique_ptr<Comm> nccl_comm(std::shared_ptr<Context>, int, int, const std::string&,
                                                    Comm::Watch) {
  (void)nccl_id();
  return nullptr;
}

}  // namespace cuda
}  // namespace v0
}  // namespace qlora

#endif
