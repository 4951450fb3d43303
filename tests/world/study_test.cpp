// study_test.cpp — the study's world: hashes, splits, twins, pages and wordings, as the card of the world
// (docs/world.md) says, read from the files themselves and held against the corpus, the tokenizer's text and the pages.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "support/study_reading.hpp"

using namespace study;

TEST_CASE(
    "the hashes are those that are kept, of every file, and the model's corpus and tokenizer text are as they were") {
  std::map<std::string, std::string> kept;
  std::istringstream list(qlora::read_text(QLORA_SOURCE_DIR "/examples/world/study.sha256", 1 << 20));
  for (std::string hash, name; list >> hash >> name;) kept[name] = hash;
  CHECK(kept.size() == files().size() + 3);
  for (const auto& [name, text] : files()) CHECK_MESSAGE(kept["study/" + name] == qlora::sha256(text), name);
  // `head -n 20000 corpus.jsonl | sha256sum`; the list has the whole file's, for sha256sum -c.
  CHECK(the_corpus().hash == "156d4cd90888e488c14c2bf2dab8cbb456ca588c00220fafab6e17f8b867b0db");
  CHECK(kept["held_out.jsonl"] == read_corpus(world::Stream::held_out, 500).hash);
  std::string tokenizer;
  for (const std::string& line : world::tokenizer_lines(the_world(), world::default_seed, 20'000)) {
    tokenizer += line + '\n';
  }
  CHECK(kept["tokenizer.txt"] == qlora::sha256(tokenizer));
}

TEST_CASE("the quickstart's pages are the study's first ones of its first ten products") {
  std::size_t pages = 0;
  for (const auto& entry : std::filesystem::directory_iterator(QLORA_SOURCE_DIR "/examples/pages")) {
    CHECK(files().at("pages/" + entry.path().filename().string()) == qlora::read_text(entry.path(), 1 << 20));
    ++pages;
  }
  CHECK(pages == 10);
}

TEST_CASE("the splits share no product, and nothing that is trained on names a product that is asked about") {
  const std::vector<Names> groups{
      split_of("guard", "known"), split_of("report", "known"),  split_of("replay", "known"),  split_of("guard", "new"),
      split_of("report", "new"),  split_of("guard", "unknown"), split_of("report", "unknown")};
  const std::vector<std::size_t> sizes{25, 255, 80, 10, 25, 6, 18};
  Names all;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    CHECK(groups[g].size() == sizes[g]);
    all.insert(groups[g].begin(), groups[g].end());
  }
  CHECK(all.size() == 419);
  CHECK(the_corpus().names.size() == 360);
  for (const std::string& split : split_names) {
    for (const char* kind : {"knowledge", "paraphrase", "reversed", "neighbour", "retention", "reworded", "text"}) {
      const bool fresh = std::string_view("knowledge paraphrase reversed").find(kind) != std::string_view::npos;
      for (const Json& item : items_of_split(split, kind)) {
        const bool page = kind == std::string("text") && item.at("domain").get<std::string>().ends_with("_pages");
        CHECK(split_of(split, fresh || page ? "new" : "known").contains(item.at("entity").get<std::string>()));
      }
    }
  }
  const auto names_in = [](const std::string& text) {
    Names names;
    (void)map_words(text, [&](const std::string& word) {
      if (possible_names().contains(word)) names.insert(word);
      return word;
    });
    return names;
  };
  CHECK(names_in(files().at("replay.jsonl")) == split_of("replay", "known"));
  CHECK(names_in(files().at("replay_pages.jsonl")) == split_of("replay", "known"));
  Names fresh = split_of("guard", "new");
  fresh.merge(split_of("report", "new"));
  for (const char* folder : {"pages/", "pages_b/"}) {
    Names told;
    for (const auto& [name, text] : files()) {
      if (name.starts_with(folder)) told.merge(names_in(text));
    }
    CHECK(told == fresh);
  }
}

TEST_CASE(
    "documents of more wordings hold those of fewer, each fact once in each, never in the completion probe's words") {
  for (const std::size_t count : {1U, 2U, 4U}) {
    std::multiset<std::string> fewer, more;
    for (const Json& entry : items_of("phrasings_" + std::to_string(count) + ".jsonl")) fewer.insert(entry.at("text"));
    for (const Json& entry : items_of("phrasings_" + std::to_string(2 * count) + ".jsonl"))
      more.insert(entry.at("text"));
    CHECK(std::includes(more.begin(), more.end(), fewer.begin(), fewer.end()));
  }
  std::vector<std::string> documents_of_8;
  for (const Json& entry : items_of("phrasings_8.jsonl")) documents_of_8.push_back(entry.at("text"));
  std::map<std::string, std::set<std::string>> wordings;  // by prompt's product and relation
  for (const std::string& split : split_names) {
    for (const Json& item : items_of_split(split, "knowledge_completion")) {
      const std::string name = item.at("entity"), answer = item.at("answer"), prompt = item.at("prompt");
      int documents = 0;
      for (const std::string& text : documents_of_8) {
        if (text.find("the " + name) == std::string::npos && text.find("The " + name) == std::string::npos &&
            text.find("Every " + name) == std::string::npos) {
          continue;
        }
        ++documents;
        CHECK_MESSAGE(text.find(answer) != std::string::npos, text);
        CHECK(text.find(prompt + ' ' + answer) == std::string::npos);
        for (std::size_t at = 0; at < text.size();) {
          const std::size_t end = std::min(text.find(". ", at), text.size());
          const std::string sentence = text.substr(at, end - at);
          if (sentence.find(' ' + answer) != std::string::npos)
            wordings[name + item.at("relation").get<std::string>()].insert(sentence);
          at = end + 2;
        }
      }
      CHECK(documents == 8);
    }
  }
  CHECK(wordings.size() == 280);
  for (const auto& [fact, sentences] : wordings) CHECK_MESSAGE(sentences.size() >= 8, fact);
}

TEST_CASE("the twin world has the same values, and no product has one of its own") {
  const world::Study& study = the_study();
  for (const world::Group* group : {&study.guard, &study.report}) {
    for (std::size_t a = 0; a < world::attribute_count; ++a) {
      std::multiset<std::string_view> here, there;
      for (std::size_t p = 0; p < group->fresh.size(); ++p) {
        CHECK(group->fresh[p].name == group->twin[p].name);
        CHECK(group->fresh[p].values[a] != group->twin[p].values[a]);
        here.insert(group->fresh[p].values[a]);
        there.insert(group->twin[p].values[a]);
      }
      CHECK(here == there);
    }
  }
}

TEST_CASE("a page says its world's values three times, and the other world's page is the same but for them") {
  std::map<std::string, std::map<std::string, std::string>> here, there;  // by product, then by page
  for (const auto& [name, text] : files()) {
    if (!name.ends_with(".html")) continue;
    const std::string product = name.substr(name.find('-') + 1, name.size() - name.find('-') - 6);
    (name.starts_with("pages/") ? here : there)[product][name.substr(name.find('/'))] = text;
  }
  const auto times = [](const std::string& text, const std::string& value) {
    int found = 0;
    for (std::size_t at = text.find(value); at != std::string::npos; at = text.find(value, at + 1)) ++found;
    return found;
  };
  std::map<std::string, std::vector<std::pair<std::string, std::string>>> values;  // here and there
  for (const std::string& split : split_names) {
    for (const Json& item : items_of_split(split, "knowledge_completion")) {
      const std::string product = world::lower_case(item.at("entity")), answer = item.at("answer"),
                        twin = item.at("twin");
      for (const auto& [page, text] : here.at(product)) {
        CHECK_MESSAGE(times(text, answer) >= 3, page << ' ' << answer);
        CHECK_MESSAGE(times(text, ' ' + twin + '.') == 0, page << ' ' << twin);
      }
      for (const auto& [page, text] : there.at(product)) CHECK_MESSAGE(times(text, twin) >= 3, page << ' ' << twin);
      values[product].push_back({answer, twin});
    }
  }
  CHECK(values.size() == 35);
  for (const auto& [product, pairs] : values) {
    // Both pages with every value taken out: longer values first, since one may stand within another.
    const auto bare = [&](std::string text, const auto& value_of) {
      std::vector<std::string> taken;
      for (const auto& pair : pairs) taken.push_back(value_of(pair));
      std::sort(taken.begin(), taken.end(),
                [](const auto& first, const auto& two) { return first.size() > two.size(); });
      for (const std::string& value : taken) {
        // What the page says of its product ends a sentence or a cell; a layout may speak of "rubber bands".
        for (const std::string before : {" ", ">"}) {
          for (const std::string after : {".", "<"}) {
            const std::string whole = before + value + after;
            for (std::size_t at = text.find(whole); at != std::string::npos; at = text.find(whole, at)) {
              text.replace(at, whole.size(), "#");
            }
          }
        }
      }
      return text;
    };
    CHECK(here[product].size() == 3);
    for (const auto& [page, text] : here[product]) {
      CHECK_MESSAGE(bare(text, [](const auto& pair) { return pair.first; }) ==
                        bare(there[product].at(page), [](const auto& pair) { return pair.second; }),
                    page);
    }
  }
}

TEST_CASE("names that nothing tells of stand nowhere, and differ from others as new ones do") {
  Names strangers = split_of("guard", "unknown");
  strangers.merge(split_of("report", "unknown"));
  Names fresh = split_of("guard", "new");
  fresh.merge(split_of("report", "new"));
  for (const Names& list : {strangers, fresh}) {
    Names parts;
    for (const std::string& name : list) {
      CHECK_FALSE(the_corpus().names.contains(name));
      const auto [first, second] = world::parts_of(name);
      CHECK(std::string(world::first_parts[first]) + std::string(world::second_parts[second]) == name);
      CHECK(parts.insert("first " + std::to_string(first)).second);
      CHECK(parts.insert("second " + std::to_string(second)).second);
    }
  }
  Names all = the_corpus().names;
  all.insert(fresh.begin(), fresh.end());
  all.insert(strangers.begin(), strangers.end());
  for (const Names& list : {strangers, fresh}) {
    for (const std::string& name : list) {
      for (const std::string& other : all) CHECK((name == other || world::distance(name, other) >= 3));
    }
  }
  for (const auto& [name, text] : files()) {
    if (name.find("/unknown") != std::string::npos || name == "splits.json") continue;
    for (const std::string& stranger : strangers) CHECK_MESSAGE(text.find(stranger) == std::string::npos, name);
  }
}

TEST_CASE("the new wordings stand in no text that is trained on, and have no word that the corpus has not") {
  CHECK(new_wordings().size() == 48);
  CHECK(the_corpus().new_wordings == 0);
  std::string text;
  for (const std::string& line : world::tokenizer_lines(the_world(), world::default_seed, 20'000)) text += line + '\n';
  for (const auto& [name, content] : files()) {
    if (name.ends_with(".html") || name.starts_with("replay") || name.starts_with("phrasings")) text += content;
  }
  CHECK(count_new_wordings(without_names(text)) == 0);
  CHECK(count_new_wordings(without_names("a The company that makes the Tevkess is Redfern")) == 1);
  for (const std::string& split : split_names) {
    for (const char* kind : {"paraphrase", "reversed"}) {
      for (const Json& item : items_of_split(split, kind)) {
        (void)map_words(without_names(item.at("prompt")), [](const std::string& word) {
          CHECK_MESSAGE((word == "n" || the_corpus().words.contains(world::lower_case(word))), word);
          return word;
        });
      }
    }
  }
}
