// Rank, size and address out of the variables of each launcher, as their own programs set them, and out of ones that
// contradict each other.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/dist/launch.hpp"

#include <doctest/doctest.h>

#include <map>
#include <string>

using namespace qlora;
using namespace qlora::dist;

namespace {

using Variables = std::map<std::string, std::string>;

Launch launch(const Variables& variables) {
  return launch_of([&](const char* name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  });
}
Variables with(Variables variables, const Variables& more) {
  for (const auto& [name, value] : more) variables[name] = value;
  return variables;
}
Variables without(Variables variables, const char* name) {
  variables.erase(name);
  return variables;
}
/// Refused as a usage error that names all of these.
void expect_refused(const Variables& variables, std::initializer_list<const char*> words) {
  try {
    const Launch made = launch(variables);
    FAIL_CHECK("rank ", made.rank, " of ", made.size, " was made of it");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::usage);
    for (const char* word : words) CHECK(std::string(error.what()).find(word) != std::string::npos);
  }
}

/// torchrun --nnodes 2 --nproc-per-node 4, the second process of the second host.
const Variables torchrun{{"RANK", "5"},
                         {"WORLD_SIZE", "8"},
                         {"LOCAL_RANK", "1"},
                         {"LOCAL_WORLD_SIZE", "4"},
                         {"GROUP_RANK", "1"},
                         {"MASTER_ADDR", "gpu01"},
                         {"MASTER_PORT", "29500"},
                         {"TORCHELASTIC_RESTART_COUNT", "0"},
                         {"TORCHELASTIC_RUN_ID", "7f3a"}};
/// mpirun -n 4 of Open MPI 4.1, two a host.
const Variables open_mpi{{"OMPI_COMM_WORLD_RANK", "3"},
                         {"OMPI_COMM_WORLD_SIZE", "4"},
                         {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                         {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                         {"PMIX_NAMESPACE", "1162739713"}};
/// srun -N 2 --ntasks-per-node 2.
const Variables slurm{{"SLURM_PROCID", "2"},
                      {"SLURM_STEP_NUM_TASKS", "4"},
                      {"SLURM_NTASKS", "4"},
                      {"SLURM_LOCALID", "0"},
                      {"SLURM_JOB_ID", "815"},
                      {"SLURM_STEP_ID", "0"},
                      {"SLURM_STEP_NODELIST", "gpu[07-08]"}};

}  // namespace

TEST_CASE("a process that no launcher started is alone") {
  CHECK(launch({}) == Launch{});
  CHECK(launch({{"PATH", "/bin"}, {"LOCAL_RANK", "3"}, {"MASTER_ADDR", "gpu01"}}) == Launch{});
  // An sbatch script, which itself is no process of a step.
  CHECK(launch({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}, {"SLURM_LOCALID", "0"}, {"SLURM_JOB_ID", "815"}}) ==
        Launch{});
}

TEST_CASE("each launcher's variables") {
  CHECK(launch(torchrun) == Launch{5, 8, 1, 4, Launcher::torchrun, "gpu01", 29500, "7f3a-29500-0"});
  CHECK(launch(open_mpi) == Launch{3, 4, 1, 2, Launcher::open_mpi, "", 0, "1162739713"});
  CHECK(launch(slurm) == Launch{2, 4, 0, 1, Launcher::slurm, "gpu07", 0, "815-0"});
  // A PyTorchJob of Kubernetes: one process a pod, no agent.
  CHECK(launch({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "job-master-0"}, {"MASTER_PORT", "23456"}}) ==
        Launch{1, 2, 0, 1, Launcher::torchrun, "job-master-0", 23456, "-23456-"});
  // An address beside mpirun and srun, as scripts export it.
  CHECK(launch(with(open_mpi, {{"MASTER_ADDR", "gpu01"}, {"MASTER_PORT", "1"}})).address == "gpu01");
  CHECK(launch(with(slurm, {{"MASTER_ADDR", "10.0.0.7"}, {"MASTER_PORT", "65535"}})) ==
        Launch{2, 4, 0, 1, Launcher::slurm, "10.0.0.7", 65535, "815-0"});
  // One process needs no address.
  CHECK(launch({{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"MASTER_ADDR", "gpu01"}}) ==
        Launch{.launcher = Launcher::torchrun});
}

TEST_CASE("of two launchers the one that started the process") {
  // mpirun within an allocation of Slurm: srun started one daemon a host, and that the process.
  CHECK(launch(with(slurm, open_mpi)).launcher == Launcher::open_mpi);
  CHECK(launch(with(slurm, open_mpi)).rank == 3);
  // An agent of torchrun a host, started by srun or mpirun.
  CHECK(launch(with(slurm, torchrun)).rank == 5);
  CHECK(launch(with(open_mpi, torchrun)).launcher == Launcher::torchrun);
  // A script that exports the launcher's numbers under the other names.
  CHECK(launch(with(slurm, {{"RANK", "2"}, {"WORLD_SIZE", "4"}})).launcher == Launcher::slurm);
  // Numbers of which nobody can say whose they are.
  expect_refused(with(open_mpi, {{"RANK", "0"}, {"WORLD_SIZE", "4"}}), {"RANK 0 of 4", "Open MPI", "rank 3 of 4"});
  expect_refused(with(slurm, {{"RANK", "2"}, {"WORLD_SIZE", "8"}}), {"RANK 2 of 8", "Slurm", "rank 2 of 4"});
}

TEST_CASE("numbers that cannot be") {
  expect_refused(without(torchrun, "WORLD_SIZE"), {"RANK", "no WORLD_SIZE", "torchrun"});
  expect_refused(without(torchrun, "RANK"), {"WORLD_SIZE", "no RANK"});
  expect_refused(without(open_mpi, "OMPI_COMM_WORLD_SIZE"), {"no OMPI_COMM_WORLD_SIZE"});
  expect_refused(without(slurm, "SLURM_PROCID"), {"no SLURM_PROCID"});
  expect_refused(with(torchrun, {{"RANK", "8"}}), {"RANK=8", "0 to 7"});
  expect_refused(with(torchrun, {{"RANK", "-1"}}), {"RANK=-1"});
  expect_refused(with(torchrun, {{"RANK", "5x"}}), {"RANK=5x"});
  expect_refused(with(torchrun, {{"WORLD_SIZE", "0"}}), {"WORLD_SIZE=0"});
  expect_refused(with(torchrun, {{"WORLD_SIZE", "99999999999"}}), {"WORLD_SIZE=99999999999"});
  expect_refused(with(torchrun, {{"LOCAL_RANK", "4"}}), {"LOCAL_RANK=4", "0 to 3"});
  expect_refused(with(torchrun, {{"LOCAL_WORLD_SIZE", "9"}}), {"LOCAL_WORLD_SIZE=9", "1 to 8"});
  expect_refused(with(torchrun, {{"MASTER_PORT", "65536"}}), {"MASTER_PORT=65536"});
}

TEST_CASE("where the ranks of NCCL meet") {
  CHECK(meeting_point(launch(torchrun)) == "gpu01:29501");
  CHECK(meeting_point(launch(with(torchrun, {{"MASTER_PORT", "65535"}}))) == "gpu01:65534");
  CHECK(meeting_point(launch(with(torchrun, {{"WORLD_SIZE", "4"}, {"RANK", "1"}}))) == "127.0.0.1:29501");
  const std::string of_slurm = meeting_point(launch(slurm));
  CHECK(of_slurm.starts_with("gpu07:2"));  // every rank finds the same, another job another
  CHECK(meeting_point(launch(with(slurm, {{"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}}))) == of_slurm);
  CHECK(meeting_point(launch(with(slurm, {{"SLURM_JOB_ID", "816"}}))) != of_slurm);
  CHECK(meeting_point(launch(with(open_mpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}}))).starts_with("127.0.0.1:2"));
  CHECK_THROWS_AS((void)meeting_point(launch(open_mpi)), Error);
}

TEST_CASE("the first host of Slurm's lists") {
  CHECK(first_host("") == "");
  CHECK(first_host("login1") == "login1");
  CHECK(first_host("a,b") == "a");
  CHECK(first_host("gpu[03-05,9],login1") == "gpu03");
  CHECK(first_host("gpu[7,9]") == "gpu7");
  CHECK(first_host("rack[2]-n,x") == "rack2-n");
  CHECK(first_host("node[001-128].local") == "node001.local");
}
