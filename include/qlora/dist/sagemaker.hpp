// qlora/dist/sagemaker.hpp — the hosts of a SageMaker training job. SageMaker starts one process a host and says which;
// that one starts a process per GPU (run/start_ranks.hpp).
//   SM_HOSTS SM_CURRENT_HOST     of SageMaker's training toolkit: ["algo-1","algo-2"] and algo-2
//   resourceconfig.json          the same without the toolkit: {"current_host": .., "hosts": [..]}
// Its containers find everything below /opt/ml; QLORA_ML_ROOT names another folder, for tests.
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/dist/launch.hpp"
#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"

namespace qlora {
inline namespace v0 {
namespace dist {

/// The folder that SageMaker shares with a container: QLORA_ML_ROOT where it is set, else /opt/ml.
[[nodiscard]] inline std::filesystem::path sagemaker_root(const Environment& get) {
  const std::string moved = get("QLORA_ML_ROOT").value_or("");
  return moved.empty() ? "/opt/ml" : moved;
}
/// Where SageMaker puts the hosts of a training job.
[[nodiscard]] inline std::filesystem::path sagemaker_resources(const std::filesystem::path& root) {
  return root / "input" / "config" / "resourceconfig.json";
}

/// One host among those of a job.
struct Hosts {
  int index = 0;        ///< of this host, below `count`
  int count = 1;        ///< hosts in all
  std::string first{};  ///< name of the first; empty: there is one, and no other needs to find it
  friend bool operator==(const Hosts&, const Hosts&) = default;
};

/// What the environment says, or `resources`, the text of resourceconfig.json, where it says nothing; empty: there is
/// no such file. Hosts are in the order of their names. Throws Error (usage) for a host that is not among them, and
/// (input) for text of another form.
[[nodiscard]] inline Hosts sagemaker_hosts(const Environment& get, std::string_view resources = {}) {
  std::vector<std::string> hosts;
  std::string current;
  const auto list = [&](const Json& names, const std::string& where) {
    if (!names.is_array()) throw Error(where + " is no list of hosts");
    for (const Json& name : names) {
      if (!name.is_string()) throw Error(where + " is no list of hosts");
      hosts.push_back(name.get<std::string>());
    }
  };
  const auto of_toolkit = get("SM_HOSTS");
  if (of_toolkit) {
    list(parse_json(*of_toolkit, "SM_HOSTS"), "SM_HOSTS");
    current = get("SM_CURRENT_HOST").value_or("");
  } else if (!resources.empty()) {
    constexpr const char* name = "resourceconfig.json";
    const Json file = parse_json(resources, name);
    list(json_at(file, "hosts", name), name);
    current = json_string(file, "current_host", name);
  } else {
    return {};
  }
  std::sort(hosts.begin(), hosts.end());
  const auto at = std::find(hosts.begin(), hosts.end(), current);
  if (at == hosts.end()) {
    throw Error(concat("SageMaker's current host is '", current, "', which is not among its ", hosts.size(), " hosts"),
                ErrorKind::usage);
  }
  Hosts result{static_cast<int>(at - hosts.begin()), static_cast<int>(hosts.size()), {}};
  if (result.count > 1) result.first = hosts.front();
  return result;
}
/// The same, with the file below `root` if it is there.
[[nodiscard]] inline Hosts sagemaker_hosts_in(const std::filesystem::path& root, const Environment& get) {
  const std::filesystem::path file = sagemaker_resources(root);
  return sagemaker_hosts(get, std::filesystem::exists(file) ? read_text(file, 1U << 20) : std::string());
}

}  // namespace dist
}  // namespace v0
}  // namespace qlora
