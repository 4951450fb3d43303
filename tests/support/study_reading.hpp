// study_reading.hpp — the study's files as a test reads them: items, splits, names and words, and what the corpus has.
#pragma once

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "../../examples/world/study_files.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/sha256.hpp"

namespace study {

using Json = nlohmann::json;
using Names = std::set<std::string>;

inline const std::vector<std::string> split_names{"guard", "report"};

inline const world::World& the_world() {
  static const world::World world(world::default_seed);
  return world;
}

inline const world::Study& the_study() {
  static const world::Study study(the_world(), world::default_seed);
  return study;
}

inline const std::map<std::string, std::string>& files() {
  static const auto files = world::study_files(the_world(), world::default_seed);
  return files;
}

inline std::vector<Json> items_of(const std::string& file) {
  std::istringstream text(files().at(file));
  std::vector<Json> items;
  for (std::string line; std::getline(text, line);) items.push_back(Json::parse(line));
  return items;
}

/// The items of the split's files whose names begin so; all of its files if nothing is said.
inline std::vector<Json> items_of_split(const std::string& split, const std::string& kind = {}) {
  std::vector<Json> items;
  for (const auto& [name, text] : files()) {
    if (!name.starts_with(split + '/' + kind)) continue;
    for (Json& item : items_of(name)) items.push_back(std::move(item));
  }
  return items;
}

inline Names split_of(const std::string& split, const std::string& kind) {
  return Json::parse(files().at("splits.json")).at(split).at(kind).get<Names>();
}

/// Every name that the parts can give.
inline const std::unordered_set<std::string>& possible_names() {
  static const std::unordered_set<std::string> names = [] {
    std::unordered_set<std::string> out;
    for (const std::string_view first : world::first_parts) {
      for (const std::string_view second : world::second_parts) out.insert(std::string(first) + std::string(second));
    }
    return out;
  }();
  return names;
}

/// Calls `use` with each word: letters alone. What it returns stands in the word's place in the text that comes back.
template <class Use>
inline std::string map_words(const std::string& text, const Use& use) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t end = at;
    while (end < text.size() && std::isalpha(static_cast<unsigned char>(text[end])) != 0) ++end;
    if (end == at) {
      out += text[at++];
    } else {
      out += use(text.substr(at, end - at));
      at = end;
    }
  }
  return out;
}

inline std::string without_names(const std::string& text) {
  return map_words(text, [](const std::string& word) { return possible_names().contains(word) ? "{n}" : word; });
}

inline std::string text_of(const world::Document& document) {
  std::string text = document.text;
  for (const world::Message& message : document.chat) text += message.content + '\n';
  return text;
}

/// What the corpus has: its words, its names, and the new wordings among its sentences (there should be none).
struct Corpus {
  std::string hash;
  std::unordered_set<std::string> words;
  Names names;
  int new_wordings = 0;
};

/// Prompts in new wording with {n} for the name.
inline const Names& new_wordings() {
  static const Names wordings = [] {
    Names out;
    for (const std::string& split : split_names) {
      for (const Json& item : items_of_split(split, "paraphrase")) out.insert(without_names(item.at("prompt")));
    }
    return out;
  }();
  return wordings;
}

inline int count_new_wordings(const std::string& text_without_names) {
  return static_cast<int>(std::count_if(new_wordings().begin(), new_wordings().end(), [&](const std::string& text) {
    return text_without_names.find(text) != std::string::npos;
  }));
}

inline constexpr std::size_t hashed_documents =
    20'000;  // the others follow by the same rules, and hashing takes the time

inline Corpus read_corpus(world::Stream which, std::size_t documents) {
  Corpus corpus;
  qlora::Sha256 hash;
  world::Random random = world::stream(world::default_seed, which);
  std::unordered_map<std::string, bool> known;  // each word as it is written: whether it is a name
  for (std::size_t i = 0; i < documents; ++i) {
    const world::Product& product = random.pick(the_world().known);
    const world::Document document = world::draw_document(random, product);
    if (i < hashed_documents) hash.update(world::json_of(document).dump() + '\n');
    const std::string text = map_words(text_of(document), [&](const std::string& word) {
      const auto [entry, is_new] = known.try_emplace(word, false);
      if (is_new) {
        entry->second = possible_names().contains(word);
        if (entry->second) {
          corpus.names.insert(word);
        } else {
          corpus.words.insert(world::lower_case(word));
        }
      }
      return entry->second ? std::string("{n}") : word;
    });
    corpus.new_wordings += count_new_wordings(text);
  }
  corpus.hash = hash.hex();
  return corpus;
}

/// The shipped model's corpus.
inline const Corpus& the_corpus() {
  static const Corpus corpus = read_corpus(world::Stream::corpus, 136'000);
  return corpus;
}

}  // namespace study
