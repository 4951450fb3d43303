// qlora/web/extract.hpp — the main text of a page, and the lines that all pages of a site share.
// Order of choice: leave out menus, footers, forms and the like; prefer <main>, then <article>; then drop link lists,
// cookie notices and headings left with nothing. What may not change: a page with text gives text — where the cues
// leave next to nothing, they are distrusted one by one.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/document.hpp"
#include "qlora/web/blocks.hpp"

namespace qlora {
inline namespace v0 {
namespace web {

/// Title and main text; one block (paragraph, heading, list item, table row) per line.
struct Extracted {
  std::string title;
  std::string text;
};

namespace detail {

/// Bytes of text outside links, over the blocks that have none of `without` and, if given, one of `within`.
[[nodiscard]] inline std::size_t plain_bytes(const std::vector<Block>& blocks, unsigned without, unsigned within = 0) {
  std::size_t sum = 0;
  for (const Block& b : blocks)
    if ((b.place & without) == 0 && (within == 0 || (b.place & within) != 0))
      sum += b.text.size() - std::min(b.links, b.text.size());
  return sum;
}

[[nodiscard]] inline bool is_cookie_notice(const Block& block) {
  if (block.text.size() > 600 || (block.place & (in_main | in_article)) != 0) return false;
  const std::string text = lower(block.text);
  if (text.find("cookie") == std::string::npos) return false;
  for (const char* phrase :
       {"use cookies", "uses cookies", "accept", "cookie settings", "cookie preferences", "cookie policy", "consent"})
    if (text.find(phrase) != std::string::npos) return true;
  return false;
}

/// Which of the places that speak of boilerplate to believe. Marks round nearly all of the text (a whole page in a
/// form, a wrapper named "with-sidebar") are not believed: below 200 bytes left, a mark that hides four times that is
/// dropped.
[[nodiscard]] inline unsigned believed_marks(const std::vector<Block>& blocks) {
  constexpr std::array<unsigned, 3> weaker = {in_chrome | in_form, in_chrome | in_suspect, in_chrome};
  unsigned marks = in_chrome | in_form | in_suspect;
  const std::size_t left = plain_bytes(blocks, marks);
  for (const unsigned fewer : weaker)
    if (left < 200 && plain_bytes(blocks, fewer) > 4 * plain_bytes(blocks, marks)) marks = fewer;
  return plain_bytes(blocks, marks) == 0 ? 0 : marks;
}

/// The element to keep to: main if it holds enough, else article if it holds half of the text, else none (0).
[[nodiscard]] inline unsigned main_place(const std::vector<Block>& blocks, unsigned marks) {
  const std::size_t all = plain_bytes(blocks, marks);
  const std::size_t in_mains = plain_bytes(blocks, marks, in_main);
  if (in_mains >= 200 || (in_mains > 0 && in_mains * 2 >= all)) return in_main;
  return plain_bytes(blocks, marks, in_article) * 2 > all ? unsigned{in_article} : 0U;
}

/// Drops headings whose whole section was dropped.
inline void drop_bare_headings(const std::vector<Block>& blocks, std::vector<bool>& keep) {
  const Block* next = nullptr;  // next kept block
  bool dropped = false;         // something between was dropped
  for (std::size_t i = blocks.size(); i-- > 0;) {
    const bool bare = blocks[i].kind == BlockKind::heading && dropped &&
                      (next == nullptr || (next->kind == BlockKind::heading && next->level <= blocks[i].level));
    if (!keep[i] || bare) {
      keep[i] = false;
      dropped = true;
    } else {
      next = &blocks[i];
      dropped = false;
    }
  }
}

[[nodiscard]] inline std::vector<bool> choose_blocks(const std::vector<Block>& blocks) {
  const unsigned marks = believed_marks(blocks);
  const unsigned within = main_place(blocks, marks);
  std::map<std::size_t, std::pair<std::size_t, std::size_t>> lists;  // id -> bytes, bytes in links
  for (const Block& b : blocks) {
    lists[b.list].first += b.text.size();
    lists[b.list].second += b.links;
  }
  std::vector<bool> keep(blocks.size());
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const Block& b = blocks[i];
    const auto& [list_bytes, list_links] = lists[b.list];
    const bool menu = b.list != 0 && list_links * 10 > list_bytes * 6;
    const bool only_links = b.kind != BlockKind::heading && b.links * 10 > b.text.size() * 7 &&
                            b.text.size() - std::min(b.links, b.text.size()) < 40;
    keep[i] = (b.place & marks) == 0 && (within == 0 || (b.place & within) != 0) && !menu && !only_links &&
              !is_cookie_notice(b);
  }
  drop_bare_headings(blocks, keep);
  if (std::find(keep.begin(), keep.end(), true) == keep.end()) keep.assign(blocks.size(), true);
  return keep;
}

/// Site of a document: scheme and host of a URL, folder of a file.
[[nodiscard]] inline std::string site_of(const std::string& source) {
  const std::size_t scheme = source.find("://");
  if (scheme == std::string::npos || source.starts_with("file:")) return source.substr(0, source.rfind('/') + 1);
  return source.substr(0, source.find_first_of("/?#", scheme + 3));
}

template <class Use>
void for_each_text_line(std::string_view text, const Use& use) {
  while (true) {
    const std::size_t end = text.find('\n');
    use(text.substr(0, end));
    if (end == std::string_view::npos) return;
    text.remove_prefix(end + 1);
  }
}

}  // namespace detail

/// Main text of an HTML page given as UTF-8. Throws Error when the page is over a limit or holds no text.
[[nodiscard]] inline Extracted extract(std::string_view html, const ExtractOptions& options = {}) {
  const detail::BlockBuilder page = detail::parse_blocks(html, options);
  const std::vector<bool> keep = detail::choose_blocks(page.blocks);
  Extracted result;
  const std::string* before = nullptr;
  for (std::size_t i = 0; i < page.blocks.size(); ++i) {
    const detail::Block& block = page.blocks[i];
    if (result.title.empty() && block.kind == detail::BlockKind::heading && block.level == 1) result.title = block.text;
    if (!keep[i] || (before != nullptr && *before == block.text)) continue;
    if (before != nullptr) result.text += '\n';
    result.text += block.text;
    before = &block.text;
  }
  if (result.text.empty()) throw Error("the page holds no text");
  for (const std::string* better : {&page.og_title, &page.title})
    if (!detail::trim(*better).empty()) result.title = detail::trim(*better);
  return result;
}

/// Removes lines that stand on more than half of a site's pages (three pages at least): what all share is not what one
/// says. A document made of nothing else is left as it is. Returns how many lines went.
inline std::size_t remove_shared_lines(std::span<Document> documents) {
  std::map<std::string, std::vector<Document*>> sites;
  for (Document& d : documents)
    if (d.messages.empty()) sites[detail::site_of(d.source)].push_back(&d);
  std::size_t removed = 0;
  for (const auto& [site, pages] : sites) {
    if (pages.size() < 3) continue;
    std::unordered_map<std::string, std::size_t> counts;
    for (const Document* page : pages) {
      std::unordered_set<std::string_view> seen;
      detail::for_each_text_line(page->text, [&](std::string_view line) {
        if (!line.empty() && seen.insert(line).second) ++counts[std::string(line)];
      });
    }
    for (Document* page : pages) {
      std::string text;
      std::size_t lines = 0;
      detail::for_each_text_line(page->text, [&](std::string_view line) {
        const auto count = counts.find(std::string(line));
        if (count != counts.end() && count->second >= 3 && count->second * 2 > pages.size())
          ++lines;
        else
          text.append(line) += '\n';
      });
      if (lines == 0 || detail::trim(text).empty()) continue;
      text.pop_back();
      removed += lines;
      *page = make_document(page->source, page->title, std::move(text), page->fetched_at);
    }
  }
  return removed;
}

}  // namespace web
}  // namespace v0
}  // namespace qlora
