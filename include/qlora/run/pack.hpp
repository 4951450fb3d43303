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
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/text/chat_directory.hpp"
#include "qlora/text/chat_parse.hpp"
#include "qlora/text/dataset.hpp"
#include "qlora/text/document.hpp"
#include "qlora/text/packing.hpp"
#include "qlora/text/prompt.hpp"
#include "qlora/text/tokenizer.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// Calls use(document, "FILE:LINE") for all documents in packing order; returns how many come from the replay file.
template <class Use>
std::int64_t for_each_packed(const PackRequest& request, const Use& use) {
  for (const std::filesystem::path& file : request.documents) for_each_document(file, use);
  std::int64_t replayed = 0;
  if (request.replay.replay.empty()) return replayed;
  for_each_document(request.replay.replay, [&](Document&& document, const std::string& where) {
    if (request.replay.replay_limit > 0 && replayed >= request.replay.replay_limit) return;
    use(std::move(document), where);
    ++replayed;
  });
  return replayed;
}

/// How many documents that will be, by their lines: no text is read for its content.
inline std::int64_t count_packed(const PackRequest& request) {
  std::int64_t all = 0;
  for (const std::filesystem::path& file : request.documents) all += count_documents(file);
  if (request.replay.replay.empty()) return all;
  const std::int64_t replayed = count_documents(request.replay.replay);
  const std::int64_t limit = request.replay.replay_limit;
  return all + (limit > 0 ? std::min(limit, replayed) : replayed);
}

inline bool is_blank(std::string_view text) { return qlora::detail::stripped(text).empty(); }

inline TokenDocument tokens_of(const Tokenizer& tokenizer, const ChatTemplate& form, const Document& document,
                               const std::string& where, bool article) {
  try {
    if (!document.messages.empty()) return chat_document(tokenizer, form, document.messages);
    if (is_blank(document.text)) return {};
    return article ? article_document(tokenizer, document.text) : text_document(tokenizer, document.text);
  } catch (const Error& error) {
    const std::string source = document.source == where ? std::string() : " (" + document.source + ")";
    throw Error(concat(where, source, ": ", error.what()), error.kind());
  }
}

/// Whether a text spells one of these.
inline bool spells(std::string_view text, const std::vector<std::string>& marks) {
  return std::any_of(marks.begin(), marks.end(),
                     [&](const std::string& mark) { return text.find(mark) != std::string_view::npos; });
}
/// What only control tokens and the chat form mean: "<s>", "</s>", "[INST]".
inline std::vector<std::string> marks_in_text(const ChatTemplate& form) {
  std::vector<std::string> marks = form.tags();
  marks.insert(marks.end(), {"<s>", "</s>"});
  return marks;
}

/// What --chat-marks asks for with a text that spells marks. Throws Error where it cannot be.
inline void take_marks(MarkedTexts how, Document& document, const std::string& where) {
  if (how == MarkedTexts::text) return;
  if (how == MarkedTexts::refuse) {
    throw Error(concat(where,
                       ": spells marks of the chat form or control tokens (<s>, </s>, [INST]); take them out, or "
                       "give --chat-marks text or --chat-marks parse"));
  }
  auto chat = chat_of_text(document.text);
  if (!chat) {
    throw Error(concat(where,
                       ": spells marks of the chat form, but is no whole chat \"<s>[INST] ... [/INST] ... </s>\"; "
                       "give it as \"messages\", or --chat-marks text"));
  }
  document.messages = *std::move(chat);
  document.text.clear();
}

}  // namespace detail

QLORA_STEP PackResult pack(const PackRequest& request, Progress& progress) {
  const std::filesystem::path file =
      std::filesystem::is_directory(request.model) ? tokenizer_file(request.model) : request.model;
  const Tokenizer tokenizer = Tokenizer::load(file);
  const ChatTemplate form = chat_template_of(file.parent_path(), tokenizer, request.chat.chat_template);
  const std::vector<std::string> marks = detail::marks_in_text(form);
  const bool article = request.packing.compat == Compat::article;
  DatasetInfo info{.vocab_size = tokenizer.vocab_size(),
                   .tokenizer_sha256 = sha256_file(file),
                   .form = article ? PackingForm::article : PackingForm::isolated,
                   .labels = request.packing.labels,
                   .split = request.packing.split,
                   .sources = {}};
  std::int64_t total = 0;
  std::int64_t marked = 0;
  const int seq = request.packing.seq;
  DatasetWriter writer(request.out, seq, tokenizer.vocab_size());
  WindowPacker packer(
      {.seq = seq, .labels = info.labels, .split = info.split, .pad_id = tokenizer.eos(), .drop_unlabelled = true},
      [&](const DatasetWindow& window) { writer.add(window); });
  std::vector<TokenDocument> stream;  // of the article's form, which is one stream
  progress.begin("pack", detail::count_packed(request), "documents");
  const std::int64_t replayed = detail::for_each_packed(request, [&](Document&& document, const std::string& where) {
    if (progress.stop_requested()) throw Error("interrupted while packing; pack again", ErrorKind::interrupted);
    const bool is_marked = detail::spells(document.text, marks);
    if (is_marked || (request.packing.chat_marks == MarkedTexts::parse && spells_chat_marks(document.text))) {
      ++marked;
      detail::take_marks(request.packing.chat_marks, document, where);
    }
    TokenDocument tokens = detail::tokens_of(tokenizer, form, document, where, article);
    std::string().swap(document.text);  // its memory is for what follows
    const auto count = static_cast<std::int64_t>(tokens.ids.size());
    total += count;
    writer.add_source({std::move(document.source), std::move(document.title), std::move(document.sha256), count});
    if (article) {
      stream.push_back(std::move(tokens));
    } else {
      packer.add(tokens);
    }
    progress.update(static_cast<std::int64_t>(writer.sources()), total);
  });
  PackingCounts counts;
  if (article) {
    const PackedWindows windows = pack_as_article(stream, seq);
    for (std::int64_t i = 0; i < windows.windows(); ++i) writer.add(windows.window(i));
    counts = windows.counts;
    writer.finish(info, counts, windows.skipped);
  } else {
    packer.finish();
    counts = packer.counts();
    writer.finish(info, counts, packer.skipped());
  }
  if (packer.dropped_windows() > 0) {
    progress.say(concat(packer.dropped_windows(), " windows had no label and were left out"));
  }
  if (marked > 0 && request.packing.chat_marks == MarkedTexts::parse) {
    progress.say(concat(marked, " documents spell the chat form and are taken as chats"));
  } else if (marked > 0) {
    progress.say(
        concat(marked,
               " documents spell marks of the chat form or control tokens (<s>, </s>, [INST]) as text, which a "
               "model then writes as text; give chats as \"messages\", or --chat-marks parse"));
  }
  progress.end(std::to_string(writer.size()) + " windows of " + std::to_string(seq));
  return {.documents = static_cast<std::int64_t>(writer.sources()),
          .replayed = replayed,
          .skipped_documents = counts.skipped_documents,
          .cut_documents = counts.cut_documents,
          .windows = static_cast<std::int64_t>(writer.size()),
          .seq = seq,
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
