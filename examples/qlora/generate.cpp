// generate.cpp — `qlora generate` and `qlora chat`: a prompt continued, a conversation held; text appears as it comes.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#ifdef QLORA_WITH_EDIT
#include <editline/readline.h>
#include <unistd.h>
#endif

#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/text/message.hpp"
#include "qlora/text/utf8.hpp"
#include "talk.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;
struct TalkOptions {
  TalkModel how;
  run::Sampling sampling;
  std::string prompt;
  std::string system;
};

Result generate(const TalkOptions& options, Context& context) {
  check_utf8(options.prompt, "--prompt");
  Talker talker(options.how, context.progress);
  context.out << options.prompt;
  const Continuation continuation = talker.continued(options.prompt, options.sampling, context);
  talker.say_speed(context);
  return result_of(continuation);
}

/// An answer as later turns see it: without marks of the chat form, which would change who speaks.
std::string without_marks(std::string text, const std::vector<std::string>& marks) {
  for (bool again = true; again;) {
    again = false;
    for (const std::string& mark : marks) {
      const std::size_t at = text.find(mark);
      if (at == std::string::npos) continue;
      text.erase(at, mark.size());
      again = true;
    }
  }
  return text;
}

/// The next line of stdin: at a terminal with editing and a history, where the program was built with libedit.
bool next_line(std::string& line) {
#ifdef QLORA_WITH_EDIT
  if (isatty(STDIN_FILENO) != 0 && isatty(STDOUT_FILENO) != 0) {
    const std::unique_ptr<char, decltype(&std::free)> typed(readline("> "), &std::free);
    if (typed == nullptr) return false;
    line = typed.get();
    if (!line.empty()) add_history(line.c_str());
    return true;
  }
#endif
  return static_cast<bool>(std::getline(std::cin, line));
}

constexpr std::string_view chat_commands =
    "one line, one turn; Ctrl-D or /quit ends. /retry: another answer to the last turn; /reset: forget all turns; "
    "/system TEXT: another system prompt, none without a text; /base, /tuned, /scale 0.6: without the adapter, with "
    "it, at a strength";

/// A conversation at a terminal or in a file: turns, and commands that begin with "/".
class Chat {
 public:
  Chat(const TalkOptions& options, Context& context)
      : options_(options), context_(context), talker_(options.how, context.progress) {
    set_system(options.system);
    context_.so_far = result_of(conversation_);
  }

  /// Asks one question; with another seed, where it is asked again.
  void take_turn(const std::string& text, int again = 0) {
    std::vector<Message> history = history_;
    run::Sampling sampling = options_.sampling;
    sampling.seed += again;
    if (const int gone = talker_.make_room(text, history, sampling); gone > 0) {
      context_.progress.say(
          concat("the context is full; the model forgets the ", gone, " oldest turn", gone == 1 ? "" : "s"));
    }
    const Turn turn = talker_.answered(text, history, sampling, context_);
    history_ = std::move(history);
    history_.push_back({"user", turn.user});
    history_.push_back({"assistant", without_marks(turn.assistant, talker_.chat_tags())});
    conversation_.turns.push_back(turn);
    context_.so_far = result_of(conversation_);
  }

  /// A line of the user's. Returns false when it ends the conversation.
  bool take_line(const std::string& line) {
    const std::size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos) return true;
    if (line[first] != '/') {
      again_ = 0;
      take_turn(line);
      return true;
    }
    const std::size_t end = line.find_last_not_of(" \t\r") + 1;
    const std::size_t space = std::min(line.find(' ', first), end);
    const std::string command = line.substr(first, space - first);
    const std::size_t rest = std::min(line.find_first_not_of(' ', space), end);
    return take_command(command, line.substr(rest, end - rest));
  }
  void end() const { talker_.say_speed(context_); }
  [[nodiscard]] Result result() const { return result_of(conversation_); }

 private:
  void set_system(const std::string& text) {
    std::vector<Message> system;
    if (!text.empty()) system.push_back({"system", text});
    talker_.check_chat(system);
    if (!history_.empty() && history_.front().role == "system") history_.erase(history_.begin());
    history_.insert(history_.begin(), system.begin(), system.end());
  }
  bool take_command(const std::string& command, const std::string& value) {
    if (command == "/quit") return false;
    if (command == "/help") {
      context_.progress.say(std::string(chat_commands));
    } else if (command == "/reset") {
      while (!history_.empty() && history_.back().role != "system") history_.pop_back();
      context_.progress.say("all turns are forgotten");
    } else if (command == "/system") {
      set_system(value);
      context_.progress.say(value.empty() ? "no system prompt" : "the system prompt is another one from now on");
    } else if (command == "/base" || command == "/tuned") {
      talker_.use(command == "/tuned", 1.0F);
      context_.progress.say(command == "/base" ? "the base answers" : "the adapter answers");
    } else if (command == "/scale") {
      const std::optional<double> scale = number_of(value);
      if (!scale) throw Error(concat("/scale needs a number, as in /scale 0.6; \"", value, "\" is none"));
      talker_.use(true, static_cast<float>(*scale));
      context_.progress.say(concat("the adapter answers at ", *scale, " of its strength"));
    } else if (command == "/retry") {
      if (history_.empty() || history_.back().role != "assistant") throw Error("there is no turn to ask again");
      const std::string question = history_[history_.size() - 2].content;
      const std::vector<Message> before = history_;
      history_.resize(history_.size() - 2);
      try {
        take_turn(question, ++again_);
      } catch (...) {
        history_ = before;
        throw;
      }
    } else {
      throw Error(concat("\"", command, "\" is no command; /help lists them"));
    }
    return true;
  }
  /// A finite number, and nothing behind it.
  [[nodiscard]] static std::optional<double> number_of(const std::string& text) {
    double value = 0.0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
    return value;
  }

  const TalkOptions& options_;
  Context& context_;
  Talker talker_;
  std::vector<Message> history_;  ///< what the model sees: a system prompt, then pairs of question and answer
  Conversation conversation_;     ///< all answers
  int again_ = 0;                 ///< answers to the last turn, beside the first
};

/// Turns until the input ends; one with --prompt. A line that cannot be asked is said and left out of the conversation.
Result chat(const TalkOptions& options, bool prompt_given, Context& context) {
  if (prompt_given && options.prompt.empty()) throw Error("--prompt is empty", ErrorKind::usage);
  check_utf8(options.prompt, "--prompt");
  check_utf8(options.system, "--system");
  Chat chat(options, context);
  if (!options.prompt.empty()) {
    chat.take_turn(options.prompt);
    chat.end();
    return chat.result();
  }
  context.progress.say(std::string(chat_commands));
  for (std::string line; !context.progress.stop_requested() && next_line(line);) {
    try {
      if (!chat.take_line(line)) break;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::input) throw;
      context.progress.say(concat("not asked: ", error.what()));
    }
  }
  chat.end();
  return chat.result();
}

void add_talk_options(OptionSet verb, TalkOptions& options) {
  verb.add_model("model", options.how.model, "Model directory").required().type_name("DIR");
  add_table(verb, options.how.weights);
  add_table(verb, options.sampling);
  add_table(verb, options.how.device);
  verb.add_model("-a,--adapter", options.how.adapter, "Adapter to put on the 4-bit model").type_name("DIR");
  add_any_base(verb, options.how.any_base);
}

}  // namespace

void add_generate(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "generate", "Continue a prompt");
  auto options = std::make_shared<TalkOptions>();
  add_talk_options(verb, *options);
  verb.add("-p,--prompt", options->prompt, "Text to continue").required();
  verb.on_call([&call, options] { call.action = [options](Context& c) { return generate(*options, c); }; });
}

void add_chat(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "chat", "Talk with a chat model, in its chat form");
  auto options = std::make_shared<TalkOptions>();
  add_talk_options(verb, *options);
  verb.add("-p,--prompt", options->prompt, "One question; without it turns are read from stdin");
  verb.add("--system", options->system, "System prompt");
  add_table(verb, options->how.chat);
  verb.on_call([&call, options, verb] {
    call.action = [options, given = verb.given("--prompt")](Context& c) { return chat(*options, given, c); };
  });
}

}  // namespace qlora::program
