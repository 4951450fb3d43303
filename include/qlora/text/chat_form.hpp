// qlora/text/chat_form.hpp — the forms in which published chat models take turns, as values.
//   llama2   <s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST] {reply} </s><s>[INST] ...
//   llama3   <|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|>...
//   chatml   <|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{reply}<|im_end|>\n
//   mistral  <s> [INST] {system}\n\n{user} [/INST] {reply}</s> [INST] ...
//   zephyr   <|user|>\n{user}</s>\n<|assistant|>\n{reply}</s>\n
//   vicuna   <s>{system} USER: {user} ASSISTANT: {reply}</s>USER: ...
// What may not change: white space. It decides token ids, and a tuned model has only ever seen one form.
// Reference: tests/text/chat_test.cpp, ids of the package transformers.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/chat_text.hpp"
#include "qlora/text/message.hpp"
#include "qlora/text/white_space.hpp"

namespace qlora {
inline namespace v0 {

/// A chat form. In the texts "{bos}" and "{eos}" stand for the tokenizer's marks.
struct ChatForm {
  std::string_view name;                   ///< "llama2"
  std::string_view begin{};                ///< of a conversation
  std::string_view system_open{};          ///< before the system prompt
  std::string_view system_close{};         ///< behind it
  std::string_view user_open{};            ///< before what the user says
  std::string_view user_close{};           ///< behind it
  std::string_view reply_open{};           ///< what a model is given before it answers
  std::string_view reply_lead{};           ///< what it writes before its answer
  std::string_view reply_end{};            ///< what it writes behind its answer; the last thing that is learned
  std::string_view reply_close{};          ///< before the next turn
  bool system_in_user = false;             ///< the system prompt is part of the user's first turn
  bool strips = false;                     ///< white space around what is said goes
  std::string_view default_system{};       ///< of conversations without a system prompt; empty: none
  std::array<std::string_view, 4> tags{};  ///< no message may contain one; those not used are empty
  std::string_view end_mark{};             ///< the token that ends a reply
  std::string_view turn_mark{};            ///< the beginning of a user's turn, where a reply must end as well
};

/// The forms that are built in.
namespace chat_form {
/// LLaMA-2's chat models, by Meta's reference code. A finished turn ends with an end mark, the next begins anew.
inline constexpr ChatForm llama2{.name = "llama2",
                                 .system_open = "<<SYS>>\n",
                                 .system_close = "\n<</SYS>>\n\n",
                                 .user_open = "{bos}[INST] ",
                                 .user_close = " [/INST]",
                                 .reply_lead = " ",
                                 .reply_end = " {eos}",
                                 .system_in_user = true,
                                 .strips = true,
                                 .tags = {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"},
                                 .end_mark = "{eos}",
                                 .turn_mark = "[INST]"};
/// Llama 3's instruct models.
inline constexpr ChatForm llama3{.name = "llama3",
                                 .begin = "{bos}",
                                 .system_open = "<|start_header_id|>system<|end_header_id|>\n\n",
                                 .system_close = "<|eot_id|>",
                                 .user_open = "<|start_header_id|>user<|end_header_id|>\n\n",
                                 .user_close = "<|eot_id|>",
                                 .reply_open = "<|start_header_id|>assistant<|end_header_id|>\n\n",
                                 .reply_end = "<|eot_id|>",
                                 .strips = true,
                                 .tags = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
                                 .end_mark = "<|eot_id|>",
                                 .turn_mark = "<|start_header_id|>"};
/// ChatML: Qwen, SmolLM2 and many others, without a system prompt of their own.
inline constexpr ChatForm chatml{.name = "chatml",
                                 .system_open = "<|im_start|>system\n",
                                 .system_close = "<|im_end|>\n",
                                 .user_open = "<|im_start|>user\n",
                                 .user_close = "<|im_end|>\n",
                                 .reply_open = "<|im_start|>assistant\n",
                                 .reply_end = "<|im_end|>",
                                 .reply_close = "\n",
                                 .tags = {"<|im_start|>", "<|im_end|>"},
                                 .end_mark = "<|im_end|>",
                                 .turn_mark = "<|im_start|>"};
/// Mistral 7B Instruct, as in its files of October 2024.
inline constexpr ChatForm mistral{.name = "mistral",
                                  .begin = "{bos}",
                                  .system_close = "\n\n",
                                  .user_open = " [INST] ",
                                  .user_close = " [/INST]",
                                  .reply_lead = " ",
                                  .reply_end = "{eos}",
                                  .system_in_user = true,
                                  .tags = {"[INST]", "[/INST]"},
                                  .end_mark = "{eos}",
                                  .turn_mark = "[INST]"};
/// Zephyr and TinyLlama's chat models.
inline constexpr ChatForm zephyr{.name = "zephyr",
                                 .system_open = "<|system|>\n",
                                 .system_close = "{eos}\n",
                                 .user_open = "<|user|>\n",
                                 .user_close = "{eos}\n",
                                 .reply_open = "<|assistant|>\n",
                                 .reply_end = "{eos}",
                                 .reply_close = "\n",
                                 .tags = {"<|system|>", "<|user|>", "<|assistant|>"},
                                 .end_mark = "{eos}",
                                 .turn_mark = "<|user|>"};
/// Vicuna 1.1 to 1.5, as FastChat writes it.
inline constexpr ChatForm vicuna{
    .name = "vicuna",
    .begin = "{bos}",
    .system_close = " ",
    .user_open = "USER: ",
    .user_close = " ",
    .reply_open = "ASSISTANT:",
    .reply_lead = " ",
    .reply_end = "{eos}",
    .default_system =
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions.",
    .tags = {"USER:", "ASSISTANT:"},
    .end_mark = "{eos}",
    .turn_mark = "USER:"};

/// All of them.
inline constexpr std::array all{llama2, llama3, chatml, mistral, zephyr, vicuna};
}  // namespace chat_form

/// The marks of LLaMA-2's chat form; no message may contain one.
inline constexpr std::array<std::string_view, 4> chat_tags = chat_form::llama2.tags;

/// How a tokenizer spells its begin and end marks; empty where it has none.
struct ChatMarks {
  std::string bos;  ///< "<s>"
  std::string eos;  ///< "</s>"
};

/// Checks who speaks: an optional system prompt, then user and assistant in turns. Returns whether the user speaks
/// last. Throws Error.
inline bool check_roles(std::span<const Message> messages) {
  const std::size_t first = !messages.empty() && messages[0].role == "system" ? 1 : 0;
  if (messages.size() == first) throw Error("a conversation needs a message of the user");
  for (std::size_t i = first; i < messages.size(); ++i) {
    const std::string_view wanted = (i - first) % 2 == 0 ? "user" : "assistant";
    if (messages[i].role != wanted)
      throw Error(concat("message ", i, " is of role '", messages[i].role, "' where '", wanted,
                         "' is due; user and assistant take turns, an optional system message comes first"));
  }
  return (messages.size() - first) % 2 == 1;
}
/// The same, where the user must be last and is answered (`open`), or where the assistant must be.
inline void check_turns(std::span<const Message> messages, bool open) {
  const bool user_is_last = check_roles(messages);
  if (open && !user_is_last) throw Error("the conversation ends with the assistant: nothing is left to answer");
  if (!open && user_is_last) throw Error("the conversation ends with the user: there is no answer to learn");
}

/// Throws Error when a message contains one of the tags.
inline void check_tags(std::span<const Message> messages, std::span<const std::string_view> tags) {
  for (std::size_t i = 0; i < messages.size(); ++i)
    for (const std::string_view tag : tags)
      if (!tag.empty() && messages[i].content.find(tag) != std::string::npos)
        throw Error(concat("message ", i, " holds the special tag ", tag,
                           ", which would change who speaks; take it out of the text"));
}

namespace detail {

/// A text of a form, with the tokenizer's marks; each stands in it once at most.
[[nodiscard]] inline std::string spelled(std::string_view text, const ChatMarks& marks) {
  std::string out(text);
  for (const std::string_view name : {"{bos}", "{eos}"}) {
    const std::size_t at = out.find(name);
    if (at != std::string::npos) out.replace(at, name.size(), name == "{bos}" ? marks.bos : marks.eos);
  }
  return out;
}

/// Writes a conversation in a form.
class ChatWriter {
 public:
  ChatWriter(const ChatForm& form, const ChatMarks& marks) : form_(form), marks_(marks) {}

  [[nodiscard]] ChatText write(std::span<const Message> messages, bool open) {
    mark(form_.begin);
    bool has_system = messages[0].role == "system";
    std::string system(has_system ? std::string_view(messages[0].content) : form_.default_system);
    if (has_system) messages = messages.subspan(1);
    has_system = has_system || !system.empty();
    if (has_system && !form_.system_in_user) {
      mark(form_.system_open);
      content(system);
      mark(form_.system_close);
    }
    for (const Message& message : messages) {
      if (message.role == "user") {
        mark(form_.user_open);
        if (std::exchange(has_system, false) && form_.system_in_user) {
          content(concat(form_.system_open, system, form_.system_close, message.content));
        } else {
          content(message.content);
        }
        mark(form_.user_close);
      } else {
        mark(form_.reply_open);
        const std::size_t begin = out_.text.size();
        mark(form_.reply_lead);
        content(message.content);
        mark(form_.reply_end);
        out_.replies.push_back({begin, out_.text.size()});
        mark(form_.reply_close);
      }
    }
    if (open) mark(form_.reply_open);
    return std::move(out_);
  }

 private:
  void mark(std::string_view text) { out_.text += spelled(text, marks_); }
  /// The system prompt of a form that has it in the user's turn is stripped with that turn, as in the reference.
  void content(std::string_view text) {
    const std::size_t begin = out_.text.size();
    out_.text += form_.strips ? stripped(text) : text;
    out_.content.push_back({begin, out_.text.size()});
  }

  const ChatForm& form_;
  const ChatMarks& marks_;
  ChatText out_;
};

}  // namespace detail

/// A conversation in a form. `open`: up to where the assistant answers; else a finished one. Throws Error when roles do
/// not take turns, when a message contains a tag of the form, and for a mark that the tokenizer does not have.
[[nodiscard]] inline ChatText chat_text(const ChatForm& form, const ChatMarks& marks, std::span<const Message> messages,
                                        bool open) {
  const auto needs = [&](std::string_view mark) {
    for (const std::string_view text : {form.begin, form.user_open, form.user_close, form.reply_end})
      if (text.find(mark) != std::string_view::npos) return true;
    return false;
  };
  if (marks.bos.empty() && needs("{bos}"))
    throw Error(concat("the tokenizer has no begin token, so its model cannot be asked in the chat form ", form.name));
  if (marks.eos.empty() && needs("{eos}"))
    throw Error(concat("the tokenizer has no end token, so its model cannot be asked in the chat form ", form.name));
  check_tags(messages, form.tags);
  check_turns(messages, open);
  return detail::ChatWriter(form, marks).write(messages, open);
}

}  // namespace v0
}  // namespace qlora
