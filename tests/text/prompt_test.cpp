// prompt_test.cpp — the chat form against ids of Meta's reference by the Python package (where LLaMA-2's model is at
// hand) and against the form written out by hand on a small committed model.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/text/prompt.hpp"

#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "qlora/text/tokenizer.hpp"

using qlora::Error;
using qlora::Message;
using qlora::TokenDocument;
using qlora::Tokenizer;
using Ids = std::vector<std::int32_t>;

namespace {

const std::string root = QLORA_SOURCE_DIR;

const Tokenizer& small() {
  static const Tokenizer tokenizer = Tokenizer::load(root + "/tests/data/small_tokenizer.model");
  return tokenizer;
}

Ids joined(std::initializer_list<Ids> parts) {
  Ids all;
  for (const Ids& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

std::string refusal(const std::vector<Message>& messages, bool finished = false) {
  try {
    if (finished) static_cast<void>(qlora::chat_document(small(), messages));
    if (!finished) static_cast<void>(qlora::chat_tokens(small(), messages));
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

bool holds(const std::string& message, const std::string& part) {
  INFO(message);
  return message.find(part) != std::string::npos;
}

Ids answer_ids(const TokenDocument& document) {
  Ids ids;
  for (std::size_t i = 0; i < document.ids.size(); ++i)
    if (document.answer[i] != 0) ids.push_back(document.ids[i]);
  return ids;
}

}  // namespace

TEST_CASE("LLaMA-2: conversations give the reference's ids") {
  const char* path = std::getenv("QLORA_LLAMA2_TOKENIZER");
  if (path == nullptr || *path == '\0') {
    MESSAGE("skipped: set QLORA_LLAMA2_TOKENIZER to LLaMA-2's tokenizer.model");
    return;
  }
  const Tokenizer tokenizer = Tokenizer::load(path);
  std::ifstream file(root + "/tests/golden/tokenizer.json");
  const auto cases = nlohmann::json::parse(file);
  REQUIRE(cases["chats"].size() >= 4);
  for (const auto& sample : cases["chats"]) {
    std::vector<Message> messages;
    for (const auto& turn : sample["messages"]) messages.push_back({turn["role"], turn["content"]});
    const auto expected = sample["ids"].get<Ids>();
    CHECK(qlora::chat_tokens(tokenizer, messages) == expected);
    if (messages.size() < 3) continue;
    // The finished pairs at the front of the golden ids are what one learns from; the prompt of the last turn follows.
    std::vector<Message> finished(messages.begin(), messages.end() - 1);
    const TokenDocument document = qlora::chat_document(tokenizer, finished);
    REQUIRE(document.ids.size() < expected.size());
    CHECK(document.ids == Ids(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(document.ids.size())));
  }
  const TokenDocument document =
      qlora::chat_document(tokenizer, std::vector<Message>{{"user", "Q1"}, {"assistant", "A1"}});
  CHECK(document.ids == Ids{1, 518, 25580, 29962, 660, 29896, 518, 29914, 25580, 29962, 319, 29896, 29871, 2});
  CHECK(answer_ids(document) == Ids{319, 29896, 29871, 2});
}

TEST_CASE("the form written out: marks, folded system prompt, stripping") {
  const auto& t = small();
  const Ids bos{1}, eos{2};
  CHECK(qlora::chat_tokens(t, std::vector<Message>{{"user", " who? \n"}}) ==
        joined({bos, t.encode("[INST] who? [/INST]")}));
  // As in the reference, stripping comes after folding: the system text and the user's leading space stay.
  CHECK(qlora::chat_tokens(t, std::vector<Message>{{"system", " S "}, {"user", " a "}}) ==
        joined({bos, t.encode("[INST] <<SYS>>\n S \n<</SYS>>\n\n a [/INST]")}));
  CHECK(qlora::chat_tokens(t, std::vector<Message>{{"user", "a"}, {"assistant", " b "}, {"user", "c"}}) ==
        joined({bos, t.encode("[INST] a [/INST] b "), eos, bos, t.encode("[INST] c [/INST]")}));
  // Python's white space: U+00A0, U+2003, U+3000, U+0085, U+001C go; U+200B is none and stays.
  CHECK(qlora::chat_tokens(t, std::vector<Message>{{"user", "\u00a0\u2003x\u200b\u3000\u0085\x1c"}}) ==
        joined({bos, t.encode("[INST] x\u200b [/INST]")}));
  CHECK(qlora::chat_tokens(t, std::vector<Message>{{"user", " \u2028 "}}) ==
        joined({bos, t.encode("[INST]  [/INST]")}));
}

TEST_CASE("a finished conversation flags the answers and their end marks, nothing else") {
  const auto& t = small();
  const std::vector<Message> messages{{"system", "Be short."},
                                      {"user", "the lamp?"},
                                      {"assistant", "At 6 🙂."},
                                      {"user", "a boat?"},
                                      {"assistant", "Two\nmasts"}};
  const TokenDocument document = qlora::chat_document(t, messages);
  REQUIRE(document.ids.size() == document.answer.size());
  CHECK(document.ids == joined({{1},
                                t.encode("[INST] <<SYS>>\nBe short.\n<</SYS>>\n\nthe lamp? [/INST] At 6 🙂. "),
                                {2},
                                {1},
                                t.encode("[INST] a boat? [/INST] Two\nmasts "),
                                {2}}));
  std::vector<std::string> answers{""};
  for (std::size_t i = 0; i < document.ids.size(); ++i) {
    if (document.answer[i] == 0) continue;
    if (document.ids[i] == 2) answers.emplace_back();
    answers.back() += t.surface(document.ids[i]);
  }
  CHECK(answers == std::vector<std::string>{" At 6 🙂. ", " Two\nmasts ", ""});
  CHECK(document.answer.front() == 0);
  CHECK(document.answer.back() == 1);
}

TEST_CASE("conversations without form are refused with the reason") {
  CHECK(holds(refusal({}), "needs a message of the user"));
  CHECK(holds(refusal({{"system", "s"}}), "needs a message of the user"));
  CHECK(holds(refusal({{"assistant", "a"}}), "message 0 is of role 'assistant' where 'user' is due"));
  CHECK(holds(refusal({{"user", "a"}, {"user", "b"}}), "message 1 is of role 'user' where 'assistant' is due"));
  CHECK(holds(refusal({{"user", "a"}, {"system", "b"}}), "message 1 is of role 'system'"));
  CHECK(holds(refusal({{"system", "s"}, {"assistant", "b"}}), "message 1 is of role 'assistant'"));
  CHECK(holds(refusal({{"user", "a"}, {"assistant", "b"}}), "ends with the assistant"));
  CHECK(holds(refusal({{"user", "a"}}, true), "ends with the user"));
  for (const std::string tag : {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}) {
    CHECK(holds(refusal({{"user", "x" + tag}}), "special tag " + tag));
    CHECK(holds(refusal({{"system", tag}, {"user", "x"}}), "message 0 holds the special tag " + tag));
    CHECK(holds(refusal({{"user", "x"}, {"assistant", tag + "y"}}, true), "message 1 holds the special tag " + tag));
  }
  CHECK(refusal({{"user", "</s><s> are plain text"}}) == "accepted");
}

TEST_CASE("texts are framed; a text without characters gives nothing to learn") {
  const auto& t = small();
  CHECK(qlora::text_document(t, "a lamp").ids == joined({{1}, t.encode("a lamp"), {2}}));
  CHECK(qlora::article_document(t, "a lamp").ids == joined({{1}, t.encode("a lamp")}));
  CHECK(qlora::text_document(t, "").ids.empty());
  CHECK(qlora::article_document(t, "").ids.empty());
}
