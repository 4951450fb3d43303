// qlora/run/turns.hpp — a conversation that is longer than the model's context: its oldest turns are left out.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/measure.hpp"
#include "qlora/run/engine.hpp"
#include "qlora/text/message.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

[[nodiscard]] inline std::size_t question_size(const Engine& engine, const std::string& question,
                                               const std::vector<Message>& history) {
  return eval::question_tokens(engine.tokenizer(), engine.chat_template(), true, question, history).size();
}

}  // namespace detail

/// Throws Error (input) for a model that has no chat form, and for a system prompt, alone in `history`, that contains a
/// tag of the form or leaves no room for a question.
inline void check_system(const Engine& engine, const std::vector<Message>& history) {
  const auto context = static_cast<std::size_t>(engine.model().max_positions);
  const std::size_t tokens = detail::question_size(engine, {}, history);
  if (tokens >= context) throw Error(concat("a system prompt of ", tokens, " tokens; the model reads ", context));
}

/// Removes the oldest turns of `history` (pairs of question and answer), never its system prompt, until the question
/// and an answer of `max_new_tokens`, at most half the context, fit the model's context. Returns how many were removed.
/// Throws Error (input) for a question that is too long or contains a tag of the chat form; `history` then stays.
[[nodiscard]] inline int make_room(const Engine& engine, const std::string& question, std::vector<Message>& history,
                                   int max_new_tokens) {
  const auto context = static_cast<std::size_t>(engine.model().max_positions);
  const std::size_t room = std::min(static_cast<std::size_t>(max_new_tokens), context / 2);
  std::vector<Message> kept = history;
  const auto tokens = [&] { return detail::question_size(engine, question, kept); };
  const std::ptrdiff_t system = history.size() % 2 != 0 ? 1 : 0;
  (void)detail::question_size(engine, question, {});  // its tags name this turn alone
  int gone = 0;
  std::size_t count = tokens();
  while (count + room > context && kept.begin() + system != kept.end()) {
    kept.erase(kept.begin() + system, kept.begin() + system + 2);
    ++gone;
    count = tokens();
  }
  if (count >= context) {
    throw Error(concat("a turn of ", count, " tokens; the model reads ", context, " with its answer"));
  }
  history = std::move(kept);
  return gone;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
