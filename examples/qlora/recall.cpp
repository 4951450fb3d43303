// recall.cpp — `qlora recall`: a model writes down what it knows. Documents are sampled from the model itself, from an empty
// prompt, and mixed into a training run as its replay: a rehearsal of what must not be forgotten that needs no data.
#include "recollection.hpp"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "answering.hpp"
#include "options.hpp"
#include "qlora/error.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

struct RecallOptions {
  fs::path model;
  fs::path out;
  std::string prompt;
  std::string base = "nf4";
  int documents = 500;
  int max_new_tokens = 512;
  double temperature = 1.0;
  double top_p = 1.0;
  std::int64_t seed = 42;
  DeviceSection device;
  int threads = 0;
};

Result recall(const RecallOptions& options, Context& context) {
  if (options.out.extension() != ".jsonl") throw Error("--out must end in .jsonl", ErrorKind::usage);
  Answerer answerer(options.model, options.base == "full" ? Base::full : Base::nf4, 1, options.device, options.threads);
  const std::vector<Question> asked(static_cast<std::size_t>(options.documents), Question{false, options.prompt, {}});
  GenerateOptions how;
  how.max_new_tokens = options.max_new_tokens;
  how.sampling = {.temperature = static_cast<float>(options.temperature),
                  .top_p = static_cast<float>(options.top_p),
                  .top_k = 0,
                  .seed = static_cast<std::uint64_t>(options.seed)};
  context.progress.begin("recall " + options.model.string(), options.documents, "documents");
  int begun = 0;
  std::int64_t tokens = 0;
  const std::vector<Reply> replies = answerer.ask(asked, how, [&](int document, std::int32_t) {
    begun = std::max(begun, document + 1);
    context.progress.update(begun, ++tokens);
    return true;
  });
  context.progress.end();
  std::vector<Document> documents;
  int cut = 0;
  for (std::size_t i = 0; i < replies.size(); ++i) {
    const std::string source = "recall:" + std::to_string(options.seed) + ':' + std::to_string(i);
    std::optional<Document> document;
    if (replies[i].stopped) document = recalled_document(options.prompt + replies[i].text, source);
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
  verb.add("-o,--out", options->out, "Documents: a .jsonl file for --replay, or for an arm's replay")
      .required()
      .type_name("FILE");
  verb.add("-n,--documents", options->documents, "How many are begun").range(1, 10000000);
  verb.add("-p,--prompt", options->prompt, "What each begins with; \"[INST]\" lets a chat model ask itself");
  verb.add("--base", options->base, "nf4: quantize the model; full: use its weights as they are")
      .one_of({"nf4", "full"});
  verb.add("--max-new-tokens", options->max_new_tokens, "Tokens of a document at most; longer ones are left out")
      .range(1, 1000000);
  verb.add("--temperature", options->temperature, "1 samples from the model as it is").range(0.0, 100.0);
  verb.add("--top-p", options->top_p, "Nucleus that is sampled from").range(0.0001, 1.0);
  verb.add("--seed", options->seed, "Of sampling").non_negative();
  add_device_options(verb, options->device, options->threads);
  verb.on_call([&call, options] { call.action = [options](Context& c) { return recall(*options, c); }; });
}

}  // namespace qlora::program
