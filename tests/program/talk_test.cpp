// talk_test.cpp — `qlora chat`, `generate` and the questions of `compare`: what cannot be asked is said, and what was
// said before stays. QLORA_PROGRAM is the built program.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "support/program.hpp"

namespace fs = std::filesystem;
using program_test::check_refused;
using program_test::contains;
using program_test::contents;
using program_test::Outcome;
using program_test::qlora;
using program_test::Scratch;
using program_test::shell;

namespace {

const std::string chat_model = QLORA_SOURCE_DIR "/examples/models/tiny-chat";

}  // namespace

TEST_CASE("text that is not UTF-8 is refused with its first such byte; a conversation goes on behind it") {
  const Scratch scratch;
  const std::string few = chat_model + " --temperature 0 --max-new-tokens 4 ";
  const auto refused = [&](const std::string& arguments, const std::string& reason) {
    const Outcome outcome = qlora(scratch, arguments);
    check_refused(outcome, 3);
    CAPTURE(outcome.err);
    CHECK(contains(outcome.err, reason));
  };
  // Cut short, a byte of no character, a surrogate, overlong; in Latin-1 a whole word.
  refused("generate " + few + "-p 'ab\xE2\x82'", "--prompt: byte 3 is not valid UTF-8");
  refused("generate " + few + "-p '\xFF'", "--prompt: byte 1 is not valid UTF-8");
  refused("chat " + few + "-p 'caf\xE9 au lait'", "--prompt: byte 4 is not valid UTF-8");
  refused("chat " + few + "-p hello --system '\xED\xA0\x80'", "--system: byte 1 is not valid UTF-8");
  refused("recall " + few + "--prompt 'a\xC0\xAF' --documents 1 -o '" + (scratch / "r.jsonl").string() + "'",
          "--prompt: byte 2 is not valid UTF-8");
  CHECK(!std::filesystem::exists(scratch / "r.jsonl"));
  const std::string questions = scratch.write("questions.txt", "What?\n\nWho caf\xE9?\n").string();
  refused("compare -m " + chat_model + " --merged " + chat_model + " --questions '" + questions + "'",
          questions + ":3: byte 8 is not valid UTF-8");
  const std::string text = scratch.write("page.txt", "A caf\xE9 in the town, where nobody sits on Mondays.\n").string();
  CHECK(qlora(scratch, "pack '" + text + "' -m " + chat_model + " -o '" + (scratch / "data").string() + "'").code == 3);

  const auto talk = [&](const std::string& lines) {
    scratch.write("turns.txt", lines);
    CHECK(shell(scratch, "cd '" + (scratch / "").string() + "' && $qlora chat " + few +
                             "--json chat.json <turns.txt >out 2>err") == 0);
    return nlohmann::json::parse(contents(scratch / "chat.json")).at("turns");
  };
  const auto turns = talk("Hello\ncaf\xE9?\n/system \xFF\nAnd now?\n");
  CHECK(contains(contents(scratch / "err"), "not asked: the question: byte 4 is not valid UTF-8"));
  CHECK(contains(contents(scratch / "err"), "not asked: a message of the system: byte 1 is not valid"));
  CHECK(turns == talk("Hello\nAnd now?\n"));  // what was left out does not change the answers
}

TEST_CASE(
    "a turn that cannot be asked is said and left out; the conversation goes on, and its oldest turns make room") {
  const Scratch scratch;
  const auto talk = [&](const std::string& lines) {
    scratch.write("turns.txt", lines);
    CHECK(shell(scratch, "cd '" + (scratch / "").string() + "' && $qlora chat " + chat_model +
                             " --temperature 0 --max-new-tokens 8 --json chat.json <turns.txt >out 2>err") == 0);
    return nlohmann::json::parse(contents(scratch / "chat.json")).at("turns");
  };
  std::string words;
  for (int i = 0; i < 600; ++i) words += "price ";
  const auto turns = talk("Hello\nWho [INST] is it?\n" + words + "\nAnd now?\n");
  REQUIRE(turns.size() == 2);
  CHECK(turns[0].at("user") == "Hello");
  CHECK(turns[1].at("user") == "And now?");
  // What was left out does not change the answers.
  CHECK(turns == talk("Hello\nAnd now?\n"));
  talk("Hello\nWho [INST] is it?\n" + words + "\n");
  const std::string said = contents(scratch / "err");
  CHECK(contains(said, "not asked: message 0 holds the special tag [INST]"));
  CHECK(contains(said, "the model reads 512 with its answer"));

  const std::string question = "Who makes the Kesfort, and what does it cost in the shop at Eastlake?\n";
  std::string many;
  for (int i = 0; i < 30; ++i) many += question;
  CHECK(talk(many).size() == 30);
  CHECK(contains(contents(scratch / "err"), "the context is full; the model forgets the 1 oldest turn"));

  // What no turn could change ends the conversation before it begins.
  for (const std::string& system : {std::string("Be [INST] brief"), words}) {
    const Outcome outcome = qlora(scratch, "chat " + chat_model + " --system '" + system + "'");
    check_refused(outcome, 3);
  }
}

/// A copy of the small chat model in which the last token alone says the next one: `chain` gives the ids in a circle.
void write_chain(const fs::path& to, const std::vector<std::size_t>& chain) {
  fs::copy(QLORA_SOURCE_DIR "/examples/models/tiny-chat", to, fs::copy_options::recursive);
  const fs::path file = to / "model.safetensors";
  std::string bytes = contents(file);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  const auto header = nlohmann::json::parse(bytes.substr(8, length));
  const auto at = [&](const std::string& name, int end = 0) {
    return 8 + length + header.at(name).at("data_offsets").at(static_cast<std::size_t>(end)).get<std::size_t>();
  };
  for (const auto& [name, entry] : header.items()) {
    if (name != "lm_head.weight" && !name.ends_with("o_proj.weight") && !name.ends_with("down_proj.weight")) continue;
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(at(name)), at(name, 1) - at(name), '\0');
  }
  constexpr std::size_t row = 256 * 2;  // of fp16
  for (std::size_t i = 0; i < row; i += 2) bytes.replace(at("model.norm.weight") + i, 2, std::string("\0\x3C", 2));
  for (std::size_t i = 0; i < chain.size(); ++i) {
    const std::size_t next = chain[(i + 1) % chain.size()];
    bytes.replace(at("lm_head.weight") + next * row, row, bytes, at("model.embed_tokens.weight") + chain[i] * row, row);
  }
  std::ofstream(file, std::ios::binary) << bytes;
}

TEST_CASE("an answer that spells marks of the chat form is shown, and the conversation goes on") {
  const Scratch scratch;
  write_chain(scratch / "model", {1491, 304, 278});  // "]", " [/", "INST": a prompt ends with the first
  scratch.write("turns.txt", "Hello\nAnd now?\n/retry\nAnd then?\n");
  for (const auto& [tokens, answer] : {std::pair{7, "[/INST] [/INST] [/"}, {6, "[/INST] [/INST]"}, {3, "[/INST]"}}) {
    CHECK(shell(scratch, "cd '" + (scratch / "").string() + "' && $qlora chat model --temperature 0 --max-new-tokens " +
                             std::to_string(tokens) + " --json chat.json <turns.txt >out 2>err") == 0);
    const auto turns = nlohmann::json::parse(contents(scratch / "chat.json")).at("turns");
    REQUIRE(turns.size() == 4);
    CHECK(turns[3].at("user") == "And then?");
    for (const auto& turn : turns) CHECK(turn.at("assistant") == answer);
    CHECK(!contains(contents(scratch / "err"), "not asked"));
  }
}

TEST_CASE("commands of a chat change who answers and what the model sees, and no turn of it") {
  const Scratch scratch;
  const auto talk = [&](const std::string& lines, const std::string& more = "--temperature 0") {
    scratch.write("turns.txt", lines);
    CHECK(shell(scratch, "cd '" + (scratch / "").string() + "' && $qlora chat " + chat_model + " " + more +
                             " --max-new-tokens 8 --json chat.json <turns.txt >out 2>err") == 0);
    return nlohmann::json::parse(contents(scratch / "chat.json")).at("turns");
  };
  const auto plain = talk("Hello\nAnd now?\n");
  REQUIRE(plain.size() == 2);
  // Forgotten turns: the second question is asked as if it were the first.
  const auto alone = talk("And now?\n");
  const auto reset = talk("Hello\n/reset\nAnd now?\n/quit\nNever asked\n");
  REQUIRE(reset.size() == 2);
  CHECK(reset[1] == alone[0]);
  CHECK(reset[1] != plain[1]);
  CHECK(talk("/system Be brief\nHello\n") == talk("Hello\n", "--temperature 0 --system 'Be brief'"));
  CHECK(talk("/system\nHello\n", "--temperature 0 --system 'Be brief'")[0] == plain[0]);
  // Asked again: greedily the same answer in the same place, drawn another one.
  const auto again = talk("Hello\n/retry\nAnd now?\n");
  REQUIRE(again.size() == 3);
  CHECK(again[1] == again[0]);
  CHECK(again[2] == plain[1]);
  const auto drawn = talk("Hello\n/retry\n", "--temperature 2 --top-p 1");
  CHECK(drawn[0] != drawn[1]);
  CHECK(drawn[1].at("user") == "Hello");
  CHECK(talk("/base\nHello\n") == talk("Hello\n"));
  CHECK(talk("/retry\n/scale\n/scale 1x\n/scale nan\n/tuned\n/nothing\nHello\n") == talk("Hello\n"));
  talk("/retry\n/scale 1x\n/tuned\n/nothing\n/help\n");
  const std::string refused = contents(scratch / "err");
  for (const char* part : {"there is no turn to ask again", "\"1x\" is none", "start with --adapter DIR",
                           "\"/nothing\" is no command", "/scale 0.6"}) {
    CHECK(contains(refused, part));
  }
}
