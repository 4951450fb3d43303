// fetch.cpp — `qlora fetch`: web pages and local files to documents, one JSON line each. A page that fails is named on
// stderr and in the result; the rest go on.
#define QLORA_RUN_CODE  // qlora/run/prebuilt.hpp: fetching is compiled here
#include "qlora/run/fetch.hpp"

#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <system_error>
#include <utility>

#include "options.hpp"
#include "qlora/error.hpp"
#include "verb.hpp"

namespace qlora::program {

void add_fetch(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "fetch", "Load web pages and files, keep their main text as JSON lines");
  auto request = std::make_shared<run::FetchRequest>();
  verb.add("sources", request->pages.urls,
           "Addresses (http, https, file); .html, .txt, .md, .jsonl files; folders of them")
      .required()
      .type_name("URL...");
  verb.add_output("-o,--out", request->out, Written::file, "Documents, one JSON object a line")
      .required()
      .type_name("FILE");
  add_table(verb, request->fetching);
  verb.on_call([&call, request] {
    call.action = [&call, request](Context& context) {
      // What is a local folder on the command line is one in a job file's `files`, too.
      run::Pages& pages = request->pages;
      for (std::string& source : pages.urls) source = local_path(source, context.progress).string();
      const auto folder = [](const std::string& source) { return std::filesystem::is_directory(source); };
      for (const std::string& source : pages.urls) {
        if (folder(source)) pages.files.emplace_back(source);
      }
      std::erase_if(pages.urls, folder);
      std::error_code none;
      for (const std::string& source : pages.urls) {
        for (const auto& [option, file] : {std::pair("--out", request->out), std::pair("--json", call.json)}) {
          if (!std::filesystem::equivalent(source, file, none)) continue;
          throw Error(concat(option, " is ", source, ", which is read; choose another file"), ErrorKind::usage);
        }
      }
      check_folder_of("--out", request->out);
      const run::FetchResult result = run::fetch(*request, context.progress);
      for (const run::FetchedDocument& document : result.documents) {
        context.out << document.bytes << " bytes  " << document.source << '\n';
      }
      context.out << result.documents.size() << " documents in " << request->out.string() << ", "
                  << result.failed.size() + result.repeated.size() << " sources left out\n";
      return result_of(result);
    };
  });
}

}  // namespace qlora::program
