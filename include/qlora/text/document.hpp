// qlora/text/document.hpp — documents, and their JSON Lines, .txt and .md files.
// What may not change: a line holds either "text" or "messages"; text is valid UTF-8; sha256 is always computed
// from the text and never copied from a file, so an edited file cannot keep an old hash.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/text/message.hpp"

namespace qlora {
inline namespace v0 {

/// A piece of training text and where it came from. A chat has messages and no text.
struct Document {
  std::string source;             ///< URL or path
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

/// Bytes of the well-formed UTF-8 sequence at the start of `text` (Unicode table 3-7), 0 if there is none.
[[nodiscard]] inline std::size_t utf8_sequence_length(std::string_view text) noexcept {
  if (text.empty()) return 0;
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = at(0);
  if (lead < 0x80) return 1;
  const std::size_t n = lead >= 0xC2 && lead <= 0xDF   ? 2U
                        : (lead & 0xF0U) == 0xE0       ? 3U
                        : lead >= 0xF0 && lead <= 0xF4 ? 4U
                                                       : 0U;
  if (n == 0 || text.size() < n) return 0;
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (at(1) < low || at(1) > high) return 0;
  for (std::size_t i = 2; i < n; ++i)
    if ((at(i) & 0xC0U) != 0x80) return 0;
  return n;
}

/// Offset of the first byte that is not part of well-formed UTF-8; npos if all of it is.
[[nodiscard]] inline std::size_t find_invalid_utf8(std::string_view text) noexcept {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t n = utf8_sequence_length(text.substr(i));
    if (n == 0) return i;
    i += n;
  }
  return std::string_view::npos;
}

namespace detail {

[[nodiscard]] inline std::string messages_json(const std::vector<Message>& messages) {
  auto list = nlohmann::ordered_json::array();
  for (const Message& m : messages) list.push_back({{"role", m.role}, {"content", m.content}});
  return list.dump();
}

inline void check_utf8(std::string_view text, std::string_view where) {
  const std::size_t bad = find_invalid_utf8(text);
  if (bad != std::string_view::npos)
    throw Error(
        concat(where, ": byte ", bad + 1, " is not valid UTF-8; convert the text (iconv -t utf-8) and try again"));
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

[[nodiscard]] inline Document document_from_line(std::string_view line, const std::string& where) {
  check_utf8(line, where);
  const nlohmann::json object = parse_json_line(line, where);
  if (!object.is_object()) throw Error(where + ": not a JSON object");
  const bool has_text = object.contains("text");
  const bool has_messages = object.contains("messages");
  if (has_text == has_messages)
    throw Error(
        concat(where, has_text ? ": both" : ": neither", " \"text\" and \"messages\"; a line holds one of them"));
  Document document{.source = string_member(object, "source", where),
                    .title = string_member(object, "title", where),
                    .text = string_member(object, "text", where),
                    .fetched_at = string_member(object, "fetched_at", where),
                    .sha256 = {},
                    .messages = {}};
  if (document.source.empty()) document.source = where;
  if (has_text && !object["text"].is_string()) throw Error(where + ": \"text\" is not a string");
  if (has_messages) {
    const auto& list = object["messages"];
    if (!list.is_array() || list.empty()) throw Error(where + ": \"messages\" is not a list of {role, content}");
    for (const auto& item : list) {
      if (!item.is_object() || !item.contains("role") || !item.contains("content") || !item["role"].is_string() ||
          !item["content"].is_string())
        throw Error(where + ": a message needs \"role\" and \"content\", both strings");
      document.messages.push_back({item["role"].get<std::string>(), item["content"].get<std::string>()});
    }
  }
  document.sha256 = qlora::sha256(has_messages ? messages_json(document.messages) : document.text);
  return document;
}

/// Hands every line of the file to `use(line, number)`, reading in pieces so that no line can grow past the cap.
template <class Use>
void for_each_line(std::ifstream& file, const std::string& path, const Use& use) {
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

}  // namespace detail

/// A text document with its hash filled in.
[[nodiscard]] inline Document make_document(std::string source, std::string title, std::string text,
                                            std::string fetched_at = {}) {
  std::string hash = sha256(text);
  return {std::move(source), std::move(title), std::move(text), std::move(fetched_at), std::move(hash), {}};
}

/// Documents of a .jsonl file (one per line), or of a .txt or .md file (one). Errors name the file and the line:
/// broken JSON, invalid UTF-8, both or neither of "text" and "messages", a key given twice, a line over the cap.
/// Empty lines are skipped, unknown keys ignored; an absent "source" becomes FILE:LINE.
[[nodiscard]] inline std::vector<Document> read_documents(const std::filesystem::path& path) {
  const std::string name = path.string();
  std::string extension = path.extension().string();
  for (char& c : extension)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  if (extension != ".jsonl" && extension != ".txt" && extension != ".md")
    throw Error(concat(name, ": not a .jsonl, .txt or .md file"), ErrorKind::usage);
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) throw Error(name + " is a directory");
  if (std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored))
    throw Error(name + " is not a plain file");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(concat("cannot open ", name, ": ", std::strerror(errno)));
  std::vector<Document> documents;
  if (extension == ".jsonl") {
    detail::for_each_line(file, name, [&](std::string_view line, std::size_t number) {
      if (number == 1 && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) return;
      documents.push_back(detail::document_from_line(line, concat(name, ":", number)));
    });
    return documents;
  }
  std::string text;
  detail::for_each_line(file, name, [&](std::string_view line, std::size_t) {
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (text.size() + line.size() >= max_document_bytes) throw Error(name + ": file is too long for one document");
    text.append(line) += '\n';
  });
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  detail::check_utf8(text, name);
  while (text.ends_with('\n')) text.pop_back();
  documents.push_back(make_document(name, path.stem().string(), std::move(text)));
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
