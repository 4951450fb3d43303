// qlora/run/questions.hpp — what a model is asked for a reader to see: prompts of either form, from a file.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "qlora/eval/probes.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/text/message.hpp"
#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// What models are asked.
struct Question {
  bool chat = false;             ///< else the prompt is text to be continued
  std::string prompt;            ///< the text to continue, or the user's turn
  std::vector<Message> history;  ///< earlier turns of a chat
};

/// Questions: .jsonl with {"form", "prompt", "history"} as in probe files, or a text file whose every line is asked in
/// both forms. Throws Error (input) that names file and line.
[[nodiscard]] inline std::vector<Question> read_questions(const std::filesystem::path& file) {
  std::vector<Question> questions;
  if (file.extension() == ".jsonl") {
    for_each_json_line(file, [&](const Json& object, const std::string& where) {
      eval::Item item = eval::question_of(object, where);
      questions.push_back({item.chat, std::move(item.prompt), std::move(item.history)});
    });
    return questions;
  }
  const std::string text = read_text(file, std::size_t{1} << 20);
  refuse_lfs_pointer(text, file.string());
  int number = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    at = end + 1;
    check_utf8(line, concat(file.string(), ':', ++number));
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty()) continue;
    questions.push_back({false, line, {}});
    questions.push_back({true, line, {}});
  }
  return questions;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
