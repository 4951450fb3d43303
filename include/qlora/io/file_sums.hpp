// qlora/io/file_sums.hpp — the SHA-256 of the small files of a directory in one file beside them, in the form that
// `sha256sum --check` reads. Weights are not among them: they have checksums of their own (io/safetensors.hpp).
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/sha256.hpp"

namespace qlora {
inline namespace v0 {

/// The file with the sums.
inline constexpr std::string_view file_sums_name = "qlora.sha256";

/// Writes the sums of these files of a directory, in this order.
inline void write_file_sums(const std::filesystem::path& directory, const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += concat(sha256_file(directory / name), "  ", name, "\n");
  write_file_atomically(directory / file_sums_name, text);
}

/// Compares the files of a directory with their sums, if it has any. Throws Error naming the file that differs.
inline void check_file_sums(const std::filesystem::path& directory) {
  const std::filesystem::path sums = directory / file_sums_name;
  if (!std::filesystem::exists(sums)) return;
  const std::string text = read_text(sums, 1U << 16);
  refuse_lfs_pointer(text, sums.string());
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    const std::string_view sum = line.substr(0, 64);
    const std::string_view name = line.substr(std::min<std::size_t>(line.size(), 66));
    const bool plain = sum.find_first_not_of("0123456789abcdef") == std::string_view::npos && !name.empty() &&
                       line.substr(64, 2) == "  " && name.find('/') == std::string_view::npos;
    if (!plain) throw Error(concat(sums.string(), ": a line is not \"SHA-256  NAME\"; the file is damaged"));
    const std::filesystem::path file = directory / name;
    if (!std::filesystem::exists(file)) {
      throw Error(
          concat(file.string(), " is missing; if it was removed on purpose, remove its line in ", sums.string()));
    }
    if (sha256_file(file) != sum) {
      refuse_lfs_pointer_in(file);
      throw Error(concat(file.string(), " is not what was written: its SHA-256 is not that in ", sums.string(),
                         "; restore it, or, if it was changed on purpose, remove its line there"));
    }
  }
}

}  // namespace v0
}  // namespace qlora
