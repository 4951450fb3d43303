// probes.hpp — questions with known answers, and how an answer is judged. A fact is right if the greedy continuation
// begins with its value and the value ends at a word boundary; a chat is in form if there is a reply and it stops.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/probes.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/text/message.hpp"
#include "verb.hpp"

namespace qlora::program {

using eval::begins_with_value;
using eval::Reply;

struct Question {
  bool chat = false;
  std::string prompt;
  std::vector<Message> history;  ///< earlier turns of a chat
};

struct Probe {
  std::string kind;  ///< "knowledge", "retention" or "chat_form"
  Question question;
  std::string answer;  ///< empty for chat_form
};

namespace detail_probes {

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

}  // namespace detail_probes

/// Probes of a JSON Lines file: {"kind", "form", "prompt", "answer"}, a chat may have a "history".
inline std::vector<Probe> read_probes(const std::filesystem::path& file) {
  std::vector<Probe> probes;
  for_each_json_line(file, [&](const Json& object, const std::string& where) {
    Probe probe;
    probe.kind = json_string(object, "kind", where);
    if (probe.kind != "knowledge" && probe.kind != "retention" && probe.kind != "chat_form") {
      throw Error(where + ": \"kind\" must be \"knowledge\", \"retention\" or \"chat_form\"");
    }
    probe.question = detail_probes::question_of(object, where);
    probe.answer = json_string_or(object, "answer", where, "");
    if (probe.answer.empty() && probe.kind != "chat_form") throw Error(where + ": a fact needs its \"answer\"");
    if (probe.kind == "chat_form" && !probe.question.chat) throw Error(where + ": chat_form is asked in chat form");
    probes.push_back(std::move(probe));
  });
  return probes;
}

/// Questions: .jsonl with {"form", "prompt"}, or a text file whose every line is asked in both forms.
inline std::vector<Question> read_questions(const std::filesystem::path& file) {
  std::vector<Question> questions;
  if (file.extension() == ".jsonl") {
    for_each_json_line(file, [&](const Json& object, const std::string& where) {
      questions.push_back(detail_probes::question_of(object, where));
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

inline bool is_right(const Probe& probe, const Reply& reply) {
  if (probe.kind == "chat_form") return reply.stopped && reply.text.find_first_not_of(" \t\n") != std::string::npos;
  return begins_with_value(reply.text, probe.answer);
}

/// The four numbers of the report. Their order is that of the table.
inline constexpr std::array<std::string_view, 4> score_names{"knowledge_completion", "knowledge_chat",
                                                             "retention_facts", "chat_form"};

inline std::string_view score_of(const Probe& probe) {
  if (probe.kind == "knowledge") return score_names[probe.question.chat ? 1 : 0];
  return probe.kind == "retention" ? score_names[2] : score_names[3];
}

/// Fractions and counts by name; a kind without probes has count 0 and fraction 0.
inline Result scores(const std::vector<Probe>& probes, const std::vector<Reply>& replies) {
  QLORA_EXPECTS(probes.size() == replies.size(), probes.size(), " probes, ", replies.size(), " replies");
  Result result = Result::object();
  for (const std::string_view name : score_names) {
    int right = 0;
    int all = 0;
    for (std::size_t i = 0; i < probes.size(); ++i) {
      if (score_of(probes[i]) != name) continue;
      ++all;
      right += is_right(probes[i], replies[i]) ? 1 : 0;
    }
    result[std::string(name)] = all > 0 ? static_cast<double>(right) / all : 0.0;
    result[std::string(name) + "_n"] = all;
  }
  return result;
}

}  // namespace qlora::program
