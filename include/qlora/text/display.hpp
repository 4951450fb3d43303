// qlora/text/display.hpp — windows as readable text, with document boundaries and labels.
// In colour, each document has a colour and unlabelled tokens are dim; without colour, unlabelled tokens are in ‹
// ›.
// What may not change: no byte of a page reaches the terminal as a control character (an escape sequence in a page
// would otherwise be obeyed by the reader's terminal).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/packing.hpp"
#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {

/// What is shown of a data set, and how.
struct DisplayOptions {
  int windows = 2;      ///< how many of the first windows
  bool colour = false;  ///< ANSI colours, for terminals
};

namespace detail {

/// Text with control characters and broken UTF-8 spelled as <0x1B>; a line end shows as an arrow and ends the line.
[[nodiscard]] inline std::string printable(std::string_view text) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  std::string out;
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const auto first = static_cast<unsigned char>(text[0]);
    const bool c1 = length == 2 && first == 0xC2 && static_cast<unsigned char>(text[1]) < 0xA0;
    if (first == '\n') {
      out += "\u21B5\n";
    } else if (length == 0 || first < 0x20 || first == 0x7F || c1) {
      for (const char c : text.substr(0, c1 ? 2 : 1)) {
        const auto byte = static_cast<unsigned char>(c);
        out += std::string("<0x") + digits[byte / 16] + digits[byte % 16] + '>';
      }
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return out;
}

/// Text of consecutive tokens; begin and end tokens are spelled out, bytes of one character are joined.
template <class TextTokenizer>
[[nodiscard]] std::string display_text(const TextTokenizer& tokenizer, std::span<const std::int32_t> ids) {
  std::string bytes;
  for (const std::int32_t id : ids) bytes += tokenizer.is_control(id) ? tokenizer.piece(id) : tokenizer.surface(id);
  return printable(bytes);
}

[[nodiscard]] inline std::string colour_of(std::int32_t document, bool labelled) {
  constexpr std::array<const char*, 6> codes{"32", "36", "33", "35", "34", "31"};
  return concat("\x1b[", labelled ? "" : "2;", codes[static_cast<std::size_t>(document) % codes.size()], "m");
}

}  // namespace detail

/// The first windows as text. `names` (may be shorter) says what to call the documents. Shapes: ids, labels and
/// documents (N,S) as packing.hpp has them. Throws Error when they differ in size or an id is outside the vocabulary.
template <class TextTokenizer>
[[nodiscard]] std::string render_windows(const TextTokenizer& tokenizer, int seq, std::span<const std::int32_t> ids,
                                         std::span<const std::int32_t> labels, std::span<const std::int32_t> documents,
                                         std::span<const std::string> names, const DisplayOptions& options) {
  QLORA_EXPECTS(seq > 0 && options.windows >= 0 && ids.size() % static_cast<std::size_t>(seq) == 0 &&
                    labels.size() == ids.size() && documents.size() == ids.size(),
                ids.size(), " ids, ", labels.size(), " labels, ", documents.size(), " documents in windows of ", seq);
  const auto length = static_cast<std::size_t>(seq);
  const std::size_t shown = std::min(static_cast<std::size_t>(options.windows), ids.size() / length);
  std::string out = options.colour ? "one colour a document, \x1b[2mdim\x1b[0m: read but not learned\n"
                                   : "\u2039 \u203A: read but not learned\n";
  for (std::size_t w = 0; w < shown; ++w) {
    const std::size_t begin = w * length, end = begin + length;
    std::size_t learned = 0;
    for (std::size_t i = begin; i < end; ++i) learned += labels[i] != ignored_label ? 1 : 0;
    out += concat("\nwindow ", w, ": ", seq, " tokens, ", learned, " learned\n");
    for (std::size_t i = begin, next = begin; i < end; i = next) {
      const std::int32_t document = documents[i];
      while (next < end && documents[next] == document) ++next;
      if (document == no_document) {
        out += concat("-- padding, ", next - i, " tokens\n");
        continue;
      }
      const auto index = static_cast<std::size_t>(document);
      const std::string name = index < names.size() ? " " + detail::printable(names[index]) : "";
      out += concat("-- document ", document, name, ", ", next - i, " tokens\n");
      for (std::size_t run = i, stop = i; run < next; run = stop) {
        const bool learn = labels[run] != ignored_label;
        while (stop < next && (labels[stop] != ignored_label) == learn) ++stop;
        const std::string text = detail::display_text(tokenizer, ids.subspan(run, stop - run));
        if (options.colour) {
          out += detail::colour_of(document, learn) + text + "\x1b[0m";
        } else {
          out += learn ? text : "\u2039" + text + "\u203A";
        }
      }
      out += '\n';
    }
  }
  return out;
}

}  // namespace v0
}  // namespace qlora
