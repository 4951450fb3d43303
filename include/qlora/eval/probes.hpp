// qlora/eval/probes.hpp — questions with known answers, and texts: the JSON Lines format, and how a reply is
// judged. docs/probes.md describes both for authors of such files.
// What may not change: when a reply is right, since scores of different runs are compared. A line is checked completely
// when it is read, chats by the rules of the chat format too, so that a mistake is an error "FILE:LINE: ..." before a
// model is loaded. Keys that a kind does not use are ignored.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/results.hpp"
#include "qlora/io/json.hpp"
#include "qlora/text/chat_form.hpp"
#include "qlora/text/message.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// One line of a probe file. What a kind does not have is empty.
struct Item {
  Kind kind = Kind::knowledge;           ///< the key "kind"
  bool chat = false;                     ///< the key "form" is "chat", else "completion"
  std::string prompt;                    ///< the text to continue, or the user's turn
  std::vector<Message> history;          ///< earlier turns of a chat
  std::string answer;                    ///< the value that a right reply begins with
  std::string twin;                      ///< the answer in the twin world, on which no model is trained
  std::vector<std::string> distractors;  ///< other values of the same relation
  std::vector<std::string> accept;       ///< a reply of kind unknown, or a refusal, contains one of these
  bool must_stop = false;                ///< behaviour: expect "stops", else "refuses"
  std::string entity;                    ///< the cluster; empty: the item is a cluster of its own
  std::string relation;                  ///< groups the shares: "height", "capital"
  std::string wording;                   ///< the key "template"
  std::string text;                      ///< kind text: a text that is read for its loss
  std::string domain;                    ///< kind text: names the metric, text_DOMAIN
  std::vector<Message> messages;         ///< a chat that is read, in place of text
};

/// Whether the answer can be compared with alternatives by likelihood.
[[nodiscard]] inline bool has_alternatives(const Item& item) {
  return asks_value(item.kind) && (!item.twin.empty() || !item.distractors.empty());
}

/// What judging needs of a reply.
struct Reply {
  std::string text;      ///< without the prompt
  bool stopped = false;  ///< by the end token, within the limit
  std::string marked{};  ///< the same with the marks that it holds spelled out; empty where it holds none
};

/// What was found of one reply.
struct Verdict {
  bool right = false;  ///< as the item's kind says
  bool twin = false;   ///< the reply begins with the twin world's value
};

/// Whether a continuation, after white space, begins with the value and the value ends there at a word boundary.
[[nodiscard]] inline bool begins_with_value(std::string_view continuation, std::string_view value) {
  const std::size_t start = std::min(continuation.find_first_not_of(" \t\n"), continuation.size());
  continuation.remove_prefix(start);
  if (!continuation.starts_with(value)) return false;
  if (continuation.size() == value.size()) return true;
  const auto next = static_cast<unsigned char>(continuation[value.size()]);
  const bool in_word = (next >= '0' && next <= '9') || (next >= 'A' && next <= 'Z') || (next >= 'a' && next <= 'z') ||
                       next == '_' || next >= 0x80;
  return !in_word;
}

namespace detail {

/// Whether the text contains one of the phrases; case is ignored for A-Z only.
[[nodiscard]] inline bool contains_one(std::string_view text, std::span<const std::string> phrases) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  const auto same = [&](char a, char b) { return lower(a) == lower(b); };
  return std::any_of(phrases.begin(), phrases.end(), [&](const std::string& phrase) {
    return std::search(text.begin(), text.end(), phrase.begin(), phrase.end(), same) != text.end();
  });
}

}  // namespace detail

/// Judges the reply to a question, not a text. If one value is a prefix of the other and the reply begins with both,
/// the longer one counts.
[[nodiscard]] inline Verdict judge(const Item& item, const Reply& reply) {
  QLORA_EXPECTS(item.kind != Kind::text, "a text is read, it has no reply");
  if (asks_value(item.kind)) {
    Verdict verdict{begins_with_value(reply.text, item.answer),
                    !item.twin.empty() && begins_with_value(reply.text, item.twin)};
    if (verdict.right && verdict.twin) (item.twin.size() > item.answer.size() ? verdict.right : verdict.twin) = false;
    return verdict;
  }
  if (!item.must_stop) return {detail::contains_one(reply.text, item.accept), false};
  return {reply.stopped && reply.text.find_first_not_of(" \t\n") != std::string::npos, false};
}

namespace detail {

[[nodiscard]] inline Kind kind_of(const Json& object, const std::string& where) {
  const std::string name = json_string(object, "kind", where);
  if (name == "chat_form") return Kind::behaviour;  // older name of behaviour with "stops"
  const auto found = std::find(kind_names.begin(), kind_names.end(), name);
  if (found != kind_names.end()) return static_cast<Kind>(found - kind_names.begin());
  std::string all;
  for (const std::string_view known : kind_names) all += concat(all.empty() ? "" : ", ", known);
  throw Error(concat(where, ": \"kind\" is \"", qlora::detail::excerpt(name), "\", not one of ", all));
}

/// A list of messages; absent is empty.
[[nodiscard]] inline std::vector<Message> messages_of(const Json& object, const std::string& key,
                                                      const std::string& where) {
  std::vector<Message> messages;
  const Json* list = json_find(object, key);
  if (list == nullptr) return messages;
  if (!list->is_array()) throw Error(where + ": \"" + key + "\" is a list of {role, content}");
  for (const Json& turn : *list) {
    if (!turn.is_object()) throw Error(where + ": a turn in \"" + key + "\" is {role, content}");
    messages.push_back({json_string(turn, "role", where), json_string(turn, "content", where)});
  }
  return messages;
}

/// A list of texts, none of them empty; absent is empty.
[[nodiscard]] inline std::vector<std::string> texts_of(const Json& object, const std::string& key,
                                                       const std::string& where) {
  std::vector<std::string> texts;
  const Json* list = json_find(object, key);
  if (list == nullptr) return texts;
  const auto good = [](const Json& entry) { return entry.is_string() && !entry.get_ref<const std::string&>().empty(); };
  if (!list->is_array() || !std::all_of(list->begin(), list->end(), good)) {
    throw Error(where + ": \"" + key + "\" is a list of texts, none of them empty");
  }
  for (const Json& entry : *list) texts.push_back(entry.get<std::string>());
  return texts;
}

/// Checks the rules of the chat format; the message begins with the line.
inline void check_chat(const std::vector<Message>& messages, const std::string& where) {
  try {
    check_tags(messages, chat_tags);
    check_roles(messages);
  } catch (const Error& error) {
    throw Error(where + ": " + error.what());
  }
}

/// "form", which only a text may leave out.
inline void read_form(const Json& object, const std::string& where, Item& item) {
  const bool required = item.kind != Kind::text;
  const std::string form =
      required ? json_string(object, "form", where) : json_string_or(object, "form", where, "completion");
  if (form != "chat" && form != "completion") throw Error(where + ": \"form\" must be \"chat\" or \"completion\"");
  item.chat = form == "chat";
}

inline void read_question(const Json& object, const std::string& where, Item& item) {
  item.prompt = json_string(object, "prompt", where);
  if (item.prompt.empty()) throw Error(where + ": \"prompt\" is empty");
  item.history = messages_of(object, "history", where);
  if (!item.chat && !item.history.empty()) throw Error(where + ": only a chat has a \"history\"");
  if (!item.chat) return;
  std::vector<Message> chat = item.history;
  chat.push_back({"user", item.prompt});
  check_chat(chat, where);
}

/// A value that begins or ends with white space could not be found at the beginning of a reply.
inline void check_value(const std::string& value, const std::string& key, const std::string& where) {
  constexpr std::string_view space = " \t\r\n";
  if (space.find(value.front()) == std::string_view::npos && space.find(value.back()) == std::string_view::npos) return;
  throw Error(where + ": \"" + key + "\" has white space at an end");
}

inline void read_value(const Json& object, const std::string& where, Item& item) {
  item.answer = json_string_or(object, "answer", where, "");
  if (item.answer.empty()) throw Error(where + ": " + std::string(name_of(item.kind)) + " needs an \"answer\"");
  check_value(item.answer, "answer", where);
  item.twin = json_string_or(object, "twin", where, "");
  if (!item.twin.empty()) check_value(item.twin, "twin", where);
  if (item.twin == item.answer) throw Error(where + ": \"twin\" is the \"answer\" itself, it cannot tell them apart");
  item.distractors = texts_of(object, "distractors", where);
  for (const std::string& distractor : item.distractors) {
    check_value(distractor, "distractors", where);
    if (distractor == item.answer) throw Error(where + ": the \"answer\" stands among its \"distractors\"");
  }
}

inline void read_accept(const Json& object, const std::string& where, Item& item) {
  item.accept = texts_of(object, "accept", where);
  if (item.accept.empty()) throw Error(where + ": \"accept\" must list what the reply may contain");
}

inline void read_behaviour(const Json& object, const std::string& where, Item& item) {
  if (!item.chat) throw Error(where + ": behaviour is that of a chat, \"form\" must be \"chat\"");
  const bool old = json_string(object, "kind", where) == "chat_form";
  const std::string expect = old ? "stops" : json_string(object, "expect", where);
  if (expect != "stops" && expect != "refuses") throw Error(where + ": \"expect\" must be \"stops\" or \"refuses\"");
  item.must_stop = expect == "stops";
  if (!item.must_stop) read_accept(object, where, item);
}

inline void read_text_item(const Json& object, const std::string& where, Item& item) {
  item.domain = json_string(object, "domain", where);
  if (item.domain.empty()) throw Error(where + ": \"domain\" is empty");
  item.text = json_string_or(object, "text", where, "");
  item.messages = messages_of(object, "messages", where);
  if (item.text.empty() == item.messages.empty()) throw Error(where + ": give either \"text\" or \"messages\"");
  if (item.messages.empty()) {
    if (item.chat) throw Error(where + ": a text in chat form is given as \"messages\"");
    return;
  }
  if (!item.chat && json_find(object, "form") != nullptr) {
    throw Error(where + ": \"messages\" are a chat, the \"form\" is not \"completion\"");
  }
  item.chat = true;
  check_chat(item.messages, where);
  const auto answers = [](const Message& message) { return message.role == "assistant"; };
  if (std::none_of(item.messages.begin(), item.messages.end(), answers)) {
    throw Error(where + ": no message of the assistant, so there is no token to score");
  }
}

}  // namespace detail

/// The question without the answer: "form", "prompt" and the "history" of a chat.
[[nodiscard]] inline Item question_of(const Json& object, const std::string& where) {
  Item item;
  detail::read_form(object, where, item);
  detail::read_question(object, where, item);
  return item;
}

namespace detail {

[[nodiscard]] inline Item item_of(const Json& object, const std::string& where) {
  Item item;
  item.kind = kind_of(object, where);
  read_form(object, where, item);
  item.entity = json_string_or(object, "entity", where, json_string_or(object, "product", where, ""));
  item.relation = json_string_or(object, "relation", where, json_string_or(object, "attribute", where, ""));
  item.wording = json_string_or(object, "template", where, "");
  if (item.kind == Kind::text) {
    read_text_item(object, where, item);
    return item;
  }
  read_question(object, where, item);
  if (asks_value(item.kind)) read_value(object, where, item);
  if (item.kind == Kind::unknown) read_accept(object, where, item);
  if (item.kind == Kind::behaviour) read_behaviour(object, where, item);
  return item;
}

}  // namespace detail

/// The items of a JSON Lines file, in its order. Throws Error "FILE:LINE: ..." for the first line that is not one.
[[nodiscard]] inline std::vector<Item> read_items(const std::filesystem::path& path) {
  std::vector<Item> items;
  for_each_json_line(
      path, [&](const Json& object, const std::string& where) { items.push_back(detail::item_of(object, where)); });
  if (items.empty()) throw Error(path.string() + ": holds no probe");
  return items;
}

/// The items of several files, one file after the other.
[[nodiscard]] inline std::vector<Item> read_items(std::span<const std::filesystem::path> files) {
  std::vector<Item> items;
  for (const std::filesystem::path& file : files) {
    for (Item& item : read_items(file)) items.push_back(std::move(item));
  }
  return items;
}

/// The bootstrap's cluster of each item: those of one entity share a number, an item without entity has its own.
[[nodiscard]] inline std::vector<int> clusters_of(std::span<const Item> items) {
  std::map<std::string_view, int> known;
  std::vector<int> clusters;
  int next = 0;
  for (const Item& item : items) {
    const auto [at, fresh] = item.entity.empty() ? std::pair{known.end(), true} : known.try_emplace(item.entity, next);
    clusters.push_back(fresh ? next++ : at->second);
  }
  return clusters;
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
