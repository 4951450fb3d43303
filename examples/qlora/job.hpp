// job.hpp — a job file: everything that `qlora run` does, as one TOML page. The structs below are its sections, their
// initialisers its defaults. Unknown keys and wrong types are errors with a line number and a suggestion.
// Relative paths are meant from the folder of the job file, so that a job does the same from wherever it is started.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "device.hpp"

namespace qlora::program {

/// [model], or one of several [[model]] that go through the same job.
struct ModelSection {
  std::string name;  ///< of [[model]] alone: its folder below [output] dir, and how the report calls it
  std::filesystem::path path;
};

struct DataSection {
  std::vector<std::string> urls;
  std::vector<std::filesystem::path> files;
  std::string compat = "none";
  bool allow_private = false;
  double timeout = 30;
  std::int64_t max_bytes = 8 << 20;
};

struct PackSection {
  int seq = 512;
  std::string compat = "none";
  std::string labels = "all";
  std::string split = "carry";
};

struct TrainSection {
  std::string method = "qlora";
  int rank = 64;
  double alpha = 16;
  bool rslora = false;
  double dropout = 0.1;
  double lr = 2e-4;
  std::string schedule = "linear";
  double warmup = 0;
  int epochs = 20;
  int batch = 2;
  int accumulate = 1;
  double weight_decay = 0;
  double max_grad_norm = 1;
  bool moments8 = false;
  std::int64_t seed = 42;
  int checkpoint_every = 50;
  std::string recompute = "auto";
  std::filesystem::path replay;
  int replay_limit = 0;
  std::vector<std::filesystem::path> probes;
  int every = 50;
  std::vector<std::string> guard;
};

/// What of [train], and of the options of `qlora train` under the same names, says how adapters are: nothing where every
/// weight is trained.
inline constexpr std::array<std::string_view, 5> adapter_settings{"rank", "alpha", "rslora", "dropout", "moments8"};

/// [train] with its own name and overrides, and [data] with its own pages. A job without [[arm]] has one, named "qlora".
struct Arm {
  std::string name = "qlora";
  std::string group{};  ///< arms of one group are one line of the report's front; empty: those of one method
  std::map<std::string, double> sweep{};  ///< where it stands in which sweeps: name of what is varied, value
  std::string control{};                  ///< what it is a control of, in words; the report keeps it apart. Empty: none
  bool front = true;                      ///< whether it is a point of its group's line in the front
  DataSection data{};                     ///< that of the job; an arm that names urls or files has these alone
  TrainSection train;
};

/// Whether both are the same addresses and files. Everything else in [data] is the job's.
[[nodiscard]] bool same_pages(const DataSection& a, const DataSection& b);

struct MergeSection {
  std::string arm;  ///< empty: the last one that has an adapter and is no control
  std::int64_t shard_bytes = 2'000'000'000;
};

struct CompareSection {
  std::filesystem::path questions;
  std::vector<std::filesystem::path> probes;
  std::vector<std::string> require;
  int max_new_tokens = 200;
  double top_p = 0.9;
  double temperature = 0.01;
  std::int64_t seed = 42;
};

struct OutputSection {
  std::filesystem::path dir;
};

struct Job {
  std::vector<ModelSection> models;  ///< at least one; a single one may have no name
  DeviceSection device;
  DataSection data;
  PackSection pack;
  TrainSection train;
  std::vector<Arm> arms;
  MergeSection merge;
  CompareSection compare;
  OutputSection output;
};

/// Throws Error(input) that names file, line and key.
[[nodiscard]] Job parse_job(std::string_view text, const std::filesystem::path& file);
[[nodiscard]] Job read_job(const std::filesystem::path& file);

/// Every key with its default and meaning, as a commented job file.
void print_job_keys(std::ostream& out);

}  // namespace qlora::program
