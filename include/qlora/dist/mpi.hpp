// qlora/dist/mpi.hpp — the Comm of processes that mpirun or srun started: MPI messages between their host memory.
// MPI begins with the first Comm of a process and ends with the process. After a failure it is not ended, since that
// would wait for a rank that is gone.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "qlora/comm.hpp"
#include "qlora/comm_wait.hpp"
#include "qlora/dist/launch.hpp"

namespace qlora {
inline namespace v0 {
namespace dist {
namespace detail {

inline void check_mpi(int status, const char* what) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  (void)MPI_Error_string(status, text, &length);
  throw Error(concat("MPI: ", what, ": ", static_cast<const char*>(text)), ErrorKind::resource);
}

/// MPI between its first use and the end of the process.
class MpiProcess {
 public:
  [[nodiscard]] static MpiProcess& get() {
    static MpiProcess process;
    return process;
  }
  MpiProcess(const MpiProcess&) = delete;
  MpiProcess& operator=(const MpiProcess&) = delete;
  ~MpiProcess() {
    int ended = 0;
    (void)MPI_Finalized(&ended);
    if (ours_ && !failed_ && ended == 0) (void)MPI_Finalize();
  }
  void fail() noexcept { failed_ = true; }

 private:
  MpiProcess() {
    int begun = 0;
    check_mpi(MPI_Initialized(&begun), "asking for its state");
    if (begun != 0) return;
    int provided = 0;
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "beginning");
    ours_ = true;
  }

  bool ours_ = false;
  bool failed_ = false;
};

}  // namespace detail

/// Processes that share an MPI_COMM_WORLD, each with a backend in host memory. Used by one thread at a time.
class MpiComm final : public Comm {
 public:
  /// Throws Error (usage) when MPI knows of another number of processes than `launch` says, as where another launcher
  /// than MPI's started them, and (resource) when it cannot begin.
  [[nodiscard]] static std::unique_ptr<MpiComm> open(const Launch& launch) {
    (void)detail::MpiProcess::get();
    int rank = 0;
    int size = 0;
    detail::check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "asking for the rank");
    detail::check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size), "asking for the size");
    if (size != launch.size || rank != launch.rank) {
      throw Error(concat(name_of(launch.launcher), " says that this is rank ", launch.rank, " of ", launch.size,
                         ", and MPI that it is rank ", rank, " of ", size,
                         "; processes that train on the CPU are started by mpirun"),
                  ErrorKind::usage);
    }
    return std::unique_ptr<MpiComm>(new MpiComm(rank, size));
  }

  ~MpiComm() override {
    if (std::uncaught_exceptions() > 0) abort();
    if (!failed_) (void)MPI_Comm_free(&world_);
  }

  void exchange(const std::vector<Piece>& pieces) override {
    std::vector<MPI_Request> requests;
    requests.reserve(2 * pieces.size());
    for (const Piece& piece : pieces) {
      for_parts(piece.receive.size(), [&](std::size_t at, int count, int tag) {
        requests.emplace_back();
        check(MPI_Irecv(piece.receive.data() + at, count, MPI_BYTE, piece.peer, tag, world_, &requests.back()));
      });
    }
    for (const Piece& piece : pieces) {
      for_parts(piece.send.size(), [&](std::size_t at, int count, int tag) {
        requests.emplace_back();
        check(MPI_Isend(piece.send.data() + at, count, MPI_BYTE, piece.peer, tag, world_, &requests.back()));
      });
    }
    qlora::detail::wait_for(watch(), [&] {
      int done = 0;
      check(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE));
      return done != 0;
    });
  }
  void wait() override {}
  void gather_bytes(const void* mine, std::size_t bytes, void* all) override {
    QLORA_EXPECTS(bytes <= largest / static_cast<std::size_t>(size()), bytes, " bytes of each of ", size(), " ranks");
    const int count = static_cast<int>(bytes);
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Iallgather(mine, count, MPI_BYTE, all, count, MPI_BYTE, world_, &request));
    qlora::detail::wait_for(watch(), [&] {
      int done = 0;
      check(MPI_Test(&request, &done, MPI_STATUS_IGNORE));
      return done != 0;
    });
  }
  void abort() noexcept override {
    failed_ = true;
    detail::MpiProcess::get().fail();
  }

 private:
  MpiComm(int rank, int size) : Comm(rank, size) {
    check(MPI_Comm_dup(MPI_COMM_WORLD, &world_));
    check(MPI_Comm_set_errhandler(world_, MPI_ERRORS_RETURN));
  }

  static constexpr std::size_t largest = std::size_t{1} << 30;  ///< bytes of a message; MPI counts them in an int

  /// part(offset, bytes, number) for each message of so many bytes.
  template <class Part>
  static void for_parts(std::size_t bytes, Part&& part) {
    int number = 0;
    for (std::size_t at = 0; at < bytes; at += largest) {
      part(at, static_cast<int>(std::min(largest, bytes - at)), number++);
    }
  }
  static void check(int status) { detail::check_mpi(status, "a message"); }

  MPI_Comm world_ = MPI_COMM_NULL;
  bool failed_ = false;
};

}  // namespace dist
}  // namespace v0
}  // namespace qlora
