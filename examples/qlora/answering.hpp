// answering.hpp — a model, its tokenizer and perhaps an adapter, opened together and asked in words.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "interrupt.hpp"
#include "probes.hpp"
#include "qlora/error.hpp"
#include "qlora/text/prompt.hpp"
#include "qlora/text/tokenizer.hpp"
#include "variant.hpp"

namespace qlora::program {

class Answerer {
 public:
  /// `rank` is the highest of the adapters that will be attached.
  Answerer(const std::filesystem::path& dir, Base base, int rank, const DeviceSection& device, int threads)
      : model_(hf::ModelDir::open(dir)), tokenizer_(Tokenizer::load(dir / "tokenizer.model")) {
    const Chosen chosen = choose_variant(model_.shape, base == Base::full ? 1 : rank, device, threads);
    session_ = chosen.variant->open(model_, base, chosen.machine);
    if (tokenizer_.vocab_size() > model_.shape.vocab) {
      throw Error(qlora::detail::concat(dir.string(), ": the tokenizer has ", tokenizer_.vocab_size(),
                                        " pieces, the model ", model_.shape.vocab));
    }
  }

  [[nodiscard]] Session& session() { return *session_; }
  [[nodiscard]] const Tokenizer& tokenizer() const { return tokenizer_; }

  [[nodiscard]] std::vector<std::int32_t> prompt_of(const Question& question) const {
    if (question.chat) {
      std::vector<Message> messages = question.history;
      messages.push_back({"user", question.prompt});
      return chat_tokens(tokenizer_, messages);
    }
    std::vector<std::int32_t> ids{tokenizer_.bos()};
    const auto text = tokenizer_.encode(question.prompt);
    ids.insert(ids.end(), text.begin(), text.end());
    return ids;
  }

  /// Where generation ends: the model's own end marks, and in a chat the mark that would begin another turn.
  [[nodiscard]] std::vector<std::int32_t> stop_ids(bool chat) const {
    std::vector<std::int32_t> ids(model_.eos_token_ids.begin(), model_.eos_token_ids.end());
    ids.push_back(tokenizer_.eos());
    if (chat) ids.push_back(tokenizer_.bos());
    return ids;
  }

  /// Answers to all questions, chats and completions, in their order. Ends early (Error) when interrupted.
  [[nodiscard]] std::vector<Reply> ask(const std::vector<Question>& questions, GenerateOptions options,
                                       const OnToken& on_token = {}) {
    std::vector<Reply> replies(questions.size());
    for (const bool chat : {false, true}) {
      std::vector<std::size_t> which;
      std::vector<std::vector<std::int32_t>> prompts;
      for (std::size_t i = 0; i < questions.size(); ++i) {
        if (questions[i].chat != chat) continue;
        which.push_back(i);
        prompts.push_back(prompt_of(questions[i]));
      }
      if (prompts.empty()) continue;
      options.stop_ids = stop_ids(chat);
      const auto generated = session_->generate(prompts, options, [&](int prompt, std::int32_t id) {
        return !interrupted() && (!on_token || on_token(prompt, id));
      });
      if (interrupted()) throw Error("interrupted while answering; ask again", ErrorKind::interrupted);
      for (std::size_t i = 0; i < which.size(); ++i) {
        std::string text = tokenizer_.decode(generated[i].ids, chat ? DecodeFrom::start : DecodeFrom::middle);
        if (chat) text.erase(std::min(text.find("[INST]"), text.size()));
        replies[which[i]] = {std::move(text), generated[i].stopped};
      }
    }
    return replies;
  }

 private:
  hf::ModelDir model_;
  Tokenizer tokenizer_;
  std::unique_ptr<Session> session_;
};

/// The largest rank in an adapter: what the compiled cap must hold.
inline int highest_rank(const PeftAdapter& adapter) {
  int rank = adapter.r;
  for (const auto& [module, special] : adapter.rank_pattern) rank = std::max(rank, special);
  return rank;
}

}  // namespace qlora::program
