// world_test.cpp — the small world's committed files follow from its seed, and agree with one another.
// The regeneration is byte for byte; the other cases read the committed files themselves, not the generator's values.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "../../examples/world/lines.hpp"

namespace {

namespace fs = std::filesystem;

const fs::path examples = fs::path(QLORA_SOURCE_DIR) / "examples";

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file, "cannot read " << path.string());
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<nlohmann::json> read_lines(const std::string& name) {
  std::istringstream text(read(examples / "quickstart" / name));
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

/// The committed pages by the name of their product, which the file's name ends with.
std::map<std::string, std::string> committed_pages() {
  std::map<std::string, std::string> pages;
  for (const auto& entry : fs::directory_iterator(examples / "pages")) {
    const std::string stem = entry.path().stem().string();
    pages[stem.substr(stem.find('-') + 1)] = read(entry.path());
  }
  return pages;
}

const world::World& the_world() {
  static const world::World world(world::default_seed);
  return world;
}

}  // namespace

TEST_CASE("the random numbers are splitmix64's") {
  // First outputs for seed 1234567, as published with the reference implementation and used in other languages' tests.
  world::Random random(1234567);
  CHECK(random.next() == 6457827717110365317ULL);
  CHECK(random.next() == 3203168211198807973ULL);
  CHECK(random.next() == 9817491932198370423ULL);
}

TEST_CASE("the committed files are what the seed gives, byte for byte, and there are no others") {
  const auto files = world::small_files(the_world(), world::default_seed);
  std::size_t pages = 0;
  for (const auto& [name, text] : files) {
    const bool is_page = name.starts_with("pages/");
    pages += is_page ? 1 : 0;
    CHECK_MESSAGE(read(is_page ? examples / name : examples / "quickstart" / name) == text, name);
  }
  CHECK(pages == world::new_count);
  CHECK(committed_pages().size() == pages);
  CHECK(world::small_files(world::World(7), 7) != files);
}

TEST_CASE("every list of values has at least thirty, and none is the beginning of another") {
  for (const world::Attribute& attribute : world::attributes) {
    CHECK(std::set<std::string_view>(attribute.values.begin(), attribute.values.end()).size() >= 30);
    CHECK(attribute.sentences.size() >= 4);
    for (const std::string_view value : attribute.values) {
      for (const std::string_view other : attribute.values)
        CHECK((&value == &other || value == other || !other.starts_with(value)));
    }
    for (const std::string_view sentence : attribute.sentences) CHECK(sentence.find("{n}") < sentence.find("{v}"));
    for (const std::string_view answer : attribute.answers) CHECK(answer.starts_with("{v}"));
  }
}

TEST_CASE("no document of the known world names a new product") {
  const world::World& world = the_world();
  std::vector<std::string> names;
  for (const world::Product& product : world.fresh) names.push_back(product.name);
  const auto names_none = [&](const std::string& text) {
    for (const std::string& name : names) {
      if (text.find(name) != std::string::npos) return false;
    }
    return true;
  };
  for (const auto which : {world::Stream::corpus, world::Stream::held_out}) {
    world::Random random = world::stream(world::default_seed, which);
    bool clean = true;
    for (std::size_t i = 0; i < world::default_documents; ++i) {
      const world::Product& product = random.pick(world.known);
      const world::Document document = world::draw_document(random, product);
      clean = clean && names_none(document.text);
      for (const world::Message& message : document.chat) clean = clean && names_none(message.content);
    }
    CHECK(clean);
  }
  for (const char* file : {"replay.jsonl", "retention.jsonl", "chat_form.jsonl"}) {
    CHECK_MESSAGE(names_none(read(examples / "quickstart" / file)), file);
  }
  bool clean = true;
  for (const std::string& line : world::tokenizer_lines(world, world::default_seed, 20'000))
    clean = clean && names_none(line);
  CHECK(clean);
}

TEST_CASE("every new fact is asked in both forms, and stands three times on its product's page, alone of its kind") {
  const auto pages = committed_pages();
  std::map<std::string, std::set<std::string>> asked;  // form -> product/attribute
  int in_probe_words = 0;
  for (const auto& probe : read_lines("knowledge.jsonl")) {
    const std::string product = probe.at("product"), attribute = probe.at("attribute"), answer = probe.at("answer");
    const std::string prompt = probe.at("prompt"), form = probe.at("form");
    asked[form].insert(product + '/' + attribute);
    const auto page = pages.find(world::lower_case(product));
    REQUIRE(page != pages.end());
    CHECK(prompt.find(product) != std::string::npos);
    CHECK(prompt.find(answer) == std::string::npos);
    int times = 0;
    for (std::size_t at = page->second.find(answer); at != std::string::npos; at = page->second.find(answer, at + 1)) {
      ++times;
    }
    CHECK_MESSAGE(times >= 3, product << ' ' << attribute);
    if (form == "completion") in_probe_words += page->second.find(prompt + ' ' + answer) != std::string::npos ? 1 : 0;
    // No other value of the same attribute stands where a reader would take it for this product's.
    for (const world::Attribute& listed : world::attributes) {
      if (listed.id != attribute) continue;
      for (const std::string_view value : listed.values) {
        if (value == answer) continue;
        CHECK_MESSAGE(page->second.find(std::string(" ") + std::string(value) + ".") == std::string::npos,
                      product << ": " << value);
        CHECK_MESSAGE(page->second.find("<td>" + std::string(value) + "</td>") == std::string::npos,
                      product << ": " << value);
      }
    }
  }
  CHECK(asked["completion"].size() == 80);
  CHECK(asked["chat"].size() == 80);
  CHECK(in_probe_words == 40);  // half of the facts are never said in the probe's own words
}

TEST_CASE("retention asks 240 different known facts, and the replay gives none of them away") {
  const std::string replay = read(examples / "quickstart" / "replay.jsonl");
  std::set<std::string> facts;
  for (const auto& probe : read_lines("retention.jsonl")) {
    const std::string product = probe.at("product"), attribute = probe.at("attribute");
    facts.insert(product + '/' + attribute);
    CHECK_MESSAGE(replay.find(product) == std::string::npos, product);
    bool right = false;
    for (const world::Product& known : the_world().known) {
      for (std::size_t a = 0; a < world::attribute_count; ++a) {
        right = right || (known.name == product && world::attributes[a].id == attribute &&
                          known.values[a] == probe.at("answer").get<std::string>());
      }
    }
    CHECK_MESSAGE(right, product << ' ' << attribute);
  }
  CHECK(facts.size() == 240);
  CHECK(read_lines("replay.jsonl").size() == 100);
}

TEST_CASE("chat-form probes end with the user's turn") {
  int second_turns = 0;
  const auto probes = read_lines("chat_form.jsonl");
  for (const auto& probe : probes) {
    CHECK_FALSE(probe.at("prompt").get<std::string>().empty());
    CHECK_FALSE(probe.contains("answer"));
    if (!probe.contains("history")) continue;
    ++second_turns;
    CHECK(probe["history"].size() % 2 == 0);
    CHECK(probe["history"].back().at("role") == "assistant");
  }
  CHECK(probes.size() >= 30);
  CHECK(second_turns == 8);
}

TEST_CASE("names are all different, and no new name shares a part with another new one") {
  std::set<std::string> names;
  for (const world::Product& product : the_world().known) names.insert(product.name);
  CHECK(names.size() == 360);
  for (const world::Product& product : the_world().fresh) {
    for (const std::string& name : names) CHECK(world::distance(product.name, name) >= 3);
    names.insert(product.name);
  }
  CHECK(names.size() == 370);
  CHECK(world::distance("kitten", "sitting") == 3);
}
