// probes_test.cpp — when an answer is right, what a probe file may hold, and the record of a training run.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "../examples/qlora/probes.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "../examples/qlora/metrics.hpp"

using namespace qlora;
using namespace qlora::program;

namespace {

/// A file that goes away with the test.
struct Scratch {
  std::filesystem::path path;
  explicit Scratch(const std::string& name, const std::string& text = {})
      : path(std::filesystem::temp_directory_path() / ("qlora-probes-" + std::to_string(::getpid()) + name)) {
    std::ofstream(path, std::ios::binary) << text;
  }
  ~Scratch() { std::filesystem::remove(path); }
};

std::string refusal(const std::string& line) {
  const Scratch file(".jsonl", "\n" + line + "\n");
  try {
    (void)read_probes(file.path);
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find(".jsonl:2: ") != std::string::npos);
    return error.what();
  }
  FAIL("accepted: " << line);
  return {};
}

}  // namespace

TEST_CASE("a fact is right if the continuation begins with its value at a word boundary") {
  CHECK(begins_with_value(" Lisbon.", "Lisbon"));
  CHECK(begins_with_value("Lisbon", "Lisbon"));
  CHECK(begins_with_value("\n Lisbon, in the south", "Lisbon"));
  CHECK(begins_with_value("55 dollars\n", "55 dollars"));
  CHECK_FALSE(begins_with_value("Lisbonne", "Lisbon"));
  CHECK_FALSE(begins_with_value("Lisbon\xC3\xA9", "Lisbon"));
  CHECK_FALSE(begins_with_value("5 dollars", "55 dollars"));
  CHECK_FALSE(begins_with_value("155 dollars", "55 dollars"));
  CHECK_FALSE(begins_with_value("February 21", "February 2"));
  CHECK_FALSE(begins_with_value("lisbon", "Lisbon"));
  CHECK_FALSE(begins_with_value("in Lisbon", "Lisbon"));
  CHECK_FALSE(begins_with_value("", "Lisbon"));
}

TEST_CASE("a chat is in form if there is a reply and it stops") {
  const Probe probe{"chat_form", {true, "Hello!", {}}, ""};
  CHECK(is_right(probe, {"Hi.", true}));
  CHECK_FALSE(is_right(probe, {"Hi, hi, hi", false}));
  CHECK_FALSE(is_right(probe, {" \n", true}));
}

TEST_CASE("scores are fractions by kind and form, with their counts") {
  const std::vector<Probe> probes{{"knowledge", {false, "a", {}}, "x"}, {"knowledge", {false, "b", {}}, "y"},
                                  {"knowledge", {true, "c", {}}, "z"},  {"retention", {true, "d", {}}, "u"},
                                  {"retention", {true, "e", {}}, "v"},  {"retention", {true, "f", {}}, "w"},
                                  {"retention", {true, "g", {}}, "w"}};
  const Result result = scores(
      probes, {{"x", false}, {"no", true}, {"z!", false}, {"u", false}, {"v", false}, {"w", false}, {"ww", false}});
  CHECK(result["knowledge_completion"] == 0.5);
  CHECK(result["knowledge_completion_n"] == 2);
  CHECK(result["knowledge_chat"] == 1.0);
  CHECK(result["knowledge_chat_n"] == 1);
  CHECK(result["retention_facts"] == 0.75);
  CHECK(result["retention_facts_n"] == 4);
  CHECK(result["chat_form_n"] == 0);
  CHECK(result.size() == 8);
}

TEST_CASE("the probes that come with the library are read, and bad lines are named") {
  const std::filesystem::path folder = std::filesystem::path(QLORA_SOURCE_DIR) / "examples/quickstart";
  CHECK(read_probes(folder / "knowledge.jsonl").size() == 160);
  const auto chats = read_probes(folder / "chat_form.jsonl");
  CHECK(std::count_if(chats.begin(), chats.end(), [](const Probe& p) { return p.question.history.size() == 2; }) == 8);
  CHECK(refusal("{").find("JSON") != std::string::npos);
  CHECK(refusal("[]").find("not a JSON object") != std::string::npos);
  CHECK(refusal(R"({"kind":"k","form":"chat","prompt":"p","answer":"a"})").find("\"kind\"") != std::string::npos);
  CHECK(refusal(R"({"kind":"knowledge","form":"x","prompt":"p","answer":"a"})").find("\"form\"") != std::string::npos);
  CHECK(refusal(R"({"kind":"knowledge","form":"chat","prompt":"p"})").find("\"answer\"") != std::string::npos);
  CHECK(refusal(R"({"kind":"knowledge","form":"chat","prompt":"","answer":"a"})").find("empty") != std::string::npos);
  CHECK(refusal(R"({"kind":"chat_form","form":"completion","prompt":"p"})").find("chat form") != std::string::npos);
  refusal(R"({"kind":"chat_form","form":"chat","prompt":"p","history":[3]})");
}

TEST_CASE("a reopened record drops the steps that will be done again, and a line cut short") {
  const Scratch file("metrics.jsonl");
  {
    MetricsLog log(file.path, 0);
    for (int step = 1; step <= 5; ++step) log.add({step, step * 0.5, 2.0 / step, 1.0, 1e-3, 100, 90, 1000});
  }
  std::ofstream(file.path, std::ios::app) << "{\"step\": 6, \"lo";
  CHECK(read_metrics(file.path).size() == 5);
  MetricsLog log(file.path, 3);
  REQUIRE(log.metrics().size() == 3);
  log.add({4, 2.0, 0.25, 1.0, 1e-3, 100, 90, 1000});
  const auto metrics = read_metrics(file.path);
  REQUIRE(metrics.size() == 4);
  CHECK(metrics[2].loss == 2.0 / 3);
  CHECK(metrics[3].loss == 0.25);
  CHECK(metrics[3].labelled_tokens == 90);
}

TEST_CASE("trainer_state.json has what transformers reads") {
  const Scratch file("trainer_state.json");
  write_trainer_state(file.path, {{1, 0.5, 3.0, 0.7, 1e-3, 100, 90, 5}, {2, 1.0, 2.0, 0.6, 5e-4, 100, 90, 5}},
                      {4, 2, 1, 50});
  std::ifstream in(file.path);
  const auto state = nlohmann::json::parse(in);
  CHECK(state.at("global_step") == 2);
  CHECK(state.at("epoch") == 1.0);
  CHECK(state.at("max_steps") == 4);
  CHECK(state.at("num_train_epochs") == 2);
  REQUIRE(state.at("log_history").size() == 2);
  CHECK(state.at("log_history")[1] ==
        nlohmann::json{{"epoch", 1.0}, {"grad_norm", 0.6}, {"learning_rate", 5e-4}, {"loss", 2.0}, {"step", 2}});
}
