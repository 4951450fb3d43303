// option_fronts_test.cpp — the program's fronts against the tables of options: command line, job file, printed keys and
// docs/options.md know every option, with the same limits. QLORA_PROGRAM is the built program.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "qlora/run/options.hpp"
#include "support/program.hpp"

using namespace qlora::run;
using program_test::contains;
using program_test::Outcome;
using program_test::Scratch;

namespace {

Outcome program(const Scratch& scratch, const std::string& arguments) {
  return program_test::qlora(scratch, arguments);
}

std::vector<std::string> verbs_of(std::string_view list) {
  std::vector<std::string> verbs;
  for (std::size_t at = 0; at < list.size();) {
    const std::size_t end = std::min(list.find(", ", at), list.size());
    verbs.emplace_back(list.substr(at, end - at));
    at = end + 2;
  }
  return verbs;
}

/// A job whose section of the group has one more key.
Outcome job_with(const Scratch& scratch, std::string_view section, const std::string& line) {
  std::string job;
  const auto add = [&](std::string_view name, const std::string& own) {
    job += "[" + std::string(name) + "]\n" + (name == section ? line + "\n" : std::string());
    if (name != section || !line.starts_with(own.substr(0, own.find(' ')))) job += own + "\n";
  };
  add("model", "path = 'm'");
  add("data", "files = ['p']");
  add("output", "dir = 'out'");
  if (section == "arm") {
    job += "[[arm]]\nname = 'a'\n" + line + "\n";
  } else if (section != "model" && section != "data" && section != "output") {
    job += "[" + std::string(section) + "]\n" + line + "\n";
  }
  return program(scratch, "run --show '" + scratch.write("job.toml", job).string() + "'");
}

}  // namespace

TEST_CASE("the help of each verb has every option of its groups") {
  const Scratch scratch;
  for_each_group([&]<class S>() {
    for (const std::string& verb : verbs_of(Table<S>::verbs)) {
      CAPTURE(verb);
      const std::string help = program(scratch, verb + " --help").out;
      for (const Option<S>& option : Table<S>::options) {
        CAPTURE(option.name);
        CHECK(contains(help, line_name(option)));
        CHECK(contains(help, std::string(option.help)));
        if (!option.old_name.empty()) CHECK_FALSE(contains(help, dashed(option.old_name)));
      }
    }
  });
}

TEST_CASE("command line and job file refuse the same values with the same words") {
  const Scratch scratch;
  int refused = 0;
  for_each_group([&]<class S>() {
    const std::vector<std::string> verbs = verbs_of(Table<S>::verbs);
    for (const Option<S>& option : Table<S>::options) {
      std::vector<std::string> words;
      if (option.kind() == Kind::integer || option.kind() == Kind::number) {
        words = {"nan", "inf", text_of(option.range.high * 2 + 1), text_of(option.range.low - 1)};
      }
      if (option.kind() == Kind::choice) words = {"none-such"};
      if (option.kind() == Kind::size) words = {"24"};
      const bool quoted = option.kind() == Kind::choice || option.kind() == Kind::size;
      for (const std::string& word : words) {
        CAPTURE(option.name);
        CAPTURE(word);
        const std::string wanted = option.kind() == Kind::choice ? "cannot be \"none-such\"" : requirement(option);
        if (!verbs.empty()) {
          const Outcome line = program(scratch, verbs.front() + " " + line_name(option) + "=" + word);
          CHECK(line.code == 2);
          CHECK(contains(line.err, line_name(option) + " " + wanted));
          ++refused;
        }
        if (!Table<S>::section.empty()) {
          const std::string key = std::string(option.name) + " = " + (quoted ? "'" + word + "'" : word);
          const Outcome job = job_with(scratch, Table<S>::section, key);
          CHECK(job.code == 3);
          CHECK(contains(job.err, "`" + std::string(option.name) + "` " + wanted));
          ++refused;
        }
      }
    }
  });
  CHECK(refused > 150);
}

TEST_CASE("a list takes several words, and may be given again") {
  const Scratch scratch;
  int lists = 0;
  for_each_group([&]<class S>() {
    for (const Option<S>& option : Table<S>::options) {
      if (option.kind() != Kind::texts && option.kind() != Kind::paths) continue;
      for (const std::string& verb : verbs_of(Table<S>::verbs)) {
        const std::string name = " " + line_name(option);
        const Outcome none = program(scratch, verb);
        const Outcome several = program(scratch, verb + name + " a b" + name + " c");
        CAPTURE(verb + name);
        CHECK(several.code == 2);
        CHECK(several.err == none.err);  // what is missing beside it, and nothing else
        ++lists;
      }
    }
  });
  CHECK(lists >= 4);
  const Outcome scalar = program(scratch, "train --lr 1 --lr 2");
  CHECK(scalar.code == 2);
  CHECK(contains(scalar.err, "--lr"));
}

TEST_CASE("old names are accepted with a note, as options and as keys") {
  const Scratch scratch;
  int renamed = 0;
  for_each_group([&]<class S>() {
    for (const Option<S>& option : Table<S>::options) {
      if (option.old_name.empty() || Table<S>::section.empty()) continue;
      CAPTURE(option.name);
      REQUIRE(option.kind() == Kind::flag);
      const std::string old_name(option.old_name);
      const std::string other = std::get<bool>(value_of(option, S{})) ? "false" : "true";  // than the default
      const Outcome job = job_with(scratch, Table<S>::section, old_name + " = " + other);
      CHECK(job.code == 0);
      CHECK(contains(job.out, "\"" + std::string(option.name) + "\": " + other));
      CHECK(contains(job.err, "`" + old_name + "` is now called `" + std::string(option.name) + "`"));
      const Outcome both =
          job_with(scratch, Table<S>::section, old_name + " = true\n" + std::string(option.name) + " = true");
      CHECK(both.code == 3);
      CHECK(contains(both.err, "is the old name of"));
      ++renamed;
    }
  });
  CHECK(renamed == 3);
  const Outcome line = program(scratch, "plan 7b --gpu-memory 24GB --resident --moments8");
  CHECK(line.code == 0);
  CHECK(contains(line.err, "--resident is now called --keep-dequantized"));
  CHECK(contains(line.err, "--moments8 is now called --adamw8bit"));
  CHECK(line.out == program(scratch, "plan 7b --gpu-memory 24GB --keep-dequantized --adamw8bit").out);
  const std::string job =
      scratch.write("job.toml", "[model]\npath='m'\n[data]\nfiles=['p']\n[output]\ndir='o'\n").string();
  CHECK(contains(program(scratch, "run --show '" + job + "' --resident").out, "\"keep_dequantized\": true"));
}

TEST_CASE("the lines of a refusal stay lines, so that they can be pasted") {
  const Scratch scratch;
  const Outcome error = program(scratch, "run --show '" + scratch.write("two\nlines", "x = 1\n").string() + "'");
  CHECK(error.code == 3);
  CHECK(contains(error.err, "two\nlines:1: unknown section"));
}

TEST_CASE("docs/options.md is what the tables say") {
  const Scratch scratch;
  const Outcome page = program(scratch, "run --keys --markdown");
  CHECK(page.code == 0);
  INFO("write it with: qlora run --keys --markdown > docs/options.md");
  CHECK(page.out == program_test::contents(QLORA_SOURCE_DIR "/docs/options.md"));
}
