// served_files.hpp — the files of the repository's chat model, for tests that serve it without the program. Its
// tokenizer and its form are named, so that a test does not compile the readers of all others.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "qlora/io/file.hpp"
#include "qlora/run/model_files.hpp"

namespace test {

inline std::shared_ptr<const qlora::run::ModelFiles> served_files() {
  const std::filesystem::path dir = std::string(QLORA_SOURCE_DIR) + "/examples/models/tiny-chat";
  return std::make_shared<const qlora::run::ModelFiles>(qlora::run::ModelFiles{
      qlora::hf::ModelDir::open(dir, qlora::Verify::nothing),
      qlora::Tokenizer::parse(qlora::read_text(dir / "tokenizer.model", 1U << 20)), qlora::ChatTemplate()});
}

}  // namespace test
