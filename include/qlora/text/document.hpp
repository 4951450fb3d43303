// qlora/text/document.hpp — documents, and their JSON Lines, .txt and .md files.
// What may not change: a line holds one text or one chat; text is valid UTF-8; sha256 is always computed
// from the text and never copied from a file, so an edited file cannot keep an old hash.
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/net/shown.hpp"
#include "qlora/text/message.hpp"
#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {

/// A piece of training text and where it came from. A chat has messages and no text.
struct Document {
  std::string source;             ///< URL or path, without credentials
  std::string title;              ///< may be empty
  std::string text;               ///< valid UTF-8
  std::string fetched_at;         ///< ISO 8601, UTC; empty for files that do not say
  std::string sha256;             ///< of text, hexadecimal; for a chat, of its messages as compact JSON
  std::vector<Message> messages;  ///< the turns of a chat; empty: a text
  bool operator==(const Document&) const = default;
};

/// Longest line of a JSON Lines file, and longest .txt or .md file, in bytes.
inline constexpr std::size_t max_document_bytes = std::size_t{64} << 20;
/// Deepest nesting in a JSON line; unknown keys may hold any value within this depth.
inline constexpr int max_document_nesting = 64;

namespace detail {

[[nodiscard]] inline std::string messages_json(const std::vector<Message>& messages) {
  auto list = nlohmann::ordered_json::array();
  for (const Message& m : messages) list.push_back({{"role", m.role}, {"content", m.content}});
  return list.dump();
}

/// Parses one line; refuses a key given twice (the parser would keep the last silently) and deep nesting.
[[nodiscard]] inline nlohmann::json parse_json_line(std::string_view line, const std::string& where) {
  std::vector<std::string> keys;  // of the outer object
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, const nlohmann::json& value) {
    if (depth > max_document_nesting) throw Error(where + ": nested too deeply");
    if (event == nlohmann::json::parse_event_t::key && depth == 1) {
      if (keys.size() >= 1000) throw Error(where + ": more than 1000 keys");
      const auto& key = value.get_ref<const std::string&>();
      if (std::find(keys.begin(), keys.end(), key) != keys.end())
        throw Error(concat(where, ": key \"", key, "\" is given twice"));
      keys.push_back(key);
    }
    return true;
  };
  try {
    return nlohmann::json::parse(line.begin(), line.end(), watch);
  } catch (const nlohmann::json::exception& e) {
    throw Error(concat(where, ": not valid JSON (", e.what(), ")"));
  }
}

[[nodiscard]] inline std::string string_member(const nlohmann::json& object, const char* key,
                                               const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return {};
  if (!it->is_string()) throw Error(concat(where, ": \"", key, "\" is not a string"));
  return it->get<std::string>();
}

/// Names of roles in chat data, and what they are called here.
[[nodiscard]] inline std::string role_named(const std::string& role) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 4> others{
      {{"human", "user"}, {"gpt", "assistant"}, {"chatgpt", "assistant"}, {"model", "assistant"}}};
  for (const auto& [theirs, ours] : others) {
    if (role == theirs) return std::string(ours);
  }
  return role;
}

/// Names of an object's keys, for an error.
[[nodiscard]] inline std::string keys_of(const nlohmann::json& object) {
  std::string keys;
  for (const auto& [key, value] : object.items()) {
    if (keys.size() < 160) keys += concat(keys.empty() ? "" : ", ", "\"", key, "\"");
  }
  return keys.empty() ? "none" : keys;
}

/// The text of a content that is a list of parts {"type": "text", "text"}. False where it is none: a picture, say.
[[nodiscard]] inline bool join_parts(const nlohmann::json& content, std::string& text) {
  if (!content.is_array() || content.empty()) return false;
  for (const auto& part : content) {
    if (!part.is_object() || !part.contains("type") || part["type"] != "text") return false;
    if (!part.contains("text") || !part["text"].is_string()) return false;
    text += part["text"].get_ref<const std::string&>();
  }
  return true;
}

/// Turns from a list of {role, content}, or of ShareGPT's {from, value}.
[[nodiscard]] inline std::vector<Message> turns_of(const nlohmann::json& list, const char* key,
                                                   const std::string& where) {
  if (!list.is_array() || list.empty()) throw Error(concat(where, ": \"", key, "\" is not a list of {role, content}"));
  std::vector<Message> messages;
  for (const auto& item : list) {
    const auto text = [&](const char* name) -> const std::string* {
      const auto found = item.is_object() ? item.find(name) : item.end();
      return !item.is_object() || found == item.end() || !found->is_string() ? nullptr
                                                                             : found->get_ptr<const std::string*>();
    };
    const bool share = item.is_object() && item.contains("from");
    const std::string* role = text(share ? "from" : "role");
    const std::string* content = text(share ? "value" : "content");
    std::string joined;
    if (content == nullptr && item.is_object() && item.contains("content") && join_parts(item["content"], joined)) {
      content = &joined;
    }
    if (role == nullptr || content == nullptr) {
      throw Error(concat(where,
                         ": a message needs \"role\" and \"content\", or \"from\" and \"value\", all of them strings; ",
                         item.is_object() ? "its keys are " + keys_of(item) : "it is no object"));
    }
    messages.push_back({role_named(*role), *content});
  }
  return messages;
}

/// Whether a key is there and not null: tables of several schemas write null for the columns of the others.
[[nodiscard]] inline bool has_member(const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && !found->is_null();
}

/// The schemas that a line may have. A line of none, or of two, is refused with its keys.
enum class LineSchema { text, messages, conversations, alpaca, completion };
[[nodiscard]] inline LineSchema schema_of(const nlohmann::json& object, const std::string& where) {
  constexpr std::array<std::tuple<const char*, const char*, LineSchema>, 6> known{
      {{"text", "text", LineSchema::text},
       {"messages", "messages", LineSchema::messages},
       {"conversations", "conversations", LineSchema::conversations},
       {"instruction", "output", LineSchema::alpaca},
       {"prompt", "completion", LineSchema::completion},
       {"prompt", "response", LineSchema::completion}}};
  std::vector<std::pair<std::string, LineSchema>> found;
  const auto find = [&](const auto& has) {
    for (const auto& [first, second, schema] : known) {
      if (!has(first) || !has(second)) continue;
      const std::string both = std::string("\"") + first + "\"";
      found.emplace_back(std::string_view(first) == second ? both : both + " with \"" + second + "\"", schema);
    }
  };
  find([&](const char* key) { return has_member(object, key); });
  if (found.empty()) find([&](const char* key) { return object.contains(key); });  // then null is what is wrong
  if (found.size() == 1) return found[0].second;
  if (found.size() > 1) {
    throw Error(concat(where, ": both ", found[0].first, " and ", found[1].first, "; a line holds one of them"));
  }
  throw Error(concat(where,
                     ": neither \"text\" nor \"messages\" nor \"conversations\" nor \"instruction\" with "
                     "\"output\" nor \"prompt\" with \"completion\", one of which a line holds; its keys are ",
                     keys_of(object)));
}

[[nodiscard]] inline std::string required_member(const nlohmann::json& object, const char* key,
                                                 const std::string& where) {
  if (!object.at(key).is_string()) throw Error(concat(where, ": \"", key, "\" is not a string"));
  return object.at(key).get<std::string>();
}

/// The chat of a line that has one: ShareGPT's turns, Alpaca's instruction with its input, a prompt with its answer.
[[nodiscard]] inline std::vector<Message> chat_of(const nlohmann::json& object, LineSchema schema,
                                                  const std::string& where) {
  if (schema == LineSchema::messages) return turns_of(object["messages"], "messages", where);
  if (schema == LineSchema::conversations) return turns_of(object["conversations"], "conversations", where);
  const char* completion = has_member(object, "completion") ? "completion" : "response";
  if (schema == LineSchema::completion && object["prompt"].is_array()) {  // as turns, in TRL's conversational form
    std::vector<Message> messages = turns_of(object["prompt"], "prompt", where);
    for (Message& reply : turns_of(object[completion], completion, where)) messages.push_back(std::move(reply));
    return messages;
  }
  std::vector<Message> messages;
  if (const std::string system = string_member(object, "system", where); !system.empty()) {
    messages.push_back({"system", system});
  }
  const bool alpaca = schema == LineSchema::alpaca;
  std::string asked = required_member(object, alpaca ? "instruction" : "prompt", where);
  if (const std::string input = alpaca ? string_member(object, "input", where) : ""; !input.empty()) {
    asked += "\n\n" + input;
  }
  const char* answer = alpaca ? "output" : completion;
  messages.push_back({"user", asked});
  messages.push_back({"assistant", required_member(object, answer, where)});
  return messages;
}

[[nodiscard]] inline Document document_from_line(std::string_view line, const std::string& where) {
  check_utf8(line, where);
  const nlohmann::json object = parse_json_line(line, where);
  if (!object.is_object()) throw Error(where + ": not a JSON object");
  const LineSchema schema = schema_of(object, where);
  const bool is_text = schema == LineSchema::text;
  Document document{.source = net::shown_address(string_member(object, "source", where)),
                    .title = string_member(object, "title", where),
                    .text = is_text ? required_member(object, "text", where) : std::string(),
                    .fetched_at = string_member(object, "fetched_at", where),
                    .sha256 = {},
                    .messages = {}};
  if (document.source.empty()) document.source = where;
  if (!is_text) document.messages = chat_of(object, schema, where);
  document.sha256 = qlora::sha256(is_text ? document.text : messages_json(document.messages));
  return document;
}

/// Hands every line of the file to `use(line, number)`, reading in pieces so that no line can grow past the cap, and
/// each piece to `on_piece` before its lines.
template <class Use, class OnPiece>
void for_each_line(std::ifstream& file, const std::string& path, const Use& use, const OnPiece& on_piece) {
  std::string line;
  std::vector<char> piece(std::size_t{1} << 16);
  std::size_t number = 1;
  const auto append = [&](std::string_view part) {
    if (part.size() > max_document_bytes - line.size())
      throw Error(concat(path, ":", number, ": line is longer than ", max_document_bytes, " bytes"));
    line += part;
  };
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
    std::string_view rest(piece.data(), static_cast<std::size_t>(file.gcount()));
    on_piece(rest);
    for (auto end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n')) {
      append(rest.substr(0, end));
      use(std::string_view(line), number);
      line.clear();
      ++number;
      rest.remove_prefix(end + 1);
    }
    append(rest);
  }
  if (file.bad()) throw Error(concat("cannot read ", path, ": ", std::strerror(errno)), ErrorKind::resource);
  if (!line.empty()) use(std::string_view(line), number);
}
template <class Use>
void for_each_line(std::ifstream& file, const std::string& path, const Use& use) {
  for_each_line(file, path, use, [](std::string_view) {});
}

}  // namespace detail

/// A text document with its hash filled in.
[[nodiscard]] inline Document make_document(std::string source, std::string title, std::string text,
                                            std::string fetched_at = {}) {
  std::string hash = sha256(text);
  return {std::move(source), std::move(title), std::move(text), std::move(fetched_at), std::move(hash), {}};
}

namespace detail {

/// A document file that is open, and whether it holds one document a line. Throws Error for anything else.
[[nodiscard]] inline std::pair<std::ifstream, bool> open_documents(const std::filesystem::path& path) {
  const std::string name = path.string();
  std::string extension = path.extension().string();
  for (char& c : extension)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) throw Error(concat("cannot open ", name, ": ", std::strerror(ENOENT)));
  if (extension != ".jsonl" && extension != ".txt" && extension != ".md")
    throw Error(concat(name, ": not a .jsonl, .txt or .md file"), ErrorKind::usage);
  if (std::filesystem::is_directory(path, ignored)) throw Error(name + " is a directory");
  if (!std::filesystem::is_regular_file(path, ignored)) throw Error(name + " is not a plain file");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(concat("cannot open ", name, ": ", std::strerror(errno)));
  return {std::move(file), extension == ".jsonl"};
}

}  // namespace detail

/// How many documents for_each_document will find, if it can read all of them: of a .jsonl file the lines that are not
/// blank. Throws Error where there is no such file.
[[nodiscard]] inline std::int64_t count_documents(const std::filesystem::path& path) {
  auto [file, by_line] = detail::open_documents(path);
  if (!by_line) return 1;
  std::vector<char> piece(std::size_t{1} << 16);
  std::int64_t count = 0;
  bool counted = false;  // this line
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
    for (const char c : std::string_view(piece.data(), static_cast<std::size_t>(file.gcount()))) {
      if (c == '\n') {
        counted = false;
      } else if (!counted && c != ' ' && c != '\t' && c != '\r') {
        counted = true;
        ++count;
      }
    }
  }
  return count;
}

/// Calls use(document, "FILE:LINE") for each document of a .jsonl file (one per line), or of a .txt or .md file (one,
/// "FILE"). A line holds "text"; or a chat: "messages" of {role, content}, ShareGPT's "conversations", Alpaca's
/// "instruction" and "output", or "prompt" and "completion". Errors name the file and the line: broken JSON, invalid
/// UTF-8, none or two of these, a key given twice, a line over the cap. Empty lines are skipped, unknown keys ignored,
/// null is as good as absent; an absent "source" becomes FILE:LINE.
template <class Use>
void for_each_document(const std::filesystem::path& path, const Use& use) {
  const std::string name = path.string();
  auto [file, by_line] = detail::open_documents(path);
  if (by_line) {
    detail::for_each_line(file, name, [&](std::string_view line, std::size_t number) {
      if (number == 1) refuse_lfs_pointer(line, name);
      if (number == 1 && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) return;
      const std::string where = concat(name, ":", number);
      use(detail::document_from_line(line, where), where);
    });
    return;
  }
  std::string text;
  detail::for_each_line(file, name, [&](std::string_view line, std::size_t) {
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (text.size() + line.size() >= max_document_bytes) throw Error(name + ": file is too long for one document");
    text.append(line) += '\n';
  });
  refuse_lfs_pointer(text, name);
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  check_utf8(text, name);
  while (text.ends_with('\n')) text.pop_back();
  use(make_document(name, path.stem().string(), std::move(text)), name);
}

/// All documents that for_each_document finds.
[[nodiscard]] inline std::vector<Document> read_documents(const std::filesystem::path& path) {
  std::vector<Document> documents;
  for_each_document(path, [&](Document&& document, const std::string&) { documents.push_back(std::move(document)); });
  return documents;
}

/// Writes documents as JSON Lines, whole or not at all. Throws on text that is not UTF-8, and if a write fails.
inline void write_documents(const std::filesystem::path& path, std::span<const Document> documents) {
  std::string lines;
  for (const Document& d : documents) {
    nlohmann::ordered_json object;
    object["source"] = d.source;
    if (!d.title.empty()) object["title"] = d.title;
    if (d.messages.empty())
      object["text"] = d.text;
    else
      for (const Message& m : d.messages) object["messages"].push_back({{"role", m.role}, {"content", m.content}});
    if (!d.fetched_at.empty()) object["fetched_at"] = d.fetched_at;
    try {
      object["sha256"] = sha256(d.messages.empty() ? d.text : detail::messages_json(d.messages));
      lines.append(object.dump()) += '\n';
    } catch (const nlohmann::json::exception&) {
      throw Error(concat("document ", d.source, " is not valid UTF-8; it was not written to ", path.string()));
    }
  }
  write_file_atomically(path, std::string_view(lines));
}

}  // namespace v0
}  // namespace qlora
