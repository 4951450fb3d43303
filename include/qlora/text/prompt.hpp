// qlora/text/prompt.hpp — the LLaMA-2 chat form, token by token as Meta's reference code builds it.
// Form: <s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST] {answer} </s><s>[INST] ... ; every finished turn pair
// is encoded as one text between a begin and an end mark, so the tokenizer's leading space comes once per pair. What
// may not change: white space. It decides token ids, and a tuned model has only ever seen one form. Templates take the
// tokenizer as a parameter, so that this header needs no sentencepiece.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/message.hpp"
#include "qlora/text/packing.hpp"

namespace qlora {
inline namespace v0 {

/// The marks of LLaMA-2's chat form; no message may contain one.
inline constexpr std::array<std::string_view, 4> chat_tags{"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"};

namespace detail {

/// Length of the white space character at the front of UTF-8 text, 0 when there is none. The set is that of Python's
/// str.strip(), which Meta's code uses.
[[nodiscard]] inline std::size_t space_length(std::string_view text) {
  if (text.empty()) return 0;
  const auto first = static_cast<unsigned char>(text[0]);
  if ((first >= 0x09 && first <= 0x0D) || (first >= 0x1C && first <= 0x20)) return 1;
  if (text.starts_with("\xC2\x85") || text.starts_with("\xC2\xA0")) return 2;
  constexpr std::string_view quads = "\xE2\x80";  // U+2000..200A, 2028, 2029, 202F
  if (text.size() >= 3 && text.starts_with(quads)) {
    const auto last = static_cast<unsigned char>(text[2]);
    return (last >= 0x80 && last <= 0x8A) || last == 0xA8 || last == 0xA9 || last == 0xAF ? 3 : 0;
  }
  for (const std::string_view space : {"\xE1\x9A\x80", "\xE2\x81\x9F", "\xE3\x80\x80"})  // U+1680, 205F, 3000
    if (text.starts_with(space)) return 3;
  return 0;
}

[[nodiscard]] inline std::string_view stripped(std::string_view text) {
  while (const std::size_t length = space_length(text)) text.remove_prefix(length);
  for (bool again = true; again;) {
    again = false;
    for (std::size_t length = 1; length <= 3 && length <= text.size() && !again; ++length)
      if (space_length(text.substr(text.size() - length)) == length) {
        text.remove_suffix(length);
        again = true;
      }
  }
  return text;
}

/// Checks the conversation, folds the system prompt into the first user turn and strips what the reference strips.
[[nodiscard]] inline std::vector<std::string> chat_turns(std::span<const Message> messages) {
  for (std::size_t i = 0; i < messages.size(); ++i)
    for (const std::string_view tag : chat_tags)
      if (messages[i].content.find(tag) != std::string::npos)
        throw Error(concat("message ", i, " holds the special tag ", tag,
                           ", which would change who speaks; take it out of the text"));
  const bool has_system = !messages.empty() && messages[0].role == "system";
  const auto turns = messages.subspan(has_system ? 1 : 0);
  if (turns.empty()) throw Error("a conversation needs a message of the user");
  std::vector<std::string> result;
  for (std::size_t i = 0; i < turns.size(); ++i) {
    const std::string_view wanted = i % 2 == 0 ? "user" : "assistant";
    if (turns[i].role != wanted)
      throw Error(concat("message ", i + (has_system ? 1 : 0), " is of role '", turns[i].role, "' where '", wanted,
                         "' is due; user and assistant take turns, an optional system message comes first"));
    std::string text = turns[i].content;
    if (i == 0 && has_system) text = "<<SYS>>\n" + messages[0].content + "\n<</SYS>>\n\n" + text;
    result.emplace_back(stripped(text));
  }
  return result;
}

[[nodiscard]] inline std::string chat_prompt(std::string_view user) { return concat("[INST] ", user, " [/INST]"); }

/// LLaMA-2's form begins each turn with a begin token.
template <class TextTokenizer>
void check_chat_form(const TextTokenizer& tokenizer) {
  if (tokenizer.bos() < 0)
    throw Error("the tokenizer has no begin token, so its model cannot be asked in LLaMA-2's chat form");
}

/// Appends one finished pair; flags are 1 from the first token that begins after the prompt, the end mark included.
template <class TextTokenizer>
void append_pair(const TextTokenizer& tokenizer, std::string_view user, std::string_view answer, TokenDocument& out) {
  const std::string prompt = chat_prompt(user);
  const auto bytes_of = [&](std::int32_t id) { return tokenizer.surface(id).size(); };
  std::size_t boundary = 0, at = 0;
  for (const std::int32_t id : tokenizer.encode(prompt)) boundary += bytes_of(id);
  out.ids.push_back(tokenizer.bos());
  out.answer.push_back(0);
  for (const std::int32_t id : tokenizer.encode(concat(prompt, " ", answer, " "))) {
    out.ids.push_back(id);
    out.answer.push_back(at >= boundary ? 1 : 0);
    at += bytes_of(id);
  }
  out.ids.push_back(tokenizer.eos());
  out.answer.push_back(1);
}

}  // namespace detail

/// Ids of a conversation up to the next answer: it must end with a user's message. Throws Error when roles do not
/// alternate or a message contains one of chat_tags.
template <class TextTokenizer>
[[nodiscard]] std::vector<std::int32_t> chat_tokens(const TextTokenizer& tokenizer, std::span<const Message> messages) {
  detail::check_chat_form(tokenizer);
  const auto turns = detail::chat_turns(messages);
  if (turns.size() % 2 == 0) throw Error("the conversation ends with the assistant: nothing is left to answer");
  TokenDocument document;
  for (std::size_t i = 0; i + 1 < turns.size(); i += 2)
    detail::append_pair(tokenizer, turns[i], turns[i + 1], document);
  document.ids.push_back(tokenizer.bos());
  const auto last = tokenizer.encode(detail::chat_prompt(turns.back()));
  document.ids.insert(document.ids.end(), last.begin(), last.end());
  return document.ids;
}

/// A finished conversation for training, with flags on the assistant's tokens (end tokens included): it must end with
/// an assistant's message. Throws Error as chat_tokens does.
template <class TextTokenizer>
[[nodiscard]] TokenDocument chat_document(const TextTokenizer& tokenizer, std::span<const Message> messages) {
  detail::check_chat_form(tokenizer);
  const auto turns = detail::chat_turns(messages);
  if (turns.size() % 2 != 0) throw Error("the conversation ends with the user: there is no answer to learn");
  TokenDocument document;
  for (std::size_t i = 0; i < turns.size(); i += 2) detail::append_pair(tokenizer, turns[i], turns[i + 1], document);
  return document;
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
