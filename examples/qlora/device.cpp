// device.cpp — device.hpp: sizes as text, and whether there is a GPU.
#include "device.hpp"

#include <array>
#include <cstdio>

#include "qlora/error.hpp"
#ifdef QLORA_CUDA
#include "qlora/cuda/launch.hpp"
#endif

namespace qlora::program {

DeviceSection section_of(const run::DeviceRequest& request) {
  return {.use = std::string(name_of(request.use)),
          .memory_cap = run::text_of(request.memory_cap),
          .fast = request.fast,
          .resident = request.keep_dequantized};
}

std::int64_t bytes_of_option(std::string_view option, std::string_view text) {
  const auto bytes = run::parse_bytes(text);
  if (!bytes) {
    throw Error(concat(option, " is '", text, "'; a size looks like 24GB, 24GiB or 24000000000"), ErrorKind::usage);
  }
  return bytes->count;
}

std::string gigabytes(std::int64_t bytes) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), bytes < 100'000'000 ? "%.3f GB" : "%.1f GB",
                static_cast<double>(bytes) / 1e9);
  return text.data();
}

bool cuda_usable(std::string& why) {
#ifdef QLORA_CUDA
  return cuda::device_count(&why) > 0;
#else
  why = "this program was built without CUDA; install NVIDIA's toolkit and build again with -DQLORA_CUDA=ON";
  return false;
#endif
}

}  // namespace qlora::program
