// pack.cpp — `qlora pack`: documents to windows of token ids, each document isolated, nothing dropped uncounted.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "interrupt.hpp"
#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/text/dataset.hpp"
#include "qlora/text/document.hpp"
#include "qlora/text/packing.hpp"
#include "qlora/text/prompt.hpp"
#include "qlora/text/tokenizer.hpp"
#include "steps.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

/// All documents in the order in which they are packed; `replayed` says how many of them come from the replay file.
std::vector<Document> gather(const PackStep& step, std::int64_t& replayed) {
  std::vector<Document> documents;
  for (const fs::path& file : step.documents) {
    for (Document& one : read_documents(file)) documents.push_back(std::move(one));
  }
  replayed = 0;
  if (step.replay.replay.empty()) return documents;
  for (Document& one : read_documents(step.replay.replay)) {
    if (step.replay.replay_limit > 0 && replayed >= step.replay.replay_limit) break;
    documents.push_back(std::move(one));
    ++replayed;
  }
  return documents;
}

TokenDocument tokens_of(const Tokenizer& tokenizer, const Document& document, bool article) {
  try {
    if (!document.messages.empty()) return chat_document(tokenizer, document.messages);
    return article ? article_document(tokenizer, document.text) : text_document(tokenizer, document.text);
  } catch (const Error& error) {
    throw Error(document.source + ": " + error.what(), error.kind());
  }
}

}  // namespace

Result run_pack(const PackStep& step, Progress& progress) {
  const fs::path tokenizer_file = fs::is_directory(step.model) ? step.model / "tokenizer.model" : step.model;
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_file);
  const bool article = step.packing.compat == run::Compat::article;
  std::int64_t replayed = 0;
  const std::vector<Document> documents = gather(step, replayed);
  DatasetInfo info{.vocab_size = tokenizer.vocab_size(),
                   .tokenizer_sha256 = sha256_file(tokenizer_file),
                   .form = article ? PackingForm::article : PackingForm::isolated,
                   .labels = step.packing.labels,
                   .split = step.packing.split,
                   .sources = {}};
  std::vector<TokenDocument> tokens;
  std::int64_t total = 0;
  progress.begin("pack", static_cast<std::int64_t>(documents.size()), "documents");
  for (const Document& document : documents) {
    if (interrupted()) throw Error("interrupted while packing; pack again", ErrorKind::interrupted);
    tokens.push_back(tokens_of(tokenizer, document, article));
    total += static_cast<std::int64_t>(tokens.back().ids.size());
    info.sources.push_back(
        {document.source, document.title, document.sha256, static_cast<std::int64_t>(tokens.back().ids.size())});
    progress.update(static_cast<std::int64_t>(tokens.size()), total);
  }
  const PackedWindows windows =
      article ? pack_as_article(tokens, step.packing.seq)
              : pack_documents(
                    tokens,
                    {.seq = step.packing.seq, .labels = info.labels, .split = info.split, .pad_id = tokenizer.eos()});
  write_dataset(step.out, windows, info);
  const PackingCounts& counts = windows.counts;
  progress.end(std::to_string(windows.windows()) + " windows of " + std::to_string(windows.seq));
  return {{"documents", documents.size()},
          {"replayed", replayed},
          {"skipped_documents", counts.skipped_documents},
          {"cut_documents", counts.cut_documents},
          {"windows", windows.windows()},
          {"seq", windows.seq},
          {"tokens", counts.tokens},
          {"labelled", counts.labelled},
          {"padding", counts.padding},
          {"dropped_tokens", counts.dropped_tokens},
          {"path", step.out.string()}};
}

void add_pack(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "pack", "Turn documents into windows of token ids");
  auto step = std::make_shared<PackStep>();
  verb.add("documents", step->documents, "Documents: .jsonl, .txt or .md").required().type_name("FILE...");
  verb.add("-m,--model", step->model, "Model directory, or a tokenizer.model").required().type_name("DIR");
  verb.add("-o,--out", step->out, "Directory of the data set").required().type_name("DIR");
  add_table(verb, step->packing);
  add_table(verb, step->replay);
  verb.on_call([&call, step] {
    call.action = [step](Context& context) {
      const Result result = run_pack(*step, context.progress);
      context.out << result["documents"] << " documents (" << result["replayed"] << " replayed, "
                  << result["skipped_documents"] << " without text, " << result["cut_documents"] << " cut) -> "
                  << result["windows"] << " windows of " << result["seq"] << ": " << result["tokens"] << " tokens, "
                  << result["labelled"] << " labelled, " << result["padding"] << " padding, "
                  << result["dropped_tokens"] << " dropped\n";
      return result;
    };
  });
}

}  // namespace qlora::program
