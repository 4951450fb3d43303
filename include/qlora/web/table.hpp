// qlora/web/table.hpp — text blocks, and rows of a table as one line each.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/web/charset.hpp"
#include "qlora/web/marks.hpp"

namespace qlora {
inline namespace v0 {
namespace web {
namespace detail {

enum class BlockKind : std::uint8_t { paragraph, heading, item, row, term };

struct Block {
  std::string text;
  BlockKind kind = BlockKind::paragraph;
  unsigned level = 0;      ///< of a heading
  unsigned place = 0;      ///< bits of Place
  std::size_t links = 0;   ///< bytes of text inside links
  std::size_t list = 0;    ///< which list an item belongs to, from 1
  std::size_t mark = 0;    ///< bytes of "- " or "1. " at the start
  std::uint32_t node = 0;  ///< where its text begins
  bool behind = false;     ///< behind the end of <html>
};

/// Bytes of the white space at the start: ASCII, no-break, U+2000 to U+200A, narrow no-break; 0 if there is none.
[[nodiscard]] inline std::size_t space_length(std::string_view text) {
  if (is_space(text[0])) return 1;
  if (text.starts_with("\xC2\xA0")) return 2;
  if (text.starts_with("\xE2\x80\xAF")) return 3;
  return text.size() >= 3 && text.starts_with("\xE2\x80") && static_cast<unsigned char>(text[2]) <= 0x8A ? 3 : 0;
}

/// Appends with runs of white space as one space, none at the start of a line. Zero-width
/// characters and soft hyphens are dropped.
inline void add_collapsed(std::string& out, std::string_view piece) {
  for (std::size_t i = 0; i < piece.size();) {
    const std::string_view rest = piece.substr(i);
    const std::size_t space = space_length(rest);
    if (space > 0) {
      if (!out.empty() && out.back() != ' ' && out.back() != '\n') out += ' ';
      i += space;
    } else if (rest.starts_with("\xC2\xAD")) {
      i += 2;
    } else if (rest.starts_with("\xE2\x80\x8B") || rest.starts_with("\xEF\xBB\xBF")) {
      i += 3;
    } else {
      const auto c = static_cast<unsigned char>(rest[0]);
      if (c >= 0x20 && c != 0x7F) out += rest[0];
      ++i;
    }
  }
}

/// Number of an attribute; 0 if it is none or above 9999.
[[nodiscard]] inline std::size_t small_number(std::string_view text) {
  text = trim(text);
  std::size_t number = 0;
  if (text.empty() || text.size() > 4) return 0;
  for (const char c : text) {
    if (!is_digit(c)) return 0;
    number = number * 10 + static_cast<std::size_t>(c - '0');
  }
  return number;
}

/// A table being read. A row of short cells becomes one line: "name: value" for two cells, "a | b | c" for others; a
/// cell over several rows stands in each. A row that holds running text or code is layout, and its blocks stay as they
/// are.
struct Table {
  std::vector<Block> outer;  ///< blocks of what holds the table, and the rows so far
  bool row_open = false;
  bool cell_open = false;
  std::size_t rowspan = 1;  ///< of the open cell
  std::size_t colspan = 1;

  void add_cell(std::vector<Block> blocks) {
    fill_spans();
    const std::size_t column = cells_.size();
    const bool short_cell = blocks.size() == 1 && blocks[0].text.size() <= max_repeated;
    if (rowspan > 1 && short_cell && spans_.size() < 100) spans_.push_back({column, rowspan - 1, blocks[0]});
    cells_.push_back(std::move(blocks));
    for (std::size_t i = 1; i < colspan; ++i) cells_.emplace_back();
  }

  void end_row() {
    if (!row_open) return;
    fill_spans();
    for (Span& span : spans_) {
      if (span.used) --span.rows;
      span.used = true;
    }
    std::erase_if(spans_, [](const Span& span) { return span.rows == 0; });
    row_open = false;
    drop_line_numbers();
    bool data = true;
    std::size_t filled = 0;
    for (const auto& cell : cells_) {
      std::size_t bytes = 0;
      std::size_t lines = 0;
      for (const Block& block : cell) {
        bytes += block.text.size();
        lines += 1 + static_cast<std::size_t>(std::count(block.text.begin(), block.text.end(), '\n'));
        data = data && block.kind != BlockKind::row && block.kind != BlockKind::heading && (block.place & in_pre) == 0;
      }
      filled += !cell.empty();
      data = data && cell.size() <= 3 && bytes <= 500 && lines <= 4;
    }
    if (!data || filled == 1) {
      for (auto& cell : cells_) std::move(cell.begin(), cell.end(), std::back_inserter(outer));
    } else if (filled > 0) {
      outer.push_back(join_row());
    }
    cells_.clear();
  }

 private:
  struct Span {
    std::size_t column;
    std::size_t rows;  ///< still to come
    Block block;
    bool used = false;  ///< the row that it began in has ended
  };
  static constexpr std::size_t max_repeated = 200;

  /// Repeats cells of earlier rows that reach down to this one.
  void fill_spans() {
    for (bool found = true; found;) {
      found = false;
      for (const Span& span : spans_) {
        if (!span.used || span.column != cells_.size() || budget_ < span.block.text.size() + 64) continue;
        budget_ -= span.block.text.size() + 64;
        cells_.push_back({span.block});
        found = true;
      }
    }
  }

  /// A column of line numbers beside code is none of the code.
  void drop_line_numbers() {
    const auto is_code = [](const std::vector<Block>& cell) {
      return std::any_of(cell.begin(), cell.end(), [](const Block& b) { return (b.place & in_pre) != 0; });
    };
    if (std::count_if(cells_.begin(), cells_.end(), is_code) < 2) return;
    std::erase_if(cells_, [](const std::vector<Block>& cell) {
      return cell.size() == 1 && cell[0].text.find_first_not_of("0123456789 \r\n") == std::string::npos;
    });
  }

  [[nodiscard]] Block join_row() const {
    Block row;
    row.kind = BlockKind::row;
    std::vector<std::string> texts;
    bool first = true;
    for (const auto& cell : cells_) {
      std::string text;
      for (const Block& block : cell) {
        if (std::exchange(first, false)) {
          row.place = block.place;
          row.node = block.node;
          row.behind = block.behind;
        }
        row.links += block.links;
        text += (text.empty() ? "" : "; ") + (block.text.starts_with("- ") ? block.text.substr(2) : block.text);
      }
      for (std::size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at)) {
        const bool ends = at > 0 && std::string_view(",;:.-").find(text[at - 1]) != std::string_view::npos;
        text.replace(at, 1, ends ? " " : "; ");
      }
      texts.push_back(std::move(text));
    }
    while (!texts.empty() && texts.back().empty()) texts.pop_back();
    const bool pair = cells_.size() == 2 && texts.size() == 2 && !texts[0].empty();
    for (std::size_t i = 0; i < texts.size(); ++i)
      row.text += (i == 0 ? "" : !pair ? " | " : texts[0].ends_with(':') ? " " : ": ") + texts[i];
    return row;
  }

  std::vector<std::vector<Block>> cells_;  ///< of the open row
  std::vector<Span> spans_;
  std::size_t budget_ = std::size_t{64} << 10;  ///< bytes that repeated cells may still take
};

}  // namespace detail
}  // namespace web
}  // namespace v0
}  // namespace qlora
