// bench/train/dynamic.cpp — the published shapes through one config whose numbers are read at run time.
#include "measure.hpp"

qlora::bench::Figures qlora::bench::measure_dynamic(const Settings& settings, const Config& preset) {
  constexpr Config any{.shape = dynamic_shape, .lora = dynamic_lora};
  return measure<any>(settings, preset);
}
