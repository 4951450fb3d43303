// qlora/dist/launch.hpp — which of how many processes this one is, from what its launcher has put into the environment:
// torchrun (and Kubernetes' PyTorchJob), Open MPI's mpirun, Slurm's srun. One pure function.
//   torchrun   RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID
//   Open MPI   OMPI_COMM_WORLD_RANK _SIZE _LOCAL_RANK _LOCAL_SIZE, PMIX_NAMESPACE
//   Slurm      SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID SLURM_STEP_NODELIST SLURM_JOB_ID SLURM_STEP_ID
// An sbatch script also has SLURM_PROCID, and SLURM_NTASKS; only srun sets SLURM_STEP_NUM_TASKS, so only its processes
// are taken for ranks.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {
namespace dist {

/// A variable's text; nothing where it is not set.
using Environment = std::function<std::optional<std::string>(const char* name)>;
/// The environment of this process.
[[nodiscard]] inline std::optional<std::string> process_environment(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? std::nullopt : std::optional<std::string>(text);
}

/// What started this process and its peers.
enum class Launcher : unsigned char { none, torchrun, open_mpi, slurm };
/// The launcher as messages name it.
[[nodiscard]] constexpr std::string_view name_of(Launcher launcher) {
  switch (launcher) {
    case Launcher::none:
      break;
    case Launcher::torchrun:
      return "torchrun";
    case Launcher::open_mpi:
      return "Open MPI";
    case Launcher::slurm:
      return "Slurm";
  }
  return "nothing";
}

/// One process among those that train together.
struct Launch {
  int rank = 0;                        ///< its number, below `size`
  int size = 1;                        ///< processes on all hosts
  int local_rank = 0;                  ///< its number on its host, below `local_size`: which GPU it takes
  int local_size = 1;                  ///< processes on its host; 1 where the launcher does not say
  Launcher launcher = Launcher::none;  ///< whose variables these are
  std::string address{};               ///< host that rank 0 can be met at; empty: not known
  int port = 0;                        ///< a free port there; 0: not known
  std::string job{};                   ///< a name that no other start has at the same time; empty: none
  friend bool operator==(const Launch&, const Launch&) = default;
};

/// The first host of a list as Slurm writes it: "gpu[03-05,9],login1" -> "gpu03".
[[nodiscard]] inline std::string first_host(std::string_view list) {
  const std::size_t end = list.find_first_of(",[");
  std::string host(list.substr(0, end));
  if (end == std::string_view::npos || list[end] == ',') return host;
  const std::size_t stop = list.find_first_of(",-]", end + 1);
  host += list.substr(end + 1, stop == std::string_view::npos ? stop : stop - end - 1);
  const std::size_t closing = list.find(']', end);
  if (closing != std::string_view::npos) host += list.substr(closing + 1, list.find(',', closing) - closing - 1);
  return host;
}

namespace detail {

/// A whole number that is `least` to `most`. Throws Error (usage), naming the variable.
[[nodiscard]] inline int number_in(const std::string& text, const char* name, int least, int most) {
  int value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  if (read.ec != std::errc() || read.ptr != text.data() + text.size() || value < least || value > most) {
    throw Error(concat("the environment says ", name, "=", text, "; it must be a number from ", least, " to ", most),
                ErrorKind::usage);
  }
  return value;
}

/// More ranks than anyone has; the numbers of ranks stay far from where int ends.
inline constexpr int most_ranks = 1 << 20;

/// The names of four numbers in the words of one launcher.
struct RankNames {
  Launcher launcher;
  const char* rank;
  const char* size;
  const char* local_rank;
  const char* local_size;  ///< null: it has none in this form
};

/// The launcher's numbers; nothing when it did not start this process. Throws Error (usage) for one without the other
/// and for numbers that cannot be.
[[nodiscard]] inline std::optional<Launch> ranks_in(const Environment& get, const RankNames& names) {
  const auto rank = get(names.rank);
  const auto size = get(names.size);
  if (!rank && !size) return std::nullopt;
  if (names.launcher == Launcher::slurm && !size) return std::nullopt;  // an sbatch script
  if (!rank || !size) {
    throw Error(
        concat("the environment has ", rank ? names.rank : names.size, " and no ", rank ? names.size : names.rank, "; ",
               name_of(names.launcher), " sets both. Unset the one to train in this process alone"),
        ErrorKind::usage);
  }
  Launch launch{.launcher = names.launcher};
  launch.size = number_in(*size, names.size, 1, most_ranks);
  launch.rank = number_in(*rank, names.rank, 0, launch.size - 1);
  const auto local_size = names.local_size == nullptr ? std::nullopt : get(names.local_size);
  const auto local_rank = get(names.local_rank);
  if (local_size) launch.local_size = number_in(*local_size, names.local_size, 1, launch.size);
  const int most = (local_size ? launch.local_size : launch.size) - 1;
  if (local_rank) launch.local_rank = number_in(*local_rank, names.local_rank, 0, most);
  return launch;
}

}  // namespace detail

/// What the environment says. Where two launchers have left their variables and these do not agree, torchrun counts if
/// its agent started this process, which TORCHELASTIC_RUN_ID shows; Open MPI counts before Slurm, under which mpirun
/// starts one daemon a host. Throws Error (usage), naming the variables, for numbers that cannot be, for half of them,
/// and for two launchers that contradict each other.
[[nodiscard]] inline Launch launch_of(const Environment& get) {
  const auto torch =
      detail::ranks_in(get, {Launcher::torchrun, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"});
  const auto mpi = detail::ranks_in(get, {Launcher::open_mpi, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                                          "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"});
  std::optional<Launch> slurm;
  if (!mpi) {
    slurm = detail::ranks_in(get, {Launcher::slurm, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", nullptr});
  }
  const bool agent = get("TORCHELASTIC_RUN_ID").has_value();
  const std::optional<Launch>& other = mpi ? mpi : slurm;
  Launch launch;
  if (torch && (agent || !other)) {
    launch = *torch;
  } else if (other) {
    launch = *other;
    if (torch && (torch->rank != other->rank || torch->size != other->size)) {
      throw Error(concat("the environment contradicts itself: RANK ", torch->rank, " of ", torch->size, ", and for ",
                         name_of(other->launcher), " rank ", other->rank, " of ", other->size,
                         "; unset RANK and WORLD_SIZE, or set them to the launcher's"),
                  ErrorKind::usage);
    }
  }
  if (launch.size == 1) return launch;
  const auto text = [&](const char* name) { return get(name).value_or(""); };
  launch.address = text("MASTER_ADDR");
  if (const auto port = get("MASTER_PORT")) launch.port = detail::number_in(*port, "MASTER_PORT", 1, 65535);
  if (launch.launcher == Launcher::torchrun) {
    launch.job = concat(text("TORCHELASTIC_RUN_ID"), "-", text("MASTER_PORT"), "-", text("TORCHELASTIC_RESTART_COUNT"));
  } else if (launch.launcher == Launcher::open_mpi) {
    launch.job = text("PMIX_NAMESPACE");
  } else {
    launch.job = concat(text("SLURM_JOB_ID"), "-", text("SLURM_STEP_ID"));
    if (launch.address.empty()) launch.address = first_host(text("SLURM_STEP_NODELIST"));
  }
  return launch;
}

/// Where NCCL's ranks meet, "host:port": on one host within it, else at the launcher's address. torchrun's agent
/// listens at MASTER_PORT itself, so it is the port behind that; without one it is made from the job's name. Throws
/// Error (usage) when the host is not known.
[[nodiscard]] inline std::string meeting_point(const Launch& launch) {
  const bool one_host = launch.local_size == launch.size;
  if (!one_host && launch.address.empty()) {
    throw Error(concat("the ranks of ", name_of(launch.launcher),
                       " on several hosts do not know where to meet: set MASTER_ADDR to the host of rank 0 and "
                       "MASTER_PORT to a port that is free there, as in mpirun -x MASTER_ADDR=gpu01"),
                ErrorKind::usage);
  }
  int port = launch.port == 65535 ? 65534 : launch.port + 1;
  if (launch.port == 0) {
    std::uint32_t sum = 2166136261U;  // FNV-1a
    for (const char c : launch.job) sum = (sum ^ static_cast<unsigned char>(c)) * 16777619U;
    port = 20000 + static_cast<int>(sum % 10000U);  // below the ports that Linux gives to connections
  }
  return concat(one_host ? "127.0.0.1" : launch.address, ":", port);
}

}  // namespace dist
}  // namespace v0
}  // namespace qlora
