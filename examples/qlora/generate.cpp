// generate.cpp — `qlora generate` and `qlora chat`: a prompt continued, a conversation held; text appears as it comes.
#include <filesystem>
#include <iostream>
#include <memory>
#include <ostream>
#include <string>

#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/run/engine.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

namespace fs = std::filesystem;
using run::Engine;
using run::Question;
using run::Reply;

struct TalkOptions {
  fs::path model;
  fs::path adapter;
  run::Base weights;
  run::Sampling sampling;
  run::DeviceRequest device;
  std::string prompt;
  std::string system;
  bool any_base = false;
};

Engine open(const TalkOptions& options) {
  run::EngineOptions how{.base = options.weights.base, .any_base = options.any_base, .device = options.device};
  if (!options.adapter.empty()) how.adapters.push_back({"adapter", options.adapter});
  Engine engine(options.model, how);
  if (!options.adapter.empty()) engine.use("adapter");
  return engine;
}

/// Asks one question and writes the answer while it comes; characters are written whole.
Reply answer(Engine& engine, const Question& question, const run::Sampling& sampling, Context& context) {
  StreamDecoder decoder(engine.tokenizer(), question.chat ? DecodeFrom::start : DecodeFrom::middle);
  const Reply reply = engine.ask({question}, sampling, context.progress, [&](int, std::int32_t id) {
    context.out << decoder.push(id) << std::flush;
    return true;
  })[0];
  context.out << decoder.finish() << '\n';
  return reply;
}

Result generate(const TalkOptions& options, Context& context) {
  Engine engine = open(options);
  context.out << options.prompt;
  const Reply reply = answer(engine, {false, options.prompt, {}}, options.sampling, context);
  return result_of(Continuation{options.prompt, reply.text, reply.stopped});
}

/// Turns until the input ends; one with --prompt.
Result chat(const TalkOptions& options, bool prompt_given, Context& context) {
  if (prompt_given && options.prompt.empty()) throw Error("--prompt is empty", ErrorKind::usage);
  Engine engine = open(options);
  Question question{true, {}, {}};
  if (!options.system.empty()) question.history.push_back({"system", options.system});
  Conversation conversation;
  const auto turn = [&](const std::string& text) {
    question.prompt = text;
    const Reply reply = answer(engine, question, options.sampling, context);
    question.history.push_back({"user", text});
    question.history.push_back({"assistant", reply.text});
    conversation.turns.push_back({text, reply.text, reply.stopped});
  };
  if (!options.prompt.empty()) {
    turn(options.prompt);
    return result_of(conversation);
  }
  context.progress.say("one line, one turn; the end of the input (Ctrl-D) ends the conversation");
  for (std::string line; !context.progress.stop_requested() && std::getline(std::cin, line);) {
    if (line.find_first_not_of(" \t\r") != std::string::npos) turn(line);
  }
  return result_of(conversation);
}

void add_talk_options(OptionSet verb, TalkOptions& options) {
  verb.add("model", options.model, "Model directory").required().type_name("DIR");
  add_table(verb, options.weights);
  add_table(verb, options.sampling);
  add_table(verb, options.device);
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
