// qlora/web/repeats.hpp — what several pages have in common: the lines around each text of a site, and pages that
// differ in next to nothing. What may not change: a document made of shared lines alone is left as it is.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "qlora/text/document.hpp"
#include "qlora/web/charset.hpp"

namespace qlora {
inline namespace v0 {
namespace web {
namespace detail {

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

/// A document's lines, and how often each stands in it.
struct Lines {
  std::vector<std::string_view> lines;
  std::unordered_map<std::string_view, std::size_t> counts;
};

[[nodiscard]] inline Lines lines_of(std::string_view text) {
  Lines all;
  for_each_text_line(text, [&](std::string_view line) {
    all.lines.push_back(line);
    ++all.counts[line];
  });
  return all;
}

/// Bytes of the character that begins here, where it is of a script without spaces between words; else 0. By the first
/// two bytes: Thai and Lao, Myanmar, Khmer, and from U+3000 to U+9FFF and beyond U+20000 what Chinese and Japanese
/// have.
[[nodiscard]] inline std::size_t spaceless_character(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  const auto second = static_cast<unsigned char>(text.size() > 1 ? text[1] : '\0');
  const bool three = (first >= 0xE3 && first <= 0xE9) || (first == 0xE0 && second >= 0xB8 && second <= 0xBB) ||
                     (first == 0xE1 && ((second >= 0x80 && second <= 0x82) || second == 0x9E || second == 0x9F));
  return three ? 3 : first == 0xF0 && second >= 0xA0 && second <= 0xB3 ? 4 : 0;
}

/// Hashes of a text's groups of three words, sorted. In scripts without spaces a character is a word.
[[nodiscard]] inline std::vector<std::uint64_t> word_groups(std::string_view text) {
  std::vector<std::uint64_t> words;
  for (std::size_t i = 0; i < text.size();) {
    while (i < text.size() && is_space(text[i])) ++i;
    if (i == text.size()) break;
    std::size_t end = std::min(text.size(), i + spaceless_character(text.substr(i)));
    if (end == i)
      while (end < text.size() && !is_space(text[end]) && spaceless_character(text.substr(end)) == 0) ++end;
    std::uint64_t hash = 0xCBF29CE484222325;  // FNV-1a
    for (std::size_t at = i; at < end; ++at) hash = (hash ^ static_cast<unsigned char>(text[at])) * 0x100000001B3;
    words.push_back(hash);
    i = end;
  }
  std::vector<std::uint64_t> groups;
  for (std::size_t i = 0; i + 3 <= words.size(); ++i)
    groups.push_back((words[i] * 31 + words[i + 1]) * 31 + words[i + 2]);
  std::sort(groups.begin(), groups.end());
  groups.erase(std::unique(groups.begin(), groups.end()), groups.end());
  return groups;
}

}  // namespace detail

/// Removes what surrounds the text on a site's pages: lines at the start or the end of a document that stand on more
/// than half of the pages (three at least). A line that is content (`content[i][line]`, see Extracted) or that stands
/// twice on its page, as a refrain does, stays. Returns how many lines went.
inline std::size_t remove_shared_lines(std::span<Document> documents, std::span<const std::vector<bool>> content = {}) {
  std::map<std::string, std::vector<std::size_t>> sites;
  for (std::size_t i = 0; i < documents.size(); ++i)
    if (documents[i].messages.empty()) sites[detail::site_of(documents[i].source)].push_back(i);
  std::size_t removed = 0;
  for (const auto& [site, pages] : sites) {
    if (pages.size() < 3) continue;
    std::vector<detail::Lines> texts;
    std::unordered_map<std::string_view, std::size_t> shared;  // on how many pages
    std::vector<std::string> originals;
    for (const std::size_t page : pages) originals.push_back(documents[page].text);
    for (const std::string& text : originals) texts.push_back(detail::lines_of(text));
    for (const detail::Lines& text : texts)
      for (const auto& [line, count] : text.counts) ++shared[line];
    for (std::size_t i = 0; i < pages.size(); ++i) {
      const std::vector<std::string_view>& lines = texts[i].lines;
      const auto goes = [&](std::size_t at) {
        const bool is_content = pages[i] < content.size() && at < content[pages[i]].size() && content[pages[i]][at];
        const std::size_t on = shared.at(lines[at]);
        return !lines[at].empty() && !is_content && texts[i].counts.at(lines[at]) == 1 && on >= 3 &&
               on * 2 > pages.size();
      };
      std::size_t first = 0;
      std::size_t last = lines.size();
      while (first < last && goes(first)) ++first;
      while (last > first && goes(last - 1)) --last;
      if (first == last || last - first == lines.size()) continue;
      std::string text;
      for (std::size_t at = first; at < last; ++at) text.append(at == first ? "" : "\n").append(lines[at]);
      if (detail::trim(text).empty()) continue;
      removed += lines.size() - (last - first);
      Document& page = documents[pages[i]];
      page = make_document(page.source, page.title, std::move(text), page.fetched_at);
    }
  }
  return removed;
}

/// Finds documents that say again what an earlier one says: the same text, or 98 of 100 groups of three words.
class Duplicates {
 public:
  /// No earlier document.
  static constexpr std::size_t none = static_cast<std::size_t>(-1);

  /// Place of the earlier document that `text` repeats, else `none`, and the text is remembered as document `place`.
  [[nodiscard]] std::size_t find_or_add(std::string_view text, std::size_t place) {
    std::vector<std::uint64_t> groups = detail::word_groups(text);
    const std::size_t marks = std::min<std::size_t>(groups.size(), 4);  // equal texts share most of their smallest
    for (std::size_t i = 0; i < marks; ++i)
      for (const std::size_t known : by_mark_[groups[i]])
        if (alike(groups, known_[known].second)) return known_[known].first;
    if (groups.empty()) {
      const auto [found, is_new] = short_.try_emplace(std::string(text), place);
      return is_new ? none : found->second;
    }
    for (std::size_t i = 0; i < marks; ++i) by_mark_[groups[i]].push_back(known_.size());
    known_.emplace_back(place, std::move(groups));
    return none;
  }

 private:
  [[nodiscard]] static bool alike(const std::vector<std::uint64_t>& a, const std::vector<std::uint64_t>& b) {
    const std::size_t more = std::max(a.size(), b.size());
    if (std::min(a.size(), b.size()) * 50 < more * 49) return false;
    std::vector<std::uint64_t> both;
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
    return both.size() * 50 >= more * 49;
  }

  std::vector<std::pair<std::size_t, std::vector<std::uint64_t>>> known_;  ///< place, groups
  std::unordered_map<std::uint64_t, std::vector<std::size_t>> by_mark_;
  std::unordered_map<std::string, std::size_t> short_;  ///< texts of one or two words
};

}  // namespace web
}  // namespace v0
}  // namespace qlora
