// qlora/text/recalled.hpp — text that a model wrote freely, as documents that can be mixed into its own training.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/text/document.hpp"
#include "qlora/text/prompt.hpp"

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

}  // namespace v0
}  // namespace qlora
