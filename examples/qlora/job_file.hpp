// job_file.hpp — a job as one TOML page. Its keys are the tables of qlora/run/options.hpp. Unknown keys and wrong
// values are errors with a line number and a suggestion. Relative paths are meant from the folder of the job file, so
// that a job does the same from wherever it is started.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/run/job.hpp"

namespace qlora::program {

struct JobFile {
  run::Job job;                    ///< complete
  std::vector<std::string> notes;  ///< what the user is to know: old keys that were used
};

/// Throws Error(input) that names file, line and key.
[[nodiscard]] JobFile parse_job(std::string_view text, const std::filesystem::path& file);
[[nodiscard]] JobFile read_job(const std::filesystem::path& file);

}  // namespace qlora::program
