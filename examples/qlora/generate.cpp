// generate.cpp — `qlora generate` and `qlora chat`: a prompt continued, a conversation held; text appears as it comes.
#include <iostream>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/text/message.hpp"
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
  Talker talker(options.how);
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

/// Turns until the input ends; one with --prompt. A line that cannot be asked is said and left out of the conversation.
Result chat(const TalkOptions& options, bool prompt_given, Context& context) {
  if (prompt_given && options.prompt.empty()) throw Error("--prompt is empty", ErrorKind::usage);
  Talker talker(options.how);
  std::vector<Message> history;
  if (!options.system.empty()) history.push_back({"system", options.system});
  talker.check_chat(history);
  Conversation conversation;
  context.so_far = result_of(conversation);
  const auto take_turn = [&](const std::string& text) {
    if (const int gone = talker.make_room(text, history, options.sampling); gone > 0) {
      context.progress.say(
          concat("the context is full; the model forgets the ", gone, " oldest turn", gone == 1 ? "" : "s"));
    }
    const Turn& turn = conversation.turns.emplace_back(talker.answered(text, history, options.sampling, context));
    history.push_back({"user", turn.user});
    history.push_back({"assistant", without_marks(turn.assistant, talker.chat_tags())});
    context.so_far = result_of(conversation);
  };
  if (!options.prompt.empty()) {
    take_turn(options.prompt);
    talker.say_speed(context);
    return result_of(conversation);
  }
  context.progress.say("one line, one turn; the end of the input (Ctrl-D) ends the conversation");
  for (std::string line; !context.progress.stop_requested() && std::getline(std::cin, line);) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      take_turn(line);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::input) throw;
      context.progress.say(concat("not asked: ", error.what()));
    }
  }
  talker.say_speed(context);
  return result_of(conversation);
}

void add_talk_options(OptionSet verb, TalkOptions& options) {
  verb.add("model", options.how.model, "Model directory").required().type_name("DIR");
  add_table(verb, options.how.weights);
  add_table(verb, options.sampling);
  add_table(verb, options.how.device);
  verb.add("-a,--adapter", options.how.adapter, "Adapter to put on the 4-bit model").type_name("DIR");
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
