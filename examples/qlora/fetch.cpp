// fetch.cpp — `qlora fetch`: web pages and local files to documents, one JSON line each. A page that fails is named on
// stderr and in the result; the rest go on.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "interrupt.hpp"
#include "qlora/error.hpp"
#include "qlora/text/document.hpp"
#include "qlora/web/article_compat.hpp"
#include "qlora/web/extract.hpp"
#include "qlora/web/fetch.hpp"
#include "steps.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

bool is_document_file(const fs::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".html" || extension == ".htm" || extension == ".txt" || extension == ".md" ||
         extension == ".jsonl";
}

/// Addresses first, then files; a directory stands for the document files in it, sorted by name.
std::vector<std::string> sources_of(const DataSection& data) {
  std::vector<std::string> sources = data.urls;
  for (const fs::path& path : data.files) {
    if (!fs::is_directory(path)) {
      sources.push_back(path.string());
      continue;
    }
    std::vector<std::string> inside;
    for (const auto& entry : fs::directory_iterator(path)) {
      if (entry.is_regular_file() && is_document_file(entry.path())) inside.push_back(entry.path().string());
    }
    if (inside.empty()) throw Error(path.string() + " holds no .html, .txt, .md or .jsonl file");
    std::sort(inside.begin(), inside.end());
    sources.insert(sources.end(), inside.begin(), inside.end());
  }
  return sources;
}

Document document_of(const web::Page& page, bool article) {
  if (article && page.content_type != "text/plain") {
    return make_document(page.source, "", web::article_compat_text(page.body), page.fetched_at);
  }
  if (page.content_type == "text/html" || page.content_type == "application/xhtml+xml") {
    web::Extracted extracted = web::extract(page.body);
    return make_document(page.source, std::move(extracted.title), std::move(extracted.text), page.fetched_at);
  }
  return make_document(page.source, "", page.body, page.fetched_at);
}

/// One source's documents. Local .jsonl, .txt and .md files are documents already.
std::vector<Document> read_source(const std::string& source, const DataSection& data,
                                  const web::FetchOptions& options) {
  const std::string extension = fs::path(source).extension().string();
  const bool local = source.find("://") == std::string::npos && !source.starts_with("file:");
  if (local && (extension == ".jsonl" || extension == ".txt" || extension == ".md")) return read_documents(source);
  return {document_of(web::fetch_page(source, options), data.compat == "article")};
}

}  // namespace

Result run_fetch(const FetchStep& step, Progress& progress) {
  web::FetchOptions options;
  options.allow_private = step.data.allow_private;
  options.max_bytes = static_cast<std::size_t>(step.data.max_bytes);
  options.total_timeout = std::chrono::milliseconds(static_cast<std::int64_t>(step.data.timeout * 1000));
  options.stop = [] { return interrupted(); };
  const std::vector<std::string> sources = sources_of(step.data);
  if (sources.empty()) throw Error("nothing to fetch: give addresses or files", ErrorKind::usage);
  std::vector<Document> documents;
  Result failed = Result::array();
  ErrorKind first_kind = ErrorKind::network;
  progress.begin("fetch", static_cast<std::int64_t>(sources.size()), "pages");
  std::int64_t done = 0;
  for (const std::string& source : sources) {
    if (interrupted()) throw Error("interrupted while fetching; fetch again", ErrorKind::interrupted);
    try {
      for (Document& one : read_source(source, step.data, options)) documents.push_back(std::move(one));
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::interrupted) throw;
      if (failed.empty()) first_kind = error.kind();
      const std::string why = error.what();
      failed.push_back({{"source", source}, {"error", why}});
      progress.say("left out: " + (why.starts_with(source) ? why : source + ": " + why));
    }
    progress.update(++done);
  }
  if (documents.empty()) {
    throw Error("no page could be read; the first: " + failed[0]["error"].get<std::string>(), first_kind);
  }
  const std::size_t shared = step.data.compat == "article" ? 0 : web::remove_shared_lines(documents);
  write_documents(step.out, documents);
  progress.end(std::to_string(documents.size()) + " documents");
  Result list = Result::array();
  std::size_t bytes = 0;
  for (const Document& one : documents) {
    bytes += one.text.size();
    list.push_back({{"source", one.source}, {"title", one.title}, {"bytes", one.text.size()}, {"sha256", one.sha256}});
  }
  return {{"documents", list}, {"bytes", bytes}, {"shared_lines_removed", shared}, {"failed", failed}};
}

void add_fetch(CLI::App& app, Invocation& call) {
  CLI::App& verb = add_verb(app, call, "fetch", "Load web pages and files, keep their main text as JSON lines");
  auto step = std::make_shared<FetchStep>();
  verb.add_option("sources", step->data.urls, "Addresses (http, https, file) and .html, .txt, .md, .jsonl files")
      ->required()
      ->type_name("URL...");
  verb.add_option("-o,--out", step->out, "Documents, one JSON object a line")->required()->type_name("FILE");
  verb.add_option("--compat", step->data.compat, "article: text as the article takes it, menus and all")
      ->check(CLI::IsMember({"none", "article"}));
  verb.add_flag("--allow-private", step->data.allow_private, "Fetch from private and loopback addresses too");
  verb.add_option("--timeout", step->data.timeout, "Seconds for one page, all in")->check(CLI::Range(1.0, 3600.0));
  verb.add_option("--max-bytes", step->data.max_bytes, "Decoded bytes of one page at most")
      ->check(CLI::Range(1024, 1000000000));
  verb.callback([&call, step] {
    call.action = [step](Context& context) {
      // What is a local folder on the command line is one in a job file's `files`, too.
      DataSection& data = step->data;
      const auto folder = [](const std::string& source) { return fs::is_directory(source); };
      for (const std::string& source : data.urls) {
        if (folder(source)) data.files.emplace_back(source);
      }
      std::erase_if(data.urls, folder);
      const Result result = run_fetch(*step, context.progress);
      for (const Result& one : result["documents"]) {
        context.out << one["bytes"] << " bytes  " << one["source"].get<std::string>() << '\n';
      }
      context.out << result["documents"].size() << " documents in " << step->out.string() << ", "
                  << result["failed"].size() << " sources left out\n";
      return result;
    };
  });
}

}  // namespace qlora::program
