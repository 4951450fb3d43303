// recall.cpp — `qlora recall`: a model writes down what it knows. Documents are sampled from the model itself, from an empty
// prompt, and mixed into a training run as its replay: a rehearsal of what must not be forgotten that needs no data.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/run/engine.hpp"
#include "qlora/text/recalled.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

struct RecallOptions {
  fs::path model;
  run::Base weights;
  run::Sampling sampling = run::recall_sampling;
  run::DeviceRequest device;
  run::Recall recall;
  fs::path out;
};

Result recall(const RecallOptions& options, Context& context) {
  if (options.out.extension() != ".jsonl") throw Error("--out must end in .jsonl", ErrorKind::usage);
  const auto& [model, weights, sampling, device, recalled, out] = options;
  run::Engine engine(model, {.base = weights.base, .device = device});
  const std::vector<run::Question> asked(static_cast<std::size_t>(options.recall.documents),
                                         run::Question{false, options.recall.prompt, {}});
  context.progress.begin("recall " + model.string(), options.recall.documents, "documents");
  int begun = 0;
  std::int64_t tokens = 0;
  const std::vector<run::Reply> replies =
      engine.ask(asked, sampling, context.progress, [&](int document, std::int32_t) {
        begun = std::max(begun, document + 1);
        context.progress.update(begun, ++tokens);
        return true;
      });
  context.progress.end();
  std::vector<Document> documents;
  int cut = 0;
  for (std::size_t i = 0; i < replies.size(); ++i) {
    const std::string source = "recall:" + std::to_string(sampling.seed) + ':' + std::to_string(i);
    std::optional<Document> document;
    if (replies[i].stopped) document = recalled_document(options.recall.prompt + replies[i].text, source);
    if (document) {
      documents.push_back(std::move(*document));
    } else {
      ++cut;
    }
  }
  if (documents.empty()) {
    throw Error("no document came to its end; give more tokens with --max-new-tokens", ErrorKind::input);
  }
  write_documents(options.out, documents);
  const auto chats =
      std::count_if(documents.begin(), documents.end(), [](const Document& d) { return !d.messages.empty(); });
  context.out << documents.size() << " documents, " << chats << " of them chats, in " << options.out.string() << "; "
              << cut << " had no end or no form and were left out\n";
  return {{"documents", documents.size()}, {"chats", chats}, {"left_out", cut}, {"out", options.out.string()}};
}

}  // namespace

void add_recall(OptionSet app, Invocation& call) {
  OptionSet verb =
      add_verb(app, call, "recall", "Let a model write down what it knows, to be replayed while it learns");
  auto options = std::make_shared<RecallOptions>();
  verb.add("model", options->model, "Model directory").required().type_name("DIR");
  add_table(verb, options->weights);
  add_table(verb, options->sampling);
  add_table(verb, options->device);
  add_table(verb, options->recall);
  verb.add("-o,--out", options->out, "Documents: a .jsonl file for --replay, or for an arm's replay")
      .required()
      .type_name("FILE");
  verb.on_call([&call, options] { call.action = [options](Context& c) { return recall(*options, c); }; });
}

}  // namespace qlora::program
