// qlora/text/text_pieces.hpp — byte-pair encoding of a long text in windows, with the ids of the whole.
// An encoder takes memory for each character of what it encodes at once, so a long text goes through it in windows that
// begin where a piece of the window before ended. Why that is exact: the encoder merges the best pair, the leftmost of
// equals, until there is none.
//   1. Where two pieces of an encoding meet, no merge has crossed, so each side was merged as it is alone: any row of
//      pieces of an encoding is the encoding of its own text.
//   2. If each two neighbours of a row of pieces are the encoding of their own text, the row is that of its whole text:
//      until the first merge that crosses a border, the pieces beside it went as in a text of those two, so that merge
//      would be made there, too.
// So the pieces of two windows are joined where the last one of the first and the first one of the second are the
// encoding of their own text. Where they are not, the second window begins one piece earlier.
// Reference: tests/text/tokenizer_test.cpp and tokenizer_json_test.cpp, ids of whole texts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace qlora {
inline namespace v0 {
namespace detail {

/// Bytes of the windows.
struct TextWindows {
  std::size_t bytes = std::size_t{1} << 14;  ///< of one window
  std::size_t dropped = 512;  ///< at the end of each but the last: what follows may change the pieces there
  std::size_t tries = 256;    ///< windows without a join after which the text cannot be encoded so
};

/// Appends the ids of `text`, UTF-8 of more than `windows.bytes`. encode(part, first) gives the ids of a part, `first`
/// where it begins the text; bytes_before(text, id) how many bytes at the end of `text` the piece stands for, nothing
/// where that is not clear. False where no join was found; `out` is then as it was.
template <class Encode, class BytesBefore>
[[nodiscard]] bool encode_in_windows(std::string_view text, const Encode& encode, const BytesBefore& bytes_before,
                                     std::vector<std::int32_t>& out, const TextWindows& windows = {}) {
  // Several pieces may make one character, so what is joined are the pieces from one whole character to another.
  struct Unit {
    std::size_t bytes = 0;
    std::size_t ids = 0;
  };
  const auto continues = [&](std::size_t at) {
    return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U;
  };
  const std::size_t before = out.size();
  std::size_t at = 0;        // bytes of the text that `out` holds
  std::size_t furthest = 0;  // the same behind the window before
  const auto fail = [&] {
    out.resize(before);
    return false;
  };
  /// What ends at `at`; the text's first piece, before which a tokenizer may put a space, is none.
  const auto last_unit = [&]() -> std::optional<Unit> {
    Unit unit;
    do {
      if (out.size() - unit.ids < before + 2) return std::nullopt;
      const std::optional<std::size_t> bytes =
          bytes_before(text.substr(0, at - unit.bytes), out[out.size() - 1 - unit.ids]);
      if (!bytes || unit.bytes + *bytes >= at) return std::nullopt;
      unit.bytes += *bytes;
      ++unit.ids;
    } while (continues(at - unit.bytes));
    return unit;
  };
  /// What begins at `at`.
  const auto first_unit = [&](const std::vector<std::int32_t>& ids) -> std::optional<Unit> {
    Unit unit;
    do {
      const std::size_t begin = at + unit.bytes;
      std::size_t end = begin + 1;
      const std::size_t last = std::min(text.size(), begin + windows.dropped);
      while (end <= last && bytes_before(text.substr(begin, end - begin), ids[unit.ids]) != end - begin) ++end;
      if (end > last) return std::nullopt;
      unit.bytes += end - begin;
      ++unit.ids;
    } while (continues(at + unit.bytes) && unit.ids < ids.size());
    return continues(at + unit.bytes) ? std::nullopt : std::optional(unit);
  };
  const auto take_back = [&] {
    const std::optional<Unit> unit = last_unit();
    if (!unit) return false;
    at -= unit->bytes;
    out.resize(out.size() - unit->ids);
    return true;
  };
  const auto joins = [&](const std::vector<std::int32_t>& ids) {
    const std::optional<Unit> left = last_unit();
    const std::optional<Unit> right = first_unit(ids);
    if (!left || !right) return false;
    std::vector<std::int32_t> expected(out.end() - static_cast<std::ptrdiff_t>(left->ids), out.end());
    expected.insert(expected.end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(right->ids));
    return encode(text.substr(at - left->bytes, left->bytes + right->bytes), false) == expected;
  };
  for (std::size_t tries = 0; at < text.size();) {
    std::size_t end = std::min(text.size(), at + windows.bytes);
    while (continues(end)) --end;
    const std::vector<std::int32_t> ids = encode(text.substr(at, end - at), at == 0);
    if (ids.empty()) return fail();
    if (at > 0 && !joins(ids)) {
      if (++tries > windows.tries || !take_back()) return fail();
      continue;
    }
    tries = 0;
    if (at == 0) out.reserve(before + (ids.size() + 1) * (text.size() / end + 1) / 16 * 17);
    const std::size_t begin = at;
    out.insert(out.end(), ids.begin(), ids.end());
    at = end;
    if (at == text.size()) return true;
    while (at > begin && end - at < windows.dropped) {
      if (!take_back()) return fail();
    }
    if (at <= begin || at <= furthest) return fail();
    furthest = at;
  }
  return true;
}

}  // namespace detail
}  // namespace v0
}  // namespace qlora
