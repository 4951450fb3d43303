// console_progress_test.cpp — the three styles of progress, on a clock that the test turns.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/run/console_progress.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

using namespace qlora::run;

namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

struct Bench {
  std::ostringstream out;
  double now = 100;
  ConsoleProgress progress;
  explicit Bench(ProgressStyle style, bool color = false) : progress(out, style, color, [this] { return now; }) {}
};

}  // namespace

TEST_CASE("plain lines: one every five seconds, with tokens a second and the time left") {
  Bench bench(ProgressStyle::lines);
  bench.progress.begin("train", 100, "steps");
  for (int step = 1; step <= 10; ++step) {
    bench.now += 1;
    bench.progress.update(step, step * 500, "loss 2.5");
  }
  bench.progress.end("loss 1.25");
  const auto lines = lines_of(bench.out.str());
  REQUIRE(lines.size() == 4);
  CHECK(lines[0] == "train: 100 steps");
  CHECK(lines[1] == "train: 5/100 steps, 500 tok/s, 1 min 35 s left, loss 2.5");
  CHECK(lines[2] == "train: 10/100 steps, 500 tok/s, 1 min 30 s left, loss 2.5");
  CHECK(lines[3] == "train: loss 1.25 in 10 s");
  CHECK(bench.out.str().find('\r') == std::string::npos);
  CHECK(bench.out.str().find('\033') == std::string::npos);
}

TEST_CASE("a resumed task estimates its time left from where it resumed") {
  Bench bench(ProgressStyle::lines);
  bench.progress.begin("train", 100, "steps", 90);
  bench.now += 5;
  bench.progress.update(95);
  CHECK(lines_of(bench.out.str()).back() == "train: 95/100 steps, 5 s left");
}

TEST_CASE("the bar redraws one line and colours only where it may") {
  Bench plain(ProgressStyle::bar);
  plain.progress.begin("pack", 4, "documents");
  plain.now += 1;
  plain.progress.update(2);
  CHECK(plain.out.str().find("[############............] 2/4 documents") != std::string::npos);
  CHECK(plain.out.str().find("\033[32m") == std::string::npos);
  CHECK(plain.out.str().find('\n') == std::string::npos);
  Bench colored(ProgressStyle::bar, true);
  colored.progress.begin("pack", 4, "documents");
  colored.now += 1;
  colored.progress.update(2);
  CHECK(colored.out.str().find("\033[32m") != std::string::npos);
}

TEST_CASE("JSON events are one object a line, whatever the texts hold") {
  Bench bench(ProgressStyle::json);
  bench.progress.begin("fetch", 2, "pages");
  bench.now += 2;
  bench.progress.update(1, 0, "bad \xFF \"quoted\"\n");
  bench.progress.say("note\nwith a break");
  bench.progress.end();
  const auto lines = lines_of(bench.out.str());
  REQUIRE(lines.size() == 4);
  std::vector<std::string> kinds;
  for (const auto& line : lines) kinds.push_back(nlohmann::json::parse(line).at("event"));
  CHECK(kinds == std::vector<std::string>{"begin", "progress", "note", "end"});
  const auto event = nlohmann::json::parse(lines[1]);
  CHECK(event.at("done") == 1);
  CHECK(event.at("total") == 2);
  CHECK(event.at("eta_seconds").get<double>() == doctest::Approx(2.0));
}

TEST_CASE("quiet is silent") {
  Bench bench(ProgressStyle::none);
  bench.progress.begin("train", 10, "steps");
  bench.now += 60;
  bench.progress.update(5);
  bench.progress.say("word");
  bench.progress.end();
  CHECK(bench.out.str().empty());
}

TEST_CASE("an unknown total shows no time left") {
  Bench bench(ProgressStyle::lines);
  bench.progress.begin("read", 0, "lines");
  bench.now += 6;
  bench.progress.update(12);
  CHECK(lines_of(bench.out.str()).back() == "read: 12 lines");
}

TEST_CASE("durations for people") {
  CHECK(duration(0.4) == "0 s");
  CHECK(duration(59.4) == "59 s");
  CHECK(duration(59.6) == "1 min 0 s");
  CHECK(duration(3725) == "1 h 2 min");
  CHECK(duration(-1) == "?");
}
