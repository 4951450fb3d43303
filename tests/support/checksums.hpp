// checksums.hpp — files with checksums as the reference implementation would have written them, and damaged files.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "qlora/io/file.hpp"
#include "qlora/io/safetensors.hpp"
#include "qlora/io/safetensors_writer.hpp"

namespace test {

/// The bytes of a file whose checksums are left out; `scratch` is written.
inline std::string without_checksums(const std::filesystem::path& path, const std::filesystem::path& scratch) {
  const qlora::SafetensorsFile file(path);
  std::vector<std::pair<std::string, qlora::TensorRef>> tensors;
  for (const std::string& name : file.names()) tensors.emplace_back(name, file.at(name));
  auto metadata = file.metadata();
  metadata.erase("xxh3_128.header");
  metadata.erase("xxh3_128.tensors");
  qlora::write_safetensors(scratch, tensors, metadata);
  return qlora::read_text(scratch, 1 << 30);
}

/// Changes one bit of a file; a place beyond its end counts from the begin again.
inline void flip_bit(const std::filesystem::path& path, std::size_t bit) {
  std::string bytes = qlora::read_text(path, 1 << 30);
  char& byte = bytes[bit / 8 % bytes.size()];
  byte = static_cast<char>(byte ^ (1 << bit % 8));
  qlora::write_file_atomically(path, bytes);
}

}  // namespace test
