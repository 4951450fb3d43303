// qlora/model/cards.hpp — GPUs by name, and the memory plan for a GPU, at compile time where the config is static.
// Whether a training run fits one of them: train/fits.hpp.
#pragma once

#include "qlora/gpu_storage.hpp"
#include "qlora/model/plan.hpp"

namespace qlora {
inline namespace v0 {

/// What a GPU offers: nvidia-smi's memory.total.
struct Gpu {
  std::string_view name;   ///< as `--on` of the program takes it: "A10G 24 GB"
  std::int64_t bytes = 0;  ///< of memory
};
namespace gpu {
/// Bytes of the unit in which nvidia-smi prints memory.
inline constexpr std::int64_t mib = 1024 * 1024;
/// 24576 MiB
inline constexpr Gpu rtx3090_24gb{"RTX 3090 24 GB", 24576 * mib};
/// 24564 MiB
inline constexpr Gpu rtx4090_24gb{"RTX 4090 24 GB", 24564 * mib};
/// 23034 MiB
inline constexpr Gpu l4_24gb{"L4 24 GB", 23034 * mib};
/// 23028 MiB
inline constexpr Gpu a10g_24gb{"A10G 24 GB", 23028 * mib};
/// 40960 MiB
inline constexpr Gpu a100_40gb{"A100 40 GB", 40960 * mib};
/// 46068 MiB
inline constexpr Gpu l40s_48gb{"L40S 48 GB", 46068 * mib};
/// 81920 MiB
inline constexpr Gpu a100_80gb{"A100 80 GB", 81920 * mib};
/// 81559 MiB
inline constexpr Gpu h100_80gb{"H100 80 GB", 81559 * mib};
/// 143771 MiB
inline constexpr Gpu h200_141gb{"H200 141 GB", 143771 * mib};
/// Every card of this header.
inline constexpr std::array all{rtx3090_24gb, rtx4090_24gb, l4_24gb,   a10g_24gb, a100_40gb,
                                l40s_48gb,    a100_80gb,    h100_80gb, h200_141gb};
}  // namespace gpu

/// The plan of a config for one GPU. A config with dynamic numbers has one when they are known: memory_plan(config,
/// run, gpu_storage).
template <Config C>
requires StaticConfig<C>
[[nodiscard]] constexpr MemoryPlan memory_plan(const Run& run) { return memory_plan(C, run, gpu_storage); }

/// choose_recompute for one GPU, of which the run may take `budget` bytes.
[[nodiscard]] constexpr Run choose_recompute(const Config& config, const Run& run, std::int64_t budget) {
  return choose_recompute(config, run, budget, gpu_storage);
}

}  // namespace v0
}  // namespace qlora
