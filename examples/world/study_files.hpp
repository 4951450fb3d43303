// examples/world/study_files.hpp — the study's files by name: probes of each split, pages of both worlds, replay, and
// who belongs to which split. docs/world.md describes them. Key order and spacing are part of the files, whose hashes
// examples/world/study.sha256 keeps.
#pragma once

#include <array>
#include <cstddef>
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

/// Documents of the products that are replayed, each in turn: the usual mixture of two pages to three chats, or pages
/// alone for a model that knows no chats. The first N of them are the mixture too.
inline std::vector<Document> study_replay(const Study& study, Random& random, bool with_chats) {
  constexpr std::size_t documents = 640;
  std::vector<Document> out;
  for (std::size_t i = 0; i < documents; ++i) {
    const Product& product = study.replay[i % study.replay.size()];
    const bool page = !with_chats || (i + i / study.replay.size()) % 5 < 2;
    out.push_back(page ? Document{page_text(random, product), {}} : Document{{}, chat_about(random, product)});
  }
  return out;
}

/// How many wordings of a fact the documents of phrasings_N.jsonl have.
inline constexpr std::array<std::size_t, 4> phrasing_counts{1, 2, 4, 8};

/// What the new products' pages say in `count` wordings, each in a document of its own: one sentence for every fact, in
/// an order of its own. More wordings hold those of fewer, and none is the completion probe's.
inline std::vector<Document> phrasing_documents(const std::vector<Product>& products, std::uint64_t seed,
                                                std::size_t count) {
  Random random = stream(seed, Stream::phrasings);
  std::vector<Document> out;
  for (const Product& product : products) {
    std::array<std::vector<std::size_t>, attribute_count> forms;
    for (std::size_t a = 0; a < attribute_count; ++a) {
      forms[a] = random_order(random, attributes[a].sentences.size() - 1);  // without the first one
    }
    for (std::size_t i = 0; i < phrasing_counts.back(); ++i) {
      std::string text;
      for (const std::size_t a : random_order(random, attribute_count)) {
        if (!text.empty()) text += ' ';
        text += sentence_of(product, a, 1 + forms[a][i]);
      }
      if (i < count) out.push_back({std::move(text), {}});
    }
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
    add("reworded", reworded_items(group, random, chat));
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

/// Pages of each new product, on as many sites.
inline constexpr std::size_t page_rounds = 3;

/// All files of the study, by their names below study/.
inline std::map<std::string, std::string> study_files(const World& world, std::uint64_t seed) {
  const Study study(world, seed);
  std::map<std::string, std::string> files;
  Random random = stream(seed, Stream::study_replay);
  files["replay.jsonl"] = lines_of(study_replay(study, random, true));
  files["replay_pages.jsonl"] = lines_of(study_replay(study, random, false));
  std::set<std::string> codes = codes_in(files["replay.jsonl"]);
  for (const Group* group : {&study.guard, &study.report}) add_probe_files(files, world, study, *group, seed, codes);
  for (std::size_t round = 0; round < page_rounds; ++round) {
    for (const Announcement& page : announcements(study.fresh, seed, round)) files["pages/" + page.file] = page.html;
    for (const Announcement& page : announcements(study.twin, seed, round)) files["pages_b/" + page.file] = page.html;
  }
  for (const std::size_t count : phrasing_counts) {
    files["phrasings_" + std::to_string(count) + ".jsonl"] = lines_of(phrasing_documents(study.fresh, seed, count));
  }
  files["splits.json"] = json_of_splits(study).dump(2) + '\n';
  return files;
}

}  // namespace world
