// hub_names_test.cpp — the program where a model is named as the hub does: `ORG/NAME` wherever a directory is taken,
// and the verbs that are about the hub itself, without a hub.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "support/program.hpp"

using program_test::check_refused;
using program_test::contains;
using program_test::Outcome;
using program_test::qlora;
using program_test::Scratch;

TEST_CASE("names of the hub are models where there is no such folder, and nothing is asked for offline") {
  const Scratch scratch;
  const std::string offline = "HF_HUB_OFFLINE=1 HF_TOKEN= HF_HOME='" + (scratch / "home").string() + "'";
  for (const char* line :
       {"info none/model", "generate none/model --prompt x", "pull none/model@v1", "accept none/model",
        "pack none.jsonl -m none/model -o out", "merge -m none/model -a none/adapter -o out"}) {
    INFO(line);
    const Outcome asked = qlora(scratch, line, offline);
    check_refused(asked, 5);
    CHECK(contains(asked.err, "none/model is not in the cache, and HF_HUB_OFFLINE forbids to ask for it"));
  }
  const std::string tiny = QLORA_SOURCE_DIR "/examples/models/tiny-chat";
  for (const std::string& line : std::vector<std::string>{"serve none/model", "serve name=none/model@v1",
                                                          "serve none=" + tiny + " --adapter a=none/model@v1@none"}) {
    INFO(line);
    const Outcome asked = qlora(scratch, line, offline);
    check_refused(asked, 5);
    CHECK(contains(asked.err, "none/model is not in the cache, and HF_HUB_OFFLINE forbids to ask for it"));
  }
  check_refused(qlora(scratch, "serve a=" + tiny + " b=" + tiny + " --adapter c=none/model@v1", offline), 2);
  check_refused(qlora(scratch, "pull model", offline), 2);
  check_refused(qlora(scratch, "pull none/model --include '*.gguf'", offline), 5);
  // A mistyped path is asked for once.
  const std::string unheard = "HF_ENDPOINT=https://127.0.0.1:1 HF_TOKEN= HF_HOME='" + (scratch / "home").string() + "'";
  const Outcome once = qlora(scratch, "info none/model", unheard);
  check_refused(once, 5);
  CHECK(contains(once.err, "there is no directory none/model here"));
  CHECK(contains(once.err, "(1 try)"));
  check_refused(qlora(scratch, "info ./model", offline), 3);
  const std::string snapshot = (scratch / "home/hub/models--org--name/snapshots/abc").string();
  std::filesystem::create_directories(snapshot);
  std::filesystem::create_directories(scratch / "home/hub/models--org--name/refs");
  scratch.write("home/hub/models--org--name/refs/main", "abc");
  std::filesystem::copy(QLORA_SOURCE_DIR "/examples/models/tiny-chat", snapshot);
  const Outcome found = qlora(scratch, "info org/name", offline);
  CHECK(found.code == 0);
  CHECK(found.out == qlora(scratch, "info " + snapshot).out);
  const Outcome logout = qlora(scratch, "logout", offline);
  CHECK(logout.code == 0);
  CHECK(contains(logout.out, "there was no token in "));
  check_refused(qlora(scratch, "login", offline), 2);  // an empty line is no token
  check_refused(qlora(scratch, "login", offline + " HF_ENDPOINT=http://127.0.0.1:1"), 2);
}
