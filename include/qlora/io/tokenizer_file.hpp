// qlora/io/tokenizer_file.hpp — which of a model directory's tokenizer files rules, as in the package transformers.
#pragma once

#include <filesystem>

namespace qlora {
inline namespace v0 {

/// The tokenizer file of a model directory. tokenizer.json, which knows tokens that were added later; it needs
/// tokenizer_config.json beside it, which says what ends a text. Else tokenizer.model. The path of tokenizer.model
/// where there is neither.
[[nodiscard]] inline std::filesystem::path tokenizer_file(const std::filesystem::path& dir) {
  const std::filesystem::path json = dir / "tokenizer.json";
  const std::filesystem::path model = dir / "tokenizer.model";
  if (!exists(json)) return model;
  return exists(dir / "tokenizer_config.json") || !exists(model) ? json : model;
}

}  // namespace v0
}  // namespace qlora
