// serve_bodies.cpp — a target of libFuzzer: the first byte says which path, the rest is the body. See run.sh.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "support/served_bodies.hpp"

/// Writes the bodies that are taken into the first folder of the command line, to begin with.
extern "C" int LLVMFuzzerInitialize(int* count, char*** arguments) {
  for (int i = 1; i < *count; ++i) {
    const std::filesystem::path folder = (*arguments)[i];
    if (!std::filesystem::is_directory(folder)) continue;
    for (std::size_t path = 0; path < test::good_bodies.size(); ++path) {
      std::ofstream(folder / ("good-" + std::to_string(path)), std::ios::binary)
          << static_cast<char>(path) << test::good_bodies[path];
    }
    break;
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const test::ServedBodies bodies;
  if (size == 0) return 0;
  (void)bodies.takes(data[0], {reinterpret_cast<const char*>(data) + 1, size - 1});
  return 0;
}
