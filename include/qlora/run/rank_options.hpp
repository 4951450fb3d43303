// qlora/run/rank_options.hpp — how many processes a command starts by itself.
#pragma once

#include <array>
#include <string_view>

#include "qlora/run/option.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Processes that train together.
struct Ranks {
  int gpus = 0;  ///< one for each of this many GPUs of the host; 0: none is started, this one trains
};

template <>
struct Table<Ranks> {
  static constexpr std::string_view title = "Processes";
  static constexpr std::string_view section = "";
  static constexpr std::string_view verbs = "train";
  static constexpr auto options = std::to_array<Option<Ranks>>({
      {.name = "gpus",
       .member = &Ranks::gpus,
       .help = "Start a process for each of N GPUs of this host, which share the steps; 0: none. torchrun, mpirun "
               "and srun start them themselves",
       .range = {0, 1024},
       .fingerprint = false},
  });
};
static_assert(well_formed<Ranks>());

}  // namespace run
}  // namespace v0
}  // namespace qlora
