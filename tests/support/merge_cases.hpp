// tests/support/merge_cases.hpp — a small random model directory and an adapter for it, and what their merge must give.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "qlora/io/hf_model.hpp"
#include "qlora/io/hf_writer.hpp"
#include "qlora/io/merge.hpp"
#include "qlora/io/peft.hpp"

namespace merge_cases {

namespace fs = std::filesystem;
using namespace qlora;

inline constexpr Shape shape{
    .vocab = 70, .dim = 136, .layers = 3, .heads = 4, .kv_heads = 2, .head_dim = 34, .ffn = 200};

/// A folder of the test's own, gone at its end.
struct Scratch {
  fs::path path;
  explicit Scratch(const std::string& name)
      : path(fs::temp_directory_path() / (name + "-" + std::to_string(::getpid()))) {
    fs::create_directories(path);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { fs::remove_all(path); }
};

inline std::vector<float> drawn(std::size_t count, float deviation, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

/// Random weights of this type; `large` is put at the end of one projection.
inline hf::ModelDir write_model(const fs::path& target, DType dtype, float large = 0.5F) {
  hf::ModelConfig config;
  config.shape = shape;
  config.dtype = dtype;
  hf::ModelWriter writer(target, config);
  unsigned seed = 1;
  for (const hf::NamedShape& tensor : writer.tensors()) {
    std::size_t count = 1;
    for (const std::int64_t dim : tensor.shape) count *= static_cast<std::size_t>(dim);
    std::vector<float> values = drawn(count, 0.3F, seed++);
    values[0] = -0.0F;
    if (tensor.name == "model.layers.1.mlp.up_proj.weight") values.back() = large;
    writer.write(tensor.name, values);
  }
  writer.finish();
  return hf::ModelDir::open(target);
}

/// An adapter on some of the projections, one rank different from the others.
inline PeftAdapter write_adapter(const fs::path& target, int rank, int layers = shape.layers, int dim = shape.dim) {
  Shape mine = shape;
  mine.dim = dim;
  PeftConfig config{.r = rank, .alpha = 24, .targets = Proj::q | Proj::v | Proj::up | Proj::down};
  config.rank_pattern["layers.1.mlp.up_proj"] = rank + 3;
  std::vector<std::vector<float>> values;
  std::vector<PeftTensor> tensors;
  unsigned seed = 1000;
  for (int layer = 0; layer < layers; ++layer) {
    for (const Proj proj : all_projections) {
      if (!contains(config.targets, proj)) continue;
      const std::int64_t r = rank_of(config, layer, proj);
      const std::int64_t sizes[2][2] = {{r, cols_of(mine, proj)}, {rows_of(mine, proj), r}};
      for (int i = 0; i < 2; ++i) {
        values.push_back(drawn(static_cast<std::size_t>(sizes[i][0] * sizes[i][1]), 0.1F, seed++));
        tensors.push_back({lora_name(layer, proj, i == 0 ? 'A' : 'B'), {sizes[i][0], sizes[i][1]}, values.back()});
      }
    }
  }
  write_peft(target, config, tensors);
  return PeftAdapter::open(target);
}

/// Every regular file of a directory, by name.
inline std::map<std::string, std::string> files_of(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(directory)) {
    files[entry.path().filename().string()] = read_text(entry.path(), 1U << 30);
  }
  return files;
}

/// Neighbouring float16 numbers have neighbouring places.
inline int place_of(std::uint16_t bits) {
  const int magnitude = bits & 0x7fff;
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

/// 0 where products and sums on the CPU are rounded one by one, as on the GPU; fused ones may end on the other side of
/// a rounding to float16.
#ifdef __FMA__
inline constexpr int allowed_places = 1;
#else
inline constexpr int allowed_places = 0;
#endif

}  // namespace merge_cases
