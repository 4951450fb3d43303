// qlora/text/token_finder.hpp — the places in a text where one of some fixed texts stands: added tokens, and the
// symbols that the user of a tokenizer.model defined.
// Reference: tests/text/tokenizer_json_test.cpp and tokenizer_test.cpp, ids of the packages.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/text/bpe.hpp"

namespace qlora {
inline namespace v0 {
namespace detail::stages {

/// Finds the longest of a set of texts at each place, as Aho-Corasick does with leftmost-longest matches.
class TokenFinder {
 public:
  void add(std::string text, std::size_t token) {
    auto& lengths = lengths_[static_cast<unsigned char>(text.front())];
    if (std::find(lengths.begin(), lengths.end(), text.size()) == lengths.end()) {
      lengths.push_back(text.size());
      std::sort(lengths.begin(), lengths.end(), std::greater<>());
    }
    tokens_.emplace(std::move(text), static_cast<std::int32_t>(token));
  }
  [[nodiscard]] bool is_empty() const { return tokens_.empty(); }
  /// Calls use(token, begin, end) for each match.
  template <class Use>
  void for_each_match(std::string_view text, const Use& use) const {
    if (tokens_.empty()) return;
    for (std::size_t at = 0; at < text.size();) {
      std::size_t step = 1;
      for (const std::size_t length : lengths_[static_cast<unsigned char>(text[at])]) {
        if (length > text.size() - at) continue;
        const auto found = tokens_.find(text.substr(at, length));
        if (found == tokens_.end()) continue;
        use(static_cast<std::size_t>(found->second), at, at + length);
        step = length;
        break;
      }
      at += step;
    }
  }

 private:
  std::array<std::vector<std::size_t>, 256> lengths_;  // by first byte, longest first
  PieceIds tokens_;
};

}  // namespace detail::stages
}  // namespace v0
}  // namespace qlora
