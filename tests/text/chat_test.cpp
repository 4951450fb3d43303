// chat_test.cpp — chat templates against the packages transformers and jinja2 (tests/data/make_chats.py): ids and
// labelled tokens of 1,000 random conversations per form, texts of templates of other kinds, and what is refused.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>

#include "qlora/text/chat_directory.hpp"
#include "qlora/text/prompt.hpp"
#include "support/scratch.hpp"

using qlora::ChatTemplate;
using qlora::Error;
using qlora::Json;
using qlora::Message;
using qlora::Tokenizer;
using Ids = std::vector<std::int32_t>;

namespace {

const std::string data = std::string(QLORA_SOURCE_DIR) + "/tests/data/";

Json read(const std::string& name) {
  std::ifstream file(data + name, std::ios::binary);
  REQUIRE(file.good());
  return Json::parse(std::string(std::istreambuf_iterator<char>(file), {}));
}
const Json& chats() {
  static const Json parsed = read("chats.json");
  return parsed;
}
const Json& kinds() {
  static const Json parsed = read("tokenizers.json");
  return parsed;
}

bool can_read(const std::string& kind) {
#ifdef QLORA_WITH_PCRE2
  (void)kind;
  return true;
#else
  return kind.starts_with("metaspace") || kind == "llama2_prepend";
#endif
}

std::vector<Message> messages_of(const Json& list) {
  std::vector<Message> out;
  for (const Json& entry : list) out.push_back({entry.at("role"), entry.at("content")});
  return out;
}

/// The numbers and conversations of make_chats.py.
struct Random {
  std::uint64_t state = 1;
  std::uint64_t below(std::uint64_t n) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return (state >> 33U) % n;
  }
  std::string text(const std::vector<std::string>& fragments, bool plain) {
    std::string out = plain ? "Well" : "";
    for (std::uint64_t words = below(12); words > 0; --words) out += fragments[below(fragments.size())];
    return out;
  }
  std::vector<Message> conversation(const std::vector<std::string>& fragments) {
    std::vector<Message> out;
    if (below(3) == 0) out.push_back({"system", text(fragments, false)});
    for (std::uint64_t turns = 1 + below(3); turns > 0; --turns) {
      out.push_back({"user", text(fragments, false)});
      out.push_back({"assistant", text(fragments, true)});
    }
    return out;
  }
};

std::string hashed(const Ids& ids, const std::vector<std::uint8_t>* flags) {
  std::uint64_t value = 14695981039346656037U;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto number =
        static_cast<std::uint64_t>(ids[i]) * (flags != nullptr ? 2 : 1) + (flags != nullptr ? (*flags)[i] : 0);
    value = (value ^ number) * 1099511628211U;
  }
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "%08x", static_cast<unsigned>(value >> 32U));
  return text.data();
}

/// Writes a model directory's tokenizer: one of tokenizers.json, with the marks of a form.
void write_tokenizer(const test::Scratch& dir, const std::string& kind, const Json& marks, const std::string& bos,
                     const std::string& eos, const std::string& chat_template) {
  Json file = kinds().at(kind).at("file");
  int size = 0;
  for (const auto& [piece, id] : file["model"]["vocab"].items()) size = std::max(size, id.get<int>() + 1);
  for (const Json& token : file["added_tokens"]) size = std::max(size, token["id"].get<int>() + 1);
  for (const Json& mark : marks) {
    file["added_tokens"].push_back({{"id", size++}, {"content", mark}, {"special", true}, {"normalized", false}});
  }
  std::ofstream(dir / "tokenizer.json") << file.dump();
  Json config{{"bos_token", bos}, {"eos_token", eos}};
  if (!chat_template.empty()) config["chat_template"] = chat_template;
  std::ofstream(dir / "tokenizer_config.json") << config.dump();
}

}  // namespace

TEST_CASE("ids and labels are those of transformers, for each form") {
  const auto fragments = chats().at("fragments").get<std::vector<std::string>>();
  for (const Json& chat : chats().at("forms")) {
    const auto form = chat.at("form").get<std::string>();
    const auto kind = chat.at("tokenizer").get<std::string>();
    CAPTURE(form);
    CAPTURE(kind);
    if (!can_read(kind)) continue;
    const test::Scratch dir;
    write_tokenizer(dir, kind, chat.at("marks"), chat.at("bos"), chat.at("eos"), chat.at("template"));
    const Tokenizer tokenizer = Tokenizer::load(dir / "tokenizer.json");
    const ChatTemplate chosen = qlora::chat_template_of(dir / "", tokenizer);
    REQUIRE(chosen.name() == form);  // recognised
    const ChatTemplate named = qlora::chat_template_of(dir / "", tokenizer, form);
    for (const Json& shown : chat.at("shown")) {
      std::vector<Message> messages = messages_of(shown.at("messages"));
      const qlora::TokenDocument whole = qlora::chat_document(tokenizer, chosen, messages);
      CHECK(whole.ids == shown.at("finished").get<Ids>());
      CHECK(whole.answer == shown.at("answer").get<std::vector<std::uint8_t>>());
      messages.pop_back();
      CHECK(qlora::chat_tokens(tokenizer, named, messages) == shown.at("open").get<Ids>());
    }
    // The template itself, rendered as it is, must give the same.
    qlora::jinja::Variables tokens{{"bos_token", chat.at("bos").get<std::string>()},
                                   {"eos_token", chat.at("eos").get<std::string>()}};
    const ChatTemplate own(std::make_shared<const qlora::detail::JinjaChat>(chat.at("template").get<std::string>(),
                                                                            tokens, tokenizer.marks()));
    Random random;
    int compared = 0;
    for (std::size_t i = 0; i < 1000; ++i) {
      const auto tagged = [&](const Message& message) {
        const auto tags = chosen.tags();
        return std::any_of(tags.begin(), tags.end(),
                           [&](const std::string& tag) { return message.content.find(tag) != std::string::npos; });
      };
      std::vector<Message> messages = random.conversation(fragments);
      while (std::any_of(messages.begin(), messages.end(), tagged)) messages = random.conversation(fragments);
      const qlora::TokenDocument whole = qlora::chat_document(tokenizer, chosen, messages);
      const bool same_labels = i % 50 != 0 || qlora::chat_document(tokenizer, own, messages).answer == whole.answer;
      messages.pop_back();
      const bool same =
          hashed(qlora::chat_tokens(tokenizer, chosen, messages), nullptr) == chat.at("open")[i].get<std::string>() &&
          hashed(whole.ids, &whole.answer) == chat.at("finished")[i].get<std::string>() && same_labels;
      CAPTURE(i);
      REQUIRE(same);
      ++compared;
    }
    CHECK(compared == 1000);
  }
}

TEST_CASE("templates give the texts of jinja2, or are refused where it refuses") {
  std::vector<std::vector<Message>> dialogues;
  for (const Json& chat : chats().at("dialogues")) dialogues.push_back(messages_of(chat));
  const qlora::jinja::Variables tokens{{"bos_token", "<s>"}, {"eos_token", "</s>"}};
  int texts = 0, refusals = 0;
  for (const Json& element : chats().at("templates")) {
    CAPTURE(element.at("name").get<std::string>());
    const qlora::detail::JinjaChat chat(element.at("template"), tokens, {"</s>"}, [] {
      qlora::jinja::Moment moment = qlora::jinja::utc_moment(1720069567);  // 2024-07-04 05:06:07
      moment.microseconds = 89;
      return moment;
    });
    for (std::size_t i = 0; i < 2 * dialogues.size(); ++i) {
      CAPTURE(i);
      const Json& expected = element.at("texts")[i];
      if (expected.is_null()) {
        CHECK_THROWS_AS(static_cast<void>(chat.render(dialogues[i / 2], i % 2 == 0)), Error);
        ++refusals;
      } else {
        CHECK(chat.render(dialogues[i / 2], i % 2 == 0) == expected.get<std::string>());
        ++texts;
      }
    }
  }
  CHECK(texts > 120);
  CHECK(refusals > 20);
}

namespace {

/// A directory with a byte-level tokenizer that has ChatML's marks.
struct Directory {
  test::Scratch dir;
  explicit Directory(const std::string& chat_template = "") {
    write_tokenizer(dir, "gpt2", {"<|im_start|>", "<|im_end|>"}, "<|begin|>", "<|end|>", chat_template);
  }
  [[nodiscard]] Tokenizer tokenizer() const { return Tokenizer::load(dir / "tokenizer.json"); }
  [[nodiscard]] ChatTemplate chat(const std::string& name = "") const {
    return qlora::chat_template_of(dir / "", tokenizer(), name);
  }
};

const std::vector<Message> question{{"user", "Who?"}};

std::string template_of(const std::string& name) {
  for (const char* list : {"forms", "templates"}) {
    for (const Json& chat : chats().at(list)) {
      if (chat.value("form", chat.value("name", "")) == name) return chat.at("template");
    }
  }
  return "";
}

std::string refusal(const ChatTemplate& chat, const std::vector<Message>& messages, bool open = true) {
  try {
    static_cast<void>(chat.write(messages, open));
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("a directory's template: where it stands, what it is called, where replies end") {
  if (!can_read("gpt2")) return;
  const Directory chatml(template_of("chatml"));
  CHECK(chatml.chat().name() == "chatml");
  CHECK(chatml.chat().fingerprint() == "chatml");
  CHECK(chatml.chat().stops().marks == std::vector<std::string>{"<|im_end|>", "<|im_start|>", "<|begin|>"});
  CHECK(chatml.chat("vicuna").name() == "vicuna");
  CHECK_THROWS_WITH_AS(static_cast<void>(chatml.chat("gpt")), doctest::Contains("llama2, llama3, chatml"), Error);

  const Directory own(template_of("qwen"));
  CHECK(own.chat().name() == "own");
  CHECK(own.chat().fingerprint().size() == 64);
  CHECK(own.chat().stops().marks == std::vector<std::string>{"<|im_end|>", "<|im_start|>"});
  std::ofstream(own.dir / "chat_template.jinja") << template_of("chatml");  // rules over tokenizer_config.json
  CHECK(own.chat().name() == "chatml");
  std::ofstream(own.dir / "chat_template.jinja") << "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n";
  CHECK_THROWS_WITH_AS(static_cast<void>(own.chat()), doctest::Contains("is a Git LFS pointer"), Error);

  const Directory several;
  Json config{{"eos_token", "<|end|>"}};
  config["chat_template"] = {{{"name", "tool"}, {"template", "x"}},
                             {{"name", "default"}, {"template", template_of("chatml")}}};
  std::ofstream(several.dir / "tokenizer_config.json") << config.dump();
  CHECK(several.chat().name() == "chatml");

  // In words, as `qlora info` has them.
  const auto described = [](const Directory& directory) { return qlora::chat_description(directory.dir / ""); };
  CHECK(described(chatml) == "chatml");
  CHECK(described(Directory(template_of("llama31"))) == "its own template, rendered");
  CHECK(described(Directory(template_of("qwen"))).find("its own template, rendered; conversations cannot be le") == 0);
  CHECK(described(Directory("{% include 'x' %}")).find("the statement 'include'") != std::string::npos);
  CHECK(described(Directory("{{ messages | sort }}")).find("none: the chat template has the filter 'sort'") == 0);
  CHECK(described(Directory()).find("none: ") == 0);
  CHECK(described(Directory()).find("the model has no chat template") != std::string::npos);
  const Directory damaged;
  std::ofstream(damaged.dir / "tokenizer.json") << "{";
  CHECK(described(damaged).find("not valid JSON") != std::string::npos);

  // A text between turns where there is no mark.
  const Directory text(
      "{% for m in messages %}{{ '### ' + m.role + ': ' + m.content + '\\n' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '### assistant: ' }}{% endif %}");
  CHECK(text.chat().stops().marks.empty());
  CHECK(text.chat().stops().turn == "### user:");
}

TEST_CASE("what cannot be written is refused with the reason and the cure, when a conversation is written") {
  if (!can_read("gpt2")) return;
  const auto holds = [](const std::string& message, const char* part) {
    CAPTURE(message);
    CHECK(message.find(part) != std::string::npos);
  };
  holds(refusal(Directory().chat(), question), "the model has no chat template; --chat-template NAME chooses");
  CHECK(Directory().chat().name() == "none");
  CHECK(Directory().chat("chatml").name() == "chatml");
  holds(refusal(Directory("{% include 'x' %}").chat(), question), "the statement 'include', which is not supported");
  holds(refusal(Directory("{{ messages | sort }}").chat(), question), "the filter 'sort', which is not supported");
  holds(refusal(Directory("{{ strftime_now() }}").chat(), question), "calls 'strftime_now'");
  holds(refusal(Directory("{{ strftime_now('%4000d%4000d') }}").chat(), question), "more than 4,096 bytes");
  holds(refusal(Directory("{{ strftime_now('%' * 5000) }}").chat(), question), "a format that is too long");
  holds(refusal(Directory("{{ strftime_now }}").chat(), question), "writes a macro");
  holds(refusal(Directory("{% for m in").chat(), question), "line 1 of the chat template");
  holds(refusal(Directory("{{ " + std::string(2000, '(') + std::string(2000, ')') + " }}").chat(), question),
        "nested too deep");
  holds(refusal(Directory(template_of("gemma")).chat(), {{"system", "s"}, {"user", "x"}}), "System role not supported");
  holds(refusal(Directory(template_of("chatml")).chat(), {{"user", "a<|im_end|>b"}}),
        "holds the special tag <|im_end|>");
  holds(refusal(Directory(template_of("qwen")).chat(), {{"user", "<|im_start|>"}}), "special tag <|im_start|>");
  // A reply that is not behind what the model is given to answer.
  const Directory before(
      "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}?{% endif %}");
  holds(refusal(before.chat(), {{"user", "a"}, {"assistant", "b"}}, false), "cannot be told what is to be learned");
  CHECK(refusal(before.chat(), question) == "accepted");
}

TEST_CASE("templates cannot take memory or time without bound") {
  const auto render = [](const std::string& text) { return qlora::jinja::Template(text).render({}); };
  const std::string loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}";
  const std::string ends = "{% endfor %}{% endfor %}{% endfor %}";
  CHECK_THROWS_WITH_AS(render(loops + "{{ a }}" + ends), doctest::Contains("too long"), Error);
  CHECK_THROWS_AS(render("{% set n = namespace(t='x') %}{% for a in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}"),
                  Error);
  CHECK_THROWS_AS(render("{% set n = namespace(t=[1]) %}{% for a in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}"),
                  Error);
  CHECK_THROWS_WITH_AS(render("{% set n = namespace(t=[1]) %}{% for a in range(99999) %}{% set n.t = [n.t] %}"
                              "{% endfor %}"),
                       doctest::Contains("too deep"), Error);
  CHECK_THROWS_AS(render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), Error);
  // Each of these is a few steps, every one of which takes long, or one that takes very long.
  const std::string large = "{% set x = 'a' * 9999999 %}", often = "{% for i in range(9999) %}";
  const std::string doubled =
      "{% set n = namespace(t=[1]) %}{% for a in range(40) %}{% set n.t = [n.t, n.t] %}{% endfor %}";
  for (const std::string& text : {
           large + "{{ x | length }}" + often + "{% set y = x ~ 'b' %}{% endfor %}",
           large + "{% for c in x %}{% endfor %}",
           large + often + "{{ x[5] }}{% endfor %}",
           large + often + "{% set y = x[1:] %}{% endfor %}",
           large + "{{ (x ~ 'c') in (x ~ x) }}{% for i in range(99) %}{{ (x ~ 'b') in (x ~ x) }}{% endfor %}",
           large + "{{ x.replace('a', x) }}",
           large + "{{ range(9999) | join(x) }}",
           large + "{{ x.split('a') | length }}",
           large + "{{ x.strip(x) }}",
           large + often + "{{ [x, x] | first | length }}{% endfor %}",
           large + often + "{% set y = {'a': x}.a %}{% endfor %}",
           large + "{% macro f(a) %}{% endmacro %}" + often + "{{ f(x) }}{% endfor %}",
           often + often + "{% set y = range(99999) %}{% endfor %}{% endfor %}",
           doubled + "{{ n.t | tojson }}",
           doubled + "{{ n.t == n.t }}",
           doubled + "{{ n.t in [n.t] }}",
           doubled + "{{ n | tojson }}",
       }) {
    CAPTURE(text);
    CHECK_THROWS_AS(render(text), Error);
  }
  CHECK_THROWS_AS(render("{{ range(0, 9, 99999999) | join }}{{ range(-99999999, 9) }}"), Error);
  CHECK(render("{{ 'abc'[::99999999] }}{{ 'abc'[::-99999999] }}") == "ac");
  CHECK(render("{{ range(0, 9, 99999999) | join }}") == "0");
}

TEST_CASE("a long conversation is written") {
  // 2,000 turns of 2,000 characters, by a template that looks at other messages in each of them.
  const std::string source =
      "{% for m in messages %}{% if messages[0]['role'] == 'user' and messages | length > 1 and m == "
      "messages[loop.index0] "
      "and messages[-1] is defined and 'x' not in m.content %}{{ m.role ~ ': ' ~ m['content'] | trim ~ '</s>' }}"
      "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
  const qlora::detail::JinjaChat chat(source, {}, {"</s>"});
  std::vector<Message> messages;
  std::string expected;
  for (int i = 0; i < 1999; ++i) {
    messages.push_back({i % 2 == 0 ? "user" : "assistant", std::string(2000, 'e')});
    expected += messages.back().role + ": " + messages.back().content + "</s>";
  }
  CHECK((chat.render(messages, true) == expected + "assistant: "));
}

TEST_CASE("LLaMA-2's two tokenizer files give the same conversations, whatever a file says of its marks") {
  const auto fragments = chats().at("fragments").get<std::vector<std::string>>();
  const Tokenizer model = Tokenizer::load(data + "small_tokenizer.model");
  for (const bool normalized : {false, true}) {
    const test::Scratch dir;
    Json file = kinds().at("llama2_prepend").at("file");
    for (Json& token : file["added_tokens"]) token["normalized"] = normalized;  // true in files of older packages
    std::ofstream(dir / "tokenizer.json") << file.dump();
    std::ofstream(dir / "tokenizer_config.json") << R"({"eos_token": "</s>"})";
    const Tokenizer json = Tokenizer::load(qlora::tokenizer_file(dir / ""));
    Random random;
    for (int i = 0; i < 200; ++i) {
      const std::vector<Message> messages = random.conversation(fragments);
      CAPTURE(i);
      const ChatTemplate form;
      const qlora::TokenDocument ours = qlora::chat_document(model, form, messages);
      const qlora::TokenDocument theirs = qlora::chat_document(json, form, messages);
      REQUIRE(ours.ids == theirs.ids);
      REQUIRE(ours.answer == theirs.answer);
    }
  }
  // A mark that a message spells is text, whichever file reads it.
  const std::vector<Message> spelled{{"user", "a <s> b </s>"}, {"assistant", "</s>"}};
  const qlora::TokenDocument ids = qlora::chat_document(model, spelled);
  CHECK(std::count(ids.ids.begin(), ids.ids.end(), model.bos()) == 1);
  CHECK(std::count(ids.ids.begin(), ids.ids.end(), model.eos()) == 1);
}

TEST_CASE("a template that asks for the date writes a conversation at one time, which the environment may fix") {
  int asked = 0;
  const std::string source =
      "{% for m in messages %}{{ strftime_now('%S') ~ m.role ~ ':' ~ m.content ~ '</s>' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ strftime_now('%S') ~ 'assistant:' }}{% endif %}";
  const qlora::detail::JinjaChat chat(source, {}, {"</s>"}, [&] { return qlora::jinja::utc_moment(asked++); });
  const int before = asked;
  const qlora::ChatText text = chat.write(std::vector<Message>{{"user", "a"}, {"assistant", "b"}}, false);
  CHECK(asked == before + 1);
  const std::string second = "0" + std::to_string(before);
  CHECK(text.text == second + "user:a</s>" + second + "assistant:b</s>");
  REQUIRE(text.replies.size() == 1);
  CHECK(text.text.substr(text.replies[0].begin) == "b</s>");

  const char* given = std::getenv("SOURCE_DATE_EPOCH");
  const std::string old = given == nullptr ? "" : given;
  setenv("SOURCE_DATE_EPOCH", "1720069567", 1);
  CHECK(qlora::jinja::time_text("%Y-%m-%dT%H:%M:%S.%f", qlora::jinja::now()) == "2024-07-04T05:06:07.000000");
  for (const char* wrong : {"", "yesterday", "-1", "999999999999"}) {
    CAPTURE(wrong);
    setenv("SOURCE_DATE_EPOCH", wrong, 1);
    CHECK_THROWS_AS(static_cast<void>(qlora::jinja::now()), Error);
  }
  unsetenv("SOURCE_DATE_EPOCH");
  const std::time_t now = std::time(nullptr);
  std::tm of = qlora::jinja::now().time;
  of.tm_isdst = -1;
  CHECK(std::difftime(std::mktime(&of), now) < 3600);
  CHECK(std::difftime(now, std::mktime(&of)) < 3600);
  if (given != nullptr) setenv("SOURCE_DATE_EPOCH", old.c_str(), 1);
}
