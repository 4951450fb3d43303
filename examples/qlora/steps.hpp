// steps.hpp — the steps of the job that the library does not have, each as settings and a function. A verb fills the settings from the command line,
// `qlora run` from a job file; both then do the same thing. The functions print nothing: progress goes to Progress,
// the outcome into the Result, and the verb says what of it is worth a line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "job.hpp"
#include "qlora/run/comparison.hpp"
#include "qlora/run/settings.hpp"
#include "qlora/run/steps.hpp"
#include "verb.hpp"

namespace qlora::program {

/// The same questions to the base, the base with each adapter, the merged model and models trained whole.
struct CompareStep {
  std::filesystem::path model;
  std::vector<std::pair<std::string, std::filesystem::path>> adapters{};  ///< name, directory
  std::filesystem::path merged{};                                         ///< may be empty
  std::string merged_from{};                                              ///< the adapter that was merged
  std::string judged{};  ///< what requirements and examples are about; empty: merged_from, else the last one
  std::vector<std::pair<std::string, std::filesystem::path>> models{};  ///< trained whole: name, directory
  run::Comparing comparison;
  run::Sampling sampling;
  run::DeviceRequest device;
  bool any_base = false;  ///< take adapters that were trained on other weights
};
/// Throws Error (usage) for a requirement that the comparison could not answer. Needs the probes, but none of the models.
void check_compare(const CompareStep& step);
run::Comparison run_compare(const CompareStep& step, Progress& progress);

}  // namespace qlora::program
