// qlora/web/pages.hpp — from addresses and files to documents: fetch, extract, drop repeated pages and
// shared lines.
// What may not change: a source that fails is one result with a reason, never the end of the batch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <iterator>
#include <span>
#include <string>
#include <system_error>
#include <unordered_set>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/document.hpp"
#include "qlora/web/article_compat.hpp"
#include "qlora/web/extract.hpp"
#include "qlora/web/fetch.hpp"
#include "qlora/web/repeats.hpp"

namespace qlora {
inline namespace v0 {
namespace web {

/// Which text is taken from an HTML page.
enum class TextForm {
  main_text,  ///< extract(), and lines shared by a site's pages removed
  article,    ///< article_compat_text(), nothing else
};

/// How pages become documents.
struct LoadOptions {
  FetchOptions fetch;                   ///< limits and headers of requests
  ExtractOptions extract;               ///< limits of one extraction
  TextForm form = TextForm::main_text;  ///< what is taken from a page
  bool all_pages = false;  ///< also those that are no article (Extracted::no_article) and those that repeat others
};

/// A source that gave no document, and why.
struct LoadFailure {
  std::string source;                   ///< address or file
  std::string error;                    ///< one line
  ErrorKind kind = ErrorKind::network;  ///< of the error
};

/// What became of all sources.
struct LoadResult {
  std::vector<Document> documents;      ///< in the order of the sources
  std::vector<LoadFailure> failures;    ///< in the same order
  std::vector<LoadFailure> duplicates;  ///< sources left out because an earlier one has the same address or text
  std::vector<std::pair<std::string, std::string>> unknown_charsets;  ///< source, what it calls its encoding
  std::size_t shared_lines = 0;  ///< lines removed because a site's pages share them
};

/// A fetched page as a document, and which of its lines are content whatever other pages hold.
struct PageText {
  Document document;          ///< title, text and source
  bool is_html = true;        ///< false: the text is the page as it was
  std::vector<bool> content;  ///< by line of the text; see Extracted::content
  std::string no_article;     ///< see Extracted::no_article
};

/// The text of a fetched page; plain text and Markdown are taken as they are.
[[nodiscard]] inline PageText text_of(const Page& page, const LoadOptions& options = {}) {
  ExtractOptions limits = options.extract;
  limits.max_bytes = std::max(limits.max_bytes, 3 * options.fetch.max_bytes);  // what decoding can make of a page
  const bool html = page.content_type == "text/html" || page.content_type == "application/xhtml+xml";
  try {
    if (!html) return {make_document(page.url, {}, page.body, page.fetched_at), false, {}, {}};
    if (options.form == TextForm::article) {
      std::string title;
      try {
        title = extract(page.body, limits).title;
      } catch (const Error&) {
        title.clear();  // a page without main text still has the article's text
      }
      return {make_document(page.url, std::move(title), article_compat_text(page.body, limits), page.fetched_at),
              true,
              {},
              {}};
    }
    Extracted main = extract(page.body, limits);
    return {make_document(page.url, std::move(main.title), std::move(main.text), page.fetched_at), true,
            std::move(main.content), std::move(main.no_article)};
  } catch (const Error& e) {
    throw Error(concat(page.source, ": ", e.what()), e.kind());
  }
}

namespace detail {

/// One load of many sources.
class Loader {
 public:
  Loader(const LoadOptions& options, LoadResult& result) : options_(options), result_(result) {}

  /// Reads a source. Throws Error when it gives no document.
  void load(const std::string& source) {
    const bool is_address = source.find("://") != std::string::npos;
    if (!is_address && lower(std::filesystem::path(source).extension().string()) == ".jsonl") {
      std::vector<Document> lines = read_documents(source);
      std::move(lines.begin(), lines.end(), std::back_inserter(result_.documents));
      return;
    }
    const bool once = !options_.all_pages && options_.form == TextForm::main_text;
    std::error_code code;
    const std::string address =
        is_address ? net::same_address(source) : std::filesystem::weakly_canonical(source, code).string();
    if (once && !addresses_.insert(address).second) return duplicate(net::shown_address(source), "named twice");
    const Page page = fetch_page(source, options_.fetch);
    PageText text = text_of(page, options_);
    if (!text.no_article.empty() && once)
      throw Error(concat(page.source, ": no article: ", text.no_article, "; --all-pages keeps it"));
    if (!page.unknown_charset.empty()) result_.unknown_charsets.emplace_back(page.url, page.unknown_charset);
    pages_.push_back({result_.documents.size(), page.source, std::move(text.content), text.is_html});
    result_.documents.push_back(std::move(text.document));
  }

  /// Removes what the pages of a site share, then the pages that repeat earlier ones.
  void finish() {
    if (options_.form == TextForm::article) return;
    std::vector<Document> pages;
    std::vector<std::vector<bool>> content;
    for (const Loaded& page : pages_) {
      if (!page.is_html) continue;
      pages.push_back(result_.documents[page.place]);
      content.push_back(page.content);
    }
    result_.shared_lines = remove_shared_lines(pages, content);
    std::size_t next = 0;
    for (const Loaded& page : pages_)
      if (page.is_html) result_.documents[page.place] = std::move(pages[next++]);
    if (!options_.all_pages) drop_repeated();
  }

 private:
  struct Loaded {
    std::size_t place;  ///< of its document
    std::string source;
    std::vector<bool> content;
    bool is_html;
  };

  void drop_repeated() {
    Duplicates known;
    std::vector<bool> gone(result_.documents.size());
    for (const Loaded& page : pages_) {
      const std::size_t same = known.find_or_add(result_.documents[page.place].text, page.place);
      if (same == Duplicates::none) continue;
      duplicate(page.source, "the text of " + result_.documents[same].source);
      gone[page.place] = true;
    }
    std::size_t at = 0;
    std::erase_if(result_.documents, [&](const Document&) { return gone[at++]; });
  }

  void duplicate(std::string source, std::string what) {
    result_.duplicates.push_back({std::move(source), std::move(what), ErrorKind::input});
  }

  const LoadOptions& options_;
  LoadResult& result_;
  std::vector<Loaded> pages_;
  std::unordered_set<std::string> addresses_;
};

}  // namespace detail

/// Loads every source: http:, https: and file: addresses, local .html, .txt, .md, and .jsonl (many documents). A failed
/// source is a failure in the result; only a request to stop throws (ErrorKind::interrupted). `on_source` is told each
/// source's end with its error, "" if all went well.
[[nodiscard]] inline LoadResult load_documents(
    std::span<const std::string> sources, const LoadOptions& options = {},
    const std::function<void(const std::string& source, const std::string& error)>& on_source = {}) {
  LoadResult result;
  detail::Loader loader(options, result);
  for (const std::string& source : sources) {
    std::string error;
    try {
      loader.load(source);
    } catch (const Error& e) {
      if (detail::ends_batch(e)) throw;
      error = e.what();
      result.failures.push_back({net::shown_address(source), error, e.kind()});
    }
    if (on_source) on_source(net::shown_address(source), error);
  }
  loader.finish();
  return result;
}

}  // namespace web
}  // namespace v0
}  // namespace qlora
