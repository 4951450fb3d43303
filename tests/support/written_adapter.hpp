// written_adapter.hpp — an adapter for the repository's chat model, as peft writes one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>

namespace test {

/// An adapter of rank 2 on every o_proj and down_proj, strong enough to change what is said.
inline void write_adapter(const std::filesystem::path& dir, unsigned seed) {
  std::filesystem::create_directories(dir);
  std::mt19937 random(seed);
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  const auto add = [&](const std::string& name, int rows, int columns) {
    const std::size_t begin = data.size();
    for (int i = 0; i < rows * columns; ++i) {
      const float value = (static_cast<float>(random() % 2001U) - 1000.0F) * 2e-4F;
      std::array<char, sizeof value> bytes{};
      std::memcpy(bytes.data(), &value, sizeof value);
      data.append(bytes.data(), bytes.size());
    }
    header[name] = {{"dtype", "F32"}, {"shape", {rows, columns}}, {"data_offsets", {begin, data.size()}}};
  };
  for (int layer = 0; layer < 4; ++layer) {
    for (const auto& [module, in] : {std::pair("self_attn.o_proj", 256), std::pair("mlp.down_proj", 704)}) {
      const std::string name = "base_model.model.model.layers." + std::to_string(layer) + "." + module;
      add(name + ".lora_A.weight", 2, in);
      add(name + ".lora_B.weight", 256, 2);
    }
  }
  header["__metadata__"] = {{"format", "pt"}};
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t size = text.size();
  std::ofstream file(dir / "adapter_model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&size), sizeof size);
  file << text << data;
  std::ofstream(dir / "adapter_config.json") << nlohmann::json{
      {"peft_type", "LORA"},
      {"r", 2},
      {"lora_alpha", 4},
      {"target_modules", {"o_proj", "down_proj"}}}.dump();
}

}  // namespace test
