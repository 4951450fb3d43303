// qlora/io/carried_files.hpp — files of a model directory that a model made of it keeps as they are: how it generates,
// and under which licence. Weights, config.json and the tokenizer are written by those who know them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "qlora/io/file.hpp"

namespace qlora {
inline namespace v0 {
namespace hf {

/// Whether a file of this name is carried along: generation_config.json, and LICENSE, LICENCE, COPYING, NOTICE and
/// USE_POLICY in any case and with any ending.
[[nodiscard]] inline bool is_carried_file(std::string_view name) {
  constexpr std::array<std::string_view, 5> legal{"LICENSE", "LICENCE", "COPYING", "NOTICE", "USE_POLICY"};
  const auto begins = [&](std::string_view word) {
    return name.size() >= word.size() && std::equal(word.begin(), word.end(), name.begin(), [](char a, char b) {
             return a == (b >= 'a' && b <= 'z' ? static_cast<char>(b - 'a' + 'A') : b);
           });
  };
  return name == "generation_config.json" || std::any_of(legal.begin(), legal.end(), begins);
}

/// The texts of those files in a model directory, by their names. Throws Error for one that cannot be read, or has more
/// than 1 MiB.
[[nodiscard]] inline std::map<std::string, std::string> carried_files(const std::filesystem::path& dir) {
  constexpr std::size_t most = std::size_t{1} << 20;
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    if (is_carried_file(name) && entry.is_regular_file()) files[name] = read_text(entry.path(), most);
  }
  return files;
}

}  // namespace hf
}  // namespace v0
}  // namespace qlora
