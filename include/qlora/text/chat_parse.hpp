// qlora/text/chat_parse.hpp — text that spells LLaMA-2's chat form, as the chat that it means.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/text/chat_template.hpp"
#include "qlora/text/message.hpp"

namespace qlora {
inline namespace v0 {

/// Whether a text spells what only control tokens and the chat form mean: "<s>", "</s>", "[INST]".
[[nodiscard]] inline bool spells_chat_marks(std::string_view text) {
  const auto holds = [&](std::string_view mark) { return text.find(mark) != std::string_view::npos; };
  return holds("<s>") || holds("</s>") || std::any_of(chat_tags.begin(), chat_tags.end(), holds);
}

/// The turns of "<s>[INST] <<SYS>> system <</SYS>> user [/INST] answer </s><s>[INST] ...", without the white space
/// around them. The begin and end marks and the system prompt may be missing. Nothing for a text of any other form, and
/// where a turn is empty.
[[nodiscard]] inline std::optional<std::vector<Message>> chat_of_text(std::string_view text) {
  std::vector<Message> turns;
  const auto trim = [](std::string_view part) {
    constexpr std::string_view blank = " \t\r\n";
    const std::size_t first = part.find_first_not_of(blank);
    return first == std::string_view::npos ? std::string_view()
                                           : part.substr(first, part.find_last_not_of(blank) + 1 - first);
  };
  std::string_view rest = trim(text);
  const auto takes = [&](std::string_view mark) {
    if (!rest.starts_with(mark)) return false;
    rest = trim(rest.substr(mark.size()));
    return true;
  };
  const auto up_to = [&](std::string_view mark) -> std::optional<std::string_view> {
    const std::size_t at = rest.find(mark);
    if (at == std::string_view::npos) return std::nullopt;
    const std::string_view part = trim(rest.substr(0, at));
    rest = trim(rest.substr(at + mark.size()));
    return part;
  };
  while (!rest.empty()) {
    (void)takes("<s>");
    if (!takes("[INST]")) return std::nullopt;
    if (turns.empty() && takes("<<SYS>>")) {
      const auto system = up_to("<</SYS>>");
      if (!system) return std::nullopt;
      turns.push_back({"system", std::string(*system)});
    }
    const auto user = up_to("[/INST]");
    if (!user) return std::nullopt;
    const std::size_t end = std::min({rest.find("</s>"), rest.find("<s>"), rest.find("[INST]"), rest.size()});
    turns.push_back({"user", std::string(*user)});
    turns.push_back({"assistant", std::string(trim(rest.substr(0, end)))});
    rest.remove_prefix(end);
    (void)takes("</s>");
  }
  const bool whole = std::none_of(turns.begin(), turns.end(), [](const Message& turn) {
    return turn.content.empty() || spells_chat_marks(turn.content);
  });
  if (turns.empty() || !whole) return std::nullopt;
  return turns;
}

}  // namespace v0
}  // namespace qlora
