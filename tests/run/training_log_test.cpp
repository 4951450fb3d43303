// training_log_test.cpp — the record of a training run: what a resumed run keeps of it, and its form for transformers.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/run/training_log.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

using namespace qlora;
using namespace qlora::run;

namespace {

/// A file that goes away with the test.
struct Scratch {
  std::filesystem::path path;
  explicit Scratch(const std::string& name)
      : path(std::filesystem::temp_directory_path() / ("qlora-metrics-" + std::to_string(::getpid()) + name)) {}
  ~Scratch() { std::filesystem::remove(path); }
};

}  // namespace

TEST_CASE("a reopened record drops the steps that will be done again, and a line cut short") {
  const Scratch file("metrics.jsonl");
  {
    TrainingLog log(file.path, 0);
    for (int step = 1; step <= 5; ++step) log.add({step, step * 0.5, 2.0 / step, 1.0, 1e-3, 100, 90, 1000});
  }
  std::ofstream(file.path, std::ios::app) << "{\"step\": 6, \"lo";
  CHECK(read_training_log(file.path).size() == 5);
  TrainingLog log(file.path, 3);
  REQUIRE(log.records().size() == 3);
  log.add({4, 2.0, 0.25, 1.0, 1e-3, 100, 90, 1000});
  const auto metrics = read_training_log(file.path);
  REQUIRE(metrics.size() == 4);
  CHECK(metrics[2].loss == 2.0 / 3);
  CHECK(metrics[3].loss == 0.25);
  CHECK(metrics[3].labelled_tokens == 90);
}

TEST_CASE("the newest line is written again with what was measured later, and the record goes on behind it") {
  const Scratch file("metrics.jsonl");
  TrainingLog log(file.path, 0);
  for (int step = 1; step <= 3; ++step) log.add({step, step * 0.5, 2.0 / step, 1.0, 1e-3, 100, 90, 1000});
  CHECK(log.newest(3).loss == 2.0 / 3);
  CHECK(log.newest(4).step == 4);  // without a line of its own
  StepRecord again = log.newest(3);
  again.probes = {
      {"retention", {{"", {.value = 0.5, .lower = 0.25, .n = 8, .clusters = 4}}, {"net", {.value = 0.125}}}}};
  log.amend(again);
  log.add({4, 2.0, 0.25, 1.0, 1e-3, 100, 90, 1000});
  const auto metrics = read_training_log(file.path);
  REQUIRE(metrics.size() == 4);
  CHECK(metrics[1].probes.empty());
  REQUIRE(metrics[2].probes.size() == 1);
  CHECK(metrics[2].probes[0].name == "retention");
  CHECK(eval::find_number(metrics[2].probes, "retention.value") == 0.5);
  CHECK(eval::find_number(metrics[2].probes, "retention.lower") == 0.25);
  CHECK(std::isnan(eval::find_number(metrics[2].probes, "retention.upper").value()));  // null in the file
  CHECK(eval::find_number(metrics[2].probes, "retention.net.value") == 0.125);
  CHECK(metrics[2].probes[0].numbers[0].second.n == 8);
  CHECK(metrics[2].loss == 2.0 / 3);
  CHECK(metrics[3].step == 4);
  CHECK_THROWS_AS(log.amend(again), Error);  // step 3 is not the newest any more
}

TEST_CASE("a damaged line is left out and counted, never read as another number, and costs no line behind it") {
  const Scratch file("metrics.jsonl");
  const std::string good = to_json(StepRecord{2, 1.0, 0.5, 1.0, 1e-3, 100, 90, 1000}).dump();
  const auto with = [&](const std::string& line) {
    std::ofstream out(file.path);
    out << to_json(StepRecord{1, 0.5, 2.0, 1.0, 1e-3, 100, 90, 1000}).dump() << '\n' << line << '\n';
    out << to_json(StepRecord{3, 1.5, 0.25, 1.0, 1e-3, 100, 90, 1000}).dump() << '\n';
    out.close();
    int damaged = 0;
    const auto records = read_training_log(file.path, &damaged);
    REQUIRE(records.size() >= 2);
    CHECK(records.back().step == 3);
    CHECK(records.size() + static_cast<std::size_t>(damaged) == 3);
    return damaged;
  };
  CHECK(with(good) == 0);
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string line = good;
    return line.replace(line.find(from), from.size(), to);
  };
  CHECK(with(changed("\"loss\":0.5", "\"loss\":null")) == 1);
  CHECK(with(changed("\"loss\":0.5", "\"loss\":\"0.5\"")) == 1);
  CHECK(with(changed("\"loss\"", "\"lass\"")) == 1);
  CHECK(with(changed("\"step\":2", "\"step\":9")) == 1);
  CHECK(with(changed("\"tokens\":100", "\"tokens\":-100")) == 1);
  CHECK(with(changed("{", "")) == 1);
  for (std::size_t at = 0; at < good.size(); ++at) {  // every flipped bit: a record in its place, or a damaged line
    for (int bit = 0; bit < 8; ++bit) {
      std::string line = good;
      line[at] = static_cast<char>(line[at] ^ (1 << bit));
      if (line[at] == '\n') continue;
      std::ofstream(file.path) << line << '\n';
      for (const StepRecord& record : read_training_log(file.path)) CHECK(std::isfinite(record.loss));
    }
  }
  TrainingLog log(file.path, 3);
  CHECK(log.damaged() == static_cast<int>(log.records().empty()));
}

TEST_CASE("trainer_state.json has the step of the model where a guard went back") {
  const Scratch file("trainer_state.json");
  write_trainer_state(file.path, {{1, 0.5, 3.0, 0.7, 1e-3, 100, 90, 5}, {2, 1.0, 2.0, 0.6, 5e-4, 100, 90, 5}},
                      {1, 4, 2, 1, 50});
  std::ifstream in(file.path);
  const auto state = nlohmann::json::parse(in);
  CHECK(state.at("global_step") == 1);
  CHECK(state.at("epoch") == 0.5);
  CHECK(state.at("log_history").size() == 2);
}

TEST_CASE("trainer_state.json has what transformers reads") {
  const Scratch file("trainer_state.json");
  write_trainer_state(file.path, {{1, 0.5, 3.0, 0.7, 1e-3, 100, 90, 5}, {2, 1.0, 2.0, 0.6, 5e-4, 100, 90, 5}},
                      {2, 4, 2, 1, 50});
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
