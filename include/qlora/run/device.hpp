// qlora/run/device.hpp — where a model runs: a device request with every choice made, and the memory of a GPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "qlora/comm.hpp"
#include "qlora/config.hpp"
#include "qlora/dist/launch.hpp"
#include "qlora/model/plan.hpp"
#include "qlora/run/options.hpp"
#include "qlora/run/units.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Where a model runs.
enum class Device : std::uint8_t { cpu, cuda };
/// The device as options and results name it: "cpu", "cuda".
[[nodiscard]] constexpr std::string_view name_of(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

/// A DeviceRequest with the device chosen; see select_code.
struct DeviceOptions {
  Device device = Device::cpu;    ///< where to run
  int threads = 0;                ///< CPU: 0 is one per core
  std::int64_t memory_cap = 0;    ///< GPU: bytes that this process may use, CUDA context included; 0: no cap
  bool fast = false;              ///< GPU: allow sums whose last bits depend on timing
  bool keep_dequantized = false;  ///< GPU: keep the frozen weights in bf16 as well
  dist::Launch launch{};          ///< which of how many processes this is; a training joins the others
  Comm::Watch watch{};            ///< asked while it waits for them to come
};

/// GPU memory that no plan uses: allocations are rounded up to pages, and other processes need some.
inline constexpr std::int64_t gpu_reserve = 256 * 1024 * 1024;

/// GPU memory as this process sees it, in bytes.
struct GpuMemory {
  std::int64_t own = 0;    ///< of this process: arenas, workspaces, the CUDA context
  std::int64_t limit = 0;  ///< that it may use in all, `own` included

  /// Bytes that this process may still take; negative where it has more than its limit.
  [[nodiscard]] std::int64_t free() const { return limit - own; }
};
/// `unused`: what the driver has left; `cap` as in DeviceOptions.
[[nodiscard]] constexpr GpuMemory gpu_memory(std::int64_t own, std::int64_t unused, std::int64_t cap) {
  const std::int64_t most = own + unused;
  return {own, (cap > 0 ? std::min(most, cap) : most) - gpu_reserve};
}

/// Up to this many parameters the CPU also holds the frozen weights dequantized: at most two gigabytes, and no product
/// dequantizes.
inline constexpr std::int64_t cpu_dense_limit = 500'000'000;
/// Whether a model of this shape holds its frozen weights dense as well.
[[nodiscard]] constexpr bool keeps_dequantized(const Shape& shape, const DeviceOptions& device) {
  return device.device == Device::cuda ? device.keep_dequantized : parameters(shape) <= cpu_dense_limit;
}

/// Sequences that a session decodes at once where memory allows it, and new tokens of them in one call.
inline constexpr std::size_t most_sequences = 32;
/// New tokens of all sequences in one call of a session's decoder.
inline constexpr int decode_step_tokens = 512;
/// Decoding that a training keeps memory for: `count` probes of at most `length` tokens, at most eight at once.
[[nodiscard]] constexpr DecodeLimits limits_for_probes(std::size_t count, int length) {
  constexpr std::size_t planned = 8;
  return {.sequences = static_cast<int>(count < planned ? count : planned),
          .length = length,
          .step_tokens = decode_step_tokens,
          .all_logits = true};
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
