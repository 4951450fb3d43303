// qlora/text/chat_directory.hpp — the chat template of a model directory: chat_template.jinja, else "chat_template" of
// tokenizer_config.json, as the package transformers reads them. One that writes probe conversations as a built-in form
// does is that form; another is rendered as it is (jinja.hpp).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/text/chat_template.hpp"
#include "qlora/text/jinja.hpp"
#include "qlora/text/tokenizer.hpp"
#include "qlora/text/tokenizer_directory.hpp"

namespace qlora {
inline namespace v0 {
namespace detail {

/// A Jinja template as the chats of one model. What the assistant says is told from the rest by rendering the
/// conversation up to each reply and behind it.
class JinjaChat final : public ChatScript {
 public:
  /// What ends the message of an Error.
  static constexpr const char* cure =
      "; --chat-template NAME chooses a built-in form: llama2, llama3, chatml, mistral, zephyr or vicuna";

  /// `clock` says what time it is, once for each conversation.
  JinjaChat(const std::string& source, jinja::Variables tokens, std::vector<std::string> marks,
            std::function<jinja::Moment()> clock = jinja::now)
      : template_(source),
        id_(sha256(source)),
        tokens_(std::move(tokens)),
        marks_(std::move(marks)),
        clock_(std::move(clock)) {
    learn_stops();
  }

  [[nodiscard]] std::string render(std::span<const Message> messages, bool open) const {
    return render(messages, open, clock_());
  }
  [[nodiscard]] std::string render(std::span<const Message> messages, bool open, const jinja::Moment& moment) const {
    jinja::Value::List list;
    for (const Message& message : messages) {
      list.push_back(jinja::Value::Map{{"role", message.role}, {"content", message.content}});
    }
    jinja::Variables variables = tokens_;
    variables["messages"] = std::move(list);
    variables["add_generation_prompt"] = open;
    variables["tools"] = jinja::None{};
    variables["documents"] = jinja::None{};
    return template_.render(variables, moment);
  }

  [[nodiscard]] ChatText write(std::span<const Message> messages, bool open) const override {
    const std::vector<std::string_view> tags(marks_.begin(), marks_.end());
    check_tags(messages, tags);
    check_turns(messages, open);
    ChatText out;
    try {
      const jinja::Moment moment = clock_();
      out.text = render(messages, open, moment);
      for (std::size_t i = 0; i < messages.size(); ++i) {
        if (messages[i].role == "assistant") out.replies.push_back(reply(messages, i, out.text, moment));
      }
    } catch (const Error& error) {
      throw Error(concat(error.what(), cure));
    }
    return out;
  }
  [[nodiscard]] ChatStops stops() const override { return stops_; }
  [[nodiscard]] std::vector<std::string> tags() const override { return marks_; }
  [[nodiscard]] std::string id() const override { return id_; }

 private:
  /// The earliest mark in text[from, ...): where it begins, and its length; length 0 without any.
  [[nodiscard]] std::pair<std::size_t, std::size_t> first_mark(std::string_view text, std::size_t from) const {
    std::pair<std::size_t, std::size_t> best{text.size(), 0};
    for (const std::string& mark : marks_) {
      const std::size_t at = text.find(mark, from);
      if (at < best.first || (at == best.first && mark.size() > best.second)) best = {at, mark.size()};
    }
    return best;
  }
  /// Where the reply messages[index] stands in `text`, the whole conversation.
  [[nodiscard]] TextRange reply(std::span<const Message> messages, std::size_t index, std::string_view text,
                                const jinja::Moment& moment) const {
    const std::string before = render(messages.first(index), true, moment);
    const std::string behind = render(messages.first(index + 1), false, moment);
    const std::string_view said = stripped(messages[index].content);
    const std::size_t at = behind.find(said, before.size());
    if (!behind.starts_with(before) || at == std::string::npos) {
      throw Error(
          "the chat template does not write a reply behind what the model is given to answer, so that it "
          "cannot be told what is to be learned");
    }
    const auto [mark, length] = first_mark(behind, at + said.size());
    const std::size_t end = length == 0 ? behind.size() : mark + length;
    if (!text.starts_with(std::string_view(behind).substr(0, end))) {
      throw Error(
          "the chat template writes a reply in another way once the conversation continues, so it cannot be "
          "learned as it will be written");
    }
    return {before.size(), end};
  }
  /// Finds the marks behind a reply and before the user's next turn.
  void learn_stops() {
    const std::string asked = "first question", answer = "first answer", next = "second question";
    std::string text;
    try {
      text = render(std::vector<Message>{{"user", asked}, {"assistant", answer}, {"user", next}}, true);
    } catch (const Error&) {
      return;  // write() says why
    }
    const std::size_t at = text.find(answer), turn = text.rfind(next);
    if (at == std::string::npos || turn == std::string::npos || turn < at) return;
    const std::size_t behind = at + answer.size();
    const auto [mark, length] = first_mark(text, behind);
    if (length > 0 && mark < turn) stops_.marks.push_back(text.substr(mark, length));
    const std::size_t from = mark < turn ? mark + length : behind;
    const auto [second, second_length] = first_mark(text, from);
    if (second_length > 0 && second < turn) {
      stops_.marks.push_back(text.substr(second, second_length));
    } else {
      stops_.turn = std::string(stripped(std::string_view(text).substr(from, turn - from)));
    }
  }

  jinja::Template template_;
  std::string id_;
  jinja::Variables tokens_;
  std::vector<std::string> marks_;
  std::function<jinja::Moment()> clock_;
  ChatStops stops_;
};

/// The form that writes what the template writes, if one does.
[[nodiscard]] inline const ChatForm* recognised(const JinjaChat& chat, const ChatMarks& marks) {
  const Message system{"system", " Be brief.\n"}, asked{"user", "\tWho? "}, said{"assistant", " He \n"},
      again{"user", "Why?"};
  const std::array<std::pair<std::vector<Message>, bool>, 6> probes{{{{asked}, true},
                                                                     {{system, asked}, true},
                                                                     {{asked, said}, false},
                                                                     {{asked, said, again}, true},
                                                                     {{system, asked, said, again}, true},
                                                                     {{system, asked, said, again, said}, false}}};
  for (const ChatForm& form : chat_form::all) {
    try {
      if (std::all_of(probes.begin(), probes.end(), [&](const auto& probe) {
            return chat.render(probe.first, probe.second) == chat_text(form, marks, probe.first, probe.second).text;
          }))
        return &form;
    } catch (const Error&) {  // a template, or a form, that does not write one of them
    }
  }
  return nullptr;
}

/// The text of the directory's template; nothing where there is none.
[[nodiscard]] inline std::optional<std::string> template_text(const std::filesystem::path& dir, const Json& config) {
  constexpr std::size_t max_bytes = std::size_t{1} << 20;
  const std::filesystem::path file = dir / "chat_template.jinja";
  if (exists(file)) {
    std::string text = read_text(file, max_bytes);
    refuse_lfs_pointer(text, file.string());
    return text;
  }
  const std::string where = (dir / "tokenizer_config.json").string();
  const Json* value = json_find(config, "chat_template");
  if (value == nullptr) return std::nullopt;
  if (!value->is_array()) return json_string(config, "chat_template", where);
  for (const Json& entry : *value) {  // several by name
    if (json_string(entry, "name", where) == "default") return json_string(entry, "template", where);
  }
  throw Error(where + ": chat_template holds several templates, none of which is named \"default\"");
}

}  // namespace detail

/// How the model of a directory, whose tokenizer this is, writes conversations. `name`: a built-in form instead of the
/// directory's template. A directory without a template has LLaMA-2's form if its tokenizer begins a text with "<s>".
/// A template that cannot be used is an Error when a conversation is written, since a model may be asked for
/// completions alone. Throws Error (usage) for an unknown name, (input) for a tokenizer_config.json that cannot be
/// read.
[[nodiscard]] inline ChatTemplate chat_template_of(const std::filesystem::path& dir, const Tokenizer& tokenizer,
                                                   std::string_view name = {}) {
  const std::filesystem::path file = dir / "tokenizer_config.json";
  const Json config = detail::tokenizer_config(dir);
  jinja::Variables tokens;
  for (const char* key : {"bos_token", "eos_token", "unk_token", "pad_token"}) {
    if (auto token = detail::named_token(config, key, file.string())) tokens[key] = std::move(*token);
  }
  const auto mark = [&](const char* key, std::int32_t id) {
    if (id >= 0 && !tokens.contains(key)) tokens[key] = tokenizer.piece(id);
    const auto found = tokens.find(key);
    return found == tokens.end() ? std::string() : *found->second.text();
  };
  const ChatMarks marks{mark("bos_token", tokenizer.bos()), mark("eos_token", tokenizer.eos())};
  if (!name.empty()) return ChatTemplate(chat_form_named(name), marks);
  const std::optional<std::string> source = detail::template_text(dir, config);
  if (!source) {
    if (tokenizer.bos() >= 0 && tokenizer.piece(tokenizer.bos()) == "<s>")
      return ChatTemplate(chat_form::llama2, marks);
    return ChatTemplate::none(concat(dir.string(), ": the model has no chat template", detail::JinjaChat::cure));
  }
  try {
    auto chat = std::make_shared<const detail::JinjaChat>(*source, std::move(tokens), tokenizer.marks());
    if (const ChatForm* form = detail::recognised(*chat, marks)) return ChatTemplate(*form, marks);
    return ChatTemplate(std::move(chat));
  } catch (const Error& error) {
    return ChatTemplate::none(concat(dir.string(), ": ", error.what(), detail::JinjaChat::cure));
  }
}

/// How the model of a directory writes conversations, in words: the name of a form, that its own template is rendered,
/// or why there is none. Throws nothing for files that cannot be read: the words say so.
[[nodiscard]] inline std::string chat_description(const std::filesystem::path& dir) {
  try {
    const Tokenizer tokenizer = Tokenizer::load(tokenizer_file(dir));
    const ChatTemplate chat = chat_template_of(dir, tokenizer);
    if (!chat.why_not().empty()) return "none: " + chat.why_not();
    if (chat.form()) return std::string(chat.name());
    std::vector<Message> messages{{"user", "first question"}};
    static_cast<void>(chat.write(messages, true));
    messages.push_back({"assistant", "first answer"});
    try {
      static_cast<void>(chat.write(messages, false));
    } catch (const Error& error) {
      return concat("its own template, rendered; conversations cannot be learned: ", error.what());
    }
    return "its own template, rendered";
  } catch (const Error& error) {
    return concat("none: ", error.what());
  }
}

}  // namespace v0
}  // namespace qlora
