// study_probes_test.cpp — the study's questions: how many of each kind, none twice, right answers, distractors,
// neighbours and what is to be refused, read from the files themselves. What needs the corpus, which takes long to
// draw, stands in study_test.cpp.
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
        for (const std::string& distractor : distractors)
          CHECK(std::count(values.begin(), values.end(), distractor) == 1);
      }
      if (kind == "reversed") {
        CHECK(answer == item["entity"].get<std::string>());
        for (const std::string& distractor : distractors) CHECK(products.contains(distractor));
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
