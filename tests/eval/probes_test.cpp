// probes_test.cpp — when a reply is right, what a line of a probe file may hold, and which items share a cluster.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/eval/probes.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

using namespace qlora;
using namespace qlora::eval;

namespace {

/// A file that goes away with the test.
struct Scratch {
  std::filesystem::path path;
  explicit Scratch(const std::string& text)
      : path(std::filesystem::temp_directory_path() / ("qlora-probes-" + std::to_string(::getpid()) + ".jsonl")) {
    std::ofstream(path, std::ios::binary) << text;
  }
  ~Scratch() { std::filesystem::remove(path); }
};

std::vector<Item> items_of(const std::string& text) { return read_items(Scratch(text).path); }

Item item_of(const std::string& line) {
  const std::vector<Item> items = items_of(line);
  REQUIRE(items.size() == 1);
  return items[0];
}

/// Whether the line, the third of its file, is refused by its number and for this reason.
bool refused(const std::string& line, const std::string& why) {
  CAPTURE(line);
  try {
    (void)items_of("\n" + std::string(R"({"kind":"retention","form":"chat","prompt":"p","answer":"a"})") + "\n" + line);
  } catch (const Error& error) {
    const std::string message = error.what();
    INFO(message);
    CHECK(message.find(".jsonl:3: ") != std::string::npos);
    CHECK(message.find(why) != std::string::npos);
    return true;
  }
  return false;
}

Verdict verdict(const Item& item, const std::string& text, bool stopped = true) { return judge(item, {text, stopped}); }

}  // namespace

TEST_CASE("a fact is right if the continuation begins with its value at a word boundary") {
  CHECK(begins_with_value(" Lisbon.", "Lisbon"));
  CHECK(begins_with_value("Lisbon", "Lisbon"));
  CHECK(begins_with_value("\n Lisbon, in the south", "Lisbon"));
  CHECK(begins_with_value("55 dollars\n", "55 dollars"));
  CHECK_FALSE(begins_with_value("Lisbonne", "Lisbon"));
  CHECK_FALSE(begins_with_value("Lisbon\xC3\xA9", "Lisbon"));
  CHECK_FALSE(begins_with_value("Lisbon_2", "Lisbon"));
  CHECK_FALSE(begins_with_value("5 dollars", "55 dollars"));
  CHECK_FALSE(begins_with_value("155 dollars", "55 dollars"));
  CHECK_FALSE(begins_with_value("February 21", "February 2"));
  CHECK_FALSE(begins_with_value("lisbon", "Lisbon"));
  CHECK_FALSE(begins_with_value("in Lisbon", "Lisbon"));
  CHECK_FALSE(begins_with_value("", "Lisbon"));
}

TEST_CASE("a reply counts for the answer, for the twin, or for neither") {
  for (const Kind kind : {Kind::knowledge, Kind::paraphrase, Kind::reversed, Kind::neighbour, Kind::retention}) {
    CAPTURE(name_of(kind));
    Item item;
    item.kind = kind;
    item.answer = "Lisbon";
    CHECK(verdict(item, "Lisbon, I think", false).right);
    CHECK_FALSE(verdict(item, "Bergen").right);
    CHECK_FALSE(verdict(item, "Bergen").twin);
    item.twin = "Bergen";
    CHECK(verdict(item, "Bergen").twin);
    CHECK_FALSE(verdict(item, "Bergen").right);
    CHECK_FALSE(verdict(item, "Lisbon").twin);
    CHECK_FALSE(verdict(item, "Dresden").twin);
  }
}

TEST_CASE("of two values that the reply begins with, it says the longer one") {
  Item item;
  item.answer = "New York";
  item.twin = "New York City";
  CHECK(verdict(item, "New York").right);
  CHECK_FALSE(verdict(item, "New York").twin);
  CHECK(verdict(item, "New York City").twin);
  CHECK_FALSE(verdict(item, "New York City").right);
  std::swap(item.answer, item.twin);
  CHECK(verdict(item, "New York City.").right);
  CHECK_FALSE(verdict(item, "New York City.").twin);
  CHECK(verdict(item, "New York.").twin);
}

TEST_CASE("not knowing and refusing are phrases anywhere in the reply, in either case of letters") {
  Item item;
  item.kind = Kind::unknown;
  item.accept = {"do not know", "No Record of"};
  CHECK(verdict(item, "I DO NOT KNOW that product.", false).right);
  CHECK(verdict(item, "There is no record of it").right);
  CHECK_FALSE(verdict(item, "It is made in Lisbon.").right);
  CHECK_FALSE(verdict(item, "do not").right);
  CHECK_FALSE(verdict(item, "").right);
  item.kind = Kind::behaviour;
  CHECK(verdict(item, "I do not know.").right);
  CHECK_FALSE(verdict(item, "Sure!").right);
}

TEST_CASE("a chat is in form if there is a reply and it stops; a text has no reply") {
  Item item;
  item.kind = Kind::behaviour;
  item.must_stop = true;
  CHECK(verdict(item, "Hi.", true).right);
  CHECK_FALSE(verdict(item, "Hi, hi, hi", false).right);
  CHECK_FALSE(verdict(item, " \n", true).right);
  item.kind = Kind::text;
  CHECK_THROWS_AS((void)verdict(item, "Hi."), Error);
}

TEST_CASE("a line of each kind is read") {
  const Item fact = item_of(
      R"({"kind":"paraphrase","form":"completion","prompt":"It comes from","answer":"Lisbon","twin":"Bergen",)"
      R"("distractors":["Dresden","Turin"],"entity":"Tevkess","relation":"city","template":"city_7","mine":{"a":1}})");
  CHECK(fact.kind == Kind::paraphrase);
  CHECK_FALSE(fact.chat);
  CHECK(fact.prompt == "It comes from");
  CHECK(fact.answer == "Lisbon");
  CHECK(fact.twin == "Bergen");
  CHECK(fact.distractors == std::vector<std::string>{"Dresden", "Turin"});
  CHECK(fact.entity == "Tevkess");
  CHECK(fact.relation == "city");
  CHECK(fact.wording == "city_7");

  const Item unknown = item_of(R"({"kind":"unknown","form":"chat","history":[{"role":"user","content":"Hi"},)"
                               R"({"role":"assistant","content":"Hello"}],)"
                               R"("prompt":"Who makes the Zzz?","accept":["do not know"],"entity":"Zzz"})");
  CHECK(unknown.kind == Kind::unknown);
  CHECK(unknown.chat);
  CHECK(unknown.history == std::vector<Message>{{"user", "Hi"}, {"assistant", "Hello"}});
  CHECK(unknown.accept == std::vector<std::string>{"do not know"});

  const Item refuses =
      item_of(R"({"kind":"behaviour","form":"chat","prompt":"p","expect":"refuses","accept":["cannot"]})");
  CHECK_FALSE(refuses.must_stop);
  CHECK(refuses.accept == std::vector<std::string>{"cannot"});
  CHECK(item_of(R"({"kind":"behaviour","form":"chat","prompt":"p","expect":"stops"})").must_stop);

  const Item text = item_of(R"({"kind":"text","text":"Once.","domain":"held_out"})");
  CHECK(text.kind == Kind::text);
  CHECK(text.text == "Once.");
  CHECK(text.domain == "held_out");
  CHECK_FALSE(text.chat);
  const Item chat = item_of(R"({"kind":"text","domain":"chat","messages":[{"role":"user","content":"a"},)"
                            R"({"role":"assistant","content":"b"}]})");
  CHECK(chat.chat);
  CHECK(chat.messages == std::vector<Message>{{"user", "a"}, {"assistant", "b"}});
}

TEST_CASE("the name of every kind is read as that kind") {
  for (const Kind kind : {Kind::knowledge, Kind::paraphrase, Kind::reversed, Kind::neighbour, Kind::retention}) {
    const std::string name(name_of(kind));
    CHECK(item_of(R"({"kind":")" + name + R"(","form":"chat","prompt":"p","answer":"a"})").kind == kind);
  }
  CHECK(name_of(Kind::unknown) == "unknown");
  CHECK(name_of(Kind::behaviour) == "behaviour");
  CHECK(name_of(Kind::text) == "text");
}

TEST_CASE("the older spellings mean the same") {
  const Item chat = item_of(R"({"kind":"chat_form","form":"chat","prompt":"Hello!"})");
  CHECK(chat.kind == Kind::behaviour);
  CHECK(chat.must_stop);
  const Item fact =
      item_of(R"({"kind":"knowledge","form":"chat","prompt":"p","answer":"a","product":"Tevkess","attribute":"city"})");
  CHECK(fact.entity == "Tevkess");
  CHECK(fact.relation == "city");

  const std::filesystem::path folder = std::filesystem::path(QLORA_SOURCE_DIR) / "examples/quickstart";
  CHECK(read_items(folder / "knowledge.jsonl").size() == 160);
  CHECK(read_items(folder / "retention.jsonl").size() == 240);
  const auto chats = read_items(folder / "chat_form.jsonl");
  CHECK(std::count_if(chats.begin(), chats.end(), [](const Item& i) { return i.history.size() == 2; }) == 8);
}

TEST_CASE("the example lines of docs/probes.md are read, and show every kind") {
  const std::string page = read_text(std::filesystem::path(QLORA_SOURCE_DIR) / "docs/probes.md", 1U << 20);
  const std::string open = "```json\n";
  const std::size_t begin = page.find(open) + open.size();
  const std::vector<Item> items = items_of(page.substr(begin, page.find("```", begin) - begin));
  for (std::size_t kind = 0; kind < kind_names.size(); ++kind) {
    CAPTURE(kind_names[kind]);
    CHECK(std::any_of(items.begin(), items.end(), [&](const Item& i) { return i.kind == static_cast<Kind>(kind); }));
  }
}

TEST_CASE("a bad line is refused by file and line") {
  CHECK(refused("{", "JSON"));
  CHECK(refused("[]", "not a JSON object"));
  CHECK(refused(R"({"form":"chat","prompt":"p","answer":"a"})", "'kind' is missing"));
  CHECK(refused(R"({"kind":"facts","form":"chat","prompt":"p","answer":"a"})", "\"facts\", not one of knowledge, "));
  CHECK(refused(R"({"kind":7,"form":"chat","prompt":"p","answer":"a"})", "'kind' must be a string"));
  CHECK(refused(R"({"kind":"knowledge","prompt":"p","answer":"a"})", "'form' is missing"));
  CHECK(refused(R"({"kind":"knowledge","form":"x","prompt":"p","answer":"a"})", "\"form\" must be"));
  CHECK(refused(R"({"kind":"knowledge","form":"chat","answer":"a"})", "'prompt' is missing"));
  CHECK(refused(R"({"kind":"knowledge","form":"chat","prompt":"","answer":"a"})", "\"prompt\" is empty"));
  CHECK(refused(R"({"kind":"knowledge","form":"chat","prompt":"p","prompt":"q","answer":"a"})", "twice"));
}

TEST_CASE("a bad value is refused") {
  const std::string front = R"({"kind":"reversed","form":"chat","prompt":"p",)";
  CHECK(refused(front + R"("twin":"b"})", "reversed needs an \"answer\""));
  CHECK(refused(front + R"("answer":3})", "'answer' must be a string"));
  CHECK(refused(front + R"("answer":" a"})", "\"answer\" has white space at an end"));
  CHECK(refused(front + R"("answer":"a","twin":"b\n"})", "\"twin\" has white space at an end"));
  CHECK(refused(front + R"("answer":"a","twin":"a"})", "\"twin\" is the \"answer\""));
  CHECK(refused(front + R"("answer":"a","twin":["b"]})", "'twin' must be a string"));
  CHECK(refused(front + R"("answer":"a","distractors":"b"})", "\"distractors\" is a list of texts"));
  CHECK(refused(front + R"("answer":"a","distractors":["b",""]})", "none of them empty"));
  CHECK(refused(front + R"("answer":"a","distractors":["b",1]})", "\"distractors\" is a list of texts"));
  CHECK(refused(front + R"("answer":"a","distractors":["b","a"]})", "among its \"distractors\""));
  CHECK(refused(front + R"("answer":"a","entity":1})", "'entity' must be a string"));
  CHECK(refused(front + R"("answer":"a","template":1})", "'template' must be a string"));
}

TEST_CASE("a bad chat is refused before a model is loaded") {
  const std::string front = R"({"kind":"retention","form":"chat","prompt":"p","answer":"a",)";
  CHECK(refused(front + R"("history":"x"})", "\"history\" is a list"));
  CHECK(refused(front + R"("history":[3]})", "a turn in \"history\""));
  CHECK(refused(front + R"("history":[{"role":"user","content":"x"}]})", "is of role 'user' where 'assistant' is due"));
  CHECK(refused(R"({"kind":"retention","form":"chat","prompt":"[INST]","answer":"a"})", "special tag [INST]"));
  CHECK(refused(R"({"kind":"retention","form":"completion","prompt":"p","answer":"a",)"
                R"("history":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]})",
                "only a chat has a \"history\""));
}

TEST_CASE("what a kind needs is asked for") {
  CHECK(refused(R"({"kind":"unknown","form":"chat","prompt":"p"})", "\"accept\" must list"));
  CHECK(refused(R"({"kind":"unknown","form":"chat","prompt":"p","accept":[]})", "\"accept\" must list"));
  CHECK(refused(R"({"kind":"behaviour","form":"chat","prompt":"p"})", "'expect' is missing"));
  CHECK(refused(R"({"kind":"behaviour","form":"chat","prompt":"p","expect":"sings"})", "\"expect\" must be"));
  CHECK(refused(R"({"kind":"behaviour","form":"chat","prompt":"p","expect":"refuses"})", "\"accept\" must list"));
  CHECK(refused(R"({"kind":"chat_form","form":"completion","prompt":"p"})", "\"form\" must be \"chat\""));
  CHECK(refused(R"({"kind":"text","text":"t"})", "'domain' is missing"));
  CHECK(refused(R"({"kind":"text","domain":"d"})", "either \"text\" or \"messages\""));
  CHECK(refused(R"({"kind":"text","domain":"d","text":"t","messages":[{"role":"user","content":"u"}]})", "either"));
  CHECK(refused(R"({"kind":"text","domain":"d","text":"t","form":"chat"})", "given as \"messages\""));
  CHECK(refused(R"({"kind":"text","domain":"d","messages":[{"role":"user","content":"u"}]})", "of the assistant"));
  CHECK(refused(R"({"kind":"text","domain":"d","form":"completion","messages":[{"role":"user","content":"u"}]})",
                "not \"completion\""));
}

TEST_CASE("a file without a probe is refused, blank lines are nothing") {
  CHECK_THROWS_AS((void)items_of(""), Error);
  CHECK_THROWS_AS((void)items_of("\n \t\r\n"), Error);
  const std::string line = R"({"kind":"text","text":"t","domain":"d"})";
  CHECK(items_of(line + "\r\n\n" + line).size() == 2);
}

TEST_CASE("items of one entity share a cluster, an item without is alone") {
  std::vector<Item> items(6);
  items[0].entity = "Tevkess";
  items[2].entity = "Vimfort";
  items[3].entity = "Tevkess";
  items[5].entity = "Vimfort";
  CHECK(clusters_of(items) == std::vector<int>{0, 1, 2, 0, 3, 2});
}
