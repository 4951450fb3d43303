// qlora/run/fetch.hpp — web pages and local files to a file with one document per line. Needs libcurl and libgumbo.
#pragma once

#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/steps.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Writes the documents to `request.out`. A source that fails is reported through progress and in the result; the
/// others are still read. Throws Error: (usage) without sources, the kind of the first failure when no source could be
/// read, (resource) when the file cannot be written, (interrupted) when progress asks to stop.
QLORA_STEP FetchResult fetch(const FetchRequest& request, Progress& progress);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/document.hpp"
#include "qlora/web/pages.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

inline bool is_document_file(const std::filesystem::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".html" || extension == ".htm" || extension == ".txt" || extension == ".md" ||
         extension == ".jsonl";
}

/// Addresses first, then files; a directory stands for the document files in it, sorted by name.
inline std::vector<std::string> sources_of(const Pages& pages) {
  std::vector<std::string> sources = pages.urls;
  for (const std::filesystem::path& path : pages.files) {
    if (!std::filesystem::is_directory(path)) {
      sources.push_back(path.string());
      continue;
    }
    std::vector<std::string> inside;
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      if (entry.is_regular_file() && is_document_file(entry.path())) inside.push_back(entry.path().string());
    }
    if (inside.empty()) throw Error(path.string() + " holds no .html, .txt, .md or .jsonl file");
    std::sort(inside.begin(), inside.end());
    sources.insert(sources.end(), inside.begin(), inside.end());
  }
  return sources;
}

}  // namespace detail

QLORA_STEP FetchResult fetch(const FetchRequest& request, Progress& progress) {
  web::LoadOptions options;
  options.fetch.allow_private = request.fetching.allow_private;
  options.fetch.max_bytes = static_cast<std::size_t>(request.fetching.max_bytes);
  options.fetch.total_timeout = std::chrono::milliseconds(static_cast<std::int64_t>(request.fetching.timeout * 1000));
  options.fetch.stop = [&progress] { return progress.stop_requested(); };
  if (request.fetching.compat == Compat::article) options.form = web::TextForm::article;
  const std::vector<std::string> sources = detail::sources_of(request.pages);
  if (sources.empty()) throw Error("nothing to fetch: give addresses or files", ErrorKind::usage);
  progress.begin("fetch", static_cast<std::int64_t>(sources.size()), "sources");
  std::int64_t done = 0;
  const web::LoadResult loaded = web::load_documents(sources, options, [&](const std::string&, const std::string& why) {
    if (!why.empty()) progress.say("left out: " + why);
    progress.update(++done);
    if (progress.stop_requested()) throw Error("interrupted while fetching; fetch again", ErrorKind::interrupted);
  });
  if (loaded.documents.empty()) {
    const std::string why = loaded.failures.empty() ? "the files are empty" : loaded.failures[0].error;
    const ErrorKind kind = loaded.failures.empty() ? ErrorKind::input : loaded.failures[0].kind;
    throw Error("nothing could be read; the first: " + why, kind);
  }
  write_documents(request.out, loaded.documents);
  progress.end(std::to_string(loaded.documents.size()) + " documents");
  FetchResult result;
  result.shared_lines_removed = static_cast<std::int64_t>(loaded.shared_lines);
  for (const web::LoadFailure& one : loaded.failures) result.failed.push_back({one.source, one.error});
  for (const Document& one : loaded.documents) {
    const auto bytes = static_cast<std::int64_t>(one.text.size());
    result.bytes += bytes;
    result.documents.push_back({one.source, one.title, bytes, one.sha256});
  }
  return result;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
