// qlora/run/pack.hpp — documents to windows of token ids: each document by itself, and every dropped token counted.
#pragma once

#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/steps.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Writes the data set `request.out`. Throws Error: (input) for documents that cannot be read or tokenized, (resource)
/// when the directory cannot be written, (interrupted) when progress asks to stop.
QLORA_STEP PackResult pack(const PackRequest& request, Progress& progress);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/text/dataset.hpp"
#include "qlora/text/document.hpp"
#include "qlora/text/packing.hpp"
#include "qlora/text/prompt.hpp"
#include "qlora/text/tokenizer.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// All documents in packing order; `replayed` is how many of them come from the replay file.
inline std::vector<Document> documents_of(const PackRequest& request, std::int64_t& replayed) {
  std::vector<Document> documents;
  for (const std::filesystem::path& file : request.documents) {
    for (Document& one : read_documents(file)) documents.push_back(std::move(one));
  }
  replayed = 0;
  if (request.replay.replay.empty()) return documents;
  for (Document& one : read_documents(request.replay.replay)) {
    if (request.replay.replay_limit > 0 && replayed >= request.replay.replay_limit) break;
    documents.push_back(std::move(one));
    ++replayed;
  }
  return documents;
}

inline TokenDocument tokens_of(const Tokenizer& tokenizer, const Document& document, bool article) {
  try {
    if (!document.messages.empty()) return chat_document(tokenizer, document.messages);
    return article ? article_document(tokenizer, document.text) : text_document(tokenizer, document.text);
  } catch (const Error& error) {
    throw Error(document.source + ": " + error.what(), error.kind());
  }
}

}  // namespace detail

QLORA_STEP PackResult pack(const PackRequest& request, Progress& progress) {
  const std::filesystem::path file =
      std::filesystem::is_directory(request.model) ? tokenizer_file(request.model) : request.model;
  const Tokenizer tokenizer = Tokenizer::load(file);
  const bool article = request.packing.compat == Compat::article;
  std::int64_t replayed = 0;
  const std::vector<Document> documents = detail::documents_of(request, replayed);
  DatasetInfo info{.vocab_size = tokenizer.vocab_size(),
                   .tokenizer_sha256 = sha256_file(file),
                   .form = article ? PackingForm::article : PackingForm::isolated,
                   .labels = request.packing.labels,
                   .split = request.packing.split,
                   .sources = {}};
  std::vector<TokenDocument> tokens;
  std::int64_t total = 0;
  progress.begin("pack", static_cast<std::int64_t>(documents.size()), "documents");
  for (const Document& document : documents) {
    if (progress.stop_requested()) throw Error("interrupted while packing; pack again", ErrorKind::interrupted);
    tokens.push_back(detail::tokens_of(tokenizer, document, article));
    const auto count = static_cast<std::int64_t>(tokens.back().ids.size());
    total += count;
    info.sources.push_back({document.source, document.title, document.sha256, count});
    progress.update(static_cast<std::int64_t>(tokens.size()), total);
  }
  const int seq = request.packing.seq;
  const PackedWindows windows =
      article
          ? pack_as_article(tokens, seq)
          : pack_documents(tokens, {.seq = seq, .labels = info.labels, .split = info.split, .pad_id = tokenizer.eos()});
  write_dataset(request.out, windows, info);
  const PackingCounts& counts = windows.counts;
  progress.end(std::to_string(windows.windows()) + " windows of " + std::to_string(windows.seq));
  return {.documents = static_cast<std::int64_t>(documents.size()),
          .replayed = replayed,
          .skipped_documents = counts.skipped_documents,
          .cut_documents = counts.cut_documents,
          .windows = static_cast<std::int64_t>(windows.windows()),
          .seq = windows.seq,
          .tokens = counts.tokens,
          .labelled = counts.labelled,
          .padding = counts.padding,
          .dropped_tokens = counts.dropped_tokens,
          .path = request.out};
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
