// examples/world/study_files.hpp — the study's files by name: probes of each split, pages of both worlds, replay, and who
// belongs to which split. docs/world.md describes them. Key order and spacing are part of the files, whose hashes
// examples/world/study.sha256 keeps.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "lines.hpp"
#include "study_probes.hpp"

namespace world {

inline Json json_of(const Item& item) {
  Json out{{"kind", item.kind}, {"form", item.form}};
  const auto put = [&](const char* key, const auto& value) {
    if (!value.empty()) out[key] = value;
  };
  if (!item.history.empty()) out["history"] = json_of(item.history);
  put("prompt", item.prompt);
  put("answer", item.answer);
  put("twin", item.twin);
  put("distractors", item.distractors);
  put("expect", item.expect);
  put("accept", item.accept);
  put("entity", item.entity);
  put("relation", item.relation);
  put("template", item.wording);
  put("near", item.near);
  put("domain", item.domain);
  put("text", item.text);
  if (!item.messages.empty()) out["messages"] = json_of(item.messages);
  return out;
}

/// Documents of the products that are replayed, as many of each: the usual mixture of two pages to three chats, or pages
/// alone for a model that knows no chats.
inline std::vector<Document> study_replay(const Study& study, Random& random, bool with_chats) {
  constexpr std::size_t documents = 300;
  std::vector<Document> out;
  for (std::size_t i = 0; i < documents; ++i) {
    const Product& product = study.replay[i % study.replay.size()];
    const bool page = !with_chats || (i / study.replay.size()) % 5 < 2;
    out.push_back(page ? Document{page_text(random, product), {}} : Document{{}, chat_about(random, product)});
  }
  return out;
}

/// The model codes that the replay names; no question asks about them.
inline std::set<std::string> codes_in(const std::string& text) {
  std::set<std::string> codes;
  for (const std::string_view letters : code_letters) {
    for (std::size_t number = 10; number < 100; ++number) {
      const std::string code = std::string(letters) + ' ' + std::to_string(number);
      if (text.find(code) != std::string::npos) codes.insert(code);
    }
  }
  return codes;
}

/// One split's probes, a file for each kind and form.
inline void add_probe_files(std::map<std::string, std::string>& files, const World& world, const Study& study,
                            const Group& group, std::uint64_t seed, std::set<std::string>& codes) {
  Random random = stream(seed, group.name == "guard" ? Stream::guard : Stream::report);
  for (const bool chat : {false, true}) {
    const auto add = [&](const char* kind, const std::vector<Item>& items) {
      files[group.name + '/' + kind + (chat ? "_chat" : "_completion") + ".jsonl"] = lines_of(items);
    };
    add("knowledge", study_knowledge(group, random, chat));
    add("paraphrase", study_paraphrases(group, random, chat));
    add("reversed", study_reversed(world, study, group, random, chat));
    add("neighbour", study_neighbours(group, random, chat));
    add("retention", known_items("retention", group.known, {}, random, chat));
    add("text", study_texts(study, group, random, seed, chat));
    if (!chat) continue;
    add("unknown", study_unknown(group, random, codes));
    add("behaviour", study_behaviour(group, random, codes));
  }
}

inline Json json_of_splits(const Study& study) {
  Json out;
  for (const Group* group : {&study.guard, &study.report}) {
    out[group->name] = {
        {"known", names_of(group->known)}, {"new", names_of(group->fresh)}, {"unknown", group->strangers}};
  }
  out["replay"] = {{"known", names_of(study.replay)}};
  return out;
}

/// All files of the study, by their names below study/.
inline std::map<std::string, std::string> study_files(const World& world, std::uint64_t seed) {
  const Study study(world, seed);
  std::map<std::string, std::string> files;
  Random random = stream(seed, Stream::study_replay);
  files["replay.jsonl"] = lines_of(study_replay(study, random, true));
  files["replay_pages.jsonl"] = lines_of(study_replay(study, random, false));
  std::set<std::string> codes = codes_in(files["replay.jsonl"]);
  for (const Group* group : {&study.guard, &study.report}) add_probe_files(files, world, study, *group, seed, codes);
  for (const Announcement& page : announcements(study.fresh, seed)) files["pages/" + page.file] = page.html;
  for (const Announcement& page : announcements(study.twin, seed)) files["pages_b/" + page.file] = page.html;
  files["splits.json"] = json_of_splits(study).dump(2) + '\n';
  return files;
}

}  // namespace world
