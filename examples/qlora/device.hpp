// device.hpp — where a model runs: what a user asks for, on the command line or in a job file, and what there is.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "qlora/run/options.hpp"

namespace qlora::program {

enum class Device : std::uint8_t { cpu, cuda };
[[nodiscard]] constexpr std::string_view name_of(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

/// What is asked for, in the words of choose_variant.
struct DeviceSection {
  std::string use = "auto";  ///< auto: a GPU if one is usable, else the CPU
  std::string memory_cap;    ///< of the GPU, as in "24GB"; empty: all of it
  bool fast = false;
  bool resident = false;
};

[[nodiscard]] DeviceSection section_of(const run::DeviceRequest& request);

/// What it came to.
struct Machine {
  Device device = Device::cpu;
  int threads = 0;              ///< CPU: 0 is one per core
  std::int64_t memory_cap = 0;  ///< GPU: bytes that may be taken; 0 is all
  bool fast = false;            ///< GPU: sums may depend on timing
  bool resident = false;        ///< GPU: frozen weights also in bf16
};

/// Of a card's memory, what no plan promises away: pages that allocations round up to, and what other processes take.
inline constexpr std::int64_t gpu_reserve = 256 * 1024 * 1024;

/// A size as run::parse_bytes reads it; throws Error (usage) that names the option. Empty text is 0.
[[nodiscard]] std::int64_t bytes_of_option(std::string_view option, std::string_view text);
/// "22.4 GB".
[[nodiscard]] std::string gigabytes(std::int64_t bytes);

/// Whether the CUDA backend was built and finds a GPU; `why` says what is missing and what to do.
[[nodiscard]] bool cuda_usable(std::string& why);

}  // namespace qlora::program
