// The hosts of a SageMaker job, as its training toolkit and its file say them.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/dist/sagemaker.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "support/scratch.hpp"

using namespace qlora;
using namespace qlora::dist;

namespace {

Hosts hosts(const std::map<std::string, std::string>& variables, std::string_view file = {}) {
  return sagemaker_hosts(
      [&](const char* name) -> std::optional<std::string> {
        const auto found = variables.find(name);
        return found == variables.end() ? std::nullopt : std::optional(found->second);
      },
      file);
}
/// As SageMaker writes it, of a job on two machines.
constexpr std::string_view resources =
    R"({"current_host":"algo-2","current_instance_type":"ml.p4d.24xlarge","current_group_name":"homogeneousCluster",)"
    R"("hosts":["algo-2","algo-1"],"network_interface_name":"eth0"})";

}  // namespace

TEST_CASE("outside of SageMaker there is one host") { CHECK(hosts({}) == Hosts{}); }

TEST_CASE("the toolkit's variables and the file say the same") {
  const std::map<std::string, std::string> toolkit{{"SM_HOSTS", R"(["algo-1","algo-2"])"},
                                                   {"SM_CURRENT_HOST", "algo-2"}};
  CHECK(hosts(toolkit) == Hosts{1, 2, "algo-1"});
  CHECK(hosts({}, resources) == Hosts{1, 2, "algo-1"});
  CHECK(hosts({{"SM_HOSTS", R"(["algo-1"])"}, {"SM_CURRENT_HOST", "algo-1"}}) == Hosts{});
  // The variables count.
  CHECK(hosts({{"SM_HOSTS", R"(["algo-1"])"}, {"SM_CURRENT_HOST", "algo-1"}}, resources) == Hosts{});
}

TEST_CASE("the file lies below the root, and where none is there is one host") {
  const auto nothing = [](const char*) -> std::optional<std::string> { return std::nullopt; };
  const auto moved = [](const char* name) -> std::optional<std::string> {
    return std::string_view(name) == "QLORA_ML_ROOT" ? std::optional<std::string>("/elsewhere") : std::nullopt;
  };
  CHECK(sagemaker_root(nothing) == "/opt/ml");
  CHECK(sagemaker_root(moved) == "/elsewhere");
  CHECK(sagemaker_root([](const char*) -> std::optional<std::string> { return ""; }) == "/opt/ml");
  const test::Scratch scratch;
  CHECK(sagemaker_hosts_in(scratch / "ml", nothing) == Hosts{});
  std::filesystem::create_directories(scratch / "ml/input/config");
  (void)scratch.write("ml/input/config/resourceconfig.json", std::string(resources));
  CHECK(sagemaker_hosts_in(scratch / "ml", nothing) == Hosts{1, 2, "algo-1"});
}

TEST_CASE("what cannot be is refused") {
  CHECK_THROWS_AS((void)hosts({{"SM_HOSTS", R"(["algo-1","algo-2"])"}}), Error);
  CHECK_THROWS_AS((void)hosts({{"SM_HOSTS", R"(["algo-1"])"}, {"SM_CURRENT_HOST", "algo-3"}}), Error);
  CHECK_THROWS_AS((void)hosts({{"SM_HOSTS", "algo-1"}, {"SM_CURRENT_HOST", "algo-1"}}), Error);
  CHECK_THROWS_AS((void)hosts({{"SM_HOSTS", R"({"a":1})"}, {"SM_CURRENT_HOST", "a"}}), Error);
  CHECK_THROWS_AS((void)hosts({{"SM_HOSTS", "[1]"}, {"SM_CURRENT_HOST", "1"}}), Error);
  CHECK_THROWS_AS((void)hosts({}, R"({"hosts":["algo-1"]})"), Error);
}
