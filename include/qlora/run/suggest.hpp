// qlora/run/suggest.hpp — what a mistyped word may have meant.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Levenshtein distance: letters to insert, remove or replace.
inline std::size_t edits(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t change = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({change, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

/// "; did you mean `lr`?", or the list of what there is when nothing is near.
inline std::string suggestion(std::string_view wrong, const std::vector<std::string_view>& known) {
  const auto nearest =
      std::min_element(known.begin(), known.end(), [&](auto a, auto b) { return edits(wrong, a) < edits(wrong, b); });
  if (nearest != known.end() && edits(wrong, *nearest) <= std::max<std::size_t>(2, wrong.size() / 3)) {
    return concat("; did you mean `", *nearest, "`?");
  }
  std::string all = "; known are";
  for (const auto name : known) all += concat(" ", name);
  return all;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
