// qlora/web/blocks.hpp — a page's tree as a flat list of text blocks, each with where it stands.
// Knows elements, attributes, white space, tables and formulas; which block is worth keeping is extract.hpp's choice.
// What may not change: nothing recurs over the tree; text inside <pre> keeps its line breaks and indents.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/web/charset.hpp"
#include "qlora/web/formula.hpp"
#include "qlora/web/marks.hpp"
#include "qlora/web/prescan.hpp"
#include "qlora/web/table.hpp"
#include "qlora/web/tree.hpp"

namespace qlora {
inline namespace v0 {
namespace web {
namespace detail {

/// An element of the page in document order.
struct Node {
  std::uint32_t parent = 0;
  std::uint32_t end = 0;  ///< behind the last node inside of it
  unsigned place = 0;     ///< its own and its ancestors' bits of Place
  unsigned own = 0;       ///< its own alone
  std::string_view name;  ///< of HTML and MathML elements; empty for others
};

inline constexpr std::array<std::string_view, 35> block_elements = {
    "p",       "div",     "section",  "article", "main",       "header",     "footer", "nav",     "aside",
    "form",    "ul",      "ol",       "dl",      "h1",         "h2",         "h3",     "h4",      "h5",
    "h6",      "address", "center",   "details", "hr",         "blockquote", "figure", "summary", "pre",
    "caption", "hgroup",  "fieldset", "legend",  "figcaption", "menu",       "xmp",    "listing"};

/// Walks a tree and leaves nodes, blocks, a title and the like.
class BlockBuilder {
 public:
  std::vector<Node> nodes;
  std::vector<Block> blocks;
  std::string title;     ///< of <title>
  std::string og_title;  ///< of <meta property="og:title">
  std::string refresh;   ///< of <meta http-equiv="refresh">
  bool asks_password = false;
  std::size_t behind = std::string_view::npos;  ///< byte of the page where what stands behind <html> begins

  void run(const GumboNode& root) {
    struct Step {
      const GumboNode* node;
      unsigned child;
    };
    std::vector<Step> path;
    const auto children = [](const GumboNode& n) -> const GumboVector& { return n.v.element.children; };
    start(root);
    path.push_back({&root, 0});
    while (!path.empty()) {
      Step& step = path.back();
      if (step.child == children(*step.node).length) {
        end();
        path.pop_back();
        continue;
      }
      const auto* next = static_cast<const GumboNode*>(children(*step.node).data[step.child++]);
      if (next->type == GUMBO_NODE_ELEMENT || next->type == GUMBO_NODE_TEMPLATE) {
        start(*next);
        path.push_back({next, 0});
      } else if (next->type != GUMBO_NODE_COMMENT && next->type != GUMBO_NODE_DOCUMENT) {
        at_ = next->v.text.start_pos.offset;
        text(next->v.text.text);
      }
    }
    flush();
  }

 private:
  struct Element {
    std::uint32_t node;
    unsigned outside;  ///< place around it
    bool takes_title = false;
    std::size_t script = 0;  ///< of <sup> and <sub>: where its text begins, plus 1
    bool shown_formula = false;
  };
  struct List {
    std::size_t id;
    bool ordered;
    int next;      ///< number of the next item
    int step;      ///< from one item to the next
    int item = 0;  ///< number of the open one
  };
  /// Deeper tables than these are read as running text.
  static constexpr std::size_t max_tables = 8;

  [[nodiscard]] Node& now() { return nodes[stack_.back().node]; }
  [[nodiscard]] unsigned place() const { return stack_.empty() ? 0 : nodes[stack_.back().node].place; }

  /// Whether what is opened now stands in a heading or a paragraph.
  [[nodiscard]] bool is_inside_text() const {
    constexpr std::array<std::string_view, 4> parents = {"p", "dt", "dd", "summary"};
    return current_.kind == BlockKind::heading || (!stack_.empty() && one_of(nodes[stack_.back().node].name, parents));
  }

  [[nodiscard]] static std::string_view name_of(const GumboNode& node) {
    const GumboElement& e = node.v.element;
    if (e.tag_namespace == GUMBO_NAMESPACE_SVG && e.tag != GUMBO_TAG_SVG) return {};
    if (e.tag != GUMBO_TAG_UNKNOWN) return gumbo_normalized_tagname(e.tag);
    GumboStringPiece raw = e.original_tag;
    gumbo_tag_from_original_text(&raw);
    return raw.data == nullptr ? std::string_view() : std::string_view(raw.data, raw.length);
  }

  [[nodiscard]] bool is_opened_by_button(const GumboVector& attributes) const {
    bool opened = false;
    for_each_attribute(attributes, [&](std::string_view key, std::string_view value) {
      if (key != "id" || value.empty() || value.size() > 100) return;
      opened = opened_ids_.find(concat(" ", value, " ")) != std::string::npos;
    });
    return opened;
  }

  /// Remembers what a button of the text opens.
  void note_disclosure(const GumboVector& attributes, unsigned here) {
    const Disclosure found = disclosure_of(attributes);
    if (!found.toggles || (here & (in_chrome | in_suspect)) != 0 || found.what.size() > 1000) return;
    if (opened_ids_.size() < (std::size_t{64} << 10)) opened_ids_ += concat(found.what, " ");
  }

  void start(const GumboNode& node) {
    Node made;
    made.parent = stack_.empty() ? 0 : stack_.back().node;
    made.name = name_of(node);
    const unsigned outside = place();
    const GumboVector& attributes = node.v.element.attributes;
    if (const std::string_view part = table_part_of(made.name, attributes); !part.empty()) made.name = part;
    made.own = own_place(made.name, attributes, outside, is_opened_by_button(attributes));
    note_disclosure(attributes, outside | made.own);
    if (is_heading_button(made.name, attributes, is_inside_text())) made.own &= ~unsigned{in_hidden};
    if (made.name == "tr") numbered_row_ = false;
    if (is_line_number(made.name, node)) {
      made.own |= in_hidden;
      numbered_row_ = numbered_row_ || made.name == "td";
    } else if (made.name == "td" && numbered_row_) {
      made.own |= in_pre;  // the line itself
    }
    made.place = outside | made.own;
    Element element{.node = static_cast<std::uint32_t>(nodes.size()), .outside = outside};
    const std::string_view name = made.name;
    element.takes_title = name == "title" && title.empty() && !in_svg_;
    if (name == "svg") in_svg_ = true;
    nodes.push_back(made);
    if (name == "meta") read_meta(attributes);
    if (name == "input") {
      for_each_attribute(attributes, [&](std::string_view key, std::string_view value) {
        asks_password = asks_password || (key == "type" && lower(value) == "password");
      });
    }
    if (element.takes_title) taking_title_ = true;
    if (name == "ol") items_inside_ = items_in(node);
    stack_.push_back(element);
    open(name, attributes);
  }

  void end() {
    const Element element = stack_.back();
    Node& node = nodes[element.node];
    close(node.name, element);
    if (element.takes_title) taking_title_ = false;
    if (node.name == "svg") in_svg_ = false;
    node.end = static_cast<std::uint32_t>(nodes.size());
    stack_.pop_back();
  }

  void text(std::string_view piece) {
    if (taking_title_) add_collapsed(title, piece);
    const unsigned here = place();
    if ((here & in_hidden) != 0) return;
    if (formula_.open()) return formula_.text(piece);
    add(piece, here);
  }

  void add(std::string_view piece, unsigned here) {
    const std::size_t before = current_.text.size();
    if (current_.text.empty()) {
      current_.place = here;
      current_.node = stack_.back().node;
      current_.behind = at_ >= behind;
    }
    if ((here & in_pre) != 0)
      add_code(piece);
    else
      add_collapsed(current_.text, piece);
    if ((here & in_link) != 0) current_.links += current_.text.size() - before;
  }

  /// Code as it stands; its no-break spaces are indents.
  void add_code(std::string_view piece) {
    constexpr std::string_view no_break = "\xC2\xA0";
    for (std::size_t at = piece.find(no_break); at != std::string_view::npos; at = piece.find(no_break)) {
      current_.text.append(piece.substr(0, at)) += ' ';
      piece.remove_prefix(at + no_break.size());
    }
    current_.text += piece;
  }

  void read_meta(const GumboVector& attributes) {
    std::string_view property;
    std::string_view content;
    bool refreshes = false;
    for_each_attribute(attributes, [&](std::string_view key, std::string_view value) {
      if (key == "property" || key == "name") property = value;
      if (key == "content") content = value;
      refreshes = refreshes || (key == "http-equiv" && lower(value) == "refresh");
    });
    if (property == "og:title" && og_title.empty()) add_collapsed(og_title, content.substr(0, 4096));
    if (refreshes && refresh.empty()) refresh = std::string(content) + ' ';
  }

  void open(std::string_view name, const GumboVector& attributes) {
    const unsigned here = place();
    if (name == "math") {
      std::string_view alternative;
      for_each_attribute(attributes, [&](std::string_view key, std::string_view value) {
        if (key == "alttext") alternative = value;
      });
      if ((here & in_hidden) == 0) formula_.start(alternative);
      return;
    }
    if (formula_.open()) return formula_.open(name);
    if ((here & in_hidden) != 0) return;
    if (name == "br") {
      while (current_.text.ends_with(' ')) current_.text.pop_back();
      if (!current_.text.empty()) current_.text += '\n';
    } else if (name == "sup" || name == "sub") {
      stack_.back().script = current_.text.size() + 1;
    } else if (one_of(name, block_elements)) {
      flush();
      if (name.size() == 2 && name[0] == 'h' && is_digit(name[1])) {
        current_.kind = BlockKind::heading;
        current_.level = static_cast<unsigned>(name[1] - '0');
      }
      if (name == "ul" || name == "ol") open_list(name == "ol", attributes);
    } else if (name == "li") {
      flush();
      item_pending_ = true;
      if (!lists_.empty()) open_item(attributes);
    } else if (name == "dt" || name == "dd") {
      flush();
      if (name == "dt") current_.kind = BlockKind::term;
    } else {
      open_table_part(name, attributes);
    }
  }

  [[nodiscard]] static int items_in(const GumboNode& list) {
    const GumboVector& children = list.v.element.children;
    int items = 0;
    for (unsigned i = 0; i < children.length; ++i) {
      const auto* child = static_cast<const GumboNode*>(children.data[i]);
      items += child->type == GUMBO_NODE_ELEMENT && child->v.element.tag == GUMBO_TAG_LI;
    }
    return items;
  }

  void open_list(bool ordered, const GumboVector& attributes) {
    List list{.id = ++list_count_, .ordered = ordered, .next = 1, .step = 1};
    for_each_attribute(attributes, [&](std::string_view key, std::string_view value) {
      if (ordered && key == "start" && small_number(value) > 0) list.next = static_cast<int>(small_number(value));
      if (ordered && key == "reversed") list.step = -1;
    });
    if (list.step < 0 && list.next == 1) list.next = items_inside_;
    lists_.push_back(list);
  }

  void open_item(const GumboVector& attributes) {
    List& list = lists_.back();
    for_each_attribute(attributes, [&](std::string_view key, std::string_view value) {
      if (key == "value" && small_number(value) > 0) list.next = static_cast<int>(small_number(value));
    });
    list.item = list.next;
    list.next += list.step;
  }

  void open_table_part(std::string_view name, const GumboVector& attributes) {
    if (name == "table") {
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
        Table& table = tables_.back();
        table.row_open = table.cell_open = true;
        table.rowspan = table.colspan = 1;
        for_each_attribute(attributes, [&](std::string_view key, std::string_view value) {
          if (key == "rowspan")  // 0: all rows that follow
            table.rowspan = trim(value) == "0" ? 1000 : std::clamp<std::size_t>(small_number(value), 1, 1000);
          if (key == "colspan") table.colspan = std::clamp<std::size_t>(small_number(value), 1, 100);
        });
      }
    }
  }

  void close(std::string_view name, const Element& element) {
    if (formula_.open()) {
      if (name != "math") return formula_.close(name);
      const std::string shown = formula_.finish();
      if (!shown.empty()) {
        if (!current_.text.empty() && (is_letter(current_.text.back()) || is_digit(current_.text.back())))
          add(" ", place());
        add(shown, place());
      }
      return;
    }
    if ((place() & in_hidden) != 0) return;
    if (element.script > 0) close_script(name, element.script - 1);
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

  /// 10<sup>23</sup> is written 10^23, x<sub>i</sub> x_i, x<sup>n+1</sup> x^(n+1), 2<sup>1</sup>/<sub>2</sub> 2 1/2;
  /// H<sub>2</sub>O and 1<sup>st</sup> read well as they are.
  void close_script(std::string_view name, std::size_t from) {
    std::string& text = current_.text;
    if (from == 0 || from >= text.size() || (place() & (in_link | in_pre)) != 0 || text[from - 1] == ' ') return;
    const std::string_view inside = std::string_view(text).substr(from);
    std::size_t digits = 0;
    std::size_t letters = 0;
    for (const char c : inside) {
      digits += is_digit(c);
      letters += is_letter(c);
    }
    if (inside.size() > 8 || inside.find('[') != std::string_view::npos || inside.find(' ') != std::string_view::npos)
      return;
    if (name == "sub" && digits == inside.size() && (text[from - 1] == '/' || ends_in_fraction_slash(text, from))) {
      const std::size_t slash = text[from - 1] == '/' ? from - 1 : from - 3;
      std::size_t above = slash;
      while (above > 0 && is_digit(text[above - 1])) --above;
      if (above > 0 && above < slash && text[above - 1] == '^') text[above - 1] = ' ';
      return;
    }
    const std::size_t sign = inside.find_first_of("+-", 1);
    const bool is_sum = letters + digits > 1 && sign != std::string_view::npos && sign + 1 < inside.size();
    if (name == "sup" ? digits > 0 || letters == 1 || is_sum : letters > 0 && letters <= 3) {
      if (is_sum) text += ')';
      text.insert(from, is_sum ? (name == "sup" ? "^(" : "_(") : name == "sup" ? "^" : "_");
    }
  }

  [[nodiscard]] static bool ends_in_fraction_slash(std::string_view text, std::size_t end) {
    return text.substr(0, end).ends_with("\xE2\x81\x84");  // U+2044
  }

  void flush() {
    std::string& text = current_.text;
    if ((current_.place & in_pre) != 0) {
      if (text.starts_with('\r')) text.erase(0, 1);
      while (text.starts_with('\n')) text.erase(0, 1);
    }
    while (!text.empty() && is_space(text.back())) text.pop_back();
    if (!text.empty()) {
      if (item_pending_ && !lists_.empty()) {
        const std::string mark = lists_.back().ordered ? concat(lists_.back().item, ". ") : "- ";
        text.insert(0, mark);
        current_.mark = mark.size();
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
      table.add_cell(std::exchange(blocks, {}));
    else  // a caption
      std::move(blocks.begin(), blocks.end(), std::back_inserter(table.outer)), blocks.clear();
    table.cell_open = false;
  }

  void end_row() {
    end_cell();
    tables_.back().end_row();
  }

  void end_table() {
    end_row();
    Table& table = tables_.back();
    std::move(blocks.begin(), blocks.end(), std::back_inserter(table.outer));  // text outside of any cell
    blocks = std::move(table.outer);
    tables_.pop_back();
  }

  std::vector<Element> stack_;
  std::string opened_ids_ = " ";  ///< of what buttons of the text open, a space around each
  std::vector<List> lists_;
  std::vector<Table> tables_;
  Formula formula_;
  Block current_;
  std::size_t at_ = 0;  ///< byte of the page where the text being read begins
  std::size_t list_count_ = 0;
  int items_inside_ = 0;  ///< of the <ol> that is being opened
  std::size_t extra_tables_ = 0;
  bool item_pending_ = false;
  bool numbered_row_ = false;  ///< a cell of the open row is the number of a line of code
  bool taking_title_ = false;
  bool in_svg_ = false;
};

/// Parses a page (UTF-8) into blocks. Throws Error when it is over the size, the memory or the time limit.
[[nodiscard]] inline BlockBuilder parse_blocks(std::string_view html, const ExtractOptions& options) {
  if (html.size() > options.max_bytes) throw Error(concat("the page is larger than ", options.max_bytes, " bytes"));
  const double begin = thread_cpu_seconds();
  Prescan scan(html);
  const std::string page = scan.run();
  const double limit = cpu_limit(options, page.size());
  const Tree tree(page, (std::size_t{256} << 20) + 24 * page.size(), limit);
  BlockBuilder builder;
  builder.behind = scan.behind();
  builder.run(tree.root());
  if (thread_cpu_seconds() - begin > limit) throw Error("the page takes too long to parse");
  for (Node& node : builder.nodes) node.name = {};  // they point into the tree
  return builder;
}

}  // namespace detail
}  // namespace web
}  // namespace v0
}  // namespace qlora
