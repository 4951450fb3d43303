// compare.cpp — `qlora compare`: the same questions to the base, the base with an adapter on, the merged model and a
// model that was trained whole; with probes, each is measured against another (run/compare.hpp).
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>

#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/run/compare.hpp"
#include "qlora/run/comparison_tables.hpp"
#include "steps.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

struct CompareOptions {
  run::CompareRequest request;
  fs::path adapter;
  fs::path full;
  fs::path report;
};

Result compare(CompareOptions& options, Context& context) {
  if (!options.adapter.empty()) {
    options.request.adapters = {{"tuned", options.adapter}};
    options.request.merged_from = "tuned";
  }
  if (!options.report.empty()) check_folder_of("--report", options.report);
  if (!options.full.empty()) options.request.models = {{"full", options.full}};
  if (options.request.adapters.empty() && options.request.merged.empty() && options.full.empty()) {
    throw Error("compare with what? give --adapter, --merged or --full", ErrorKind::usage);
  }
  const run::Comparison comparison = run::compare(options.request, context.progress);
  run::print_comparison(comparison, context.out);
  if (!options.report.empty()) {
    write_page(options.report, comparison,
               {.model = options.request.model,
                .adapter = options.adapter,
                .merged = options.request.merged,
                .full = options.full,
                .sampling = options.request.sampling});
    context.out << options.report.string() << '\n';
  }
  return result_of(comparison);
}

}  // namespace

void add_compare(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "compare", "Ask base, tuned and merged model the same questions");
  auto options = std::make_shared<CompareOptions>();
  verb.add_model("-m,--model", options->request.model, "Base model directory").required().type_name("DIR");
  verb.add_model("-a,--adapter", options->adapter, "Adapter directory").type_name("DIR");
  add_any_base(verb, options->request.any_base);
  verb.add_model("--merged", options->request.merged, "Merged model directory").type_name("DIR");
  verb.add_model("--full", options->full, "Model directory, all of whose weights were trained").type_name("DIR");
  add_table(verb, options->request.comparison);
  add_table(verb, options->request.chat);
  verb.add_output("--report", options->report, Written::file, "Write an HTML page with the answers side by side")
      .type_name("FILE");
  add_table(verb, options->request.sampling);
  add_table(verb, options->request.device);
  verb.on_call([&call, options] { call.action = [options](Context& context) { return compare(*options, context); }; });
}

}  // namespace qlora::program
