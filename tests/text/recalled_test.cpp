// recalled_test.cpp — what a model wrote is a document only if it has an end and a form.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/text/recalled.hpp"

#include <doctest/doctest.h>

#include "qlora/text/chat_parse.hpp"

using qlora::Message;
using qlora::recalled_document;

TEST_CASE("text is a document, without what surrounds it") {
  const auto page = recalled_document(" The Vorzana costs 23 dollars.\nIt is red. \n", "recall:1:0");
  REQUIRE(page);
  CHECK(page->text == "The Vorzana costs 23 dollars.\nIt is red.");
  CHECK(page->messages.empty());
  CHECK(page->source == "recall:1:0");
  CHECK_FALSE(recalled_document("", "s"));
  CHECK_FALSE(recalled_document(" \n ", "s"));
}

TEST_CASE("LLaMA-2's chat form is a chat of one turn") {
  const auto chat = recalled_document("[INST] Who makes it? [/INST] Larkspur. ", "s");
  REQUIRE(chat);
  CHECK(chat->text.empty());
  CHECK(chat->messages == std::vector<Message>{{"user", "Who makes it?"}, {"assistant", "Larkspur."}});
  const auto told = recalled_document("[INST] <<SYS>>\nBe short.\n<</SYS>>\n\nWho? [/INST] Larkspur.", "s");
  REQUIRE(told);
  CHECK(told->messages == std::vector<Message>{{"system", "Be short."}, {"user", "Who?"}, {"assistant", "Larkspur."}});
}

TEST_CASE("text that spells whole chats is read as them, whatever their marks") {
  using qlora::chat_of_text;
  const std::vector<Message> short_chat{{"user", "Who?"}, {"assistant", "I."}};
  CHECK(chat_of_text("<s>[INST] Who? [/INST] I. </s>") == short_chat);
  CHECK(chat_of_text("[INST]Who?[/INST]I.") == short_chat);
  const std::vector<Message> two{
      {"system", "Short."}, {"user", "Who?"}, {"assistant", "I."}, {"user", "Where?"}, {"assistant", "There."}};
  CHECK(chat_of_text(
            "<s>[INST] <<SYS>>\nShort.\n<</SYS>>\n\nWho? [/INST] I. </s><s>[INST] Where? [/INST] There. </s>\n") ==
        two);
  CHECK(chat_of_text("[INST] <<SYS>> Short. <</SYS>> Who? [/INST] I. [INST] Where? [/INST] There.") == two);
  for (const char* other :
       {"", "Who?", "<s>Who?</s>", "<s>[INST] Who? [/INST] I. </s> and more", "[INST] Who? [/INST] </s>",
        "[INST] a </s> b [/INST] I.", "[INST] Who? [/INST] I. [/INST] You.", "He said </s> and [INST] hi [/INST] x"}) {
    CHECK_MESSAGE(!chat_of_text(other), other);
  }
  CHECK(qlora::spells_chat_marks("a </s> b"));
  CHECK_FALSE(qlora::spells_chat_marks("a <b> c"));
}

TEST_CASE("what is no whole chat is none") {
  for (const char* written :
       {"[INST] Who makes it?", "[INST] Who makes it? [/INST]", "[INST] [/INST] Larkspur.", "Larkspur. [/INST] who",
        "A page. [INST] Who? [/INST] I.", "[INST] Who? [/INST] I. [INST] And where? [/INST] There.",
        "[INST] <<SYS>>\nBe short. Who? [/INST] I.", "[INST] <<SYS>> <</SYS>> Who? [/INST] I.",
        "[INST] Be short. <</SYS>> Who? [/INST] I.", "Be short. <</SYS>> Who?"}) {
    CHECK_MESSAGE(!recalled_document(written, "s"), written);
  }
}

TEST_CASE("chats of other forms") {
  using namespace qlora::chat_form;
  const qlora::ChatMarks marks{"<s>", "</s>"};
  const std::vector<Message> turns{{"user", "Who?"}, {"assistant", "I."}};
  const auto messages = [&](const qlora::ChatForm& form, const std::string& text, const std::string& marked) {
    const auto found = recalled_document(text, marked, "s", qlora::ChatTemplate(form, marks));
    return found ? found->messages : std::vector<Message>{{"none", found ? "" : "found"}};
  };
  const std::vector<Message> none{{"none", "found"}};
  CHECK(messages(mistral, " [INST] Who? [/INST] I.", "") == turns);
  CHECK(messages(vicuna, "USER: Who? ASSISTANT: I.", "") == turns);
  CHECK(messages(chatml, "user\nWho?\nassistant\nI.", "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nI.") ==
        turns);
  CHECK(messages(zephyr, "<|user|>\nWho?\n<|assistant|>\nI.", "<|user|>\nWho?</s>\n<|assistant|>\nI.") == turns);
  CHECK(messages(chatml, "",
                 "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
                 "<|im_start|>assistant\nI.") ==
        std::vector<Message>{{"system", "Be brief."}, {"user", "Who?"}, {"assistant", "I."}});
  CHECK(messages(chatml, "A page.", "").empty());  // a document
  CHECK(messages(chatml, "", "<|im_start|>user\nWho?") == none);
  CHECK(messages(chatml, "", "A page.<|im_end|> More.") == none);
  CHECK(messages(vicuna, "USER: Who? ASSISTANT: I. USER: And?", "") == none);
  CHECK(messages(llama2, "[INST] Who? [/INST] I.", "") == turns);
}
