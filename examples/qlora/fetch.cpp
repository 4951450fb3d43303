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
#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/text/document.hpp"
#include "qlora/web/pages.hpp"
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
std::vector<std::string> sources_of(const run::Pages& pages) {
  std::vector<std::string> sources = pages.urls;
  for (const fs::path& path : pages.files) {
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

}  // namespace

Result run_fetch(const FetchStep& step, Progress& progress) {
  web::LoadOptions options;
  options.fetch.allow_private = step.fetching.allow_private;
  options.fetch.max_bytes = static_cast<std::size_t>(step.fetching.max_bytes);
  options.fetch.total_timeout = std::chrono::milliseconds(static_cast<std::int64_t>(step.fetching.timeout * 1000));
  options.fetch.stop = [] { return interrupted(); };
  if (step.fetching.compat == run::Compat::article) options.form = web::TextForm::article;
  const std::vector<std::string> sources = sources_of(step.pages);
  if (sources.empty()) throw Error("nothing to fetch: give addresses or files", ErrorKind::usage);
  progress.begin("fetch", static_cast<std::int64_t>(sources.size()), "sources");
  std::int64_t done = 0;
  const web::LoadResult loaded = web::load_documents(sources, options, [&](const std::string&, const std::string& why) {
    if (!why.empty()) progress.say("left out: " + why);
    progress.update(++done);
    if (interrupted()) throw Error("interrupted while fetching; fetch again", ErrorKind::interrupted);
  });
  const std::vector<Document>& documents = loaded.documents;
  if (documents.empty()) {
    const std::string why = loaded.failures.empty() ? "the files are empty" : loaded.failures[0].error;
    const ErrorKind kind = loaded.failures.empty() ? ErrorKind::input : loaded.failures[0].kind;
    throw Error("nothing could be read; the first: " + why, kind);
  }
  write_documents(step.out, documents);
  progress.end(std::to_string(documents.size()) + " documents");
  Result failed = Result::array();
  for (const web::LoadFailure& one : loaded.failures) failed.push_back({{"source", one.source}, {"error", one.error}});
  Result list = Result::array();
  std::size_t bytes = 0;
  for (const Document& one : documents) {
    bytes += one.text.size();
    list.push_back({{"source", one.source}, {"title", one.title}, {"bytes", one.text.size()}, {"sha256", one.sha256}});
  }
  return {{"documents", list}, {"bytes", bytes}, {"shared_lines_removed", loaded.shared_lines}, {"failed", failed}};
}

void add_fetch(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "fetch", "Load web pages and files, keep their main text as JSON lines");
  auto step = std::make_shared<FetchStep>();
  verb.add("sources", step->pages.urls,
           "Addresses (http, https, file); .html, .txt, .md, .jsonl files; folders of them")
      .required()
      .type_name("URL...");
  verb.add("-o,--out", step->out, "Documents, one JSON object a line").required().type_name("FILE");
  add_table(verb, step->fetching);
  verb.on_call([&call, step] {
    call.action = [step](Context& context) {
      // What is a local folder on the command line is one in a job file's `files`, too.
      run::Pages& pages = step->pages;
      const auto folder = [](const std::string& source) { return fs::is_directory(source); };
      for (const std::string& source : pages.urls) {
        if (folder(source)) pages.files.emplace_back(source);
      }
      std::erase_if(pages.urls, folder);
      std::error_code none;
      for (const std::string& source : pages.urls) {
        if (fs::equivalent(source, step->out, none)) {
          throw Error("--out is " + source + ", which is read; choose another file", ErrorKind::usage);
        }
      }
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
