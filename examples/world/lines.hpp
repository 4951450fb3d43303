// examples/world/lines.hpp — the world as JSON lines: documents, probes, and what make_world writes for the quickstart.
// Key order and spacing are part of the committed files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "pages.hpp"

namespace world {

using Json = nlohmann::ordered_json;

inline Json json_of(const Chat& chat) {
  Json out = Json::array();
  for (const Message& message : chat) out.push_back({{"role", message.role}, {"content", message.content}});
  return out;
}
inline Json json_of(const Document& document) {
  if (document.chat.empty()) return {{"text", document.text}};
  return {{"messages", json_of(document.chat)}};
}
inline Json json_of(const Probe& probe) {
  Json out{{"kind", probe.kind}, {"form", probe.form}};
  if (!probe.history.empty()) out["history"] = json_of(probe.history);
  out["prompt"] = probe.prompt;
  if (!probe.answer.empty()) out["answer"] = probe.answer;
  if (!probe.product.empty()) out["product"] = probe.product;
  if (!probe.attribute.empty()) out["attribute"] = probe.attribute;
  return out;
}

template <class List>
std::string lines_of(const List& list) {
  std::string out;
  for (const auto& item : list) out += json_of(item).dump() + '\n';
  return out;
}

/// The small files by name: probes, replay, and the new products' pages. These are committed; the corpus is not.
inline std::map<std::string, std::string> small_files(const World& world, std::uint64_t seed) {
  std::map<std::string, std::string> files;
  Random random = stream(seed, Stream::probes);
  files["knowledge.jsonl"] = lines_of(knowledge_probes(world, random));
  files["retention.jsonl"] = lines_of(retention_probes(world, random));
  files["chat_form.jsonl"] = lines_of(chat_form_probes(world, random));
  files["replay.jsonl"] = lines_of(replay_documents(world, seed));
  for (const Announcement& announcement : announcements(world.fresh, seed)) {
    files["pages/" + announcement.file] = announcement.html;
  }
  return files;
}

}  // namespace world
