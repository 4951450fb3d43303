// The environment that a rank of `--gpus` gets is one that launch_of() understands, whatever the starter's own says.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/run/start_ranks.hpp"

#include <doctest/doctest.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

using namespace qlora;

namespace {

dist::Launch launch_in(const std::vector<std::string>& variables) {
  return dist::launch_of([&](const char* name) -> std::optional<std::string> {
    std::optional<std::string> found;
    for (const std::string& variable : variables) {
      if (!variable.starts_with(concat(name, "="))) continue;
      CHECK_MESSAGE(!found, name, " is there twice");
      found = variable.substr(variable.find('=') + 1);
    }
    return found;
  });
}

}  // namespace

TEST_CASE("ranks of one host meet within it") {
  ::setenv("MASTER_ADDR", "elsewhere", 1);
  ::setenv("RANK_OF_MINE", "kept", 1);
  const std::vector<std::string> variables = run::detail::rank_environment(3, 4, {}, 31000);
  const dist::Launch launch = launch_in(variables);
  CHECK(launch.rank == 3);
  CHECK(launch.size == 4);
  CHECK(launch.local_rank == 3);
  CHECK(launch.local_size == 4);
  CHECK(launch.launcher == dist::Launcher::torchrun);
  CHECK(dist::meeting_point(launch) == "127.0.0.1:31001");
  CHECK(std::find(variables.begin(), variables.end(), "RANK_OF_MINE=kept") != variables.end());
}

TEST_CASE("ranks of several hosts meet at the first") {
  const dist::Hosts second{1, 2, "algo-1"};
  const dist::Launch launch = launch_in(run::detail::rank_environment(1, 4, second, 29500));
  CHECK(launch.rank == 5);
  CHECK(launch.size == 8);
  CHECK(launch.local_rank == 1);
  CHECK(launch.local_size == 4);
  CHECK(dist::meeting_point(launch) == "algo-1:29501");
}

TEST_CASE("a free port is one that can be had") {
  const int port = run::detail::free_port();
  CHECK(port > 1024);
  CHECK(port <= 65535);
}
