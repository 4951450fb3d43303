// tests/support/golden.hpp — reads golden results (see golden/README.md), and the two measures that they are compared
// by.
#pragma once

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "qlora/io/safetensors.hpp"

namespace golden {

/// tests/golden, or where QLORA_GOLDEN points.
[[nodiscard]] inline std::filesystem::path folder() {
  const char* elsewhere = std::getenv("QLORA_GOLDEN");
  return elsewhere != nullptr && *elsewhere != '\0' ? std::filesystem::path(elsewhere)
                                                    : std::filesystem::path(QLORA_SOURCE_DIR) / "tests/golden";
}

[[nodiscard]] inline std::vector<float> floats(const qlora::TensorRef& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.size()));
  qlora::read_floats(tensor, 0, values);
  return values;
}
[[nodiscard]] inline std::vector<float> floats(const qlora::SafetensorsFile& file, const std::string& name) {
  return floats(file.at(name));
}

/// An int64 tensor; every value fits 32 bits.
[[nodiscard]] inline std::vector<std::int32_t> ints(const qlora::SafetensorsFile& file, const std::string& name) {
  const qlora::TensorRef tensor = file.at(name);
  QLORA_EXPECTS(tensor.dtype == qlora::DType::i64, name, " holds ", qlora::name_of(tensor.dtype));
  std::vector<std::int32_t> values(static_cast<std::size_t>(tensor.size()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::int64_t value = 0;
    std::memcpy(&value, tensor.bytes.data() + i * sizeof(value), sizeof(value));
    values[i] = static_cast<std::int32_t>(value);
  }
  return values;
}

/// ||ours - golden|| / ||golden||; infinite when the sizes differ or anything is not finite.
template <class Ours>
[[nodiscard]] double relative(const Ours& ours, const std::vector<float>& golden) {
  if (ours.size() != golden.size()) return INFINITY;
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < golden.size(); ++i) {
    const double d = static_cast<double>(ours[i]) - static_cast<double>(golden[i]);
    difference += d * d;
    norm += static_cast<double>(golden[i]) * static_cast<double>(golden[i]);
  }
  const double result = std::sqrt(difference / norm);
  return std::isfinite(result) ? result : INFINITY;
}

/// The largest |ours - golden|; infinite when the sizes differ or anything is not finite.
template <class Ours>
[[nodiscard]] double largest_difference(const Ours& ours, const std::vector<float>& golden) {
  if (ours.size() != golden.size()) return INFINITY;
  double largest = 0.0;
  for (std::size_t i = 0; i < golden.size(); ++i) {
    const double d = std::abs(static_cast<double>(ours[i]) - static_cast<double>(golden[i]));
    if (!(d <= largest)) largest = std::isfinite(d) ? d : INFINITY;
  }
  return largest;
}

}  // namespace golden
