// The registry of a program that got a config by one line of CMake: its code serves the shape, and no other.
#include <qlora/error.hpp>
#include <qlora/run/registry.hpp>

#include "my_config.hpp"

int main() {
  constexpr qlora::Lora adapters{.rank = 1, .targets = my::config.lora.targets};
  const qlora::run::DeviceRequest cpu{.use = qlora::run::DeviceUse::cpu};
  if (qlora::run::select_code(my::config.shape, adapters, cpu).code->config() != my::config) return 1;
  qlora::Shape other = my::config.shape;
  ++other.layers;
  try {
    (void)qlora::run::select_code(other, adapters, cpu);
  } catch (const qlora::Error& error) {
    return error.kind() == qlora::ErrorKind::usage ? 0 : 2;
  }
  return 3;
}
