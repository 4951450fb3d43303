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
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/document.hpp"
#include "qlora/web/pages.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

inline bool is_document_file(const std::filesystem::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  constexpr std::array<std::string_view, 8> known = {".html", ".htm", ".xhtml",    ".txt",
                                                     ".text", ".md",  ".markdown", ".jsonl"};
  return std::find(known.begin(), known.end(), extension) != known.end();
}

/// The sources of a request, and the files of its folders that are none.
class Sources {
 public:
  std::vector<std::string> all;  ///< addresses first, then files; those of a folder sorted by name
  std::vector<FetchFailure> left_out;

  explicit Sources(const FetchRequest& request) : all(request.pages.urls), request_(request) {
    for (const std::filesystem::path& path : request.pages.files) {
      if (!std::filesystem::is_directory(path)) {
        all.push_back(path.string());
        continue;
      }
      const std::size_t before = all.size();
      add_folder(path, 0);
      if (all.size() == before && left_out_of_.empty())
        throw Error(path.string() + " holds no .html, .xhtml, .txt, .md or .jsonl file");
      for (const FetchFailure& failure : left_out_of_) left_out.push_back(failure);
      left_out_of_.clear();
    }
  }

 private:
  void add_folder(const std::filesystem::path& folder, int depth) {
    std::vector<std::filesystem::path> inside;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) inside.push_back(entry.path());
    std::sort(inside.begin(), inside.end());
    for (const std::filesystem::path& path : inside) {
      std::error_code none;
      const auto leave_out = [&](const char* why) { left_out_of_.push_back({path.string(), why}); };
      if (path.filename().string().starts_with('.')) continue;  // hidden: a system's or an editor's
      if (std::filesystem::is_directory(path, none)) {
        if (!request_.fetching.recursive)
          leave_out("a folder; --recursive reads it");
        else if (std::filesystem::is_symlink(path, none) || depth >= 64)
          leave_out("a link to a folder, or a folder too deep");
        else
          add_folder(path, depth + 1);
      } else if (!std::filesystem::is_regular_file(path, none)) {
        leave_out("not a plain file");
      } else if (std::filesystem::equivalent(path, request_.out, none)) {
        leave_out("it is the output");
      } else if (!is_document_file(path)) {
        leave_out("its name does not end in .html, .htm, .xhtml, .txt, .text, .md, .markdown or .jsonl");
      } else {
        all.push_back(path.string());
      }
    }
  }

  const FetchRequest& request_;
  std::vector<FetchFailure> left_out_of_;  ///< of the folder being read
};

}  // namespace detail

QLORA_STEP FetchResult fetch(const FetchRequest& request, Progress& progress) {
  web::LoadOptions options;
  options.fetch.allow_private = request.fetching.allow_private;
  options.fetch.max_bytes = static_cast<std::size_t>(request.fetching.max_bytes);
  options.fetch.total_timeout = std::chrono::milliseconds(static_cast<std::int64_t>(request.fetching.timeout * 1000));
  options.fetch.stop = [&progress] { return progress.stop_requested(); };
  if (request.fetching.compat == Compat::article) options.form = web::TextForm::article;
  options.all_pages = request.fetching.all_pages;
  const detail::Sources found(request);
  const std::vector<std::string>& sources = found.all;
  for (const FetchFailure& failure : found.left_out) progress.say("left out: " + failure.source + ": " + failure.error);
  if (sources.empty()) {
    if (found.left_out.empty()) throw Error("nothing to fetch: give addresses or files", ErrorKind::usage);
    throw Error("nothing could be read; the first: " + found.left_out[0].source + ": " + found.left_out[0].error);
  }
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
  for (const web::LoadFailure& duplicate : loaded.duplicates)
    progress.say("left out: " + duplicate.source + ": repeats " + duplicate.error);
  for (const auto& [source, label] : loaded.unknown_charsets)
    progress.say(source + ": its encoding \"" + label + "\" is unknown; read as another");
  if (loaded.shared_lines > 0)
    progress.say("removed " + std::to_string(loaded.shared_lines) + " lines that pages of one site share");
  write_documents(request.out, loaded.documents);
  progress.end(std::to_string(loaded.documents.size()) + " documents");
  FetchResult result;
  result.shared_lines_removed = static_cast<std::int64_t>(loaded.shared_lines);
  result.failed = found.left_out;
  for (const web::LoadFailure& failure : loaded.failures) result.failed.push_back({failure.source, failure.error});
  for (const web::LoadFailure& duplicate : loaded.duplicates)
    result.repeated.push_back({duplicate.source, duplicate.error});
  for (const Document& document : loaded.documents) {
    const auto bytes = static_cast<std::int64_t>(document.text.size());
    result.bytes += bytes;
    result.documents.push_back({document.source, document.title, bytes, document.sha256});
    for (const auto& [source, label] : loaded.unknown_charsets)
      if (source == document.source) result.documents.back().unknown_encoding = label;
  }
  return result;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
