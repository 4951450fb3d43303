// qlora/run/recall.hpp — documents that a model writes of what it knows, sampled from its own distribution. Mixed into
// a training run as its replay, they rehearse what must not be forgotten, and need no other data.
#pragma once

#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/steps.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Writes the documents to `request.out`. Throws Error: (usage) unless that is a .jsonl file, and without a prompt
/// where no mark begins a text of the model; (input) when no text reached its end, or the prompt is not UTF-8;
/// (interrupted) when progress asks to stop, after the documents that were complete then are written; and as Engine
/// does.
QLORA_STEP RecallResult recall(const RecallRequest& request, Progress& progress);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/run/engine.hpp"
#include "qlora/text/document.hpp"
#include "qlora/text/recalled.hpp"
#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

QLORA_STEP RecallResult recall(const RecallRequest& request, Progress& progress) {
  if (request.out.extension() != ".jsonl") throw Error("--out must end in .jsonl", ErrorKind::usage);
  check_utf8(request.recall.prompt, "--prompt");
  Engine engine(request.model, {.base = request.weights.base, .device = request.device, .chat = request.chat});
  say_note(engine.model(), progress);
  const std::string& prompt = request.recall.prompt;
  if (prompt.empty() && engine.tokenizer().bos() < 0) {
    throw Error(
        concat(request.model.string(),
               ": nothing goes before a text of this model; give the beginning of every document with --prompt"),
        ErrorKind::usage);
  }
  const std::vector<Question> asked(static_cast<std::size_t>(request.recall.documents), Question{false, prompt, {}});
  progress.begin("recall " + request.model.string(), request.recall.documents, "documents");
  int begun = 0;
  std::int64_t tokens = 0;
  const auto on_token = [&](int document, std::int32_t) {
    begun = std::max(begun, document + 1);
    progress.update(begun, ++tokens);
    return true;
  };
  const std::vector<Reply> replies = engine.ask(asked, request.sampling, progress, on_token, true);
  const bool interrupted = progress.stop_requested();
  progress.end();
  RecallResult result;
  result.out = request.out;
  std::vector<Document> documents;
  for (std::size_t i = 0; i < replies.size(); ++i) {
    const std::string source = concat("recall:", request.sampling.seed, ':', i);
    std::optional<Document> document;
    if (replies[i].stopped) {
      const std::string& marked = replies[i].marked;
      document = recalled_document(prompt + replies[i].text, marked.empty() ? marked : prompt + marked, source,
                                   engine.chat_template());
    }
    if (!document) {
      ++result.left_out;
      continue;
    }
    if (!document->messages.empty()) ++result.chats;
    documents.push_back(std::move(*document));
  }
  if (documents.empty() && interrupted) {
    throw Error("interrupted before a document was complete; nothing was written", ErrorKind::interrupted);
  }
  if (documents.empty()) {
    throw Error("no document came to its end; give more tokens with --max-new-tokens", ErrorKind::input);
  }
  write_documents(request.out, documents);
  result.documents = static_cast<std::int64_t>(documents.size());
  if (interrupted) {
    throw Error(concat("interrupted; the ", result.documents, " documents that were complete are in ",
                       request.out.string(), ", the same command writes all of them"),
                ErrorKind::interrupted);
  }
  return result;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
#endif  // QLORA_STEP_CODE
