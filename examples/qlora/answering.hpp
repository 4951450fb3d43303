// answering.hpp — a model, its tokenizer and perhaps an adapter, opened together and asked in words.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "interrupt.hpp"
#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/eval/measure.hpp"
#include "qlora/run/options.hpp"
#include "qlora/run/questions.hpp"
#include "qlora/text/tokenizer.hpp"
#include "variant.hpp"

namespace qlora::program {

using eval::Reply;
using run::Question;

/// What every verb asks for that lets one model answer.
struct AnswerOptions {
  std::filesystem::path model;
  run::Base weights;
  run::Sampling sampling;
  run::DeviceRequest device;

  [[nodiscard]] Base base() const { return weights.base == run::BaseWeights::full ? Base::full : Base::nf4; }
};

inline void add_answer_options(OptionSet verb, AnswerOptions& options) {
  verb.add("model", options.model, "Model directory").required().type_name("DIR");
  add_table(verb, options.weights);
  add_table(verb, options.sampling);
  add_table(verb, options.device);
}

[[nodiscard]] inline GenerateOptions generation(const run::Sampling& sampling) {
  GenerateOptions how;
  how.max_new_tokens = sampling.max_new_tokens;
  how.sampling = {.temperature = static_cast<float>(sampling.temperature),
                  .top_p = static_cast<float>(sampling.top_p),
                  .top_k = sampling.top_k,
                  .seed = static_cast<std::uint64_t>(sampling.seed)};
  return how;
}

class Answerer {
 public:
  /// `adapters`: room for every adapter that will be attached.
  Answerer(const std::filesystem::path& dir, Base base, const Lora& adapters, const run::DeviceRequest& device)
      : model_(hf::ModelDir::open(dir)), tokenizer_(Tokenizer::load(dir / "tokenizer.model")) {
    const Chosen chosen =
        choose_variant(model_.shape, base == Base::full ? no_adapters : adapters, section_of(device), device.threads);
    session_ = chosen.variant->open(model_, base, adapters, chosen.machine);
    if (tokenizer_.vocab_size() > model_.shape.vocab) {
      throw Error(concat(dir.string(), ": the tokenizer has ", tokenizer_.vocab_size(), " pieces, the model ",
                         model_.shape.vocab));
    }
  }

  [[nodiscard]] Session& session() { return *session_; }
  [[nodiscard]] const Tokenizer& tokenizer() const { return tokenizer_; }
  /// The model's own end marks.
  [[nodiscard]] const std::vector<std::int32_t>& ends() const { return model_.eos_token_ids; }

  /// Answers to all questions, chats and completions, in their order. Ends early (Error) when interrupted.
  [[nodiscard]] std::vector<Reply> ask(const std::vector<Question>& questions, GenerateOptions options,
                                       const OnToken& on_token = {}) {
    std::vector<Reply> replies(questions.size());
    for (const bool chat : {false, true}) {
      std::vector<std::size_t> which;
      std::vector<std::vector<std::int32_t>> prompts;
      for (std::size_t i = 0; i < questions.size(); ++i) {
        const Question& question = questions[i];
        if (question.chat != chat) continue;
        which.push_back(i);
        prompts.push_back(eval::question_tokens(tokenizer_, chat, question.prompt, question.history));
      }
      if (prompts.empty()) continue;
      options.stop_ids = eval::stop_tokens(tokenizer_, chat, ends());
      const auto generated = session_->generate(prompts, options, [&](int prompt, std::int32_t id) {
        return !interrupted() && (!on_token || on_token(prompt, id));
      });
      if (interrupted()) throw Error("interrupted while answering; ask again", ErrorKind::interrupted);
      for (std::size_t i = 0; i < which.size(); ++i) {
        replies[which[i]] = eval::reply_of(tokenizer_, chat, generated[i]);
      }
    }
    return replies;
  }

 private:
  hf::ModelDir model_;
  Tokenizer tokenizer_;
  std::unique_ptr<Session> session_;
};

}  // namespace qlora::program
