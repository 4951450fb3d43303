// qlora/web/blocks.hpp — an HTML page as a flat list of text blocks, built by libxml2's push SAX parser.
// Knows elements, attributes and whitespace; which block is worth keeping is extract.hpp's choice.
// What may not change: no tree is built, so depth costs nothing; nothing throws through the parser's C frames.
#pragma once

#include <libxml/HTMLparser.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <exception>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/web/charset.hpp"
#include "qlora/web/prescan.hpp"

namespace qlora {
inline namespace v0 {
namespace web {

/// Limits of one extraction.
struct ExtractOptions {
  std::size_t max_bytes = std::size_t{8} << 20;
  double max_cpu_seconds = 2;  ///< of the calling thread
};

namespace detail {

enum class BlockKind : std::uint8_t { paragraph, heading, item, row, term };

/// Why a block may be boilerplate, and where it stands; bits of Block::place.
enum Place : unsigned {
  in_chrome = 1,    ///< nav, header, footer, aside, or such a role
  in_form = 2,      ///< form
  in_suspect = 4,   ///< an element whose class or id speaks of menus, cookies, sharing ...
  in_main = 8,      ///< main, or role=main
  in_article = 16,  ///< article
  in_hidden = 32,   ///< never text: hidden, noscript, template, button ...
  in_link = 64,
  in_pre = 128,
};

struct Block {
  std::string text;
  BlockKind kind = BlockKind::paragraph;
  unsigned level = 0;     ///< of a heading
  unsigned place = 0;     ///< bits of Place
  std::size_t links = 0;  ///< bytes of text inside links
  std::size_t list = 0;   ///< which list an item belongs to, from 1
};

template <std::size_t N>
[[nodiscard]] bool one_of(std::string_view name, const std::array<std::string_view, N>& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

inline constexpr std::array<std::string_view, 22> skipped_elements = {
    "script", "style",  "noscript", "template", "iframe", "object", "svg",    "canvas", "button", "select", "textarea",
    "option", "applet", "audio",    "video",    "map",    "math",   "dialog", "head",   "title",  "input",  "datalist"};
inline constexpr std::array<std::string_view, 29> block_elements = {
    "p",      "div",     "section", "article",    "main",       "header", "footer",  "nav", "aside",  "form",
    "ul",     "ol",      "dl",      "h1",         "h2",         "h3",     "h4",      "h5",  "h6",     "address",
    "center", "details", "hr",      "blockquote", "figcaption", "figure", "summary", "pre", "caption"};
inline constexpr std::array<std::string_view, 8> chrome_roles = {"navigation", "banner", "contentinfo", "complementary",
                                                                 "search",     "menu",   "menubar",     "toolbar"};
/// Words of class and id names (split at anything but letters) that mark boilerplate.
inline constexpr std::array<std::string_view, 35> suspect_words = {
    "cookie",        "cookies",    "consent",   "gdpr",     "newsletter",  "subscribe", "breadcrumb",
    "breadcrumbs",   "share",      "sharing",   "social",   "sidebar",     "menu",      "navbar",
    "nav",           "navigation", "footer",    "related",  "recommended", "advert",    "ads",
    "advertisement", "ad",         "promo",     "popup",    "modal",       "banner",    "skip",
    "pagination",    "pager",      "sponsored", "comments", "toolbar",     "masthead",  "teaser"};

[[nodiscard]] inline bool is_suspect_name(std::string_view names) {
  std::size_t i = 0;
  while (i < names.size()) {
    const std::size_t start = i;
    while (i < names.size() && is_letter(names[i])) ++i;
    if (i > start && i - start <= 13 && one_of(lower(names.substr(start, i - start)), suspect_words)) return true;
    if (i == start) ++i;
  }
  return false;
}

[[nodiscard]] inline bool is_hidden_style(std::string_view style) {
  std::string squeezed = lower(style.substr(0, 4096));
  std::erase_if(squeezed, is_space);
  return squeezed.find("display:none") != std::string::npos || squeezed.find("visibility:hidden") != std::string::npos;
}

/// Receives the parser's events and leaves blocks, a title and the like.
class BlockBuilder {
 public:
  std::vector<Block> blocks;
  std::string title;     ///< of <title>
  std::string og_title;  ///< of <meta property="og:title">

  void start(std::string_view name, const xmlChar** attributes) {
    Element element{std::string(name.substr(0, 16)), place_, false};
    if (name == "html" || name == "body") {
      stack_.push_back(std::move(element));
      return;
    }
    place_ |= place_of(name, attributes);
    element.takes_title = name == "title" && title.empty() && (element.place & in_hidden) == head_only_;
    if (name == "meta") read_meta(attributes);
    if (name == "head") head_only_ = in_hidden;
    open(name);
    taking_title_ = taking_title_ || element.takes_title;
    stack_.push_back(std::move(element));
  }

  void end(std::string_view name) {
    name = name.substr(0, 16);
    // The parser closes in order; should it not, look a little deeper and no further, so that this stays linear.
    std::size_t depth = stack_.size();
    for (std::size_t looked = 0; depth > 0 && looked < 64; --depth, ++looked)
      if (stack_[depth - 1].name == name) break;
    if (depth == 0 || stack_[depth - 1].name != name) return;
    while (stack_.size() >= depth) {
      close(stack_.back().name);
      if (stack_.back().takes_title) taking_title_ = false;
      if (stack_.back().name == "head") head_only_ = 0;
      place_ = stack_.back().place;
      stack_.pop_back();
    }
  }

  void text(std::string_view piece) {
    if (taking_title_) add_collapsed(title, piece);
    if ((place_ & in_hidden) != 0) return;
    const std::size_t before = current_.text.size();
    if (current_.text.empty()) current_.place = place_;
    if ((place_ & in_pre) != 0)
      current_.text += piece;
    else
      add_collapsed(current_.text, piece);
    if ((place_ & in_link) != 0) current_.links += current_.text.size() - before;
  }

  void finish() {
    while (!stack_.empty()) end(std::string(stack_.back().name));
    flush();
  }

 private:
  struct Element {
    std::string name;
    unsigned place;  ///< outside of it
    bool takes_title;
  };
  /// A table being read; deeper ones than max_tables are read as running text.
  struct Table {
    std::vector<std::vector<Block>> cells;  ///< of the open row
    std::vector<Block> outer;               ///< blocks of what holds the table
    bool row_open = false;
    bool cell_open = false;
  };
  static constexpr std::size_t max_tables = 8;

  [[nodiscard]] unsigned place_of(std::string_view name, const xmlChar** attributes) const {
    unsigned place = 0;
    const bool inside = (place_ & (in_main | in_article)) != 0;  // an article's own header and footer hold its text
    if (one_of(name, skipped_elements)) place |= in_hidden;
    if (name == "nav" || name == "aside" || ((name == "header" || name == "footer") && !inside)) place |= in_chrome;
    if (name == "form") place |= in_form;
    if (name == "main") place |= in_main;
    if (name == "article") place |= in_article;
    if (name == "a") place |= in_link;
    if (name == "pre") place |= in_pre;
    for (std::size_t i = 0; attributes != nullptr && attributes[i] != nullptr; i += 2) {
      const std::string_view key = reinterpret_cast<const char*>(attributes[i]);
      const std::string_view value =
          attributes[i + 1] != nullptr ? reinterpret_cast<const char*>(attributes[i + 1]) : "";
      if (key == "hidden" || (key == "aria-hidden" && value == "true") || (key == "style" && is_hidden_style(value)))
        place |= in_hidden;
      if (key == "role" && value == "main") place |= in_main;
      if (key == "role" && (value == "dialog" || value == "alertdialog")) place |= in_suspect;
      if (key == "role" && one_of(value, chrome_roles)) place |= in_chrome;
      if ((key == "class" || key == "id") && name != "main" && name != "article" &&
          is_suspect_name(value.substr(0, 4096)))
        place |= in_suspect;
    }
    return place;
  }

  void read_meta(const xmlChar** attributes) {
    std::string_view property;
    std::string_view content;
    for (std::size_t i = 0; attributes != nullptr && attributes[i] != nullptr; i += 2) {
      const std::string_view key = reinterpret_cast<const char*>(attributes[i]);
      const std::string_view value =
          attributes[i + 1] != nullptr ? reinterpret_cast<const char*>(attributes[i + 1]) : "";
      if (key == "property" || key == "name") property = value;
      if (key == "content") content = value;
    }
    if (property == "og:title" && og_title.empty()) add_collapsed(og_title, content.substr(0, 4096));
  }

  /// Bytes of the white space at the start: ASCII, no-break, U+2000 to U+200A, narrow no-break; 0 if there is none.
  [[nodiscard]] static std::size_t space_length(std::string_view text) {
    if (is_space(text[0])) return 1;
    if (text.starts_with("\xC2\xA0")) return 2;
    if (text.starts_with("\xE2\x80\xAF")) return 3;
    return text.size() >= 3 && text.starts_with("\xE2\x80") && static_cast<unsigned char>(text[2]) <= 0x8A ? 3 : 0;
  }

  /// Appends with runs of white space as one space, none at the start of a line. Zero-width
  /// characters and soft hyphens are dropped.
  static void add_collapsed(std::string& out, std::string_view piece) {
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

  void open(std::string_view name) {
    if (name == "br" && (place_ & in_hidden) == 0) {
      while (current_.text.ends_with(' ')) current_.text.pop_back();
      if (!current_.text.empty()) current_.text += '\n';
    } else if (one_of(name, block_elements)) {
      flush();
      if (name.size() == 2 && name[0] == 'h' && is_digit(name[1])) {
        current_.kind = BlockKind::heading;
        current_.level = static_cast<unsigned>(name[1] - '0');
      }
      if (name == "ul" || name == "ol") lists_.push_back({++list_count_, name == "ol", 0});
    } else if (name == "li") {
      flush();
      item_pending_ = true;
      if (!lists_.empty()) ++lists_.back().items;
    } else if (name == "dt" || name == "dd") {
      flush();
      if (name == "dt") current_.kind = BlockKind::term;
    } else if (name == "table") {
      flush();
      if (tables_.size() < max_tables) {
        tables_.emplace_back();
        std::swap(tables_.back().outer, blocks);
      } else {
        ++extra_tables_;
      }
    } else if (extra_tables_ == 0 && !tables_.empty() && name == "tr") {
      end_row();
      tables_.back().row_open = true;
    } else if (name == "td" || name == "th") {
      flush();
      if (extra_tables_ == 0 && !tables_.empty()) {
        end_cell();
        tables_.back().row_open = tables_.back().cell_open = true;
      }
    }
  }

  void close(std::string_view name) {
    if (one_of(name, block_elements) || name == "li" || name == "dt" || name == "dd") flush();
    if (name == "li") item_pending_ = false;
    if ((name == "ul" || name == "ol") && !lists_.empty()) lists_.pop_back();
    if (extra_tables_ > 0) {
      if (name == "td" || name == "th" || name == "tr" || name == "table") flush();
      if (name == "table") --extra_tables_;
    } else if (!tables_.empty()) {
      if (name == "td" || name == "th") end_cell();
      if (name == "tr") end_row();
      if (name == "table") end_table();
    }
  }

  void flush() {
    std::string& text = current_.text;
    if ((current_.place & in_pre) != 0) {
      while (text.starts_with('\n')) text.erase(0, 1);
    }
    while (!text.empty() && is_space(text.back())) text.pop_back();
    if (!text.empty()) {
      if (item_pending_ && !lists_.empty()) {
        text.insert(0, lists_.back().ordered ? concat(lists_.back().items, ". ") : "- ");
        current_.kind = BlockKind::item;
      }
      item_pending_ = false;  // the rest of the item has no mark
      if (!lists_.empty()) current_.list = lists_.back().id;
      if (!blocks.empty() && blocks.back().kind == BlockKind::term && current_.kind == BlockKind::paragraph) {
        blocks.back().text += (blocks.back().text.ends_with(':') ? " " : ": ") + text;
        blocks.back().links += current_.links;
        blocks.back().kind = BlockKind::row;
      } else {
        blocks.push_back(std::move(current_));
      }
    }
    current_ = Block{};
  }

  void end_cell() {
    flush();
    Table& table = tables_.back();
    if (table.cell_open)
      table.cells.push_back(std::exchange(blocks, {}));
    else  // a caption
      std::move(blocks.begin(), blocks.end(), std::back_inserter(table.outer)), blocks.clear();
    table.cell_open = false;
  }

  /// A row of short cells becomes one line; a row that holds running text is layout, and its blocks are kept as they
  /// are.
  void end_row() {
    end_cell();
    Table& table = tables_.back();
    if (!table.row_open) return;
    table.row_open = false;
    bool data = true;
    std::size_t filled = 0;
    for (const auto& cell : table.cells) {
      std::size_t bytes = 0;
      for (const Block& block : cell) {
        bytes += block.text.size();
        data = data && block.kind != BlockKind::row && block.kind != BlockKind::heading;
      }
      filled += !cell.empty();
      data = data && cell.size() <= 3 && bytes <= 500;
    }
    if (!data) {
      for (auto& cell : table.cells) std::move(cell.begin(), cell.end(), std::back_inserter(table.outer));
    } else if (filled > 0) {
      table.outer.push_back(join_row(table.cells));
    }
    table.cells.clear();
  }

  /// "name: value" for two cells, "a | b | c" for others; empty cells at the end are dropped.
  [[nodiscard]] static Block join_row(const std::vector<std::vector<Block>>& cells) {
    Block row;
    row.kind = BlockKind::row;
    std::vector<std::string> texts;
    bool first = true;
    for (const auto& cell : cells) {
      std::string text;
      for (const Block& block : cell) {
        if (std::exchange(first, false)) row.place = block.place;
        row.links += block.links;
        text += (text.empty() ? "" : "; ") + (block.text.starts_with("- ") ? block.text.substr(2) : block.text);
      }
      std::replace(text.begin(), text.end(), '\n', ' ');
      texts.push_back(std::move(text));
    }
    while (!texts.empty() && texts.back().empty()) texts.pop_back();
    const bool pair = texts.size() == 2 && !texts[0].empty();
    for (std::size_t i = 0; i < texts.size(); ++i)
      row.text += (i == 0 ? "" : !pair ? " | " : texts[0].ends_with(':') ? " " : ": ") + texts[i];
    return row;
  }

  void end_table() {
    end_row();
    Table& table = tables_.back();
    std::move(blocks.begin(), blocks.end(), std::back_inserter(table.outer));  // text outside of any cell
    blocks = std::move(table.outer);
    tables_.pop_back();
  }

  struct List {
    std::size_t id;
    bool ordered;
    std::size_t items;
  };
  std::vector<Element> stack_;
  std::vector<List> lists_;
  std::vector<Table> tables_;
  Block current_;
  unsigned place_ = 0;
  unsigned head_only_ = 0;
  std::size_t list_count_ = 0;
  std::size_t extra_tables_ = 0;
  bool item_pending_ = false;
  bool taking_title_ = false;
};

/// Runs a callback's work and keeps its exception until the parser has returned.
struct ParseState {
  BlockBuilder builder;
  std::exception_ptr failure;
  template <class Work>
  void guarded(const Work& work) noexcept {
    if (failure) return;
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
  }
};

[[nodiscard]] inline double thread_cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Parses a page (UTF-8) into blocks. Throws Error when it is over the size or the time limit.
[[nodiscard]] inline BlockBuilder parse_blocks(std::string_view html, const ExtractOptions& options) {
  if (html.size() > options.max_bytes) throw Error(concat("the page is larger than ", options.max_bytes, " bytes"));
  const double begin = thread_cpu_seconds();
  const std::string page = Prescan(html).run();
  ParseState state;
  xmlSAXHandler handler{};
  handler.startElement = [](void* user, const xmlChar* name, const xmlChar** attributes) {
    auto& s = *static_cast<ParseState*>(user);
    s.guarded([&] { s.builder.start(reinterpret_cast<const char*>(name), attributes); });
  };
  handler.endElement = [](void* user, const xmlChar* name) {
    auto& s = *static_cast<ParseState*>(user);
    s.guarded([&] { s.builder.end(reinterpret_cast<const char*>(name)); });
  };
  handler.characters = [](void* user, const xmlChar* text, int n) {
    auto& s = *static_cast<ParseState*>(user);
    s.guarded([&] { s.builder.text({reinterpret_cast<const char*>(text), static_cast<std::size_t>(n)}); });
  };
  handler.ignorableWhitespace = handler.characters;
  handler.cdataBlock = handler.characters;
  xmlInitParser();
  const std::unique_ptr<htmlParserCtxt, decltype(&htmlFreeParserCtxt)> parser(
      htmlCreatePushParserCtxt(&handler, &state, nullptr, 0, nullptr, XML_CHAR_ENCODING_UTF8), &htmlFreeParserCtxt);
  if (!parser) throw Error("libxml2 does not start", ErrorKind::resource);
  htmlCtxtUseOptions(parser.get(), HTML_PARSE_RECOVER | HTML_PARSE_NOERROR | HTML_PARSE_NOWARNING | HTML_PARSE_NONET |
                                       HTML_PARSE_IGNORE_ENC);
  // Small, because the clock is looked at between chunks: a stray end tag costs the parser a walk up its whole stack.
  constexpr std::size_t chunk = std::size_t{2} << 10;
  for (std::size_t at = 0; at < page.size() && !state.failure; at += chunk) {
    htmlParseChunk(parser.get(), page.data() + at, static_cast<int>(std::min(chunk, page.size() - at)), 0);
    if (thread_cpu_seconds() - begin > options.max_cpu_seconds) throw Error("the page takes too long to parse");
  }
  htmlParseChunk(parser.get(), nullptr, 0, 1);
  if (state.failure) std::rethrow_exception(state.failure);
  state.builder.finish();
  return std::move(state.builder);
}

}  // namespace detail
}  // namespace web
}  // namespace v0
}  // namespace qlora
