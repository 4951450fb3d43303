// make_model.cpp — writes a model of random weights that the program has compiled in, for the end-to-end tests.
//   make_model LIKE_DIR OUT_DIR     config and tokenizer are those of LIKE_DIR; the weights are the same every time
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <vector>

#include "qlora/io/hf.hpp"
#include "qlora/io/hf_config.hpp"
#include "qlora/io/hf_writer.hpp"
#include "qlora/io/json.hpp"

namespace {

/// A number in (-1, 1) from a counter (SplitMix64).
float noise(std::uint64_t counter) {
  std::uint64_t z = (counter + 1) * 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return static_cast<float>(static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1.0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "make_model LIKE_DIR OUT_DIR\n";
    return 2;
  }
  try {
    const std::filesystem::path like = argv[1];
    qlora::hf::ModelConfig config =
        qlora::hf::parse_config(qlora::read_json_object(like / "config.json"), (like / "config.json").string());
    config.dtype = qlora::DType::f16;
    qlora::hf::ModelWriter writer(argv[2], config, {.tokenizer_from = like});
    std::uint64_t counter = 0;
    for (const auto& tensor : writer.tensors()) {
      std::int64_t count = 1;
      for (const std::int64_t dim : tensor.shape) count *= dim;
      std::vector<float> values(static_cast<std::size_t>(count), 1.0F);
      if (tensor.shape.size() == 2) {
        for (float& value : values) value = 0.05F * noise(counter++);
      }
      writer.write(tensor.name, values);
    }
    writer.finish();
  } catch (const std::exception& error) {
    std::cerr << "make_model: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
