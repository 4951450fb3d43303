// qlora/text/chat_text.hpp — a conversation as the text that a model reads, before it is tokenized.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace qlora {
inline namespace v0 {

/// Bytes of a text, from `begin` to before `end`.
struct TextRange {
  std::size_t begin = 0;  ///< the first byte
  std::size_t end = 0;    ///< behind the last byte

  /// Whether the two have a byte in common.
  [[nodiscard]] bool overlaps(const TextRange& other) const { return begin < other.end && other.begin < end; }
};

/// A conversation, written out.
struct ChatText {
  std::string text;                ///< UTF-8
  std::vector<TextRange> content;  ///< what messages say, in order; marks of a tokenizer are plain text there
  std::vector<TextRange> replies;  ///< what the assistant writes, its end mark included, in order
};

/// Ids of a text with marks.
struct MarkedIds {
  std::vector<std::int32_t> ids;    ///< marks included
  std::vector<std::size_t> begins;  ///< per id, the byte of the text where it begins

  /// Appends the ids of `part`, which begins at the byte `at` of the text. `surface_of(id)` is the text of an id. A
  /// space that the tokenizer puts before the part has no bytes there, and U+2581 reads as a space.
  template <class Surface>
  void append(std::span<const std::int32_t> part_ids, std::string_view part, std::size_t at,
              const Surface& surface_of) {
    constexpr std::string_view space = "\xE2\x96\x81";
    std::size_t done = 0;
    bool lost = false;  // behind an id whose text is not what it stands for
    for (const std::int32_t id : part_ids) {
      const std::string surface = surface_of(id);
      if (lost) {
        const std::size_t found = part.find(surface, done);
        if (found != std::string_view::npos && !surface.empty()) done = found;
      }
      lost = false;
      append(id, at + done);
      for (const char c : surface) {
        if (done < part.size() && part[done] == c) {
          ++done;
        } else if (c == ' ' && part.substr(done).starts_with(space)) {
          done += space.size();
        } else if (done > 0 || c != ' ') {
          lost = true;
        }
      }
    }
  }
  /// Appends a mark.
  void append(std::int32_t id, std::size_t begin) {
    ids.push_back(id);
    begins.push_back(begin);
  }
};

}  // namespace v0
}  // namespace qlora
