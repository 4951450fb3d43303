// qlora/web/extract.hpp — the main text of a page.
// Order of choice: leave out menus, footers, forms and the like; prefer <main>, then <article>; then drop link lists,
// cookie notices and headings left with nothing. What may not change: a page with text gives text — where the cues
// leave next to nothing, they are distrusted one by one.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/web/blocks.hpp"
#include "qlora/web/notices.hpp"
#include "qlora/web/suspicion.hpp"

namespace qlora {
inline namespace v0 {
namespace web {

/// Title and main text; one block (paragraph, heading, list item, table row) per line.
struct Extracted {
  std::string title;          ///< of the article or the page; may be empty
  std::string text;           ///< UTF-8, without a newline at its end
  std::string no_article;     ///< why the page seems to be none; empty for most pages
  std::vector<bool> content;  ///< by line of `text`: code, rows, paragraphs of several lines; never a menu's
};

namespace detail {

/// Bytes of a block that are not in links.
[[nodiscard]] inline std::size_t plain_bytes(const Block& block) {
  return block.text.size() - std::min(block.links + block.mark, block.text.size());
}

/// Whether a sentence ends in the text: a mark of one before a space or at the end, in any of the usual scripts.
[[nodiscard]] inline bool has_sentence_end(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const std::string_view rest = text.substr(i + 1);
    if ((c == '.' || c == '!' || c == '?') && i > 2 &&
        (rest.empty() || rest[0] == ' ' || rest[0] == '\n' || rest[0] == '"' || rest[0] == '\'' || rest[0] == ')' ||
         rest.starts_with("\xE2\x80\x9D") || rest.starts_with("\xC2\xBB") || rest.starts_with("\xE2\x80\x9C")))
      return true;
    const std::string_view here = text.substr(i, 3);
    for (const char* mark : {"\xE3\x80\x82", "\xEF\xBC\x81", "\xEF\xBC\x9F", "\xE0\xA5\xA4", "\xDB\x94", "\xD8\x9F",
                             "\xE2\x80\xA6", "\xEF\xBC\x8E"})
      if (here.starts_with(mark)) return true;
  }
  return false;
}

/// Running text: long enough to be a sentence or two, few links.
[[nodiscard]] inline bool is_prose(const Block& block) {
  const std::size_t plain = plain_bytes(block);
  if (block.kind == BlockKind::heading || plain < 60 || block.links * 2 > block.text.size()) return false;
  return plain >= 200 || (block.place & in_pre) != 0 || has_sentence_end(block.text);
}

/// The weight of a block in the search for the main text.
[[nodiscard]] inline double weight_of(const Block& block) {
  if (is_prose(block)) return static_cast<double>(plain_bytes(block));
  return block.kind == BlockKind::row || block.kind == BlockKind::item ? 0.5 * static_cast<double>(plain_bytes(block))
                                                                       : 0.25 * static_cast<double>(plain_bytes(block));
}

/// Sums over each node and all inside of it.
[[nodiscard]] inline std::vector<double> weights_of(const BlockBuilder& page, unsigned without) {
  std::vector<double> sums(page.nodes.size());
  for (const Block& block : page.blocks)
    if ((page.nodes[block.node].place & without) == 0) sums[block.node] += weight_of(block);
  for (std::size_t i = page.nodes.size(); i-- > 1;) sums[page.nodes[i].parent] += sums[i];
  return sums;
}

/// Blocks of running text in each node.
[[nodiscard]] inline std::vector<std::uint32_t> prose_counts(const BlockBuilder& page) {
  std::vector<std::uint32_t> sums(page.nodes.size());
  for (const Block& block : page.blocks) sums[block.node] += is_prose(block);
  for (std::size_t i = page.nodes.size(); i-- > 1;) sums[page.nodes[i].parent] += sums[i];
  return sums;
}

inline constexpr unsigned boilerplate_marks = in_chrome | in_form | in_suspect | in_comment | in_byline | in_caption;

/// Takes back the marks of elements that hold most of the page's text (a whole page in a form, a wrapper named
/// "with-sidebar"), and tells each node and block where it then stands.
inline void settle_marks(BlockBuilder& page) {
  const std::vector<double> all = weights_of(page, 0);
  for (std::size_t i = 0; i < page.nodes.size(); ++i) {
    Node& node = page.nodes[i];
    if ((node.own & boilerplate_marks) != 0 && ((node.own & in_body) != 0 || all[i] > 0.5 * all[0]))
      node.own &= ~boilerplate_marks;
    node.place = (i == 0 ? 0 : page.nodes[node.parent].place) | node.own;
  }
  for (Block& block : page.blocks) block.place = page.nodes[block.node].place | (block.place & (in_link | in_pre));
}

[[nodiscard]] inline std::uint32_t common_ancestor(const BlockBuilder& page, std::uint32_t first,
                                                   std::uint32_t second) {
  while (first != 0 && page.nodes[first].end <= second) first = page.nodes[first].parent;
  return first;
}

/// The node that the main text is inside of.
[[nodiscard]] inline std::uint32_t main_node(const BlockBuilder& page, unsigned without) {
  const std::vector<double> weights = weights_of(page, without);
  const auto heaviest = [&](unsigned mark, double share) {
    std::uint32_t best = 0;
    double most = 0;
    double sum = 0;            // of the outermost ones
    std::uint32_t last = 0;    // end of the outermost one before
    std::uint32_t around = 0;  // what holds all of them
    for (std::uint32_t i = 1; i < page.nodes.size(); ++i) {
      if ((page.nodes[i].own & mark) == 0) continue;
      if (i >= last) {
        sum += weights[i];
        last = page.nodes[i].end;
        if (weights[i] > 0) around = around == 0 ? i : common_ancestor(page, around, i);
      }
      if (weights[i] > most || (best != 0 && i < page.nodes[best].end && weights[i] > 0.95 * most)) {
        best = i;
        most = std::max(most, weights[i]);
      }
    }
    if (sum < share * weights[0]) return std::uint32_t{0};
    if (most < (mark == in_body ? 0.95 : 0.5) * sum && around != 0 && weights[around] < 1.2 * sum) return around;
    return most >= 0.5 * sum && most >= share * weights[0] ? best : 0;
  };
  std::uint32_t node = heaviest(in_body, 0.15);
  if (node == 0) node = heaviest(in_article, 0.4);
  if (node == 0) node = heaviest(in_main, 0.5);
  const std::vector<std::uint32_t> counts = prose_counts(page);
  for (bool down = true; down;) {
    down = false;
    for (std::uint32_t child = node + 1; child < page.nodes[node].end; child = page.nodes[child].end) {
      if (weights[child] < 0.9 * weights[node] || counts[child] < 2) continue;
      node = child;
      down = true;
      break;
    }
  }
  return node;
}

/// Drops headings whose whole section was dropped or is not in the page, and lines like "See:" before what was.
inline void drop_bare_headings(const std::vector<Block>& blocks, std::vector<bool>& keep) {
  const Block* next = nullptr;  // next kept block
  // Something between was dropped. A heading with nothing behind it announces what a script would have drawn.
  bool dropped = std::any_of(blocks.begin(), blocks.end(), is_prose);
  for (std::size_t i = blocks.size(); i-- > 0;) {
    const bool bare = blocks[i].kind == BlockKind::heading && dropped &&
                      (next == nullptr || (next->kind == BlockKind::heading && next->level <= blocks[i].level));
    const bool label = dropped && blocks[i].kind == BlockKind::paragraph && blocks[i].text.size() <= 80;
    const bool announces = label && blocks[i].text.ends_with(':') && (next == nullptr || next->kind != BlockKind::item);
    // A line without a verdict of its own, and behind it nothing but links that were dropped.
    const bool of_links = label && (next == nullptr || next->kind == BlockKind::heading) && i + 1 < blocks.size() &&
                          !keep[i + 1] && blocks[i + 1].links * 10 > blocks[i + 1].text.size() * 6 &&
                          !has_sentence_end(blocks[i].text);
    if (!keep[i] || bare || announces || of_links) {
      keep[i] = false;
      dropped = true;
    } else {
      next = &blocks[i];
      dropped = false;
    }
  }
}

/// Running text between the headline and the main text is its lead: up to two blocks before the first that is kept.
/// What comes first behind a headline may be a heading itself, or stand in an element whose name suggests teasers.
inline void keep_lead(const BlockBuilder& page, std::uint32_t node, unsigned without, std::vector<bool>& keep) {
  std::size_t inside = 0;
  while (inside < keep.size() && page.blocks[inside].node < node) ++inside;
  std::size_t first = inside;
  while (first < keep.size() && !(keep[first] && is_prose(page.blocks[first]))) ++first;
  const std::size_t from = inside > 12 ? inside - 12 : 0;
  std::size_t begin = from;
  bool has_headline = false;
  for (std::size_t i = from; i < std::min(first, keep.size()); ++i) {
    if (page.blocks[i].kind != BlockKind::heading || page.blocks[i].level != 1) continue;
    begin = i + 1;
    has_headline = true;
  }
  std::size_t kept = 0;
  const auto take = [&](std::size_t i, unsigned marks, bool heading) {
    const Block& block = page.blocks[i];
    const bool sentence = heading && block.kind == BlockKind::heading && plain_bytes(block) >= 80 &&
                          block.links * 2 <= block.text.size() && has_sentence_end(block.text);
    if ((block.place & marks) != 0 || !(sentence || (block.kind == BlockKind::paragraph && is_prose(block)))) return;
    kept += !keep[i];
    keep[i] = true;
  };
  for (std::size_t i = begin; has_headline && i < std::min(first, keep.size()) && kept == 0; ++i)
    take(i, without & ~unsigned{in_suspect}, true);
  for (std::size_t i = inside; i-- > begin && kept < 2;) take(i, without, false);
}

/// A headline outside of the main text belongs to it where the page does not name it in its metadata, from which the
/// title comes: it is a heading that <title> begins with.
inline void keep_headline(const BlockBuilder& page, std::uint32_t node, std::vector<bool>& keep) {
  if (!page.og_title.empty()) return;
  for (std::size_t i = 0; i < keep.size() && page.blocks[i].node < node; ++i) {
    const Block& block = page.blocks[i];
    if (block.kind != BlockKind::heading || !page.title.starts_with(block.text)) continue;
    keep[i] = true;
    return;
  }
}

[[nodiscard]] inline std::vector<bool> choose_blocks(BlockBuilder& page) {
  settle_marks(page);
  const std::vector<Block>& blocks = page.blocks;
  unsigned without = boilerplate_marks;
  // Where next to nothing is left, names are believed less.
  const double left = weights_of(page, without)[0];
  constexpr unsigned by_name = in_suspect | in_byline | in_caption;
  if (left < 300 && weights_of(page, without & ~by_name)[0] > 3 * left) without &= ~by_name;
  // What readers wrote is the text of a page that has no other.
  if (left == 0 && weights_of(page, without)[0] == 0) without = boilerplate_marks & ~in_comment;
  if (left == 0 && weights_of(page, without)[0] == 0) without = 0;
  const std::uint32_t node = main_node(page, without);
  const auto is_inside = [&](const Block& b) { return b.node >= node && b.node < page.nodes[node].end; };
  // What stands behind </html> is no part of any element that could hold the main text.
  const auto first = std::find_if(blocks.begin(), blocks.end(), is_inside);
  const bool keeps_behind = first != blocks.end() && !first->behind;
  std::map<std::size_t, std::pair<std::size_t, std::size_t>> lists;  // id -> bytes, bytes in links
  for (const Block& b : blocks) {
    lists[b.list].first += b.text.size() - b.mark;
    lists[b.list].second += b.links;
  }
  std::vector<bool> keep(blocks.size());
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const Block& b = blocks[i];
    const auto& [list_bytes, list_links] = lists[b.list];
    const bool menu = b.list != 0 && list_links * 10 > list_bytes * 6;
    const bool byline = (b.place & without & in_byline) != 0 && !is_prose(b) && b.kind != BlockKind::row;
    const bool only_links =
        b.kind != BlockKind::heading && b.links * 10 > (b.text.size() - b.mark) * 7 && plain_bytes(b) < 40;
    keep[i] = (is_inside(b) || (b.behind && keeps_behind)) && (b.place & without & ~in_byline) == 0 && !byline &&
              !menu && !only_links && !is_cookie_notice(b) && !is_notice(b);
  }
  drop_bare_headings(blocks, keep);
  keep_lead(page, node, without, keep);
  keep_headline(page, node, keep);
  if (std::find(keep.begin(), keep.end(), true) == keep.end()) keep.assign(blocks.size(), true);
  return keep;
}

}  // namespace detail

/// Main text of an HTML page given as UTF-8. Throws Error when the page is over a limit or holds no text.
[[nodiscard]] inline Extracted extract(std::string_view html, const ExtractOptions& options = {}) {
  detail::BlockBuilder page = detail::parse_blocks(html, options);
  const std::vector<bool> keep = detail::choose_blocks(page);
  Extracted result;
  for (std::size_t i = 0; i < page.blocks.size(); ++i) {
    const detail::Block& block = page.blocks[i];
    if (result.title.empty() && block.kind == detail::BlockKind::heading && block.level == 1) result.title = block.text;
    if (!keep[i]) continue;
    if (!result.text.empty()) result.text += '\n';
    result.text += block.text;
    const auto lines = 1 + std::count(block.text.begin(), block.text.end(), '\n');
    const bool content = lines > 1 || block.kind == detail::BlockKind::row || (block.place & detail::in_pre) != 0;
    result.content.insert(result.content.end(), static_cast<std::size_t>(lines), content);
  }
  for (const std::string* better : {&page.og_title, &page.title})
    if (!detail::trim(*better).empty()) result.title = detail::trim(*better);
  std::size_t prose = 0;
  for (std::size_t i = 0; i < page.blocks.size(); ++i)
    if (keep[i] && detail::is_prose(page.blocks[i])) prose += detail::plain_bytes(page.blocks[i]);
  result.no_article = detail::why_no_article(page, result.text, prose, html);
  if (result.text.empty())
    throw Error(result.no_article.empty() ? "the page holds no text" : "no article: " + result.no_article);
  return result;
}

}  // namespace web
}  // namespace v0
}  // namespace qlora
