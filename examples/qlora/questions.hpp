// questions.hpp — what models are asked for a reader to see: prompts of either form, from a file.
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/text/message.hpp"

namespace qlora::program {

struct Question {
  bool chat = false;
  std::string prompt;
  std::vector<Message> history;  ///< earlier turns of a chat
};

namespace detail_questions {

inline Question question_of(const Json& object, const std::string& where) {
  Question question;
  const std::string form = json_string(object, "form", where);
  if (form != "chat" && form != "completion") throw Error(where + ": \"form\" must be \"chat\" or \"completion\"");
  question.chat = form == "chat";
  question.prompt = json_string(object, "prompt", where);
  if (question.prompt.empty()) throw Error(where + ": \"prompt\" is empty");
  if (const Json* history = json_find(object, "history"); history != nullptr) {
    if (!history->is_array() || !question.chat) throw Error(where + ": \"history\" is a list of messages of a chat");
    for (const Json& turn : *history) {
      if (!turn.is_object()) throw Error(where + ": a turn in \"history\" is {role, content}");
      question.history.push_back({json_string(turn, "role", where), json_string(turn, "content", where)});
    }
  }
  return question;
}

}  // namespace detail_questions

/// Questions: .jsonl with {"form", "prompt"}, or a text file whose every line is asked in both forms.
inline std::vector<Question> read_questions(const std::filesystem::path& file) {
  std::vector<Question> questions;
  if (file.extension() == ".jsonl") {
    for_each_json_line(file, [&](const Json& object, const std::string& where) {
      questions.push_back(detail_questions::question_of(object, where));
    });
    return questions;
  }
  const std::string text = read_text(file, std::size_t{1} << 20);
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    at = end + 1;
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty()) continue;
    questions.push_back({false, line, {}});
    questions.push_back({true, line, {}});
  }
  return questions;
}

}  // namespace qlora::program
