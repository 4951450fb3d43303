// qlora/text/prompt.hpp — conversations and texts as token ids, for generation and for training.
// A conversation becomes text in the model's form (chat_template.hpp), and the text becomes ids: marks of the form are
// single tokens, and what messages say is text even where it spells a mark. Templates take the tokenizer as a
// parameter, so that this header needs no sentencepiece.
// Reference: tests/text/prompt_test.cpp and chat_test.cpp, ids of Meta's code and of the package transformers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/text/chat_template.hpp"
#include "qlora/text/chat_text.hpp"
#include "qlora/text/message.hpp"
#include "qlora/text/packing.hpp"

namespace qlora {
inline namespace v0 {

/// How the tokenizer spells its begin and end marks.
template <class TextTokenizer>
[[nodiscard]] ChatMarks marks_of(const TextTokenizer& tokenizer) {
  const auto spelled = [&](std::int32_t id) { return id < 0 ? std::string() : std::string(tokenizer.piece(id)); };
  return {spelled(tokenizer.bos()), spelled(tokenizer.eos())};
}

namespace detail {

/// Flags are 1 on the ids that begin inside a reply.
[[nodiscard]] inline TokenDocument flagged(MarkedIds ids, std::span<const TextRange> replies) {
  TokenDocument document;
  document.ids = std::move(ids.ids);
  std::size_t reply = 0;
  for (const std::size_t begin : ids.begins) {
    while (reply < replies.size() && replies[reply].end <= begin) ++reply;
    document.answer.push_back(reply < replies.size() && replies[reply].begin <= begin ? 1 : 0);
  }
  return document;
}

}  // namespace detail

/// Ids of a conversation up to the next answer, in the model's form: it must end with a user's message. Throws Error as
/// ChatTemplate::write does.
template <class TextTokenizer>
[[nodiscard]] std::vector<std::int32_t> chat_tokens(const TextTokenizer& tokenizer, const ChatTemplate& form,
                                                    std::span<const Message> messages) {
  return tokenizer.encode_marked(form.write(messages, true)).ids;
}
/// The same in LLaMA-2's form, with the tokenizer's own marks.
template <class TextTokenizer>
[[nodiscard]] std::vector<std::int32_t> chat_tokens(const TextTokenizer& tokenizer, std::span<const Message> messages) {
  return chat_tokens(tokenizer, ChatTemplate(chat_form::llama2, marks_of(tokenizer)), messages);
}

/// A finished conversation for training, with flags on what the assistant writes (end marks included): it must end with
/// an assistant's message. Throws Error as ChatTemplate::write does.
template <class TextTokenizer>
[[nodiscard]] TokenDocument chat_document(const TextTokenizer& tokenizer, const ChatTemplate& form,
                                          std::span<const Message> messages) {
  const ChatText text = form.write(messages, false);
  return detail::flagged(tokenizer.encode_marked(text), text.replies);
}
/// The same in LLaMA-2's form, with the tokenizer's own marks.
template <class TextTokenizer>
[[nodiscard]] TokenDocument chat_document(const TextTokenizer& tokenizer, std::span<const Message> messages) {
  return chat_document(tokenizer, ChatTemplate(chat_form::llama2, marks_of(tokenizer)), messages);
}

/// A text for training: BOS where the tokenizer has one, its ids, EOS; without ids when the text is empty.
template <class TextTokenizer>
[[nodiscard]] TokenDocument text_document(const TextTokenizer& tokenizer, std::string_view text) {
  return framed_document(tokenizer.encode(text), tokenizer.bos(), tokenizer.eos());
}

/// The same as in the article: BOS and the ids, no end token.
template <class TextTokenizer>
[[nodiscard]] TokenDocument article_document(const TextTokenizer& tokenizer, std::string_view text) {
  TokenDocument document = text_document(tokenizer, text);
  if (!document.ids.empty()) document.ids.pop_back();
  return document;
}

}  // namespace v0
}  // namespace qlora
