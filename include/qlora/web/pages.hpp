// qlora/web/pages.hpp — from addresses and files to documents: fetch, extract, drop shared lines.
// What may not change: a source that fails is one result with a reason, never the end of the batch.
#pragma once

#include <cstddef>
#include <functional>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/document.hpp"
#include "qlora/web/article_compat.hpp"
#include "qlora/web/extract.hpp"
#include "qlora/web/fetch.hpp"

namespace qlora {
inline namespace v0 {
namespace web {

/// Which text is taken from an HTML page.
enum class TextForm {
  main_text,  ///< extract(), and lines shared by a site's pages removed
  article,    ///< article_compat_text(), nothing else
};

struct LoadOptions {
  FetchOptions fetch;
  ExtractOptions extract;
  TextForm form = TextForm::main_text;
};

/// A source that gave no document, and why.
struct LoadFailure {
  std::string source;
  std::string error;
  ErrorKind kind = ErrorKind::network;
};

struct LoadResult {
  std::vector<Document> documents;  ///< in the order of the sources
  std::vector<LoadFailure> failures;
  std::size_t shared_lines = 0;  ///< lines removed because a site's pages share them
};

/// A fetched page as a document; plain text and Markdown are taken as they are.
[[nodiscard]] inline Document document_of(const Page& page, const LoadOptions& options = {}) {
  const bool html = page.content_type == "text/html" || page.content_type == "application/xhtml+xml";
  try {
    if (!html) return make_document(page.url, {}, page.body, page.fetched_at);
    if (options.form == TextForm::article) {
      std::string title;
      try {
        title = extract(page.body, options.extract).title;
      } catch (const Error&) {
        title.clear();  // a page without main text still has the article's text
      }
      return make_document(page.url, std::move(title), article_compat_text(page.body, options.extract),
                           page.fetched_at);
    }
    Extracted main = extract(page.body, options.extract);
    return make_document(page.url, std::move(main.title), std::move(main.text), page.fetched_at);
  } catch (const Error& e) {
    throw Error(concat(page.source, ": ", e.what()), e.kind());
  }
}

/// Loads every source: http:, https: and file: addresses, local .html, .txt, .md, and .jsonl (many documents). A failed
/// source is a failure in the result; only a request to stop throws (ErrorKind::interrupted). `on_source` is told each
/// source's end with its error, "" if all went well.
[[nodiscard]] inline LoadResult load_documents(
    std::span<const std::string> sources, const LoadOptions& options = {},
    const std::function<void(const std::string& source, const std::string& error)>& on_source = {}) {
  LoadResult result;
  std::vector<Document> pages;  // the HTML ones, for shared lines
  std::vector<std::size_t> places;
  for (const std::string& source : sources) {
    std::string error;
    try {
      if (source.ends_with(".jsonl") && source.find("://") == std::string::npos) {
        std::vector<Document> lines = read_documents(source);
        std::move(lines.begin(), lines.end(), std::back_inserter(result.documents));
      } else {
        const Page page = fetch_page(source, options.fetch);
        result.documents.push_back(document_of(page, options));
        if (page.content_type == "text/html") places.push_back(result.documents.size() - 1);
      }
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::interrupted) throw;
      error = e.what();
      result.failures.push_back({source, error, e.kind()});
    }
    if (on_source) on_source(source, error);
  }
  if (options.form == TextForm::article) return result;
  for (const std::size_t i : places) pages.push_back(result.documents[i]);
  result.shared_lines = remove_shared_lines(pages);
  for (std::size_t i = 0; i < places.size(); ++i) result.documents[places[i]] = std::move(pages[i]);
  return result;
}

}  // namespace web
}  // namespace v0
}  // namespace qlora
