// device.cpp — device.hpp: sizes as text, and whether there is a GPU.
#include "device.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <utility>

#include "options.hpp"
#include "qlora/error.hpp"
#ifdef QLORA_CUDA
#include "qlora/cuda/launch.hpp"
#endif

namespace qlora::program {

std::optional<std::int64_t> bytes_of(std::string_view text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || !(number > 0)) return std::nullopt;
  std::string_view unit = text.substr(static_cast<std::size_t>(end - text.data()));
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  constexpr std::array<std::pair<std::string_view, double>, 6> units{
      {{"", 1.0}, {"B", 1.0}, {"MB", 1e6}, {"GB", 1e9}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}}};
  for (const auto& [name, factor] : units) {
    if (unit == name && number * factor >= 1 && number * factor < 9e18) {
      return static_cast<std::int64_t>(std::floor(number * factor));
    }
  }
  return std::nullopt;
}

std::int64_t bytes_of_option(std::string_view option, std::string_view text) {
  if (text.empty()) return 0;
  const auto bytes = bytes_of(text);
  constexpr std::int64_t least = 1 << 20;  // "24" was not meant as bytes
  if (!bytes || *bytes < least) {
    throw Error(qlora::detail::concat(option, " is '", text, "'; a size looks like 24GB, 24GiB or 24000000000"),
                ErrorKind::usage);
  }
  return *bytes;
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

void add_device_options(OptionSet verb, DeviceSection& device, int& threads) {
  verb.add("--device", device.use,
           "Where to compute; auto: on a GPU if there is one and the model is compiled in for it")
      .one_of({"auto", "cpu", "cuda"});
  verb.add("--memory-cap", device.memory_cap, "GPU: take at most so much of its memory, as in 24GB").type_name("SIZE");
  verb.add("--fast", device.fast, "GPU: allow sums whose last bits depend on timing");
  verb.add("--resident", device.resident, "GPU: hold the frozen weights in bf16 too: more memory, less time");
  verb.add("--threads", threads, "CPU threads; 0: one per core").range(0, 1024);
}

}  // namespace qlora::program
