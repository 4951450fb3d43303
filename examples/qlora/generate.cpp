// generate.cpp — `qlora generate` and `qlora chat`: a prompt continued, a conversation held; text appears as it comes.
#include <filesystem>
#include <iostream>
#include <memory>
#include <ostream>
#include <string>

#include "adapters.hpp"
#include "answering.hpp"
#include "interrupt.hpp"
#include "options.hpp"
#include "qlora/error.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;

struct TalkOptions {
  AnswerOptions answer;
  fs::path adapter;
  std::string prompt;
  std::string system;
  bool any_base = false;
};

Answerer open(const TalkOptions& options) {
  const auto& [model, weights, sampling, device] = options.answer;
  if (options.adapter.empty()) return {model, options.answer.base(), no_adapters, device};
  if (options.answer.base() == Base::full) {
    throw Error("an adapter goes on the 4-bit model; leave --base out, or merge first", ErrorKind::usage);
  }
  const PeftAdapter adapter = open_adapter(options.adapter, hf::ModelDir::open(model), options.any_base);
  Answerer answerer(model, Base::nf4, room_for(no_adapters, adapter), device);
  answerer.session().attach(adapter);
  return answerer;
}

/// Asks one question and writes the answer while it comes; characters are written whole.
Reply answer(Answerer& answerer, const Question& question, const GenerateOptions& how, std::ostream& out) {
  StreamDecoder decoder(answerer.tokenizer(), question.chat ? DecodeFrom::start : DecodeFrom::middle);
  const Reply reply = answerer.ask({question}, how, [&](int, std::int32_t id) {
    out << decoder.push(id) << std::flush;
    return true;
  })[0];
  out << decoder.finish() << '\n';
  return reply;
}

Result generate(const TalkOptions& options, Context& context) {
  Answerer answerer = open(options);
  context.out << options.prompt;
  const Reply reply = answer(answerer, {false, options.prompt, {}}, generation(options.answer.sampling), context.out);
  return {{"prompt", options.prompt}, {"text", reply.text}, {"stopped", reply.stopped}};
}

/// Turns until the input ends; one with --prompt.
Result chat(const TalkOptions& options, bool prompt_given, Context& context) {
  if (prompt_given && options.prompt.empty()) throw Error("--prompt is empty", ErrorKind::usage);
  Answerer answerer = open(options);
  Question question{true, {}, {}};
  if (!options.system.empty()) question.history.push_back({"system", options.system});
  Result turns = Result::array();
  const auto turn = [&](const std::string& text) {
    question.prompt = text;
    const Reply reply = answer(answerer, question, generation(options.answer.sampling), context.out);
    question.history.push_back({"user", text});
    question.history.push_back({"assistant", reply.text});
    turns.push_back({{"user", text}, {"assistant", reply.text}, {"stopped", reply.stopped}});
  };
  if (!options.prompt.empty()) {
    turn(options.prompt);
    return {{"turns", turns}};
  }
  context.progress.say("one line, one turn; the end of the input (Ctrl-D) ends the conversation");
  for (std::string line; !interrupted() && std::getline(std::cin, line);) {
    if (line.find_first_not_of(" \t\r") != std::string::npos) turn(line);
  }
  return {{"turns", turns}};
}

void add_talk_options(OptionSet verb, TalkOptions& options) {
  add_answer_options(verb, options.answer);
  verb.add("-a,--adapter", options.adapter, "Adapter to put on the 4-bit model").type_name("DIR");
  add_any_base(verb, options.any_base);
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
  OptionSet verb = add_verb(app, call, "chat", "Talk with a chat model, in LLaMA-2's chat form");
  auto options = std::make_shared<TalkOptions>();
  add_talk_options(verb, *options);
  verb.add("-p,--prompt", options->prompt, "One question; without it turns are read from stdin");
  verb.add("--system", options->system, "System prompt");
  verb.on_call([&call, options, verb] {
    call.action = [options, given = verb.given("--prompt")](Context& c) { return chat(*options, given, c); };
  });
}

}  // namespace qlora::program
