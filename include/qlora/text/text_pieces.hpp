// qlora/text/text_pieces.hpp — where a long text can be cut so that byte-pair encoding of the parts gives the ids of
// the whole: between two characters that no piece of the vocabulary spans. Merges only make pieces, so none crosses
// such a place, and each side merges as it does alone. Encoders take memory for each character of what they encode at
// once.
// Reference: tests/text/tokenizer_test.cpp, ids of whole texts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>

namespace qlora {
inline namespace v0 {
namespace detail {

/// Cuts texts for a vocabulary.
class TextCutter {
 public:
  /// Adds a piece as the encoder compares it with a text: in bytes, with its own mark for spaces.
  void add(std::string piece) {
    longest_ = std::max(longest_, piece.size());
    if (piece.size() > 1) pieces_.insert(std::move(piece));
  }
  /// What the encoder has for a space.
  void set_space(std::string mark) { space_ = std::move(mark); }

  /// Bytes of the first part of `text`: about `wanted`, or all of it where no good place is near any multiple of that.
  [[nodiscard]] std::size_t cut(std::string_view text, std::size_t wanted) const {
    constexpr std::size_t tries = 1024;  // near each multiple: most texts have a place in some dozens of characters
    for (std::size_t from = wanted; from < text.size(); from += wanted) {
      const std::size_t end = std::min(text.size(), from + tries);
      for (std::size_t at = from; at < end; ++at) {
        if (!continues(text[at]) && !spanned(text, at)) return at;
      }
    }
    return text.size();
  }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  [[nodiscard]] static bool continues(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U; }

  /// Whether some piece may lie on both sides of `at`.
  [[nodiscard]] bool spanned(std::string_view text, std::size_t at) const {
    const std::size_t first = at - std::min(at, longest_);
    const std::string before = spelled(text.substr(first, at - first));
    const std::string around = before + spelled(text.substr(at, longest_));
    const std::string_view all = around;
    for (std::size_t begin = before.size() - std::min(before.size(), longest_); begin < before.size(); ++begin) {
      if (continues(all[begin])) continue;
      const std::size_t last = std::min(all.size(), begin + longest_);
      for (std::size_t end = before.size() + 1; end <= last; ++end) {
        if (pieces_.find(all.substr(begin, end - begin)) != pieces_.end()) return true;
      }
    }
    return false;
  }
  [[nodiscard]] std::string spelled(std::string_view text) const {
    std::string result;
    for (const char c : text) {
      if (c == ' ') {
        result += space_;
      } else {
        result += c;
      }
    }
    return result;
  }

  std::unordered_set<std::string, Hash, std::equal_to<>> pieces_;
  std::string space_ = " ";
  std::size_t longest_ = 1;
};

}  // namespace detail
}  // namespace v0
}  // namespace qlora
