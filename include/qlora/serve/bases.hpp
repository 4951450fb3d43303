// qlora/serve/bases.hpp — which models a server has: those that are named, that of a container, or those of a job.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "qlora/dist/sagemaker.hpp"
#include "qlora/error.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/peft.hpp"
#include "qlora/run/hub_cache.hpp"
#include "qlora/run/steps.hpp"
#include "qlora/serve/model.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// A base model, and adapters on it.
struct ServedBase {
  std::filesystem::path dir{};                ///< of the model
  std::string name{};                         ///< empty: that of the directory
  std::vector<run::NamedAdapter> adapters{};  ///< beside it
  std::string unnamed{};                      ///< the adapter that answers who names none; empty: the base does
  bool container = false;                     ///< whether SageMaker put the model or an adapter of it there
};

namespace detail {

/// Of the environment; empty where there is none.
[[nodiscard]] inline std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}
/// Of the environment or of a container.
[[nodiscard]] inline std::filesystem::path model_directory(const std::filesystem::path& container) {
  const std::string id = environment("HF_MODEL_ID");
  std::error_code none;
  if (id.empty() && std::filesystem::is_directory(container, none)) return container;
  if (id.empty()) {
    throw Error(concat("there is no model to serve: name its directory, or set HF_MODEL_ID; ", container.string(),
                       " is not here"),
                ErrorKind::usage);
  }
  if (!std::filesystem::is_directory(id, none)) {
    throw Error(concat("HF_MODEL_ID is ", qlora::detail::excerpt(id),
                       ", which is no directory of this machine; models are not fetched, give a directory"),
                ErrorKind::usage);
  }
  return id;
}

/// The model that an adapter was trained on, by its adapter_config.json.
[[nodiscard]] inline std::filesystem::path base_of_adapter(const std::filesystem::path& dir) {
  const std::filesystem::path config = dir / "adapter_config.json";
  return qlora::detail::parse_peft_config(read_json_object(config, std::size_t{1} << 20), config.string()).base_model;
}

/// Gives a base without a directory that of the environment or of a container. Where SageMaker has unpacked an adapter,
/// as a training job leaves it, the adapter answers, on the model that HF_MODEL_ID names or that it was trained on.
/// Throws Error (usage) when there is no model.
inline void take_environment(ServedBase& base) {
  const std::filesystem::path container = dist::sagemaker_root(dist::process_environment) / "model";
  std::error_code none;
  const bool adapter = std::filesystem::exists(container / "adapter_config.json", none) &&
                       !std::filesystem::exists(container / "config.json", none);
  base.dir = model_directory(container);
  base.container = adapter || base.dir == container;
  if (!adapter) return;
  if (base.dir == container) base.dir = base_of_adapter(container);
  if (!std::filesystem::exists(base.dir / "config.json", none)) {
    throw Error(concat(container.string(), " holds an adapter, and ", base.dir.string(),
                       ", where its model should be, holds none; set HF_MODEL_ID to the directory of the model"),
                ErrorKind::usage);
  }
  base.unnamed = "adapter";
  base.adapters.push_back({base.unnamed, container});
}

/// Whether a directory is what `qlora run` wrote.
[[nodiscard]] inline bool is_job_output(const std::filesystem::path& dir) {
  std::error_code none;
  return !dir.empty() && std::filesystem::exists(dir / "run.json", none) &&
         !std::filesystem::exists(dir / "config.json", none);
}

/// The models of a job with the adapters that it trained. An adapter has the name of its arm, in a job of several
/// models MODEL-ARM. Throws Error (input) where there is no adapter, or the model that one was trained on is not there.
[[nodiscard]] inline std::vector<ServedBase> bases_of_job(const ServedBase& job) {
  namespace fs = std::filesystem;
  struct Found {
    std::string model, arm;  // no model: the job has one, without a name
    fs::path dir;
  };
  std::vector<Found> all;
  const auto look = [&](const fs::path& folder, const std::string& model) {
    for (const fs::directory_entry& arm : fs::directory_iterator(folder)) {
      const fs::path dir = arm.path() / "train" / "adapter";
      if (fs::exists(dir / "adapter_config.json")) all.push_back({model, arm.path().filename().string(), dir});
    }
  };
  look(job.dir, {});
  if (all.empty()) {
    for (const fs::directory_entry& model : fs::directory_iterator(job.dir)) {
      if (model.is_directory()) look(model.path(), model.path().filename().string());
    }
  }
  if (all.empty()) throw Error(concat(job.dir.string(), " holds no adapter that a job trained"));
  std::sort(all.begin(), all.end(),
            [](const Found& a, const Found& b) { return std::pair(a.model, a.arm) < std::pair(b.model, b.arm); });
  std::vector<ServedBase> bases;
  for (const Found& found : all) {
    const fs::path base = base_of_adapter(found.dir);
    if (!fs::exists(base / "config.json")) {
      throw Error(concat(found.dir.string(), " was trained on ", base.string(),
                         ", which is no model directory here; name both: NAME=DIR --adapter NAME=DIR"));
    }
    const std::string name = found.model.empty() ? job.name : found.model;
    auto known = std::find_if(bases.begin(), bases.end(), [&](const ServedBase& other) {
      return other.dir == base && (found.model.empty() || other.name == name);
    });
    if (known == bases.end()) known = bases.insert(bases.end(), {.dir = base, .name = name});
    known->adapters.push_back({found.model.empty() ? found.arm : found.model + "-" + found.arm, found.dir});
  }
  return bases;
}

inline void check_names(const std::vector<ServedBase>& bases) {
  std::vector<std::string> seen;
  for (const ServedBase& base : bases) {
    seen.push_back(base.name);
    for (const run::NamedAdapter& adapter : base.adapters) seen.push_back(adapter.name);
  }
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (!is_name(seen[i])) {
      throw Error(concat("\"", qlora::detail::excerpt(seen[i]),
                         "\" cannot be the name of a model: letters, digits and any of -_./ are"),
                  ErrorKind::usage);
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (seen[i] == seen[j])
        throw Error(concat("two models are called ", seen[i], "; name one of them NAME=DIR"), ErrorKind::usage);
    }
  }
}

}  // namespace detail

/// The bases with their names, those of jobs in the place of their directories, and that of the environment where a
/// base has no directory. Throws Error.
[[nodiscard]] inline std::vector<ServedBase> named_bases(const std::vector<ServedBase>& asked) {
  std::vector<ServedBase> bases;
  for (const ServedBase& base : asked) {
    if (detail::is_job_output(base.dir)) {
      for (ServedBase& of_job : detail::bases_of_job(base)) bases.push_back(std::move(of_job));
    } else {
      bases.push_back(base);
    }
  }
  for (ServedBase& base : bases) {
    if (base.dir.empty()) detail::take_environment(base);
    if (!base.name.empty()) continue;
    // A snapshot in the cache of the hub has a commit for a name; "org/name" says more.
    const std::filesystem::path whole = std::filesystem::absolute(run::name_for_others(base.dir)).lexically_normal();
    const std::string name = (whole.has_filename() ? whole : whole.parent_path()).filename().string();
    base.name = is_name(name) ? name : "base";
  }
  return bases;
}

}  // namespace serve
}  // namespace v0
}  // namespace qlora
