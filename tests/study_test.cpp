// study_test.cpp — the study's files: what the card of the world (docs/world.md) says of them, read from the files
// themselves and held against the corpus, the tokenizer's text and the pages.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "../examples/world/study_files.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/sha256.hpp"

namespace {

using Json = nlohmann::json;
using Names = std::set<std::string>;

const std::vector<std::string> split_names{"guard", "report"};

const world::World& the_world() {
  static const world::World world(world::default_seed);
  return world;
}

const world::Study& the_study() {
  static const world::Study study(the_world(), world::default_seed);
  return study;
}

const std::map<std::string, std::string>& files() {
  static const auto files = world::study_files(the_world(), world::default_seed);
  return files;
}

std::vector<Json> items_of(const std::string& file) {
  std::istringstream text(files().at(file));
  std::vector<Json> items;
  for (std::string line; std::getline(text, line);) items.push_back(Json::parse(line));
  return items;
}

/// The items of the split's files whose names begin so; all of its files if nothing is said.
std::vector<Json> items_of_split(const std::string& split, const std::string& kind = {}) {
  std::vector<Json> items;
  for (const auto& [name, text] : files()) {
    if (!name.starts_with(split + '/' + kind)) continue;
    for (Json& item : items_of(name)) items.push_back(std::move(item));
  }
  return items;
}

Names split_of(const std::string& split, const std::string& kind) {
  return Json::parse(files().at("splits.json")).at(split).at(kind).get<Names>();
}

/// Every name that the parts can give.
const std::unordered_set<std::string>& possible_names() {
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
std::string map_words(const std::string& text, const Use& use) {
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

std::string without_names(const std::string& text) {
  return map_words(text, [](const std::string& word) { return possible_names().contains(word) ? "{n}" : word; });
}

std::string text_of(const world::Document& document) {
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
const Names& new_wordings() {
  static const Names wordings = [] {
    Names out;
    for (const std::string& split : split_names) {
      for (const Json& item : items_of_split(split, "paraphrase")) out.insert(without_names(item.at("prompt")));
    }
    return out;
  }();
  return wordings;
}

int count_new_wordings(const std::string& text_without_names) {
  return static_cast<int>(std::count_if(new_wordings().begin(), new_wordings().end(), [&](const std::string& one) {
    return text_without_names.find(one) != std::string::npos;
  }));
}

constexpr std::size_t hashed_documents = 20'000;  // the others follow by the same rules, and hashing takes the time

Corpus read_corpus(world::Stream which, std::size_t documents) {
  Corpus corpus;
  qlora::Sha256 hash;
  world::Random random = world::stream(world::default_seed, which);
  for (std::size_t i = 0; i < documents; ++i) {
    const world::Product& product = random.pick(the_world().known);
    const world::Document document = world::draw_document(random, product);
    if (i < hashed_documents) hash.update(world::json_of(document).dump() + '\n');
    const std::string text = map_words(text_of(document), [&](const std::string& word) {
      const bool name = possible_names().contains(word);
      if (name) {
        corpus.names.insert(word);
        return std::string("{n}");
      }
      corpus.words.insert(world::lower_case(word));
      return word;
    });
    corpus.new_wordings += count_new_wordings(text);
  }
  corpus.hash = hash.hex();
  return corpus;
}

/// The shipped model's corpus.
const Corpus& the_corpus() {
  static const Corpus corpus = read_corpus(world::Stream::corpus, 136'000);
  return corpus;
}

}  // namespace

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

TEST_CASE("so many items of each kind are asked") {
  const std::map<std::string, std::pair<std::size_t, std::size_t>> expected{
      {"knowledge_completion", {80, 200}},
      {"knowledge_chat", {80, 200}},  // 10 and 25 products, 8 facts
      {"paraphrase_completion", {80, 400}},
      {"paraphrase_chat", {80, 400}},  // in 1 wording and in 2
      {"reversed_completion", {80, 200}},
      {"reversed_chat", {80, 200}},  // 10 and 25 products, 8 first clues
      {"neighbour_completion", {80, 400}},
      {"neighbour_chat", {80, 400}},  // 1 and 2 for each new product, 8 facts
      {"retention_completion", {200, 2040}},
      {"retention_chat", {200, 2040}},  // 25 and 255 products, 8 facts
      {"reworded_completion", {25, 510}},
      {"reworded_chat", {25, 510}},    // one fact of 25 and of 255 products, in 1 wording and in 2
      {"unknown_chat", {56, 184}},     // 6 and 18 names, 1 and 5 codes, by 8
      {"behaviour_chat", {22, 84}},    // 6 and 12 of small talk, 8 and 24 refusals, 8 and 48 second turns
      {"text_completion", {70, 250}},  // 50 and 200 held-out pages, 10 and 25 new ones in both worlds
      {"text_chat", {50, 200}}};
  for (std::size_t s = 0; s < split_names.size(); ++s) {
    std::size_t found = 0;
    for (const auto& [name, text] : files()) found += name.starts_with(split_names[s] + '/') ? 1 : 0;
    CHECK(found == expected.size());
    for (const auto& [name, counts] : expected) {
      const auto items = items_of(split_names[s] + '/' + name + ".jsonl");
      CHECK_MESSAGE(items.size() == (s == 0 ? counts.first : counts.second), split_names[s] << ' ' << name);
      for (const Json& item : items) {
        const std::string kind = item.at("kind").get<std::string>() + '_' + item.at("form").get<std::string>();
        CHECK((kind == name || (kind.starts_with("retention") && name.starts_with("reworded"))));
      }
    }
  }
  CHECK(items_of("replay.jsonl").size() == 640);
  CHECK(items_of("replay_pages.jsonl").size() == 640);
  for (const std::size_t count : {1U, 2U, 4U, 8U}) {
    CHECK(items_of("phrasings_" + std::to_string(count) + ".jsonl").size() == 35 * count);
  }
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

TEST_CASE("guard and report ask nothing twice") {
  std::set<std::string> guard, both;
  for (const Json& item : items_of_split("guard")) {
    if (item.contains("prompt")) guard.insert(item.value("history", Json()).dump() + item["prompt"].dump());
  }
  for (const Json& item : items_of_split("report")) {
    if (!item.contains("prompt")) continue;
    const std::string asked = item.value("history", Json()).dump() + item["prompt"].dump();
    if (guard.contains(asked)) both.insert(asked);
  }
  CHECK_MESSAGE(both.empty(), *both.begin());
  Names templates;
  for (const Json& item : items_of_split("guard", "paraphrase")) templates.insert(item.at("template"));
  CHECK(templates.size() == 16);
  for (const Json& item : items_of_split("report", "paraphrase")) {
    CHECK_FALSE(templates.contains(item.at("template").get<std::string>()));
  }
}

TEST_CASE(
    "documents of more wordings hold those of fewer, each fact once in each, never in the completion probe's words") {
  for (const std::size_t count : {1U, 2U, 4U}) {
    std::multiset<std::string> fewer, more;
    for (const Json& one : items_of("phrasings_" + std::to_string(count) + ".jsonl")) fewer.insert(one.at("text"));
    for (const Json& one : items_of("phrasings_" + std::to_string(2 * count) + ".jsonl")) more.insert(one.at("text"));
    CHECK(std::includes(more.begin(), more.end(), fewer.begin(), fewer.end()));
  }
  std::map<std::string, std::set<std::string>> wordings;  // by prompt's product and relation
  for (const std::string& split : split_names) {
    for (const Json& item : items_of_split(split, "knowledge_completion")) {
      const std::string name = item.at("entity"), answer = item.at("answer"), prompt = item.at("prompt");
      int documents = 0;
      for (const Json& one : items_of("phrasings_8.jsonl")) {
        const std::string text = one.at("text");
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
      std::sort(taken.begin(), taken.end(), [](const auto& one, const auto& two) { return one.size() > two.size(); });
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

TEST_CASE("a question the other way round is about one product, and about none of the twin world") {
  const world::Study& study = the_study();
  for (const std::string& split : split_names) {
    for (const Json& item : items_of_split(split, "reversed")) {
      const std::string prompt = item.at("prompt"), wording = item.at("template");
      CHECK(prompt.find(item.at("answer").get<std::string>()) == std::string::npos);
      const auto fits = [&](const world::Product& product) {
        bool all = true;
        for (std::size_t a = 0; a < world::attribute_count; ++a) {
          const std::string id(world::attributes[a].id);
          if (wording.find('/' + id) == std::string::npos && wording.find('+' + id) == std::string::npos) continue;
          const std::string clue = world::fill(world::new_wordings[a].clue, "", product.values[a]);
          all = all && prompt.find(clue) != std::string::npos;
        }
        return all;
      };
      Names fitting;
      for (const auto* list : {&the_world().known, &study.fresh}) {
        for (const world::Product& product : *list) {
          if (fits(product)) fitting.insert(product.name);
        }
      }
      CHECK_MESSAGE(fitting == Names{item.at("answer").get<std::string>()}, prompt);
      CHECK_MESSAGE(std::none_of(study.twin.begin(), study.twin.end(), fits), prompt);
    }
  }
}

TEST_CASE("answers are the world's, and distractors are seven other values") {
  std::map<std::string, const world::Product*> products;
  const world::Study& study = the_study();
  for (const auto* list : {&the_world().known, &study.fresh}) {
    for (const world::Product& product : *list) products[product.name] = &product;
  }
  for (const std::string& split : split_names) {
    std::map<std::string, Names> facts;  // by kind and form
    for (const Json& item : items_of_split(split)) {
      if (!item.contains("answer")) continue;
      const std::string answer = item["answer"], relation = item.at("relation"), kind = item["kind"];
      facts[kind + '_' + item["form"].get<std::string>()].insert(item["entity"].get<std::string>() + '/' + relation);
      const auto distractors = item.at("distractors").get<Names>();
      CHECK(distractors.size() == 7);
      CHECK_FALSE(distractors.contains(answer));
      CHECK_FALSE(distractors.contains(item.value("twin", "")));
      CHECK(item["prompt"].get<std::string>().find(answer) == std::string::npos);
      CHECK(item.contains("twin") == (kind == "knowledge" || kind == "paraphrase"));
      for (std::size_t a = 0; a < world::attribute_count && kind != "reversed"; ++a) {
        if (relation != world::attributes[a].id) continue;
        CHECK(products.at(item["entity"])->values[a] == answer);
        const world::Words& values = world::attributes[a].values;
        for (const std::string& one : distractors) CHECK(std::count(values.begin(), values.end(), one) == 1);
      }
      if (kind == "reversed") {
        CHECK(answer == item["entity"]);
        for (const std::string& one : distractors) CHECK(products.contains(one));
      }
    }
    const std::size_t known = split == "guard" ? 200 : 2040, fresh = split == "guard" ? 80 : 200;
    for (const std::string form : {"_completion", "_chat"}) {
      CHECK(facts["retention" + form].size() == known);
      for (const char* kind : {"knowledge", "paraphrase", "reversed"}) CHECK(facts[kind + form].size() == fresh);
    }
  }
}

TEST_CASE("neighbours are the known products of the split with the most similar names") {
  for (const std::string& split : split_names) {
    std::map<std::string, Names> near;
    Names taken;
    for (const Json& item : items_of_split(split, "neighbour_chat")) {
      near[item.at("near")].insert(item.at("entity").get<std::string>());
      taken.insert(item.at("entity").get<std::string>());
    }
    CHECK(near.size() == split_of(split, "new").size());
    CHECK(taken.size() == near.size() * (split == "guard" ? 1 : 2));
    for (const auto& [fresh, neighbours] : near) {
      for (const std::string& neighbour : neighbours) {
        for (const std::string& other : split_of(split, "known")) {
          if (taken.contains(other)) continue;
          CHECK(world::distance(fresh, neighbour) <= world::distance(fresh, other));
        }
      }
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

TEST_CASE("what is to be refused is no product, and no code is asked about twice or replayed") {
  Names asked;
  for (const std::string& split : split_names) {
    for (const char* kind : {"unknown", "behaviour"}) {
      for (const Json& item : items_of_split(split, kind)) {
        if (kind == std::string("behaviour") && item.at("expect") == "stops") continue;
        const std::string name = item.at("entity");
        CHECK(item.at("accept") == Json::array({"I do not know that product."}));
        CHECK(item.at("prompt").get<std::string>().find("he " + name) != std::string::npos);
        if (split_of(split, "unknown").contains(name)) continue;
        CHECK(asked.insert(name).second);
        CHECK(files().at("replay.jsonl").find(name) == std::string::npos);
      }
    }
  }
  CHECK(asked.size() == 8 + 40 + 8 + 24);
}
