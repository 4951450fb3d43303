// qlora/text/chat_template.hpp — how a model's conversations are written: in a built-in form, or by the template of its
// directory (chat_directory.hpp reads that).
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/chat_form.hpp"
#include "qlora/text/chat_text.hpp"
#include "qlora/text/message.hpp"

namespace qlora {
inline namespace v0 {

/// Where a reply ends, beside the end marks of the model.
struct ChatStops {
  std::vector<std::string> marks;  ///< tokens; those that the tokenizer does not have are text
  std::string turn;                ///< how the user's next turn begins in text; empty: by a mark
};

/// A template that is no built-in form.
class ChatScript {
 public:
  virtual ~ChatScript() = default;
  /// As chat_text(). Safe from many threads.
  [[nodiscard]] virtual ChatText write(std::span<const Message> messages, bool open) const = 0;
  /// Where replies end.
  [[nodiscard]] virtual ChatStops stops() const = 0;
  /// Tokens that no message may contain.
  [[nodiscard]] virtual std::vector<std::string> tags() const = 0;
  /// Tells templates apart: the SHA-256 of the template's text.
  [[nodiscard]] virtual std::string id() const = 0;
};

/// The built-in form of a name. Throws Error (usage) that lists the names.
[[nodiscard]] inline const ChatForm& chat_form_named(std::string_view name) {
  std::string names;
  for (const ChatForm& form : chat_form::all) {
    if (form.name == name) return form;
    names.append(names.empty() ? "" : ", ").append(form.name);
  }
  throw Error(concat("there is no chat template '", name, "'; the names are ", names), ErrorKind::usage);
}

/// How a model's conversations are written. Const calls are safe from many threads.
class ChatTemplate {
 public:
  /// A built-in form; LLaMA-2's, with its marks, unless another is given.
  explicit ChatTemplate(const ChatForm& form = chat_form::llama2, ChatMarks marks = {"<s>", "</s>"})
      : form_(form), marks_(std::move(marks)) {}
  /// A template of its own.
  explicit ChatTemplate(std::shared_ptr<const ChatScript> script) : script_(std::move(script)) {}
  /// A model that cannot be asked in turns: `why` is the message of the Error that write() throws.
  [[nodiscard]] static ChatTemplate none(std::string why) {
    ChatTemplate out;
    out.why_not_ = std::move(why);
    return out;
  }

  /// The form's name; "own" for a template of the model's own, "none" for none.
  [[nodiscard]] std::string_view name() const {
    return !why_not_.empty() ? "none" : script_ != nullptr ? "own" : form_.name;
  }
  /// The built-in form; nothing for another template, and for none.
  [[nodiscard]] std::optional<ChatForm> form() const {
    return script_ == nullptr && why_not_.empty() ? std::optional(form_) : std::nullopt;
  }
  /// How a built-in form spells "{bos}" and "{eos}".
  [[nodiscard]] const ChatMarks& marks() const { return marks_; }
  /// Why there is none; empty where there is one.
  [[nodiscard]] const std::string& why_not() const { return why_not_; }
  /// What results depend on: empty for LLaMA-2's form, a form's name, or the SHA-256 of a template.
  [[nodiscard]] std::string fingerprint() const {
    if (script_ != nullptr) return script_->id();
    return name() == chat_form::llama2.name ? std::string() : std::string(name());
  }

  /// A conversation up to where the assistant answers (`open`), or a finished one. Throws Error when roles do not take
  /// turns, when a message contains one of tags(), and when the template refuses.
  [[nodiscard]] ChatText write(std::span<const Message> messages, bool open) const {
    if (!why_not_.empty()) throw Error(why_not_);
    if (script_ != nullptr) return script_->write(messages, open);
    return chat_text(form_, marks_, messages, open);
  }

  /// Where replies end.
  [[nodiscard]] ChatStops stops() const {
    if (!why_not_.empty()) return {};
    if (script_ != nullptr) return script_->stops();
    ChatStops out;
    for (const std::string_view mark : {form_.end_mark, form_.turn_mark}) {
      out.marks.emplace_back(mark == "{eos}" ? std::string_view(marks_.eos) : mark);
    }
    if (!marks_.bos.empty()) out.marks.push_back(marks_.bos);  // where a turn begins anew
    out.turn = form_.turn_mark;
    return out;
  }
  /// No message may contain one.
  [[nodiscard]] std::vector<std::string> tags() const {
    if (!why_not_.empty()) return {};
    if (script_ != nullptr) return script_->tags();
    std::vector<std::string> out(form_.tags.begin(), form_.tags.end());
    std::erase(out, std::string());
    return out;
  }

 private:
  ChatForm form_ = chat_form::llama2;
  ChatMarks marks_;
  std::shared_ptr<const ChatScript> script_;
  std::string why_not_;
};

}  // namespace v0
}  // namespace qlora
