// qlora/text/recalled.hpp — text that a model wrote freely, as documents that can be mixed into its own training.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/text/chat_template.hpp"
#include "qlora/text/document.hpp"

namespace qlora {
inline namespace v0 {

/// What a model wrote, its prompt included, as a document. Text in LLaMA-2's chat form becomes a chat of one turn, so
/// that it is trained on as other chats are. Nothing for blank text, and for a chat without an answer or with a second
/// turn.
[[nodiscard]] inline std::optional<Document> recalled_document(std::string_view written, std::string source) {
  constexpr std::string_view begin = "[INST]", end = "[/INST]", blank = " \t\r\n";
  const auto trimmed = [&](std::string_view text) {
    const std::size_t first = text.find_first_not_of(blank);
    if (first == std::string_view::npos) return std::string();
    return std::string(text.substr(first, text.find_last_not_of(blank) + 1 - first));
  };
  const std::string whole = trimmed(written);
  const std::size_t asked = whole.find(begin), answered = whole.find(end);
  if (asked == std::string::npos && answered == std::string::npos) {
    if (whole.empty() || whole.find("SYS>>") != std::string::npos) return std::nullopt;
    return make_document(std::move(source), {}, whole);
  }
  if (asked != 0 || answered == std::string::npos || whole.find(begin, 1) != std::string::npos) return std::nullopt;
  const std::string_view text = whole;
  std::string user = trimmed(text.substr(begin.size(), answered - begin.size()));
  std::string assistant = trimmed(text.substr(answered + end.size()));
  if (user.empty() || assistant.empty() || assistant.find(end) != std::string::npos) return std::nullopt;
  Document chat;
  chat.source = std::move(source);
  constexpr std::string_view system_begin = "<<SYS>>", system_end = "<</SYS>>";
  if (user.starts_with(system_begin)) {
    const std::size_t over = user.find(system_end);
    if (over == std::string::npos) return std::nullopt;
    chat.messages.push_back(
        {"system", trimmed(std::string_view(user).substr(system_begin.size(), over - system_begin.size()))});
    user = trimmed(std::string_view(user).substr(over + system_end.size()));
    if (user.empty() || chat.messages[0].content.empty()) return std::nullopt;
  }
  chat.messages.push_back({"user", std::move(user)});
  chat.messages.push_back({"assistant", std::move(assistant)});
  const auto tagged = [&](const Message& message) {
    return std::any_of(chat_tags.begin(), chat_tags.end(),
                       [&](std::string_view tag) { return message.content.find(tag) != std::string::npos; });
  };
  if (std::any_of(chat.messages.begin(), chat.messages.end(), tagged)) return std::nullopt;
  return chat;
}

namespace detail {

/// The text between `open` and `close` at the front of `rest`, which moves behind; nothing if it does not begin so.
[[nodiscard]] inline std::optional<std::string> taken(std::string_view& rest, std::string_view open,
                                                      std::string_view close) {
  if (!rest.starts_with(open)) return std::nullopt;
  const std::size_t end = rest.find(close, open.size());
  if (end == std::string_view::npos) return std::nullopt;
  std::string said(stripped(rest.substr(open.size(), end - open.size())));
  rest.remove_prefix(end + close.size());
  return said;
}

}  // namespace detail

/// The same for a model with another form. `marked` is the text with the marks that it holds spelled out, as `form`
/// writes them, and without the end mark that ended it; empty where it holds none. A template that is no built-in form
/// gives no chats.
[[nodiscard]] inline std::optional<Document> recalled_document(std::string_view written, std::string_view marked,
                                                               std::string source, const ChatTemplate& form) {
  if (form.name() == chat_form::llama2.name) return recalled_document(written, std::move(source));
  const std::vector<std::string> tags = form.tags();
  const auto tagged = [&](std::string_view text) {
    return std::any_of(tags.begin(), tags.end(), [&](const std::string& tag) { return text.find(tag) != text.npos; });
  };
  if (marked.empty() && !tagged(written)) {
    const std::string_view whole = detail::stripped(written);
    if (whole.empty()) return std::nullopt;
    return make_document(std::move(source), {}, std::string(whole));
  }
  const std::optional<ChatForm> built_in = form.form();
  if (!built_in) return std::nullopt;
  const ChatMarks marks = form.marks();
  const auto spelled = [&](std::string_view text) { return detail::spelled(text, marks); };
  std::string_view rest = detail::left_stripped(marked.empty() ? written : marked);
  if (rest.starts_with(marks.bos)) rest.remove_prefix(marks.bos.size());
  Document chat;
  chat.source = std::move(source);
  if (!built_in->system_in_user && !built_in->system_open.empty()) {
    if (auto system = detail::taken(rest, spelled(built_in->system_open), spelled(built_in->system_close)))
      chat.messages.push_back({"system", std::move(*system)});
  }
  const std::string open(detail::left_stripped(spelled(built_in->user_open)));
  rest = detail::left_stripped(rest);
  auto user = detail::taken(rest, open, spelled(built_in->user_close) + spelled(built_in->reply_open));
  const std::string said(detail::stripped(rest));
  if (!user || user->empty() || said.empty() || tagged(*user) || tagged(said)) return std::nullopt;
  if (!chat.messages.empty() && (chat.messages[0].content.empty() || tagged(chat.messages[0].content)))
    return std::nullopt;
  chat.messages.push_back({"user", std::move(*user)});
  chat.messages.push_back({"assistant", said});
  return chat;
}

}  // namespace v0
}  // namespace qlora
